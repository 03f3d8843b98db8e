"""The posterior of the latents by the No-U-Turn sampler, for comparison with the guide."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.arviz_versions import import_arviz
from pyro_vae.evaluation.latent_density import support_of
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.structure import (
    ContractError,
    innermost,
    is_discrete,
    is_local,
    sample_sites,
    vectorised_frames,
)
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["NutsPosterior", "moved_by_nuts", "nuts_posterior"]


@dataclass(frozen=True)
class NutsPosterior:
    """Draws from p(z | x), and whether to trust them.

    Args:
        draws: For each continuous latent site ``(num_chains, num_samples, N, *plates, *event)``; without N if
            the site belongs to all rows.
        r_hat: Rank-normalised split R̂ of each element; should be below 1.01.
        effective_sample_size: Bulk effective sample size of each element over all chains.
        num_divergences: Divergent transitions after warm-up; should be 0.
    """

    draws: dict[str, Tensor]
    r_hat: dict[str, Tensor]
    effective_sample_size: dict[str, Tensor]
    num_divergences: int

    def describe(self) -> str:
        """The diagnostics in a sentence."""
        r_hat = max(float(value.max()) for value in self.r_hat.values())
        size = min(float(value.min()) for value in self.effective_sample_size.values())
        figures = f"R̂ up to {r_hat:.3f}, effective sample size from {size:.0f}, {self.num_divergences} divergences"
        if r_hat < 1.01 and self.num_divergences == 0 and size >= 100:
            return f"The chains agree: {figures}."
        return f"Do not rely on these draws ({figures}): use more warm-up steps and more samples."


def nuts_posterior(
    pair: Pair,
    x: Inputs,
    num_samples: int = 500,
    warmup_steps: int = 500,
    num_chains: int = 4,
    *,
    seed: int = 0,
    max_tree_depth: int = 10,
) -> NutsPosterior:
    r"""Draws from :math:`p(z \mid x)` by Pyro's NUTS on the same program, to compare with :math:`q(z \mid x)`.

    Each chain starts at a draw from the prior. The sampler does not use the guide, so it can find regions that the
    guide misses. It takes seconds per row, so use a few rows. Discrete latents are summed out if they can be
    enumerated, whether or not the program marks them so, and have no draws. Scales that the program puts on its sites,
    with ``poutine.scale`` or by subsampling the plate ``"data"``, are ignored; masks are kept.

    A pair on a GPU is sampled on the CPU, as a copy: a leapfrog step is many small operations, one after another, and
    each would wait for the GPU. Where no copy runs there (functions that use modules, bare ``pyro.param`` statements),
    the pair itself is sampled where it is.

    Args:
        pair: The programs; the guide is not used.
        x: One row with its keyword arguments, as :func:`~pyro_vae.fit` takes them. Several rows are sampled together,
            for programs with latents that belong to all rows.
        num_samples: Draws of each chain, after warm-up.
        warmup_steps: Steps that adapt step size and mass.
        num_chains: Chains, run one after another; at least 2, to tell whether they agree.
        seed: Seeds the chains.
        max_tree_depth: A draw takes at most 2 to this power leapfrog steps.

    Returns:
        Draws by site with R̂, effective sample size and divergences.

    Raises:
        ContractError: if the model has no continuous latent, has a discrete one that cannot be enumerated, or has a
            plate within a row that subsamples its elements.
        ValueError: if there are too few chains or draws, or the rows do not fit.
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
    device, pair = pair.device, _on_cpu(pair, x)
    rows = next(pair.check(x).chunks(2**62))
    chains, num_divergences = [], 0
    with forked_random_state(pair.device), evaluating(pair.model):
        torch.manual_seed(seed)
        batch = pair.prepare(rows)
        moved, settings = moved_by_nuts(pair, batch)
        program = _Unscaled()(pair.programs[0])
        with torch.enable_grad():
            for chain in range(num_chains):
                torch.manual_seed(seed + chain)
                kernel = NUTS(program, max_tree_depth=max_tree_depth, init_strategy=_a_draw, **settings)
                start = _start(program, batch, settings["transforms"])
                mcmc = MCMC(kernel, num_samples, warmup_steps, start, num_chains=1, disable_progbar=True)
                mcmc.run(batch.x, **batch.arguments)
                chains.append({name: value.detach() for name, value in mcmc.get_samples().items() if name in moved})
                num_divergences += len(mcmc.diagnostics()["divergences"]["chain 0"])
    draws = {name: _rows_first(moved[name], torch.stack([chain[name] for chain in chains])) for name in chains[0]}
    arrays = {name: value.cpu().numpy() for name, value in draws.items()}

    def by_element(statistic: Any, array: np.ndarray) -> Tensor:
        flat = array.reshape(*array.shape[:2], -1)
        with np.errstate(divide="ignore", invalid="ignore"):  # chains that never moved have an infinite R̂, or none
            values = [float(statistic(flat[..., i])) for i in range(flat.shape[-1])]
        return torch.tensor(values, dtype=torch.float64).reshape(array.shape[2:])

    return NutsPosterior(
        {name: value.to(device) for name, value in draws.items()},
        {name: by_element(arviz.rhat, array) for name, array in arrays.items()},
        {name: by_element(arviz.ess, array) for name, array in arrays.items()},
        num_divergences,
    )


