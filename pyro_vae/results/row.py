"""A row of a table: numbers with their errors, and text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]  # by column: text, a number, or a number with its error


def with_error(values: Any) -> dict[str, float]:
    """The mean of some values and its standard error."""
    values = np.asarray(torch.as_tensor(values).double())
    error = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return {"value": float(values.mean()), "error": error, "count": len(values)}


def spread(values: Sequence[float]) -> dict[str, float]:
    """The mean of some values and their spread: standard deviation and extremes."""
    found = np.asarray(values, dtype=float)
    return {
        "value": float(found.mean()),
        "sd": float(found.std(ddof=1)) if len(found) > 1 else math.nan,
        "low": float(found.min()),
        "high": float(found.max()),
        "count": len(found),
    }


def text(cell: Any, digits: int) -> str:
    """A cell as text: a number with its error or its spread."""
    if cell is None:
        return ""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, (int, float)):
        return f"{cell:,.{0 if isinstance(cell, int) else digits}f}".replace("-", "−")
    value = f"{cell['value']:,.{digits}f}"
    if "error" in cell:
        value += "" if cell["error"] != cell["error"] else f" ± {cell['error']:.{digits}f}"  # NaN is not itself
    elif cell["count"] > 1:
        value += f" ± {cell['sd']:.{digits}f} ({cell['low']:,.{digits}f} to {cell['high']:,.{digits}f})"
    return value.replace("-", "−")
