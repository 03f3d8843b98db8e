r"""The tail of importance weights: the shape of the generalised Pareto distribution fitted to the largest."""

import math

import torch
from torch import Tensor

__all__ = ["FEWEST", "reliable_shape", "tail_shape", "widened"]

FEWEST = 25  # draws, to fit a tail
_STRENGTH = 10.0  # draws that the shape's prior, centred on a half, is worth
_SMALLEST = 0.03  # of 1 − 2k, below which the error is no longer widened


def reliable_shape(num_draws: int) -> float:
    r"""The largest shape :math:`\hat k` to rely on with ``num_draws`` draws, :math:`\min(1 - 1/\log_{10} K, 0.7)`."""
    return min(1 - 1 / math.log10(num_draws), 0.7)


def tail_shape(log_weights: Tensor) -> Tensor:
    r"""The shape :math:`\hat k` of the tail of each column's weights.

    The :math:`M = \lceil \min(K / 5, 3 \sqrt K) \rceil` largest of K weights, less the next smaller one, are treated
    as draws from

    .. math:: p(y) = \frac{1}{\sigma} \left( 1 + k \frac{y}{\sigma} \right)^{-1/k - 1}

    With :math:`\theta = -k / \sigma` the likelihood is highest in k at
    :math:`k(\theta) = \frac{1}{M} \sum_i \log(1 - \theta y_i)`. θ is the mean of a grid's points, weighted by their
    likelihood, and :math:`\hat k` is shrunk a little towards ½.

    Args:
        log_weights: ``(K, N)`` in float64.

    Returns:
        ``(N,)``: 0 if the largest weights are equal up to rounding, which leaves no tail; NaN for fewer than 25 draws.

    Source: Vehtari et al., *Pareto Smoothed Importance Sampling*, 2024; for the fit Zhang & Stephens, *A New and
    Efficient Estimation Method for the Generalized Pareto Distribution*, 2009.
    """
    num = len(log_weights)
    if num < FEWEST:
        return torch.full_like(log_weights[0], math.nan)
    size = _tail_size(num)
    largest = log_weights.topk(size + 1, dim=0).values.flip(0)
    top = largest[-1]
    flat = ~top.isfinite() | (top - largest[-4] <= 1e-6 * (1 + top.abs()))
    weights = (largest - torch.where(top.isfinite(), top, 0.0)).exp()
    above = (weights[1:] - weights[0]).clamp_min(torch.finfo(weights.dtype).tiny)
    steps = torch.arange(1, size + 1, dtype=above.dtype, device=above.device)
    return torch.where(flat, 0.0, _fitted(torch.where(flat, steps[:, None], above)))


def _fitted(above: Tensor) -> Tensor:
    """The shape of a generalised Pareto distribution, ``(N,)``, from its sorted draws, ``(M, N)``."""
    size = len(above)
    num = 30 + int(math.sqrt(size))
    grid = torch.arange(1, num + 1, dtype=above.dtype, device=above.device)
    quartile = above[int(size / 4 + 0.5) - 1]
    theta = 1 / above[-1] + (1 - (num / (grid - 0.5)).sqrt())[:, None] / (3 * quartile)
    shapes = torch.stack([torch.log1p(-row * above).mean(0) for row in theta])
    likelihood = size * ((-theta / shapes).log() - shapes - 1)
    chosen = (theta * likelihood.nan_to_num(nan=-math.inf).softmax(0)).sum(0)
    return (size * torch.log1p(-chosen * above).mean(0) + 0.5 * _STRENGTH) / (size + _STRENGTH)


def widened(standard_error: Tensor, shape: Tensor, num_draws: int) -> Tensor:
    r"""The standard error of a mean weight, widened for the part of the tail that was not drawn.

    In a heavy tail the largest weights have mostly not been drawn, and the standard deviation of those that have is
    too small. The variance of a generalised Pareto distribution is :math:`1 / (1 - 2k)` times that of an exponential
    one with its mean, so the squared error is increased by that factor, at :math:`\hat k` plus its own standard error
    :math:`(1 + \hat k) / \sqrt M` and up to 33 times.

    Checked in 35 cases with known evidence: correlated normals with guides of independent entries, 0.6 to 1.2 times as
    wide as they should be. If :math:`\hat k` is reliable, the estimate is off by 0.7 of these errors (root mean square;
    at most 1.1 in nine cases of ten) and by 2.8 of the plain ones (at most 5.8).
    """
    wide = shape + (1 + shape) / math.sqrt(_tail_size(num_draws))
    return standard_error / (1 - 2 * wide.nan_to_num().clamp_min(0)).clamp_min(_SMALLEST).sqrt()


def _tail_size(num_draws: int) -> int:
    return math.ceil(min(num_draws / 5, 3 * math.sqrt(num_draws)))
