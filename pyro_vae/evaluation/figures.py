"""Figures of what the evaluation found."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_vae.evaluation.criticism import PredictiveCheck
from pyro_vae.evaluation.diagnostics import GuideDiagnosis

__all__ = ["plot_k_hat", "plot_predictive_check", "plot_rate_distortion"]

_DRAWN, _OBSERVED, _WRONG = "#9db4c8", "#1b1b1b", "#c0392b"


def plot_predictive_check(check: PredictiveCheck, *, max_panels: int = 12) -> Figure:
    """Draws, for each statistic, its values in the data sets drawn, and a line where the observed data are.

    With more statistics than panels, those that stand out most are drawn. A red line has a p-value below 0.01.
    """
    table = check.table
    if len(table) > max_panels:
        distance = (table["observed"] - table["replicated"]).abs() / (table["replicated_sd"] + 1e-12)
        furthest = np.argsort(-distance.to_numpy(), kind="stable")[:max_panels]
        table = table.iloc[np.sort(furthest)]
    columns = min(4, len(table))
    rows = math.ceil(len(table) / columns)
    figure = Figure(figsize=(2.9 * columns, 1.9 * rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    shown = zip(table.index.astype(str), table["observed"].to_list(), table["p_value"].to_list(), strict=True)
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
        axes.set_title(f"{name}, p = {p_value:.2g}", fontsize=9)
        axes.set_yticks([])
        axes.tick_params(labelsize=7)
        axes.locator_params(axis="x", nbins=4)
    for axes in grid[len(table) :]:
        axes.set_visible(False)
    return figure


def plot_k_hat(found: GuideDiagnosis) -> Figure:
    """Draws how the rows' k̂ are distributed, and the threshold above which not to rely on importance weights."""
    figure = Figure(figsize=(5.2, 2.6), layout="constrained")
    axes = figure.add_subplot()
    finite = found.k_hat[found.k_hat.isfinite()].cpu().numpy()
    axes.hist(finite, bins=30, color=_DRAWN)
    axes.axvline(found.threshold, color=_WRONG, label=f"threshold {found.threshold:.2f}")
    axes.set(xlabel="k̂", ylabel="rows")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_rate_distortion(curve: pd.DataFrame) -> Figure:
    """Draws distortion against rate, a point for each β, and the lines of equal ELBO through it."""
    figure = Figure(figsize=(5.2, 4), layout="constrained")
    axes = figure.add_subplot()
    curve = curve.sort_values("rate")
    axes.plot(curve["rate"], curve["distortion"], marker="o", color="#2c6e9b")
    for beta, rate, distortion in curve[["beta", "rate", "distortion"]].itertuples(index=False, name=None):
        axes.annotate(f"β = {beta:g}", (rate, distortion), xytext=(6, 5), textcoords="offset points", fontsize=8)
    best = curve.sort_values("elbo").iloc[-1].to_dict()
    axes.axline(
        (best["rate"], best["distortion"]),
        slope=-1,
        color="#888888",
        linewidth=0.8,
        linestyle="--",
        label=f"ELBO = {best['elbo']:.2f}",
    )
    axes.margins(0.12)
    axes.set(xlabel="rate: KL from posterior to prior, nats", ylabel="distortion: −E log p(x|z), nats")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    return figure
