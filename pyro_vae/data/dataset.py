"""The result of every reader of data: rows, and what is known about them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_vae.data.tables import Schema

__all__ = ["BITS", "COUNTS", "COUNTS_OR_LEVELS", "INTENSITIES", "DataSet", "coded", "split"]

# Kinds of values: DataSet.values is one of these, or None if unknown.
BITS = "bits"
"""Only 0 and 1. The bounds are (0, 1)."""
INTENSITIES = "intensities"
"""Grey levels or colours, from the lower bound to the upper one."""
COUNTS = "counts"
"""Counts: whole numbers from 0. There are no bounds."""
COUNTS_OR_LEVELS = "counts or levels"
"""Whole numbers from 0 that may be counts or levels; the user has to say which. There are no bounds."""


@dataclass(frozen=True)
class DataSet:
    """Training rows and held-out rows, in their original units.

    Args:
        name: Name of the data set.
        x_train: Training rows ``(N, *E)``, in memory, or read when needed if they are many or sparse.
        x_test: Held-out rows ``(M, *E)``, likewise.
        bounds: Lowest and highest value that an element can have (0 and 255 for 8-bit grey levels), or None if there
            are no such bounds.
        y_train: Labels of the training rows as whole numbers ``(N,)``, or None.
        y_test: Labels of the held-out rows, likewise ``(M,)``.
        schema: The columns of a table, or None if the data are not a table.
        notes: What was guessed or left out: sentences that say how to change it.
        labels: Meaning of the whole numbers in ``y_train`` and ``y_test``: ``labels[code]`` is the original label, or
            the name of the subfolder. None if the numbers are the labels.
        ids_train: Names of the training rows ``(N,)``, as an array of strings or numbers, or None: the image files'
            paths within their folder, the array ``ids`` of an ``.npz``, the observations' names of an ``.h5ad``.
        ids_test: Names of the held-out rows, likewise ``(M,)``.
        rows_train: Row number of each training row in its file, or its part of the file ``(N,)``, counted from 0.
        rows_test: Row number of each held-out row, likewise ``(M,)``.
        lengths_train: For padded sequences, the number of observed steps of each training row ``(N,)``, or None: the
            array ``lengths`` of an ``.npz``.
        lengths_test: Those of the held-out rows, likewise ``(M,)``.
        table: The table that was read, or None if the data are not a table.
        about: A table of further information on each row of the file: ``obs`` of an ``.h5ad``. None if there is none.
        columns: Names of a row's elements: ``var_names`` of an ``.h5ad``. None if they have none, or a schema.
        values: The kind of values: :data:`BITS`, :data:`INTENSITIES`, :data:`COUNTS`, :data:`COUNTS_OR_LEVELS`, or
            None if only their bounds are known.
    """

    name: str
    x_train: Any  # Tensor | LazyRows; most uses need not distinguish them
    x_test: Any
    bounds: tuple[float, float] | None
    y_train: Tensor | None = None
    y_test: Tensor | None = None
    schema: "Schema | None" = None
    notes: tuple[str, ...] = ()
    labels: tuple[Any, ...] | None = None
    ids_train: np.ndarray | None = None
    ids_test: np.ndarray | None = None
    rows_train: Tensor | None = None
    rows_test: Tensor | None = None
    lengths_train: Tensor | None = None
    lengths_test: Tensor | None = None
    table: Any = None
    about: Any = None
    columns: tuple[str, ...] | None = None
    values: str | None = None


def split(num_rows: int, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of two disjoint parts, shuffled with ``seed``; the second has ``fraction`` of the rows, at least one.

    Example:
        >>> kept, held_out = split(10, 0.2)
        >>> len(kept), len(held_out), len(set(kept.tolist()) & set(held_out.tolist()))
        (8, 2, 0)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction must be between 0 and 1, found {fraction}")
    held_out = max(1, round(num_rows * fraction))
    if held_out >= num_rows:
        raise ValueError(f"cannot hold out {held_out} of {num_rows} rows: nothing would be left to train on")
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[held_out:], order[:held_out]


def coded(parts: Sequence[np.ndarray | None]) -> tuple[tuple[Any, ...] | None, list[Tensor | None]]:
    """The distinct labels, sorted, and each part's labels as their indices.

    Example:
        >>> coded([np.array(["owl", "cat"]), None, np.array(["owl"])])
        (('cat', 'owl'), [tensor([1, 0]), None, tensor([1])])
    """
    given = [y for y in parts if y is not None]
    if not given:
        return None, list(parts)  # type: ignore[arg-type]
    if all(y.dtype.kind in "biu" for y in given):  # NumPy would round signed together with unsigned
        given = [y.astype(object) for y in given]
    kinds = np.unique(np.concatenate(given))
    return tuple(kinds.tolist()), [None if y is None else torch.as_tensor(np.searchsorted(kinds, y)) for y in parts]
