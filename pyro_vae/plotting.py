"""Figures: samples, reconstructions, interpolation, latent space, manifold and curves.

Every function returns a matplotlib figure and opens no window; a notebook shows it as the last value of a cell. Rows
are in the user's units: images ``(H, W)`` or ``(C, H, W)``, or plain vectors ``(D,)``.
"""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support import files
from pyro_vae._support.figures import new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = [
    "plot_columns",
    "plot_curves",
    "plot_grid",
    "plot_interpolation",
    "plot_latents",
    "plot_manifold",
    "plot_means_and_draws",
    "plot_reconstructions",
    "plot_samples",
    "plot_traversal",
    "save_figure",
]

Bounds = tuple[float, float] | None


def save_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Writes a figure in the format of the path's suffix, completely or not at all."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def _tile(x: Tensor) -> np.ndarray:
    """One row for ``imshow``: ``(H, W)`` or ``(H, W, 3)``. Channels that are not colours are side by side."""
    x = x.detach().cpu().float()
    if x.dim() < 2:
        return x.reshape(1, -1).numpy()
    if x.dim() == 3 and x.shape[0] == 3:
        return x.movedim(0, -1).numpy()
    return x.reshape(-1, *x.shape[-2:]).movedim(0, 1).flatten(1).numpy()


def _mosaic(grid: Tensor, bounds: Bounds) -> tuple[np.ndarray, float, float]:
    """``(R, C, *E)`` as one picture with a thin line between tiles, and the values that are black and white."""
    tiles = [[_tile(x) for x in row] for row in grid]
    low, high = bounds or (float(grid.min()), float(grid.max()))
    pad = ((0, 1), (0, 1), (0, 0))[: tiles[0][0].ndim]
    line = 0.5 * (low + high)
    picture = np.concatenate(
        [np.concatenate([np.pad(t, pad, constant_values=line) for t in row], axis=1) for row in tiles], axis=0
    )
    return picture[:-1, :-1], low, high


