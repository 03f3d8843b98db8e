"""The numbers that say how good a model is, in one call."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import Dataset

from pyro_vae._support.moments import Moments
from pyro_vae.data.rows import Data, Rows, as_rows
from pyro_vae.pair import Pair
from pyro_vae.programs import evaluating, forked_random_state, site_distribution
from pyro_vae.training.elbo import elbo_per_row

__all__ = ["evaluate"]


def evaluate(pair: Pair, x: Data, *, seed: int = 0, num_workers: int = 2, **context: Any) -> dict[str, float]:
    r"""Evaluates a model on rows it was not trained on.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows ``(N, *E)`` in the user's units, or whatever :func:`~pyro_vae.fit` takes: a mapping, a memory-mapped
            array or a ``torch.utils.data.Dataset``, which are streamed; of them a few numbers a row are kept.
        seed: Seeds the draws from the guide and the transform.
        num_workers: Processes that read what is streamed.
        context: Keyword arguments of the programs, rows first, where ``x`` does not bring them itself.

    Returns:
        In nats per datum, estimated from one draw of the guide for each row, each with its standard error over rows
        under the same name and ``_se``:

        - ``elbo``: the evidence lower bound, a log-density or log-probability in the user's units;
        - ``rate``: the KL from posterior to prior, and ``distortion``: minus the expected log-likelihood, so that
          ``elbo = -distortion - rate`` (Alemi et al., *Fixing a Broken ELBO*, 2018);
        - ``bits_per_dim``: :math:`-\mathrm{elbo} / (D \ln 2)` for rows of D elements (of D observed ones on average,
          where entries are missing: all of this is then of the observed part);

        and ``active_units``: latents with :math:`\mathrm{Var}_x(E_q[z]) > 0.01` over these rows (Burda et al., 2016);
        ``num_rows``: how many rows there were.

    Raises:
        ValueError: if the rows do not suit the model.
    """
    if context and isinstance(x, (Mapping, Dataset)):
        raise ValueError(
            f"x is a {type(x).__name__}, which brings its own keyword arguments: put {', '.join(context)} in it"
        )
    rows = as_rows({"x": x, **context} if context else x, pair.device, num_workers=num_workers)
    num_dims = rows.check(pair, "x") / rows.num_rows
    reconstruction, kl = elbo_per_row(pair, rows, seed=seed)
    metrics: dict[str, float] = {}
    for name, values in {
        "elbo": reconstruction - kl,
        "rate": kl,
        "distortion": -reconstruction,
        "bits_per_dim": (kl - reconstruction) / (num_dims * math.log(2)),
    }.items():
        values = values.double()
        metrics[name] = float(values.mean())
        if len(values) > 1:
            metrics[f"{name}_se"] = float(values.std() / math.sqrt(len(values)))
    metrics["active_units"] = int((_moments_of_means(pair, rows, seed).variance > 0.01).sum())
    metrics["num_rows"] = rows.num_rows
    return metrics


def _moments_of_means(pair: Pair, rows: Rows, seed: int) -> Moments:
    """Moments over rows of the mean of q(z | x)."""
    moments = Moments()
    with forked_random_state(pair.device), evaluating(pair.guide):
        torch.manual_seed(seed)
        for batch in rows.chunks(1024):
            x, context, _ = pair.prepare(batch.pop("x"), batch)
            moments.add(site_distribution(pair.guide, "z", x, **context).mean)
    return moments
