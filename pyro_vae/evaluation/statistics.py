"""Statistics of a data set that show where models of it usually go wrong, chosen by the kind of its values."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae._support.ranges import Constraint, constraints, elementwise, is_boolean, is_bounded

__all__ = ["OfColumns", "Statistic", "default_statistics"]

Statistic = Callable[[Tensor], Any]

_SEPARATE = 16  # up to this many elements each has its own value; with more, their average is used
_LOOKED_AT = 64  # elements whose pairs and tails are used
_ATOM = 0.05  # share of the entries from which one exact value is counted


def default_statistics(x: Tensor, data_range: Constraint) -> dict[str, Statistic]:
    r"""Chooses statistics for a data set with values of this kind.

    Args:
        x: The observed data ``(N, *E)``, NaN where an entry is missing. Only their size is used: a statistic selects
            the columns that vary most, or frequent values, in each data set separately. A selection from the observed
            data would set them apart from all others, even under the true model.
        data_range: Constraint on one element, or ``constraints.stack`` with one for each column.

    Returns:
        Functions of a data set ``(N, *E)`` by name; NaN is ignored. Up to 16 elements have a value each; with more,
        the average is used. Values of named columns, those of a table, have their names.

        - For all: ``mean``; ``sd``; with two elements or more ``sd of row totals``, and ``mean |correlation|`` and
          ``max |correlation|`` over the pairs of the 64 elements that vary most.
        - Counts: ``zeros``, their share; ``dispersion``, variance over mean, 1 for Poisson; ``largest``.
        - Levels and categories: ``lowest`` and ``highest``, the shares of the two ends of their range.
        - Real numbers: ``lower tail`` and ``upper tail``, the 1% and 99% quantiles (5% and 95% with fewer than 500
          rows); ``skewness``; ``kurtosis``; and ``share at one value``, the shares of
          the most frequent value and of the next, each 0 if less than 5% of the entries have exactly that value: a
          density allows no more.

        If columns are of several kinds, names start with the kind.

    Example:
        >>> from pyro_vae._support.ranges import constraints
        >>> x = torch.tensor([[0.0], [0.0], [3.0], [1.0]])
        >>> chosen = default_statistics(x, constraints.nonnegative_integer)
        >>> list(chosen), chosen["zeros"](x)
        (['mean', 'sd', 'zeros', 'dispersion', 'largest'], tensor([0.5000], dtype=torch.float64))
    """
    flat = _flat(x)
    columns = _columns_by_kind(elementwise(data_range), flat.shape[1])
    names = getattr(elementwise(data_range), "names", None)
    chosen: dict[str, Statistic] = {}
    for kind, index in columns.items():
        prefix = f"{kind}: " if len(columns) > 1 else ""
        for name, function in _of_kind(kind, len(index), len(flat), _ends(data_range, index)).items():
            chosen[prefix + name] = OfColumns(index, function, tuple(names[i] for i in index.tolist()) if names else ())
    return chosen


def _flat(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).double()


@dataclass(frozen=True)
class OfColumns:
    """A statistic of some columns.

    Args:
        index: The columns.
        function: The statistic of these.
        names: Their names, if the columns of the data have names.
    """

    index: Tensor
    function: Callable[[Tensor], Tensor]
    names: tuple[str, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """The statistic of a data set ``(N, *E)``."""
        part = _flat(x)
        return self.function(part if len(self.index) == part.shape[1] else part[:, self.index])

    def components(self, count: int) -> Sequence[str] | None:
        """Names of ``count`` values, if there is one for each named column."""
        return self.names if len(self.names) == count and self.function is not _share_of_atoms else None


def _columns_by_kind(data_range: Constraint, num_dims: int) -> dict[str, Tensor]:
    stacked = isinstance(data_range, constraints.stack)
    kinds = [_kind(c) for c in data_range.cseq] if stacked else [_kind(data_range)] * num_dims
    return {k: torch.tensor([i for i, kind in enumerate(kinds) if kind == k]) for k in dict.fromkeys(kinds)}


def _kind(constraint: Constraint) -> str:
    if not constraint.is_discrete:
        return "real"
    return "bits" if is_boolean(constraint) else "levels" if is_bounded(constraint) else "counts"


def _ends(data_range: Constraint, index: Tensor) -> tuple[Tensor, Tensor]:
    """The ends of these columns' ranges, infinite if they have none."""
    each = elementwise(data_range)
    of = [each.cseq[i] for i in index.tolist()] if isinstance(each, constraints.stack) else [each] * len(index)
    found = [[_end(c, "lower_bound", -math.inf), _end(c, "upper_bound", math.inf)] for c in of]
    low, high = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return low, high


