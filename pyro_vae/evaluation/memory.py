r"""Has a model learned what the data are like, or memorised its training rows?

Write :math:`d(y, S)` for the distance from y to the nearest other row of a set S. With training rows T and held-out
rows H, a row y has the ratio :math:`r(y) = d(y, T) / (d(y, T) + d(y, H))`. The samples' ratios are compared with those
of the held-out rows themselves, which cannot be copies of training rows. The share of pairs in which the sample is
relatively nearer to the training rows, with ties counted half, is

.. math:: A = P\left( r(\text{sample}) < r(\text{held out}) \right)

It is ½ if samples are as far from T as new rows are, and approaches 1 if they are copies. As both distances belong to
the same row, samples that are all too close to the middle of the data, or all too far, are not mistaken for copies.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.described import plain_rows

__all__ = ["Memory", "memory_of"]


@dataclass(frozen=True)
class Memory:
    """How close samples and held-out rows are to the training rows.

    Args:
        nearer: The share A of pairs, 0.5 if nothing is copied.
        standard_error: The standard error of A if both come from one distribution.
        leaked: Share of the held-out rows with an exact twin among the training rows.
        twins: Share of the training rows with an exact twin among the others: the share to expect.
    """

    nearer: float
    standard_error: float
    leaked: float
    twins: float


def memory_of(samples: Inputs, train: Inputs, held_out: Inputs) -> Memory:
    r"""Measures whether samples are copies of training rows, and whether held-out rows are among the training rows.

    The formula is at the top of :mod:`pyro_vae.evaluation.memory`; distances are Euclidean, over the elements of a row.

    Args:
        samples: Draws from the model, ``(M, *E)``.
        train: The rows that it was trained on, all of them: copies of missing rows are not found.
        held_out: Rows that it was not trained on, ``(N, *E)``, at least two.

    Returns:
        A :class:`Memory`. The standard error assumes independent rows; rows that share a neighbour are not quite
        independent.

    Raises:
        ValueError: if the rows differ in shape, or a set is too small.

    Example:
        >>> rows = torch.randn(900, 3, generator=torch.Generator().manual_seed(0))
        >>> memory_of(rows[:300], rows[:600], rows[600:]).nearer > 0.99  # copies
        True

    Source: after Meehan et al., *A Non-Parametric Test to Detect Data-Copying in Generative Models*, 2020, who rank the
    distances to the training rows alone.
    """
    from scipy.stats import rankdata
    from sklearn.neighbors import NearestNeighbors

    drawn, known, new = (
        _points(rows, name) for rows, name in ((samples, "samples"), (train, "train"), (held_out, "held_out"))
    )
    if not drawn.shape[1] == known.shape[1] == new.shape[1]:
        raise ValueError(
            f"samples, train and held_out have rows of {drawn.shape[1]}, {known.shape[1]} and {new.shape[1]} elements: "
            f"give them the same shape"
        )
    if len(new) < 2 or not len(known) or not len(drawn):
        raise ValueError(f"found {len(drawn)} samples, {len(known)} training and {len(new)} held-out rows: pass more")
    of_known, of_new = (NearestNeighbors(n_neighbors=1).fit(rows) for rows in (known, new))

    def ratios(to_known: np.ndarray, to_new: np.ndarray) -> np.ndarray:
        total = to_known + to_new
        return np.where(total > 0, to_known / np.where(total > 0, total, 1), 0.5)

    of_samples = ratios(of_known.kneighbors(drawn)[0][:, 0], of_new.kneighbors(drawn)[0][:, 0])
    of_held = ratios(of_known.kneighbors(new)[0][:, 0], of_new.kneighbors()[0][:, 0])  # excludes the row itself
    both = rankdata(np.concatenate([of_held, of_samples]).round(6))
    num, other = len(of_held), len(of_samples)
    nearer = (both[:num].sum() - num * (num + 1) / 2) / (num * other)
    counts = Counter(row.tobytes() for row in known)
    return Memory(
        float(nearer),
        float(((num + other + 1) / (12 * num * other)) ** 0.5),
        float(np.mean([row.tobytes() in counts for row in new])),
        float(np.mean([counts[row.tobytes()] > 1 for row in known])),
    )


def _points(rows: Inputs, name: str) -> np.ndarray:
    """Rows as points, ``(N, D)``; equal points have equal bytes."""
    points = torch.as_tensor(plain_rows(rows, name)).detach().to("cpu", torch.float64)
    return (_flat(points) + 0.0).numpy()  # no -0


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(len(rows), -1)
