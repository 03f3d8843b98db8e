"""Are samples good? Measures that need no likelihood."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.rows import Rows
from pyro_vae.evaluation.classifier import train_classifier_features
from pyro_vae.evaluation.described import as_described
from pyro_vae.evaluation.frechet import frechet_distance
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.samples import sample_quality
from pyro_vae.plotting import plot_samples
from pyro_vae.programs.running import forked_random_state

__all__ = ["samples"]


def samples(job: Job, section: Section) -> None:
    """Precision, recall, density, coverage and Fréchet distance, next to those between two halves of the real rows."""
    import pandas as pd

    real, drawn = _real_and_drawn(job)
    features, space = None, "between their elements"
    if job.train is not None and job.labels is not None:
        features, space = _features(job, section, job.train, job.labels)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(job.seed))  # rows may come sorted
    real, half = real[order], len(real) // 2
    quality = pd.DataFrame(
        {
            "samples": sample_quality(real, drawn, features=features),
            "real rows": sample_quality(real[:half], real[half : 2 * half], features=features),
        }
    )
    quality.loc["fréchet distance"] = [
        frechet_distance(real[:half], drawn[:half], features=features),
        frechet_distance(real[:half], real[half : 2 * half], features=features),
    ]
    threshold = THRESHOLDS["samples"]
    section.about += (
        f"{len(real):,} samples compared with as many held-out rows, by distances {space}. The second column compares "
        f"one half of the real rows with the other; the Fréchet distance is between halves in both columns. "
        f"Precision and density say whether samples lie where data lie, recall and coverage whether all data are found "
        f"among samples. {threshold} With more rows coverage falls, because neighbourhoods are smaller."
    )
    section.tables[""] = quality
    section.numbers |= {"num_rows": len(real), **{c: quality[c].to_dict() for c in quality}}
    section.figures["Samples from the model."] = plot_samples(drawn[:64])
    reached, possible = quality.loc["coverage"]
    level = threshold.level(reached=reached, possible=possible)
    what = {"fine": "are found", "look": "are not all found", "wrong": "are mostly not found"}[level]
    claim = f"The data {what} among the samples"
    if possible < threshold.limits["seen"]:
        claim = "Coverage cannot tell whether the data are found among the samples"
    section.found(
        "samples",
        level,
        f"{claim}: {reached:.0%} of the real rows have a sample in their neighbourhood, where other real rows reach "
        f"{possible:.0%}.",
        reached=reached,
        possible=possible,
    )


def _real_and_drawn(job: Job) -> tuple[Tensor, Tensor]:
    """Rows as the model describes them, and as many that it draws under the same conditions."""
    rows = job.some(job.size.sample_rows)
    given, num_rows = job.given(len(rows["x"]))
    with forked_random_state(job.pair.device):
        torch.manual_seed(job.seed)
        real = as_described(job.pair, rows["x"], job.pair.prepare(rows, redraw=True))
        if bool(real.isnan().any()):
            raise ValueError("distances between rows need every entry, and some are missing")
        drawn = job.pair.sample(num_rows, given=given).cpu().to(real.dtype)
    if real.dim() == 1:  # a row is one number
        real, drawn = real[:, None], drawn[:, None]
    return real, drawn


def _features(job: Job, section: Section, train: Rows, labels: Tensor) -> tuple[Callable[[Any], Any], str]:
    count = min(job.size.classifier_rows or train.num_rows, train.num_rows)
    x, labels = next(iter(train.batches([torch.arange(count)])))["x"], labels[:count]
    features = train_classifier_features(x, labels, seed=job.seed)
    section.numbers["classifier_accuracy"] = features.accuracy
    section.about = (
        f"A small classifier was trained on {len(x):,} labelled rows; it labels {features.accuracy:.1%} of "
        f"held-out rows correctly (the most frequent label alone: {features.most_frequent:.1%}). "
    )
    return features, "between the features of that classifier (this is not FID)"
