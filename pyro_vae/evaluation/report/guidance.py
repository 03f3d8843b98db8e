"""What stands behind each part of a report: what its numbers are checked by, and what to try where one is not fine."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DOCUMENTATION", "GUIDANCE", "Guidance"]

DOCUMENTATION = "docs/evaluation.md"  # in the library's repository


@dataclass(frozen=True)
class Guidance:
    """Of one part.

    Args:
        checked_by: Another way to its numbers: one beside them in the report, or one that tests hold them to.
        what_to_try: Where a finding is not fine, in a sentence.
        anchor: Of a heading in the documentation.
    """

    checked_by: str
    what_to_try: str
    anchor: str

    @property
    def place(self) -> str:
        """Where the documentation says more."""
        return f"{DOCUMENTATION}#{self.anchor}"


GUIDANCE: Mapping[str, Guidance] = {
    "summary": Guidance(
        "the evidence below, which must be higher; closed forms and Pyro's Trace_ELBO in tests",
        "Train with a weight of the KL that grows from 0 (kl_weight), with free bits, or with fewer latents.",
        "elbo-rate-distortion-active-units",
    ),
    "evidence": Guidance(
        "annealing, on the same rows, in the part on bounds; frozen pairs with known evidence in tests",
        "Take more particles, and a guide that refine() brought nearer, before models are compared by it.",
        "evidence-and-bounds-on-it",
    ),
    "bounds": Guidance(
        "bounds from the other side on rows of the model; sums and closed forms in tests",
        "Take more steps of annealing (ais_bounds, num_steps) until the bounds meet.",
        "evidence-and-bounds-on-it",
    ),
    "modes": Guidance(
        "chains that start elsewhere than at the guide",
        "Train a guide with several components or a flow, or weight by chains that start at the prior.",
        "is-the-guide-the-posterior",
    ),
    "guide": Guidance(
        "gaps, NUTS and calibration below; known shapes of Pareto weights in tests",
        "See the gaps: a large one of amortisation asks for a larger encoder, one of approximation for another family.",
        "is-the-guide-the-posterior",
    ),
    "gaps": Guidance(
        "the evidence of the refined guide; closed forms of linear models in tests",
        "Amortisation: train longer, enlarge the encoder, or take a semi-amortised posterior. Approximation: take "
        "correlated normals, a mixture or a flow.",
        "is-the-guide-the-posterior",
    ),
    "nuts": Guidance(
        "R̂ over four chains; frozen pairs with known moments in tests",
        "Where NUTS settled, the guide is at fault: see the gaps. Where it did not, take more warm-up.",
        "is-the-guide-the-posterior",
    ),
    "calibration": Guidance(
        "ranks of all latents together, next; uniform ranks of exact guides in tests",
        "Ranks at both ends mean a guide too narrow, in the middle too wide; the gaps say whose fault it is.",
        "is-the-guide-the-posterior",
    ),
    "joint_calibration": Guidance(
        "two functions of the latents of different kinds; exact guides over many seeds in tests",
        "Latents that are right alone and wrong together need a family with correlations: normals with a full "
        "covariance, or a flow.",
        "is-the-guide-the-posterior",
    ),
    "calibration_at_rows": Guidance(
        "calibration on the model's rows, above; closed forms of half and double widths in tests",
        "Right on the model's rows and wrong at the data: the model draws nothing like them, so fit the model first.",
        "is-the-guide-the-posterior",
    ),
    "coverage": Guidance(
        "the p-value of all levels; ranks of closed-form predictions in tests",
        "Choose a likelihood with the data's tails (StudentT, NegativeBinomial), or let it learn its scale.",
        "do-predictive-intervals-hold",
    ),
    "prior_predictive": Guidance(
        "the posterior predictive check, next; closed-form p-values in tests",
        "Where the posterior one is fine, the prior is not what the encoder believes: take a mixture or a flow for it.",
        "does-it-draw-such-data",
    ),
    "posterior_predictive": Guidance(
        "coverage, above; closed-form p-values in tests",
        "Choose a likelihood that can make the statistics named: zeros, tails or shares of exact values.",
        "does-it-draw-such-data",
    ),
    "samples": Guidance(
        "what real rows reach among themselves, beside it; definitions pair by pair in tests",
        "See the prior predictive check; draw from the aggregate posterior; train longer.",
        "samples",
    ),
    "curves": Guidance(
        "the ELBO of these rows, above",
        "Train longer, or with a smaller learning rate.",
        "training-rows",
    ),
    "training": Guidance(
        "held-out rows, which the model has not seen",
        "Stop earlier (patience), take fewer units or more dropout, or more rows.",
        "samples",
    ),
}
