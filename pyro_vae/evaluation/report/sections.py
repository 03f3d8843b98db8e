r"""The whole evaluation of a pair in one call, with its findings in words.

:func:`evaluate_suite` runs every part of :mod:`pyro_vae.evaluation` that applies, and holds what it finds against
thresholds that are stated with it. A part that does not apply to a pair or its data says so in a sentence.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae.evaluation.annealing import ais_bounds
from pyro_vae.evaluation.calibration import LOG_LIKELIHOOD, predictive_coverage, simulation_based_calibration
from pyro_vae.evaluation.classifier import train_classifier_features
from pyro_vae.evaluation.criticism import PredictiveCheck, as_described, predictive_check
from pyro_vae.evaluation.diagnostics import diagnose_guide
from pyro_vae.evaluation.evidence import log_evidence
from pyro_vae.evaluation.frechet import frechet_distance
from pyro_vae.evaluation.nuts import nuts_posterior
from pyro_vae.evaluation.refinement import gaps, refine
from pyro_vae.evaluation.report.figures import (
    plot_coverage,
    plot_k_hat,
    plot_predictive_check,
    plot_simulation_based_calibration,
)
from pyro_vae.evaluation.samples import sample_quality
from pyro_vae.evaluation.summary import evaluate
from pyro_vae.inference.predictive import rows_of
from pyro_vae.pair import Array, Pair
from pyro_vae.plotting import plot_samples
from pyro_vae.programs import forked_random_state

__all__ = ["PARTS", "Finding", "Report", "Section", "evaluate_suite"]

Level = Literal["wrong", "look", "fine"]


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Args:
        level: ``"wrong"``: do not rely on it; ``"look"``: worth a look, or all right for some uses; ``"fine"``.
        text: What, in a sentence, with the number and the threshold it was held against.
    """

    level: Level
    text: str


@dataclass
class Section:
    """One part of a report.

    Args:
        title: Its heading.
        about: What was estimated and how, in a sentence or two; or why it was not.
        numbers: By name, for ``metrics.json``.
        findings: What they mean.
        tables: By caption.
        figures: By caption.
    """

    title: str
    about: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: dict[str, Figure] = field(default_factory=dict)

    def found(self, level: Level, text: str) -> None:
        """Adds a finding."""
        self.findings.append(Finding(level, text))


@dataclass(frozen=True)
class Report:
    """What :func:`evaluate_suite` found.

    Args:
        suite: ``"quick"`` or ``"full"``.
        sections: The parts by name, in their order.
    """

    suite: str
    sections: Mapping[str, Section]

    @property
    def findings(self) -> list[Finding]:
        """All findings, what is wrong first."""
        every = [finding for section in self.sections.values() for finding in section.findings]
        return sorted(every, key=lambda finding: ("wrong", "look", "fine").index(finding.level))

    @property
    def verdict(self) -> str:
        """How many findings of each kind, in one line."""
        count = {level: sum(f.level == level for f in self.findings) for level in ("wrong", "look", "fine")}
        wrong = f"{count['wrong']} {'thing is' if count['wrong'] == 1 else 'things are'} wrong"
        return f"{wrong if count['wrong'] else 'Nothing is wrong'}, {count['look']} to look at, {count['fine']} fine."

    def to_json(self) -> dict[str, Any]:
        """Numbers by section and the findings, as JSON data."""
        numbers = {name: section.numbers for name, section in self.sections.items() if section.numbers}
        findings = [{"level": finding.level, "text": finding.text} for finding in self.findings]
        return {"suite": self.suite, "verdict": self.verdict, "findings": findings, **_plain(numbers)}

    def __str__(self) -> str:
        lines = [f"{finding.level:<6}{finding.text}" for finding in self.findings]
        return "\n".join([self.verdict, *lines])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Size:
    """How much of each part a suite does; None is all rows."""

    evidence_rows: int | None
    particles: int
    guide_rows: int
    bounds: tuple[int, int, int]  # rows, chains, steps
    gaps: tuple[int, int]  # rows, steps of the refinement
    nuts: tuple[int, int]  # rows, draws of each chain
    simulations: tuple[int, int]  # rows drawn, draws of the guide for each
    coverage_rows: int
    check_rows: int | None
    replications: int
    sample_rows: int | None
    classifier_rows: int | None


