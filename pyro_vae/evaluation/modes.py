r"""Does the guide miss modes of the posterior? Evidence that chains find where the guide does not draw.

Importance weights do not see a mode that the guide never draws: both estimate and error look fine. So chains start
elsewhere: half are annealed from draws from the prior, half start at the guide's draws for *other* rows. A normal
distribution with each chain's moments is placed where the chain ends. The C normals are mixed with the guide, for
latents u on real numbers:

.. math:: m(u) = \frac12 q(u \mid x) + \frac{1}{2 C} \sum_{c=1}^C \mathcal{N}(u \mid \mu_c, \Sigma_c)

Importance weighting from m is as unbiased as from q, whatever the chains do: in expectation both are lower bounds of
the log evidence, and m's is higher only if it has found what q misses.
"""

import math
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.annealing import Nearby, settled, sigmoidal_schedule
from pyro_vae.evaluation.evidence import log_mean_exp
from pyro_vae.evaluation.latent_density import LatentDensity, latent_layout
from pyro_vae.evaluation.pareto import tail_shape, widened
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["Modes", "find_modes"]

_TOWARDS = 40  # transitions from the prior to the posterior
_AT_REST = 40  # transitions that give the moments of a chain's normal


@dataclass(frozen=True)
class Modes:
    """The log evidence of N rows from the guide alone, and from the guide and chains, ``(N,)`` each, in nats.

    Args:
        by_guide: From the guide's draws, in the user's units.
        by_all: From the guide's draws and those around the chains' ends.
        standard_error: Standard error of the difference.
    """

    by_guide: Tensor
    by_all: Tensor
    standard_error: Tensor

    @property
    def gain(self) -> Tensor:
        """What chains find and the guide misses, in nats, ``(N,)``: ln 2 for one of two equal modes."""
        return self.by_all - self.by_guide

    @property
    def missed(self) -> Tensor:
        """The share of the posterior's mass that importance weighting from the guide does not find, ``(N,)``."""
        return 1 - (-self.gain).exp().clamp(max=1)

    def __str__(self) -> str:
        return (
            f"chains from elsewhere find {float(self.gain.mean()):z.2f} nats per row that the guide misses, "
            f"{float(self.missed.mean()):.0%} of the posterior, over {len(self.gain)} rows"
        )


def find_modes(
    pair: Pair, x: Inputs, *, num_chains: int = 16, num_particles: int = 1000, num_leapfrog: int = 3, seed: int = 0
) -> Modes:
    r"""Looks for modes of each row's posterior that the guide misses; the formula is at the top of this module.

    Args:
        pair: A pair whose latents lie in the plate ``"data"``, and are continuous or enumerated by the model.
        x: A few rows, as :func:`~pyro_vae.fit` takes them: each costs some hundred gradients per chain.
        num_chains: Chains C for each row; half start at the prior, half at the guide's draws for other rows.
        num_particles: Draws from the guide for each row, and as many around the chains' ends.
        num_leapfrog: Leapfrog steps of a transition.
        seed: Seeds all draws.

    Returns:
        Both estimates, see :class:`Modes`. Finding nothing proves nothing: chains may miss a mode as well, and with
        tens of latents their normals are too poor to find more than gross faults.

    Raises:
        ValueError: if a latent is discrete and not enumerated by the model, belongs to all rows, or has no density in
            the guide, or if there is no latent.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x=None, *, batch_size=None):  # x is about z², so that z and −z are as probable
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        ...         return pyro.sample("x", dist.Normal(z.square(), 0.1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x.sqrt(), 0.05 / x.sqrt()))
        >>> found = find_modes(Pair(model, guide), torch.tensor([1.0, 2.0, 3.0]))
        >>> [round(share, 1) for share in found.missed.tolist()]
        [0.5, 0.5, 0.5]

    Source: a mixture of proposals with the balance heuristic, Veach & Guibas, *Optimally Combining Sampling Techniques
    for Monte Carlo Rendering*, 1995; chains that make proposals, Martino et al., *Layered Adaptive Importance
    Sampling*, 2017.
    """
    if num_chains < 2 or num_particles < 2:
        raise ValueError(f"num_chains and num_particles must be at least 2, found {num_chains} and {num_particles}")
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        batch = pair.batch(x)
        structure = pair.structure(batch)
        structure.require_local()
        structure.require_weights()
        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            layout = latent_layout(pair, structure, batch, "guide")
            if not layout:
                raise ValueError("the guide draws no latent that chains could move")
            guide, prior = (LatentDensity(pair, structure, batch, layout, start) for start in ("guide", "prior"))
            half = num_chains // 2
            elsewhere = guide.draw(num_chains - half)
            if len(batch) > 1:
                shifts = 1 + torch.arange(len(elsewhere)) % (len(batch) - 1)
                elsewhere = torch.stack([u.roll(int(s), 0) for u, s in zip(elsewhere, shifts, strict=True)])
            temperatures = sigmoidal_schedule(_TOWARDS)[1:]
            annealed = settled(prior, prior.draw(half), temperatures, num_leapfrog)[-1]
            start = torch.cat([annealed, elsewhere])
            arrived = settled(guide, start, [1.0] * _TOWARDS, num_leapfrog)[-1]
            at_rest = settled(guide, arrived, [1.0] * _AT_REST, num_leapfrog)
            normals = Nearby.of(guide, at_rest.flatten(1, 2))  # a normal for each chain and row
            drawn = [guide.draw(num_particles), _around(normals, num_chains, num_particles)]
            log_start, log_joint = map(torch.cat, zip(*map(guide.log_probs, drawn), strict=True))
            log_mixture = torch.logaddexp(log_start, _log_prob(normals, torch.cat(drawn), num_chains)) - math.log(2)
    by_guide, error, _ = _estimate((log_joint - log_start)[:num_particles])
    by_all, of_all, _ = _estimate(log_joint - log_mixture)
    log_jacobian = batch.log_jacobian.double()
    result = (by_guide + log_jacobian, by_all + log_jacobian, (error.square() + of_all.square()).sqrt())
    return Modes(*(value.cpu() for value in result))


def _estimate(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    log_weights = log_weights.double().nan_to_num(nan=-math.inf, posinf=-math.inf)
    log_mean, error, ess = log_mean_exp(log_weights)
    return log_mean, widened(error, tail_shape(log_weights), len(log_weights)), ess


def _around(normals: Nearby, num_chains: int, num_draws: int) -> Tensor:
    """As many draws from each chain's normal: ``(S, N, d)``, S rounded up to a multiple of the chains."""
    each = -(-num_draws // num_chains)
    return normals.latents(normals.draw(each)).unflatten(1, (num_chains, -1)).flatten(0, 1)


def _log_prob(normals: Nearby, u: Tensor, num_chains: int) -> Tensor:
    """The log-density of the mean of the chains' normals at ``u``, ``(S, N)``."""
    loc, root = normals.loc.unflatten(0, (num_chains, -1)), normals.root.unflatten(0, (num_chains, -1))
    total = torch.full(u.shape[:2], -math.inf, dtype=torch.float64, device=u.device)
    for mean, factor in zip(loc, root, strict=True):
        normal = torch.distributions.MultivariateNormal(mean, scale_tril=factor, validate_args=False)
        total = torch.logaddexp(total, normal.log_prob(u).double())
    return total - math.log(num_chains)
