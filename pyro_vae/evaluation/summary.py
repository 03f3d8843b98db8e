"""The numbers that say how good a model is, in one call."""

import math
from typing import Any

import torch

from pyro_vae.elbo import elbo_per_row
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import forked_random_state
from pyro_vae.rows import as_rows

__all__ = ["evaluate"]


def evaluate(pair: Pair, x: Array, *, seed: int = 0, **context: Any) -> dict[str, float]:
    r"""Evaluates a model on rows it was not trained on.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair`.
        x: Rows ``(N, *E)`` in the user's units.
        seed: Seeds the draws from the guide and the transform.
        context: Keyword arguments of the programs, rows first.

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
    """
    x = pair.check(x, **context)
    reconstruction, kl = elbo_per_row(pair, as_rows({"x": x, **context}, pair.device), seed=seed)
    num_dims = pair.num_observed(x, context) / len(x)
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
    with forked_random_state(pair.device):
        torch.manual_seed(seed)
        means = pair.encode(x, **context).mean
    metrics["active_units"] = int((means.var(0) > 0.01).sum()) if len(means) > 1 else 0
    metrics["num_rows"] = len(x)
    return metrics
