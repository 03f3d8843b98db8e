r"""Heads: modules that turn a network's raw output into a distribution.

Likelihoods :math:`p(x \mid z)` and posterior families :math:`q(z \mid x)` are both heads. A head defines the shape of
the raw output and how it is read; it does not depend on the network.
"""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae._support.configs import printed

__all__ = ["Head"]


class Head(nn.Module):
    r"""Base class: raw network output to a distribution over one event.

    To write a new head:

    - set ``num_params``, the number of raw outputs for each element of the event;
    - write ``distribution(*params)``: as many tensors as ``num_params``, each ``(*B, *E)``, to a ``pyro.distributions``
      distribution, over elements or over the event. The base class makes it one event;
    - store each constructor argument under its own name, as these are saved;
    - if it owns parameters that depend on the event's shape, create them in ``add_parameters``;
    - if its raw output is not ``num_params`` blocks of the event's shape, override ``raw_shape`` and ``read``.

    Shape:
        raw: ``(*B, num_params, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.
        A head without an event shape takes events of one dimension.
    """

    num_params: int = 1

    def __init__(self) -> None:
        super().__init__()
        self.event_shape: tuple[int, ...] | None = None

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return printed(self)

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the network's output for one event of shape ``event_shape``."""
        return (self.num_params, *event_shape)

    def for_event(self, event_shape: Sequence[int]) -> Self:
        """Returns a copy for events of this shape; as a copy, it shares no parameters with other models."""
        head = copy.deepcopy(self)
        head.event_shape = tuple(event_shape)
        head.add_parameters(head.event_shape)
        return head

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """Creates the parameters that depend on the event's shape; by default there are none."""

    def distribution(self, *params: Tensor) -> TorchDistribution:
        """The distribution with these raw parameters, over elements or over the event."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution(*params)")

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:
        """The raw output as one tensor for each parameter, and the number of dimensions of an event."""
        event_shape = tuple(raw.shape[-1:]) if self.event_shape is None else self.event_shape
        event_dim, expected = len(event_shape), self.raw_shape(event_shape)
        if tuple(raw.shape[-1 - event_dim :]) != expected:
            raise ValueError(
                f"{type(self).__name__} reads raw output of shape (*batch, {', '.join(map(str, expected))}), "
                f"found {tuple(raw.shape)}"
            )
        return raw.unbind(-1 - event_dim), event_dim

    def forward(self, raw: Tensor) -> TorchDistribution:
        """The distribution over one event with this raw output."""
        params, event_dim = self.read(raw)
        with _unchecked() if torch.compiler.is_exporting() else contextlib.nullcontext():
            made = self.distribution(*params)
            return made.to_event(event_dim - made.event_dim)


@contextlib.contextmanager
def _unchecked() -> Iterator[None]:
    """Turns off distributions' checks of values, which an exported program cannot run."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)
