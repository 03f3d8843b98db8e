"""The posterior of one latent of each row, as a distribution."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.inference import predictive
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.sites import enumerated_logits
from pyro_vae.inference.structure import Structure, innermost, is_point
from pyro_vae.programs.running import evaluating, site_distribution

__all__ = ["posterior_at"]

Program = Callable[..., Any]

_OTHERS = 256  # draws of the other latents, to average the posterior of an enumerated one over
_DRAWS = 1000  # of a latent without a density


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
            draws = _draws(guide, batch, name)
            if bool((draws != draws[:1]).any()):
                weights = torch.zeros(*fn.batch_shape, len(draws), dtype=draws.dtype, device=draws.device)
                return dist.Empirical(draws.movedim(0, len(fn.batch_shape)), weights)
        return fn


def _draws(guide: Program, batch: Batch, name: str) -> Tensor:
    """Draws of the latent, ``(S, *batch, *event)``."""
    traces = (poutine.trace(guide).get_trace(batch.x, **batch.arguments) for _ in range(_DRAWS))
    sites: list[Any] = [trace.nodes[name] for trace in traces]
    return torch.stack([site["value"] for site in sites])


def _summed_out(model: Program, guide: Program, batch: Batch, structure: Structure, name: str) -> TorchDistribution:
    draws = _OTHERS if structure.guided else 1
    logits = [enumerated_logits(model, guide, batch, structure, name) for _ in range(draws)]
    base = innermost(site_distribution(model, name, batch.x, **batch.arguments))
    probs = torch.stack([values.softmax(-1) for values in logits]).mean(0)
    if isinstance(base, dist.Bernoulli):
        return dist.Bernoulli(probs=probs[..., 1])
    one_hot = isinstance(base, dist.OneHotCategorical)
    return dist.OneHotCategorical(probs=probs) if one_hot else dist.Categorical(probs=probs)
