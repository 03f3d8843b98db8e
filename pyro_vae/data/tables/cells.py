"""Converts cells of text to entries: missing ones, numbers with their separators, true and false."""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.data.tables.names import listing

__all__ = ["MISSING", "find_decimal", "is_number", "typed"]

# Cells that are missing entries, as in pandas.
MISSING = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null"]
)  # fmt: skip
_TRUTHS = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}
_WHOLE = re.compile(r"[+-]?[0-9]+")


@functools.cache
def _patterns(decimal: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Numbers without and with separators of thousands."""
    point, other = re.escape(decimal), "." if decimal == "," else ","
    plain = rf"[+-]?(?:(?:[0-9]+(?:{point}[0-9]*)?|{point}[0-9]+)(?:[eE][+-]?[0-9]+)?|[iI]nf(?:inity)?)"
    grouped = rf"[+-]?[1-9][0-9]{{0,2}}(?:([{other}'’ \u00a0\u202f])[0-9]{{3}})(?:\1[0-9]{{3}})*(?:{point}[0-9]*)?"
    return re.compile(plain), re.compile(grouped)


def _number(cell: str, decimal: str) -> str | None:
    """A number as Python writes it, or None."""
    plain, grouped = _patterns(decimal)
    if plain.fullmatch(cell):
        return cell.replace(decimal, ".")
    match = grouped.fullmatch(cell)
    return match and cell.replace(match[1], "").replace(decimal, ".")


def is_number(cell: str, decimal: str) -> bool:
    """Whether a cell is a number."""
    return _number(cell.strip(), decimal) is not None


def typed(name: str, cells: Sequence[str], decimal: str) -> tuple[pd.Series, list[tuple[str, str]]]:
    """A column of cells as numbers, as true and false, or as text; with notes by topic."""
    stripped = [cell.strip() for cell in cells]
    present = [cell for cell in stripped if cell not in MISSING]
    notes = []
    values = _as_numbers(present, decimal)
    if values is not None:
        grouped = next((cell for cell in present if not _patterns(decimal)[0].fullmatch(cell)), None)
        if grouped:
            value = f"{float(_number(grouped, decimal) or 'nan'):.15g}"
            notes.append(("thousands", f"column {name!r} has thousands separators: {grouped!r} is read as {value}"))
        return _with_gaps(values, stripped), notes
    if present and all(cell in _TRUTHS for cell in present):
        return _with_gaps(np.array([_TRUTHS[cell] for cell in present]), stripped), notes
    words = sorted({cell for cell in stripped if cell and cell in MISSING})
    if words and present:
        number = sum(map(bool, stripped)) - len(present)
        found = f"{listing(words, 'words')} in {number} entries"
        said = f"column {name!r} has {found}: treated as missing; if it is a level, rename it"
        notes.append(("missing", said))
    return pd.Series(
        [None if text in MISSING else cell for text, cell in zip(stripped, cells, strict=True)], dtype=_TEXT
    ), notes


_TEXT: Any = pd.Series(["text"]).dtype  # pandas' default: objects before version 3


def _as_numbers(cells: Sequence[str], decimal: str) -> np.ndarray | None:
    """Numbers exactly as written, in the first of int64, uint64 and float64 that fits; None if some are not numbers."""
    read = [_number(cell, decimal) for cell in cells]
    if not read or None in read:
        return np.full(0, np.nan) if not read else None
    known: list[str] = [cell for cell in read if cell is not None]
    if not all(map(_WHOLE.fullmatch, known)):
        values = np.array([float(cell) for cell in known])
        finite = all(
            math.isfinite(value) or "n" in cell.lower() for value, cell in zip(values.tolist(), known, strict=True)
        )
        return values if finite else None
    if any(cell.lstrip("+-")[0] == "0" and len(cell.lstrip("+-")) > 1 for cell in known):
        return None  # codes, such as postcodes, whose leading zeros a number would lose
    if any(len(cell) > 20 for cell in known):
        return None
    whole = [int(cell) for cell in known]
    for dtype in (np.int64, np.uint64):
        if np.iinfo(dtype).min <= min(whole) and max(whole) <= np.iinfo(dtype).max:
            return np.array(whole, dtype=dtype)
    return None


def _with_gaps(values: np.ndarray, cells: Sequence[str]) -> pd.Series:
    if len(values) == len(cells):
        return pd.Series(values)
    seen = np.array([cell not in MISSING for cell in cells], dtype=bool)
    if values.dtype.kind == "f":
        spread = np.full(len(cells), np.nan)
        spread[seen] = values
        return pd.Series(spread)
    spread = np.zeros(len(cells), dtype=values.dtype)
    spread[seen] = values
    whole = pd.arrays.BooleanArray if values.dtype.kind == "b" else pd.arrays.IntegerArray
    return pd.Series(whole(spread, ~seen))


# --- the decimal mark

_THOUSANDS = {  # numbers that show which mark separates thousands, by the other one
    ".": re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3}){2,}|[+-]?[0-9]{1,3}(?:,[0-9]{3})+\.[0-9]*"),
    ",": re.compile(r"[+-]?[0-9]{1,3}(?:\.[0-9]{3}){2,}|[+-]?[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]*"),
}
_UNCLEAR = re.compile(r"[+-]?[1-9][0-9]{0,2}([.,])[0-9]{3}")
_ONE_MARK = re.compile(r"[+-]?[0-9]*([.,])[0-9]*(?:[eE][+-]?[0-9]+)?")


def _reading(cell: str) -> str:
    """``.`` or ``,`` if a number shows its decimal mark, ``?.`` or ``?,`` if it is ambiguous, otherwise empty."""
    for decimal, pattern in _THOUSANDS.items():
        if pattern.fullmatch(cell):
            return decimal
    match = _UNCLEAR.fullmatch(cell)
    if match:
        return f"?{match[1]}"
    match = _ONE_MARK.fullmatch(cell)
    return match[1] if match and any(map(str.isdigit, cell)) else ""


def find_decimal(columns: Mapping[str, Sequence[str]], separator: str) -> tuple[str, list[str]]:
    """The decimal mark of a table's numbers, and a note if it is a comma.

    Raises:
        ValueError: if some columns show a point and others a comma, or all numbers are ambiguous.
    """
    shown: dict[str, dict[str, str]] = {}  # reading -> column -> a number in it
    if separator == "," and not any("," in cell for cells in columns.values() for cell in cells):
        return ".", []
    for name, cells in columns.items():
        joined = "".join(cells)
        if "," not in joined and "." not in joined:
            continue
        present = [cell for cell in map(str.strip, cells) if cell not in MISSING]
        readings = {cell: _reading(cell) for cell in dict.fromkeys(present)}
        if sum(bool(readings[cell]) or bool(_WHOLE.fullmatch(cell)) for cell in present) <= len(present) / 2:
            continue
        for cell, reading in readings.items():
            if reading:
                shown.setdefault(reading, {}).setdefault(name, cell)

    def such(reading: str) -> str:
        return ", ".join(f"{cell!r} in column {name!r}" for name, cell in list(shown[reading].items())[:5])

    if "," in shown and "." in shown:
        raise ValueError(
            f"some numbers have decimal commas ({such(',')}) and others decimal points ({such('.')}): write all in "
            f"one way, or give decimal , or ."
        )
    if "," in shown:
        return ",", [f"numbers have decimal commas, such as {such(',')}; with decimal . they would be text"]
    if "." in shown or not shown or (separator == "," and "?," not in shown):
        return ".", []
    unclear = next(reading for reading in ("?,", "?.") if reading in shown)
    cell = next(iter(shown[unclear].values()))
    readings = cell.replace(unclear[1], ""), cell.replace(unclear[1], ".")
    raise ValueError(
        f"numbers such as {such(unclear)} may be {readings[0]} or {readings[1]}: give decimal . or , to say which is "
        f"the decimal mark"
    )
