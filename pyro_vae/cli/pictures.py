"""The figures that training writes: what a model has learned, on held-out rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import plotting
from pyro_vae._support.arrays import as_tensor
from pyro_vae.cli import beside
from pyro_vae.cli.models import Kind
from pyro_vae.data.sources import DataSet
from pyro_vae.inference.predictive import latent_grid

_COLUMNS = 10  # images of each level
_LEVELS = 12  # levels that are drawn


def draw_figures(
    model: Any, word: str, kind: Kind, data: DataSet, levels: Sequence[str], history: Any, folder: Path
) -> None:
    """Draws what the model has learned, on held-out rows."""
    torch.manual_seed(0)
    shown = min(5000, max(10, 2**24 // math.prod(data.x_test.shape[1:])))
    rows = beside.first(beside.told(kind, data, "test", levels), shown)
    x = as_tensor(beside.rows_alone(rows))
    alone = x if kind.each_alone else rows  # rows without their labels
    names = levels or beside.names_of(data)
    y = None if data.y_test is None else data.y_test[:shown]
    if y is not None and levels:
        y = beside.coded(data, "test", levels, new=True)[:shown]  # pyright: ignore[reportOptionalSubscript]
    site, title = _LATENTS.get(word, lambda model: (None, "latent means of held-out data"))(model)
    latents = plotting.plot_latents(model.encode(alone, site=site).mean, y, names)
    latents.axes[0].set_title(title)
    if kind.told == "groups" and (legend := latents.axes[0].get_legend()) is not None:
        legend.set_title("group")
    figures = {"latent": latents, "curves": plotting.plot_curves(history)}
    if data.schema is not None and not kind.vocabulary:
        num = max(1000, len(x))
        given = {}
        if kind.told in kind.drawn_given and isinstance(rows, Mapping) and not kind.each_alone:
            given = {kind.told: rows[kind.told][torch.arange(num) % len(x)]}
        samples = data.schema.decode(model.sample(num, given=given))
        figures["columns"] = plotting.plot_columns(data.schema.decode(x), samples)
    elif word != "sequences" or not _as_lines(x):
        figures |= _PICTURES.get(word, draw_rows)(model, alone, kind, data.bounds, levels)
    if data.schema is None or kind.vocabulary:
        figures |= {name: draw(model, data) for name, draw in _OF_MODELS.get(word, {}).items()}
    for name, figure in figures.items():
        plotting.save_figure(figure, folder / f"{name}.png")


# Which latent is drawn if there are several, and the figure's title.
_LATENTS: Mapping[str, Callable[[Any], tuple[str | None, str]]] = {
    "ladder": lambda model: (
        f"z_{len(model.latent_dims)}",
        f"latent means of held-out data: the top of {len(model.latent_dims)} levels",
    ),
    "sequences": lambda model: (
        f"z_{model.num_steps}",
        f"latent means of held-out data: the state at step {model.num_steps}",
    ),
    "vector-quantized": lambda model: (None, "vectors of the codes of held-out data"),
    "categorical": lambda model: (None, "probabilities of the codes of held-out data"),
}


def draw_rows(
    model: Any, rows: Any, kind: Kind, bounds: plotting.Bounds, levels: Sequence[str], way: str = ""
) -> dict[str, Any]:
    """Draws rows that are images, or vectors with one kind of element."""
    figures = draw_reconstructions(model, rows, kind, bounds, levels)
    half = max(1, min(8, len(beside.rows_alone(rows)) // 2))
    ends = [_slice(rows, slice(half)), _slice(rows, slice(-half, None))]
    title = f"interpolation between two rows, through the latent space{way}"
    between = model.interpolate(*ends, steps=11).movedim(0, 1)
    figures["interpolation"] = plotting.plot_grid(between, bounds=bounds, title=title)
    if getattr(model, "latent_dim", None) == 2:
        grid = latent_grid(20)
        means = model.mean_at(grid.flatten(0, 1)).unflatten(0, (20, 20))
        figures["manifold"] = plotting.plot_manifold(means, bounds=bounds)
    return figures


def draw_reconstructions(
    model: Any, rows: Any, kind: Kind, bounds: plotting.Bounds, levels: Sequence[str]
) -> dict[str, Any]:
    """Draws new rows, and reconstructions of held-out ones."""
    shown = beside.first(rows, 10)
    x = as_tensor(beside.rows_alone(shown))
    figures = {}
    if levels:
        few = levels[:_LEVELS]
        given = {str(kind.told): torch.arange(len(few)).repeat_interleave(_COLUMNS)}
        drawn = _means(model, kind, given).unflatten(0, (len(few), _COLUMNS))
        one = str(kind.told)[:-1]
        title = f"E[x|z, {one}] at z ~ p(z), one {one} per row"
        if kind.draw_given:
            title = f"E[x|z] at z ~ q(z|{one}), one {one} per row"
        figures["by_" + str(kind.told)] = plotting.plot_grid(drawn, bounds=bounds, row_labels=few, title=title)
    if not kind.always_given and kind.told != "groups":
        means, draws = (_alike(model, mean=mean) for mean in (True, False))
        drawn_first = "E[x|z] at z ~ p(z)" if not levels or kind.draw_given else "E[x|z, label] at both from the prior"
        title = f"{drawn_first}, and draws x ~ p(x|z) at the same z"
        figures["samples"] = plotting.plot_means_and_draws(means, draws, bounds=bounds, title=title)
    figures["reconstructions"] = plotting.plot_reconstructions(
        x, model.reconstruct(shown), model.posterior_predictive(shown)[0], bounds=bounds
    )
    return figures


def _alike(model: Any, *, mean: bool) -> Tensor:
    """New rows, at the same latents each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model.sample(64, mean=mean)


