"""Missing entries, drawn given those that are there."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.inference.objectives import elbo_terms
from pyro_vae.inference.predictive import Finish, Program, predict_from_latents, rows_of
from pyro_vae.programs import evaluating

__all__ = ["draw_imputations"]


def draw_imputations(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    context: Mapping[str, Any],
    num_particles: int = 100,
    finish: Finish | None = None,
    chunk_size: int = 256,
) -> Tensor:
    r"""Draws whole rows given their observed entries, by importance resampling.

    From the guide come ``num_particles`` draws of z for each row, with weights

    .. math:: w_k \propto \frac{p(x_\text{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\text{obs})}

    and from those, by their weights, ``num_samples``; then :math:`x \sim p(x \mid z)`. As the number of particles
    grows this is exact for the model, however rough the guide is (Rubin, *SIR*, 1988; Mattei & Frellsen, *MIWAE*,
    2019).

    Args:
        model: The generative program.
        guide: The inference program.
        x: Rows ``(N, *E)`` in the model's units, anything in the places of missing entries.
        num_samples: Draws S for each row.
        context: Keyword arguments of both programs, rows first, among them ``mask``, true where an entry is observed.
        num_particles: Draws from the guide to choose from.
        finish: Applied to each chunk of draws.
        chunk_size: Rows at a time.

    Returns:
        ``(S, N, *E)``. Observed entries are drawn anew as well.

    Raises:
        ValueError: if the guide has latents outside the plate ``"data"``, which rows cannot choose one by one.
    """
    if num_samples < 1 or num_particles < 1:
        raise ValueError(f"num_samples and num_particles must be at least 1, found {num_samples} and {num_particles}")
    parts = []
    with evaluating(model, guide):
        for start in range(0, len(x), chunk_size):
            here = rows_of(context, start, start + chunk_size)
            chosen = _resample(model, guide, x[start : start + chunk_size], num_samples, num_particles, here)
            given = {name: value for name, value in here.items() if name != "mask"}
            draws = predict_from_latents(model, chosen, len(x[start : start + chunk_size]), context=given)
            parts.append(finish(draws) if finish else draws)
    return torch.cat(parts, dim=1)


def _resample(
    model: Program, guide: Program, x: Tensor, num_samples: int, num_particles: int, context: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Latents ``(S, N, ...)``, drawn from the guide and chosen by their weights."""
    rows = len(x)
    terms = [elbo_terms(model, guide, x, context) for _ in range(num_particles)]
    log_weights = torch.stack([term.elbo for term in terms]).double()
    index = torch.multinomial(log_weights.softmax(0).T, num_samples, replacement=True).T
    chosen = {}
    for name in terms[0].latents:
        values = torch.stack([term.latents[name] for term in terms])
        if values.dim() < 2 or values.shape[1] != rows:
            raise ValueError(f"the latent {name!r} belongs to all rows; imputation needs latents in the plate 'data'")
        chosen[name] = values[index, torch.arange(rows, device=x.device)]
    return chosen
