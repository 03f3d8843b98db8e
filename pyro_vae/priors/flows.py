"""A prior from a normalising flow."""

from collections.abc import Sequence

import pyro.distributions as dist

from pyro_vae._support.flows import FlowKind, make_flow
from pyro_vae.distributions import Flow
from pyro_vae.priors.base import Prior

__all__ = ["FlowPrior"]


class FlowPrior(Prior):
    r"""A normalising flow from the standard normal, learned with the rest of the model.

    Source: Chen et al., *Variational Lossy Autoencoder*, 2017; the flows are zuko's, from ``pip install
    'pyro-vae[flows]'``.

    Args:
        latent_dim: Number of latents :math:`L`.
        kind: ``"autoregressive"``, ``"coupling"`` or ``"spline"``, see :func:`~pyro_vae._support.flows.make_flow`.
        num_transforms: Number of transformations.
        hidden_dims: Widths of the hidden layers of each.

    Raises:
        ImportError: if zuko is not installed.
        ValueError: if there is no such kind.

    Example:
        >>> FlowPrior(4, num_transforms=2)().event_shape
        torch.Size([4])
    """

    def __init__(
        self,
        latent_dim: int,
        kind: FlowKind = "autoregressive",
        num_transforms: int = 3,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(latent_dim)
        self.kind, self.num_transforms, self.hidden_dims = kind, num_transforms, tuple(hidden_dims)
        self.flow = make_flow(kind, latent_dim, num_transforms, hidden_dims)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return Flow(self.flow())