def _means(model: Any, kind: Kind, given: Mapping[str, Tensor]) -> Tensor:
    num = len(next(iter(given.values())))
    return model.sample(num, given=given, mean=True) if kind.draw_given is None else kind.draw_given(model, given, True)


def _slice(rows: Any, part: slice) -> Any:
    return {name: as_tensor(value)[part] for name, value in rows.items()} if isinstance(rows, Mapping) else rows[part]


def _way(said: str) -> Callable[..., dict[str, Any]]:
    return lambda *arguments: draw_rows(*arguments, way=said)


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


# Models that the usual figures do not fit: codes cannot be interpolated, and words are not images.
_PICTURES: Mapping[str, Callable[..., dict[str, Any]]] = {
    "conditional": _way(";\nthe label is that of the nearer end"),
    "semi-supervised": _way(";\nthe label is that of the nearer end"),
    "pooled": _way(";\nthe group is that of the nearer end"),
    "vector-quantized": draw_reconstructions,
    "categorical": draw_reconstructions,
    "topics": _nothing,
}


def draw_clusters(model: Any, data: DataSet) -> Any:
    """Draws new rows of each cluster."""
    num = min(_LEVELS, model.prior.num_components)
    with torch.no_grad():
        order = model.prior.weights().probs.argsort(descending=True)[:num]
        z = model.prior.components(order.repeat_interleave(_COLUMNS)).sample()
        shares = model.prior.weights().probs[order].tolist()
    drawn = model.mean_at({"y": order.repeat_interleave(_COLUMNS), "z": z}).unflatten(0, (num, _COLUMNS))
    names = [f"{k}: {share:.0%}" for k, share in zip(order.tolist(), shares, strict=True)]
    title = "E[x|z] at z ~ p(z|cluster), one cluster per row, with its share of p(z)"
    return plotting.plot_grid(drawn, bounds=data.bounds, row_labels=names, title=title)


def draw_topics(model: Any, data: DataSet) -> Any:
    """Draws the most probable words of each topic."""
    from matplotlib.figure import Figure

    weights, num = model.word_probabilities().cpu(), min(10, len(model.word_probabilities()[0]))
    words = model.topics(num)
    across = min(5, len(words))
    down = math.ceil(len(words) / across)
    figure = Figure(figsize=(2.4 * across, 0.24 * num * down + 0.9 * down), layout="constrained")
    for k, axes in enumerate(figure.subplots(down, across, squeeze=False).flat):
        axes.set_visible(k < len(words))
        if k < len(words):
            axes.barh(words[k][::-1], sorted(weights[k].topk(num).values.tolist()), color=f"C{k % 10}")
            axes.set_title(f"topic {k}", fontsize=10)
            axes.tick_params(labelsize=8)
    figure.suptitle("the most probable words in a document with a single topic")
    return figure


def _as_lines(x: Tensor) -> bool:
    """Whether sequences are a few numbers over time, rather than images."""
    return x.shape[2:].numel() <= 3


def draw_forecasts(model: Any, data: DataSet) -> Any:
    """Gives the model the first half of each row, and draws forecasts of the rest."""
    from matplotlib.figure import Figure

    x, steps = as_tensor(data.x_test[:6]), model.num_steps
    shown = max(1, steps // 2)
    drawn = model.impute({"x": x, "lengths": torch.full((len(x),), shown)}, 100, num_particles=100)
    if not _as_lines(x):  # as pictures, time going down
        blank = torch.full_like(x[:, shown:].float(), float(data.bounds[0]) if data.bounds else float(x.min()))
        grid = torch.stack([x.float(), torch.cat([x[:, :shown].float(), blank], 1), drawn.mean(0).float()])
        names = ("data", f"observed:\n{shown} of {steps} steps", "forecast:\nmean of 100 draws")
        return plotting.plot_grid(grid, bounds=data.bounds, row_labels=names, title="forecasts of held-out rows")
    figure, ahead = Figure(figsize=(9, 4.5), layout="constrained"), range(shown, steps + 1)
    values, draws = x.reshape(len(x), steps, -1), drawn.reshape(len(drawn), len(x), steps, -1).double()
    known = torch.full((len(x),), steps) if data.lengths_test is None else data.lengths_test[: len(x)]
    for row, axes in enumerate(figure.subplots(2, 3, sharex=True, sharey=True).flat):
        axes.set_visible(row < len(x))
        for c in range(values.shape[-1] if row < len(x) else 0):
            low, middle, high = draws[:, row, shown - 1 :, c].quantile(torch.tensor([0.05, 0.5, 0.95]).double(), 0)
            end = int(known[row])
            axes.fill_between(ahead, low, high, color=f"C{c}", alpha=0.25, label="90% of draws")
            axes.plot(ahead, middle, color=f"C{c}", label="median of draws")
            axes.plot(range(1, shown + 1), values[row, :shown, c], "k.-", label="observed")
            axes.plot(range(shown + 1, end + 1), values[row, shown:end, c], "k.", alpha=0.4, label="held back")
    handles, texts = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[:4], texts[:4], loc="outside upper center", ncols=4, frameon=False)
    figure.supxlabel("time step")
    return figure


_OF_MODELS: Mapping[str, Mapping[str, Callable[[Any, DataSet], Any]]] = {
    "clusters": {"by_cluster": draw_clusters},
    "topics": {"topics": draw_topics},
    "sequences": {"forecasts": draw_forecasts},
}
