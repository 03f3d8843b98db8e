r"""Moments of rows that come in parts, computed in one pass without keeping the data."""

import math
from typing import Self

import torch
from torch import Tensor

__all__ = ["Moments"]


class Moments:
    r"""Count, mean, variance and extremes of each element over rows seen so far; NaN is ignored.

    .. math:: n = n_a + n_b, \quad m = m_a + \delta \frac{n_b}{n}, \quad
        S = S_a + S_b + \delta^2 \frac{n_a n_b}{n}, \qquad \delta = m_b - m_a

    for parts a and b with means m and sums of squared deviations S, in float64 (Chan, Golub & LeVeque, *Updating
    Formulae and a Pairwise Algorithm for Computing Sample Variances*, 1979).

    Example:
        >>> moments = Moments().add(torch.tensor([[1.0], [3.0]])).add(torch.tensor([[8.0]]))
        >>> moments.mean, moments.variance
        (tensor([4.], dtype=torch.float64), tensor([8.6667], dtype=torch.float64))
    """

    count: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        self.empty = True

    def add(self, rows: Tensor) -> Self:
        """Adds rows ``(N, *E)``, N at least 1; returns itself."""
        x = rows.double()
        seen = ~x.isnan()
        count = seen.sum(0).double()
        mean = torch.where(seen, x, 0.0).sum(0) / count.clamp(min=1)
        squares = torch.where(seen, x - mean, 0.0).square().sum(0)
        low = torch.where(seen, x, math.inf).amin(0)
        high = torch.where(seen, x, -math.inf).amax(0)
        if self.empty:
            self.count, self.mean, self._squares, self.low, self.high = count, mean, squares, low, high
            self.empty = False
            return self
        total, delta = self.count + count, mean - self.mean
        share = count / total.clamp(min=1)
        self.mean = self.mean + delta * share
        self._squares = self._squares + squares + delta.square() * self.count * share
        self.count, self.low, self.high = total, self.low.minimum(low), self.high.maximum(high)
        return self

    @property
    def variance(self) -> Tensor:
        """The mean of squared deviations from the mean, divided by the count rather than by one less."""
        return self._squares / self.count.clamp(min=1)

    @property
    def varies(self) -> Tensor:
        """Whether an element has two different values."""
        return self.high > self.low
