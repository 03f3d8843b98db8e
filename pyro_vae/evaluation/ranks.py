"""Ranks among draws, with ties ordered at random, and a test for uniform ranks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["among_ties", "uniformity"]


def among_ties(below: Tensor, ties: Tensor) -> Tensor:
    """A rank, drawn at random from those that ties leave open.

    Args:
        below: Number of draws below a value.
        ties: Number of draws equal to it.
    """
    return below + (torch.rand(below.shape, dtype=torch.float64, device=below.device) * (ties + 1)).long()


def uniformity(ranks: np.ndarray, num_ranks: int, num_bins: int) -> tuple[float, float]:
    """Pearson's chi-square of ranks against the uniform distribution on 0, …, num_ranks − 1, and its p-value.

    Example:
        >>> uniformity(np.arange(100), 100, 10)
        (0.0, 1.0)
    """
    from scipy import stats

    share = np.bincount(np.arange(num_ranks) * num_bins // num_ranks, minlength=num_bins) / num_ranks
    found = np.bincount(ranks * num_bins // num_ranks, minlength=num_bins)
    test: Any = stats.chisquare(found, share * len(ranks))
    return float(test.statistic), float(test.pvalue)
