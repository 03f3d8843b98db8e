"""Figures of the evaluation's results."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae._support.figures import new_figure
from pyro_vae.evaluation.report.words import as_p_value

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from pyro_vae.evaluation.calibration import SimulationBasedCalibration
    from pyro_vae.evaluation.coverage import PredictiveCoverage
    from pyro_vae.evaluation.criticism import PredictiveCheck
    from pyro_vae.evaluation.diagnostics import GuideDiagnosis

__all__ = [
    "plot_coverage",
    "plot_k_hat",
    "plot_predictive_check",
    "plot_rate_distortion",
    "plot_simulation_based_calibration",
]

_DRAWN, _OBSERVED, _WRONG = "#9db4c8", "#1b1b1b", "#c0392b"


def _figure(width: float, height: float) -> "Figure":
    return new_figure(figsize=(width, height), layout="constrained")


def plot_predictive_check(check: "PredictiveCheck", *, max_panels: int = 12) -> "Figure":
    """Draws a histogram of each statistic over the simulated data sets, and a line at its value in the data.

    With more statistics than panels, those that stand out most are shown. A line is red if its p-value is below 0.01.
    """
    table = check.table
    if len(table) > max_panels:
        distance = (table["observed"] - table["replicated"]).abs() / (table["replicated_sd"] + 1e-12)
        furthest = np.argsort(-distance.to_numpy(), kind="stable")[:max_panels]
        table = table.iloc[np.sort(furthest)]
    columns = min(4, len(table))
    rows = math.ceil(len(table) / columns)
    figure = _figure(2.9 * columns, 1.9 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    shown = zip(table.index.astype(str), table["observed"].to_list(), list(table["p_value"]), strict=True)
    for axes, (name, observed, p_value) in zip(grid, shown, strict=False):
        drawn = check.replications[name]
        low, high = min(drawn.min(), observed), max(drawn.max(), observed)
        margin = 0.05 * (high - low) or 0.5
        axes.hist(
            drawn,
            bins=np.linspace(drawn.min(), max(drawn.max(), drawn.min() + 0.5 * margin), 21 if np.ptp(drawn) else 2),
            color=_DRAWN,
        )
        axes.axvline(observed, color=_WRONG if p_value < 0.01 else _OBSERVED, linewidth=2)
        axes.set_xlim(low - margin, high + margin)
        axes.set_title(f"{name}, {as_p_value(p_value)}", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=4)
    for axes in grid[len(table) :]:
        axes.set_visible(False)
    return figure


def plot_k_hat(found: "GuideDiagnosis") -> "Figure":
    """Draws a histogram of the rows' k̂, and the threshold above which importance weights are unreliable."""
    figure = _figure(5.2, 2.6)
    axes = figure.add_subplot()
    finite = found.k_hat[found.k_hat.isfinite()].cpu().numpy()
    axes.hist(finite, bins=30, color=_DRAWN)
    axes.axvline(found.threshold, color=_WRONG, label=f"threshold {found.threshold:.2f}")
    axes.set(xlabel="k̂", ylabel="rows")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_rate_distortion(curve: "pd.DataFrame") -> "Figure":
    """Draws distortion against rate, a point for each β, and the line of equal ELBO through the best point."""
    figure = _figure(5.2, 4)
    axes = figure.add_subplot()
    curve = curve.sort_values("rate")
    axes.plot(curve["rate"], curve["distortion"], marker="o", color="#2c6e9b")
    for beta, rate, distortion in curve[["beta", "rate", "distortion"]].itertuples(index=False, name=None):
        place: Any = {"xytext": (2, 6), "textcoords": "offset points", "rotation": 40, "rotation_mode": "anchor"}
        axes.annotate(f"β = {beta:g}", (rate, distortion), fontsize=8, **place)
    best = curve.sort_values("elbo").iloc[-1].to_dict()
    axes.axline(
        (best["rate"], best["distortion"]),
        slope=-1,
        color="#888888",
        linewidth=0.8,
        linestyle="--",
        label=f"ELBO = {best['elbo']:.2f}".replace("-", "−"),
    )
    axes.margins(0.12)
    axes.set(xlabel="rate: KL from posterior to prior, nats", ylabel="distortion: −E log p(x|z), nats")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    return figure


