"""Is the guide the posterior? Its weights, its gaps, a comparison with NUTS, and its calibration."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluation.calibration import LOG_LIKELIHOOD, simulation_based_calibration
from pyro_vae.evaluation.diagnostics import diagnose_guide
from pyro_vae.evaluation.evidence import log_evidence
from pyro_vae.evaluation.nuts import NutsPosterior, nuts_posterior
from pyro_vae.evaluation.refinement import gaps as gaps_of
from pyro_vae.evaluation.refinement import refine
from pyro_vae.evaluation.report.figures import plot_k_hat, plot_simulation_based_calibration
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.report.words import as_p_value
from pyro_vae.evaluation.summary import evaluate
from pyro_vae.programs.running import forked_random_state

__all__ = ["calibration", "gaps", "modes", "nuts", "weights"]

_GUIDE_DRAWS = 2000  # their moments are compared with those of NUTS


def weights(job: Job, section: Section) -> None:
    """Pareto-smoothed k̂ of each row's importance weights."""
    rows = job.some(job.size.guide_rows)
    found = diagnose_guide(job.pair, rows, job.size.particles, seed=job.seed)
    threshold = THRESHOLDS["k_hat"]
    section.about = (
        f"Pareto-smoothed k̂ of the importance weights of {len(found.k_hat):,} rows with {job.size.particles:,} draws "
        f"each. Up to {found.threshold:.2f}, weights can correct the guide; above 1 not even their mean can be "
        f"estimated. {threshold} With tens of latents, k̂ is high for sound models too; gaps, calibration and NUTS "
        f"tell their guides from wrong ones."
    )
    finite = found.k_hat.nan_to_num(nan=math.inf, posinf=math.inf)
    share, median = float(found.flagged.double().mean()), float(finite.median())
    section.numbers = {
        "k_hat_median": median,
        "share_above_threshold": share,
        "share_above_1": float((finite > 1).double().mean()),
        "threshold": found.threshold,
        "ess_median": float(found.ess.median()),
        "num_rows": len(found.k_hat),
        "num_particles": job.size.particles,
    }
    section.figures["k̂ of each row. Below 0.5, the guide is close to the posterior."] = plot_k_hat(found)
    level = threshold.level(flagged=share)
    what = {
        "fine": "The guide is close enough to the posterior for weights to correct it",
        "look": "Importance weights cannot correct the guide",
    }[level]
    section.found(
        "k_hat",
        level,
        f"{what}: k̂ is above {found.threshold:.2f} for {share:.0%} of the rows (median {median:.2f}); the median "
        f"effective sample size is {float(found.ess.median()):.0f} of {job.size.particles:,} draws.",
        flagged=share,
    )


def modes(job: Job, section: Section) -> None:
    """How much chains that start elsewhere find that the guide misses."""
    found = job.modes
    threshold = THRESHOLDS["modes"]
    gain, missed = float(found.gain.mean()), float(found.missed.mean())
    error = float(found.standard_error.square().sum().sqrt()) / len(found.gain)
    section.about = (
        f"{job.size.modes[1]} chains for each of {len(found.gain)} rows, half annealed from the prior and half from "
        f"the posteriors of other rows. Importance weighting then draws around their ends as well as from the guide, "
        f"and is as unbiased as from the guide alone. {threshold} Finding nothing does not prove that there is "
        f"nothing."
    )
    section.numbers = {
        "gain": gain,
        "gain_se": error,
        "missed": missed,
        "largest_missed": float(found.missed.max()),
        "num_rows": len(found.gain),
    }
    level = threshold.level(gain=gain, error=error, missed=missed)
    if gain < 0 and level == "wrong":
        text = (
            f"Weights from the guide find {-gain:.2f} ± {error:.2f} nats per row more than there are: in one of the "
            f"programs, the density of a latent is not that of its draws"
        )
    else:
        what = {
            "fine": "The guide misses next to nothing of the posterior",
            "look": "The guide misses some of the posterior",
            "wrong": "The guide misses much of the posterior",
        }[level]
        if level == "fine" and missed > threshold.limits["some"]:
            what = "Whether the guide misses some of the posterior cannot be told from chance"
        text = (
            f"{what}: chains that start elsewhere find {gain:z.2f} ± {error:.2f} nats per row more, {missed:.0%} of "
            f"the posterior"
        )
    section.found("modes", level, f"{text}.", gain=gain, error=error, missed=missed)