_SIZES = {
    "quick": _Size(
        evidence_rows=200,
        particles=1000,
        guide_rows=200,
        bounds=(8, 4, 50),
        gaps=(20, 200),
        nuts=(0, 0),
        simulations=(300, 99),
        coverage_rows=300,
        check_rows=1000,
        replications=200,
        sample_rows=1000,
        classifier_rows=5000,
    ),
    "full": _Size(
        evidence_rows=None,
        particles=5000,
        guide_rows=1000,
        bounds=(100, 16, 1000),
        gaps=(500, 500),
        nuts=(3, 1000),
        simulations=(2000, 199),
        coverage_rows=2000,
        check_rows=None,
        replications=400,
        sample_rows=10_000,
        classifier_rows=None,
    ),
}


@dataclass(frozen=True)
class _Job:
    """What the parts are given."""

    pair: Pair
    x: Tensor
    context: dict[str, Any]
    train: tuple[Tensor, Tensor] | None
    size: _Size
    seed: int

    def rows(self, num_rows: int | None) -> tuple[Tensor, dict[str, Any]]:
        """So many rows, chosen by the seed, with their keyword arguments."""
        if num_rows is None or num_rows >= len(self.x):
            return self.x, self.context
        chosen = (
            torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.seed))[:num_rows].sort().values
        )
        return self.x[chosen], {name: torch.as_tensor(value)[chosen] for name, value in self.context.items()}


def evaluate_suite(
    pair: Pair,
    x: Array,
    *,
    suite: str = "quick",
    parts: Sequence[str] | None = None,
    train: tuple[Array, Array] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
    **context: Any,
) -> Report:
    r"""Runs the whole evaluation on rows that the model was not trained on.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows ``(N, *E)`` in the user's units.
        suite: ``"quick"`` looks at some of the rows, ``"full"`` at all of them where that can be done, and with more
            draws.
        parts: Names of the parts to run, such as ``["evidence", "prior_predictive"]``; by default all.
        train: Rows and labels that a classifier may be trained on, for a space of features; without any, distances
            between samples and data are taken between their elements.
        seed: Seeds every part.
        progress: Called with the title of each part before it begins.
        context: Keyword arguments of the programs, rows first.

    Returns:
        A :class:`Report`.

    Raises:
        ValueError: if the rows do not suit the model, or there is no such suite or part.

    Example:
        >>> from pyro_vae import fit, mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> x = torch.exp(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
        >>> vae = mlp_vae((2,), latent_dim=1, hidden_dims=(), likelihood=Normal(scale=1.0))
        >>> report = evaluate_suite(vae, x, parts=["prior_predictive"])
        >>> report.findings[0].level
        'wrong'
    """
    size = _SIZES[lookup(suite, _SIZES, "suite")]
    chosen = PARTS if parts is None else [lookup(name, PARTS, "part") for name in parts]
    x = pair.check(x, **context).cpu()
    held = None if train is None else (torch.as_tensor(train[0]), torch.as_tensor(train[1]))
    job = _Job(pair, x, context, held, size, seed)
    sections = {}
    for name in chosen:
        title, part = _PARTS[name]
        if progress is not None:
            progress(title)
        section = Section(title)
        try:
            with forked_random_state(pair.device):
                part(job, section)
        except (ValueError, NotImplementedError, FloatingPointError, ImportError) as error:
            section = Section(title, about=f"Not done: {' '.join(str(error).split())}.")
        sections[name] = section
    return Report(suite, sections)


