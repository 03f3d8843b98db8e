"""Mixtures and products of normals, and the KL divergence to independent normals."""

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_vae.distributions.categories import gumbel_like, one_hot

__all__ = ["MixtureOfNormals", "product_of_normals"]


class MixtureOfNormals(TorchDistribution):
    r"""Mixture of K normals with independent entries, whose draws have derivatives.

    .. math:: q(z) = \sum_k \pi_k \prod_j \mathcal{N}(z_j \mid \mu_{kj}, \sigma_{kj}^2)

    Each entry's distribution function given those before it, :math:`F_j(z_j \mid z_{<j})`, is uniform for all
    parameters. So a draw moves with the parameters by :math:`\dot z = -(\partial F / \partial z)^{-1} \dot F`, the
    solution of a triangular system. Weights of components are kept as logarithms, which avoids the overflow of Pyro's
    ``MixtureOfDiagNormals`` with many entries or small scales.

    Source: Figurnov, Mohamed & Mnih, *Implicit Reparameterization Gradients*, 2018; Graves, *Stochastic Backpropagation
    through Mixture Density Distributions*, 2016.

    Args:
        locs: Means :math:`\mu`, ``(*B, K, L)``.
        scales: Standard deviations :math:`\sigma`, the same shape.
        logits: Logarithms of the weights :math:`\pi`, up to a constant, ``(*B, K)``.

    Example:
        >>> MixtureOfNormals(torch.zeros(5, 3, 2), torch.ones(5, 3, 2), torch.zeros(5, 3)).rsample().shape
        torch.Size([5, 2])
    """

    arg_constraints: ClassVar[Any] = {
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
        "logits": constraints.real_vector,
    }
    support: Any = constraints.real_vector
    has_rsample = True

    def __init__(self, locs: Tensor, scales: Tensor, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.locs, self.scales, self.logits = locs, scales, logits.log_softmax(-1)
        super().__init__(locs.shape[:-2], locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixtureOfNormals":
        """The same for a larger batch."""
        shape = torch.Size(batch_shape)
        locs, scales = (value.expand(*shape, *value.shape[-2:]) for value in (self.locs, self.scales))
        logits = self.logits.expand(*shape, *self.logits.shape[-1:])
        return MixtureOfNormals(locs, scales, logits, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return (self.logits + self._log_densities(value).sum(-1)).logsumexp(-1)

    def _log_densities(self, value: Tensor) -> Tensor:
        """Log-density of each entry under each component: ``(*S, *B, K, L)``."""
        return dist.Normal(self.locs, self.scales, validate_args=False).log_prob(value[..., None, :])

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            logits = self.logits.expand(*shape[:-1], self.logits.shape[-1])
            which = (logits + gumbel_like(logits)).argmax(-1)  # never one whose logit is minus infinity
            chosen = one_hot(which, logits.shape[-1], logits.dtype)[..., None]
            loc, scale = ((chosen * value).sum(-2) for value in (self.locs, self.scales))
            return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients."""
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        standardized, densities = (z[..., None, :] - self.locs) / self.scales, self._log_densities(z)
        before = self.logits[..., None] + densities.cumsum(-1) - densities
        weights = before.softmax(-2)  # of each component for an entry, given the entries before it
        below = torch.special.ndtr(standardized)
        functions = (weights * below).sum(-2)
        with torch.no_grad():
            slopes = -standardized / self.scales
            off = (weights * (below - functions[..., None, :])).mT @ slopes
            own = (weights * densities.exp()).sum(-2).clamp(min=torch.finfo(z.dtype).tiny)[..., None]
            jacobian = (off / own).tril(-1) + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        moved = (functions - functions.detach())[..., None] / own
        return z - torch.linalg.solve_triangular(jacobian, moved, upper=False, unitriangular=True).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the components' means."""
        return (self._weights * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        """The weighted mean of the components' second moments, minus the square of the mean."""
        second = (self._weights * (self.locs.square() + self.scales.square())).sum(-2)
        return second - self.mean.square()

    @property
    def _weights(self) -> Tensor:
        return self.logits.exp()[..., None]


def product_of_normals(locs: Tensor, precisions: Tensor) -> dist.TorchDistribution:
    r"""The normal proportional to a product of M normals with independent entries: precisions add up.

    Args:
        locs: Means, ``(*B, M, L)``.
        precisions: One over their variances, the same shape; 0 leaves a normal out.

    Example:
        >>> both = product_of_normals(torch.tensor([[0.0], [1.0]]), torch.ones(2, 1))
        >>> round(float(both.mean), 4), round(float(both.variance), 4)
        (0.5, 0.5)
    """
    total = precisions.sum(-2)
    return dist.Normal((locs * precisions).sum(-2) / total, total.rsqrt()).to_event(1)


@register_kl(dist.MultivariateNormal, dist.Independent)
@register_kl(dist.LowRankMultivariateNormal, dist.Independent)
def _kl_normal_independent(q: Any, p: Any) -> Tensor:
    """KL(q || p) from a normal with any covariance to independent ones: minus q's entropy and p's mean log-density."""
    base = p.base_dist
    if not isinstance(base, torch.distributions.Normal) or len(p.event_shape) != 1:
        raise NotImplementedError
    square = (q.mean - base.mean).square() + q.variance
    log_densities = -0.5 * square / base.variance - base.scale.log() - 0.5 * math.log(2 * math.pi)
    return -q.entropy() - log_densities.sum(-1)
