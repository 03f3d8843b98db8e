r"""The whole evaluation of a pair in one call, with its findings in words.

:func:`evaluate_suite` runs every part of :mod:`pyro_vae.evaluation` that applies, and compares what it finds with the
thresholds of :mod:`pyro_vae.evaluation.report.thresholds`, which are stated with it. A part that does not apply to a
pair or its data says so in a sentence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae._support.arrays import as_tensor
from pyro_vae._support.names import lookup
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.report import calibration, evidence, guide, predictive, samples, training
from pyro_vae.evaluation.report.facts import facts
from pyro_vae.evaluation.report.findings import Report, Section
from pyro_vae.evaluation.report.job import SIZES, Job
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PARTS", "evaluate_suite"]

Part = Callable[[Job, Section], None]

_PARTS: Mapping[str, tuple[str, Part]] = {
    "summary": ("The ELBO and its parts", evidence.summary),
    "evidence": ("How probable are the rows? Evidence by importance weighting", evidence.evidence),
    "bounds": ("Between which bounds does the evidence lie?", evidence.bounds),
    "modes": ("Does the guide miss modes? Chains from elsewhere", guide.modes),
    "guide": ("Is the guide right for these rows?", guide.weights),
    "gaps": ("Why is the ELBO below the evidence?", guide.gaps),
    "nuts": ("Is the guide the posterior? NUTS on a few rows", guide.nuts),
    "calibration": ("Is the guide calibrated on the model's own data?", guide.calibration),
    "joint_calibration": ("Is it calibrated for all latents together?", calibration.joint),
    "calibration_at_rows": ("Is the guide calibrated at the data's own rows?", calibration.at_rows),
    "coverage": ("Do predictive intervals hold what they say?", predictive.coverage),
    "prior_predictive": ("Does it draw such data? Prior predictive check", predictive.checks("prior")),
    "posterior_predictive": ("Does its likelihood fit? Posterior predictive check", predictive.checks("posterior")),
    "samples": ("Are its samples good?", samples.samples),
    "curves": ("How did its training go?", training.curves),
    "training": ("Has it learned its training rows by heart?", training.training),
}

PARTS = tuple(_PARTS)  # their names, in the order of a report


def evaluate_suite(
    pair: Pair,
    x: Inputs,
    *,
    suite: str = "quick",
    parts: Sequence[str] | None = None,
    train: Inputs | tuple[Inputs, Inputs] | None = None,
    history: "pd.DataFrame | None" = None,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Report:
    r"""Runs the whole evaluation on rows that the model was not trained on.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows, as :func:`~pyro_vae.fit` takes them.
        suite: ``"quick"`` looks at some of the rows, ``"full"`` at all of them where that can be done, and with more
            draws.
        parts: Names of the parts to run, such as ``["evidence", "prior_predictive"]``; by default all.
        train: The rows that the pair was trained on, with what goes with them, to see whether it has learned them by
            heart. In a tuple with their labels, a classifier is trained on them, for a space of features; without
            labels, distances between samples and data are taken between their elements.
        history: What :func:`~pyro_vae.fit` returned, for the curves of the training.
        settings: What the pair was trained with, by name, which the report repeats.
        seed: Seeds every part.
        progress: Called with the title of each part before it begins.

    Returns:
        A :class:`~pyro_vae.evaluation.Report`. A part that cannot be done says why, and the others are done.

    Raises:
        ValueError: if the rows do not fit the model, the programs break the contract, or there is no such suite or
            part.
        TypeError: if there is a keyword argument that neither program takes.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> x = torch.exp(torch.randn(500, 2, generator=torch.Generator().manual_seed(0)))
        >>> vae = mlp_vae((2,), latent_dim=1, hidden_dims=(), likelihood=Normal(scale=1.0))
        >>> report = evaluate_suite(vae, x, parts=["prior_predictive"])
        >>> report.findings[0].level
        'wrong'
    """
    size = SIZES[lookup(suite, SIZES, "suite")]
    chosen = PARTS if parts is None else [lookup(name, PARTS, "part") for name in parts]
    rows = pair.check(x, fingerprint=True)
    with forked_random_state(pair.device):
        few = next(iter(rows.batches([torch.arange(min(3, rows.num_rows))])))
        structure = pair.structure(pair.prepare(few))
    known, labels = train if isinstance(train, tuple) else (train, None)
    job = Job(
        pair,
        rows,
        structure,
        None if known is None else pair.check(known),
        None if labels is None else as_tensor(labels),
        history,
        size,
        seed,
    )
    sections = {}
    for name in chosen:
        title, part = _PARTS[name]
        if progress is not None:
            progress(title)
        sections[name] = _section(title, part, job)
    return Report(suite, sections, facts(pair, rows, seed, settings or {}))


def _section(title: str, part: Part, job: Job) -> Section:
    section = Section(title)
    try:
        with forked_random_state(job.pair.device):
            part(job, section)
    except (ValueError, NotImplementedError, FloatingPointError, ImportError) as error:
        return Section(title, about=f"Not done: {_sentence(error)}.")
    except Exception as error:  # of the programs' own: the other parts are not lost for it
        return Section(title, about=f"Not done: it fails with {type(error).__name__}, {_sentence(error)}.")
    return section


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
