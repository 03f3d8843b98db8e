"""Writes tables to files."""

import csv
import gzip
import os
from pathlib import Path
from typing import Any

import pandas as pd

from pyro_vae.data.tables.filling import written
from pyro_vae.data.tables.reading import Table, suffix_of

__all__ = ["write_table"]


def write_table(frame: pd.DataFrame, path: str | os.PathLike[str], like: Table | None = None) -> None:
    """Writes a table as delimited text (``.csv``, ``.tsv``, ``.txt``, also gzipped), ``.parquet`` or ``.xlsx``.

    Text is written as it is, numbers with all their digits, missing entries as empty cells.

    Args:
        frame: Typed columns or text, such as from :meth:`Schema.decode` and :meth:`Schema.fill`. Its index is left out.
        path: The file.
        like: A table whose separator, decimal mark, encoding, line ending and header a delimited file takes over. A
            ``.tsv`` always has tabs.

    Raises:
        ValueError: if the file's suffix is not supported, a required package is not installed, or the format cannot
            hold an entry.

    Example:
        >>> import tempfile
        >>> from pyro_vae.data.tables import read_table
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table(pd.DataFrame({"dose": [1.5, None]}), f"{folder}/a.csv", Table(pd.DataFrame(), decimal=","))
        ...     read_table(f"{folder}/a.csv").text["dose"].tolist()
        ['1,5', '']
    """
    path, like = Path(path), like or Table(pd.DataFrame())
    suffix = suffix_of(path)
    try:
        if suffix == ".parquet":
            frame.to_parquet(path, index=False, engine="pyarrow")
        elif suffix == ".xlsx":
            _without_zones(frame).to_excel(path, index=False, header=like.header, engine="openpyxl")
        else:
            _write_delimited(frame, path, suffix, like)
    except ImportError as error:
        needed = "pyarrow" if suffix == ".parquet" else "openpyxl"
        raise ValueError(f"writing {path} needs {needed}: pip install 'pyro-vae[tables]'") from error
    except UnicodeEncodeError as error:
        letters = error.object[error.start : error.end]
        raise ValueError(f"cannot write {letters!r} in {like.encoding}: read the table with encoding utf-8") from error
    except OSError:
        raise
    except Exception as error:  # pyarrow and openpyxl raise many kinds
        raise ValueError(f"cannot write {path} ({' '.join(str(error).split())})") from error


def _write_delimited(frame: pd.DataFrame, path: Path, suffix: str, like: Table) -> None:
    separator = "\t" if suffix.startswith(".tsv") else like.separator
    columns = [_cells(column, like.decimal) for _, column in frame.items()]
    opened = gzip.open if suffix.endswith(".gz") else open
    with opened(path, "wt", encoding=like.encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator, lineterminator=like.newline)
        if like.header:
            writer.writerow(frame.columns)
        writer.writerows(zip(*columns, strict=True))


def _cells(column: Any, decimal: str) -> list[str]:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if column.dtype.kind == "M":
        present = column.dropna()
        if (
            len(present)
            and getattr(column.dtype, "tz", None) is None
            and bool((present == present.dt.normalize()).all())
        ):
            return ["" if day is pd.NaT else str(day.date()) for day in column]
    return [written(entry, decimal) for entry in column.tolist()]


def _without_zones(frame: pd.DataFrame) -> pd.DataFrame:
    """Times with zones as text, because a workbook has no type for them."""
    zoned = [name for name, column in frame.items() if getattr(column.dtype, "tz", None) is not None]
    return frame.assign(**{str(name): pd.Series(_cells(frame[name], "."), index=frame.index) for name in zoned})
