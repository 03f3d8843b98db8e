"""Matplotlib figures without a window, which a notebook shows as the last value of a cell."""

import functools
import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["new_figure"]


def new_figure(**settings: Any) -> "Figure":
    """An empty figure; matplotlib is imported on first use.

    Args:
        settings: Settings of ``matplotlib.figure.Figure``.

    Example:
        >>> new_figure(figsize=(3, 2))._repr_png_()[1:4]
        b'PNG'
    """
    return _shown_in_notebooks()(**settings)


@functools.cache
def _shown_in_notebooks() -> "type[Figure]":
    from matplotlib.figure import Figure

    class Shown(Figure):
        """Shown by notebooks even if ``matplotlib.pyplot`` has not been imported."""

        def _repr_png_(self) -> bytes:
            file = io.BytesIO()
            self.savefig(file, format="png", dpi=100, bbox_inches="tight")
            return file.getvalue()

    return Shown
