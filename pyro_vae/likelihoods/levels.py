"""Levels: whole numbers from 0 to a known maximum, such as 8-bit grey levels, and categories."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vae._support.ranges import Constraint, constraints
from pyro_vae.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from pyro_vae.distributions import Kinds, Levels
from pyro_vae.encodings import Centred, Encoding, OneHot
from pyro_vae.likelihoods.base import Likelihood

__all__ = ["Categorical", "DiscretizedLogistic", "DiscretizedLogisticMixture"]


class _Levelled(Likelihood):
    """Likelihoods of whole numbers from 0 to ``num_levels - 1``."""

    num_levels: int

    def _set_levels(self, num_levels: int) -> None:
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, found {num_levels}")
        self.num_levels = num_levels

    @property
    def data_range(self) -> Constraint:
        """Whole numbers from 0 to the highest level."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Levels scaled to [-1, 1]."""
        return Centred(self.num_levels - 1)


def _scale(raw: Tensor, min_scale: float) -> Tensor:
    """A scale that starts at about a twentieth of the range."""
    return F.softplus(raw - 3) + min_scale


class DiscretizedLogistic(_Levelled):
    r"""Factorised discretised logistic likelihood, for grey levels: an exact probability mass function.

    .. math:: P(x_i = k \mid z) = F\left(\frac{b_{k+1} - \mu_i}{s_i}\right) - F\left(\frac{b_k - \mu_i}{s_i}\right)

    with :math:`F` the sigmoid and the edges as in :class:`pyro_vae.distributions.DiscretizedLogistic`; both
    :math:`\mu = \tanh(\text{raw}_1)` and :math:`s` come from the network.

    Args:
        num_levels: Number of levels; 256 for 8-bit data.
        min_scale: Floor of :math:`s`, in units in which the levels fill [-1, 1]. Far below the distance of levels it
            has no effect.

    Shape:
        raw: ``(*B, 2, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> p_x = DiscretizedLogistic()(torch.zeros(64, 2, 784))
        >>> p_x.batch_shape, p_x.event_shape
        (torch.Size([64]), torch.Size([784]))
    """

    num_params = 2

    def __init__(self, num_levels: int = 256, min_scale: float = 1e-3) -> None:
        super().__init__()
        self._set_levels(num_levels)
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale must be positive, found {min_scale}")
        self.min_scale = min_scale

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Discretised logistic with location and scale from the network."""
        loc, raw_scale = params
        return DiscretizedLogisticDistribution(loc.tanh(), _scale(raw_scale, self.min_scale), self.num_levels)


class DiscretizedLogisticMixture(_Levelled):
    r"""Mixture of K discretised logistics for each element, as in PixelCNN++ (Salimans et al., 2017).

    .. math:: P(x_i = k \mid z) = \sum_{c=1}^{K} \pi_{ic}(z)\, P_{ic}(k)

    Args:
        num_levels: Number of levels; 256 for 8-bit data.
        num_components: Number of components :math:`K`.
        min_scale: Floor of the scales.

    Shape:
        raw: ``(*B, 3 K, *E)``: K logits, K locations, K scales. Returns a distribution with batch ``(*B,)`` and event
        ``E``.

    Example:
        >>> DiscretizedLogisticMixture(num_components=5)(torch.randn(64, 15, 784)).event_shape
        torch.Size([784])
    """

    def __init__(self, num_levels: int = 256, num_components: int = 5, min_scale: float = 1e-3) -> None:
        super().__init__()
        self._set_levels(num_levels)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, found {num_components}")
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale must be positive, found {min_scale}")
        self.num_components, self.min_scale = num_components, min_scale
        self.num_params = 3 * num_components

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """A mixture with all parameters from the network."""
        logits, raw_loc, raw_scale = torch.stack(params, dim=-1).unflatten(-1, (3, self.num_components)).unbind(-2)
        # Components start apart: with equal starts their gradients would stay equal.
        spread = torch.linspace(-1, 1, self.num_components, dtype=raw_loc.dtype, device=raw_loc.device)
        spread = spread - spread.mean()
        components = DiscretizedLogisticDistribution(
            (raw_loc + spread).tanh(), _scale(raw_scale, self.min_scale), self.num_levels
        )
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), components)


class Categorical(_Levelled):
    r"""Factorised categorical likelihood: a probability for each level of each element.

    .. math:: P(x_i = k \mid z) = \mathrm{softmax}(\text{raw}_i)_k

    Args:
        num_levels: Number of levels.
        ordered: Whether levels are amounts, which have a mean, or kinds, for which the most probable one replaces the
            mean.

    Shape:
        raw: ``(*B, num_levels, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> Categorical(4)(torch.zeros(64, 4, 10)).event_shape
        torch.Size([10])
    """

    def __init__(self, num_levels: int = 256, *, ordered: bool = True) -> None:
        super().__init__()
        self._set_levels(num_levels)
        self.ordered = ordered
        self.num_params = num_levels

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Amounts scaled to [-1, 1]; kinds one-hot."""
        return super().encoding(event_shape) if self.ordered else OneHot(self.num_levels, len(event_shape))

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Categorical with the raw outputs as logits."""
        return (Levels if self.ordered else Kinds)(logits=torch.stack(params, dim=-1))
