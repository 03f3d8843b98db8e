"""A pair's draws in ArviZ's format, for its plots, summaries and comparisons."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

import pyro_vae
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.arviz_versions import arviz_groups, import_arviz
from pyro_vae.evaluation.described import as_described
from pyro_vae.evaluation.simulation import check_forward
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import enumerated_latents, rows_first, without_sites
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Structure, is_local, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["to_inference_data"]

Program = Any


def to_inference_data(pair: Pair, x: Inputs, *, num_samples: int = 500, seed: int = 0) -> Any:
    r"""Draws from both programs at these rows, in ArviZ's format.

    The groups below have the dimensions ``chain`` (one), ``draw`` (S) and ``row`` (N) before those of a site's other
    plates and of an event; latents outside the plate ``"data"`` have no ``row``:

    - ``posterior``: :math:`z \sim q(z \mid x)`, draws from the guide, under the names of the latent sites; latents that
      the model enumerates are drawn from their posterior :math:`p(k \mid x, z)` given those;
    - ``posterior_predictive``: :math:`x' \sim p(x \mid z)` at those draws, and every other observed site, with ``x`` in
      the user's units;
    - ``log_likelihood``: :math:`\log p(x \mid z)` of each observed site at those draws, a number for each row: in nats,
      in the user's units, over the observed entries. Sites that share an enumerated latent have one number, summed over
      its values, under their names joined by an ampersand;
    - ``prior``: :math:`z \sim p(z)`, and ``prior_predictive``: :math:`x' \sim p(x \mid z)` there, in the user's units;
    - ``observed_data``: the rows as the model describes them, in the user's units, NaN where an entry is missing, and
      the other observed sites;
    - ``constant_data``: the other keyword arguments, if any.

    The draws are independent, so they form one chain: effective sample sizes are about S, and :math:`\hat R`, which
    compares chains, is NaN.

    About ``arviz.loo``: if each row has its own latents, leaving a row out leaves only the prior for its latents. So
    the estimate for a row is :math:`\log p(x)`, the log evidence (at fixed parameters: use rows that the model was not
    trained on). It is the harmonic mean of the :math:`p(x \mid z)`, over draws from the guide that are taken as draws
    from the posterior. With more than a few latents the weights :math:`1 / p(x \mid z)` vary widely, and Pareto's k̂,
    which ``loo`` reports for each row, shows it. :func:`~pyro_vae.evaluation.log_evidence` estimates the same number
    well. If all latents are outside the plate, ``loo`` has its usual meaning. With several observed sites, add up their
    ``log_likelihood`` first.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows, as :func:`~pyro_vae.fit` takes them. Twice ``num_samples`` data sets of this size are kept in memory,
            so pass some rows, not a whole data set.
        num_samples: Draws S.
        seed: Seeds everything; the caller's random state is unchanged.

    Returns:
        An ``arviz.InferenceData``, or with ArviZ 1 or later an ``xarray.DataTree`` with the same groups.

    Raises:
        ContractError: if the programs break the contract, or the model does not run without data.
        ValueError: if the rows do not fit the model.
        ImportError: if ArviZ is not installed (``pip install 'pyro-vae[evaluation]'``).

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Poisson())
        >>> data = to_inference_data(vae, torch.ones(4, 3), num_samples=10)
        >>> data.posterior["z"].dims[:3], data.posterior["z"].shape
        (('chain', 'draw', 'row'), (1, 10, 4, 2))

    Source: Vehtari, Gelman & Gabry, *Practical Bayesian model evaluation using leave-one-out cross-validation and
    WAIC*, 2017, for ``loo``; Kumar et al., *ArviZ*, 2019, for the format.
    """
    import_arviz()  # fails before the programs are run
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, found {num_samples}")
    rows = next(pair.check(x).chunks(2**62))
    draws = _Groups()
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        batch = pair.prepare(rows)
        structure = pair.structure(batch)
        check_forward(pair, batch, structure)
        observed = {"x": as_described(pair, rows["x"], batch), **_observed(batch, structure)}
        forward = without_sites(batch, structure, tuple(structure.observed))
        for _ in range(num_samples):
            _draw_prior(pair, batch, structure, forward, draws)
            _draw_posterior(pair, batch, structure, forward, draws)
    arguments = {name: value for name, value in batch.arguments.items() if name not in observed}
    held = set(structure.observed.values())
    constant = {n: v for n, v in arguments.items() if n not in held and v is not None and not _is_mask(n, held)}
    by_row = [*draws.by_row, *observed, *(name for name in constant if name in batch.context)]
    groups = {
        **draws.stacked(),
        "observed_data": {name: value.cpu().numpy() for name, value in observed.items()},
        "constant_data": {n: v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for n, v in constant.items()},
    }
    return arviz_groups(
        groups,
        dims={name: ["row"] for name in by_row},
        coords={"row": np.arange(len(batch))},
        attrs={"inference_library": "pyro_vae", "inference_library_version": pyro_vae.__version__},
    )


class _Groups:
    """Draws by group and name."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, list[np.ndarray]]] = {}
        self.by_row: dict[str, None] = {}

    def keep(self, group: str, name: str, value: Tensor, *, by_row: bool = True) -> None:
        self.groups.setdefault(group, {}).setdefault(name, []).append(value.detach().cpu().numpy())
        if by_row:
            self.by_row[name] = None

    def keep_site(self, group: str, name: str, site: Any) -> None:
        self.keep(group, name, rows_first(site, site["value"]), by_row=is_local(site))

    def stacked(self) -> dict[str, dict[str, np.ndarray]]:
        """The draws with a chain dimension, ``(1, S, …)``."""
        return {
            group: {name: np.stack(values)[None] for name, values in part.items()}
            for group, part in self.groups.items()
        }