def _summary(job: _Job, section: Section) -> None:
    metrics = evaluate(job.pair, job.x, seed=job.seed, **job.context)
    section.numbers = dict(metrics)
    section.about = (
        f"One draw of the guide for each of {metrics['num_rows']:,} rows; nats per row, ± standard error over rows."
    )
    names = ("elbo", "rate", "distortion", "bits_per_dim")
    section.tables[""] = pd.DataFrame(
        {"mean": [metrics[n] for n in names], "± over rows": [metrics.get(f"{n}_se", math.nan) for n in names]}, names
    )
    with forked_random_state(job.pair.device):
        num_latents = math.prod(job.pair.encode(job.x[:1], **rows_of(job.context, 0, 1)).event_shape)
    active = int(metrics["active_units"])
    section.numbers["num_latents"] = num_latents
    share = f"{active} of {num_latents} latents are active (their posterior mean varies by more than 0.01 over rows)"
    if active == 0:
        section.found("wrong", f"The latents say nothing of the rows: {share}.")
    else:
        idle = f"; {num_latents - active} could be left out" if active < num_latents else ""
        section.found("look" if active < 0.1 * num_latents else "fine", f"{share}{idle}.")


def _evidence(job: _Job, section: Section) -> None:
    rows, context = job.rows(job.size.evidence_rows)
    found = log_evidence(job.pair, rows, num_particles=job.size.particles, seed=job.seed, **context)
    curve = found.curve
    section.about = (
        f"Importance weighting from the guide, {len(rows):,} rows with {job.size.particles:,} particles each; nats per "
        f"row. A lower bound in expectation, which has settled where more particles add nothing: more than 1 nat over "
        f"the last step is worth a look. So is an ELBO that lacks more than half of the rate."
    )
    section.tables[""] = curve.set_index("num_particles")
    elbo, last = float(curve["log_evidence"].iloc[0]), found.mean
    step = last - float(curve["log_evidence"].iloc[-2])
    rate = float(evaluate(job.pair, rows, seed=job.seed, **context)["rate"])
    section.numbers = {
        "log_evidence": last,
        "log_evidence_se": found.mean_standard_error,
        "bits_per_dim": found.bits_per_dim,
        "gap": last - elbo,
        "num_rows": len(rows),
        "num_particles": job.size.particles,
        "curve": dict(zip(curve["num_particles"].astype(str), curve["log_evidence"], strict=True)),
    }
    few = int(curve["num_particles"].iloc[-2])
    settled = f"from {few:,} to {job.size.particles:,} particles the evidence rises by {step:z.2f} nats"
    if step > 1:
        section.found("look", f"The evidence is at least {last:.2f} nats per row, and more: {settled}.")
    else:
        section.found(
            "fine", f"The log evidence is {last:.2f} ± {found.mean_standard_error:.2f} nats per row; {settled}."
        )
    gap = f"The ELBO lies {last - elbo:z.2f} nats below the evidence, where the rate is {rate:.2f} nats"
    if last - elbo > 1 and last - elbo > 0.5 * rate:
        section.found("look", f"{gap}: the guide is a poor posterior.")
    else:
        section.found("fine", f"{gap}.")


def _guide(job: _Job, section: Section) -> None:
    rows, context = job.rows(min(job.size.guide_rows, len(job.x)))
    found = diagnose_guide(job.pair, rows, job.size.particles, seed=job.seed, **context)
    section.about = (
        f"Pareto-smoothed k̂ of the importance weights of {len(rows):,} rows with {job.size.particles:,} draws each. Up "
        f"to {found.threshold:.2f} weights can mend the guide; above 1 they have not even a mean to be found. Worth a "
        f"look where a tenth of the rows is above {found.threshold:.2f}. With tens of latents that is so for sound "
        f"models too; gaps, calibration and NUTS tell their guides from wrong ones."
    )
    finite = found.k_hat.nan_to_num(nan=math.inf, posinf=math.inf)
    share, median = float(found.flagged.double().mean()), float(finite.median())
    section.numbers = {
        "k_hat_median": median,
        "share_above_threshold": share,
        "share_above_1": float((finite > 1).double().mean()),
        "threshold": found.threshold,
        "ess_median": float(found.ess.median()),
        "num_rows": len(rows),
        "num_particles": job.size.particles,
    }
    section.figures["k̂ of each row: below 0.5 the guide is near the posterior."] = plot_k_hat(found)
    text = (
        f"k̂ is above {found.threshold:.2f} for {share:.0%} of the rows (median {median:.2f}); the median row has use "
        f"of {float(found.ess.median()):.0f} of {job.size.particles:,} draws"
    )
    if share > 0.1:
        section.found("look", f"Importance weights cannot mend the guide: {text}.")
    else:
        section.found("fine", f"The guide is near enough to the posterior for weights to mend it: {text}.")


