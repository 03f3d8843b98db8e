"""How training went, and whether it learned from its rows or learned them by heart."""

import torch

from pyro_vae.evaluation.described import as_described
from pyro_vae.evaluation.memory import memory_of
from pyro_vae.evaluation.report.findings import Section
from pyro_vae.evaluation.report.job import Job
from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.evaluation.summary import evaluate
from pyro_vae.plotting import plot_curves

__all__ = ["curves", "training"]


def curves(job: Job, section: Section) -> None:
    """The bound by epoch, the best one, and how far it still rose at the end."""
    history = job.history
    if history is None:
        raise ValueError("the history of its training was not given: history=fit(...)")
    if not {"epoch", "elbo", "reconstruction", "kl"} <= set(history) or not len(history):
        raise ValueError("a history has a row for each epoch, with the columns that fit returns")
    name, what = ("validation_elbo", "validation ELBO") if "validation_elbo" in history else ("elbo", "training ELBO")
    bound, tenth = history[name].to_numpy(), len(history) // 10
    best = int(bound.argmax())
    epoch, highest = int(history["epoch"].iloc[best]), float(bound[best])
    section.numbers |= {"epochs": len(history), "best_epoch": epoch, "best": highest}
    section.about = f"The {what} was highest after epoch {epoch} of {len(history)}: {highest:.2f} nats."
    if tenth:
        rise = float(bound[-tenth:].mean() - bound[-2 * tenth : -tenth].mean())
        section.numbers["rise"] = rise
        section.about += (
            f" From the last tenth of the epochs but one to the last it rose by {rise:z.2f} nats: where that matters, "
            f"train longer."
        )
    section.figures["ELBO and its parts, by epoch"] = plot_curves(history)


def training(job: Job, section: Section) -> None:
    """The ELBO of training rows beside that of held-out ones, and samples beside both."""
    if job.train is None:
        raise ValueError(
            "whether it has learned its training rows by heart, and whether the held-out rows are among them, cannot "
            "be told without them: give them, train=x_train"
        )
    section.about = f"Rows that it was trained on, {job.train.num_rows:,}, beside rows that it was not. "
    _overfitting(job, section)
    _copies(job, section)


def _overfitting(job: Job, section: Section) -> None:
    assert job.train is not None
    count = job.size.check_rows
    on_train, on_held = (evaluate(job.pair, job.some(count, rows), seed=job.seed) for rows in (job.train, job.rows))
    gap = on_train["elbo"] - on_held["elbo"]
    error = float(torch.tensor([on_train.get("elbo_se", 0.0), on_held.get("elbo_se", 0.0)]).norm())
    threshold = THRESHOLDS["overfitting"]
    section.about += f"{threshold} "
    section.numbers |= {"elbo_train": on_train["elbo"], "elbo_held_out": on_held["elbo"], "elbo_gap_se": error}
    numbers = {"gap": gap, "error": error, "rate": on_held["rate"]}
    level = threshold.level(**numbers)
    what = {"fine": "holds on new rows", "look": "is lower on new rows", "wrong": "does not hold on new rows"}[level]
    section.found(
        "overfitting",
        level,
        f"What it learned {what}: the ELBO is {on_train['elbo']:.2f} on training rows and {on_held['elbo']:.2f} on "
        f"others, {gap:z.2f} ± {error:.2f} nats apart, where the rate is {on_held['rate']:.2f}.",
        **numbers,
    )


def _copies(job: Job, section: Section) -> None:
    assert job.train is not None
    held, train = job.some(job.size.sample_rows), job.some(job.size.train_rows, job.train)
    given, num_rows = job.given(len(held["x"]))
    torch.manual_seed(job.seed)
    real, known = (as_described(job.pair, rows["x"], job.pair.prepare(rows)) for rows in (held, train))
    if bool(real.isnan().any() or known.isnan().any()):
        section.about += "Whether samples are copies is not said, for entries are missing."
        return
    drawn = job.pair.sample(num_rows, given=given).cpu().to(real.dtype)
    found = memory_of(drawn, known, real)
    of_copies, of_leaks = THRESHOLDS["copies"], THRESHOLDS["leaks"]
    section.about += (
        f"Of {len(drawn):,} samples and {len(real):,} held-out rows, which of the two is relatively nearer to training "
        f"rows than to held-out ones. {of_copies} {of_leaks}"
    )
    section.numbers |= {
        "nearer": found.nearer,
        "nearer_se": found.standard_error,
        "leaked": found.leaked,
        "twins": found.twins,
    }
    numbers = {"nearer": found.nearer, "error": found.standard_error}
    level = of_copies.level(**numbers)
    what = {"fine": "no copies", "look": "near to copies", "wrong": "copies"}[level]
    section.found(
        "copies",
        level,
        f"Samples are {what} of training rows: in {found.nearer:.0%} of pairs the sample lies relatively nearer to "
        f"them than a held-out row does, where 50% is chance.",
        **numbers,
    )
    numbers = {"leaked": found.leaked, "twins": found.twins, "num_rows": len(real)}
    level = of_leaks.level(**numbers)
    what = {
        "fine": "The held-out rows are new",
        "look": "Some held-out rows are among the training rows",
        "wrong": "Held-out rows are among the training rows, so that what is said of new rows is too good",
    }[level]
    section.found(
        "leaks",
        level,
        f"{what}: {found.leaked:.1%} have an exact twin there, as {found.twins:.1%} of the training rows have among "
        f"themselves.",
        **numbers,
    )
