"""The posterior of the latents by the No-U-Turn sampler, to hold the guide against."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.infer.autoguide.initialization import init_to_sample
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.evaluation.diagnostics import import_arviz
from pyro_vae.inference.structure import unscaled
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["NutsPosterior", "nuts_posterior"]


@dataclass(frozen=True)
class NutsPosterior:
    """Draws from p(z | x), and whether to believe them.

    Args:
        draws: For each continuous latent site ``(num_chains, num_samples, N, *event)``; without N where the site
            belongs to all rows.
        r_hat: Rank-normalised split R̂ of each element; should be below 1.01.
        effective_sample_size: Bulk effective sample size of each element over all chains.
        num_divergences: Divergent transitions after warm-up; should be 0.
    """

    draws: dict[str, Tensor]
    r_hat: dict[str, Tensor]
    effective_sample_size: dict[str, Tensor]
    num_divergences: int

    def describe(self) -> str:
        """What the diagnostics say, in a sentence."""
        r_hat = max(float(value.max()) for value in self.r_hat.values())
        size = min(float(value.min()) for value in self.effective_sample_size.values())
        figures = f"R̂ up to {r_hat:.3f}, effective sample size from {size:.0f}, {self.num_divergences} divergences"
        if r_hat < 1.01 and self.num_divergences == 0 and size >= 100:
            return f"The chains agree: {figures}."
        return f"These draws are not to be relied on ({figures}): take more warm-up and more samples."


def nuts_posterior(
    pair: Pair,
    x: Array,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 4,
    *,
    seed: int = 0,
    max_tree_depth: int = 10,
    **context: Any,
) -> NutsPosterior:
    r"""Draws from :math:`p(z \mid x)` by Pyro's NUTS on the very same program, to compare with :math:`q(z \mid x)`.

    Each chain starts at a draw from the prior. The sampler sees nothing of the guide, so it may find what the guide
    never looks at; but it takes seconds for a row, so it is for a few of them. Discrete latents are summed out where
    they can be enumerated, and have no draws. A scale that the program puts on its sites is left out.

    Args:
        pair: The programs.
        x: One row, ``(1, *E)`` in the user's units; more of them are sampled together, which is for programs with
            latents that belong to all rows.
        num_samples: Draws of each chain, after warm-up.
        warmup_steps: Steps that adapt step size and mass.
        num_chains: Chains, one after another; at least 2, or nothing tells whether they agree.
        seed: Seeds chains and transform.
        max_tree_depth: At most 2 to this power leapfrog steps for a draw.
        context: Keyword arguments of both programs, rows first.

    Returns:
        Draws by site with R̂, effective sample size and divergences.

    Raises:
        ValueError: if there are too few chains or draws, or the model has no continuous latent.
        ImportError: if ArviZ is not installed.

    Source: Hoffman & Gelman, *The No-U-Turn Sampler*, 2014; Vehtari et al., *Rank-Normalization, Folding, and
    Localization: An Improved R̂*, 2021.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x=None, *, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        ...         return pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> pair = Pair(model, lambda x: None)
        >>> nuts_posterior(pair, torch.tensor([3.0]), 20, 20, 2).draws["z"].shape
        torch.Size([2, 20, 1])
    """
    if num_chains < 2 or num_samples < 4 or warmup_steps < 1:
        raise ValueError(
            f"num_chains must be at least 2, num_samples 4 and warmup_steps 1; found {num_chains}, {num_samples} and "
            f"{warmup_steps}"
        )
    arviz = import_arviz()
    x = pair.check(x, **context)
    program = unscaled(pair.model)
    chains, num_divergences = [], 0
    with forked_random_state(pair.device), evaluating(pair.model):
        torch.manual_seed(seed)
        rows, prepared, _ = pair.prepare(x, context)
        _check_continuous(program, rows, prepared)
        with torch.enable_grad():
            for chain in range(num_chains):
                torch.manual_seed(seed + chain)
                kernel = NUTS(program, max_tree_depth=max_tree_depth, init_strategy=init_to_sample)
                mcmc = MCMC(kernel, num_samples, warmup_steps, num_chains=1, disable_progbar=True)
                mcmc.run(rows, **prepared)
                chains.append({name: value.detach() for name, value in mcmc.get_samples().items()})
                num_divergences += len(mcmc.diagnostics()["divergences"]["chain 0"])
    draws = {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}
    arrays = {name: value.cpu().numpy() for name, value in draws.items()}

    def by_element(statistic: Any, array: np.ndarray) -> Tensor:
        flat = array.reshape(*array.shape[:2], -1)
        values = [float(statistic(flat[..., i])) for i in range(flat.shape[-1])]
        return torch.tensor(values, dtype=torch.float64).reshape(array.shape[2:])

    return NutsPosterior(
        draws,
        {name: by_element(arviz.rhat, array) for name, array in arrays.items()},
        {name: by_element(arviz.ess, array) for name, array in arrays.items()},
        num_divergences,
    )


def _check_continuous(program: Any, x: Tensor, context: dict[str, Any]) -> None:
    nodes = prune_subsample_sites(poutine.trace(program).get_trace(x, **context)).nodes
    latents = {n: site["fn"] for n, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}
    if all(fn.has_enumerate_support for fn in latents.values()):
        raise ValueError(
            f"the model has no continuous latent for NUTS to move, only {', '.join(latents) or 'none'}: the "
            f"posterior of discrete latents is a finite sum (pyro.infer.TraceEnum_ELBO.compute_marginals)"
        )
