"""The description of one column of a table."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import pandas_dtype

from pyro_vae._support.names import lookup
from pyro_vae._support.ranges import Constraint, constraints
from pyro_vae.data.tables.names import KINDS, listing

__all__ = ["KINDS", "NUMBERS", "Column", "type_name", "type_named"]

# The kinds whose entries are numbers, with their ranges; entries of other kinds are levels.
NUMBERS: Mapping[str, Constraint] = {
    "count": constraints.nonnegative_integer,
    "positive": constraints.positive,
    "real": constraints.real,
    "date": constraints.real,  # days since the first
}


def type_name(dtype: Any) -> str:
    """The name of a pandas type, for :func:`type_named`."""
    if isinstance(dtype, pd.StringDtype) and dtype.na_value is pd.NA:
        return f"string[{dtype.storage}]"
    if isinstance(dtype, pd.ArrowDtype) and str(dtype) == "string[pyarrow]":  # to pandas, that names the type above
        return "arrow string"
    return str(dtype)


@functools.lru_cache(maxsize=256)
def type_named(name: str) -> Any:
    """The pandas type of that name."""
    if name == "arrow string":
        import pyarrow

        return pd.ArrowDtype(pyarrow.string())
    return pandas_dtype(name)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its name.
        kind: One of :data:`KINDS`. ``binary`` and ``category`` entries are levels, ``count`` entries whole numbers from
            0, ``positive`` entries numbers above 0, ``real`` entries any numbers, ``date`` entries dates or times.
        categories: The levels of a binary or category column, in their order: numbers, text or true and false.
        dtype: Name of the pandas type of its entries.
        ordered: Whether the levels of a pandas categorical have an order; None if it is not a pandas categorical.
        low: Lowest number in the table it was inferred from; None if unknown, and for levels. Dates are counted in days
            from ``origin``.
        high: Highest number, likewise.
        num_missing: Number of missing entries in that table.
        whole: Whether all its numbers are whole, and draws are rounded.
        origin: The earliest date, in ISO format; None for other kinds.
        unit: The unit of dates: ``D``, ``s``, ``ms``, ``us`` or ``ns``.
        format: The format of dates that are text, in the codes of ``strftime``; None if they are not text.

    Raises:
        ValueError: if these do not describe a column.

    Example:
        >>> Column("smoker", "binary", ("no", "yes"), "object").levels.tolist()
        ['no', 'yes']
    """

    name: str
    kind: str
    categories: tuple[Any, ...] = ()
    dtype: str = "float64"
    ordered: bool | None = None
    low: float | None = None
    high: float | None = None
    num_missing: int = 0
    whole: bool = False
    origin: str | None = None
    unit: str | None = None
    format: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"column names must be text, found {self.name!r}: rename the column")
        lookup(self.kind, KINDS, "kind")
        _check_categories(self)
        for value in (self.low or 0, self.high or 0, self.num_missing):
            if not isinstance(value, (int, float)):
                raise ValueError(f"column {self.name!r} has {value!r} where a number belongs")
        if self.ordered not in (None, True, False):
            raise ValueError(f"column {self.name!r} has {self.ordered!r} for ordered; expected true, false or nothing")
        if not _fits_its_type(self):
            raise ValueError(f"column {self.name!r} of kind {self.kind} cannot have the type {self.dtype!r}")
        # Counts and integers are always whole; descriptions from before ``whole`` existed lack it.
        is_whole = self.kind == "count" or (self.kind in ("positive", "real") and type_named(self.dtype).kind in "iu")
        object.__setattr__(self, "whole", bool(self.whole) or is_whole)
        if self.kind == "date":
            _check_date(self)

    @property
    def is_number(self) -> bool:
        """Whether the entries are numbers or dates rather than levels."""
        return self.kind in NUMBERS

    @property
    def levels(self) -> pd.Series:
        """The categories in the column's own type."""
        return pd.Series(list(self.categories), dtype=type_named(self.dtype))

    @property
    def extent(self) -> str:
        """The levels, or the lowest and the highest entry, in words."""
        if not self.is_number:
            return listing(self.categories, "levels")
        if self.low is None or self.high is None:
            return ""
        if self.kind != "date":
            return f"{self.low:g} to {self.high:g}"
        ends = (pd.Timestamp(self.origin) + pd.Timedelta(days=days) for days in (self.low, self.high))
        return " to ".join(str(end.date()) for end in ends)


def _fits_its_type(column: Column) -> bool:
    kinds = {"date": "MOU"}.get(column.kind, "iuf" if column.is_number else "biufOU")
    try:
        if type_named(column.dtype).kind not in kinds:
            return False
        return column.is_number or column.levels.tolist() == list(column.categories)
    except (ImportError, TypeError, ValueError, OverflowError):
        return False


def _check_date(column: Column) -> None:
    try:
        np.dtype(f"datetime64[{column.unit}]")
        fits = bool(column.origin) and not pd.isna(pd.Timestamp(column.origin))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"column {column.name!r} of kind date has no first date, or no unit, to count from")


def _check_categories(column: Column) -> None:
    name, levels = column.name, column.categories
    for level in levels:
        if not isinstance(level, (bool, int, float, str)) or (isinstance(level, float) and not math.isfinite(level)):
            raise ValueError(f"column {name!r} has the level {level!r}; levels are numbers, text, or true and false")
    if len(set(levels)) < len(levels):
        raise ValueError(f"column {name!r} has one of its levels twice: {listing(levels, 'levels')}")
    rules = {"binary": ("two", len(levels) == 2), "category": ("one or more", len(levels) > 0)}
    takes, fits = rules.get(column.kind, ("no", not levels))
    if not fits:
        raise ValueError(f"kind {column.kind} takes {takes} distinct levels, but column {name!r} has {len(levels)}")