def plot_grid(
    grid: Tensor, *, bounds: Bounds = None, row_labels: Sequence[str] = (), title: str | None = None
) -> "Figure":
    """Draws rows of data as tiles.

    Args:
        grid: ``(R, C, *E)``: C tiles in each of R rows.
        bounds: The values that are black and white; the extremes by default.
        row_labels: A label for each row of tiles.
        title: The title.
    """
    picture, low, high = _mosaic(grid, bounds)
    height, width = picture.shape[:2]
    inches = 8 if width >= height else 8 * width / height
    figure = new_figure(figsize=(inches, max(0.6, inches * height / width)))
    axes = figure.add_axes((0, 0, 1, 1))
    if picture.ndim == 3:
        axes.imshow(np.clip((picture - low) / (high - low or 1), 0, 1), interpolation="nearest")
    else:
        axes.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest", aspect="equal")
    axes.set_xticks([])
    tile = (height + 1) / len(grid)
    axes.set_yticks([tile * (i + 0.5) - 1 for i in range(len(row_labels))], row_labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title:
        axes.set_title(title)
    return figure


def plot_samples(x: Tensor, *, bounds: Bounds = None, title: str | None = None) -> "Figure":
    """Draws rows ``(N, *E)`` in a grid as square as possible."""
    columns = math.ceil(math.sqrt(len(x))) if x.dim() > 2 else 1
    missing = -len(x) % columns
    low = bounds[0] if bounds else float(x.min())
    padded = torch.cat([x, x.new_full((missing, *x.shape[1:]), low)])
    return plot_grid(padded.reshape(-1, columns, *x.shape[1:]), bounds=bounds, title=title)


def plot_means_and_draws(means: Tensor, draws: Tensor, *, bounds: Bounds = None, title: str | None = None) -> "Figure":
    """Draws means ``(N, *E)`` in a grid on the left and, in the same order, draws of the same rows on the right."""
    columns = math.ceil(math.sqrt(len(means))) if means.dim() > 2 else 1
    low, high = bounds or (float(min(means.min(), draws.min())), float(max(means.max(), draws.max())))
    missing = -len(means) % columns
    halves = []
    for x in (means.cpu().float(), draws.cpu().float()):
        padded = torch.cat([x, x.new_full((missing, *x.shape[1:]), low)])
        halves.append(padded.reshape(-1, columns, *x.shape[1:]))
    gap = torch.full_like(halves[0][:, :1], 0.5 * (low + high))
    return plot_grid(torch.cat([halves[0], gap, halves[1]], 1), bounds=(low, high), title=title)


def plot_reconstructions(x: Tensor, reconstructions: Tensor, draws: Tensor, *, bounds: Bounds = None) -> "Figure":
    """Draws data ``(N, *E)``, their reconstructions ``(N, *E)`` and one posterior predictive draw ``(N, *E)``."""
    grid = torch.stack([t.cpu().float() for t in (x, reconstructions, draws)])
    return plot_grid(grid, bounds=bounds, row_labels=("data x", "mean E[x′|z]", "draw x′~p(x′|z)"))


def plot_interpolation(x: Tensor, *, bounds: Bounds = None) -> "Figure":
    """Draws ``(steps, N, *E)``, one interpolation per row, from left to right."""
    title = "interpolation between two rows, through the latent space"
    return plot_grid(x.movedim(0, 1), bounds=bounds, title=title)


def plot_latents(means: Tensor, labels: Tensor | None = None, names: Sequence[Any] | None = None) -> "Figure":
    r"""Draws the posterior means :math:`E_q[z]` of many rows, coloured by label.

    Args:
        means: ``(N, L)``. More than two latents are projected onto the plane that best separates labels of three or
            more kinds (linear discriminants: Fisher, *The Use of Multiple Measurements in Taxonomic Problems*, 1936),
            or, without such labels, onto the first two principal directions.
        labels: ``(N,)`` whole numbers, -1 if a row has none.
        names: A name for each label; by default the number itself.
    """
    points = means.detach().cpu().double().numpy()
    axis_names = ("$z_1$", "$z_2$")
    if points.shape[1] == 1:
        points = np.column_stack([points, np.zeros(len(points))])
        axis_names = ("$z_1$", "")
    elif points.shape[1] > 2:
        points, axis_names = _plane(points, None if labels is None else labels.cpu().numpy())
    figure = new_figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    size = float(np.clip(20000 / len(points), 5, 20))
    if labels is None:
        axes.scatter(*points.T, s=size, alpha=0.6, linewidths=0)
    else:
        values = labels.cpu().numpy()
        kinds = np.unique(values)
        for kind in kinds:
            axes.scatter(*points[values == kind].T, s=size, alpha=0.6, linewidths=0, color=_colour(kind, len(kinds)))
            axes.scatter([], [], s=30, color=_colour(kind, len(kinds)), label=_called(kind, names))
        if len(kinds) <= 20:
            axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xlabel=axis_names[0], ylabel=axis_names[1], title="posterior means of the latents")
    axes.set_aspect("equal", adjustable="datalim")
    return figure


def _plane(points: np.ndarray, kinds: np.ndarray | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """The points in the plane that best separates the kinds, or else has the most variance; and its axes' names."""
    if kinds is not None and len(points) > 2 * points.shape[1]:
        known = kinds >= 0
        if len(np.unique(kinds[known])) > 2:
            from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

            discriminants = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=2).fit(
                points[known], kinds[known]
            )
            names = tuple(f"{which} direction that separates labels" for which in ("first", "second"))
            return discriminants.transform(points), names
    if len(points) < 2:  # which span no plane
        return points[:, :2], ("first latent", "second latent")
    from sklearn.decomposition import PCA

    pca = PCA(2).fit(points)
    shares = enumerate(pca.explained_variance_ratio_)
    return pca.transform(points), tuple(
        f"principal direction {i + 1} ({share:.0%} of the variance)" for i, share in shares
    )


def _called(kind: int, names: Sequence[Any] | None) -> str:
    return "none" if kind < 0 else _short(kind if names is None else names[kind], 24)