def gaps(job: Job, section: Section) -> None:
    """How far the ELBO is below the evidence, split into what amortisation and the family cost."""
    import pandas as pd

    num_rows, steps = job.size.gaps
    rows = job.some(num_rows)
    refined = refine(job.pair, rows, steps=steps, seed=job.seed)
    known = refined.rows()
    evidence = log_evidence(refined, known, num_particles=job.size.particles, seed=job.seed)
    found = gaps_of(job.pair, rows, evidence.log_evidence, refined=refined, seed=job.seed)
    mean = found.summary()
    amortisation, approximation = mean["amortisation"], mean["approximation"]
    rate = float(evaluate(refined, known, seed=job.seed)["rate"])
    threshold = THRESHOLDS["amortisation"]
    section.about = (
        f"The guide's family was fitted again to each of {len(rows['x'])} rows. The nats that this recovers are the "
        f"amortisation gap; the rest is the approximation gap. Together they are the KL from the guide to the "
        f"posterior. {threshold}"
    )
    section.numbers = {**mean, "refined_rate": rate, "num_rows": len(rows["x"])}
    section.tables[""] = pd.DataFrame(
        {
            "mean, nats per row": [amortisation, approximation],
            "largest of the rows": [float(found.amortisation.max()), float(found.approximation.max())],
        },
        index=pd.Index(["amortisation", "approximation"]),
    )
    text = (
        f"The encoder costs the ELBO {amortisation:z.2f} nats per row (refining each row recovers them) and its "
        f"family {approximation:z.2f}, where the refined rate is {rate:.2f}"
    )
    level = threshold.level(gap=amortisation, rate=rate)
    wrong = "The guide is far from the best of its family. "
    section.found("amortisation", level, f"{wrong if level == 'wrong' else ''}{text}.", gap=amortisation, rate=rate)


def nuts(job: Job, section: Section) -> None:
    """NUTS on a few rows: the moments of every continuous latent, compared with the guide's."""
    import pandas as pd

    num_rows, num_samples = job.size.nuts
    if not num_rows:
        raise ValueError("it takes up to minutes per row, so only the full suite does it")
    job.structure.require_local("it cannot be sampled a row at a time")
    records = {}
    rows = job.some(num_rows)
    for index in range(len(rows["x"])):
        row = _row(rows, index)
        found = nuts_posterior(job.pair, row, num_samples, num_samples, seed=job.seed)
        for site, record in _compared(found, _guide_draws(job, row)):
            records[f"row {index}" if len(found.draws) == 1 else f"row {index}, {site}"] = record
    of_scale, of_nuts = THRESHOLDS["nuts_scale"], THRESHOLDS["nuts_settled"]
    section.about = (
        f"Pyro's NUTS on the same program, 4 chains of {num_samples} draws for each of {len(rows['x'])} rows, compared "
        f"with {_GUIDE_DRAWS:,} draws from the guide. {of_scale} {of_nuts}"
    )
    section.tables[""] = pd.DataFrame.from_dict(records, orient="index")
    section.numbers = {"rows": records}
    ratios = [record["guide's sd over posterior's"] for record in records.values()]
    divergences = int(max(record["divergences"] for record in records.values()))
    r_hat = max(record["largest R̂"] for record in records.values())
    if (level := of_nuts.level(largest=r_hat, divergences=divergences)) != "fine":
        section.found(
            "nuts_settled",
            level,
            f"NUTS did not settle (R̂ up to {r_hat:.3f}, up to {divergences} divergences).",
            largest=r_hat,
            divergences=divergences,
        )
    section.found(
        "nuts_scale",
        of_scale.level(ratio=min(ratios)),
        f"The guide's standard deviations are {min(ratios):.2f} to {max(ratios):.2f} times those of NUTS.",
        ratio=min(ratios),
    )