def plot_simulation_based_calibration(found: "SimulationBasedCalibration", *, max_panels: int = 12) -> "Figure":
    """Draws the histogram of each quantity's ranks, with the band that holds all bars of an exact guide.

    The band holds in 99% of cases for one quantity: it is each bar's binomial interval at 99%, corrected for the
    number of bars (Bonferroni). With more quantities than panels, those with the smallest p-values are shown. Red ones
    have an adjusted p-value below 0.01.
    """
    p_values: Any = found.table["p_value"]
    most = p_values.sort_values(kind="stable").index[:max_panels]
    table = found.table[found.table.index.isin(most)]
    columns = min(4, len(table))
    rows = math.ceil(len(table) / columns)
    figure = _figure(2.9 * columns, 1.9 * rows)
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, (name, row), p_value in zip(grid, table.iterrows(), list(table["p_value"]), strict=False):
        wrong = bool(row["adjusted_p_value"] < 0.01)
        _histogram(axes, found.ranks[str(name)], found.num_draws + 1, found.num_bins, _WRONG if wrong else _DRAWN)
        axes.set_title(f"{name}, {as_p_value(p_value)}", fontsize=9)
        axes.set_yticks([])
        axes.set_xticks([0, found.num_draws])
        axes.tick_params(labelsize=7)
    for axes in grid[len(table) :]:
        axes.set_visible(False)
    return figure


def plot_coverage(found: "PredictiveCoverage") -> "Figure":
    """Draws the coverage of each level with two standard errors on both sides, and the histogram of the PIT.

    The histogram's band holds all bars of a right model in 99% of cases.
    """
    figure = _figure(7.6, 3.4)
    left, right = figure.subplots(1, 2)
    levels = found.table.index.to_numpy(dtype=float)
    left.plot([0, 1], [0, 1], color="#888888", linewidth=0.8, linestyle="--")
    wrong = found.table["p_value"].to_numpy() < 0.01
    for chosen, color in ((~wrong, "#2c6e9b"), (wrong, _WRONG)):
        some = found.table[chosen]
        left.errorbar(levels[chosen], some["coverage"], 2 * some["standard_error"], fmt="o", color=color, capsize=3)
    left.set(xlabel="level of the interval", ylabel="share of entries inside", xlim=(0, 1.03), ylim=(0, 1.03))
    color = _WRONG if found.p_value < 0.01 else _DRAWN
    _histogram(right, (found.pit * found.num_bins).astype(int), found.num_bins, found.num_bins, color, ends=(0, 1))
    right.set(xlabel="where the entry lies in its distribution (PIT)", ylabel="entries")
    right.set_title(as_p_value(found.p_value), fontsize=9)
    return figure


def _histogram(
    axes: Any, ranks: np.ndarray, num_ranks: int, num_bins: int, color: str, ends: tuple[float, float] | None = None
) -> None:
    """Ranks 0, …, num_ranks − 1 in bins, the uniform expectation, and the band that holds all bars in 99% of cases."""
    from scipy import stats

    share = np.bincount(np.arange(num_ranks) * num_bins // num_ranks, minlength=num_bins) / num_ranks
    counts = np.bincount(ranks * num_bins // num_ranks, minlength=num_bins)
    low, high = ends or (0, num_ranks - 1)
    edges = np.linspace(low, high, num_bins + 1) if ends else np.append(0, np.cumsum(share)) * num_ranks - 0.5
    tail = 0.01 / num_bins / 2
    band = stats.binom.ppf([[tail], [1 - tail]], len(ranks), share)
    axes.stairs(counts, edges, fill=True, color=color)
    axes.stairs(band[1], edges, baseline=band[0], fill=True, color="#000000", alpha=0.13)
    axes.stairs(share * len(ranks), edges, baseline=None, color=_OBSERVED, linewidth=0.8)
    axes.set_ylim(0, 1.12 * max(counts.max(), band[1].max()))
