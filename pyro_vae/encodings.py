"""Encodings: turn rows of data into the input of an encoder's network.

The likelihood describes data in the model's units, but a network learns better from one-hot categories, logarithms of
counts and levels around zero. Each likelihood names the encoding of its kind of data.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "Beside",
    "ByColumn",
    "Centred",
    "Encoding",
    "Log",
    "LogCounts",
    "LogOnePlus",
    "OneHot",
    "Plain",
    "Standard",
    "WithMask",
    "beside",
    "by_row",
]


def by_row(value: Tensor | float, rows: Tensor, event_dim: int, name: str) -> Tensor:
    """Reshapes one number for each row, or one for all, to multiply with ``rows``, on their device and in their type.

    Args:
        value: ``(N,)``, or a number.
        rows: ``(*B, N, *E)``.
        event_dim: Number of dimensions of ``E``.
        name: The numbers' name in the error message.

    Raises:
        ValueError: if there is not one number for each row.
    """
    if not isinstance(value, Tensor):
        return rows.new_full((), value)
    batch_shape = rows.shape[: rows.dim() - event_dim]
    if value.dim() and tuple(value.shape) != tuple(batch_shape[-value.dim() :]):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, expected one number for each of {sum(batch_shape[-1:])} rows"
        )
    return value.to(rows).reshape(*value.shape, *[1] * event_dim)


class Encoding(nn.Module):
    """Base class: rows ``(*B, *E)`` to a network's input ``(*B, *shape(E))``.

    To write a new one, define ``forward``, and ``shape`` if it is not the shape of the row. If it depends on other
    arguments of the programs, such as a size factor, list their names in ``arguments`` and take them as keyword
    arguments of ``forward``. Store each constructor argument under its own name.
    """

    arguments: tuple[str, ...] = ()

    def shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the network's input for one row of shape ``event_shape``."""
        return tuple(event_shape)

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """The network's input; ``mask`` is true where an entry is observed."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(x)")


class Plain(Encoding):
    """The row as it is."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return x


class Centred(Encoding):
    """Levels from 0 to ``high``, mapped to [-1, 1]."""

    def __init__(self, high: float) -> None:
        super().__init__()
        self.high = high

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return 2 * x / self.high - 1


class _Standardized(Encoding):
    """Base class of encodings that are standardised.

    Numbers in any unit, and logarithms of amounts, can lie anywhere and vary little. So each element is standardised by
    its mean and standard deviation in the first training batch, which are fixed from then on.
    """

    loc: Tensor
    scale: Tensor
    has_scale: Tensor

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.register_buffer("loc", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))
        self.register_buffer("has_scale", torch.tensor(False))  # noqa: FBT003

    def standardized(self, values: Tensor, mask: Tensor | None) -> Tensor:
        """The values minus their mean, divided by their standard deviation."""
        if self.training:
            self._observe(values, mask)
        return (values - self.loc) / self.scale

    @torch.no_grad()
    def _observe(self, values: Tensor, mask: Tensor | None) -> None:
        seen = torch.ones_like(values) if mask is None else mask.to(values.dtype).expand_as(values)
        values, seen = (t.reshape(-1, *self.event_shape) for t in (values, seen))
        count = seen.sum(0)
        loc = (values * seen).sum(0) / count.clamp(min=1)
        scale = ((values - loc).square() * seen).sum(0).div(count.clamp(min=1)).sqrt()
        varies = scale > 1e-5 * loc.abs()  # more than by rounding
        self.loc.copy_(torch.where(self.has_scale, self.loc, loc))
        self.scale.copy_(torch.where(self.has_scale, self.scale, torch.where(varies, scale, 1.0)))
        self.has_scale.fill_(True)  # noqa: FBT003


class Standard(_Standardized):
    """Numbers in any unit, standardised by the first training batch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return self.standardized(x, mask)


class LogOnePlus(_Standardized):
    """The logarithm of 1 + x, for counts, standardised by the first training batch.

    Counts are first divided by their row's ``size_factor``, the effort with which the row was observed.
    """

    arguments = ("size_factor",)

    def forward(  # noqa: D102
        self, x: Tensor, mask: Tensor | None = None, *, size_factor: Tensor | float | None = None
    ) -> Tensor:
        if size_factor is not None:
            x = x / by_row(size_factor, x, len(self.event_shape), "size_factor")
        return self.standardized(x.log1p(), mask)


class LogCounts(_Standardized):
    """The logarithm of 1 + x, for counts whose total is informative, standardised by the first training batch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return self.standardized(x.log1p(), mask)


class Log(_Standardized):
    """The logarithm of x, for positive measurements in any unit, standardised by the first training batch."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        return self.standardized(x.log(), mask)


class OneHot(Encoding):
    """One input for each of ``num_levels`` levels, before the row's ``event_dim`` dimensions: ``(num_levels, *E)``."""

    def __init__(self, num_levels: int, event_dim: int) -> None:
        super().__init__()
        self.num_levels, self.event_dim = num_levels, event_dim

    def shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        return (self.num_levels, *event_shape)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: D102
        one_hot = F.one_hot(x.long(), self.num_levels).to(x.dtype)
        return one_hot.movedim(-1, -1 - self.event_dim)


