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
    """Descriptions of numbers that differ by more than their errors allow."""
    found = []
    for old, new in zip(before, now, strict=True):
        for column, cell in old.items():
            if isinstance(cell, Mapping) and column in new:
                errors = [error_of(one) for one in (cell, new[column])]
                allowed = MOST * math.hypot(*errors)
                off = abs(cell["value"] - new[column]["value"])
                if off > allowed:
                    found.append(f"{old['']}, {column}: {new[column]['value']:.4g}, was {cell['value']:.4g}")
    return found


def error_of(cell: Mapping[str, float]) -> float:
    """The standard error of a number, or 0."""
    error = cell["error"] if "error" in cell else cell["sd"] / math.sqrt(cell["count"])
    return 0.0 if math.isnan(error) else error
