"""How good a model is, in numbers."""

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae.objectives import elbo_terms
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state
from pyro_vae.rows import Rows, as_rows

__all__ = ["elbo_per_row", "evaluate"]


def elbo_per_row(
    pair: Pair, rows: Rows, *, num_rows: int | None = None, seed: int = 0, batch_size: int = 1024
) -> tuple[Tensor, Tensor]:
    """Reconstruction log p(x | z) and KL log q(z | x) − log p(z) of each row at one draw of z, in nats.

    Args:
        pair: The programs.
        rows: Checked rows in the user's units, with the keyword arguments of the programs.
        num_rows: Rows that share a site outside the plate ``"data"``; all of these by default.
        seed: Seeds the draws; the caller's random state is left alone.
        batch_size: Rows at a time.

    Returns:
        Two tensors ``(N,)``. The reconstruction is a log-density in the user's units; ELBO is their difference.
    """
    parts = []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for batch in rows.chunks(batch_size):
            x, context, log_jacobian = pair.prepare(batch.pop("x"), batch)
            terms = elbo_terms(pair.model, pair.guide, x, context, num_rows=num_rows or rows.num_rows)
            parts.append((terms.reconstruction + log_jacobian, terms.kl))
    reconstruction, kl = zip(*parts, strict=True)
    return torch.cat(reconstruction), torch.cat(kl)


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
