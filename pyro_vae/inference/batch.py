"""A batch: rows for the programs, with their keyword arguments."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Batch", "rows_of", "rows_that_fit", "with_rows"]

_ELEMENTS = 2**22  # of draws or rows held at a time, so that memory stays flat: 16 MiB in float32


def rows_that_fit(elements: int, *, budget: int = _ELEMENTS, most: int = 1024) -> int:
    """The number of rows to process at a time, if each makes this many elements: one budget for all tools.

    Example:
        >>> rows_that_fit(784), rows_that_fit(784 * 100), rows_that_fit(10**9)
        (1024, 53, 1)
    """
    return max(1, min(most, budget // max(1, elements)))


def rows_of(latent: Tensor, event_dim: int) -> Tensor:
    """A latent ``(*plates, N, *event)`` as one vector for each row, ``(N, d)``."""
    rows = latent.dim() - 1 - event_dim
    return latent.movedim(rows, 0).reshape(latent.shape[rows], -1)


def with_rows(vectors: Tensor, shape: torch.Size, event_dim: int) -> Tensor:
    """The inverse of :func:`rows_of`; ``shape`` is a latent's, with any number of rows."""
    rows = len(shape) - 1 - event_dim
    others = (*shape[:rows], *shape[rows + 1 :])
    return vectors.reshape(len(vectors), *others).movedim(0, rows)


@dataclass(frozen=True)
class Batch:
    """N rows in the model's units, on the pair's device and in its type.

    Args:
        x: ``(N, *E)``.
        context: The programs' keyword arguments that have one entry for each row; ``mask`` among them, true where an
            entry is observed, if entries are missing.
        log_jacobian: Logarithm of the transform's Jacobian at each row, ``(N,)``, over observed entries with a density.
        constants: The programs' keyword arguments that are the same for all rows: None, numbers, tensors without
            dimensions.

    Example:
        >>> batch = Batch(torch.zeros(5, 2), {"labels": torch.arange(5)}, torch.zeros(5), {"temperature": 0.5})
        >>> [len(part) for part in batch.chunks(2)], batch[1:3].context["labels"].tolist()
        ([2, 2, 1], [1, 2])
    """

    x: Tensor
    context: Mapping[str, Tensor]
    log_jacobian: Tensor
    constants: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice | Tensor) -> "Batch":
        context = {name: value[rows] for name, value in self.context.items()}
        return Batch(self.x[rows], context, self.log_jacobian[rows], self.constants)

    def chunks(self, size: int) -> Iterator["Batch"]:
        """The rows in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def replace(self, x: Tensor | None = None, **context: Tensor | None) -> "Batch":
        """The batch with other rows or other arguments; an argument that is None is removed."""
        merged = {name: value for name, value in {**self.context, **context}.items() if value is not None}
        return Batch(self.x if x is None else x, merged, self.log_jacobian, self.constants)

    @property
    def arguments(self) -> dict[str, Any]:
        """All keyword arguments of the programs."""
        return {**self.constants, **self.context}

    @property
    def forward(self) -> dict[str, Any]:
        """Keyword arguments of a run without data, where nothing is observed and so nothing is masked."""
        return {name: value for name, value in self.arguments.items() if name != "mask"}

    @property
    def mask(self) -> Tensor | None:
        """True where an entry of ``x`` is observed; None if all are."""
        mask = self.context.get("mask")
        return mask if mask is not None and mask.shape == self.x.shape else None

    @staticmethod
    def of(x: Tensor, context: Mapping[str, Any]) -> "Batch":
        """Rows that are already in the model's units, with arguments of either kind."""
        by_row = {name: value for name, value in context.items() if isinstance(value, Tensor) and value.dim() > 0}
        constants = {name: value for name, value in context.items() if name not in by_row}
        return Batch(x, by_row, x.new_zeros((), dtype=torch.get_default_dtype()).expand(x.shape[0]), constants)