def _bounds(job: _Job, section: Section) -> None:
    num_rows, num_chains, num_steps = job.size.bounds
    rows, context = job.rows(min(num_rows, len(job.x)))
    settings: dict[str, Any] = {"num_chains": num_chains, "num_steps": num_steps, "seed": job.seed}
    simulated = ais_bounds(job.pair, num_rows=len(rows), **settings, **context)
    annealed = ais_bounds(job.pair, rows, **settings, **context).lower
    weighted = log_evidence(job.pair, rows, num_particles=job.size.particles, seed=job.seed, **context)
    gap, gain = float(simulated.gap.mean()), float((annealed - weighted.log_evidence).mean())
    section.about = (
        f"Annealed importance sampling, {num_chains} chains of {num_steps:,} steps, on {len(rows)} rows that the "
        f"model drew, where bounds hold on both sides, and on {len(rows)} of the data, where the lower one does. Worth "
        f"a look where the bounds are more than 1 nat apart, or annealing finds 1 nat more than importance weighting."
    )
    section.numbers = {
        "simulated_lower": float(simulated.lower.mean()),
        "simulated_upper": float(simulated.gap.mean() + simulated.lower.mean()),
        "gap": gap,
        "annealed": float(annealed.mean()),
        "importance_weighted": weighted.mean,
        "acceptance": simulated.acceptance,
        "num_rows": len(rows),
    }
    section.tables[""] = pd.DataFrame.from_dict(
        {
            "rows of the model, from below": float(simulated.lower.mean()),
            "rows of the model, from above": section.numbers["simulated_upper"],
            "rows of the data, annealed, from below": float(annealed.mean()),
            "the same rows, importance weighting": weighted.mean,
        },
        orient="index",
        columns=["log evidence, nats per row"],
    )
    section.found(
        "look" if gap > 1 else "fine",
        f"On data that the model drew, its evidence lies between bounds {gap:z.2f} nats apart.",
    )
    section.found(
        "look" if gain > 1 else "fine",
        f"On the data, annealing finds {gain:z.2f} nats per row more than importance weighting with "
        f"{job.size.particles:,} particles{': the evidence above is too low' if gain > 1 else ''}.",
    )


def _gaps(job: _Job, section: Section) -> None:
    num_rows, steps = job.size.gaps
    rows, context = job.rows(min(num_rows, len(job.x)))
    refined = refine(job.pair, rows, steps=steps, seed=job.seed, **context)
    evidence = log_evidence(refined, rows, num_particles=job.size.particles, seed=job.seed, **context)
    found = gaps(job.pair, rows, evidence.log_evidence, refined=refined, seed=job.seed, **context)
    mean = found.summary()
    amortisation, approximation = mean["amortisation"], mean["approximation"]
    rate = float(evaluate(refined, rows, seed=job.seed, **context)["rate"])
    section.about = (
        f"The guide's family was fitted anew to each of {len(rows)} rows. What that recovers is the gap of "
        f"amortisation, what is then left that of the family. Together they are the KL from the guide to the "
        f"posterior. An amortisation gap of more than 1 nat and a quarter of the refined guide's rate is worth a look; "
        f"of more than half of it, the guide is wrong."
    )
    section.numbers = {**mean, "refined_rate": rate, "num_rows": len(rows)}
    section.tables[""] = pd.DataFrame(
        {
            "mean, nats per row": [amortisation, approximation],
            "largest of the rows": [float(found.amortisation.max()), float(found.approximation.max())],
        },
        index=pd.Index(["amortisation", "approximation"]),
    )
    text = (
        f"Of what the ELBO lacks, {amortisation:z.2f} nats per row are the encoder's (refining each row recovers "
        f"them) and {approximation:z.2f} its family's, where the refined rate is {rate:.2f}"
    )
    if amortisation > max(1.0, 0.5 * rate):
        section.found("wrong", f"The guide is far from what its family could be: {text}.")
    else:
        section.found("look" if amortisation > max(1.0, 0.25 * rate) else "fine", f"{text}.")