def _row(rows: Mapping[str, Any], index: int) -> dict[str, Any]:
    """One of the rows, with its keyword arguments."""
    return {n: v[index : index + 1] if isinstance(v, Tensor) and v.dim() else v for n, v in rows.items()}


def _guide_draws(job: Job, row: Mapping[str, Any]) -> dict[str, Tensor]:
    """Draws from the guide for one row, ``(S, coordinates)`` in float64 by site."""
    with forked_random_state(job.pair.device):
        torch.manual_seed(job.seed)
        batch, options = job.pair.batch(row), {"enumerate_guide": False}
        latents = job.pair.draws(batch, job.structure, num_particles=_GUIDE_DRAWS, **options).latents
    return {name: latents[name].double().reshape(_GUIDE_DRAWS, -1).cpu() for name in job.structure.guided}


def _compared(found: NutsPosterior, of_guide: Mapping[str, Tensor]) -> Iterator[tuple[str, dict[str, float]]]:
    """For each site that both draw, the guide's moments compared with the posterior's."""
    for site in [site for site in found.draws if site in of_guide]:
        draws, guided = found.draws[site].double().flatten(0, 1).flatten(1).cpu(), of_guide[site]
        loc, scale = draws.mean(0), draws.std(0)
        yield (
            site,
            {
                "guide's sd over posterior's": float((guided.std(0) / scale).log().mean().exp()),
                "its mean's distance, in posterior sds": float(((guided.mean(0) - loc) / scale).abs().mean()),
                "largest R̂": float(found.r_hat[site].max()),
                "divergences": found.num_divergences,
            },
        )


def calibration(job: Job, section: Section) -> None:
    """Simulation-based calibration."""
    num_simulations, num_draws = job.size.simulations
    given, num_simulations = job.given(num_simulations)
    found = simulation_based_calibration(job.pair, num_simulations, num_draws, given=given, seed=job.seed)
    threshold = THRESHOLDS["calibration"]
    section.about = (
        f"Simulation-based calibration: {num_simulations:,} rows drawn from the model, and the rank of each row's own "
        f"latents among {num_draws} draws from the guide. Ranks are uniform if the guide is the posterior. "
        f"{threshold} If the guide has half the posterior's width, its ranks are spread 1.33 times as widely as "
        f"uniform ones; at twice the width, 0.62 times. If it is off by one width, its mean rank is off by 0.26."
    )
    section.tables["The quantities that stand out most."] = found.table.sort_values("p_value", kind="stable").head(12)
    section.figures["Ranks, and the band that holds all bars of an exact guide in 99% of cases."] = (
        plot_simulation_based_calibration(found)
    )
    latents = found.table.drop(LOG_LIKELIHOOD, errors="ignore")  # one number for all latents, which adds up all errors
    spread, shift = latents["spread"].to_list() or [1.0], [abs(r - 0.5) for r in latents["mean_rank"]] or [0.0]
    ends = [np.isin(found.ranks[name], (0, num_draws)).mean() for name in latents.index]
    beyond = max(ends, default=0.0) - 2 / (num_draws + 1)
    numbers = {"largest": max(spread), "smallest": min(spread), "off": max(shift), "beyond": float(beyond)}
    section.numbers = {
        "p_value": found.p_value,
        "smallest_spread": min(spread),
        "largest_spread": max(spread),
        "largest_shift": max(shift),
        "beyond_all_draws": float(beyond),
    }
    level = threshold.level(p_value=found.p_value, **numbers)
    what = {"fine": "calibrated", "look": "not quite calibrated", "wrong": "not calibrated"}[level]
    section.found(
        "calibration",
        level,
        f"On data drawn from the model, the guide is {what} ({as_p_value(found.p_value)}; the ranks of latents are "
        f"spread {min(spread):.2f} to {max(spread):.2f} times as widely as they should be, their mean is off by up to "
        f"{max(shift):.2f}, and up to {max(beyond, 0.0):.0%} too many lie beyond all draws).",
        p_value=found.p_value,
        **numbers,
    )
