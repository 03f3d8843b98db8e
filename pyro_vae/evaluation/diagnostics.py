r"""Whether the guide is right for a row: Pareto-smoothed :math:`\hat k` and effective sample size of its weights."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.evidence import log_mean_exp, reduce_log_weights
from pyro_vae.evaluation.pareto import FEWEST, reliable_shape, tail_shape
from pyro_vae.pair import Pair

__all__ = ["GuideDiagnosis", "diagnose_guide"]


@dataclass(frozen=True)
class GuideDiagnosis:
    r"""How close the guide is to each row's posterior.

    Args:
        k_hat: Pareto shape :math:`\hat k` of each row's importance weights, ``(N,)``.
        ess: Effective sample size: how many draws from the posterior the guide's weighted draws are worth, ``(N,)``,
            from 1 to ``num_particles``.
        num_particles: Draws from the guide for each row.
    """

    k_hat: Tensor
    ess: Tensor
    num_particles: int

    @property
    def threshold(self) -> float:
        r"""The largest :math:`\hat k` to rely on with this many draws, :math:`\min(1 - 1/\log_{10} K, 0.7)`."""
        return reliable_shape(self.num_particles)

    @property
    def flagged(self) -> Tensor:
        r"""True for rows whose weights are unreliable: :math:`\hat k` above the threshold, ``(N,)``."""
        return self.k_hat > self.threshold

    def __str__(self) -> str:
        rows, count = len(self.k_hat), int(self.flagged.sum())
        share = float(self.ess.median()) / self.num_particles
        if count:
            return (
                f"the guide is far from the posterior of {count} of {rows} rows (k̂ above {self.threshold:.2f}), where "
                f"importance weights cannot correct it; the median effective sample size is {share:.1%} of the draws"
            )
        return (
            f"the guide is close enough to the posterior of all {rows} rows (k̂ up to {float(self.k_hat.max()):.2f}) "
            f"for importance weights to correct it; the median effective sample size is {share:.1%} of the draws"
        )


def diagnose_guide(pair: Pair, x: Inputs, num_particles: int = 1000, *, seed: int = 0) -> GuideDiagnosis:
    r"""Computes Pareto-smoothed :math:`\hat k` and effective sample size for each row.

    Both are computed from the weights :math:`w_k = p(x, z_k) / q(z_k \mid x)` at draws :math:`z_k \sim q(z \mid x)`. A
    generalised Pareto distribution is fitted to the largest weights; its shape :math:`\hat k` tells how many moments
    the weights have. Below 0.5 the guide is close to the posterior; above 0.7 it is so far away that importance weights
    cannot correct it. The effective sample size is :math:`(\sum_k w_k)^2 / \sum_k w_k^2`. Neither sees a mode of the
    posterior that no draw comes near.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents belong to rows.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments.
        num_particles: Draws from the guide for each row, at least 25.
        seed: Seeds the draws from the guide.

    Returns:
        The diagnosis, with a number for each row. If the largest weights of a row are equal up to rounding (an exact
        guide, or a discrete latent), there is no tail, and :math:`\hat k` is 0.

    Raises:
        ValueError: if there are too few particles, or rows or programs do not fit; see
            :func:`~pyro_vae.evaluation.log_evidence`.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> diagnosis = diagnose_guide(vae, torch.rand(5, 6).round())
        >>> diagnosis.k_hat.shape, bool((diagnosis.ess <= 1000).all())
        (torch.Size([5]), True)

    Source: Yao et al., *Yes, but Did It Work?*, 2018; Vehtari et al., *Pareto Smoothed Importance Sampling*, 2024.
    """
    if num_particles < FEWEST:
        raise ValueError(f"num_particles must be at least {FEWEST}, to fit a tail; found {num_particles}")

    def diagnosed(log_weights: Tensor) -> Tensor:
        return torch.stack([tail_shape(log_weights), log_mean_exp(log_weights)[2]])

    (k_hat, ess), _, _ = reduce_log_weights(pair, x, diagnosed, num_particles=num_particles, seed=seed)
    return GuideDiagnosis(k_hat, ess, num_particles)
