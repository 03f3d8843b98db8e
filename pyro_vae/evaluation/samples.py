r"""How good are samples, without a likelihood? Precision, recall, density, coverage, and a measure of checkerboards.

Precision, recall, density and coverage compare two sets of rows through balls around their points. Write
:math:`B_k(x; X)` for the closed ball around :math:`x \in X` that reaches to the k-th nearest *other* point of
:math:`X`. For N real rows :math:`x_i` and M samples :math:`y_j`

.. math::
    \text{precision} &= \frac{1}{M} \sum_j \mathbb{1}\left[y_j \in \textstyle\bigcup_i B_k(x_i; X)\right], &
    \text{recall} &= \frac{1}{N} \sum_i \mathbb{1}\left[x_i \in \textstyle\bigcup_j B_k(y_j; Y)\right], \\
    \text{density} &= \frac{1}{kM} \sum_j \sum_i \mathbb{1}\left[y_j \in B_k(x_i; X)\right], &
    \text{coverage} &= \frac{1}{N} \sum_i \mathbb{1}\left[\exists j:\ y_j \in B_k(x_i; X)\right]

Precision and density tell whether samples lie where data lie, recall and coverage whether all of the data are found
among the samples. Density and coverage use balls around real rows only, so a stray sample cannot inflate them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.checks import check_finite
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.described import plain_rows

__all__ = ["checkerboard", "sample_quality"]

_MEBIBYTES = 256  # memory for distances at a time
_ROUNDING = 1e-7  # about the square root of float64's precision: squaring distances loses half the digits


def sample_quality(
    real: Inputs,
    samples: Inputs,
    *,
    num_neighbors: int = 5,
    features: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    r"""Computes precision, recall, density and coverage of samples, from their distances to real rows.

    The formulas are at the top of :mod:`pyro_vae.evaluation.samples`. All four depend on N, M, k and on the space in
    which distances are measured. So compare models only with all of these equal, and report the values that a second
    set of real rows reaches along with them.

    Args:
        real: Real rows that the model was not trained on: an array or any other rows of numbers.
        samples: Draws from the model, in the same units.
        num_neighbors: The k of the balls. Kynkäänniemi et al. use 3, Naeem et al. 5.
        features: Maps rows, as passed in, to features ``(N, F)`` with meaningful distances; by default distances are
            Euclidean over the elements of a row.

    Shape:
        real: ``(N, *E)``; samples: ``(M, *E)``, both with more than ``num_neighbors`` rows. Time and work grow with
        N·M; memory does not.

    Returns:
        - ``precision`` in [0, 1]: share of the samples that lie in the neighbourhood of a real row;
        - ``recall`` in [0, 1]: share of the real rows that lie in the neighbourhood of a sample;
        - ``density``, at least 0: in how many neighbourhoods of real rows a sample lies, over k. Its expectation is 1
          if both sets are independent draws from one continuous distribution; two identical sets have (k + 1)/k;
        - ``coverage`` in [0, 1]: share of the real rows with a sample in their neighbourhood. If both sets are
          independent draws from one continuous distribution, its expectation is
          :math:`1 - \prod_{i=1}^{k} \frac{N - i}{N + M - i}`: at k = 5 and N = M about 0.97.

    Raises:
        ValueError: if there are too few rows for ``num_neighbors``, the two sets' rows differ in shape, or rows or
            features hold NaN or infinite values.

    Example:
        >>> real = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        >>> quality = sample_quality(real, 0.1 * real)  # samples that all lie in the middle of the data
        >>> quality["precision"], quality["recall"] < 0.25
        (1.0, True)

    Source: Kynkäänniemi et al., *Improved Precision and Recall Metric for Assessing Generative Models*, 2019
    (precision, recall); Naeem et al., *Reliable Fidelity and Diversity Metrics for Generative Models*, 2020 (density,
    coverage, and its expectation).
    """
    from sklearn.metrics import pairwise_distances_chunked

    if num_neighbors < 1:
        raise ValueError(f"num_neighbors must be at least 1, found {num_neighbors}")
    real, samples = plain_rows(real, "real"), plain_rows(samples, "samples")
    for name, rows in (("real", real), ("samples", samples)):
        if rows.ndim < 2 or len(rows) <= num_neighbors:
            raise ValueError(
                f"{name} has shape {tuple(rows.shape)}, but num_neighbors={num_neighbors} needs rows of data, at least "
                f"{num_neighbors + 1} of them: give more rows, or use fewer neighbours"
            )
    if tuple(real.shape[1:]) != tuple(samples.shape[1:]):
        raise ValueError(
            f"real has rows of shape {tuple(real.shape[1:])} and samples has rows of shape "
            f"{tuple(samples.shape[1:])}: give them the same shape"
        )
    x, y = _points(real, features, "real"), _points(samples, features, "samples")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features returns {x.shape[1]} numbers for a real row and {y.shape[1]} for a sample")
    centre = x.mean(0)
    x, y = x - centre, y - centre  # distances come from squared norms, which lose the fewest digits near the origin
    x_radii, y_radii = _radii(x, num_neighbors), _radii(y, num_neighbors)

    precise, recalled, covered = np.zeros(len(y), bool), np.zeros(len(x), bool), np.zeros(len(x), bool)
    pairs = start = 0
    for distances in pairwise_distances_chunked(x, y, working_memory=_MEBIBYTES):
        here = slice(start, start + len(distances))
        in_real_balls = distances <= x_radii[here, None]
        precise |= in_real_balls.any(0)
        covered[here] = in_real_balls.any(1)
        recalled[here] = (distances <= y_radii).any(1)
        pairs += int(in_real_balls.sum())
        start = here.stop
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": pairs / (num_neighbors * len(y)),
        "coverage": float(covered.mean()),
    }


def _points(rows: Tensor | np.ndarray, features: Callable[[Any], Any] | None, name: str) -> np.ndarray:
    """Rows or their features as finite points ``(N, F)``."""
    check_finite(torch.as_tensor(rows), name)
    if features is None:
        return _float64(rows).flatten(1).numpy()
    points = _float64(features(rows))
    if points.dim() != 2 or len(points) != len(rows):
        raise ValueError(
            f"features must map {len(rows)} rows to shape ({len(rows)}, F), found {tuple(points.shape)} for {name}"
        )
    check_finite(points, f"the features of {name}")
    return points.numpy()


def _float64(x: Any) -> Tensor:
    return torch.as_tensor(x).detach().to("cpu", torch.float64)


def _radii(points: np.ndarray, num_neighbors: int) -> np.ndarray:
    """Distance of each point to its k-th nearest other point, widened by a rounding error so that ties count."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=num_neighbors).fit(points).kneighbors()
    radii = distances[:, -1]
    return radii + _ROUNDING * (radii + np.linalg.norm(points, axis=1))


