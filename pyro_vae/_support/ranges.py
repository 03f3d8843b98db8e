"""Sets of values: of data, of a transform's output, or of a likelihood.

The sets are ``torch.distributions.constraints``, as everywhere in PyTorch. This module adds descriptions in words and
a check whether one set is within another.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = [
    "Columns",
    "Constraint",
    "bounds",
    "constraints",
    "discrete",
    "elementwise",
    "inner_value",
    "interval",
    "is_boolean",
    "is_bounded",
    "of_all_rows",
    "phrase",
    "within",
]


class Columns(constraints.stack):
    """Columns, each with its own set and, optionally, a name."""

    def __init__(self, columns: Sequence[Constraint], names: Sequence[str] | None = None) -> None:
        super().__init__(columns, dim=-1)
        self.names = names

    def called(self, index: int) -> str:
        """A column by its name and index."""
        return f"column {index}" if self.names is None else f"column {self.names[index]!r} (index {index})"


def interval(lower: float, upper: float) -> Constraint:
    """The closed interval from ``lower`` to ``upper``."""
    return constraints.interval(float(lower), float(upper))


def elementwise(constraint: Constraint) -> Constraint:
    """The constraint on one element of an event."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def of_all_rows(constraint: Constraint, *, may_vary: bool = False) -> Constraint:
    """The constraint on an element of any row: bounds that differ from row to row are left out.

    Args:
        constraint: The constraint on an element of some rows.
        may_vary: Whether other rows may have other bounds even if these rows share theirs.

    Example:
        >>> import torch
        >>> phrase(of_all_rows(constraints.integer_interval(0, torch.tensor([20, 30]))))
        'the whole numbers from 0'
    """
    found = [getattr(constraint, name, None) for name in ("lower_bound", "upper_bound")]
    if not any(isinstance(bound, Tensor) and bound.dim() for bound in found):
        return constraint
    ends = zip(found, (-math.inf, math.inf), strict=True)
    lower, upper = (_shared(bound, none, may_vary=may_vary) for bound, none in ends)
    return (constraints.integer_interval if constraint.is_discrete else constraints.interval)(lower, upper)


def _shared(bound: Any, none: float, *, may_vary: bool) -> float:
    """The bound if it is the same for all rows, otherwise ``none``."""
    if not isinstance(bound, Tensor) or bound.dim() == 0:
        return none if bound is None else float(bound)
    bound = bound.reshape(-1)
    return none if may_vary or bool((bound != bound[0]).any()) else float(bound[0])


def bounds(constraint: Constraint) -> tuple[float, float]:
    """The lowest and the highest value, infinite if there is none."""
    if is_boolean(constraint):
        return 0.0, 1.0
    return (
        float(getattr(constraint, "lower_bound", -math.inf)),
        float(getattr(constraint, "upper_bound", math.inf)),
    )


def inner_value(constraint: Constraint) -> float | list[float]:
    """A value inside the set, to put in place of missing entries; a list if columns have their own sets."""
    if isinstance(constraint, constraints.stack):
        return [float(inner_value(column)) for column in constraint.cseq]  # pyright: ignore[reportArgumentType]
    lower, upper = bounds(constraint)
    if math.isfinite(lower) and math.isfinite(upper):
        return lower if constraint.is_discrete else 0.5 * (lower + upper)
    return lower + 1 if math.isfinite(lower) else upper - 1 if math.isfinite(upper) else 0.0


def discrete(constraint: Constraint) -> bool | list[bool]:
    """Whether the set is discrete; a list with one answer for each column if columns have their own sets."""
    if isinstance(constraint, constraints.stack):
        return [bool(discrete(column)) for column in constraint.cseq]
    return constraint.is_discrete


def is_boolean(constraint: Constraint) -> bool:
    """Whether the set is 0 and 1."""
    return isinstance(constraint, type(constraints.boolean))


def is_bounded(constraint: Constraint) -> bool:
    """Whether the set has a finite lower and upper bound."""
    return all(map(math.isfinite, bounds(constraint)))


def _open_ends(constraint: Constraint) -> tuple[bool, bool]:
    """Whether the lower and the upper bound are excluded."""
    return (
        isinstance(constraint, constraints.greater_than),
        isinstance(constraint, (constraints.less_than, constraints.half_open_interval)),
    )


def within(inner: Constraint, outer: Constraint) -> bool:
    """Whether every value of ``inner`` is a value of ``outer``.

    Example:
        >>> within(constraints.boolean, constraints.unit_interval), within(constraints.real, constraints.boolean)
        (True, False)
    """
    if isinstance(outer, constraints.stack):
        return all(within(inner, column) for column in outer.cseq)
    (low, high), (outer_low, outer_high) = bounds(inner), bounds(outer)
    if outer.is_discrete and not inner.is_discrete:
        return False
    (low_open, high_open), (outer_low_open, outer_high_open) = _open_ends(inner), _open_ends(outer)
    above = low > outer_low or (low == outer_low and (low_open or not outer_low_open))
    below = high < outer_high or (high == outer_high and (high_open or not outer_high_open))
    return above and below


def phrase(constraint: Constraint) -> str:
    """The set in words.

    Example:
        >>> phrase(constraints.boolean), phrase(constraints.unit_interval), phrase(constraints.nonnegative_integer)
        ('0 or 1', 'the interval [0, 1]', 'the whole numbers from 0')
    """
    if isinstance(constraint, constraints.stack):
        return "columns with their own ranges: " + "; ".join(phrase(column) for column in constraint.cseq)
    (lower, upper), whole = bounds(constraint), constraint.is_discrete
    if whole and (lower, upper) == (0, 1):
        return "0 or 1"
    kind = "whole numbers" if whole else "real numbers"
    if math.isinf(lower) and math.isinf(upper):
        return f"the {kind}"
    if math.isinf(upper):
        return f"the {kind} {'above' if _open_ends(constraint)[0] else 'from'} {lower:g}"
    if math.isinf(lower):
        return f"the {kind} up to {upper:g}"
    return f"the whole numbers from {lower:g} to {upper:g}" if whole else f"the interval [{lower:g}, {upper:g}]"
