"""Sets of values, in words: which values data have, a transform yields, a likelihood describes.

The sets are ``torch.distributions.constraints``, as everywhere in PyTorch; here is what PyTorch lacks: saying them in
a sentence, and telling whether one fits another.
"""

import math

from torch.distributions import constraints
from torch.distributions.constraints import Constraint

__all__ = ["Constraint", "constraints", "elementwise", "interval", "is_bounded", "phrase", "within"]


def interval(lower: float, upper: float) -> Constraint:
    """The closed interval from ``lower`` to ``upper``."""
    return constraints.interval(float(lower), float(upper))


def elementwise(constraint: Constraint) -> Constraint:
    """The constraint on one element, where ``constraint`` is on an event of many."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint


def _extent(constraint: Constraint) -> tuple[float, float, bool]:
    """Lower bound, upper bound, and whether there are only whole numbers between them."""
    if constraint is constraints.boolean:
        return 0.0, 1.0, True
    lower = float(getattr(constraint, "lower_bound", -math.inf))
    upper = float(getattr(constraint, "upper_bound", math.inf))
    return lower, upper, constraint.is_discrete


def is_bounded(constraint: Constraint) -> bool:
    """Whether the set has a finite lower and upper bound."""
    lower, upper, _ = _extent(constraint)
    return math.isfinite(lower) and math.isfinite(upper)


def within(inner: Constraint, outer: Constraint) -> bool:
    """Whether every value of ``inner`` is a value of ``outer``.

    Example:
        >>> within(constraints.boolean, constraints.unit_interval), within(constraints.real, constraints.boolean)
        (True, False)
    """
    (low, high, discrete), (outer_low, outer_high, outer_discrete) = _extent(inner), _extent(outer)
    return outer_low <= low and high <= outer_high and (discrete or not outer_discrete)


def phrase(constraint: Constraint) -> str:
    """The set as a person would write it.

    Example:
        >>> phrase(constraints.boolean), phrase(constraints.unit_interval), phrase(constraints.nonnegative_integer)
        ('0 or 1', 'the interval [0, 1]', 'the whole numbers from 0')
    """
    lower, upper, discrete = _extent(constraint)
    if (lower, upper, discrete) == (0.0, 1.0, True):
        return "0 or 1"
    kind = "whole numbers" if discrete else "real numbers"
    if math.isinf(lower) and math.isinf(upper):
        return f"the {kind}"
    if math.isinf(upper):
        return f"the {kind} from {lower:g}"
    if math.isinf(lower):
        return f"the {kind} up to {upper:g}"
    return f"the whole numbers from {lower:g} to {upper:g}" if discrete else f"the interval [{lower:g}, {upper:g}]"
