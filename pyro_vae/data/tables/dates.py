"""Converts dates to days since the earliest one, and to and from text."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.data.tables.columns import Column, type_named

__all__ = [
    "as_column",
    "as_days",
    "days",
    "finest_unit",
    "formats",
    "from_days",
    "instants",
    "is_day_first",
    "look_like_dates",
    "read_one",
    "write",
]

_PER_DAY = {"D": 1, "s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000}

_DATE = re.compile(
    r"(?:(?P<ymd>\d{4}([-/.])\d{1,2}\2\d{1,2})|(?P<last>\d{1,2}([-/.])\d{1,2}\4\d{4}))"
    r"(?:(?P<between>[T ])\d{2}:\d{2}(?P<seconds>:\d{2})?(?P<fraction>\.\d{3}(?:\d{3})?)?)?"
    r"(?P<zone>Z|[+-]\d{2}:?\d{2})?",
    re.ASCII,
)


# --- as text


def look_like_dates(texts: Sequence[str]) -> np.ndarray:
    """Which of the texts have the shape of a date, with or without a time."""
    return np.array([_DATE.fullmatch(text) is not None for text in texts], dtype=bool)


def formats(texts: Sequence[str]) -> list[str]:
    """The formats, in the codes of ``strftime``, that read all texts and reproduce them exactly.

    There are two if the order of day and month is ambiguous. ``%-d`` is a day without a leading zero, ``%3f`` a
    fraction of three digits.

    Example:
        >>> formats(["2024-05-31", "1999-01-02"]), formats(["3.4.2020", "31.12.2020"]), formats(["3 April"])
        (['%Y-%m-%d'], ['%-d.%-m.%Y'], [])
        >>> formats(["03/04/2020", "05/06/2020"])
        ['%d/%m/%Y', '%m/%d/%Y']
    """
    match = _DATE.fullmatch(texts[0])
    if match is None or not look_like_dates(texts).all():
        return []
    found = [f"{date}{_time(match)}" for date in _date_formats(match)]
    fitting = [each for each in found if _reproduces(each, texts)]
    # The same order with and without leading zeros is one format if no entry distinguishes the two.
    return [each for each in fitting if each.replace("%-", "%") not in fitting or "%-" not in each]


def _date_formats(match: re.Match[str]) -> list[str]:
    separator = match[2] or match[4]
    orders = ["Y{m}{d}"] if match["ymd"] else ["{d}{m}Y"] if separator == "." else ["{d}{m}Y", "{m}{d}Y"]
    codes = {
        "Y{m}{d}": ("%Y", "%{0}m", "%{0}d"),
        "{d}{m}Y": ("%{0}d", "%{0}m", "%Y"),
        "{m}{d}Y": ("%{0}m", "%{0}d", "%Y"),
    }
    return [separator.join(codes[order]).format(pad) for order, pad in itertools.product(orders, ("", "-"))]


def _time(match: re.Match[str]) -> str:
    clock = ""
    if match["between"]:
        fraction = {None: "", 4: ".%3f", 7: ".%f"}[match["fraction"] and len(match["fraction"])]
        clock = f"{match['between']}%H:%M{':%S' if match['seconds'] else ''}{fraction}"
    return clock + (match["zone"] or "")


def _reproduces(form: str, texts: Sequence[str]) -> bool:
    read = _read(texts, form)
    return not bool(np.isnat(read).any()) and write(read, form) == list(texts)


def _read(texts: Sequence[Any], form: str) -> np.ndarray:
    known = form.replace("%-", "%").replace("%3f", "%f")
    read = pd.to_datetime(pd.Series(list(texts), dtype=object), format=known, errors="coerce")
    return read.to_numpy().astype("datetime64[us]")


def write(values: np.ndarray, form: str) -> list[str | None]:
    """Dates as text, None for missing ones."""
    index = pd.DatetimeIndex(values)
    template = form
    for code, field in (
        ("%Y", "{0:04d}"), ("%m", "{1:02d}"), ("%-m", "{1}"), ("%d", "{2:02d}"), ("%-d", "{2}"), ("%H", "{3:02d}"),
        ("%M", "{4:02d}"), ("%S", "{5:02d}"), ("%f", "{6:06d}"), ("%3f", "{7:03d}"),
    ):  # fmt: skip
        template = template.replace(code, field)
    index_fields = (index.year, index.month, index.day, index.hour, index.minute, index.second, index.microsecond)
    fields = [np.nan_to_num(np.asarray(field, dtype=np.float64)).astype(np.int64) for field in index_fields]
    fields.append(fields[-1] // 1000)
    written = [template.format(*parts) for parts in zip(*(field.tolist() for field in fields), strict=True)]
    return [None if gone else text for gone, text in zip(index.isna().tolist(), written, strict=True)]


def read_one(text: str, form: str) -> str:
    """A text read as a date, in ISO format."""
    return str(_read([text], form)[0].astype("datetime64[D]"))


def is_day_first(form: str) -> bool:
    """Whether the day comes before the month."""
    return form.replace("%-", "%").find("%d") < form.replace("%-", "%").find("%m")


# --- as days


def instants(series: pd.Series, form: str | None) -> np.ndarray:
    """The entries as NumPy dates, in UTC if they have a zone, NaT where they are missing or cannot be read."""
    if form is not None:
        present = series.notna().to_numpy()
        read = np.full(len(series), np.datetime64("NaT"), dtype="datetime64[us]")
        read[present] = _read(series[present].tolist(), form)
        return read
    if isinstance(series.dtype, pd.ArrowDtype):
        series = pd.Series(
            series.to_numpy(dtype="datetime64[us]" if "day" in str(series.dtype) else None, na_value=pd.NaT)
        )
    times = pd.to_datetime(series, errors="coerce", utc=getattr(series.dtype, "tz", None) is not None)
    return pd.DatetimeIndex(times).tz_localize(None).to_numpy()


def as_days(*columns: pd.Series) -> list[np.ndarray] | None:
    """Columns of dates, stored as dates or as text in one format, in days since 1970; None for other columns.

    Example:
        >>> as_days(pd.Series(["1970-01-02", "1970-02-01"]))
        [array([ 1., 31.])]
        >>> as_days(pd.Series(["1970-01-02", "soon"]))
    """
    first = columns[0]
    holding = pd.api.types.infer_dtype(first, skipna=True)
    texts = [str(text) for text in first.dropna().unique()] if holding == "string" else []
    form = next(iter(formats(texts)), None) if texts else None
    if form is None and holding not in ("date", "datetime", "datetime64"):
        return None
    counted = [days(instants(column, form), "1970-01-01") for column in columns]
    return [each[~np.isnan(each)] for each in counted]


def finest_unit(values: np.ndarray) -> str:
    """The coarsest unit that all dates are whole multiples of."""
    present = values[~np.isnat(values)]
    for unit in ("D", "s", "ms", "us"):
        if bool((present.astype(f"datetime64[{unit}]") == present).all()):
            return unit
    return "ns"


def days(values: np.ndarray, origin: str) -> np.ndarray:
    """Days since ``origin``, NaN for NaT."""
    unit = np.datetime_data(values.dtype)[0]
    since = values - np.datetime64(origin).astype(values.dtype)
    return np.where(np.isnat(values), np.nan, since.astype(np.int64) / _PER_DAY[unit])


def from_days(column: Column, values: np.ndarray) -> np.ndarray:
    """The dates, rounded to the column's unit, from numbers of days after its first.

    Raises:
        ValueError: if there is no such date in the years from 1 to 9999.
    """
    unit = column.unit or "ns"
    first = np.datetime64(column.origin).astype(f"datetime64[{unit}]")
    missing = np.isnan(values)
    years = values / 365.2425 + 1970 + first.astype("datetime64[D]").astype(np.int64) / 365.2425
    if not bool((missing | ((years > 1) & (years < 9999))).all()):
        worst = values[~missing][np.abs(values[~missing]).argmax()]
        raise ValueError(f"column {column.name!r} cannot have a date {worst:.6g} days after {column.origin}")
    steps = np.rint(np.where(missing, 0, values) * _PER_DAY[unit]).astype(np.int64)
    return np.where(missing, np.datetime64("NaT"), first + steps)


def as_column(column: Column, values: np.ndarray) -> Any:
    """Dates in the column's own type."""
    if column.format is not None:
        dtype = type_named(column.dtype)
        return pd.Series(write(values, column.format), dtype=dtype)
    kept = values.astype("datetime64[us]" if column.unit in ("D", "s") else f"datetime64[{column.unit}]")
    index = pd.DatetimeIndex(kept)
    dtype = type_named(column.dtype)
    if isinstance(dtype, np.dtype) and dtype.kind == "O":
        return np.array([None if pd.isna(day) else day.date() for day in index], dtype=object)
    zone = getattr(dtype, "tz", None)
    if zone is not None:
        index = index.tz_localize("UTC").tz_convert(zone)
    return pd.Series(index).astype(dtype).array
