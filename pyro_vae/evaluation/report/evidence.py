"""How probable the rows are: the ELBO and its terms, the evidence, and bounds on it."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from pyro_vae.evaluation.annealing import ais_bounds
from pyro_vae.evaluation.evidence import log_evidence
from pyro_vae.evaluation.latents import latent_information
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.summary import ACTIVE_VARIANCE, evaluate

__all__ = ["bounds", "evidence", "summary"]

_COMPARED = 256  # rows whose posteriors are compared with one another


def summary(job: Job, section: Section) -> None:
    """The numbers of :func:`~pyro_vae.evaluation.evaluate`, and whether the latents are used."""
    import pandas as pd

    metrics = evaluate(job.pair, job.rows, seed=job.seed)
    section.numbers = dict(metrics)
    section.about = (
        f"One draw from the guide for each of {metrics['num_rows']:,} rows; nats per row, ± standard error over rows."
    )
    of_each = [n for n in metrics if n.startswith("rate_") and not n.endswith("_se")]
    names = [n for n in ("elbo", "rate", *of_each, "distortion", "bits_per_dim", "auxiliary") if n in metrics]
    section.tables[""] = pd.DataFrame(
        {"mean": [metrics[n] for n in names], "± over rows": [metrics.get(f"{n}_se", math.nan) for n in names]}, names
    )
    if "auxiliary" in metrics:
        section.about += " Sites that the guide observes (auxiliary) train the guide and are not part of the ELBO."
    rows = job.some(_COMPARED)
    if len(rows["x"]) < 2:
        return
    information = latent_information(job.pair, rows, seed=job.seed)
    if not information:
        section.about += " The information in the latents is not estimated: the guide draws none of known density."
        return
    of_site = {name: float(values.mean()) for name, values in information.items()}
    section.numbers["information"] = of_site
    threshold, every = THRESHOLDS["information"], torch.stack(list(information.values())).sum(0)
    nats, moved = float(every.mean()), float(every.abs().mean())
    section.about += (
        f" The latents' information about their row is a lower bound, from telling the row from 31 others. It "
        f"can be at most {math.log(32):.2f} nats. {threshold}"
    )
    level = threshold.level(nats=nats, moved=moved)
    text = f"at least {nats:z.2f} nats of information, where the rate is {metrics['rate']:.2f}"
    says = {"fine": "The latents tell rows apart", "look": "The latents say little about the rows"}
    idle = [name for name, value in of_site.items() if value < threshold.limits["none"]] if len(of_site) > 1 else []
    idle_text = f"; {', '.join(idle)} say{'s' if len(idle) == 1 else ''} nothing about them" if idle else ""
    section.found(
        "information",
        level,
        f"{says.get(level, 'The latents say nothing about the rows')}: {text}{_active(metrics)}{idle_text}.",
        nats=nats,
        moved=moved,
    )


def _active(metrics: Mapping[str, float]) -> str:
    """The usual count of active units for standard normal priors."""
    if "active_units" not in metrics:
        return ""
    active, latents = int(metrics["active_units"]), int(metrics["num_latents"])
    return f"; {active} of {latents} coordinates have a posterior mean that varies by more than {ACTIVE_VARIANCE:g}"


def evidence(job: Job, section: Section) -> None:
    """The evidence by importance weighting, and how far the ELBO is below it."""
    rows = job.some(job.size.evidence_rows)
    num_rows = len(rows["x"])
    found = log_evidence(job.pair, rows, num_particles=job.size.particles, seed=job.seed)
    curve = found.curve
    of_step, of_gap = THRESHOLDS["evidence_step"], THRESHOLDS["elbo_gap"]
    section.about = (
        f"Importance weighting from the guide, {num_rows:,} rows with {job.size.particles:,} particles each; nats per "
        f"row. A lower bound in expectation; it has settled when more particles add nothing. {of_step} {of_gap}"
    )
    if _draws_bits(job):
        section.about += " The transform is random: the evidence is that of one draw per row, the same for equal rows."
    section.tables[""] = curve.set_index("num_particles")
    elbo, last = float(curve["log_evidence"].iloc[0]), found.mean
    step, gap = last - float(curve["log_evidence"].iloc[-2]), last - elbo
    rate = float(evaluate(job.pair, rows, seed=job.seed)["rate"])
    section.numbers = {
        "log_evidence": last,
        "log_evidence_se": found.mean_standard_error,
        "log_evidence_mc_se": found.mean_monte_carlo_error,
        "reliable_rows": float(found.reliable.double().mean()),
        "gap": gap,
        "num_rows": num_rows,
        "num_particles": job.size.particles,
        "curve": dict(zip(curve["num_particles"].astype(str), curve["log_evidence"], strict=True)),
    }
    if math.isfinite(found.bits_per_dim):
        section.numbers["bits_per_dim"] = found.bits_per_dim
    few = int(curve["num_particles"].iloc[-2])
    settled = f"from {few:,} to {job.size.particles:,} particles the evidence rises by {step:z.2f} nats"
    level = of_step.level(step=step)
    found_beyond = _beyond(job)
    beyond = (
        f"on {job.size.modes[0]} rows, chains that start elsewhere find {found_beyond:.2f} nats that the guide misses"
        if found_beyond
        else ""
    )
    if level == "fine" and not beyond:
        error, of_draws = found.mean_standard_error, found.mean_monte_carlo_error
        unreliable = float((~found.reliable).double().mean())
        doubted = f"; for {unreliable:.0%} of the rows the error is unreliable (k̂)" if unreliable else ""
        section.found(
            "evidence_step",
            level,
            f"The log evidence is {last:.2f} ± {error:.2f} nats per row, ± {of_draws:.2g} from the draws alone; "
            f"{settled}{doubted}.",
            step=step,
        )
    else:
        more = beyond or settled
        section.found(
            "evidence_step",
            "look",
            f"The evidence is more than {last:.2f} nats per row: {more}.",
            step=max(step, found_beyond),
        )
    least = "at least " if beyond or level != "fine" else ""
    more = f", and chains that start elsewhere find {found_beyond:.2f} more" if found_beyond else ""
    level = of_gap.level(gap=gap + found_beyond, rate=rate)
    poor = ": the guide is a poor posterior" if level != "fine" else ""
    section.found(
        "elbo_gap",
        level,
        f"The ELBO is {least}{gap:z.2f} nats below the evidence{more}, where the rate is {rate:.2f} nats{poor}.",
        gap=gap + found_beyond,
        rate=rate,
    )


def _draws_bits(job: Job) -> bool:
    """Whether the transform is random, such as one from grey levels to bits."""
    rows = job.some(8)
    return not torch.equal(job.pair.prepare(rows).x, job.pair.prepare(rows, redraw=True).x)


def _beyond(job: Job) -> float:
    """Nats that chains from elsewhere find and the guide misses, if they are many; else 0."""
    try:
        found = job.modes
    except (ValueError, FloatingPointError, NotImplementedError):  # as the part "modes" says
        return 0.0
    gain, missed = float(found.gain.mean()), float(found.missed.mean())
    error = float(found.standard_error.square().sum().sqrt()) / len(found.gain)
    if THRESHOLDS["modes"].level(gain=gain, error=error, missed=missed) == "fine" or gain < 0:
        return 0.0
    return gain


def bounds(job: Job, section: Section) -> None:
    """Bounds by annealing, from both sides on rows of the model, and from below on the data."""
    import pandas as pd

    num_rows, num_chains, num_steps = job.size.bounds
    rows = job.some(num_rows)
    given, drawn = job.given(num_rows)
    num_rows = len(rows["x"])
    settings: dict[str, Any] = {"num_chains": num_chains, "num_steps": num_steps, "seed": job.seed}
    simulated = ais_bounds(job.pair, num_rows=min(drawn, num_rows), given=given, **settings)
    annealed = ais_bounds(job.pair, rows, **settings).lower
    weighted = log_evidence(job.pair, rows, num_particles=job.size.particles, seed=job.seed)
    gap, gain = float(simulated.gap.mean()), float((annealed - weighted.log_evidence).mean())
    upper = simulated.upper
    assert upper is not None
    of_gap, of_gain = THRESHOLDS["bounds"], THRESHOLDS["annealing_gain"]
    section.about = (
        f"Annealed importance sampling with {num_chains} chains of {num_steps:,} steps: on {num_rows} rows drawn from "
        f"the model, with bounds on both sides, and on {num_rows} rows of the data, with the lower bound only. "
        f"{of_gap} {of_gain}"
    )
    section.numbers = {
        "simulated_lower": float(simulated.lower.mean()),
        "simulated_upper": float(upper.mean()),
        "gap": gap,
        "annealed": float(annealed.mean()),
        "importance_weighted": weighted.mean,
        "acceptance": simulated.acceptance,
        "num_rows": num_rows,
    }
    section.tables[""] = pd.DataFrame.from_dict(
        {
            "rows of the model, from below": float(simulated.lower.mean()),
            "rows of the model, from above": float(upper.mean()),
            "rows of the data, annealed, from below": float(annealed.mean()),
            "the same rows, importance weighting": weighted.mean,
        },
        orient="index",
        columns=["log evidence, nats per row"],
    )
    section.found(
        "bounds",
        of_gap.level(gap=gap),
        f"On data drawn from the model, the bounds on the evidence are {gap:z.2f} nats apart"
        f"{': they cross, so some density is not that of its draws' if of_gap.level(gap=gap) == 'wrong' else ''}.",
        gap=gap,
    )
    level = of_gain.level(gain=gain)
    section.found(
        "annealing_gain",
        level,
        f"On the data, annealing finds {gain:z.2f} nats per row more than importance weighting with "
        f"{job.size.particles:,} particles{': the evidence above is too low' if level != 'fine' else ''}.",
        gain=gain,
    )
