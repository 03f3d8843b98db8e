"""Converts the entries of one column to numbers, and back."""

from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import infer_dtype
from torch import Tensor

from pyro_vae._support.ranges import phrase
from pyro_vae.data.tables import dates
from pyro_vae.data.tables.columns import NUMBERS, Column, type_named
from pyro_vae.data.tables.names import advice, listing, shortened

__all__ = ["check_kind", "check_numbers", "decode", "dense", "encode", "holding", "numbers", "plain"]

# Supported results of pandas.api.types.infer_dtype. Everything else is refused.
_HOLDINGS = {
    "boolean": "truth",
    "integer": "integer",
    "floating": "float",
    "mixed-integer-float": "float",
    "decimal": "float",
    "string": "text",
    "categorical": "categorical",
    "empty": "empty",
    "date": "date",
    "datetime": "date",
    "datetime64": "date",
}
_EXACT = 2**53  # float64 tells whole numbers apart up to here


def holding(series: pd.Series) -> str:
    """The type of the entries, as a value of ``_HOLDINGS``.

    Raises:
        ValueError: if the type is not supported.
    """
    found = infer_dtype(series, skipna=True)
    within = infer_dtype(series.cat.categories, skipna=True) if found == "categorical" else found
    as_levels = " as levels" if found == "categorical" else ""
    if within not in _HOLDINGS or (as_levels and _HOLDINGS[within] == "date"):
        raise ValueError(
            f"column {series.name!r} holds {within} values{as_levels}; expected numbers, text, dates, or true and "
            f"false: convert it, or {advice(str(series.name), 'index', 'drop')}"
        )
    return _HOLDINGS[found]


def dense(series: pd.Series) -> pd.Series:
    """The column without pandas' sparse storage."""
    return series.sparse.to_dense() if isinstance(series.dtype, pd.SparseDtype) else series


def plain(value: Any) -> Any:
    """A Python value for one of NumPy's."""
    return value.item() if isinstance(value, np.generic) else value


# --- to numbers


def encode(column: Column, series: pd.Series) -> np.ndarray:
    """Entries as float64, NaN where they are missing.

    Raises:
        ValueError: if they are not of the column's kind, or are unknown levels.
    """
    series = dense(series)
    if column.kind == "date":
        return _encode_dates(column, series)
    if not column.is_number:
        return _encode_levels(column, series)
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    found = _HOLDINGS.get(infer_dtype(series, skipna=True))
    if found not in ("integer", "float", "empty"):
        row = _first_not_a_number(series)
        raise ValueError(
            f"column {column.name!r} has {shortened(plain(series.iloc[row]))} in row {row}, {_takes(column)}"
        )
    values = numbers(series)
    check_kind(column, values)
    return values


def check_kind(column: Column, values: np.ndarray) -> None:
    """Refuses numbers that are not of the column's kind."""
    check_numbers(column, torch.from_numpy(values), values, _takes(column))


def _takes(column: Column) -> str:
    return f"but kind {column.kind} takes {phrase(NUMBERS[column.kind])}: fix such entries or leave them empty"


def numbers(series: pd.Series) -> np.ndarray:
    """Numbers as float64.

    Raises:
        ValueError: if whole numbers among them are beyond 2⁵³.
    """
    try:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
        large = np.abs(values) >= _EXACT
        beyond = large.any() and any(abs(int(entry)) > _EXACT for entry in series[large] if not _is_float(entry))
    except OverflowError:
        values, beyond = np.zeros(0), True
    if beyond:
        entry = next(e for e in series.dropna() if not _is_float(e) and abs(int(e)) > _EXACT)
        raise ValueError(
            f"column {series.name!r} has {shortened(plain(entry))}, but whole numbers beyond 2^53 = {_EXACT} lose "
            f"their last digits as floating-point numbers: rescale it, or {advice(str(series.name), 'index', 'drop')}"
        )
    return values if values.flags.writeable else values.copy()


def _is_float(entry: Any) -> bool:
    return isinstance(entry, (float, np.floating))


def _first_not_a_number(series: pd.Series) -> int:
    """The row of the first entry that cannot be converted to a number, or else of the first non-number."""

    def reads(entry: Any) -> bool:
        try:
            return float(entry) is not None
        except (TypeError, ValueError, OverflowError):
            return False

    present = series.notna().to_numpy()
    entries = series.tolist()
    unreadable = present & np.array([not reads(entry) for entry in entries])
    other = present & np.array([isinstance(e, bool) or not isinstance(e, (int, float, np.number)) for e in entries])
    return next(int(rows.argmax()) for rows in (unreadable, other, present) if rows.any())


