r"""The Fréchet distance between data and samples, in a space of features."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.checks import check_finite
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.described import plain_rows

__all__ = ["frechet_distance"]


def frechet_distance(
    real: Inputs,
    samples: Inputs,
    *,
    features: Callable[[Any], Any] | None = None,
) -> float:
    r"""The squared Fréchet (2-Wasserstein) distance between the normal distributions fitted to features of two sets.

    With :math:`m_i, C_i` the mean and covariance (over N − 1) of each set's features,

    .. math:: d^2 = \lVert m_1 - m_2 \rVert^2 +
        \operatorname{tr}\left( C_1 + C_2 - 2 \left( C_1^{1/2} C_2\, C_1^{1/2} \right)^{1/2} \right)

    Only means and covariances enter, with their estimation error: two sets from the same distribution have a distance
    above 0, and more so with more features per row. So report it along with the distance of a second set of real rows,
    and compare models with the same features, N and M. It is *the* FID only with the features of one particular
    Inception network, which this library does not include.

    Args:
        real: Real rows that the model was not trained on: an array or any other rows of numbers.
        samples: Draws from the model, in the same units.
        features: Maps rows, as passed in, to features ``(N, F)``, such as a
            :func:`~pyro_vae.evaluation.train_classifier_features`; by default the elements of a row are its features.

    Shape:
        real: ``(N, *E)``; samples: ``(M, *E)``, both with at least two rows.

    Returns:
        :math:`d^2 \ge 0`, in float64, in squared units of the features.

    Raises:
        ValueError: if there are too few rows, the two sets' rows differ in shape, or rows or features hold NaN or
            infinite values.

    Example:
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(x, x + torch.tensor([3.0, 0.0, 4.0])), 3)  # 3² + 4²
        25.0

    Source: Dowson & Landau, *The Fréchet distance between multivariate normal distributions*, 1982; for samples
    Heusel et al., *GANs Trained by a Two Time-Scale Update Rule*, 2017.
    """
    (mean, root), (other_mean, other_root) = (
        _moments(plain_rows(rows, name), features, name) for rows, name in ((real, "real"), (samples, "samples"))
    )
    if len(mean) != len(other_mean):
        raise ValueError(
            f"real has {len(mean)} features for a row and samples has {len(other_mean)}: give the rows the same shape"
        )
    # With C = RᵀR the trace of the inner square root is the sum of the singular values of R₁R₂ᵀ: no root is
    # taken of a matrix that rounding may have made indefinite, and having fewer rows than features does no harm.
    overlap = torch.linalg.svdvals(root @ other_root.T).sum()
    spread = root.square().sum() + other_root.square().sum() - 2 * overlap
    return max(0.0, float((mean - other_mean).square().sum() + spread))


def _moments(rows: Tensor | np.ndarray, features: Callable[[Any], Any] | None, name: str) -> tuple[Tensor, Tensor]:
    """The mean ``(F,)``, and a matrix R of at most F rows with RᵀR the covariance."""
    if rows.ndim < 1 or len(rows) < 2:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}, but a covariance needs two rows of data or more")
    check_finite(torch.as_tensor(rows), name)
    points = torch.as_tensor(rows if features is None else features(rows)).detach().to("cpu", torch.float64)
    if features is None:
        points = points.reshape(len(points), -1)
    if points.dim() != 2 or len(points) != len(rows):
        raise ValueError(
            f"features must map {len(rows)} rows to shape ({len(rows)}, F), found {tuple(points.shape)} for {name}"
        )
    check_finite(points, f"the features of {name}")
    mean = points.mean(0)
    return mean, torch.linalg.qr((points - mean) / (len(points) - 1) ** 0.5, mode="r").R
