"""Two models on the same rows: the difference in their evidence, row by row."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pyro_vae._support.notebooks import Sentence
from pyro_vae._support.ranges import discrete
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.evidence import log_evidence
from pyro_vae.pair import Pair

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison(Sentence):
    """How much more probable one model makes each row than another.

    Args:
        difference: Log evidence under the first model minus that under the second, ``(N,)``, in nats.
        monte_carlo_error: Standard error of each difference from the guides' draws, ``(N,)``.
        evidence_a: Log evidence under the first model, ``(N,)``.
        evidence_b: Log evidence under the second model, ``(N,)``.
    """

    difference: Tensor
    monte_carlo_error: Tensor
    evidence_a: Tensor
    evidence_b: Tensor

    @property
    def mean(self) -> float:
        """The mean difference, in nats per row."""
        return float(self.difference.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean over rows: of paired differences, so effects common to both models cancel."""
        num = len(self.difference)
        return float(self.difference.std() / math.sqrt(num)) if num > 1 else math.nan

    def table(self, num_rows: int = 10) -> "pd.DataFrame":
        """The rows that differ most, by position, largest difference first."""
        import pandas as pd

        most = self.difference.abs().argsort(descending=True, stable=True)[:num_rows]
        columns = {
            "a": self.evidence_a,
            "b": self.evidence_b,
            "difference": self.difference,
            "± from draws": self.monte_carlo_error,
        }
        index = pd.Index(most.tolist(), name="row")
        return pd.DataFrame({name: values[most].numpy() for name, values in columns.items()}, index=index)

    def __str__(self) -> str:
        mean, error = self.mean, self.standard_error
        which = "the first" if mean > 0 else "the second"
        if not abs(mean) > 2 * error:
            said = "the rows do not tell which model is better"
        else:
            said = f"{which} makes the rows more probable"
        share = float((self.difference > 0).double().mean())
        return (
            f"{mean:+z.3f} ± {error:.3f} nats per row over {len(self.difference):,} rows, of which the first makes "
            f"{share:.0%} more probable: {said}"
        )


def compare(pair_a: Pair, pair_b: Pair, x: Inputs, *, num_particles: int = 1000, seed: int = 0) -> Comparison:
    r"""Compares two models by the evidence of the same rows.

    .. math:: d_n = \log p_A(x_n) - \log p_B(x_n)

    Both are in the user's units, so models with different transforms, likelihoods and latents can be compared. Both are
    lower bounds in expectation, so the model with the poorer guide is at a disadvantage, which shrinks with more
    particles. The mean of the :math:`d_n` has the error of paired differences, :math:`\mathrm{sd}(d) / \sqrt N`. It is
    much smaller than that of either mean if some rows are hard for both.

    Args:
        pair_a: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        pair_b: The other model, likewise.
        x: Rows that neither was trained on, as :func:`~pyro_vae.fit` takes them.
        num_particles: Draws from each guide for each row.
        seed: Seeds the draws.

    Returns:
        A :class:`Comparison`; printed, it says which model is better.

    Raises:
        ValueError: if the rows do not fit one of the models, or their evidence cannot be compared: one model gives
            probabilities and the other densities, or one describes bits drawn from the rows and the other the rows.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> near, far = (mlp_vae((2,), 1, likelihood=Normal(scale=scale)) for scale in (1.0, 0.1))
        >>> compare(near, far, x, num_particles=20).mean > 0
        True

    Source: for errors of paired differences, Vehtari, Gelman & Gabry, *Practical Bayesian model evaluation using
    leave-one-out cross-validation and WAIC*, 2017.
    """
    _check_alike(pair_a, pair_b, x)
    first, second = (log_evidence(pair, x, num_particles=num_particles, seed=seed) for pair in (pair_a, pair_b))
    error = torch.hypot(first.standard_error, second.standard_error)
    return Comparison(first.log_evidence - second.log_evidence, error, first.log_evidence, second.log_evidence)


def _check_alike(pair_a: Pair, pair_b: Pair, x: Inputs) -> None:
    """Raises an error if the models' evidence cannot be compared."""
    described = []
    for pair in (pair_a, pair_b):
        rows = pair.check(x)
        few = pair.prepare(next(iter(rows.batches([torch.arange(min(16, rows.num_rows))]))))
        back = pair.transform.inverse(few.x)
        back = back if few.mask is None else torch.where(few.mask, back, 0.0)  # each model fills gaps in its own way
        described.append((_kind(pair), back))
    (kind_a, one), (kind_b, other) = described
    if kind_a != kind_b:
        raise ValueError(
            f"the first model gives rows {kind_a} and the second {kind_b}, which cannot be compared: give both a "
            f"likelihood of one kind"
        )
    same = one.shape == other.shape
    if same:
        one, other = one.double().cpu().nan_to_num(), other.double().cpu().nan_to_num()
        same = bool(((one - other).abs() <= 1e-3 * (1 + one.abs())).double().mean() > 0.99)
    if not same:
        raise ValueError(
            "the models describe different data: after their transforms and back, these rows differ in the user's "
            "units, as when only one model binarises: give both the same transform"
        )


def _kind(pair: Pair) -> str:
    has_mass = torch.as_tensor(False if pair.data_range is None else discrete(pair.data_range))
    if bool(has_mass.all()):
        return "probabilities"
    return "densities" if not bool(has_mass.any()) else "densities for some columns and probabilities for others"
