"""Fills missing entries from draws, in the type or the text style of the other entries."""

import re
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.data.tables.columns import Column

__all__ = ["entries_filled", "text_filled", "written"]


def entries_filled(series: pd.Series, drawn: pd.Series) -> pd.Series:
    """A column with its missing entries taken from ``drawn``."""
    gaps = series.isna().to_numpy()
    if not gaps.any():
        return series
    drawn = drawn.set_axis(series.index)
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    filled = series.astype(object).where(~gaps, drawn.astype(object))
    try:
        same = filled.astype(series.dtype)
    except (TypeError, ValueError, OverflowError):  # a level that the rows did not have, a number too large
        return filled.infer_objects()
    return same if not same.isna().any() else filled.infer_objects()


def text_filled(column: Column, series: pd.Series, text: pd.Series, drawn: pd.Series, decimal: str) -> pd.Series:
    """A column of text with its missing entries filled in the style of the others.

    Args:
        column: Its description.
        series: Its entries.
        text: Its entries as text.
        drawn: The draws that fill missing entries.
        decimal: The decimal mark.
    """
    gaps = series.isna().to_numpy()
    if not gaps.any():
        return text
    cells = text.tolist()
    if column.is_number:
        places = None if column.whole or column.kind == "date" else _decimals(text[~gaps].tolist(), decimal)
        new = [written(value, decimal, places) for value in drawn[gaps]]
    else:
        known = dict(zip(series[~gaps], text[~gaps], strict=True))  # as the file writes true, or 1
        new = [known.get(value, written(value, decimal)) for value in drawn[gaps]]
    for row, cell in zip(np.flatnonzero(gaps), new, strict=True):
        cells[row] = cell
    return pd.Series(cells, index=text.index, dtype=text.dtype)


def _decimals(cells: list[str], decimal: str) -> int | None:
    """The largest number of decimals in a column's numbers; None if some have an exponent."""
    if any("e" in cell.lower() for cell in cells):
        return None
    tails = [re.sub(r"[^0-9]", "", cell.rpartition(decimal)[2]) if decimal in cell else "" for cell in cells]
    return max(map(len, tails), default=None)


def written(value: Any, decimal: str, places: int | None = None) -> str:
    """One entry as text; empty if it is missing.

    Example:
        >>> written(1.5, ","), written(3.0, "."), written(2.345678, ".", 2), written(True, ".")
        ('1,5', '3.0', '2.35', 'True')
    """
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, (float, np.floating)):
        text = repr(float(value))
        if places is not None and float(f"{value:.{places}f}") != 0:
            text = f"{value:.{places}f}"
        return text.replace(".", decimal)
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    return str(value)
