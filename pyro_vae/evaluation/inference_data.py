"""A pair's draws as ArviZ takes them, for its plots, summaries and comparisons."""

from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

import pyro_vae
from pyro_vae.evaluation.criticism import as_described
from pyro_vae.evaluation.diagnostics import import_arviz
from pyro_vae.inference.objectives import elbo_terms
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["to_inference_data"]


def to_inference_data(pair: Pair, x: Array, *, num_samples: int = 500, seed: int = 0, **context: Any) -> Any:
    r"""Draws from both programs at these rows, as :class:`arviz.InferenceData`.

    Its groups, with dimensions ``chain`` (one), ``draw`` (S of them) and ``row`` (N) before those of an event; latents
    outside the plate ``"data"`` have no ``row``:

    - ``posterior``: :math:`z \sim q(z \mid x)`, the guide's draws, under the names of the latent sites;
    - ``posterior_predictive``: :math:`x' \sim p(x \mid z)` at those draws, in the user's units;
    - ``log_likelihood``: :math:`\log p(x \mid z)` at those draws, a number for each row: in nats, in the user's units,
      over the observed entries;
    - ``prior``: :math:`z \sim p(z)`, and ``prior_predictive``: :math:`x' \sim p(x \mid z)` there, in the user's units;
    - ``observed_data``: the rows as the model describes them, in the user's units, NaN where an entry is missing;
    - ``constant_data``: keyword arguments, if there are any.

    The draws are independent, so they stand in one chain: effective sample sizes are about S, and :math:`\hat R`, which
    compares chains, is NaN.

    What ``arviz.loo`` means here: where each row has latents of its own, to leave a row out is to know nothing of its
    latents but the prior, so what it estimates for a row is :math:`\log p(x)`, the log evidence (at fixed parameters:
    give rows that the model was not trained on). It does so by the harmonic mean of the :math:`p(x \mid z)`, from
    draws of the guide that it takes for the posterior. The weights :math:`1 / p(x \mid z)` vary much for any but a few
    latents, and Pareto's k̂, which ``loo`` gives for each row, will say so.
    :func:`~pyro_vae.evaluation.log_evidence` estimates the same number well. Where all latents are outside the plate,
    ``loo`` means what it means elsewhere.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows ``(N, *E)`` in the user's units. Twice ``num_samples`` data sets of this size are kept in memory, so
            give some rows, not a whole data set.
        num_samples: Draws S.
        seed: Seeds everything; the caller's random state is left alone.
        context: Keyword arguments of the programs, rows first.

    Returns:
        An ``arviz.InferenceData``.

    Raises:
        ValueError: if the rows do not suit the model.
        ImportError: if ArviZ is not installed (``pip install 'pyro-vae[evaluation]'``).

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Poisson())
        >>> data = to_inference_data(vae, torch.ones(4, 3), num_samples=10)
        >>> dict(data.posterior["z"].sizes)
        {'chain': 1, 'draw': 10, 'row': 4, 'z_dim_1': 2}

    Source: Vehtari, Gelman & Gabry, *Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC*, 2017, for ``loo``; Kumar et al., *ArviZ*, 2019, for the format.
    """
    arviz = import_arviz()
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, found {num_samples}")
    x = pair.check(x, **context)
    draws: dict[str, dict[str, list[np.ndarray]]] = {}

    def keep(group: str, name: str, value: Tensor) -> None:
        draws.setdefault(group, {}).setdefault(name, []).append(value.detach().cpu().numpy())

    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        rows, prepared, log_jacobian = pair.prepare(x, context)
        observed = as_described(pair, x, rows, prepared.get("mask"))
        forward = {name: value for name, value in prepared.items() if name != "mask"}
        for _ in range(num_samples):
            prior: Any = prune_subsample_sites(poutine.trace(pair.model).get_trace(batch_size=len(x), **forward))
            latents = {name: prior.nodes[name] for name in prior.stochastic_nodes if name != "x"}
            for name, site in latents.items():
                keep("prior", name, _rows_first(site, site["value"]))
            keep("prior_predictive", "x", pair.transform.inverse(prior.nodes["x"]["value"]))

            terms = elbo_terms(pair.model, pair.guide, rows, prepared)
            given = {name: terms.latents[name] for name in latents if name in terms.latents}
            for name, value in given.items():
                keep("posterior", name, _rows_first(latents[name], value))
            keep("log_likelihood", "x", (terms.reconstruction + log_jacobian).double())
            replicated: Any = poutine.trace(poutine.condition(pair.model, given)).get_trace(
                batch_size=len(x), **forward
            )
            keep("posterior_predictive", "x", pair.transform.inverse(replicated.nodes["x"]["value"]))

    constant = {name: torch.as_tensor(value).cpu().numpy() for name, value in context.items()}
    local = [name for name, site in latents.items() if _is_local(site)]
    return arviz.from_dict(
        **{group: {name: np.stack(values)[None] for name, values in part.items()} for group, part in draws.items()},
        observed_data={"x": observed.numpy()},
        constant_data=constant or None,
        dims={name: ["row"] for name in ("x", *local, *constant)},
        coords={"row": np.arange(len(x))},
        attrs={"inference_library": "pyro_vae", "inference_library_version": pyro_vae.__version__},
    )


def _is_local(site: Any) -> bool:
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def _rows_first(site: Any, value: Tensor) -> Tensor:
    """A site's value with the plate ``"data"``, the last of its batch dimensions, before all others."""
    return value.movedim(value.dim() - 1 - site["fn"].event_dim, 0) if _is_local(site) else value
