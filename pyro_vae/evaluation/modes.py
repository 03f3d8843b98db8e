r"""Does the guide miss modes of the posterior: evidence that chains find where the guide does not draw.

Importance weights see nothing of a mode that the guide never draws, and both estimate and error look well. So chains
are started elsewhere: at draws of the prior, annealed from there, and at draws of the guide for *other* rows. Where
each of C chains comes to rest a normal distribution is put, with its chain's moments, and all of them beside the
guide's, as latents u on real numbers:

.. math:: m(u) = \frac12 q(u \mid x) + \frac{1}{2 C} \sum_{c=1}^C \mathcal{N}(u \mid \mu_c, \Sigma_c)

Importance weighting from m is as unbiased as from q, whatever the chains do: in expectation both are lower bounds of
the log evidence, and m's is higher only where it has found what q misses.
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
_AT_REST = 40  # transitions whose moments are a chain's normal


@dataclass(frozen=True)
class Modes:
    """The log evidence of N rows from the guide alone, and from the guide and chains, ``(N,)`` each, in nats.

    Args:
        by_guide: From the guide's draws, in the user's units.
        by_all: From the guide's draws and those around the chains' ends.
        standard_error: Of the difference.
    """

    by_guide: Tensor
    by_all: Tensor
    standard_error: Tensor

    @property
    def gain(self) -> Tensor:
        """What chains find beyond the guide, in nats, ``(N,)``: ln 2 where it misses one of two equal modes."""
        return self.by_all - self.by_guide

    @property
    def missed(self) -> Tensor:
        """The share of the posterior's mass that importance weighting from the guide does not find, ``(N,)``."""
        return 1 - (-self.gain).exp().clamp(max=1)

    def __str__(self) -> str:
        return (
            f"chains from elsewhere find {float(self.gain.mean()):z.2f} nats per row beyond the guide, "
            f"{float(self.missed.mean()):.0%} of the posterior, over {len(self.gain)} rows"
        )


def find_modes(
    pair: Pair, x: Inputs, *, num_chains: int = 16, num_particles: int = 1000, num_leapfrog: int = 3, seed: int = 0
) -> Modes:
    r"""Looks for modes of each row's posterior that the guide misses; the formula is at the top of this module.

    Args:
        pair: A pair whose latents, but those that the model enumerates, are continuous and lie in the plate ``"data"``.
        x: A few rows, as every tool takes them: each costs some hundred gradients of both programs for all chains.
        num_chains: Chains C of each row; half start at the prior, half at the guide's draws for other rows.
        num_particles: Draws of the guide for each row, and as many around the chains' ends.
        num_leapfrog: Leapfrog steps of a transition.
        seed: Seeds all draws.

    Returns:
        Both estimates, see :class:`Modes`. That nothing is found proves nothing: chains may miss a mode as well, and
        with tens of latents their normals are too poor to find anything but gross faults.

    Raises:
        ValueError: if a latent is discrete and not enumerated by the model, belongs to all rows or has no density in
            the guide, or there is none.

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
        with pyro.validation_enabled(is_validate=False):  # the programs were looked at with it
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
    """As many draws of each chain's normal: ``(S, N, d)``, S a little more where chains do not divide it."""
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
