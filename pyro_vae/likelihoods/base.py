"""Base classes of likelihoods."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae._support.names import check_taken, lookup
from pyro_vae._support.ranges import Constraint
from pyro_vae.encodings import Encoding, Plain
from pyro_vae.heads import Head

__all__ = ["Anchored", "Dispersed", "Likelihood"]


class Likelihood(Head):
    r"""Base class of likelihoods :math:`p(x \mid z)`: a head that names the values it describes.

    To write a new one, follow :class:`~pyro_vae.heads.Head`, and

    - define ``data_range``: the constraint that one element must meet, in the model's units. Data and transforms are
      checked against it before training;
    - override ``encoding`` if a network should see such data in another form;
    - take densities from ``pyro.distributions``, with their constants, to make ELBOs comparable;
    - if it needs more than the rows, name that in ``arguments``, take it as a keyword argument of ``distribution``, and
      check its values in ``check_arguments``.

    Then add it to the table in ``cli/choices.py``, for the command line, and to the table in
    ``tests/test_likelihoods.py``.
    """

    arguments: tuple[str, ...] = ()

    @property
    def data_range(self) -> Constraint:
        """The constraint on one element, in the model's units."""
        raise NotImplementedError(f"{type(self).__name__} must define data_range")

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """How such data are encoded for the encoder's network."""
        return Plain()

    def check_arguments(self, **arguments: Any) -> None:
        """Checks the values of the ``arguments`` that rows come with, before any program runs.

        Raises:
            ValueError: if a value is invalid, with the reason.
        """

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Called with each training batch before its log-probability is computed; by default does nothing."""

    def forward(self, raw: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> TorchDistribution:
        """The distribution over one event with this raw output.

        Args:
            raw: The network's output.
            mask: ``(*B, *E)``, true where an entry is observed; others are ignored in the log-probability.
            arguments: Keyword arguments that rows come with, such as size factors.

        Raises:
            TypeError: if the likelihood does not take one of them.
            ValueError: if there is a mask and the likelihood describes all entries of a row jointly.
        """
        check_taken(arguments, self.arguments, "the likelihood")
        params, event_dim = self.read(raw)
        made = self.distribution(*params, **arguments)
        if mask is not None:
            if made.event_dim:
                raise ValueError(
                    f"{type(self).__name__} describes all entries of a row jointly, so none of them can be missing: "
                    f"choose a likelihood with independent entries, or fill the gaps"
                )
            made = made.mask(mask)
        return made.to_event(event_dim - made.event_dim)

    def distribution(self, *params: Tensor, **arguments: Any) -> TorchDistribution:
        """The distribution with these raw parameters, over elements or over the event."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution(*params)")


class Anchored(Likelihood):
    """Base class of likelihoods whose first raw output is the logarithm of a mean.

    Amounts may have any size, and a network would take long to reach a logarithm of 7. So the raw output is relative to
    an anchor for each element: the logarithm of its mean in the first training batch, fixed from then on.
    """

    anchor: Tensor
    has_anchor: Tensor

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """An anchor for each element."""
        super().add_parameters(event_shape)
        self.register_buffer("anchor", torch.zeros(event_shape))
        self.register_buffer("has_anchor", torch.tensor(False))  # noqa: FBT003

    def exposure(self, x: Tensor, **arguments: Any) -> Tensor | float:
        """The factor on the mean in each row, shaped by :func:`~pyro_vae.encodings.by_row`."""
        return 1.0

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Sets the anchor from the first batch."""
        with torch.no_grad():
            seen = torch.ones_like(x) if mask is None else mask.to(x.dtype).expand_as(x)
            exposed = seen * self.exposure(x, **arguments)
            total, count = ((t.reshape(-1, *self.anchor.shape)).sum(0) for t in (x * seen, exposed))
            mean = total / count.clamp(min=1e-9)
            floor = 1e-2 if self.data_range.is_discrete else torch.finfo(x.dtype).tiny
            log_mean = torch.where(count > 0, mean.clamp(min=floor).log(), 0.0)
            self.anchor.copy_(torch.where(self.has_anchor, self.anchor, log_mean))
            self.has_anchor.fill_(True)  # noqa: FBT003

    def log_mean(self, raw: Tensor) -> Tensor:
        """The logarithm of the mean."""
        return raw if self.event_shape is None else raw + self.anchor


KINDS = ("shared", "element", "network")


def positive_parameter(name: str, value: float | str) -> float | str:
    """Checks an argument that is a positive number, or the way in which one is learned."""
    if isinstance(value, str):
        return lookup(value, KINDS, name)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number or one of {', '.join(KINDS)}; found {value}")
    return value


class Dispersed(Likelihood):
    """Base class of likelihoods with one positive parameter in addition to the network's first outputs.

    A subclass stores that argument under its own name, calls :meth:`set_dispersion` in its constructor, and gets the
    current value from :meth:`dispersion`. The argument is a number, or ``"shared"`` (one, learned), ``"element"`` (one
    for each element, learned) or ``"network"`` (one more raw output for each element).
    """

    base_params: int = 1

    def set_dispersion(self, name: str, value: float | str, *, floor: float, start: float) -> None:
        """Stores the argument ``name``; learned values start at ``start`` and stay above ``floor``."""
        if not 0 < floor < math.inf:
            raise ValueError(f"min_{name} must be a positive number, because it bounds the density; found {floor}")
        self._name, self._floor = name, floor
        setattr(self, name, positive_parameter(name, value))
        start = max(start - floor, floor)
        self._start = start + math.log(-math.expm1(-start))  # softplus of it is start
        self.num_params = self.base_params + (value == "network")
        if value == "shared":
            self.raw_dispersion = nn.Parameter(torch.tensor(self._start))

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """One raw value for each element, with ``"element"``."""
        super().add_parameters(event_shape)
        if getattr(self, self._name) == "element":
            self.raw_dispersion = nn.Parameter(torch.full(event_shape, self._start))

    def dispersion(self, params: Sequence[Tensor]) -> Tensor:
        """The current positive parameter, broadcastable to the elements."""
        value = getattr(self, self._name)
        if not isinstance(value, str):
            return torch.as_tensor(value, dtype=params[0].dtype, device=params[0].device)
        if value == "network":
            return F.softplus(params[-1] + self._start) + self._floor
        if value == "element" and self.event_shape is None:
            raise ValueError(
                f"{self._name}='element' has one value for each element: call for_event(event_shape) first"
            )
        return F.softplus(self.raw_dispersion) + self._floor
