"""Pictures of tables that are better looked at."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from pyro_vae._support.figures import new_figure
from pyro_vae.results.row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["differences_of", "rate_and_distortion"]


def differences_of(column: str, label: str) -> Callable[[list[Row]], "Figure"]:
    """Draws a column's numbers with an interval of two standard errors, a line for each row, and zero."""

    def plot(rows: list[Row]) -> "Figure":
        shown = [row for row in rows if isinstance(row.get(column), Mapping)]
        figure = new_figure(figsize=(7.2, 0.6 + 0.26 * len(shown)), layout="constrained")
        axes = figure.add_subplot()
        values, errors = ([row[column][part] for row in shown] for part in ("value", "error"))
        places = range(len(shown))
        axes.errorbar(values, places, xerr=[2 * error for error in errors], fmt="o", color="#2c6e9b", markersize=4)
        axes.axvline(0, color="#888888", linewidth=0.8)
        axes.set_yticks(places, [row[""] for row in shown], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        return figure

    return plot


def rate_and_distortion(rows: list[Row]) -> "Figure":
    """Draws distortion against rate, one panel for each set of data, with the closed form where there is one."""
    panels: dict[str, list[Row]] = {}
    for row in rows:
        panels.setdefault(row[""].partition(",")[0], []).append(row)
    figure = new_figure(figsize=(4 * len(panels), 3.4), layout="constrained")
    for axes, (name, shown) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        parts = [
            [row[part][number] for row in shown] for part in ("rate", "distortion") for number in ("value", "error")
        ]
        rates, rate_errors, distortions, distortion_errors = parts
        if "rate in theory" in shown[0]:
            theory = [[row[f"{part} in theory"] for row in shown] for part in ("rate", "distortion")]
            axes.plot(*theory, color="black", linewidth=0.8, marker="x", label="closed form")
        bars = {"xerr": [2 * error for error in rate_errors], "yerr": [2 * error for error in distortion_errors]}
        axes.errorbar(rates, distortions, fmt="o", color="#2c6e9b", markersize=4, label="trained", **bars)
        for row in shown:
            weight, place = row[""].partition(", ")[2], (row["rate"]["value"], row["distortion"]["value"])
            axes.annotate(weight, place, xytext=(5, 4), textcoords="offset points", fontsize=8)
        axes.set(title=name, xlabel="rate, nats", ylabel="distortion, nats")
        axes.margins(x=0.22, y=0.1)
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    return figure
