"""The stored results: where they are, and whether new ones agree with them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyro_vae._support import files
from pyro_vae.results.row import Row

__all__ = ["DOCS", "STORED", "differences", "read", "records"]

STORED = Path(__file__).with_name("results.json")
_docs = Path(__file__).parents[2] / "docs"
DOCS = _docs if (_docs / "results.md").exists() else None  # only a checkout has the page, and what is behind it
MOST = 4.0  # standard errors that a repeated number may be off
UNKNOWN = 0.1  # the same for a number whose error is not known, as a share of it


def read(file: Path) -> dict[str, Any]:
    """The stored results, by table and form."""
    return files.read_json(file) if file.exists() else {}


def records(name: str) -> Path:
    """A file or folder of ``docs/`` that a table is counted from.

    Raises:
        ValueError: if the package is not in a checkout of the project.
    """
    if DOCS is None:
        raise ValueError(
            f"this table is counted from docs/{name} of the project, which is not part of the installed package: "
            f"run it in a checkout, installed by pip install -e ."
        )
    return DOCS / name


def differences(before: list[Row], now: list[Row]) -> list[str]:
    """Descriptions of rows that only one table has, and of numbers that differ by more than their errors allow.

    Rows are told apart by their texts. A number without an error may differ by a tenth.
    """
    old, new = ({_texts(row): row for row in table} for table in (before, now))
    found = [f"{only}: only in the {'stored' if only in old else 'new'} table" for only in sorted(old.keys() ^ new)]
    for name, column in ((shared, column) for shared in old if shared in new for column in old[shared]):
        was, cell = old[name][column], new[name].get(column)
        if was is None or isinstance(was, str):
            continue
        if cell is None:
            found.append(f"{name}, {column}: not in the new table")
            continue
        (value, error), (stored, stored_error) = _number(cell), _number(was)
        errors = math.hypot(error, stored_error)
        if not abs(value - stored) <= (MOST * errors if errors else UNKNOWN * abs(stored)):  # nor is NaN
            found.append(f"{name}, {column}: {value:.4g}, was {stored:.4g}")
    return found


def _texts(row: Row) -> str:
    return ", ".join(cell for cell in row.values() if isinstance(cell, str))


def _number(cell: float | Mapping[str, float]) -> tuple[float, float]:
    """A number, and its standard error or 0."""
    if not isinstance(cell, Mapping):
        return cell, 0.0
    error = cell["error"] if "error" in cell else cell["sd"] / math.sqrt(cell["count"])
    return cell["value"], 0.0 if math.isnan(error) else error