def _on_cpu(pair: Pair, x: Inputs) -> Pair:
    """A copy of the pair on the CPU; the pair itself where it is there, or no copy of it runs there."""
    if pair.device.type == "cpu":
        return pair
    try:
        here = copy.deepcopy(pair)
        here.store_names = set()  # entries of Pyro's parameter store are the pair's own, and stay where they are
        here.to("cpu")
        with evaluating(here.model), forked_random_state(pair.device):
            batch = here.prepare(next(here.check(x).chunks(2**62)))
            here.programs[0](batch.x, **batch.arguments)
    except (TypeError, RuntimeError):  # its modules are those of functions, or it holds tensors of the GPU elsewhere
        return pair
    return here


class _Unscaled(Messenger):
    """Removes all scales, and hides the indices that a subsampling plate draws for its rows.

    It also removes the masks of latents: a latent that is masked out has its prior as its posterior, not a flat density
    on all real numbers.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and msg["name"] == "data":
            msg["stop"] = True  # NUTS would reject them
        msg["scale"] = 1.0
        if not msg["is_observed"]:
            msg["mask"] = None


def moved_by_nuts(pair: Pair, batch: Batch) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The latents that NUTS moves, and its settings for the program.

    Raises:
        ContractError: if there is no such latent, or NUTS cannot move one.
    """
    program = _Unscaled()(pair.programs[0])
    sites = sample_sites(poutine.trace(program).get_trace(batch.x, **batch.arguments))
    latents = {name: site for name, site in sites.items() if not site["is_observed"]}
    moved = {name: site for name, site in latents.items() if not site["fn"].has_enumerate_support}
    for name, site in moved.items():
        if is_discrete(site["fn"]):
            raise ContractError(
                f"the latent {name!r} is a {type(innermost(site['fn'])).__name__}, and cannot be enumerated: NUTS can "
                f"neither move it nor sum over it"
            )
    if not moved:
        raise ContractError(
            f"the model has no continuous latent for NUTS to move, only {', '.join(latents) or 'none'}: the posterior "
            f"of discrete latents is a finite sum, see encode(x, site=...)"
        )
    frames = [frame for site in sites.values() for frame in vectorised_frames(site)]
    for frame in frames:
        if frame.name != "data" and frame.full_size is not None and frame.size < frame.full_size:
            raise ContractError(
                f"the plate {frame.name!r} subsamples its elements, and NUTS needs them all: run the model without "
                f"subsampling"
            )
    settings: dict[str, Any] = {"max_plate_nesting": max((-frame.dim for frame in frames), default=0)}
    settings["transforms"] = {name: _map(name, site["fn"]).inv for name, site in moved.items()}
    return moved, settings


def _a_draw(site: Any) -> Tensor:
    """A draw from a site's distribution, by calling it as Pyro does, which also works for flows that it wraps."""
    return site["fn"]().detach()


def _start(program: Any, batch: Batch, transforms: Mapping[str, Any]) -> dict[str, Tensor]:
    """A draw from the prior, on real numbers.

    Pyro's own start has extra values, one for each value of a summed-out discrete latent, where a latent depends on it.
    """
    sites: Any = poutine.trace(program).get_trace(batch.x, **batch.arguments).nodes
    return {name: transform(sites[name]["value"]).detach() for name, transform in transforms.items()}


def _map(name: str, fn: Any) -> Any:
    """The map from real numbers to a latent's support."""
    support = support_of(fn)
    try:
        return biject_to(support)
    except NotImplementedError:
        raise ValueError(
            f"the latent {name!r} has the support {support}, to which there is no map from real numbers, so NUTS "
            f"cannot move it"
        ) from None


def _rows_first(site: Any, draws: Tensor) -> Tensor:
    """Draws ``(C, S, *plates, N, *event)`` with the rows after the draws; angles are wrapped to one turn."""
    if isinstance(innermost(site["fn"]), dist.VonMises):
        draws = (draws + math.pi) % (2 * math.pi) - math.pi
    return draws.movedim(draws.dim() - 1 - site["fn"].event_dim, 2) if is_local(site) else draws
