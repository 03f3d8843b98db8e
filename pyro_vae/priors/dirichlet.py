"""A normal prior for shares of topics."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.priors.base import Prior

__all__ = ["SoftmaxDirichlet"]


class SoftmaxDirichlet(Prior):
    r"""The normal whose softmax is approximately a symmetric Dirichlet.

    .. math:: p(z) = \mathcal{N}\left(0, \frac{1}{\alpha} \left(1 - \frac{1}{K}\right) I\right), \qquad
        \mathrm{softmax}(z) \approx \mathrm{Dirichlet}(\alpha, \dots, \alpha)

    This is the Laplace approximation in the softmax basis, without its correlations, which vanish as K grows.

    Source: MacKay, *Choice of Basis for Laplace Approximation*, 1998; Srivastava & Sutton, *Autoencoding Variational
    Inference for Topic Models*, 2017.

    Args:
        latent_dim: Number of shares K, at least 2.
        concentration: :math:`\alpha`. The smaller it is, the fewer topics a document has.

    Raises:
        ValueError: if K is below 2 or the concentration is not positive.

    Example:
        >>> SoftmaxDirichlet(20, concentration=0.5)().event_shape
        torch.Size([20])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int, concentration: float = 1.0) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ValueError(f"latent_dim must be at least 2 topics, found {latent_dim}")
        if not 0 < concentration < math.inf:
            raise ValueError(f"concentration must be a positive number, found {concentration}")
        self.concentration = concentration
        scale = math.sqrt((1 - 1 / latent_dim) / concentration)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.full((latent_dim,), scale), persistent=False)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return dist.Normal(self.loc, self.scale).to_event(1)
