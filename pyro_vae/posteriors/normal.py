"""Normal posteriors with diagonal, low-rank or full covariance."""

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.posteriors.base import Posterior

__all__ = ["DiagonalNormal", "FullNormal", "LowRankNormal"]


def check_min_scale(min_scale: float) -> None:
    """Checks that a floor of standard deviations is positive and finite."""
    if not 0 < min_scale < math.inf:
        raise ValueError(f"min_scale must be positive; found {min_scale}")


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
        check_min_scale(min_scale)
        self.min_scale = min_scale

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Normal with the first parameter as mean and the second as raw scale."""
        loc, raw_scale = params
        return dist.Normal(loc, F.softplus(raw_scale) + self.min_scale)


class FullNormal(Posterior):
    r"""Normal with a full covariance for each row.

    .. math:: q(z \mid x) = \mathcal{N}(z \mid \mu(x), R R^\top), \qquad
        R_{jj} = \sigma_j = \mathrm{softplus}(\text{raw}) + \sigma_{\min}, \quad
        R_{jk} = \sigma_j\, \text{raw} / \sqrt{L} \ (k < j)

    With a linear decoder and normal noise it contains the exact posterior; a diagonal one does not. Before training, a
    precise latent has equally small covariances with others.

    Args:
        min_scale: Floor of :math:`\sigma`.

    Shape:
        raw: ``(*B, L + L (L + 1) / 2)``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ValueError: if ``min_scale`` is not positive.

    Example:
        >>> FullNormal().for_event((3,))(torch.zeros(5, 9)).covariance_matrix.shape
        torch.Size([5, 3, 3])
    """

    below: Tensor

    def __init__(self, min_scale: float = 1e-4) -> None:
        super().__init__()
        check_min_scale(min_scale)
        self.min_scale = min_scale

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        (size,) = event_shape
        return (size + size * (size + 1) // 2,)

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:  # noqa: D102
        (size,) = event_shape
        rows, columns = torch.tril_indices(size, size)
        self.register_buffer("below", rows * size + columns, persistent=False)

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:  # noqa: D102
        (size,) = self.known_event_shape
        return raw.split([size, size * (size + 1) // 2], -1), 1

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        loc, entries = params
        size = loc.shape[-1]
        flat = entries.new_zeros(*entries.shape[:-1], size * size).index_copy(-1, self.below, entries)
        raw = flat.reshape(*entries.shape[:-1], size, size)
        diagonal = F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + self.min_scale
        ties = raw.tril(-1) / math.sqrt(size) + torch.eye(size, dtype=raw.dtype, device=raw.device)
        return dist.MultivariateNormal(loc, scale_tril=diagonal[..., None] * ties)


class LowRankNormal(Posterior):
    r"""Normal whose covariance is diagonal except for a few directions.

    .. math:: q(z \mid x) = \mathcal{N}(z \mid \mu(x), D (I + W(x) W(x)^\top) D), \qquad
        D = \operatorname{diag}(\sigma(x)), \quad W = \text{raw} / \sqrt{L}

    Args:
        rank: Number of columns of W.
        min_scale: Floor of :math:`\sigma`.

    Shape:
        raw: ``(*B, 2 + rank, L)``. Returns a distribution with batch ``(*B,)`` and event ``(L,)``.

    Raises:
        ValueError: if ``rank`` is below 1 or ``min_scale`` is not positive.

    Example:
        >>> LowRankNormal(rank=2).for_event((10,))(torch.zeros(5, 4, 10)).event_shape
        torch.Size([10])
    """

    def __init__(self, rank: int = 2, min_scale: float = 1e-4) -> None:
        super().__init__()
        check_min_scale(min_scale)
        if rank < 1:
            raise ValueError(f"rank must be at least 1, found {rank}")
        self.rank, self.min_scale, self.num_params = rank, min_scale, 2 + rank

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        loc, raw_scale, *columns = params
        scale = F.softplus(raw_scale) + self.min_scale
        factor = scale[..., None] * torch.stack(columns, -1) / math.sqrt(loc.shape[-1])
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())
