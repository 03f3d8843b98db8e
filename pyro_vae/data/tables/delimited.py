"""Converts the bytes of a delimited file to rows of text: encoding, separator, quotes."""

import codecs
import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyro_vae.data.tables.cells import is_number

__all__ = ["Rows", "decoded", "rows"]

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WRITTEN = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "pipe": "|", "bar": "|", "space": " "}
_SAMPLE = 200  # rows used to detect the separator
_OTHER_KINDS = {  # by their first bytes
    b"PK\x03\x04": "an Excel workbook or another zip file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip file",
    b"\x89PNG": "an image",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x93NUMPY": "a NumPy array",
}


@dataclass(frozen=True)
class Rows:
    """The rows of a file as text, all of one length, with their separator."""

    rows: list[list[str]]
    separator: str
    notes: tuple[str, ...] = ()


def decoded(content: bytes, encoding: str | None) -> tuple[str, str, list[str]]:
    """The text of a file, its encoding, and a note if that is a guess.

    Raises:
        ValueError: if it is not text, or not in that encoding.
    """
    for start, kind in _OTHER_KINDS.items():
        if content.startswith(start):
            raise ValueError(f"its first bytes are those of {kind}: give the file the right suffix")
    notes, found = [], encoding
    if found is None:
        marks = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
        found = next((name for mark, name in marks.items() if content.startswith(mark)), "utf-8")
    try:
        codecs.lookup(found)
        text = content.decode(found)
    except LookupError as error:
        raise ValueError(f"there is no encoding {found!r}: give one such as utf-8, utf-16 or cp1252") from error
    except UnicodeDecodeError as error:
        if encoding is not None or found != "utf-8" or b"\x00" in content:
            raise ValueError(f"byte {error.start} is not text in {found}: if it is text, give its encoding") from error
        found = "cp1252"
        try:
            text = content.decode(found)
        except UnicodeDecodeError as undefined:
            raise ValueError("it is neither utf-8 nor cp1252 text: if it is text, give its encoding") from undefined
        notes.append(
            "text is read as cp1252 (Western European Windows), as it is not UTF-8: give its encoding if letters are "
            "wrong"
        )
    text = text.removeprefix("\ufeff")
    if "\x00" in text:
        line = text.count("\n", 0, text.index("\x00")) + 1
        raise ValueError(
            f"line {line} has NUL bytes, which are not text: give its encoding if it is utf-16, or export it again"
        )
    return text, found, notes


def rows(text: str, separator: str | None, preferred: str) -> Rows:
    """The rows of a text, without its empty lines.

    Args:
        text: The content of a file.
        separator: The separator between fields; None to detect it.
        preferred: The usual separator for this kind of file, used if the content does not suggest another.

    Raises:
        ValueError: if rows differ in length, a quote is not closed, or two separators are possible.
    """
    separator = None if separator is None else _WRITTEN.get(separator, separator)
    if separator is not None and (len(separator) != 1 or separator in '"\r\n'):
        raise ValueError(f"the separator must be one character, or comma, semicolon, tab or bar; found {separator!r}")
    notes: list[str] = []
    first, _, rest = text.partition("\n")
    if first.lower().startswith("sep=") and len(first.strip("\r")) == 5:  # a hint that Excel reads and writes
        separator, text = separator or first[4], rest
    if separator is None:
        separator = _find_separator(text, preferred)
        if separator != preferred:
            notes.append(f"fields are separated by {SEPARATORS[separator]}, judging by the rows")
    read, lines = [], []
    reader = _reader(text, separator)
    try:
        for row in reader:
            if row:
                read.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        if "end of data" in str(error):
            line = (lines[-1] if lines else 0) + 1
            raise ValueError(
                f"the quote that opens in line {line} or below is not closed: close it, or double it"
            ) from error
        raise ValueError(f"line {reader.line_num} cannot be read ({error})") from error
    width = len(read[0]) if read else 0
    ragged = [(line, len(row)) for line, row in zip(lines, read, strict=True) if len(row) != width]
    if ragged:
        marks = SEPARATORS.get(separator, repr(separator))
        shown = ", ".join(f"line {line} has {count}" for line, count in ragged[:5])
        more = f", … ({len(ragged)} such lines)" if len(ragged) > 5 else ""
        raise ValueError(
            f"the first row has {width} field{'s' * (width != 1)}, but {shown}{more}, with {marks} between fields: "
            f"quote fields that contain the separator, or give another separator"
        )
    return Rows(read, separator, tuple(notes))


def _reader(text: str, separator: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)


def _find_separator(text: str, preferred: str) -> str:
    """The separator that splits all rows into equally many fields."""
    fitting = {}
    for separator in SEPARATORS:
        sample = _sample(text, separator)
        if sample and len(sample[0]) > 1 and all(len(row) == len(sample[0]) for row in sample):
            fitting[separator] = sample
    if len(fitting) > 1:  # prefer those with most cells that are numbers
        shares = {separator: _share_of_numbers(sample) for separator, sample in fitting.items()}
        fitting = {separator: fitting[separator] for separator in fitting if shares[separator] == max(shares.values())}
    if len(fitting) > 1:
        ways = " or ".join(f"{SEPARATORS[each]} ({len(sample[0])} columns)" for each, sample in fitting.items())
        raise ValueError(f"fields may be separated by {ways}: give the separator")
    if fitting:
        return next(iter(fitting))
    header = text.lstrip().partition("\n")[0]
    counts = {separator: header.count(separator) for separator in SEPARATORS}
    most = max(counts, key=lambda separator: (counts[separator], separator == preferred))
    return most if counts[most] else preferred


def _sample(text: str, separator: str) -> list[list[str]]:
    def whole_rows() -> Iterator[list[str]]:
        yield from (row for row in _reader(text, separator) if row)

    try:
        return list(itertools.islice(whole_rows(), _SAMPLE))
    except csv.Error:
        return []


def _share_of_numbers(sample: list[list[str]]) -> float:
    cells = [cell for row in sample for cell in row]
    return sum(is_number(cell, ".") or is_number(cell, ",") for cell in cells) / len(cells)
