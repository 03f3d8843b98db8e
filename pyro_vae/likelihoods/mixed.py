"""Tables with several kinds of columns."""

import math
from collections.abc import Sequence
from typing import Any, Self

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae._support.ranges import Columns as ColumnRanges
from pyro_vae._support.ranges import Constraint
from pyro_vae.distributions import Columns
from pyro_vae.encodings import ByColumn, Encoding
from pyro_vae.likelihoods.base import Likelihood

__all__ = ["Mixed"]


class Mixed(Likelihood):
    r"""A likelihood for each column of a table.

    .. math:: p(x \mid z) = \prod_d p_d(x_d \mid z)

    Args:
        columns: One likelihood for each column.
        names: Names of the columns for messages.

    Shape:
        raw: ``(*B, R)`` with R the sum of the columns' raw outputs. Returns a distribution with batch ``(*B,)`` and
        event ``(D,)``.

    Example:
        >>> import torch
        >>> from pyro_vae.likelihoods import Bernoulli, Normal
        >>> likelihood = Mixed((Bernoulli(), Normal(scale="network"))).for_event((2,))
        >>> likelihood.raw_shape((2,)), likelihood(torch.zeros(5, 3)).sample().shape
        ((3,), torch.Size([5, 2]))
    """

    def __init__(self, columns: Sequence[Likelihood], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if not columns:
            raise ValueError("Mixed needs a likelihood for at least one column")
        if names is not None and len(names) != len(columns):
            raise ValueError(f"Mixed has {len(columns)} columns and {len(names)} names: give one name for each")
        self._columns = nn.ModuleList(columns)
        self.names = None if names is None else tuple(names)
        self.arguments = tuple(dict.fromkeys(name for column in columns for name in column.arguments))

    @property
    def columns(self) -> tuple[Likelihood, ...]:
        """One likelihood for each column."""
        return tuple(self._columns)  # pyright: ignore[reportReturnType]

    @property
    def data_range(self) -> Constraint:
        """Each column's own range."""
        return ColumnRanges([column.data_range for column in self.columns], self.names)

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Each column's own encoding."""
        return ByColumn([column.encoding(()) for column in self.columns])

    def check_arguments(self, **arguments: Any) -> None:
        """Lets each column check the arguments that it takes."""
        for column in self.columns:
            column.check_arguments(**_taken(column, arguments))

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        if tuple(event_shape) != (len(self.columns),):
            raise ValueError(f"Mixed has {len(self.columns)} columns, found rows of shape {tuple(event_shape)}")
        return (sum(self._sizes()),)

    def _sizes(self) -> list[int]:
        return [math.prod(column.raw_shape(())) for column in self.columns]

    def for_event(self, event_shape: Sequence[int]) -> Self:  # noqa: D102
        built = super().for_event(event_shape)
        built._columns = nn.ModuleList([column.for_event(()) for column in self.columns])
        return built

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:
        """The raw output of each column."""
        expected = self.raw_shape((len(self.columns),))
        if tuple(raw.shape[-1:]) != expected:
            raise ValueError(f"Mixed reads raw output of shape (*batch, {expected[0]}), found {tuple(raw.shape)}")
        return raw.split(self._sizes(), dim=-1), 1

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Passes each column its part."""
        masks = [None] * len(self.columns) if mask is None else mask.expand_as(x).unbind(-1)
        for column, part, rows, seen in zip(self.columns, self.read(raw)[0], x.unbind(-1), masks, strict=True):
            column.observe(part, rows, seen, **_taken(column, arguments))

    def distribution(self, *params: Tensor, **arguments: Any) -> TorchDistribution:
        """The columns' distributions side by side."""
        parts = zip(self.columns, params, strict=True)
        return Columns([column(raw, **_taken(column, arguments)) for column, raw in parts])


def _taken(column: Likelihood, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a column takes."""
    return {name: value for name, value in arguments.items() if name in column.arguments}
