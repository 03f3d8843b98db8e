"""Objectives on the aggregate posterior: the latents of all rows of a step together."""

import math
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.inference.sites import Draws
from pyro_vae.inference.structure import ContractError

__all__ = ["InfoVae", "TotalCorrelation"]


@dataclass(frozen=True)
class TotalCorrelation:
    r"""The ELBO, with a weight on how much the latents depend on each other over all rows (β-TCVAE).

    .. math:: \mathrm{ELBO} - (\beta - 1)\, \mathrm{TC}, \qquad
        \mathrm{TC} = \mathrm{KL}\Big(q(z) \,\Big\|\, \prod_j q(z_j)\Big), \quad q(z) = \frac{1}{N} \sum_n q(z \mid x_n)

    The aggregate q(z) is estimated from the rows of a step, weighted as a sample of all N (the paper's
    minibatch-weighted sampling). It is biased, less so with larger steps.

    Source: Chen et al., *Isolating Sources of Disentanglement in Variational Autoencoders*, 2018.

    Args:
        beta: The weight β; 1 gives the ELBO.

    Raises:
        ValueError: if ``beta`` is not finite; or, when called, if the guide does not have exactly one latent vector
            for each row, with independent entries given the row.

    Example:
        >>> TotalCorrelation(beta=6.0)
        TotalCorrelation(beta=6.0)
    """

    beta: float = 6.0
    num_particles: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.beta):
            raise ValueError(f"beta must be finite, found {self.beta}")

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        scaled = draws.scaled
        return sum(scaled.auxiliary.values(), scaled.elbo)[0] - (self.beta - 1) * total_correlation(draws)


def total_correlation(draws: Draws) -> Tensor:
    """Each row's estimate of the total correlation, ``(N,)``, in nats."""
    name = draws.only_latent("TotalCorrelation")
    z, (q, _) = draws.latents[name], draws.distributions(name)
    if not isinstance(q, dist.Independent) or q.base_dist.batch_shape != z.shape:
        raise ContractError(
            f"TotalCorrelation takes latents that are independent given the row, and {name!r} is drawn from a "
            f"{type(q).__name__}: use a diagonal posterior"
        )
    pairs = q.base_dist.log_prob(z[:, None])  # log-density of each row's draw given each row, for each latent
    all_pairs = math.log(draws.num_rows * len(z))
    joint = pairs.sum(-1).logsumexp(1) - all_pairs
    return joint - (pairs.logsumexp(1) - all_pairs).sum(-1)


@dataclass(frozen=True)
class InfoVae:
    r"""Reconstruction, with a weight on the KL and one on how far the aggregate posterior is from the prior (MMD-VAE).

    .. math:: \mathbb{E}\left[\log p(x \mid z)\right] - w_{\mathrm{KL}}\, \mathrm{KL} -
        w_{\mathrm{MMD}}\, \mathrm{MMD}^2(q(z), p(z)), \qquad k(a, b) = e^{-\|a - b\|^2 / 2 L}

    With the maximum mean discrepancy in place of the KL, latents can keep their information about rows.

    Source: Zhao et al., *InfoVAE: Balancing Learning and Inference in Variational Autoencoders*, 2019; Gretton et al.,
    *A Kernel Two-Sample Test*, 2012, for the unbiased estimate of the squared discrepancy.

    Args:
        mmd_weight: :math:`w_{\mathrm{MMD}}`, in nats.
        kl_weight: :math:`w_{\mathrm{KL}}`.

    Raises:
        ValueError: if a weight is negative or not finite; or, when called, if the guide does not have exactly one
            latent vector for each row, there is a single row, or the prior depends on enumerated latents or, without
            a KL, would not learn.

    Example:
        >>> InfoVae(mmd_weight=500.0)
        InfoVae(mmd_weight=500.0, kl_weight=0.0)
    """

    mmd_weight: float = 100.0
    kl_weight: float = 0.0
    num_particles: int = field(default=1, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("mmd_weight", "kl_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number from 0, found {getattr(self, name)}")

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        name = draws.only_latent("InfoVae")
        if draws.shape[1] < 2:
            raise ContractError("InfoVae compares the rows of a step, and a step has one row: use larger batches")
        z, (_, p) = draws.latents[name], draws.distributions(name)
        if len(p.batch_shape) >= z.dim():
            raise ContractError(
                f"InfoVae draws from the prior of {name!r}, which depends on a latent that is summed over: use a prior "
                f"in which it is summed over, such as NormalMixture, or Elbo(...)"
            )
        if not (p.has_rsample or self.kl_weight) and p.log_prob(z.detach()).requires_grad:
            raise ContractError(
                f"InfoVae without a KL cannot train the prior of {name!r}, because its draws cannot be differentiated "
                f"through: give it a kl_weight, or use Elbo(...)"
            )
        drawn = p.rsample() if p.has_rsample else p.sample()
        scaled = draws.scaled
        bound = sum(scaled.auxiliary.values(), scaled.reconstruction - self.kl_weight * scaled.rate)[0]
        return bound - self.mmd_weight * squared_discrepancy(z, drawn.expand_as(z))


def squared_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy between two sets of N vectors ``(N, L)``."""
    size, width = len(a), 2 * a.shape[-1]

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (-(x[:, None] - y).square().sum(-1) / width).exp()

    others = 1 - torch.eye(size, dtype=a.dtype, device=a.device)
    within = ((kernel(a, a) + kernel(b, b)) * others).sum() / (size * (size - 1))
    return within - 2 * kernel(a, b).mean()
