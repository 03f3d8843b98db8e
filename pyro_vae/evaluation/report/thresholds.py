"""The thresholds of a report: one table, which the sections, the documentation and the tests read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["LEVELS", "THRESHOLDS", "Level", "Threshold", "as_markdown"]

Level = Literal["wrong", "look", "fine"]

LEVELS: tuple[Level, ...] = ("wrong", "look", "fine")  # wrong first


@dataclass(frozen=True)
class Threshold:
    """The limits that one number, or several together, are compared with.

    Args:
        what: The number, in words.
        fine: When it is fine, with the limits in braces, as :meth:`str.format` takes them.
        look: When it is worth a look.
        wrong: When it is wrong; empty if it never is by itself.
        limits: The limits by name.
        worth_a_look: Whether the numbers, passed by keyword along with the limits, are worth a look.
        is_wrong: Whether they are wrong.

    Example:
        >>> THRESHOLDS["amortisation"].level(gap=3.0, rate=10.0)
        'look'
        >>> print(THRESHOLDS["amortisation"])
        Amortisation gap. Fine: up to 0.5 nats, or up to 25% of the refined guide's rate; worth a look: more; wrong:
        more than 0.5 nats and more than 50% of that rate.
    """

    what: str
    fine: str
    look: str
    wrong: str
    limits: Mapping[str, float]
    worth_a_look: Callable[..., bool]
    is_wrong: Callable[..., bool] = lambda **numbers: False

    def level(self, **numbers: float) -> Level:
        """The level of these numbers."""
        if self.is_wrong(**numbers, **self.limits):
            return "wrong"
        return "look" if self.worth_a_look(**numbers, **self.limits) else "fine"

    def in_words(self, level: Level) -> str:
        """When a number is of this level, with the limits' values; empty if it never is."""
        return getattr(self, level).format(**self.limits)

    def __str__(self) -> str:
        said: dict[Level, str] = {"fine": "Fine", "look": "worth a look", "wrong": "wrong"}
        parts = [f"{name}: {text}" for level, name in said.items() if (text := self.in_words(level))]
        return f"{self.what[0].upper()}{self.what[1:]}. {'; '.join(parts)}."


def _of_share(share: float, num_rows: int) -> float:
    """The standard error of a share of ``num_rows`` rows."""
    return (share * (1 - share) / num_rows) ** 0.5


