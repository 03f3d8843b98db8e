"""The main numbers on how good a model is, in one call."""

import contextlib
import math

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._support.moments import Moments
from pyro_vae.data.rows import Inputs, Rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.inspection import LOOKED_AT
from pyro_vae.inference.predictive import at_centre, rows_first
from pyro_vae.inference.structure import Latent, Structure, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state
from pyro_vae.training.elbo import terms_per_row

__all__ = ["ACTIVE_VARIANCE", "evaluate"]

ACTIVE_VARIANCE = 0.01  # variance over rows of an active latent's mean, at least
_ROWS = 1024  # at a time, as training validates


def evaluate(pair: Pair, x: Inputs, *, seed: int = 0, num_workers: int = 2) -> dict[str, float]:
    r"""Evaluates a model on rows it was not trained on.

    On the validation rows of :func:`~pyro_vae.fit`, ``elbo`` is the history's ``validation_elbo`` for the weights that
    were kept. A latent outside the plate ``"data"`` is shared, as in training: each row carries 1/N of its KL, where N
    is the number of rows that the pair was trained on.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows, as :func:`~pyro_vae.fit` takes them. Data in files are streamed; a few numbers per row are kept.
        seed: Seeds the draws from the guide.
        num_workers: Number of processes that read streamed data.

    Returns:
        In nats per datum, estimated from one draw from the guide for each row. The standard error over rows has the
        same name with ``_se``:

        - ``elbo``: the evidence lower bound, a log-density or log-probability in the user's units, for everything that
          the model observes about a row;
        - ``rate``: the KL from posterior to prior, and ``distortion``: minus the expected log-likelihood, so that
          ``elbo = -distortion - rate`` (Alemi et al., *Fixing a Broken ELBO*, 2018);
        - ``bits_per_dim``: :math:`-\mathrm{elbo} / (D \ln 2)` for rows of D elements (if entries are missing, D is the
          average number of observed ones, and everything here is about the observed part). It is omitted if the model
          observes more of a row than ``x``;
        - ``auxiliary``: what the guide's observed sites and its factors add to the objective. It is present if the
          guide has any, and is not part of the ELBO;
        - ``rate_z_1`` and so on: with several latents, each one's part of the rate. Latents that are summed over have
          none;

        ``num_latents``: the number of coordinates of all continuous latents of a row whose distribution in the guide
        has a mean, and ``active_units``: the number of those with :math:`\mathrm{Var}_x(E_q[z]) > 0.01` over these rows
        (Burda et al., 2016). If a latent depends on earlier ones, its mean is taken at their middle. With several
        latents, ``active_units_z_1`` and ``num_latents_z_1`` are those of one. They are omitted if there are no such
        latents, as with discrete latents or flows.

        ``num_rows``: the number of rows.

    Raises:
        ValueError: if the rows do not fit the model, or the programs break the contract.
        TypeError: if a keyword argument is one that neither program takes.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> metrics = evaluate(mlp_vae((3,), latent_dim=2, likelihood=Bernoulli()), torch.ones(50, 3))
        >>> metrics["num_latents"], abs(metrics["elbo"] + metrics["distortion"] + metrics["rate"]) < 1e-6
        (2, True)
    """
    rows = pair.check(x, num_workers=num_workers)
    with forked_random_state(pair.device):
        few = next(rows.batches([torch.arange(min(LOOKED_AT, rows.num_rows))]))
        structure = pair.structure(pair.prepare(few))
    terms = terms_per_row(pair, rows, seed=seed, structure=structure)
    reconstruction, kl = terms["reconstruction"].double(), terms["kl"].double()
    by_row = {"elbo": reconstruction - kl, "rate": kl, "distortion": -reconstruction}
    if list(structure.observed) == ["x"]:
        by_row["bits_per_dim"] = (kl - reconstruction) / (rows.num_observed / rows.num_rows * math.log(2))
    if "auxiliary" in terms:
        by_row["auxiliary"] = terms["auxiliary"].double()
    for name in structure.latents:
        if f"kl_{name}" in terms:
            by_row[f"rate_{name}"] = terms[f"kl_{name}"].double()
    metrics: dict[str, float] = {}
    for name, values in by_row.items():
        metrics[name] = float(values.mean())
        if len(values) > 1:
            metrics[f"{name}_se"] = float(values.std() / math.sqrt(len(values)))
    active = {
        name: variance > ACTIVE_VARIANCE for name, variance in _variances_of_means(pair, rows, structure, seed).items()
    }
    if active:
        metrics["active_units"] = sum(int(units.sum()) for units in active.values())
        metrics["num_latents"] = sum(map(len, active.values()))
        if len(structure.latents) > 1:
            metrics |= {f"active_units_{name}": int(units.sum()) for name, units in active.items()}
            metrics |= {f"num_latents_{name}": len(units) for name, units in active.items()}
    metrics["num_rows"] = rows.num_rows
    return metrics


def _variances_of_means(pair: Pair, rows: Rows, structure: Structure, seed: int) -> dict[str, Tensor]:
    """Variance over rows of the posterior mean of each coordinate, for each latent that has a mean."""
    names = [name for name in structure.guided if _may_have_mean(structure.latents[name])]
    moments: dict[str, Moments] = {}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for first, chunk in enumerate(rows.chunks(_ROWS)):
            means = _means(pair, pair.prepare(chunk), names)
            if first == 0:
                moments = {name: Moments() for name in means if bool(means[name].isfinite().all())}
            if not moments:
                break
            for name, kept in moments.items():
                kept.add(means[name])
    return {name: kept.variance for name, kept in moments.items()}


def _may_have_mean(latent: Latent) -> bool:
    return latent.is_local and not latent.is_discrete


def _means(pair: Pair, batch: Batch, names: list[str]) -> dict[str, Tensor]:
    """The means of these sites of the guide, ``(N, coordinates)``."""
    sites = sample_sites(poutine.trace(at_centre(pair.programs[1])).get_trace(batch.x, **batch.arguments))
    found = {}
    for name in names:
        with contextlib.suppress(NotImplementedError, AttributeError):
            found[name] = rows_first(sites[name], sites[name]["fn"].mean).reshape(len(batch), -1)
    return found
