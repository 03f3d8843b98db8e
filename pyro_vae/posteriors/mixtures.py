"""A posterior with several modes."""

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.distributions import MixtureOfNormals
from pyro_vae.posteriors.base import Posterior
from pyro_vae.posteriors.normal import check_min_scale

__all__ = ["MixturePosterior"]


class MixturePosterior(Posterior):
    r"""Mixture of normals with independent latents, which can have several modes.

    .. math:: q(z \mid x) = \sum_k \pi_k(x) \prod_j \mathcal{N}(z_j \mid \mu_{kj}(x), \sigma_{kj}^2(x))

    Draws have derivatives (:class:`~pyro_vae.distributions.MixtureOfNormals`).

    Args:
        num_components: Number of components K.
        min_scale: Floor of the standard deviations.

    Shape:
        raw: ``(*B, K (2 L + 1))``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ValueError: if ``num_components`` is below 1 or ``min_scale`` is not positive.

    Example:
        >>> import torch
        >>> MixturePosterior(3).for_event((4,))(torch.zeros(5, 27)).event_shape
        torch.Size([4])
    """

    def __init__(self, num_components: int = 2, min_scale: float = 1e-4) -> None:
        super().__init__()
        check_min_scale(min_scale)
        if num_components < 1:
            raise ValueError(f"num_components must be at least 1, found {num_components}")
        self.num_components, self.min_scale = num_components, min_scale

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        return (self.num_components * (2 * event_shape[0] + 1),)

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:  # noqa: D102
        (size,) = self.known_event_shape
        each = raw.reshape(*raw.shape[:-1], self.num_components, 2 * size + 1)
        return each.split([size, size, 1], -1), 1

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        locs, raw_scales, logits = params
        return MixtureOfNormals(locs, F.softplus(raw_scales) + self.min_scale, logits.squeeze(-1))