class ByColumn(Encoding):
    """Each column of a table in its own encoding, concatenated: ``(D,)`` to ``(F,)``."""

    def __init__(self, columns: Sequence[Encoding]) -> None:
        super().__init__()
        self._columns = nn.ModuleList(columns)
        self.arguments = tuple(dict.fromkeys(name for column in columns for name in column.arguments))

    @property
    def columns(self) -> tuple[Encoding, ...]:
        """The encoding of each column."""
        return tuple(self._columns)  # pyright: ignore[reportReturnType]

    def shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        return (sum(math.prod(column.shape(())) for column in self.columns),)

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:  # noqa: D102
        masks = [None] * x.shape[-1] if mask is None else mask.expand_as(x).unbind(-1)
        parts = [
            column(part, m, **{name: value for name, value in arguments.items() if name in column.arguments})
            for column, part, m in zip(self.columns, x.unbind(-1), masks, strict=True)
        ]
        parts = [part.reshape(*x.shape[:-1], -1) for part in parts]
        parts = [part if m is None else part * m[..., None] for part, m in zip(parts, masks, strict=True)]
        return torch.cat(parts, dim=-1)


class WithMask(Encoding):
    """Another encoding together with the mask: 1 where an entry is observed, 0 where it is missing.

    If the encoding has the row's shape, or that with levels in front, the mask is one more level. Other encodings are
    flat, and the mask is appended.
    """

    def __init__(self, encoding: Encoding, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.encoding, self.event_shape = encoding, tuple(event_shape)
        self.arguments = encoding.arguments

    def shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        event_shape, inner = tuple(event_shape), self.encoding.shape(event_shape)
        if inner == event_shape:
            return (2, *event_shape)
        if inner[1:] == event_shape:
            return (inner[0] + 1, *event_shape)
        return (math.prod(inner) + math.prod(event_shape),)

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:  # noqa: D102
        event_dim, inner = len(self.event_shape), self.encoding.shape(self.event_shape)
        seen = torch.ones_like(x) if mask is None else mask.to(x.dtype).expand_as(x)
        encoded = self.encoding(x, mask, **arguments)
        if inner == self.event_shape:
            return torch.stack([encoded * seen, seen], dim=-1 - event_dim)
        if inner[1:] == self.event_shape:
            seen = seen.unsqueeze(-1 - event_dim)
            return torch.cat([encoded * seen, seen], dim=-1 - event_dim)
        batch_shape = x.shape[: x.dim() - event_dim]
        return torch.cat([encoded.reshape(*batch_shape, -1), seen.reshape(*batch_shape, -1)], dim=-1)


def beside(values: Tensor, others: Tensor) -> Tensor:
    """Concatenates two vectors, ``(*B, A)`` and ``(*C, D)`` to ``(*BC, A + D)``, with batch dimensions broadcast.

    Example:
        >>> beside(torch.zeros(7, 5, 2), torch.zeros(5, 3)).shape
        torch.Size([7, 5, 5])
    """
    batch_shape = torch.broadcast_shapes(values.shape[:-1], others.shape[:-1])
    parts = (part.expand(*batch_shape, part.shape[-1]) for part in (values, others.to(values.dtype)))
    return torch.cat([*parts], dim=-1)


class Beside(Encoding):
    """Another encoding together with a vector from a keyword argument.

    The result is one flat vector. For networks on images, each number of the vector is instead a constant plane next to
    the image's channels.

    Args:
        encoding: The encoding of the row.
        event_shape: Shape of one row.
        name: Name of the keyword argument, ``(*B, size)``.
        size: Numbers in the vector.
        planes: Use planes: ``(C, H, W)`` becomes ``(C + size, H, W)``.

    Raises:
        ValueError: if it is called without the vector, or if ``planes`` is set and rows are not images.
    """

    def __init__(
        self, encoding: Encoding, event_shape: Sequence[int], name: str, size: int, *, planes: bool = False
    ) -> None:
        super().__init__()
        self.encoding, self.event_shape, self.name, self.size = encoding, tuple(event_shape), name, size
        self.planes = planes
        self.arguments = (*encoding.arguments, name)
        if planes and len(encoding.shape(self.event_shape)) < 2:
            raise ValueError(f"planes are for images, (..., H, W), but a row has shape {self.event_shape}")

    def shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        inner = self.encoding.shape(event_shape)
        if self.planes:
            return (math.prod(inner[:-2]) + self.size, *inner[-2:])
        return (math.prod(inner) + self.size,)

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> Tensor:  # noqa: D102
        vector = arguments.pop(self.name, None)
        if vector is None:
            raise ValueError(f"the encoder takes {self.name!r} along with each row: give it as well")
        batch_shape = x.shape[: x.dim() - len(self.event_shape)]
        encoded, inner = self.encoding(x, mask, **arguments), self.encoding.shape(self.event_shape)
        if not self.planes:
            return beside(encoded.reshape(*batch_shape, math.prod(inner)), vector)
        images = encoded.reshape(*batch_shape, math.prod(inner[:-2]), *inner[-2:]).movedim(-3, -1)
        return beside(images, vector[..., None, None, :]).movedim(-1, -3)
