"""What all likelihoods share."""

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
    - take densities from ``pyro.distributions``, with their constants, so that ELBOs compare;
    - if rows come with something that it needs, name that in ``arguments``, take it as a keyword argument of
      ``distribution``, and look at its values in ``check_arguments``.

    Then give it a row in the table of ``cli/choices.py``, where the command line finds it, and one in the table
    of ``tests/test_likelihoods.py``.
    """

    arguments: tuple[str, ...] = ()

    @property
    def data_range(self) -> Constraint:
        """The values of one element, in the model's units, that this likelihood is for."""
        raise NotImplementedError(f"{type(self).__name__} must define data_range")

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """How an encoder's network is shown such data."""
        return Plain()

    def check_arguments(self, **arguments: Any) -> None:
        """Looks at the values of the ``arguments`` that rows come with, before any program runs.

        Raises:
            ValueError: saying what is wrong with them.
        """

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Told of each training batch before its log-probability is taken; by default it has no use for it."""

    def forward(self, raw: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> TorchDistribution:
        """The distribution over one event that the raw output stands for.

        Args:
            raw: The network's output.
            mask: ``(*B, *E)``, true where an entry is observed: others are ignored in the log-probability.
            arguments: What rows come with, such as size factors.

        Raises:
            TypeError: if it does not take one of them.
            ValueError: if there is a mask, and it describes all entries of a row together.
        """
        check_taken(arguments, self.arguments, "the likelihood")
        params, event_dim = self.read(raw)
        made = self.distribution(*params, **arguments)
        if mask is not None:
            if made.event_dim:
                raise ValueError(
                    f"{type(self).__name__} describes all entries of a row together, so that none of them can be "
                    f"missing: choose a likelihood of single entries, or fill them"
                )
            made = made.mask(mask)
        return made.to_event(event_dim - made.event_dim)

    def distribution(self, *params: Tensor, **arguments: Any) -> TorchDistribution:
        """The distribution with these raw parameters, of elements or of the event."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution(*params)")


class Anchored(Likelihood):
    """Base class of likelihoods whose first raw output is the logarithm of a mean.

    Amounts may lie anywhere, and a network would take long to climb to a logarithm of 7. So the raw output counts from
    an anchor for each element: the logarithm of its mean in the first training batch, kept from then on.
    """

    anchor: Tensor
    has_anchor: Tensor

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """An anchor for each element."""
        super().add_parameters(event_shape)
        self.register_buffer("anchor", torch.zeros(event_shape))
        self.register_buffer("has_anchor", torch.tensor(False))  # noqa: FBT003

    def exposure(self, x: Tensor, **arguments: Any) -> Tensor | float:
        """What multiplies the mean in each row, as :func:`~pyro_vae.encodings.by_row` has it."""
        return 1.0

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Takes the anchor from the first batch."""
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
        """The mean's logarithm."""
        return raw if self.event_shape is None else raw + self.anchor


KINDS = ("shared", "element", "network")


def positive_parameter(name: str, value: float | str) -> float | str:
    """Checks an argument that is a positive number, or says how one is learned."""
    if isinstance(value, str):
        return lookup(value, KINDS, name)
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number or one of {', '.join(KINDS)}; found {value}")
    return value


class Dispersed(Likelihood):
    """Base class of likelihoods with one positive parameter beside what the network's first outputs say.

    A leaf keeps that argument under its own name, calls :meth:`set_dispersion` in its constructor, and asks
    :meth:`dispersion` for the value in force. It is a number, or ``"shared"`` (one, learned), ``"element"`` (one for
    each element, learned) or ``"network"`` (one more raw output for each element).
    """

    base_params: int = 1

    def set_dispersion(self, name: str, value: float | str, *, floor: float, start: float) -> None:
        """Notes the argument ``name``; learned values start at ``start`` and stay above ``floor``."""
        if not 0 < floor < math.inf:
            raise ValueError(f"min_{name} must be a positive number, for it bounds the density; found {floor}")
        self._name, self._floor = name, floor
        setattr(self, name, positive_parameter(name, value))
        start = max(start - floor, floor)
        self._start = start + math.log(-math.expm1(-start))  # softplus of it is start
        self.num_params = self.base_params + (value == "network")
        if value == "shared":
            self.raw_dispersion = nn.Parameter(torch.tensor(self._start))

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """One raw value for each element, where that is asked for."""
        super().add_parameters(event_shape)
        if getattr(self, self._name) == "element":
            self.raw_dispersion = nn.Parameter(torch.full(event_shape, self._start))

    def dispersion(self, params: Sequence[Tensor]) -> Tensor:
        """The positive parameter in force, broadcastable to the elements."""
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