def _colour(kind: int, count: int) -> tuple[float, float, float, float]:
    from matplotlib import colormaps

    if kind < 0:
        return (0.7, 0.7, 0.7, 1.0)
    return colormaps["tab10"](int(kind) % 10) if count <= 10 else colormaps["tab20"](int(kind) % 20)


def plot_manifold(x: Tensor, *, bounds: Bounds = None) -> "Figure":
    """Draws the means ``(side, side, *E)`` on a grid of two latents; the second one increases upwards."""
    return plot_grid(x.flip(0), bounds=bounds, title="E[x|z] at the prior's quantiles of z₁ (across) and z₂ (up)")


def plot_traversal(x: Tensor, names: Sequence[str] = (), *, bounds: Bounds = None) -> "Figure":
    """Draws ``(latents, steps, *E)`` with one latent per row, increasing from left to right.

    Args:
        x: The result of :func:`~pyro_vae.generation.traverse`.
        names: Names of the latents; by default they are numbered.
        bounds: The values that are black and white.
    """
    named = list(names) or [f"z[{i}]" for i in range(len(x))]
    return plot_grid(x, bounds=bounds, row_labels=named, title="E[x|z] as one latent increases from left to right")


def plot_curves(history: "pd.DataFrame") -> "Figure":
    """Draws ELBO, reconstruction and KL against the epoch, in nats per datum."""
    figure = new_figure(figsize=(11, 3.4), layout="constrained")
    terms = {"elbo": "ELBO", "reconstruction": "reconstruction", "kl": "KL"}
    for axes, (term, name) in zip(figure.subplots(1, 3), terms.items(), strict=True):
        axes.plot(history["epoch"], history[term], label="training")
        if f"validation_{term}" in history:
            axes.plot(history["epoch"], history[f"validation_{term}"], label="validation")
        axes.set(xlabel="epoch", ylabel="nats per datum", title=name)
        axes.xaxis.get_major_locator().set_params(integer=True)
        # The first epochs are far off and would squash the rest.
        settled = np.stack([np.asarray(line.get_ydata(), float)[len(history) // 20 :] for line in axes.lines])
        margin = 0.1 * np.ptp(settled)
        if margin > 0:
            axes.set_ylim(settled.min() - margin, settled.max() + margin)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False)
    return figure


def plot_columns(data: "pd.DataFrame", samples: "pd.DataFrame") -> "Figure":
    """Draws the distribution of each column of a table, in data and in samples.

    Numbers and dates are drawn over the range of the data, or of both if samples extend it by less than half. The
    shares of samples farther out are written above the bars. If there are many columns, only the first are drawn.

    Args:
        data: A table.
        samples: A table with the same columns.
    """
    names = list(data.columns)[:_MAX_COLUMNS]
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = new_figure(figsize=(3.4 * columns, 2.5 * rows + 0.4), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, name in zip(grid, names, strict=False):
        _plot_column(axes, data[name].dropna(), samples[name].dropna())
        axes.set_title(_short(name, 36), fontsize=9, parse_math=False)
        axes.set_ylabel("share of entries", fontsize=7)
        axes.tick_params(labelsize=7)
    for axes in grid[len(names) :]:
        axes.set_visible(False)
    if len(names) < data.shape[1]:
        figure.supxlabel(f"the first {len(names)} of {data.shape[1]} columns", fontsize=9)
    # Above the panels, because the shares of samples farther out are written inside them.
    figure.legend(*grid[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=7)
    return figure


_MAX_COLUMNS = 40
_MAX_BARS = 12


def _short(value: Any, length: int) -> str:
    """A value on one line, shortened if it is long."""
    text = " ".join(str(value).split()) or "(no name)"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _plot_column(axes: Any, data: Any, samples: Any) -> None:
    numbers = _numbers(data, samples) if data.nunique() > _MAX_BARS else None
    if numbers is None:
        _plot_levels(axes, data, samples)
    elif not len(numbers[0]):
        axes.text(0.5, 0.5, "no entries", ha="center", va="center", transform=axes.transAxes, fontsize=8)
    else:
        _plot_numbers(axes, *numbers)


def _numbers(data: Any, samples: Any) -> "tuple[np.ndarray, np.ndarray, bool] | None":
    """Both columns as numbers, and whether these are dates in days; None if they are levels."""
    from pyro_vae.data.tables.dates import as_days

    days = as_days(data, samples)
    if days is not None:
        return days[0], days[1], True
    if data.dtype.kind not in "iuf":
        return None
    first, second = (each.to_numpy(dtype=np.float64) for each in (data, samples))
    return first[np.isfinite(first)], second[np.isfinite(second)], False


def _plot_levels(axes: Any, data: Any, samples: Any) -> None:
    shares = [each.value_counts(normalize=True, sort=False) for each in (data, samples)]
    by_level: list[dict[str, float]] = []
    for each in shares:
        by_level.append({})
        for level, share in zip(each.index, each, strict=True):
            by_level[-1][str(level)] = by_level[-1].get(str(level), 0.0) + float(share)
    ordered = [str(level) for level in _in_order(data, [*shares[0].index, *shares[1].index])]
    levels = list(dict.fromkeys(level for level in ordered if by_level[0].get(level, 0) + by_level[1].get(level, 0)))
    if len(levels) > _MAX_BARS:  # the most frequent levels, and one bar for the others
        frequent = sorted(levels, key=lambda level: -by_level[0].get(level, 0.0))[: _MAX_BARS - 1]
        kept = [level for level in levels if level in frequent]
        others = f"({len(levels) - len(kept)} others)"
        for each in by_level:
            each[others] = sum(share for level, share in each.items() if level not in kept)
        levels = [*kept, others]
    places = np.arange(len(levels))
    for shift, each, name in zip((-0.2, 0.2), by_level, ("data", "samples"), strict=True):
        axes.bar(places + shift, [each.get(level, 0.0) for level in levels], 0.4, label=name)
    long = max(map(len, levels), default=0) * len(levels) > 30
    turned = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if long else {}
    axes.set_xticks(places, [_short(level, 14) for level in levels], fontsize=7, parse_math=False, **turned)


def _in_order(data: Any, levels: list[Any]) -> list[Any]:
    """Levels in the order of a categorical, otherwise sorted if possible."""
    categories = getattr(data.dtype, "categories", None)
    if categories is not None:
        return [*categories, *levels]
    try:
        return sorted(levels)
    except TypeError:
        return levels


def _plot_numbers(axes: Any, data: np.ndarray, samples: np.ndarray, of_dates: bool) -> None:  # noqa: FBT001
    low, high = float(data.min()), float(data.max())
    both = np.concatenate([data, samples])
    if np.ptp(both) <= 1.5 * (high - low):
        low, high = float(both.min()), float(both.max())
    edges = _edges(data, low, high)
    for values, name in ((data, "data"), (samples, "samples")):
        axes.hist(values, edges, weights=np.full(len(values), 1 / max(1, len(values))), alpha=0.5, label=name)
    below, above = ((samples < edges[0]).mean(), (samples > edges[-1]).mean()) if len(samples) else (0.0, 0.0)
    beyond = [words for share, words in ((below, f"← {below:.1%} below"), (above, f"{above:.1%} above →")) if share > 0]
    if beyond:
        axes.margins(y=0.2)
        said = "samples: " + ", ".join(beyond)
        axes.text(0.98, 0.97, said, ha="right", va="top", transform=axes.transAxes, fontsize=7, color="C1")
    if of_dates:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.xaxis.get_offset_text().set_fontsize(7)


def _edges(data: np.ndarray, low: float, high: float) -> np.ndarray:
    """About thirty bins; for whole numbers each bin covers equally many values, so the bars are comparable."""
    if (data == np.rint(data)).all():
        width = max(1, math.ceil((high - low + 1) / 30))
        return np.arange(math.floor(low) - 0.5, math.ceil(high) + 0.5 + width, width)
    return np.linspace(low, high, 31)