def checkerboard(images: Tensor | np.ndarray) -> float:
    r"""Measures how strongly images alternate from pixel to pixel: their excess power at the frequencies of a grid.

    A layer of stride 2 treats even and odd rows and columns differently. The resulting pattern repeats every second
    pixel: it is the image's content with its spectrum shifted to the three frequencies :math:`(\frac12, 0)`,
    :math:`(0, \frac12)` and :math:`(\frac12, \frac12)` cycles per pixel, where the average brightness becomes a peak.
    Fine detail, noise and the jump from one edge of the image to the other have power there too, but no peak: about as
    much as one step closer to 0. The excess, as a share of all power except the mean's, is

    .. math::
        \frac{\sum_{\nu \in \mathcal{N}} \left( P(\nu) - P(\mathcal{R}(\nu)) \right)}{\sum_{\nu \ne 0} P(\nu)},
        \qquad P(\nu) = \sum_n \left| \mathrm{DFT}(x_n)(\nu) \right|^2

    with :math:`\mathcal{N}` the three frequencies, P summed over images and channels, and for an image of H×W pixels
    :math:`\mathcal{R}(\frac12, 0) = (\frac12 - \frac1H, 0)`, :math:`\mathcal{R}(0, \frac12) = (0, \frac12 - \frac1W)`,
    and :math:`P(\mathcal{R}(\frac12, \frac12))` the mean over :math:`(\frac12 - \frac1H, \frac12 \pm \frac1W)`.

    It is near 0 for smooth images, 0 in expectation for white noise, 1 for pure alternation, and a little below 0 if
    power falls towards :math:`\mathcal{N}`. An alternation of amplitude b, added to smooth
    images of standard deviation s, gives :math:`b^2 / (b^2 + s^2)`. The scale and the mean of the images do not matter.

    Args:
        images: Images, or a decoder's raw output.

    Shape:
        images: ``(*B, H, W)``, at least 4×4; power is summed over ``*B``. An odd last row or column is dropped.

    Returns:
        The excess; 0 for images that do not vary.

    Raises:
        ValueError: if there are no images, they are smaller, or they hold NaN or infinite values.

    Example:
        >>> smooth = 2 + torch.linspace(-3, 3, 28).tanh().expand(28, 28)
        >>> stripes = 1 - 0.5 * (torch.arange(28) % 2)  # every second column at half brightness
        >>> print(f"{checkerboard(smooth):.3f}", f"{checkerboard(smooth * stripes):.3f}")
        -0.000 0.317

    Source: for how uneven overlap makes the pattern, Odena et al., *Deconvolution and Checkerboard Artifacts*, 2016;
    for copies of the spectrum as the mark of upsampling layers, Zhang et al., *Detecting and Simulating
    Artifacts in GAN Fake Images*, 2019. The measure is this library's.
    """
    x = torch.as_tensor(images)
    if x.dim() < 2 or min(x.shape[-2:]) < 4 or x.numel() == 0:
        raise ValueError(f"checkerboard takes images of shape (*batch, H, W), at least 4×4; found {tuple(x.shape)}")
    check_finite(x, "images")
    x = _float64(x)
    row, column = x.shape[-2] // 2, x.shape[-1] // 2  # the place of ½ cycles per pixel in the transform
    x = x[..., : 2 * row, : 2 * column]
    energy = float(x.square().sum())
    x = x - x.mean((-2, -1), keepdim=True)
    power = torch.fft.fft2(x).abs().square().reshape(-1, 2 * row, 2 * column).sum(0)
    total = float(power.sum())
    if total <= 1e-24 * 4 * row * column * energy:  # only rounding is left
        return 0.0
    down = power[row, 0] - power[row - 1, 0]
    across = power[0, column] - power[0, column - 1]
    both = power[row, column] - (power[row - 1, column - 1] + power[row - 1, column + 1]) / 2
    return float(down + across + both) / total
