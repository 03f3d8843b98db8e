"""Clusters compared with labels."""

import torch
from torch import Tensor

__all__ = ["matched"]


def matched(clusters: Tensor, y: Tensor) -> tuple[float, Tensor]:
    """The share of rows that are right under the best assignment of clusters to labels, and the assignment.

    Example:
        >>> matched(torch.tensor([2, 2, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 1]))
        (0.8, tensor([1, 2, 0]))
    """
    from scipy.optimize import linear_sum_assignment

    num = int(max(clusters.max(), y.max())) + 1
    table = torch.zeros(num, num).index_put((clusters, y), torch.ones(len(y)), accumulate=True)
    names = torch.as_tensor(linear_sum_assignment(-table)[1])
    return float((names[clusters] == y).double().mean()), names
