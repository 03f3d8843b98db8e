"""Posteriors from a normalising flow of a normal one."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.transforms.householder import ConditionedHouseholder
from torch import Tensor
from torch.nn import functional as F

from pyro_vae._support.flows import FlowKind, make_flow
from pyro_vae.distributions import Flow
from pyro_vae.posteriors.base import Posterior
from pyro_vae.posteriors.normal import check_min_scale

__all__ = ["FlowPosterior", "Householder"]


class FlowPosterior(Posterior):
    r"""A diagonal normal transformed by a normalising flow, with a context computed by the encoder.

    .. math:: z = f(z_0; h(x)), \qquad z_0 \sim \mathcal{N}(\mu(x), \operatorname{diag}(\sigma^2(x)))

    With ``"autoregressive"`` this is the inverse autoregressive flow: a draw and its density take one pass, the density
    of any other point takes one pass for each latent.

    Source: Kingma et al., *Improving Variational Inference with Inverse Autoregressive Flow*, 2016; the flows are
    zuko's, from ``pip install 'pyro-vae[flows]'``.

    Args:
        kind: ``"autoregressive"``, ``"coupling"`` or ``"spline"``.
        num_transforms: Number of transformations.
        hidden_dims: Widths of the hidden layers of each.
        context_dim: Size of the context h.
        min_scale: Floor of :math:`\sigma`.

    Shape:
        raw: ``(*B, 2 L + context_dim)``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ImportError: if zuko is not installed.
        ValueError: if there is no such kind, or a number is not positive.

    Example:
        >>> FlowPosterior(context_dim=8).for_event((4,))(torch.zeros(5, 16)).event_shape
        torch.Size([4])
    """

    def __init__(
        self,
        kind: FlowKind = "autoregressive",
        num_transforms: int = 2,
        hidden_dims: Sequence[int] = (64, 64),
        context_dim: int = 32,
        min_scale: float = 1e-4,
    ) -> None:
        super().__init__()
        check_min_scale(min_scale)
        if context_dim < 1:
            raise ValueError(f"context_dim must be at least 1, found {context_dim}")
        make_flow(kind, 1, num_transforms, hidden_dims, context_dim)
        self.kind: FlowKind = kind
        self.num_transforms, self.hidden_dims = num_transforms, tuple(hidden_dims)
        self.context_dim, self.min_scale = context_dim, min_scale

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        return (2 * event_shape[0] + self.context_dim,)

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:  # noqa: D102
        self.flow = make_flow(self.kind, event_shape[0], self.num_transforms, self.hidden_dims, self.context_dim)

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:  # noqa: D102
        (size,) = self.known_event_shape
        return raw.split([size, size, self.context_dim], -1), 1

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        from zuko.distributions import DiagNormal, NormalizingFlow

        loc, raw_scale, context = params
        base = DiagNormal(loc, F.softplus(raw_scale) + self.min_scale)
        return Flow(NormalizingFlow(self.flow.transform(context).inv, base))


class Householder(Posterior):
    r"""A diagonal normal, reflected a few times in planes that depend on the row.

    The result is a normal with a full covariance, at the cost of a diagonal one.

    Source: Tomczak & Welling, *Improving Variational Auto-Encoders using Householder Flow*, 2016.

    Args:
        num_reflections: Number of reflections.
        min_scale: Floor of the standard deviations before the reflections.

    Shape:
        raw: ``(*B, 2 + num_reflections, L)``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ValueError: if a number is not positive.

    Example:
        >>> Householder(2).for_event((4,))(torch.randn(5, 4, 4)).event_shape
        torch.Size([4])
    """

    def __init__(self, num_reflections: int = 2, min_scale: float = 1e-4) -> None:
        super().__init__()
        check_min_scale(min_scale)
        if num_reflections < 1:
            raise ValueError(f"num_reflections must be at least 1, found {num_reflections}")
        self.num_reflections, self.min_scale, self.num_params = num_reflections, min_scale, 2 + num_reflections

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        loc, raw_scale, *normals = params
        base = dist.Normal(loc, F.softplus(raw_scale) + self.min_scale).to_event(1)
        return dist.TransformedDistribution(base, [ConditionedHouseholder(torch.stack(normals, -2))])