def _draw_prior(pair: Pair, batch: Batch, structure: Structure, arguments: Mapping[str, Any], draws: _Groups) -> None:
    """One draw of everything, without data."""
    sites = sample_sites(poutine.trace(pair.programs[0]).get_trace(batch_size=len(batch), **arguments))
    for name in structure.latents:
        draws.keep_site("prior", name, sites[name])
    _keep_observed(pair, structure, sites, draws, "prior_predictive")


def _draw_posterior(
    pair: Pair, batch: Batch, structure: Structure, arguments: Mapping[str, Any], draws: _Groups
) -> None:
    """One draw of the latents given the rows, the rows' log-likelihood there, and new data from it."""
    found = run_pair(*pair.programs, batch, structure, enumerate_guide=False)
    for name, value in found.log_likelihood.items():
        has_x = "x" in name.split(" & ")
        draws.keep("log_likelihood", name, (value[0] + (batch.log_jacobian if has_x else 0)).double())
    latents = {name: found.latents[name] for name in structure.guided}
    latents |= enumerated_latents(pair.programs[0], latents, batch, structure)
    given = poutine.condition(pair.programs[0], latents)
    sites = sample_sites(poutine.trace(given).get_trace(batch_size=len(batch), **arguments))
    for name in structure.latents:
        draws.keep_site("posterior", name, sites[name])
    _keep_observed(pair, structure, sites, draws, "posterior_predictive")


def _keep_observed(pair: Pair, structure: Structure, sites: Mapping[str, Any], draws: _Groups, group: str) -> None:
    for name in structure.observed:
        if name in sites and not sites[name]["is_observed"] and is_local(sites[name]):
            value = rows_first(sites[name], sites[name]["value"])
            draws.keep(group, name, pair.transform.inverse(value) if name == "x" else value)


def _observed(batch: Batch, structure: Structure) -> dict[str, Tensor]:
    """The observed sites other than ``x``, NaN where entries are missing."""
    found = {}
    for name, argument in structure.observed.items():
        if name != "x" and argument is not None and argument in batch.context:
            value, seen = batch.context[argument], batch.context.get(f"{argument}_mask")
            found[name] = value if seen is None else torch.where(seen, value, math.nan)
    return found


def _is_mask(name: str, held: set[str | None]) -> bool:
    return name == "mask" or (name.endswith("_mask") and name.removesuffix("_mask") in held)
