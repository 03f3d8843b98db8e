"""Calibration of all latents together, and at rows of the data."""

import math
from typing import TYPE_CHECKING

from pyro_vae.evaluation.joint_ranks import DISTANCE, LOG_WEIGHT, JointCalibration, joint_calibration
from pyro_vae.evaluation.ranks_at_rows import calibration_at_rows
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.report.words import as_p_value

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["at_rows", "joint"]


def joint(job: Job, section: Section) -> None:
    """Ranks of the log-weight, and of distances to random points, on the model's rows."""
    num_simulations, num_draws = job.size.simulations
    given, num_simulations = job.given(num_simulations)
    found = joint_calibration(job.pair, num_simulations, num_draws, given=given, seed=job.seed)
    threshold = THRESHOLDS["joint_calibration"]
    section.about = (
        f"{num_simulations:,} rows drawn from the model. Functions of all latents together are ranked among "
        f"{num_draws} draws from the guide: the log-weight, which tells a posterior from a guide best, and the "
        f"distance to a random point drawn from the model (TARP). {threshold}"
    )
    section.tables[""] = found.table
    section.figures["Coverage of balls around random points. At each level, the band holds 99% of exact guides."] = (
        _coverage(found)
    )
    told = float(found.table.loc[LOG_WEIGHT, "mean_rank"]) if LOG_WEIGHT in found.table.index else math.nan
    levels, held = found.coverage.index.to_numpy(dtype=float), found.coverage["coverage"].to_numpy(dtype=float)
    furthest = int(abs(held - levels).argmax())
    section.numbers = {
        "p_value": found.p_value,
        "told_apart": told,
        "coverage_p_value": float(found.table.loc[DISTANCE, "p_value"]),
        "furthest_coverage": float(held[furthest]),
        "furthest_level": float(levels[furthest]),
    }
    level = threshold.level(p_value=found.p_value)
    what = {"fine": "cannot be told apart", "look": "can be told apart"}[level]
    by_weight = f"; the log-weight tells {told:.0%} of pairs apart, where 50% is chance"
    by_weight = by_weight if math.isfinite(told) else ""
    section.found(
        "joint_calibration",
        level,
        f"On data drawn from the model, draws from the guide and from the posterior {what}, all latents together "
        f"({as_p_value(found.p_value)}{by_weight}).",
        p_value=found.p_value,
    )


def _coverage(found: JointCalibration) -> "Figure":
    from matplotlib.figure import Figure
    from scipy import stats

    figure = Figure(figsize=(4.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    levels, num = found.coverage.index.to_numpy(dtype=float), len(found.ranks[DISTANCE])
    low, high = (stats.binom.ppf(tail, num, levels) / num for tail in (0.005, 0.995))
    axes.fill_between(levels, low, high, color="#000000", alpha=0.13, linewidth=0)
    axes.plot([0, 1], [0, 1], color="#1b1b1b", linewidth=0.8)
    axes.plot(levels, found.coverage["coverage"], color="#2c6e9b")
    axes.set(xlabel="share of the guide's draws in the ball", ylabel="share of rows whose latents are in the ball")
    return figure


def at_rows(job: Job, section: Section) -> None:
    """Ranks of the guide's draws among chains near each row's posterior."""
    num_rows, num_transitions = job.size.at_rows
    rows = job.some(num_rows)
    found = calibration_at_rows(job.pair, rows, num_transitions=num_transitions, seed=job.seed)
    threshold = THRESHOLDS["calibration_at_rows"]
    section.about = (
        f"At each of {len(rows['x']):,} rows of the data, {num_transitions} Hamiltonian Monte Carlo transitions start "
        f"from a draw from the guide, and {found.num_chains} chains of as many start from their end. The rank of the "
        f"draw among the chains' ends is uniform if the guide is the posterior, whether or not the chains mix. If the "
        f"guide is too narrow, the ranks crowd in the middle. {threshold}"
    )
    section.tables["The quantities that stand out most."] = found.table.sort_values("p_value", kind="stable").head(12)
    latents = found.table.iloc[:-2]  # without the two log-probabilities, which add up all errors
    smallest, largest = float(latents["spread"].min()), float(latents["spread"].max())
    off = float((latents["mean_rank"] - 0.5).abs().max())
    section.numbers = {
        "p_value": found.p_value,
        "smallest_spread": smallest,
        "largest_spread": largest,
        "largest_shift": off,
        "num_rows": len(rows["x"]),
    }
    level = threshold.level(p_value=found.p_value, largest=largest, smallest=smallest, off=off)
    what = {"fine": "is calibrated", "look": "is not quite calibrated", "wrong": "is not calibrated"}[level]
    section.found(
        "calibration_at_rows",
        level,
        f"At rows of the data the guide {what} ({as_p_value(found.p_value)}; its ranks among chains near the posterior "
        f"are spread {smallest:.2f} to {largest:.2f} times as widely as they should be).",
        p_value=found.p_value,
        largest=largest,
        smallest=smallest,
        off=off,
    )
