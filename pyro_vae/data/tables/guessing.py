"""Infers the kind of a column from its entries. Guesses are noted, and ambiguous columns are refused."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pyro_vae.data.tables import dates, entries
from pyro_vae.data.tables.columns import NUMBERS, Column, type_name
from pyro_vae.data.tables.names import advice, quoted, shortened

__all__ = ["Guess", "guess", "is_row_number"]

_MAX_LEVELS = 50  # text with more is not a category
_FEW_LEVELS = 10  # up to so many distinct whole numbers might be levels
_MIN_ROWS = 10  # rows from which whole numbers that never repeat can look like identifiers
_LARGE = 10**8  # whole numbers that never repeat look like identifiers from here on
_WHOLE_UNTIL = 2.0**53

_ID_NAME = re.compile(
    r"(?:(?:^|[\W_])(?:id|ids|uuid|guid|mrn|ssn|identifier)$)|(?:^(?:id|uuid|guid)[\W_])|(?:[a-z](?:ID|Id|UUID|Uuid)$)",
    re.ASCII,
)
_ROW_NUMBERS = re.compile(r"|Unnamed: 0(?:\.\d+)?|index|__index_level_0__")
_WORDS_FOR_MISSING = {
    "-",
    "--",
    ".",
    "..",
    "?",
    "n.a.",
    "n.a",
    "n/a",
    "na",
    "missing",
    "unknown",
    "none",
    "nan",
    "null",
    "k.a.",
}
_SURVEY_CODES = (-1.0, -7.0, -8.0, -9.0, -88.0, -99.0, -999.0, -9999.0, 99.0, 999.0, 9999.0, 99999.0)


@dataclass(frozen=True)
class Guess:
    """A column, and sentences on what was guessed about it, by topic."""

    column: Column
    notes: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Numbers:
    """The distinct numbers of a column, their counts, and the number of rows, including missing entries."""

    values: np.ndarray
    counts: np.ndarray
    num_rows: int

    @property
    def num_present(self) -> int:
        return int(self.counts.sum())

    @property
    def never_repeat(self) -> bool:
        return len(self.values) == self.num_present

    @property
    def are_whole(self) -> bool:
        v = self.values
        return bool((np.abs(v) <= _WHOLE_UNTIL).all() and (v == np.rint(v)).all())


def is_row_number(series: pd.Series) -> bool:
    """Whether a column is the row number that pandas writes with a table."""
    if not _ROW_NUMBERS.fullmatch(str(series.name)) or series.dtype.kind not in "iu" or series.isna().any():
        return False
    steps = series.to_numpy(dtype=np.int64) - np.arange(len(series))
    return bool((steps == steps[0]).all()) and int(steps[0]) in (0, 1)


def guess(series: pd.Series, kind: str | None) -> Guess:
    """Infers a column's description.

    Args:
        series: The column, with its name.
        kind: The kind given by the user, or None.

    Raises:
        ValueError: with one clause, if the column is ambiguous or does not fit ``kind``.
    """
    series = entries.dense(series)
    found, num_missing = entries.holding(series), int(series.isna().to_numpy().sum())
    name: Any = series.name
    if num_missing == len(series):
        raise ValueError(f"column {name!r} has no entries: drop it ({advice(name, 'drop')})")
    if kind is not None and kind.startswith("date"):
        return _dates(series, found, kind, num_missing)
    if found == "date":
        raise ValueError(f"column {name!r} holds dates or times: {advice(name, 'date', 'index', 'drop')}")
    if kind is None and found == "text":
        _check_text(series)
    if kind in NUMBERS and found == "categorical":
        series = series.astype(object)
        found = entries.holding(series)
    if found in ("integer", "float"):
        return _of_numbers(series, found, kind, num_missing)
    if kind in NUMBERS:
        entries.encode(Column(name, kind or "real"), series)  # raises for entries that do not fit
    num_levels = len(series.cat.categories) if found == "categorical" else 2 if found == "truth" else series.nunique()
    return _levels(series, found, kind or ("binary" if num_levels == 2 else "category"), num_missing)


# --- levels


def _levels(series: pd.Series, found: str, kind: str, num_missing: int) -> Guess:
    name: Any = series.name
    if found == "categorical":
        index = series.cat.categories
        levels, dtype, ordered = tuple(map(entries.plain, index)), type_name(index.dtype), bool(series.cat.ordered)
    else:
        seen = (False, True) if found == "truth" else sorted(set(map(entries.plain, series.dropna().tolist())))
        levels, dtype, ordered = tuple(seen), type_name(series.dtype), None
    column = Column(name, kind, levels, dtype, ordered, num_missing=num_missing)
    num_present = len(series) - num_missing
    if kind == "category" and len(levels) == num_present > _MIN_ROWS:
        ways = advice(name, "index", "drop")
        sentence = f"column {name!r} has a different level in every row, so nothing can be learned from it: {ways}"
        return Guess(column, (("distinct", sentence),))
    return Guess(column)


def _check_text(series: pd.Series) -> None:
    """Refuses text that is dates, numbers mixed with words, an identifier, or prose."""
    name: Any = series.name
    counted = Counter(series.dropna().tolist()).most_common()
    texts, counts = [text for text, _ in counted], np.array([count for _, count in counted])
    num_present = int(counts.sum())
    as_dates = dates.formats(texts)
    if as_dates:
        raise ValueError(f"column {name!r} holds dates such as {texts[0]!r}: {_date_advice(name, as_dates, texts)}")
    numbers = np.array([_is_number(text) for text in texts])
    for fits, kind in ((numbers, "numbers"), (dates.look_like_dates(texts), "dates")):
        if fits.all() and kind == "dates":
            raise ValueError(
                f"column {name!r} holds dates written in more than one way, such as {texts[0]!r}: write them as "
                f"2024-05-31, or {advice(name, 'index', 'drop')}"
            )
        share = int(counts[fits].sum())
        if num_present / 2 < share < num_present:
            others = [each for each, fit in zip(counted, fits, strict=True) if not fit]
            raise ValueError(_but_for_a_few(name, others, kind))
    num_levels = len(texts)
    if (num_levels <= min(_MAX_LEVELS, num_present / 2) and not (numbers.all() and _ID_NAME.search(name))) or (
        num_levels == 2
    ):
        return
    is_identifier = num_levels == num_present or _ID_NAME.search(name)
    ways = ("index", "drop") if is_identifier else ("index", "drop", "category")
    raise ValueError(
        f"column {name!r} has {num_levels} distinct texts in {num_present} rows, such as {shortened(texts[0])}: it "
        f"looks like free text or an identifier; {advice(name, *ways)}"
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False


def _but_for_a_few(name: str, words: list[tuple[str, int]], kind: str) -> str:
    """The sentence on a column that is text because of some entries."""
    shown = ", ".join(f"{shortened(word)} ({count})" for word, count in words[:5])
    more = f", … ({len(words)} in all)" if len(words) > 5 else ""
    customary = all(str(word).strip().lower() in _WORDS_FOR_MISSING for word, _ in words)
    meant = (
        ", which look like words for missing entries: leave them empty" if customary else ": leave such entries empty"
    )
    return (
        f"column {name!r} is text because of entries such as {shown}{more}, but most of its entries are {kind}{meant}, "
        f"or {advice(name, 'index', 'drop')}"
    )


# --- dates


def _date_advice(name: str, as_dates: list[str], texts: list[str]) -> str:
    if len(as_dates) == 1:
        return advice(name, "date", "index", "drop")
    first, second = ("date-dmy", "date-mdy") if dates.is_day_first(as_dates[0]) else ("date-mdy", "date-dmy")
    readings = {each: dates.read_one(texts[0], each) for each in as_dates}
    said = " or ".join(f"{readings[each]}" for each in as_dates)
    return f"that may be {said}; {advice(name, first, second, 'index', 'drop')}"


def _dates(series: pd.Series, found: str, kind: str, num_missing: int) -> Guess:
    name: Any = series.name
    form, notes = None, ()
    if found == "text":
        texts = [str(text) for text in series.dropna().unique()]
        known = dates.formats(texts)
        if kind != "date":
            known = [each for each in known if dates.is_day_first(each) == (kind == "date-dmy")]
        if not known:
            unread = [text for text, fits in zip(texts, dates.look_like_dates(texts), strict=True) if not fits]
            raise ValueError(
                f"column {name!r} has {shortened((unread or texts)[0])}, but kind {kind} takes dates that are all "
                f"written in one way, such as 2024-05-31, 2024-05-31T08:30:00 or 31.05.2024"
            )
        if len(known) > 1:
            raise ValueError(f"column {name!r} holds dates such as {texts[0]!r}: {_date_advice(name, known, texts)}")
        form = known[0]
        if kind == "date" and not form.startswith("%Y"):
            readable = "day before month" if dates.is_day_first(form) else "month before day"
            other = "date-mdy" if dates.is_day_first(form) else "date-dmy"
            notes = (
                ("order", f"column {name!r} is read with the {readable}, as its entries require; {other} does not fit"),
            )
    elif found != "date":
        raise ValueError(f"column {name!r} holds {found} entries, but kind date takes dates: give another kind")
    values = dates.instants(series, form)
    unread = np.isnat(values) & series.notna().to_numpy()
    if unread.any():
        row = int(unread.argmax())
        raise ValueError(
            f"column {name!r} has {shortened(series.iloc[row])} in row {row}, which is not a date that can be read"
        )
    present = values[~np.isnat(values)]
    unit = dates.finest_unit(values)
    is_days = series.dtype == object and form is None and pd.api.types.infer_dtype(series, skipna=True) == "date"
    dtype = (
        type_name(series.dtype) if form is not None or series.dtype != object or is_days else type_name(values.dtype)
    )
    origin = str(present.min())
    column = Column(
        name, "date", (), dtype, None, 0.0, float(np.nanmax(dates.days(values, origin))), num_missing,
        whole=unit == "D", origin=origin, unit=unit, format=form,
    )  # fmt: skip
    entries.encode(column, series)
    return Guess(column, notes)


# --- numbers


def _of_numbers(series: pd.Series, found: str, kind: str | None, num_missing: int) -> Guess:
    name: Any = series.name
    if kind in ("binary", "category"):
        return _levels(series, found, kind, num_missing)
    of_objects = "int64" if found == "integer" else "float64"
    dtype = of_objects if series.dtype.kind == "O" else type_name(series.dtype)
    if kind is None:
        _check_not_identifiers(series, found)
    values = entries.numbers(series)
    numbers = _Numbers(*np.unique(values[~np.isnan(values)], return_counts=True), len(series))
    chosen = kind or _kind_of(numbers, found)
    if chosen == "binary":
        guessed = _levels(series, found, "binary", num_missing)
        if set(guessed.column.categories) == {0, 1}:
            return guessed
        low, high = guessed.column.categories
        as_numbers = f"{quoted(name)}=real"
        said = f"column {name!r} has two values, {low:g} and {high:g}: treated as binary; for numbers, {as_numbers}"
        return Guess(guessed.column, (("two", said),))
    low, high = float(numbers.values[0]), float(numbers.values[-1])
    column = Column(name, chosen, (), dtype, None, low, high, num_missing, numbers.are_whole)
    entries.check_kind(column, values)
    return Guess(column, tuple(_notes(column, numbers, found, given=kind is not None)))


def _kind_of(numbers: _Numbers, found: str) -> str:
    if len(numbers.values) == 2:
        return "binary"
    if len(numbers.values) == 1:
        return "real"
    lowest = numbers.values[0]
    if not np.isfinite(numbers.values).all():
        return "positive" if lowest > 0 else "real"  # both refuse it
    could_be_integers = (
        found == "integer" or numbers.num_present < numbers.num_rows
    )  # missing entries turn integers into floats
    if could_be_integers and lowest >= 0 and numbers.are_whole:
        return "count"
    return "positive" if found == "float" and lowest > 0 and not _is_far_from_0(numbers) else "real"


def _is_far_from_0(numbers: _Numbers) -> bool:
    """Whether logarithms of these positive numbers would lose the digits in which they differ."""
    values = numbers.values / numbers.values.max()  # so squares cannot overflow
    mean = np.average(values, weights=numbers.counts)
    variance = np.average((values - mean) ** 2, weights=numbers.counts)
    return bool(variance < (0.01 * mean) ** 2)


def _check_not_identifiers(series: pd.Series, found: str) -> None:
    """Refuses whole numbers that look like identifiers."""
    name: Any = series.name
    named = _ID_NAME.search(name) is not None
    if found == "float" and not named:
        return
    present = series.dropna() if series.hasnans else series
    if found == "float" and not all(math.isfinite(number) and number == round(number) for number in present):
        return
    num_levels = len(set(present))
    if num_levels <= 2:
        return
    never_repeat = num_levels == len(present) >= _MIN_ROWS
    low, high = int(present.min()), int(present.max())
    consecutive = never_repeat and high - low == len(present) - 1
    if not (named or consecutive or (never_repeat and low >= _LARGE)):
        return
    looks = (
        "has consecutive whole numbers"
        if consecutive
        else "has a different whole number in every row"
        if never_repeat
        else "has the name of an identifier"
    )
    numbers = ("count",) if low >= 0 and high <= _WHOLE_UNTIL else ("real",) if high <= _WHOLE_UNTIL else ()
    levels = ("category",) if num_levels <= min(_MAX_LEVELS, len(present) / 2) else ()
    raise ValueError(
        f"column {name!r} {looks}, from {low} to {high}: it looks like an identifier; "
        f"{advice(name, 'index', 'drop', *levels, *numbers)}"
    )


def _notes(column: Column, numbers: _Numbers, found: str, *, given: bool) -> list[tuple[str, str]]:
    name, low, high = column.name, column.low, column.high
    is_, notes = quoted(column.name), []
    if len(numbers.values) == 1:
        said = f"column {name!r} is always {low:g}, so nothing can be learned from it; {is_}=drop leaves it out"
        return [("constant", said)]
    if not given and column.kind == "count" and len(numbers.values) <= _FEW_LEVELS:
        span = f"whole numbers from {low:g} to {high:g}"
        said = f"column {name!r} has {span}: treated as a count; for levels, {is_}=category"
        notes.append(("count", said))
    if not given and column.kind == "positive":
        said = f"column {name!r} has only positive numbers: treated as log-normal; for a normal, {is_}=real"
        notes.append(("positive", said))
    if not given and found == "float" and column.kind == "real" and numbers.values[0] > 0:
        said = (
            f"column {name!r} varies by less than a hundredth of its mean: treated as real, as the logarithms of kind "
            f"positive would lose digits; for that kind, {is_}=positive"
        )
        notes.append(("offset", said))
    most = int(numbers.counts.argmax())
    if column.kind in ("real", "positive") and not column.whole and numbers.num_rows >= _MIN_ROWS:
        share = numbers.counts[most] / numbers.num_present
        if share > 0.5:
            said = (
                f"column {name!r} is {numbers.values[most]:g} in {share:.0%} of its entries, where its density, and so "
                f"the ELBO, can grow without bound: give {is_}=category if it has few levels, {is_}=count once it is "
                f"rounded to whole units, or {is_}=drop"
            )
            notes.append(("ties", said))
    code = _survey_code(numbers)
    if code is not None:
        said = (
            f"column {name!r} is {code:g} in {int(numbers.counts[numbers.values == code][0])} entries, far from the "
            f"others: treated as a number; if it stands for a missing entry, leave these empty"
        )
        notes.append(("code", said))
    return notes


def _survey_code(numbers: _Numbers) -> float | None:
    """A common code for missing entries that repeats and is far from all other numbers."""
    values, counts = numbers.values, numbers.counts
    if len(values) < 3:
        return None
    if values[0] in _SURVEY_CODES and values[0] < 0 <= values[1] and counts[0] >= 3:
        return float(values[0])
    if values[-1] in _SURVEY_CODES and counts[-1] >= 3 and values[-1] > values[-2] + (values[-2] - values[0]):
        return float(values[-1])
    return None
