"""Figures of matplotlib's that belong to no window, and that a notebook shows where a cell ends with one."""

import functools
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure"]


def new_figure(**settings: Any) -> "Figure":
    """An empty figure; matplotlib is imported for the first one.

    Args:
        settings: Of ``matplotlib.figure.Figure``.

    Example:
        >>> new_figure(figsize=(3, 2))._repr_png_()[1:4]
        b'PNG'
    """
    return _shown_in_notebooks()(**settings)


@functools.cache
def _shown_in_notebooks() -> "type[Figure]":
    from matplotlib.figure import Figure

    class Shown(Figure):
        """Notebooks show matplotlib's figures by themselves only once ``matplotlib.pyplot`` is imported."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=100, bbox_inches="tight")
            return file.getvalue()

    return Shown
