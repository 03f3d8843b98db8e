"""The posterior of one latent of each row, as a distribution."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae._support.devices import memory_for_draws
from pyro_vae.inference import predictive
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.sites import enumerated_logits
from pyro_vae.inference.structure import Structure, innermost, is_point, under_particles
from pyro_vae.programs.running import evaluating, site_distribution

__all__ = ["posterior_at"]

Program = Callable[..., Any]

_OTHERS = 256  # draws of the other latents, to average the posterior of an enumerated one over
_DRAWS = 1000  # of a latent without a density
_BYTES_PER_DRAW = 2**15  # of the memory for draws, for each draw of a row: 2,048 of them in a run on a CPU


def posterior_at(model: Program, guide: Program, batch: Batch, structure: Structure, name: str) -> TorchDistribution:
    r"""The approximate posterior at one of the model's latents, given the middle of the latents before it.

    Args:
        model: The generative program.
        guide: The inference program.
        batch: N rows.
        structure: The sites of the programs.
        name: Name of the latent.

    Returns:
        The guide's distribution. If the model enumerates the latent: :math:`p(k \mid x)`, averaged over draws of the
        others. If the guide computes it from other draws: the empirical distribution of a thousand draws.
    """
    with evaluating(model, guide):
        if structure.latents[name].enumerated == "model":
            return _summed_out(model, guide, batch, structure, name)
        fn = site_distribution(predictive.at_centre(guide), name, batch.x, **batch.arguments)
        if structure.extra and is_point(fn):
            draws = _draws(guide, batch, structure, name)
            if bool((draws != draws[:1]).any()):
                weights = torch.zeros(*fn.batch_shape, len(draws), dtype=draws.dtype, device=draws.device)
                return dist.Empirical(draws.movedim(0, len(fn.batch_shape)), weights)
        return fn


def _counts(num: int, batch: Batch, structure: Structure) -> list[int | None]:
    """The numbers of draws in each of several runs; None for one draw without a plate of draws."""
    if not structure.vectorised or num == 1:
        return [None] * num
    most = max(1, memory_for_draws(batch.x.device) // (_BYTES_PER_DRAW * len(batch)))
    return [min(most, num - first) for first in range(0, num, most)]


def _draws(guide: Program, batch: Batch, structure: Structure, name: str) -> Tensor:
    """Draws of the latent, ``(S, *batch, *event)``."""
    found: list[Tensor] = []
    for count in [None, *_counts(_DRAWS - 1, batch, structure)]:  # the first one has no spare dimensions
        program = under_particles(guide, count, structure.particle_dim)
        site: Any = poutine.trace(program).get_trace(batch.x, **batch.arguments).nodes[name]
        found.append(site["value"].reshape(count or 1, *(found[0].shape[1:] if found else site["value"].shape)))
    return torch.cat(found)


def _summed_out(model: Program, guide: Program, batch: Batch, structure: Structure, name: str) -> TorchDistribution:
    counts = _counts(_OTHERS if structure.guided else 1, batch, structure)
    probs = torch.cat([_given_draws(model, guide, batch, structure, name, count) for count in counts]).mean(0)
    base = innermost(site_distribution(model, name, batch.x, **batch.arguments))
    if isinstance(base, dist.Bernoulli):
        return dist.Bernoulli(probs=probs[..., 1])
    one_hot = isinstance(base, dist.OneHotCategorical)
    return dist.OneHotCategorical(probs=probs) if one_hot else dist.Categorical(probs=probs)


def _given_draws(
    model: Program, guide: Program, batch: Batch, structure: Structure, name: str, count: int | None
) -> Tensor:
    """The probabilities of an enumerated latent's values at draws of the others, ``(S, *batch, values)``."""
    probs = enumerated_logits(model, guide, batch, structure, name, count).softmax(-1)
    return probs[None] if count is None else probs
