"""Rows side by side on a page: as images, as curves, or as columns of a table."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from bokeh.models import ColumnDataSource, DataTable, Range1d, TableColumn
from bokeh.palettes import Category10
from bokeh.plotting import figure
from torch import Tensor

__all__ = ["Curves", "Pictures", "Table", "View", "view_of"]

WIDTH = 480  # pixels


class View(Protocol):
    """Shows a row under each of its titles.

    Args:
        model: The Bokeh model for the page.
    """

    model: Any

    def show(self, rows: Sequence[Tensor | None]) -> None:
        """Shows rows, one for each title, in the units of the data; None leaves one out."""
        ...


class Pictures:
    """Rows as images."""

    def __init__(self, titles: Sequence[str], bounds: tuple[float, float]) -> None:
        self.bounds = bounds
        self.places = [place + 0.5 for place in range(len(titles))]
        self.source = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []})
        self.model = figure(
            width=WIDTH,
            height=WIDTH // len(titles) + 28,
            x_range=Range1d(start=0, end=len(titles)),
            y_range=Range1d(start=0, end=1),
            toolbar_location=None,
            tools="",
        )
        self.model.image_rgba("image", "x", "y", "dw", "dh", source=self.source)
        self.model.xaxis.ticker = self.places
        self.model.xaxis.major_label_overrides = dict(zip(self.places, titles, strict=True))
        for part in (self.model.grid, self.model.yaxis):
            part.visible = False
        self.model.axis.axis_line_color = self.model.xaxis.major_tick_line_color = None
        self.model.outline_line_color = None

    def show(self, rows: Sequence[Tensor | None]) -> None:  # noqa: D102
        there = [(place, rgba(row, self.bounds)) for place, row in enumerate(rows) if row is not None]
        sizes = [np.array(image.shape[::-1]) / max(image.shape) * 0.94 for _, image in there]
        self.source.data = {
            "image": [image for _, image in there],
            "x": [place + 0.5 - width / 2 for (place, _), (width, _) in zip(there, sizes, strict=True)],
            "y": [0.5 - height / 2 for _, height in sizes],
            "dw": [width for width, _ in sizes],
            "dh": [height for _, height in sizes],
        }


def rgba(row: Tensor, bounds: tuple[float, float]) -> np.ndarray:
    """A row as a Bokeh image, ``(H, W)`` of packed colours from the bottom up; missing pixels are pale red."""
    low, high = bounds
    levels = ((row.detach().cpu().double() - low) / ((high - low) or 1)).clamp(0, 1)
    colours = levels.movedim(0, -1) if row.dim() == 3 and row.shape[0] == 3 else levels.reshape(-1, *row.shape[-2:])
    if colours.shape[-1] != 3 or row.dim() != 3 or row.shape[0] != 3:  # channels that are not colours, side by side
        colours = colours.movedim(0, 1).flatten(1)[..., None].expand(-1, -1, 3)
    missing = colours.isnan().any(-1, keepdim=True)
    colours = torch.where(missing, torch.tensor([1.0, 0.8, 0.8], dtype=colours.dtype), colours)
    image = np.full((*colours.shape[:2], 4), 255, np.uint8)
    image[..., :3] = (colours.numpy() * 255).round()
    return image[::-1].copy().view(np.uint32)[..., 0]


class Curves:
    """Rows of numbers as curves over their indices."""

    def __init__(self, titles: Sequence[str], bounds: tuple[float, float]) -> None:
        self.titles = titles
        colours = Category10[10]
        self.source = ColumnDataSource({"xs": [], "ys": [], "title": [], "colour": []})
        self.colours = [colours[place % len(colours)] for place in range(len(titles))]
        margin = 0.05 * (bounds[1] - bounds[0])
        self.model = figure(
            width=WIDTH,
            height=WIDTH // 2,
            y_range=Range1d(start=bounds[0] - margin, end=bounds[1] + margin),
            toolbar_location=None,
            tools="",
        )
        self.model.multi_line(
            "xs", "ys", line_color="colour", legend_group="title", line_width=2, line_alpha=0.8, source=self.source
        )

    def show(self, rows: Sequence[Tensor | None]) -> None:  # noqa: D102
        there = [(place, row.detach().cpu().flatten().double()) for place, row in enumerate(rows) if row is not None]
        self.source.data = {
            "xs": [list(range(len(row))) for _, row in there],
            "ys": [row.tolist() for _, row in there],
            "title": [self.titles[place] for place, _ in there],
            "colour": [self.colours[place] for place, _ in there],
        }


class Table:
    """Rows of a table, transposed, next to the names of its columns."""

    def __init__(self, titles: Sequence[str], schema: Any) -> None:
        self.titles, self.schema = titles, schema
        self.source = ColumnDataSource(
            {"column": schema.names, **{title: [""] * len(schema.names) for title in titles}}
        )
        columns = [TableColumn(field="column", title="")] + [TableColumn(field=t, title=t) for t in titles]
        height = min(400, 30 + 26 * len(schema.names))
        self.model = DataTable(source=self.source, columns=columns, width=WIDTH, height=height, index_position=None)

    def show(self, rows: Sequence[Tensor | None]) -> None:  # noqa: D102
        found: dict[str, Any] = {"column": list(self.schema.names)}
        for title, row in zip(self.titles, rows, strict=True):
            values = [""] * len(self.schema.names)
            if row is not None:
                frame = self.schema.decode(row[None].cpu())
                values = [as_text(frame[name].iloc[0]) for name in self.schema.names]
            found[title] = values
        self.source.data = found


def as_text(value: Any) -> str:
    """An entry as readable text."""
    if value is None or value != value:  # NaN is not itself
        return "missing"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def view_of(titles: Sequence[str], x: Tensor, schema: Any = None) -> View:
    """The view for rows ``(N, *E)``: a table if they have a schema, otherwise images or curves."""
    if schema is not None:
        return Table(titles, schema)
    there = x[x.isfinite()] if x.is_floating_point() else x
    bounds = (float(there.min()), float(there.max())) if there.numel() else (0.0, 1.0)
    return Pictures(titles, bounds) if x.dim() > 2 and min(x.shape[-2:]) > 1 else Curves(titles, bounds)
