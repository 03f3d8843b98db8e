"""What every reader of data gives: rows, and what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from pyro_vae.data.tables import Schema

__all__ = ["BITS", "COUNTS", "COUNTS_OR_LEVELS", "INTENSITIES", "DataSet", "coded", "split"]

# What the numbers of a data set can be known to be: DataSet.values is one of these, or None.
BITS = "bits"
"""Only 0 and 1. The bounds are (0, 1)."""
INTENSITIES = "intensities"
"""Grey levels or colours, from the lower bound to the upper one."""
COUNTS = "counts"
"""Whole numbers from 0, of things that were counted. There are no bounds."""
COUNTS_OR_LEVELS = "counts or levels"
"""Whole numbers from 0, and nothing says which of the two: whoever uses them has to. There are no bounds."""


@dataclass(frozen=True)
class DataSet:
    """Rows to train on and rows held out, in the units they came in.

    Args:
        name: What to call it.
        x_train: Training rows ``(N, *E)``, in memory or, where they are many or sparse, read when they are needed.
        x_test: Held-out rows ``(M, *E)``, likewise.
        bounds: Lowest and highest value that an element can have (0 and 255 for 8-bit grey levels), or None where
            there are no such bounds.
        y_train: Labels of the training rows as whole numbers ``(N,)``, or None.
        y_test: Labels of the held-out rows, likewise ``(M,)``.
        schema: The columns of a table, or None where the rows are not one.
        notes: What was guessed or left out, each as a sentence that says what would change it.
        labels: What the whole numbers in ``y_train`` and ``y_test`` stand for: ``labels[code]`` is the label as it was
            written, or the name of the subfolder. None where they stand for themselves.
        ids_train: Names of the training rows ``(N,)``, as an array of strings or numbers, or None: those of the image
            files within their folder, the array ``ids`` of an ``.npz``, the observations' names of an ``.h5ad``.
        ids_test: Names of the held-out rows, likewise ``(M,)``.
        rows_train: Where each training row is in the file, or its part, that it came from ``(N,)``, counted from 0.
        rows_test: Where each held-out row is, likewise ``(M,)``.
        lengths_train: Steps of each training row that are there, of sequences that are padded ``(N,)``, or None: the
            array ``lengths`` of an ``.npz``.
        lengths_test: Those of the held-out rows, likewise ``(M,)``.
        table: The table that was read, or None where it was none.
        about: A table of what else is known of each row of the file: ``obs`` of an ``.h5ad``. None where there is none.
        columns: Names of a row's elements: ``var_names`` of an ``.h5ad``. None where they have none, or a schema.
        values: What the numbers are: :data:`BITS`, :data:`INTENSITIES`, :data:`COUNTS`, :data:`COUNTS_OR_LEVELS`, or
            None where nothing is known but their bounds.
    """

    name: str
    x_train: Any  # Tensor | LazyRows, which most uses need not tell apart
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
    """Indices of two disjoint parts, shuffled by ``seed``; the second has ``fraction`` of the rows, at least one.

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
    """The labels that occur, in their order, and those of each part as whole numbers that count them.

    Example:
        >>> coded([np.array(["owl", "cat"]), None, np.array(["owl"])])
        (('cat', 'owl'), [tensor([1, 0]), None, tensor([1])])
    """
    given = [y for y in parts if y is not None]
    if not given:
        return None, list(parts)  # type: ignore[arg-type]
    if all(y.dtype.kind in "biu" for y in given):  # signed with unsigned ones would be rounded
        given = [y.astype(object) for y in given]
    kinds = np.unique(np.concatenate(given))
    return tuple(kinds.tolist()), [None if y is None else torch.as_tensor(np.searchsorted(kinds, y)) for y in parts]
