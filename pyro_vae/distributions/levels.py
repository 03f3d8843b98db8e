"""Levels in an order, and kinds without one."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

__all__ = ["DiscretizedLogistic", "Kinds", "Levels"]


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution cut into ``num_levels`` levels 0, 1, …; the tails belong to the ends.

    .. math:: P(k) = F\left(\frac{b_{k+1} - \mu}{s}\right) - F\left(\frac{b_k - \mu}{s}\right), \qquad
        F = \mathrm{sigmoid}, \quad b_k = \frac{2k - 1}{K - 1} - 1

    with :math:`b_0 = -\infty` and :math:`b_K = \infty`, so level :math:`k` of :math:`K` sits at
    :math:`2k / (K - 1) - 1` in [-1, 1], half-way between its edges. An exact probability mass function: it sums to 1.

    Source: Kingma et al., *Improving Variational Inference with Inverse Autoregressive Flow*, 2016; Salimans et al.,
    *PixelCNN++*, 2017.

    Args:
        loc: Location :math:`\mu`, in [-1, 1] where the levels are.
        scale: Scale :math:`s > 0` in the same units.
        num_levels: Number of levels :math:`K`.

    Example:
        >>> levels = torch.arange(256.0)
        >>> p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.05), 256).log_prob(levels).exp()
        >>> round(p.sum().item(), 5)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int = 256, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The levels."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":  # noqa: D102
        new = type(self).__new__(type(self))
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new.num_levels = self.num_levels
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _edge(self, level: Tensor | float) -> Tensor:
        """The edge below a level, relative to the location, in units of the scale."""
        return ((2 * level - 1) / (self.num_levels - 1) - 1 - self.loc) / self.scale

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        below, above = self._edge(value), self._edge(value + 1)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), each factor without cancellation
        width = 2 / (self.num_levels - 1) / self.scale
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-width))
        at_top = torch.where(value >= self.num_levels - 1, F.logsigmoid(-below), inside)
        return torch.where(value <= 0, F.logsigmoid(above), at_top)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * torch.logit(uniform, eps=torch.finfo(self.loc.dtype).tiny)
            return (0.5 * (x + 1) * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1)

    @property
    def mean(self) -> Tensor:
        """The exact mean level, the sum of P(x ≥ k) over k ≥ 1."""
        total = torch.zeros_like(self.loc)
        for level in range(1, self.num_levels):
            total = total + torch.sigmoid(-self._edge(float(level)))
        return total

    @property
    def variance(self) -> Tensor:
        """The exact variance of the level, added up around the mean."""
        mean, total = self.mean, torch.zeros_like(self.loc)
        for level in range(self.num_levels):
            p = self.log_prob(torch.full_like(self.loc, float(level))).exp()
            total = total + p * (level - mean).square()
        return total


class Levels(dist.Categorical):
    """Categorical over ordered levels 0, 1, …, which have a mean and a variance."""

    def _level(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    @property
    def mean(self) -> Tensor:
        """The mean level."""
        return (self.probs * self._level()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the level."""
        return (self.probs * (self._level() - self.mean[..., None]).square()).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        return super().sample(sample_shape).to(self.probs.dtype)


class Kinds(dist.Categorical):
    """Categorical over kinds without an order; the most probable kind replaces the mean."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        return super().sample(sample_shape).to(self.probs.dtype)

    @property
    def mean(self) -> Tensor:
        """The most probable kind."""
        return self.probs.argmax(-1).to(self.probs.dtype)
