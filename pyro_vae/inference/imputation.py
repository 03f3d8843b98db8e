"""Missing entries, drawn given those that are there."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import (
    Finish,
    enumerated_latents,
    predict_from_latents,
    rows_first,
    without_sites,
)
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.programs.running import evaluating

__all__ = ["draw_imputations", "seen_by_obs_mask"]

Program = Callable[..., Any]


def draw_imputations(
    model: Program,
    guide: Program,
    batch: Batch,
    num_samples: int,
    structure: Structure,
    *,
    num_particles: int = 100,
    finish: Finish | None = None,
    sites: Sequence[str] = ("x",),
) -> dict[str, Tensor]:
    r"""Draws whole rows given their observed entries, by importance resampling.

    From the guide come ``num_particles`` draws of z for each row, with weights

    .. math:: w_k \propto \frac{p(x_\text{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\text{obs})}

    and from those, by their weights, ``num_samples``; then :math:`x \sim p(x \mid z)`. As the number of particles
    grows this is exact for the model, however rough the guide is (Rubin, *SIR*, 1988; Mattei & Frellsen, *MIWAE*,
    2019).

    Args:
        model: The generative program.
        guide: The inference program.
        batch: N rows with anything in the places of missing entries, and a ``mask``, true where an entry is observed.
        num_samples: Draws S for each row.
        structure: What the programs are made of.
        num_particles: Draws from the guide to choose from.
        finish: Applied to the draws of ``x``.
        sites: Names of the sites to draw.

    Returns:
        By site ``(S, N, *E)``. Observed entries are drawn as well.

    Raises:
        ContractError: if there are latents outside the plate ``"data"``, which rows cannot choose one by one.
    """
    if num_samples < 1 or num_particles < 1:
        raise ValueError(f"num_samples and num_particles must be at least 1, found {num_samples} and {num_particles}")
    structure.require_local("rows cannot choose among its draws one by one")
    with evaluating(model, guide):
        chosen = _resample(model, guide, batch, structure, num_samples, num_particles)
        if structure.enumerated("model"):
            drawn = [
                enumerated_latents(model, {n: v[i] for n, v in chosen.items()}, batch, structure)
                for i in range(num_samples)
            ]
            chosen |= {name: torch.stack([latents[name] for latents in drawn]) for name in drawn[0]}
        given = without_sites(batch, structure, sites)
        found = predict_from_latents(model, chosen, len(batch), num_samples=num_samples, arguments=given, sites=sites)
    if finish and "x" in found:
        found["x"] = finish(found["x"])
    return found


def _resample(
    model: Program, guide: Program, batch: Batch, structure: Structure, num_samples: int, num_particles: int
) -> dict[str, Tensor]:
    """Latents ``(S, *plates, N, *event)``, drawn from the guide and chosen by their weights."""
    draws = [run_pair(model, guide, batch, structure, enumerate_guide=False) for _ in range(num_particles)]
    log_weights = torch.cat([draw.log_weights for draw in draws]).double()
    index = torch.multinomial(log_weights.softmax(0).T, num_samples, replacement=True).T  # (S, N)
    chosen = {}
    for name in draws[0].latents:
        if name in structure.extra:
            continue
        values = torch.stack([draw.latents[name] for draw in draws])
        rows = values.dim() - 1 - draws[0].event_dims[name]  # the dimension of rows
        by_row = values.movedim(rows, 1)[index, torch.arange(len(batch), device=index.device)]
        chosen[name] = by_row.movedim(1, rows)
    return chosen


def seen_by_obs_mask(model: Program, guide: Program, batch: Batch, name: str) -> Tensor:
    """Which elements of a site are observed, by ``pyro.sample(name, ..., obs_mask=...)``, in the shape of its value."""
    with evaluating(model, guide):
        drawn = poutine.trace(guide).get_trace(batch.x, **batch.arguments)
        traced = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch.x, **batch.arguments)
    site: Any = traced.nodes[f"{name}_observed"]
    value, mask = site["value"], torch.as_tensor(site["mask"], device=site["value"].device)
    mask = mask.reshape(mask.shape + (1,) * site["fn"].event_dim)
    return rows_first(site, mask.expand(value.shape))
