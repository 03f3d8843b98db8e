"""Does the model fit? Predictive intervals, and simulated data sets compared with the data."""

from collections.abc import Callable
from typing import Any, Literal

from pyro_vae.evaluation.coverage import predictive_coverage
from pyro_vae.evaluation.criticism import PredictiveCheck, predictive_check
from pyro_vae.evaluation.report.figures import plot_coverage, plot_predictive_check
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.report.words import as_number, as_p_value
from pyro_vae.inference.structure import ContractError

__all__ = ["checks", "coverage"]

_OF_PLACE = ("mean", "lower tail", "upper tail")  # statistics that move with the data
_LEAST = {"skewness": 1.0, "correlation": 1.0, "share": 0.2, "zeros": 0.2, "lowest": 0.2, "highest": 0.2}


def coverage(job: Job, section: Section) -> None:
    """Intervals for one entry of each row."""
    rows = job.some(job.size.coverage_rows)
    try:
        found = predictive_coverage(job.pair, rows, kind=_kind(job), seed=job.seed)
    except ContractError:
        raise
    except ValueError:  # the programs take no mask, or rows have a single entry
        found = predictive_coverage(job.pair, rows, kind="prior", seed=job.seed)
    given = "each given the rest of its row" if found.kind == "posterior" else "each drawn without the rest of its row"
    threshold = THRESHOLDS["coverage"]
    levels, held = found.table.index.to_list(), found.table["coverage"].to_list()
    furthest = max(range(len(levels)), key=lambda place: abs(held[place] - levels[place]))
    section.about = f"One entry of each of {len(found.pit):,} rows, predicted {given}. {threshold}"
    section.tables[""] = found.table
    section.figures["Coverage, ± two standard errors, and where entries lie in their distribution."] = plot_coverage(
        found
    )
    section.numbers = {
        "p_value": found.p_value,
        "coverage": dict(zip(map(str, levels), held, strict=True)),
        "kind": found.kind,
    }
    numbers = {"p_value": found.p_value, "distance": abs(held[furthest] - levels[furthest])}
    section.found(
        "coverage",
        threshold.level(**numbers),
        f"Where coverage is furthest off, {levels[furthest]:.0%} intervals hold {held[furthest]:.0%} of the entries, "
        f"{given} ({as_p_value(found.p_value)} for all levels).",
        **numbers,
    )


def _kind(job: Job) -> Literal["prior", "posterior"]:
    """Whether intervals use the rest of the row: they do if the encoder was trained on rows with missing entries.

    If it was not, its posterior for a row with a hidden entry may be too far off for importance weights, and a right
    model would be called wrong.
    """
    return "posterior" if job.pair.has_met_gaps else "prior"


def checks(kind: Literal["prior", "posterior"]) -> Callable[[Job, Section], None]:
    """The part that compares the data with data sets drawn from the prior or the posterior predictive."""

    def part(job: Job, section: Section) -> None:
        rows = job.some(job.size.check_rows)
        check = predictive_check(job.pair, rows, kind=kind, num_replications=job.size.replications, seed=job.seed)
        drawn = "latents from the prior" if kind == "prior" else "latents from the guide at each row"
        section.about = (
            f"{job.size.replications} data sets of {check.num_rows:,} rows drawn with {drawn}, and their statistics "
            f"compared with those of the data. {THRESHOLDS['checks']}"
        )
        section.numbers = {
            "joint_p_value": check.joint_p_value,
            "num_rows": check.num_rows,
            "p_values": check.table["p_value"].to_dict(),
        }
        _judge(check, section)
        section.tables[""] = check.table
        section.figures["Statistics of the simulated data sets, and of the data (line; red if p < 0.01)."] = (
            plot_predictive_check(check)
        )

    return part


def _judge(check: PredictiveCheck, section: Section) -> None:
    p = f"joint {as_p_value(check.joint_p_value)}"
    threshold = THRESHOLDS["checks"]
    off: Any = check.table.copy()
    off["off"] = (off["observed"] - off["replicated"]).abs() / _sizes(off)
    low = max(threshold.limits["p"], off["p_value"].min() + 1e-12)  # with few data sets, none may be below
    off = off[off["p_value"] < low].sort_values("off", ascending=False, kind="stable")
    numbers = {"p_value": check.joint_p_value, "share": float(off["off"].iloc[0]) if len(off) else 0.0}
    level = threshold.level(**numbers)
    if level == "fine":
        text = f"Data drawn from the {check.kind} predictive have the same statistics as the data ({p})."
        section.found("checks", level, text, **numbers)
        return
    shown = "; ".join(
        f"{name} is {as_number(row['observed'])} in the data and {as_number(row['replicated'])} in its draws"
        for name, row in off.head(3).iterrows()
    )
    more = f"; and {len(off) - 3} more" if len(off) > 3 else ""
    what = {
        "prior": "Data drawn from the model are unlike the data",
        "posterior": "Even from the latents of each row, the model draws data unlike the data",
    }[check.kind]
    section.found("checks", level, f"{what} ({p}): {shown}{more}.", **numbers)


def _sizes(table: Any) -> Any:
    """The size that a difference is a share of: the statistic itself, or its unit if the statistic may be near 0."""
    sizes = table[["observed", "replicated"]].abs().max(axis=1)
    for name in table.index:
        least = [size for part, size in _LEAST.items() if part in name]
        sizes[name] = max(sizes[name], *least, 0.0)
        for place in _OF_PLACE:
            sd = name.replace(place, "sd")
            if place in name and sd in table.index:
                sizes[name] = max(table.loc[sd, "observed"], table.loc[sd, "replicated"])
    return sizes.where(sizes > 0, 1.0)
