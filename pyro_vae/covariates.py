"""Covariates: information that accompanies rows, such as labels and ages, as numbers for networks.

Programs take the values unchanged, as keyword arguments. Networks get labels one-hot and amounts standardised.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae._support.configs import printed
from pyro_vae.encodings import Standard

__all__ = ["Amount", "Covariate", "Covariates", "Label", "as_covariates"]

_TAKEN = ("x", "mask", "batch_size")


class Covariate(nn.Module):
    """Base class: one keyword argument of the programs, ``(*B, *shape)``, to numbers for a network, ``(*B, size)``.

    To write a new one, set ``shape`` and ``size``, and define ``forward`` and ``check_values``. Store each constructor
    argument under its own name.

    Args:
        name: Name of the keyword argument.
    """

    shape: tuple[int, ...] = ()
    size: int

    def __init__(self, name: str) -> None:
        super().__init__()
        if not name.isidentifier() or name in _TAKEN:
            raise ValueError(f"a covariate is a keyword argument and cannot be called {name!r}")
        self.name = name

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return printed(self)

    def check(self, value: Any) -> None:
        """Checks the values of all rows, or the one that they share.

        Raises:
            ValueError: saying what is wrong with them.
        """
        if value is None:
            raise ValueError(
                f"the rows come without {self.name}, which this model needs: give {{'x': x, {self.name!r}: ...}}, or "
                f"given={{{self.name!r}: ...}} to draw rows"
            )
        values = torch.as_tensor(value)
        if values.dim() and tuple(values.shape[1:]) != self.shape:
            expected = f"(N, {', '.join(map(str, self.shape))})" if self.shape else "(N,)"
            raise ValueError(f"{self.name} has shape {tuple(values.shape)}, expected {expected}")
        self.check_values(values)

    def check_values(self, values: Tensor) -> None:
        """Checks the values. Their shape has been checked already.

        Raises:
            ValueError: saying what is wrong with them.
        """

    def forward(self, values: Tensor) -> Tensor:
        """The numbers for a network."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(values)")


class Label(Covariate):
    """One of ``num_classes`` classes, one-hot.

    Args:
        name: Name of the keyword argument, whole numbers ``(N,)`` from 0.
        num_classes: Number of classes.

    Example:
        >>> Label("labels", 3)(torch.tensor([2, 0])).int().tolist()
        [[0, 0, 1], [1, 0, 0]]
    """

    classes: Tensor

    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__(name)
        if num_classes < 2:
            raise ValueError(f"{name} must have at least 2 classes, found {num_classes}")
        self.num_classes = self.size = num_classes
        self.register_buffer("classes", torch.arange(num_classes), persistent=False)

    def check_values(self, values: Tensor) -> None:  # noqa: D102
        check_labels(values, self.num_classes, self.name)

    def forward(self, values: Tensor) -> Tensor:  # noqa: D102
        return values[..., None] == self.classes


def check_labels(values: Tensor, num_classes: int, name: str, *, unknown: bool = False) -> None:
    """Checks that values are classes; with ``unknown``, -1 stands for an unknown class.

    Raises:
        ValueError: with the first value that is not a class.
    """
    lowest = -1 if unknown else 0
    wrong = values[~((values >= lowest) & (values < num_classes) & (values == values.round()))]
    if len(wrong := wrong.reshape(-1)):
        also = ", or -1 if a row has none" if unknown else ""
        raise ValueError(
            f"{name} must be whole numbers from 0 to {num_classes - 1}{also}; found {wrong[0].item():g} and "
            f"{len(wrong) - 1:,} more like it"
            if len(wrong) > 1
            else f"{name} must be whole numbers from 0 to {num_classes - 1}{also}; found {wrong[0].item():g}"
        )


class Amount(Covariate):
    """Numbers in any unit, standardised by the first training batch.

    Args:
        name: Name of the keyword argument, ``(N, *shape)``.
        shape: Shape of one row's value; by default a single number.
    """

    def __init__(self, name: str, shape: Sequence[int] = ()) -> None:
        super().__init__(name)
        self.shape = tuple(shape)
        self.size = math.prod(self.shape)
        self.standard = Standard(self.shape)

    def check_values(self, values: Tensor) -> None:  # noqa: D102
        if not bool(values.isfinite().all()):
            raise ValueError(f"{self.name} has {int((~values.isfinite()).sum())} values that are not finite")

    def forward(self, values: Tensor) -> Tensor:  # noqa: D102
        values = self.standard(values.to(self.standard.loc.dtype))
        return values.reshape(*values.shape[: values.dim() - len(self.shape)], self.size)


class Covariates(nn.Module):
    """Several keyword arguments concatenated to one vector for a network, ``(*B, size)``.

    Args:
        parts: The covariates.

    Raises:
        ValueError: if there are none, or two have the same name; when called, if one is missing.

    Example:
        >>> shown = Covariates([Label("labels", 3), Amount("age")]).eval()
        >>> shown(labels=torch.tensor([2, 0]), age=0.5).tolist()
        [[0.0, 0.0, 1.0, 0.5], [1.0, 0.0, 0.0, 0.5]]
    """

    zero: Tensor

    def __init__(self, parts: Sequence[Covariate]) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros(()), persistent=False)
        self._parts = nn.ModuleList(parts)
        self.arguments = tuple(part.name for part in self.parts)
        self.size = sum(part.size for part in self.parts)
        if len(set(self.arguments)) < len(self.arguments) or not self.arguments:
            raise ValueError(f"covariates need distinct names, found {', '.join(self.arguments) or 'none'}")

    @property
    def parts(self) -> tuple[Covariate, ...]:
        """The covariates."""
        return tuple(self._parts)  # pyright: ignore[reportReturnType]

    def check_arguments(self, **arguments: Any) -> None:
        """Checks the values of each; other arguments are ignored.

        Raises:
            ValueError: saying which one is missing, or what is wrong with it.
        """
        for part in self.parts:
            part.check(arguments.get(part.name))

    def forward(self, **arguments: Any) -> Tensor:
        """The vector; other arguments are ignored."""
        shown = []
        for part in self.parts:
            value: Any = arguments.get(part.name)
            if value is None:
                part.check(value)
            assert value is not None  # the check refuses None
            values = value if isinstance(value, Tensor) else self.zero.new_full((), value)
            shown.append(part(values).to(self.zero.dtype))
        batch_shape = torch.broadcast_shapes(*(values.shape[:-1] for values in shown))
        return torch.cat([values.expand(*batch_shape, values.shape[-1]) for values in shown], dim=-1)


def as_covariates(given: Mapping[str, int | Sequence[int] | None]) -> Covariates:
    """Covariates by name: a number of classes, None for a single amount, or the shape of amounts.

    Example:
        >>> as_covariates({"labels": 10, "age": None, "position": (3,)}).size
        14
    """
    return Covariates(
        [
            Label(name, kind) if isinstance(kind, int) else Amount(name, () if kind is None else kind)
            for name, kind in given.items()
        ]
    )
