"""For each part of a report: how its numbers are checked, and what to try if one is not fine."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DOCUMENTATION", "GUIDANCE", "Guidance"]

DOCUMENTATION = "docs/evaluation.md"  # in the library's repository


@dataclass(frozen=True)
class Guidance:
    """Guidance on one part of a report.

    Args:
        checked_by: Another way to the same numbers, elsewhere in the report or in the tests.
        what_to_try: What to do if a finding is not fine, in a sentence.
        anchor: The anchor of a heading in the documentation.
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
        "Let the weight of the KL grow from 0 (kl_weight), use free bits, or use fewer latents.",
        "elbo-rate-distortion-active-units",
    ),
    "evidence": Guidance(
        "annealing on the same rows, in the section on bounds; frozen pairs with known evidence in tests",
        "Before you compare models by it, use more particles, and a guide that refine() has brought closer.",
        "evidence-and-bounds-on-it",
    ),
    "bounds": Guidance(
        "bounds from the other side on rows drawn from the model; sums and closed forms in tests",
        "Use more annealing steps (ais_bounds, num_steps) until the bounds meet.",
        "evidence-and-bounds-on-it",
    ),
    "modes": Guidance(
        "chains that start elsewhere than at the guide",
        "Train a guide with several components or a flow, or estimate with chains that start at the prior.",
        "is-the-guide-the-posterior",
    ),
    "guide": Guidance(
        "gaps, NUTS and calibration below; known shapes of Pareto weights in tests",
        "See the gaps: a large amortisation gap needs a larger encoder, a large approximation gap another family.",
        "is-the-guide-the-posterior",
    ),
    "gaps": Guidance(
        "the evidence of the refined guide; closed forms of linear models in tests",
        "Amortisation: train longer, enlarge the encoder, or use a semi-amortised posterior. Approximation: use "
        "correlated normals, a mixture or a flow.",
        "is-the-guide-the-posterior",
    ),
    "nuts": Guidance(
        "R̂ over four chains; frozen pairs with known moments in tests",
        "If NUTS settled, the guide is at fault: see the gaps. If it did not, use more warm-up steps.",
        "is-the-guide-the-posterior",
    ),
    "calibration": Guidance(
        "ranks of all latents together, next; uniform ranks of exact guides in tests",
        "Ranks at both ends: the guide is too narrow. Ranks in the middle: it is too wide. The gaps say why.",
        "is-the-guide-the-posterior",
    ),
    "joint_calibration": Guidance(
        "two different functions of the latents; exact guides over many seeds in tests",
        "If each latent is right alone but not together, use a family with correlations: a normal with full "
        "covariance, or a flow.",
        "is-the-guide-the-posterior",
    ),
    "calibration_at_rows": Guidance(
        "calibration on the model's rows, above; closed forms at half and double width in tests",
        "If only the calibration at the data is wrong, the model draws nothing like the data: fit the model first.",
        "is-the-guide-the-posterior",
    ),
    "coverage": Guidance(
        "the p-value of all levels; ranks of closed-form predictions in tests",
        "Choose a likelihood with the data's tails (StudentT, NegativeBinomial), or let it learn its scale.",
        "do-predictive-intervals-hold",
    ),
    "prior_predictive": Guidance(
        "the posterior predictive check, next; closed-form p-values in tests",
        "If the posterior check is fine, the prior does not match the encoder: use a mixture or a flow as the prior.",
        "does-it-draw-such-data",
    ),
    "posterior_predictive": Guidance(
        "coverage, above; closed-form p-values in tests",
        "Choose a likelihood that can produce the statistics named: zeros, tails or shares of exact values.",
        "does-it-draw-such-data",
    ),
    "samples": Guidance(
        "the same measures between two halves of the real rows; definitions pair by pair in tests",
        "See the prior predictive check, sample from the aggregate posterior, or train longer.",
        "samples",
    ),
    "curves": Guidance(
        "the ELBO of these rows, above",
        "Train longer, or with a smaller learning rate.",
        "training-rows",
    ),
    "training": Guidance(
        "held-out rows",
        "Stop earlier (patience), use fewer units or more dropout, or train on more rows.",
        "samples",
    ),
}
