"""Columns of several kinds side by side."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

__all__ = ["Columns"]


class Columns(TorchDistribution):
    """Columns of a table, each with its own distribution: batch ``(*B, D)`` from D distributions of batch ``(*B,)``.

    Args:
        columns: One distribution of scalars for each column.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, columns: Sequence[TorchDistribution], *, validate_args: bool | None = None) -> None:
        self.columns = list(columns)
        batch_shape = torch.broadcast_shapes(*(column.batch_shape for column in self.columns))
        self.columns = [column.expand(batch_shape) for column in self.columns]
        super().__init__(torch.Size((*batch_shape, len(self.columns))), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Each column's own support."""
        return constraints.stack([column.support for column in self.columns], dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":  # noqa: D102
        return Columns([column.expand(batch_shape[:-1]) for column in self.columns], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        parts = value.unbind(-1)
        return torch.stack([c.log_prob(part) for c, part in zip(self.columns, parts, strict=True)], dim=-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        draws = [column.sample(sample_shape) for column in self.columns]
        dtype = next((d.dtype for d in draws if d.is_floating_point()), torch.get_default_dtype())
        return torch.stack([draw.to(dtype) for draw in draws], dim=-1)

    @property
    def mean(self) -> Tensor:
        """Each column's mean; for kinds without an order, the most probable one."""
        return torch.stack([column.mean for column in self.columns], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Each column's variance; NaN for kinds without an order."""
        return torch.stack([column.variance for column in self.columns], dim=-1)