def _end(constraint: Constraint, name: str, none: float) -> float:
    bound = torch.as_tensor(getattr(constraint, name, none)).double()
    return float(bound.min() if name == "lower_bound" else bound.max())


def _of_kind(
    kind: str, num_dims: int, num_rows: int, ends: tuple[Tensor, Tensor]
) -> Mapping[str, Callable[[Tensor], Tensor]]:
    chosen: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": lambda x: _each(_mean(x)),
        "sd": lambda x: _each(_variance(x).sqrt()),
    }
    if kind == "counts":
        chosen["zeros"] = _share_at(torch.zeros(()))
        chosen["dispersion"] = lambda x: _each(_variance(x) / _mean(x).clamp(min=1e-12))
        chosen["largest"] = lambda x: _filled(x, -math.inf).amax()
    if kind == "levels":
        chosen["lowest"], chosen["highest"] = map(_share_at, ends)
    if kind == "real":
        tail = 0.01 if num_rows >= 500 else 0.05
        chosen["lower tail"] = lambda x: _each(_quantile(_varying(x), tail), x.shape[1])
        chosen["upper tail"] = lambda x: _each(_quantile(_varying(x), 1 - tail), x.shape[1])
        chosen["skewness"] = lambda x: _each(_standard_moment(x, 3))
        chosen["kurtosis"] = lambda x: _each(_standard_moment(x, 4))
        chosen["share at one value"] = _share_of_atoms
    if num_dims > 1:
        chosen["sd of row totals"] = lambda x: _variance(x.nansum(1, keepdim=True)).sqrt()[0]
        chosen["mean |correlation|"] = lambda x: _correlations(_varying(x)).mean()
        chosen["max |correlation|"] = lambda x: _correlations(_varying(x)).max()
    return chosen


def _each(values: Tensor, num_dims: int | None = None) -> Tensor:
    """The values of a few elements, the average over many."""
    return values if (len(values) if num_dims is None else num_dims) <= _SEPARATE else values.mean()


def _filled(x: Tensor, value: float) -> Tensor:
    return torch.where(x.isnan(), value, x)


def _mean(x: Tensor) -> Tensor:
    return x.nanmean(0).nan_to_num()


def _variance(x: Tensor) -> Tensor:
    return (x - _mean(x)).square().nanmean(0).nan_to_num()


def _standard_moment(x: Tensor, order: int) -> Tensor:
    centred = x - _mean(x)
    sd = centred.square().nanmean(0).sqrt()
    # Variation by rounding alone has no shape.
    flat = ~(sd > 1e-9 * (1 + _mean(x).abs()))
    return torch.where(flat, 0.0, (centred / sd).pow(order).nanmean(0)).nan_to_num()


def _quantile(x: Tensor, probability: float) -> Tensor:
    """The observed value at this rank of each column."""
    count = (~x.isnan()).sum(0)
    rank = (probability * (count - 1)).round().long().clamp(min=0)
    return x.sort(0).values.gather(0, rank[None])[0].nan_to_num()  # NaN comes last


def _varying(x: Tensor) -> Tensor:
    """The columns of this data set that vary most, in order."""
    if x.shape[1] <= _LOOKED_AT:
        return x
    return x[:, _variance(x).topk(_LOOKED_AT).indices.sort().values]


def _share_of_atoms(x: Tensor) -> Tensor:
    """Shares of the entries at the two most frequent values; a share below 5% counts as 0."""
    counts = torch.cat([x[~x.isnan()].unique(return_counts=True)[1], torch.zeros(2, dtype=torch.long)])
    most = counts.topk(2).values
    share = most.double() / counts.sum().clamp(min=1)
    return torch.where((share >= _ATOM) & (most >= 2), share, 0.0)


def _share_at(value: Tensor) -> Callable[[Tensor], Tensor]:
    """The share of each column's entries at a value, which may differ by column."""

    def share(x: Tensor) -> Tensor:
        return _each((x == value).double().sum(0) / (~x.isnan()).sum(0).clamp(min=1))

    return share


def _correlations(x: Tensor) -> Tensor:
    """Sizes of the correlations of all pairs of columns; a missing entry counts as its column's mean."""
    centred = (x - _mean(x)).nan_to_num()
    scale = centred.square().sum(0).sqrt()
    # Rounding must not count as variation.
    scale = torch.where(scale > 1e-9 * (1 + _mean(x).abs()), scale, math.inf)
    correlation = (centred / scale).T @ (centred / scale)
    first, second = torch.triu_indices(*correlation.shape, offset=1)
    return correlation[first, second].abs()