def check_numbers(column: Column, x: Tensor, values: np.ndarray, complaint: str) -> None:
    """Refuses ``x`` if it has numbers that the column cannot have; the message quotes ``values``."""
    fits = torch.isnan(x) | (torch.isfinite(x) & NUMBERS[column.kind].check(x))
    if not bool(fits.all()):
        row = int(fits.int().argmin())
        others = int((~fits).sum()) - 1
        more = f" and {others} more such entr{'y' if others == 1 else 'ies'}" if others else ""
        raise ValueError(f"column {column.name!r} has {values[row]:.12g} in row {row}{more}, {complaint}")


def _encode_levels(column: Column, series: pd.Series) -> np.ndarray:
    holding(series)
    indices = {level: float(index) for index, level in enumerate(column.categories)}
    codes, found = pd.factorize(series)
    found = [plain(level) for level in found]
    unknown = [level for level in found if level not in indices]
    if unknown:
        are = "which is" if len(unknown) == 1 else "which are"
        raise ValueError(
            f"column {column.name!r} has {listing(unknown, 'such levels')}, {are} not among its levels in training: "
            f"{listing(column.categories, 'levels')}"
        )
    return np.array([*(indices[level] for level in found), np.nan])[codes]  # a missing entry has code -1


def _encode_dates(column: Column, series: pd.Series) -> np.ndarray:
    present = series.notna().to_numpy()
    form = column.format
    found = _HOLDINGS.get(infer_dtype(series, skipna=True))
    if found not in ("empty", "date" if form is None else "text"):
        row = int(present.argmax())
        written = "dates" if form is None else f"dates written as {form}"
        raise ValueError(
            f"column {column.name!r} has {shortened(plain(series.iloc[row]))} in row {row}, expected {written}"
        )
    values = dates.instants(series, form)
    unread = present & np.isnat(values)
    if not unread.any() and form is not None and dates.write(values[present], form) != series[present].tolist():
        unread = present & np.array([a != b for a, b in zip(dates.write(values, form), series.tolist(), strict=True)])
    if unread.any():
        row = int(unread.argmax())
        raise ValueError(
            f"column {column.name!r} has {shortened(plain(series.iloc[row]))} in row {row}, which is not a date "
            f"written as {form}: fix such entries or leave them empty"
        )
    counted = dates.days(values, column.origin or "")
    back = dates.from_days(column, counted)
    wrong = present & (back != values)
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"column {column.name!r} has {plain(series.iloc[row])!s} in row {row}, which a number of days since "
            f"{column.origin} in units of one {column.unit} cannot represent exactly: round it"
        )
    return counted


# --- from numbers


def decode(column: Column, values: np.ndarray, *, rounding: bool = True) -> Any:
    """Numbers as entries in the column's own type; NaN becomes missing.

    Raises:
        ValueError: if they are out of range for the column's type.
    """
    if column.kind == "date":
        return dates.as_column(column, dates.from_days(column, values))
    return _decode_numbers(column, values, rounding=rounding) if column.is_number else _decode_levels(column, values)


def _decode_levels(column: Column, values: np.ndarray) -> Any:
    levels, missing = column.levels, np.isnan(values)
    codes = np.where(missing, -1, np.clip(np.rint(values), 0, len(levels) - 1)).astype(np.int64)
    if column.ordered is not None:
        categories = pd.Index(levels, dtype=levels.dtype)
        return pd.Categorical.from_codes(codes, categories, ordered=column.ordered)
    if missing.any():
        levels = levels.astype(_with_room(levels.dtype))
    return pd.Series(levels.array.take(codes, allow_fill=bool(missing.any())), dtype=levels.dtype)


def _decode_numbers(column: Column, values: np.ndarray, *, rounding: bool) -> Any:
    dtype = type_named(column.dtype)
    if column.whole and rounding:
        whole = np.rint(values)
        whole[(whole == 0) & (values != 0)] = 1.0 if column.kind == "positive" else 0.0  # no minus zero
        values = whole
    if dtype.kind in "iu":
        if not rounding:
            return values
        dtype = _integer_type(column, values)
    return values.astype(dtype) if isinstance(dtype, np.dtype) else pd.Series(values).astype(dtype).array


def _integer_type(column: Column, values: np.ndarray) -> Any:
    """The column's type, or a wider one, that can hold these whole numbers."""
    present = values[~np.isnan(values)]
    low, high = present.min(initial=0), present.max(initial=0)
    for dtype in (type_named(column.dtype), np.dtype(np.int64)):
        limits = np.iinfo(getattr(dtype, "numpy_dtype", dtype))
        if low >= limits.min and high < limits.max + 1:
            return dtype if len(present) == len(values) else type_named(_with_room(dtype))
    raise ValueError(f"column {column.name!r} cannot have whole numbers from {low:g} to {high:g}: they exceed 64 bits")


def _with_room(dtype: Any) -> Any:
    """The nullable type of the same values."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biu":
        return dtype
    return "boolean" if dtype.kind == "b" else dtype.newbyteorder("=").name.replace("int", "Int").replace("u", "U")