THRESHOLDS: Mapping[str, Threshold] = {
    "information": Threshold(
        "information of the latents about their row",
        fine="from {little:g} nats",
        look="less",
        wrong="less than {none:g} nats, and the guide's log-densities of a draw under different rows differ by less "
        "than {still:g} on average",
        limits={"little": 0.1, "none": 0.005, "still": 0.05},
        worth_a_look=lambda nats, moved, little, none, still: nats < little,
        is_wrong=lambda nats, moved, little, none, still: nats < none and moved < still,
    ),
    "evidence_step": Threshold(
        "rise of the evidence over the last increase in particles",
        fine="up to {nats:g} nat",
        look="more",
        wrong="",
        limits={"nats": 1.0},
        worth_a_look=lambda step, nats: step > nats,
    ),
    "elbo_gap": Threshold(
        "ELBO below the evidence",
        fine="up to {nats:g} nat, or up to {share:.0%} of the rate",
        look="more",
        wrong="",
        limits={"nats": 1.0, "share": 0.5},
        worth_a_look=lambda gap, rate, nats, share: gap > max(nats, share * rate),
    ),
    "bounds": Threshold(
        "bounds from below and above, on rows drawn from the model",
        fine="up to {nats:g} nat apart",
        look="further apart",
        wrong="crossed by more than {nats:g} nat",
        limits={"nats": 1.0},
        worth_a_look=lambda gap, nats: gap > nats,
        is_wrong=lambda gap, nats: gap < -nats,
    ),
    "annealing_gain": Threshold(
        "annealing above importance weighting, on the data",
        fine="up to {nats:g} nat",
        look="more",
        wrong="",
        limits={"nats": 1.0},
        worth_a_look=lambda gain, nats: gain > nats,
    ),
    "modes": Threshold(
        "share of the posterior that chains from elsewhere find and the guide misses",
        fine="up to {some:.0%}, or a gain of {errors:g} standard errors",
        look="more",
        wrong="more than {much:.0%}, or a loss of more than {nats:g} nats and {errors:g} standard errors",
        limits={"some": 0.1, "much": 0.25, "errors": 3.0, "nats": 0.3},
        worth_a_look=lambda gain, error, missed, some, much, errors, nats: missed > some and gain > errors * error,
        is_wrong=lambda gain, error, missed, some, much, errors, nats: (
            (missed > much and gain > errors * error) or -gain > max(nats, errors * error)
        ),
    ),
    "k_hat": Threshold(
        "k̂ of the guide's weights",
        fine="above 0.7 (less with few draws) for up to {share:.0%} of the rows",
        look="for more of them",
        wrong="",
        limits={"share": 0.1},
        worth_a_look=lambda flagged, share: flagged > share,
    ),
    "amortisation": Threshold(
        "amortisation gap",
        fine="up to {nats:g} nats, or up to {some:.0%} of the refined guide's rate",
        look="more",
        wrong="more than {nats:g} nats and more than {much:.0%} of that rate",
        limits={"nats": 0.5, "some": 0.25, "much": 0.5},
        worth_a_look=lambda gap, rate, nats, some, much: gap > max(nats, some * rate),
        is_wrong=lambda gap, rate, nats, some, much: gap > max(nats, much * rate),
    ),
    "nuts_scale": Threshold(
        "the guide's standard deviation over that of NUTS",
        fine="{narrow:g} or more on average over a row's latents",
        look="less",
        wrong="less than {collapsed:g}",
        limits={"narrow": 0.8, "collapsed": 0.5},
        worth_a_look=lambda ratio, narrow, collapsed: ratio < narrow,
        is_wrong=lambda ratio, narrow, collapsed: ratio < collapsed,
    ),
    "nuts_settled": Threshold(
        "NUTS itself",
        fine="R̂ up to {r_hat:g} and no divergences",
        look="otherwise",
        wrong="",
        limits={"r_hat": 1.01},
        worth_a_look=lambda largest, divergences, r_hat: largest > r_hat or divergences > 0,
    ),
    "calibration": Threshold(
        "simulation-based calibration, p-value of all quantities",
        fine="from {p:g}",
        look="below",
        wrong="below, and the ranks of a latent are spread {wide:g} times as widely as uniform ones or more, {tight:g} "
        "times or less, their mean is off by {shift:g} or more, or {outside:.0%} too many of them lie beyond all draws",
        limits={"p": 0.01, "wide": 1.25, "tight": 0.8, "shift": 0.2, "outside": 0.1},
        worth_a_look=lambda p_value, largest, smallest, off, beyond, p, wide, tight, shift, outside: p_value < p,
        is_wrong=lambda p_value, largest, smallest, off, beyond, p, wide, tight, shift, outside: (
            p_value < p and (largest >= wide or smallest <= tight or off >= shift or beyond >= outside)
        ),
    ),
    "joint_calibration": Threshold(
        "calibration of all latents together, p-value",
        fine="from {p:g}",
        look="below",
        wrong="",
        limits={"p": 0.01},
        worth_a_look=lambda p_value, p: p_value < p,
    ),
    "calibration_at_rows": Threshold(
        "calibration at rows of the data, p-value of all quantities",
        fine="from {p:g}",
        look="below",
        wrong="below, and the ranks of a latent are spread {wide:g} times as widely as uniform ones or more, {tight:g} "
        "times or less, or their mean is off by {shift:g} or more",
        limits={"p": 0.01, "wide": 1.25, "tight": 0.8, "shift": 0.2},
        worth_a_look=lambda p_value, largest, smallest, off, p, wide, tight, shift: p_value < p,
        is_wrong=lambda p_value, largest, smallest, off, p, wide, tight, shift: (
            p_value < p and (largest >= wide or smallest <= tight or off >= shift)
        ),
    ),
    "coverage": Threshold(
        "coverage of held-out entries, p-value of all levels",
        fine="from {p:g}",
        look="below",
        wrong="below, and a level is off by more than {off:g}",
        limits={"p": 0.01, "off": 0.1},
        worth_a_look=lambda p_value, distance, p, off: p_value < p,
        is_wrong=lambda p_value, distance, p, off: p_value < p and distance > off,
    ),
    "checks": Threshold(
        "predictive checks, joint p-value",
        fine="from {p:g}",
        look="below",
        wrong="below, and a statistic whose own p-value is below {p:g} is off by more than {off:.0%} of itself "
        "(means and tails: of the standard deviation; skewness and correlations: of 1; shares: of 20% at least)",
        limits={"p": 0.01, "off": 0.25},
        worth_a_look=lambda p_value, share, p, off: p_value < p,
        is_wrong=lambda p_value, share, p, off: p_value < p and share > off,
    ),
    "samples": Threshold(
        "coverage of samples, compared with that of real rows",
        fine="{most:.0%} of it or more",
        look="less, or real rows reach less than {seen:.0%}",
        wrong="less than {half:.0%}",
        limits={"most": 0.8, "half": 0.5, "seen": 0.5},
        worth_a_look=lambda reached, possible, most, half, seen: reached < most * possible or possible < seen,
        is_wrong=lambda reached, possible, most, half, seen: reached < half * possible,
    ),
    "rise": Threshold(
        "rise of the ELBO in training between the last two tenths of the epochs",
        fine="up to {nats:g} nats, or {share:.0%} of the rate",
        look="more",
        wrong="",
        limits={"nats": 0.1, "share": 0.05},
        worth_a_look=lambda rise, rate, nats, share: rise > max(nats, share * rate),
    ),
    "fall": Threshold(
        "fall of the validation ELBO from its best epoch to the last tenth",
        fine="up to {nats:g} nat, or {share:.0%} of the rate at the end",
        look="more: training went on for too long, at this learning rate",
        wrong="",
        limits={"nats": 1.0, "share": 0.1},
        worth_a_look=lambda fall, rate, nats, share: fall > max(nats, share * rate),
    ),
    "overfitting": Threshold(
        "ELBO of training rows above that of held-out ones",
        fine="up to {nats:g} nat, or {errors:g} standard errors",
        look="more",
        wrong="more, and more than {share:.0%} of the rate",
        limits={"nats": 1.0, "errors": 3.0, "share": 0.5},
        worth_a_look=lambda gap, error, rate, nats, errors, share: gap > max(nats, errors * error),
        is_wrong=lambda gap, error, rate, nats, errors, share: gap > max(nats, errors * error, share * rate),
    ),
    "copies": Threshold(
        "pairs in which a sample is nearer to training rows than a held-out row",
        fine="up to {some:.0%}, or {errors:g} standard errors above 50%",
        look="more",
        wrong="more than {most:.0%}",
        limits={"some": 0.6, "most": 0.75, "errors": 4.0},
        worth_a_look=lambda nearer, error, some, most, errors: nearer > max(some, 0.5 + errors * error),
        is_wrong=lambda nearer, error, some, most, errors: nearer > max(most, 0.5 + errors * error),
    ),
    "leaks": Threshold(
        "held-out rows with a twin among training rows, beyond the share of training rows that have one",
        fine="up to {few:.0%}, or {errors:g} standard errors",
        look="more",
        wrong="more than {many:.0%}",
        limits={"few": 0.005, "many": 0.05, "errors": 4.0},
        worth_a_look=lambda leaked, twins, num_rows, few, many, errors: (
            leaked - twins > max(few, errors * _of_share(leaked, num_rows))
        ),
        is_wrong=lambda leaked, twins, num_rows, few, many, errors: (
            leaked - twins > max(many, errors * _of_share(leaked, num_rows))
        ),
    ),
}


def as_markdown() -> str:
    """The thresholds as the Markdown table of the documentation."""
    lines = ["| what | fine | worth a look | wrong |", "|---|---|---|---|"]
    for threshold in THRESHOLDS.values():
        cells = (threshold.what, *(threshold.in_words(level) for level in reversed(LEVELS)))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)