def _nuts(job: _Job, section: Section) -> None:
    num_rows, num_samples = job.size.nuts
    if not num_rows:
        raise ValueError("it takes up to minutes for a row, so only the full suite does it")
    rows, context = job.rows(num_rows)
    records = {}
    for index in range(len(rows)):
        row, here = rows[index : index + 1], rows_of(context, index, index + 1)
        found = nuts_posterior(job.pair, row, num_samples, num_samples, seed=job.seed, **here)
        if "z" not in found.draws:
            raise ValueError("the latent z is not among those that NUTS draws")
        draws = found.draws["z"].double().flatten(0, 2)
        with forked_random_state(job.pair.device):
            torch.manual_seed(job.seed)
            q_z = job.pair.encode(row, **here)
        loc, scale = (part.double().reshape(draws.shape[1:]) for part in (q_z.mean, q_z.stddev))
        records[f"row {index}"] = {
            "guide's sd over posterior's": float((scale / draws.std(0)).log().mean().exp()),
            "its mean's distance, in posterior sds": float(((loc - draws.mean(0)) / draws.std(0)).abs().mean()),
            "largest R̂": max(float(value.max()) for value in found.r_hat.values()),
            "divergences": found.num_divergences,
        }
    table = pd.DataFrame.from_dict(records, orient="index")
    section.about = (
        f"Pyro's NUTS on the same program, 4 chains of {num_samples} draws for each of {len(rows)} rows, against the "
        f"guide's q(z|x). A guide with less than half of the posterior's sd on average is wrong, less than 0.8 of it "
        f"worth a look; so are an R̂ above 1.01 and divergences, with which the comparison is not to be relied on."
    )
    section.tables[""] = table
    section.numbers = {"rows": records}
    ratios = [record["guide's sd over posterior's"] for record in records.values()]
    divergences = int(sum(record["divergences"] for record in records.values()))
    r_hat = max(record["largest R̂"] for record in records.values())
    if r_hat > 1.01 or divergences:
        section.found("look", f"NUTS did not settle (R̂ up to {r_hat:.3f}, {divergences} divergences).")
    level: Level = "wrong" if min(ratios) < 0.5 else "look" if min(ratios) < 0.8 else "fine"
    section.found(
        level, f"The guide's standard deviations are {min(ratios):.2f} to {max(ratios):.2f} of those that NUTS finds."
    )


def _calibration(job: _Job, section: Section) -> None:
    num_simulations, num_draws = job.size.simulations
    context = job.context
    if context:
        num_simulations = min(num_simulations, len(job.x))
        _, context = job.rows(num_simulations)
    found = simulation_based_calibration(job.pair, num_simulations, num_draws, seed=job.seed, **context)
    table = found.table.sort_values("p_value", kind="stable")
    section.about = (
        f"Simulation-based calibration: {num_simulations:,} rows drawn from the model, the rank of the z that made "
        f"each among {num_draws} draws of the guide. Ranks are uniform where the guide is the posterior. The "
        f"p-value of all quantities is held against 0.01. Below it the guide is wrong where the ranks of a latent "
        f"spread 1.25 times as wide as uniform ones or more (a guide of half the posterior's width: 1.33), 0.8 times "
        f"or less (twice its width: 0.62), or their mean is off by 0.2 (a guide that is off by its width: 0.26)."
    )
    section.tables["The quantities that stand out most."] = table.head(12)
    section.figures["Ranks, and the band that a right guide's bars keep to in 99%."] = (
        plot_simulation_based_calibration(found)
    )
    latents = found.table.drop(LOG_LIKELIHOOD, errors="ignore")  # one number for all latents: all errors add up in it
    spread, shift = latents["spread"].to_list(), max(abs(rank - 0.5) for rank in latents["mean_rank"].to_list())
    section.numbers = {
        "p_value": found.p_value,
        "smallest_spread": min(spread),
        "largest_spread": max(spread),
        "largest_shift": shift,
    }
    text = (
        f"p = {found.p_value:.2g}; the ranks of latents spread {min(spread):.2f} to {max(spread):.2f} times as wide as "
        f"they should, and their mean is off by up to {shift:.2f}"
    )
    if found.p_value >= 0.01:
        section.found("fine", f"On the model's own data the guide's posteriors are calibrated ({text}).")
    elif max(spread) >= 1.25 or min(spread) <= 0.8 or shift >= 0.2:
        section.found("wrong", f"On the model's own data the guide's posteriors are not calibrated ({text}).")
    else:
        section.found("look", f"On the model's own data the guide's posteriors are not quite calibrated ({text}).")


