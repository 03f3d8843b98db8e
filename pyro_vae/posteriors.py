r"""Posterior families :math:`q(z \mid x)`: what the encoder may believe about a row."""

import math

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.heads import Head

__all__ = ["DiagonalNormal", "Posterior"]


class Posterior(Head):
    """Base class of posterior families: a :class:`~pyro_vae.heads.Head` whose event is the latent vector, ``(L,)``."""


class DiagonalNormal(Posterior):
    r"""Normal with independent latents, the mean-field family.

    .. math:: q(z \mid x) = \prod_j \mathcal{N}(z_j \mid \mu_j(x), \sigma_j^2(x)), \qquad
        \sigma = \mathrm{softplus}(\text{raw}) + \sigma_{\min}

    Source: Kingma & Welling, *Auto-Encoding Variational Bayes*, 2014.

    Args:
        min_scale: Floor of :math:`\sigma`.

    Shape:
        raw: ``(*B, 2, L)``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ValueError: if ``min_scale`` is not positive.

    Example:
        >>> import torch
        >>> q_z = DiagonalNormal()(torch.zeros(64, 2, 50))
        >>> q_z.batch_shape, q_z.event_shape
        (torch.Size([64]), torch.Size([50]))
    """

    num_params = 2

    def __init__(self, min_scale: float = 1e-4) -> None:
        super().__init__()
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale must be positive; found {min_scale}")
        self.min_scale = min_scale

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Normal with the first parameter as mean and the second as raw scale."""
        loc, raw_scale = params
        return dist.Normal(loc, F.softplus(raw_scale) + self.min_scale)
