"""A running average of the weights, which is better than the last weights if steps are noisy."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["WeightAverage"]


class WeightAverage:
    r"""The exponential moving average of weights after each step.

    .. math:: \bar w_t = \frac{\sum_{s=1}^t d^{\,t-s} w_s}{\sum_{s=1}^t d^{\,t-s}}

    The weights before the first step are not included: without the denominator they would have the weight
    :math:`d^{\,t}`, which dominates short runs. Only tensors change, in place, so the average can be part of a CUDA
    graph.

    Source: Polyak & Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992; the denominator is that of
    Kingma & Ba, *Adam*, 2015.

    Args:
        parameters: The tensors to average.
        decay: d, in (0, 1).

    Example:
        >>> weight = torch.zeros(())
        >>> average = WeightAverage([weight], decay=0.5)
        >>> for value in (1.0, 4.0):
        ...     _ = weight.fill_(value)
        ...     average.add_step()
        >>> average.values[0]  # (0.5 * 1 + 4) / 1.5
        tensor(3.)
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters, self.decay = list(parameters), decay
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        # The total weight of the steps so far, times 1 - d.
        self.total = torch.zeros((), dtype=torch.float64, device=self.parameters[0].device)

    @torch.no_grad()
    def add_step(self) -> None:
        """Adds the current weights to the average."""
        self.total.mul_(self.decay).add_(1 - self.decay)
        share = (1 - self.decay) / self.total  # of the new weights; 1 at the first step
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, share.to(value.dtype))

    @property
    def state(self) -> list[Tensor]:
        """The tensors that change."""
        return [*self.values, self.total]

    @torch.no_grad()
    def set_state(self, state: Sequence[Tensor]) -> None:
        """Makes the tensors equal to others."""
        for tensor, value in zip(self.state, state, strict=True):
            tensor.copy_(value)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Sets the parameters to their averages, and restores the weights at the end."""
        weights = [parameter.detach().clone() for parameter in self.parameters]
        self.show()
        try:
            yield
        finally:
            _copy(weights, self.parameters)

    def show(self) -> None:
        """Sets the parameters to their averages."""
        _copy(self.values, self.parameters)


@torch.no_grad()
def _copy(values: Sequence[Tensor], into: Sequence[Tensor]) -> None:
    for tensor, value in zip(into, values, strict=True):
        tensor.copy_(value)