def _coverage(job: _Job, section: Section) -> None:
    rows, context = job.rows(min(job.size.coverage_rows, len(job.x)))
    try:
        found = predictive_coverage(job.pair, rows, seed=job.seed, **context)
        given = "given the rest of its row"
    except ValueError:  # the programs take no mask, or rows have a single entry
        found = predictive_coverage(job.pair, rows, kind="prior", seed=job.seed, **context)
        given = "given nothing of its row"
    levels, held = found.table.index.to_list(), found.table["coverage"].to_list()
    furthest = max(range(len(levels)), key=lambda place: abs(held[place] - levels[place]))
    off = abs(held[furthest] - levels[furthest])
    section.about = (
        f"One entry of each of {len(rows):,} rows, predicted {given}. The p-value of the whole distribution is held "
        f"against 0.01; below it the model is wrong where the coverage of a level is off by more than 0.1."
    )
    section.tables[""] = found.table
    section.figures["Coverage, ± two standard errors, and where entries lie in their distribution."] = plot_coverage(
        found
    )
    section.numbers = {
        "p_value": found.p_value,
        "coverage": dict(zip(map(str, levels), held, strict=True)),
        "kind": found.kind,
    }
    level: Level = "fine" if found.p_value >= 0.01 else "wrong" if off > 0.1 else "look"
    section.found(
        level,
        f"Intervals at {levels[furthest]:.0%}, where coverage is furthest off, hold {held[furthest]:.0%} of "
        f"the entries, {given} (p = {found.p_value:.2g} for all levels).",
    )


def _checks(kind: Literal["prior", "posterior"]) -> Callable[[_Job, Section], None]:
    def part(job: _Job, section: Section) -> None:
        rows, context = job.rows(job.size.check_rows)
        check = predictive_check(
            job.pair, rows, kind=kind, num_replications=job.size.replications, seed=job.seed, **context
        )
        drawn = "z from the prior" if kind == "prior" else "z from the guide at each row"
        section.about = (
            f"{job.size.replications} data sets of {len(rows):,} rows drawn with {drawn}, held against the data by "
            f"their statistics. The joint p-value is held against 0.01; a model it rejects is wrong where a statistic "
            f"with a p-value below 0.01 is off by more than a quarter, else worth a look."
        )
        section.numbers = {
            "joint_p_value": check.joint_p_value,
            "num_rows": len(rows),
            "p_values": check.table["p_value"].to_dict(),
        }
        section.findings.append(_judge(check))
        section.tables[""] = check.table
        section.figures["Statistics of data sets drawn, and of the data (line; red if p < 0.01)."] = (
            plot_predictive_check(check)
        )

    return part


def _judge(check: PredictiveCheck) -> Finding:
    p = f"joint p = {check.joint_p_value:.2g}"
    if check.joint_p_value >= 0.01:
        return Finding("fine", f"Data drawn from the {check.kind} predictive have the statistics of the data ({p}).")
    off = check.table.copy()
    size = off[["observed", "replicated"]].abs().max(axis=1)
    off["off"] = (off["observed"] - off["replicated"]).abs() / size.where(size > 0, 1.0)
    off = pd.DataFrame(off[off["p_value"] < 0.01]).sort_values("off", ascending=False, kind="stable")
    shown = "; ".join(
        f"{name} is {row['observed']:.3g} in the data and {row['replicated']:.3g} in what it draws"
        for name, row in off.head(3).iterrows()
    )
    more = f"; and {len(off) - 3} more" if len(off) > 3 else ""
    what = {
        "prior": "Data drawn from the model are not like the data",
        "posterior": "Even around each row it draws data that are not like them",
    }[check.kind]
    level: Level = "wrong" if off.empty or off["off"].iloc[0] > 0.25 else "look"
    return Finding(level, f"{what} ({p}): {shown or 'the statistics together stand out'}{more}.")


