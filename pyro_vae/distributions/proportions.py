"""Distributions of proportions."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""The continuous Bernoulli distribution from its logits, accurate where the probability rounds to 0 or 1.

    With logits :math:`l`, the log-density is :math:`l x - \mathrm{softplus}(l) + \log \frac{l}{\tanh(l / 2)}`. PyTorch
    computes the constant and the moments from the probability, which in float32 rounds to 1 at logits of about 16.

    Source: Loaiza-Ganem & Cunningham, *The Continuous Bernoulli*, 2019.
    """

    def _split(self, near_zero: Any, elsewhere: Any) -> Tensor:
        """A series around logits of 0, where the formulas divide zero by zero."""
        is_near = self.logits.abs() < 0.05
        safe = torch.where(is_near, torch.ones_like(self.logits), self.logits)
        return torch.where(is_near, near_zero(self.logits.square()), elsewhere(safe))

    def _cont_bern_log_norm(self) -> Tensor:
        return self._split(lambda s: (2 + s / 6 - s**2 / 360).log(), lambda x: (x / (x / 2).tanh()).log())

    @property
    def mean(self) -> Tensor:
        """The mean, 1 / (1 - exp(-l)) - 1 / l."""
        by_logit = self._split(
            lambda s: 1 / 12 - s / 720 + s**2 / 30240, lambda x: (1 / (2 * (x / 2).tanh()) - 1 / x) / x
        )
        return 0.5 + self.logits * by_logit

    @property
    def variance(self) -> Tensor:
        """The variance, 1 / l² - 1 / (4 sinh²(l / 2))."""
        return self._split(
            lambda s: 1 / 12 - s / 240 + s**2 / 6048, lambda x: 1 / x.square() - 0.25 / (x / 2).sinh().square()
        )

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, log(1 + u (exp(l) - 1)) / l."""
        logits = self.logits
        # From the end with the mass, to avoid overflow.
        size = logits.abs()
        from_end = torch.where(logits > 0, 1 - value, value)
        safe = size.clamp(min=1e-6)
        distance = -torch.log1p(from_end * torch.expm1(-safe)) / safe
        distance = torch.where(size < 1e-3, from_end, distance)
        return torch.where(logits > 0, 1 - distance, distance).clamp(0, 1)
