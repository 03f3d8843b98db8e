r"""The whole evaluation of a pair in one call, with its findings in words.

:func:`evaluate_suite` runs every part of :mod:`pyro_vae.evaluation` that applies, and compares the results with the
thresholds of :mod:`pyro_vae.evaluation.report.thresholds`, which the report states. If a part does not apply to a pair
or its data, its section says why.
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
    "summary": ("The ELBO and its terms", evidence.summary),
    "evidence": ("How probable are the rows? Evidence by importance weighting", evidence.evidence),
    "bounds": ("How tight are bounds on the evidence?", evidence.bounds),
    "modes": ("Does the guide miss modes? Chains from elsewhere", guide.modes),
    "guide": ("Is the guide right for these rows?", guide.weights),
    "gaps": ("Why is the ELBO below the evidence?", guide.gaps),
    "nuts": ("Is the guide the posterior? NUTS on a few rows", guide.nuts),
    "calibration": ("Is the guide calibrated on data drawn from the model?", guide.calibration),
    "joint_calibration": ("Is it calibrated for all latents together?", calibration.joint),
    "calibration_at_rows": ("Is the guide calibrated at rows of the data?", calibration.at_rows),
    "coverage": ("Do predictive intervals hold the share they claim?", predictive.coverage),
    "prior_predictive": ("Does the model draw data like these? Prior predictive check", predictive.checks("prior")),
    "posterior_predictive": ("Does the likelihood fit? Posterior predictive check", predictive.checks("posterior")),
    "samples": ("Are the samples good?", samples.samples),
    "curves": ("How did training go?", training.curves),
    "training": ("Has the model memorised its training rows?", training.training),
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
        suite: ``"quick"`` uses some of the rows, ``"full"`` all of them where possible, and more draws.
        parts: Names of the parts to run, such as ``["evidence", "prior_predictive"]``; by default all.
        train: The rows that the pair was trained on, with what goes with them, to see whether it has memorised them.
            In a tuple with their labels, a classifier is trained on them, and samples and data are compared by its
            features; without labels, by their elements.
        history: The result of :func:`~pyro_vae.fit`, for the training curves.
        settings: Options of the training by name, to be shown in the report.
        seed: Seeds every part.
        progress: Called with the title of each part before it begins.

    Returns:
        A :class:`~pyro_vae.evaluation.Report`. If a part fails or does not apply, its section says why.

    Raises:
        ValueError: if the rows do not fit the model, the programs break the contract, the suite or a part is
            unknown, or there is one row.
        TypeError: if a keyword argument is one that neither program takes.

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
    if rows.num_rows < 2:
        raise ValueError("a report needs at least 2 rows, as one says nothing about the spread of any number; found 1")
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
    except Exception as error:  # raised by the programs themselves: the other parts still run
        return Section(title, about=f"Not done: {type(error).__name__}: {_sentence(error)}.")
    return section


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
