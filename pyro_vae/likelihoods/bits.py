"""Bits, and grey levels between them."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae._support.ranges import Constraint, constraints
from pyro_vae.distributions import Bernoulli as BernoulliDistribution
from pyro_vae.distributions import ContinuousBernoulli as ContinuousBernoulliDistribution
from pyro_vae.likelihoods.base import Likelihood

__all__ = ["Bernoulli", "ContinuousBernoulli"]


class Bernoulli(Likelihood):
    r"""Factorised Bernoulli likelihood, for bits.

    .. math:: p(x \mid z) = \prod_i \pi_i(z)^{x_i} (1 - \pi_i(z))^{1 - x_i}, \qquad \pi = \mathrm{sigmoid}(\text{raw})

    Minus its logarithm is the binary cross-entropy. Grey levels are not bits: give the model
    ``transform=Binarize(low, high)``, which draws bits from them.

    Shape:
        raw: ``(*B, 1, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> p_x = Bernoulli()(torch.zeros(64, 1, 784))
        >>> p_x.batch_shape, p_x.event_shape
        (torch.Size([64]), torch.Size([784]))
    """

    @property
    def data_range(self) -> Constraint:
        """Zero or one."""
        return constraints.boolean

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Bernoulli with the raw output as logits."""
        (logits,) = params
        return BernoulliDistribution(logits=logits)


class ContinuousBernoulli(Likelihood):
    r"""Factorised continuous Bernoulli likelihood, for values in [0, 1].

    .. math:: p(x \mid z) = \prod_i C(\lambda_i)\, \lambda_i^{x_i} (1 - \lambda_i)^{1 - x_i}, \qquad
        \lambda = \mathrm{sigmoid}(\text{raw})

    A density on the interval: cross-entropy on grey levels with its missing constant :math:`C`. Note that
    :math:`\lambda` is not the mean.

    Source: Loaiza-Ganem & Cunningham, *The Continuous Bernoulli*, 2019.

    Shape:
        raw: ``(*B, 1, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> ContinuousBernoulli()(torch.zeros(1, 1, 3)).log_prob(torch.tensor([0.0, 0.4, 1.0])).item()
        0.0
    """

    @property
    def data_range(self) -> Constraint:
        """The interval [0, 1]."""
        return constraints.unit_interval

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Continuous Bernoulli with the raw output as logits."""
        (logits,) = params
        return ContinuousBernoulliDistribution(logits=logits)