def _samples(job: _Job, section: Section) -> None:
    num_rows = min(len(job.x), job.size.sample_rows or len(job.x))
    rows, context = job.rows(num_rows)
    with forked_random_state(job.pair.device):
        torch.manual_seed(job.seed)
        prepared, with_mask, _ = job.pair.prepare(rows, context)
        if "mask" in with_mask and not bool(with_mask["mask"].all()):
            raise ValueError("distances between rows need every entry, and some are missing")
        real = as_described(job.pair, rows, prepared)
        samples = job.pair.sample(len(rows), **context).cpu().to(real.dtype)
    features, space = None, "between their elements"
    if job.train is not None:
        features, space = _features(job, section)
    half = len(real) // 2
    quality = pd.DataFrame(
        {
            "samples": sample_quality(real, samples, features=features),
            "real rows": sample_quality(real[:half], real[half : 2 * half], features=features),
        }
    )
    quality.loc["fréchet distance"] = [
        frechet_distance(real[:half], samples[:half], features=features),
        frechet_distance(real[:half], real[half : 2 * half], features=features),
    ]
    section.about += (
        f"{len(real):,} samples against as many rows that the model was not trained on, by distances {space}. Beside "
        f"it what one half of the real rows reaches against the other; the Fréchet distance is that of halves in both. "
        f"Precision and density ask whether samples lie where data lie, recall and coverage whether all data are found "
        f"among samples. Coverage below 0.8 of what real rows reach is worth a look, below half of it is wrong; "
        f"it falls with more rows, for neighbourhoods are then smaller."
    )
    section.tables[""] = quality
    section.numbers |= {"num_rows": len(real), **{c: quality[c].to_dict() for c in quality}}
    section.figures["Draws from the model."] = plot_samples(samples[:64])
    reached, possible = quality.loc["coverage"]
    level: Level = "fine" if reached >= 0.8 * possible else "look" if reached >= 0.5 * possible else "wrong"
    what = {"fine": "are found", "look": "are not all found", "wrong": "are mostly not found"}[level]
    section.found(
        level,
        f"The data {what} among its samples: {reached:.0%} of the real rows have a sample in their neighbourhood, "
        f"where other real rows reach {possible:.0%}.",
    )


def _features(job: _Job, section: Section) -> tuple[Callable[[Any], Any], str]:
    assert job.train is not None
    x, labels = (part[: job.size.classifier_rows] for part in job.train)
    features = train_classifier_features(x, labels, seed=job.seed)
    section.numbers["classifier_accuracy"] = features.accuracy
    section.about = (
        f"A small classifier was trained on {len(x):,} labelled rows; it labels {features.accuracy:.1%} of rows held "
        f"out rightly (the most frequent label alone {features.most_frequent:.1%}). "
    )
    return features, "between the features of that classifier (this is not FID)"


_PARTS: Mapping[str, tuple[str, Callable[[_Job, Section], None]]] = {
    "summary": ("The ELBO and its parts", _summary),
    "evidence": ("How probable are the rows? Evidence by importance weighting", _evidence),
    "bounds": ("Between which bounds does the evidence lie?", _bounds),
    "guide": ("Is the guide right for these rows?", _guide),
    "gaps": ("Why is the ELBO below the evidence?", _gaps),
    "nuts": ("Is the guide the posterior? NUTS on a few rows", _nuts),
    "calibration": ("Is the guide calibrated on the model's own data?", _calibration),
    "coverage": ("Do predictive intervals hold what they say?", _coverage),
    "prior_predictive": ("Does it draw such data? Prior predictive check", _checks("prior")),
    "posterior_predictive": ("Does its likelihood fit? Posterior predictive check", _checks("posterior")),
    "samples": ("Are its samples good?", _samples),
}

PARTS = tuple(_PARTS)  # their names, in the order of a report
