"""Objectives that weigh the draws of a row against each other."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pyro_vae.inference.sites import Draws, over_draws
from pyro_vae.inference.structure import ContractError

__all__ = ["ImportanceWeighted", "Renyi"]


@dataclass(frozen=True)
class Renyi:
    r"""Rényi's bound of order α of each row, from K draws.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    It rises as α falls: at 1 it is the ELBO, at 0 the importance-weighted bound, below 0 it may exceed the evidence.
    The gradient goes through the draws, and a guide with draws that cannot be differentiated through is refused. Scales
    that the programs put on their sites count in the weights; what the guide observes is left out.

    Source: Li & Turner, *Rényi Divergence Variational Inference*, 2016.

    Args:
        num_particles: Draws K of the guide for each row.
        alpha: The order.

    Raises:
        ValueError: if there are no particles, or ``alpha`` is not finite; when it is called, of a program with latents
            that belong to all rows, whose draws no row can weigh alone.

    Example:
        >>> from pyro_vae import fit, mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> import torch
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> history = fit(vae, torch.rand(64, 6).round(), objective=Renyi(5, alpha=0.5), epochs=1, progress=False)
    """

    num_particles: int = 5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, found {self.num_particles}")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, found {self.alpha}")

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        for term in draws.terms:
            if not term.is_local:
                raise ContractError(
                    f"{type(self).__name__} weighs the draws of each row, and {term.name!r} lies outside the plate "
                    f"'data': use Elbo(...)"
                )
        log_weights = draws.scaled.log_weights
        if self.alpha == 1:
            return over_draws(log_weights)
        power = 1 - self.alpha
        return ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power


@dataclass(frozen=True)
class ImportanceWeighted(Renyi):
    r"""The importance-weighted bound of each row, from K draws.

    .. math:: \mathcal{L}_K = \mathbb{E}\left[\log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}\right]

    It rises with K towards the evidence, and at 1 is the ELBO. Else as :class:`Renyi`, of which it is that of order 0.

    Source: Burda et al., *Importance Weighted Autoencoders*, 2016.

    Args:
        num_particles: Draws K of the guide for each row.
        alpha: Stays 0.

    Example:
        >>> ImportanceWeighted(50).num_particles
        50
    """

    alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha != 0:
            raise ValueError(f"the importance-weighted bound has order 0, found alpha={self.alpha}: use Renyi(...)")
