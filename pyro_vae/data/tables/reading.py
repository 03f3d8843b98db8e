"""Reads tables from files."""

import gzip
import io
import os
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pandas as pd

from pyro_vae.data.tables import cells, delimited
from pyro_vae.data.tables.names import check_unique, gathered, listing

__all__ = ["SUFFIXES", "Table", "read_table", "suffix_of"]

SUFFIXES = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet", ".xlsx")


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Args:
        frame: The entries, in the types that they were read as.
        text: The original cells of a delimited file; None for other files.
        notes: Sentences on what was guessed and how to change it.
        separator: The separator between the fields of a delimited file.
        decimal: The decimal mark of its numbers.
        encoding: Its encoding.
        header: Whether its first row holds names.
        newline: Its line ending.
    """

    frame: pd.DataFrame
    text: pd.DataFrame | None = None
    notes: tuple[str, ...] = ()
    separator: str = ","
    decimal: str = "."
    encoding: str = "utf-8"
    header: bool = True
    newline: str = "\n"


def suffix_of(path: Path) -> str:
    """The suffix of a file's name, which determines its format.

    Raises:
        ValueError: if the format is not supported.
    """
    ends = [suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)]
    if not ends:
        raise ValueError(f"cannot read {path} as a table: expected a {', '.join(SUFFIXES)} file")
    return ends[-1]


def read_table(
    path: str | os.PathLike[str],
    *,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> Table:
    r"""Reads a table of delimited text (``.csv``, ``.tsv``, ``.txt``, also gzipped), ``.parquet`` or ``.xlsx``.

    Empty fields, ``NA`` and the like are missing entries; numbers are read to their last digit. The dialect of a
    delimited file is detected from its content; guesses are in ``notes``.

    Args:
        path: The file.
        separator: The separator between fields; detected by default.
        decimal: The decimal mark of numbers, ``.`` or ``,``; the other one may separate thousands.
        encoding: The encoding, such as ``utf-8`` or ``cp1252``.
        header: Whether the first row holds column names. Without names, columns are ``column 1``, ``column 2``, ….

    Raises:
        ValueError: if the file is not of the format that its name says, has no rows, has two columns with one name, is
            ambiguous, or needs a package that is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "patients.csv"
        ...     _ = path.write_text("smoker;dose\nyes;4,25\nno;\n")
        ...     table = read_table(path)
        >>> table.frame
          smoker  dose
        0    yes  4.25
        1     no   NaN
        >>> table.separator, table.decimal, table.text["dose"].tolist()
        (';', ',', ['4,25', ''])
    """
    path = Path(path)
    suffix = suffix_of(path)
    if decimal not in (None, ".", ","):
        raise ValueError(f"the decimal mark must be . or , and not {decimal!r}")
    try:
        with open(path, "rb") as file:
            if suffix == ".parquet":
                table = _read_parquet(file)
            elif suffix == ".xlsx":
                table = _read_excel(file, header=header)
            else:
                content = gzip.decompress(file.read()) if suffix.endswith(".gz") else file.read()
                preferred = "\t" if suffix.startswith(".tsv") else ","
                table = _read_delimited(content, separator, decimal, encoding, preferred, header=header)
    except ImportError as error:
        raise ValueError(
            f"reading {path} needs {_NEEDED.get(suffix, error.name)}: pip install 'pyro-vae[tables]'"
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path} as a table (it is not a complete gzip file)") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or ' '.join(str(error).split())}") from error
    except _EmptyError as error:
        raise ValueError(f"{path} is empty; expected a row of column names, and rows below it") from error
    except Exception as error:  # pandas, pyarrow and openpyxl raise many kinds
        raise ValueError(f"cannot read {path} as a table ({' '.join(str(error).split())})") from error
    if len(table.frame) == 0:
        raise ValueError(f"{path} has no rows")
    return table


_NEEDED = {".parquet": "pyarrow", ".xlsx": "openpyxl"}


class _EmptyError(ValueError):
    pass


def _read_delimited(
    content: bytes,
    separator: str | None,
    decimal: str | None,
    encoding: str | None,
    preferred: str,
    *,
    header: bool | None,
) -> Table:
    text, encoding, notes = delimited.decoded(content, encoding)
    found = delimited.rows(text, separator, preferred)
    notes += found.notes
    if not found.rows:
        raise _EmptyError
    has_header = header is not False
    names = found.rows[0] if has_header else [f"column {place}" for place in range(1, len(found.rows[0]) + 1)]
    rows = found.rows[1:] if has_header else found.rows
    names, more = _without_empty_columns(names, rows)
    notes += more
    check_unique(names)
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    if decimal is None:
        decimal, more = cells.find_decimal(columns, found.separator)
        notes += more
    read, noted = {}, []
    for name, column in columns.items():
        read[name], of_column = cells.typed(name, column, decimal)
        noted += of_column
    if header is None:
        _check_is_header({name: cells.is_number(name, decimal) for name in names}, read)
    notes += gathered(noted)
    frame = pd.DataFrame(read)
    as_text = pd.DataFrame(columns, dtype=object)
    newline = "\r\n" if "\r\n" in text else "\n"
    return Table(frame, as_text, tuple(notes), found.separator, decimal, encoding, has_header, newline)


def _without_empty_columns(names: list[str], rows: list[list[Any]]) -> tuple[list[str], list[str]]:
    """Removes the empty columns and rows that spreadsheets leave at the right and at the bottom, in place for rows."""
    notes, width = [], len(names)
    while width > 1 and names[width - 1] == "" and not any(row[width - 1] for row in rows):
        width -= 1
    if width < len(names):
        notes.append(f"{len(names) - width} columns at the right without names or entries are left out")
    height = len(rows)
    while width > 1 and height and not any(rows[height - 1]):
        height -= 1
    if height < len(rows):
        notes.append(f"{len(rows) - height} rows at the end without entries are left out")
        del rows[height:]
    return names[:width], notes


def _check_is_header(names: Mapping[str, bool], columns: Mapping[str, pd.Series]) -> None:
    """Refuses a first row that might be data: if all names, or all above columns of numbers, are numbers."""
    numbers = [name for name, column in columns.items() if column.dtype.kind in "iuf" and column.notna().any()]
    if all(names.values()) or (numbers and all(names[name] for name in numbers)):
        raise ValueError(
            f"its first row may be names or data: {listing(list(names), 'fields')}; say with header whether it holds "
            f"the names of the columns (yes, True) or data (no, False)"
        )


def _read_parquet(file: BinaryIO) -> Table:
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(file)
    check_unique(schema.names)
    nested = [field.name for field in schema if pyarrow.types.is_nested(field.type)]
    if nested:
        raise ValueError(
            f"columns {listing(nested, 'columns')} hold lists or structures, but an entry must be a single value: "
            f"split them into several columns, or leave them out of the file"
        )
    file.seek(0)
    frame = pd.read_parquet(file, engine="pyarrow")
    notes = []
    if any(name is not None for name in frame.index.names):
        notes.append(
            f"the index {listing(list(frame.index.names), 'names')} that was stored with the table is read as a column"
        )
        frame = frame.reset_index()
    elif not isinstance(frame.index, pd.RangeIndex):
        notes.append("an index without a name, which was stored with the table, is left out")
    return Table(frame.reset_index(drop=True), notes=tuple(notes))


def _read_excel(file: BinaryIO, *, header: bool | None) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about formats and validation rules, which do not affect entries
        book = pd.ExcelFile(io.BytesIO(file.read()), engine="openpyxl")
        grid: Any = book.parse(0, header=None, dtype=object)
    notes = []
    if len(book.sheet_names) > 1:
        others = listing(book.sheet_names[1:], "sheets")
        notes.append(f"only the first sheet, {book.sheet_names[0]!r}, is read, not {others}: move another to the front")
    if not len(grid):
        raise _EmptyError
    has_header = header is not False
    top = ["" if pd.isna(name) else str(name) for name in grid.iloc[0]]
    names = top if has_header else [f"column {place}" for place in range(1, grid.shape[1] + 1)]
    rows = grid.iloc[int(has_header) :].astype(object).where(lambda entries: entries.notna(), None).to_numpy().tolist()
    names, more = _without_empty_columns(names, [["" if entry is None else "x" for entry in row] for row in rows])
    check_unique(names)
    columns = {
        name: pd.Series([row[place] for row in rows], dtype=object).infer_objects() for place, name in enumerate(names)
    }
    if header is None:
        _check_is_header({name: cells.is_number(name, ".") for name in names}, columns)
    return Table(pd.DataFrame(columns), None, (*notes, *more), header=has_header)
