"""How did training go, and has the model memorised its training rows?"""

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
        rise, rate = float(bound[-tenth:].mean() - bound[-2 * tenth : -tenth].mean()), float(history["kl"].iloc[-1])
        threshold = THRESHOLDS["rise"]
        level = threshold.level(rise=rise, rate=rate)
        section.numbers["rise"] = rise
        section.about += f" {threshold}"
        fallen = name == "validation_elbo" and _fallen(section, highest - float(bound[-tenth:].mean()), rate, epoch)
        if level != "fine" or not fallen:  # a bound that has fallen far is not fine for not rising
            section.found(
                "rise",
                level,
                f"The {what} was {'no longer' if level == 'fine' else 'still'} rising when training ended: it "
                f"{'fell' if rise < 0 else 'rose'} by {abs(rise):.2f} nats between the last two tenths of the epochs.",
                rise=rise,
                rate=rate,
            )
    section.figures["ELBO and its parts, by epoch"] = plot_curves(history)


def _fallen(section: Section, fall: float, rate: float, epoch: int) -> bool:
    """Whether the bound fell far below its highest, which is then a finding."""
    threshold = THRESHOLDS["fall"]
    level = threshold.level(fall=fall, rate=rate)
    section.numbers["fall"] = fall
    section.about += f" {threshold}"
    if level != "fine":
        section.found(
            "fall",
            level,
            f"The validation ELBO fell by {fall:.2f} nats after epoch {epoch}, whose weights were kept: from then on "
            f"the model learned its training rows by heart. Train with a lower learning rate, or a smaller model.",
            fall=fall,
            rate=rate,
        )
    return level != "fine"


def training(job: Job, section: Section) -> None:
    """The ELBO of training and of held-out rows, and the distances of samples to both."""
    if job.train is None:
        raise ValueError(
            "the training rows are needed to see whether the model has memorised them, and whether the held-out rows "
            "are among them: pass train=x_train"
        )
    section.about = f"The {job.train.num_rows:,} rows that the model was trained on, compared with held-out rows. "
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
    what = {"fine": "carries over", "look": "only partly carries over", "wrong": "does not carry over"}[level]
    section.found(
        "overfitting",
        level,
        f"Training {what} to new rows: the ELBO is {on_train['elbo']:.2f} on training rows and "
        f"{on_held['elbo']:.2f} on held-out rows, {gap:z.2f} ± {error:.2f} nats apart, where the rate is "
        f"{on_held['rate']:.2f}.",
        **numbers,
    )


def _copies(job: Job, section: Section) -> None:
    assert job.train is not None
    held, train = job.some(job.size.sample_rows), job.some(job.size.train_rows, job.train)
    given, num_rows = job.given(len(held["x"]))
    torch.manual_seed(job.seed)
    real, known = (as_described(job.pair, rows["x"], job.pair.prepare(rows)) for rows in (held, train))
    if bool(real.isnan().any() or known.isnan().any()):
        section.about += "Samples are not compared with training rows, because entries are missing."
        return
    drawn = job.pair.sample(num_rows, given=given).cpu().to(real.dtype)
    found = memory_of(drawn, known, real)
    of_copies, of_leaks = THRESHOLDS["copies"], THRESHOLDS["leaks"]
    section.about += (
        f"{len(drawn):,} samples and {len(real):,} held-out rows are paired to see which is relatively nearer to "
        f"training rows than to held-out ones. {of_copies} {of_leaks}"
    )
    section.numbers |= {
        "nearer": found.nearer,
        "nearer_se": found.standard_error,
        "leaked": found.leaked,
        "twins": found.twins,
    }
    numbers = {"nearer": found.nearer, "error": found.standard_error}
    level = of_copies.level(**numbers)
    what = {"fine": "not copies", "look": "close to copies", "wrong": "copies"}[level]
    section.found(
        "copies",
        level,
        f"Samples are {what} of training rows: in {found.nearer:.0%} of pairs the sample is relatively nearer to them "
        f"than the held-out row, where 50% is chance.",
        **numbers,
    )
    numbers = {"leaked": found.leaked, "twins": found.twins, "num_rows": len(real)}
    level = of_leaks.level(**numbers)
    what = {
        "fine": "The held-out rows are new",
        "look": "Some held-out rows are among the training rows",
        "wrong": "Held-out rows are among the training rows, so results on new rows are too good",
    }[level]
    section.found(
        "leaks",
        level,
        f"{what}: {found.leaked:.1%} of the held-out rows have an exact twin among the training rows, as do "
        f"{found.twins:.1%} of the training rows themselves.",
        **numbers,
    )
