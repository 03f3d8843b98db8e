"""The base class of priors, and the standard normal."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae._support.configs import printed

__all__ = ["Prior", "StandardNormal"]


class Prior(nn.Module):
    """Base class of priors.

    To write a new one, set ``latent_dim`` and return from ``forward()`` a ``pyro.distributions`` distribution with
    batch shape ``()`` and event ``(latent_dim,)``. Store each constructor argument under its own name.

    Example:
        >>> class Sparse(Prior):
        ...     def __init__(self, latent_dim):
        ...         super().__init__(latent_dim)
        ...         self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        ...
        ...     def forward(self):
        ...         return dist.Laplace(self.loc, 1.0).to_event(1)
        >>> Sparse(3)().event_shape
        torch.Size([3])
    """

    latent_dim: int
    asks_encoder: bool = False  # whether the prior calls the encoder

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, found {latent_dim}")
        self.latent_dim = latent_dim

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return printed(self)

    def join(self, encoder: Any, decoder: Any) -> None:
        """Called when a VAE is built from this prior and these two; by default does nothing."""

    def forward(self) -> dist.TorchDistribution:
        """The prior distribution."""
        raise NotImplementedError(f"{type(self).__name__} must define forward()")


class StandardNormal(Prior):
    r"""The standard normal prior, :math:`p(z) = \mathcal{N}(z \mid 0, I)`.

    Args:
        latent_dim: Number of latents :math:`L`.

    Shape:
        Returns a distribution with batch ``()`` and event ``(L,)``.

    Example:
        >>> StandardNormal(50)().event_shape
        torch.Size([50])
    """

    loc: torch.Tensor
    scale: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return dist.Normal(self.loc, self.scale).to_event(1)
