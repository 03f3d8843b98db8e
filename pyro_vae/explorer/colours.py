"""Colours of rows: one colour per kind, or a colour scale for numbers."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.palettes import Category10, Category20, Viridis256

__all__ = ["colours_of"]

_MOST = 20  # kinds with distinguishable colours
_NONE = "#bbbbbb"


def colours_of(values: Sequence[Any]) -> tuple[list[str], str]:
    """A colour for each value, and a legend as HTML; missing values are grey.

    Example:
        >>> colours_of(["cat", "owl", None])[0]
        ['#1f77b4', '#ff7f0e', '#bbbbbb']
        >>> colours_of([n / 30 for n in range(31)])[0][0]
        '#440154'
    """
    missing = [value is None or value != value for value in values]  # NaN is not itself
    there = [value for value, gone in zip(values, missing, strict=True) if not gone]
    kinds = sorted(set(map(str, there)), key=_by_number)
    if len(kinds) <= _MOST:
        palette = Category10[10] if len(kinds) <= 10 else Category20[20]
        by_kind = {kind: palette[place] for place, kind in enumerate(kinds)}
        colours = [_NONE if gone else by_kind[str(value)] for value, gone in zip(values, missing, strict=True)]
        return colours, " ".join(_swatch(colour, kind) for kind, colour in by_kind.items())
    try:
        numbers = np.array([np.nan if gone else float(value) for value, gone in zip(values, missing, strict=True)])
    except (TypeError, ValueError):  # text of too many kinds
        return [_NONE] * len(values), f"{len(kinds)} kinds, too many to tell apart"
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    places = np.nan_to_num((numbers - low) / ((high - low) or 1)) * 255
    colours = [_NONE if gone else Viridis256[int(place)] for place, gone in zip(places, missing, strict=True)]
    return colours, f"{_swatch(Viridis256[0], f'{low:.4g}')} to {_swatch(Viridis256[-1], f'{high:.4g}')}"


def _by_number(kind: str) -> tuple[bool, float, str]:
    try:
        return False, float(kind), kind
    except ValueError:
        return True, 0.0, kind


def _swatch(colour: str, text: str) -> str:
    return f'<span style="color: {colour}">●</span> {html.escape(text)}'
