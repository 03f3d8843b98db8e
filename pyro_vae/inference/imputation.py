"""Missing entries, drawn given the observed ones."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._support.devices import memory_for_draws
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import (
    Finish,
    enumerated_latents,
    predict_from_latents,
    rows_first,
    without_sites,
)
from pyro_vae.inference.replaying import Replayed
from pyro_vae.inference.sites import check_log_weights, run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.programs.running import evaluating

__all__ = ["draw_imputations", "draw_rows", "resampled", "rows_at_once", "seen_by_obs_mask"]

Program = Callable[..., Any]

_BYTES_PER_ROW = 2**18  # of the memory for draws: 256 rows at a time on a CPU
_BYTES_PER_DRAW = 2**13  # likewise for each draw of a row in one run of the programs: 8,192 on a CPU


def rows_at_once(device: torch.device) -> int:
    """The number of rows to impute at a time.

    Example:
        >>> rows_at_once(torch.device("cpu"))
        256
    """
    return memory_for_draws(device) // _BYTES_PER_ROW


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

    The guide makes ``num_particles`` draws of z for each row, with weights

    .. math:: w_k \propto \frac{p(x_\text{obs} \mid z_k)\, p(z_k)}{q(z_k \mid x_\text{obs})}

    From those, ``num_samples`` are chosen by weight; then :math:`x \sim p(x \mid z)`. As the number of particles grows,
    this becomes exact for the model, however rough the guide (Rubin, *SIR*, 1988; Mattei & Frellsen, *MIWAE*, 2019).

    Args:
        model: The generative program.
        guide: The inference program.
        batch: N rows with any values for missing entries, and a ``mask``, true where an entry is observed.
        num_samples: Draws S for each row.
        structure: The sites of the programs.
        num_particles: Draws from the guide to choose from.
        finish: Applied to the draws of ``x``.
        sites: Names of the sites to draw.

    Returns:
        By site ``(S, N, *E)``. Observed entries are drawn as well.

    Raises:
        ContractError: if there are latents outside the plate ``"data"``, which single rows cannot choose, or draws from
            the guide cannot be weighted.
    """
    if num_samples < 1 or num_particles < 1:
        raise ValueError(f"num_samples and num_particles must be at least 1, found {num_samples} and {num_particles}")
    structure.require_local("single rows cannot choose among its draws")
    structure.require_weights()
    with evaluating(model, guide):
        chosen = _from_guide(model, guide, batch, structure, num_samples, num_particles)
        found = draw_rows(model, chosen, batch, structure, num_samples, sites)
    if finish and "x" in found:
        found["x"] = finish(found["x"])
    return found


def draw_rows(
    model: Program,
    latents: dict[str, Tensor],
    batch: Batch,
    structure: Structure,
    num_samples: int,
    sites: Sequence[str] = ("x",),
) -> dict[str, Tensor]:
    """Draws rows from the model at latents drawn given a batch; latents that the model enumerates are drawn as well.

    Args:
        model: The generative program.
        latents: The guide's latents by site, ``(S, *plates, N, *event)``.
        batch: N rows.
        structure: The sites of the programs.
        num_samples: Draws S.
        sites: Names of the sites to draw.

    Returns:
        By site ``(S, N, *E)`` in the model's units.
    """
    if structure.enumerated("model"):
        drawn = [
            enumerated_latents(model, {n: v[i] for n, v in latents.items()}, batch, structure)
            for i in range(num_samples)
        ]
        latents = latents | {name: torch.stack([values[name] for values in drawn]) for name in drawn[0]}
    given = without_sites(batch, structure, sites)
    return predict_from_latents(model, latents, len(batch), num_samples=num_samples, arguments=given, sites=sites)


def _from_guide(
    model: Program, guide: Program, batch: Batch, structure: Structure, num_samples: int, num_particles: int
) -> dict[str, Tensor]:
    """Latents ``(S, *plates, N, *event)``, drawn from the guide and chosen by their weights."""
    one = run_pair(model, guide, batch, structure, enumerate_guide=False)
    log_weights = [one.log_weights]
    latents = {name: [value[None]] for name, value in one.latents.items() if name not in structure.extra}
    with pyro.validation_enabled(is_validate=False):  # the first run was validated
        for weights, *drawn in _more_draws(model, guide, batch, structure, list(latents), num_particles - 1):
            log_weights.append(weights)
            for name, value in zip(latents, drawn, strict=True):  # a plate of draws leaves spare dimensions
                latents[name].append(value.reshape(len(weights), *one.latents[name].shape))
    return resampled(
        {name: torch.cat(values) for name, values in latents.items()},
        one.event_dims,
        torch.cat(log_weights),
        num_samples,
    )


def resampled(
    latents: Mapping[str, Tensor], event_dims: Mapping[str, int], log_weights: Tensor, num_samples: int
) -> dict[str, Tensor]:
    """Latents chosen by their weights, for every row separately and with replacement.

    Args:
        latents: By site ``(K, *plates, N, *event)``.
        event_dims: Number of dimensions of an event at each site.
        log_weights: ``(K, N)``.
        num_samples: Number S to choose.

    Returns:
        By site ``(S, *plates, N, *event)``.

    Raises:
        FloatingPointError: if a log-weight is NaN, or a row has none above −∞.
    """
    check_log_weights(log_weights)
    if impossible := int((log_weights.max(0).values == -torch.inf).sum()):
        raise FloatingPointError(
            f"{impossible} of {log_weights.shape[1]} rows have no draw of the latents under which their observed "
            f"entries are possible: give the guide the model's support, or draw more particles"
        )
    index = torch.multinomial(log_weights.double().softmax(0).T, num_samples, replacement=True).T  # (S, N)
    chosen = {}
    for name, values in latents.items():
        rows = values.dim() - 1 - event_dims[name]  # the dimension of rows
        by_row = values.movedim(rows, 1)[index, torch.arange(index.shape[1], device=index.device)]
        chosen[name] = by_row.movedim(1, rows)
    return chosen


def _more_draws(
    model: Program, guide: Program, batch: Batch, structure: Structure, names: Sequence[str], num: int
) -> Iterator[tuple[Tensor, ...]]:
    """``num`` draws from the guide, as many at once as fit: log-weights and the latents with these names."""
    device = batch.x.device
    fit = max(1, memory_for_draws(device) // _BYTES_PER_DRAW // len(batch)) if structure.vectorised else 1
    at_once = max(1, min(num, fit))

    def drawn(count: int) -> tuple[Tensor, ...]:
        draws = run_pair(model, guide, batch, structure, num_particles=count, enumerate_guide=False)
        return draws.log_weights, *(draws.latents[name] for name in names)

    whole = Replayed(lambda: drawn(at_once), {"the model": model, "the guide": guide}, device, num // at_once)
    for _ in range(num // at_once):
        yield whole()
    if num % at_once:
        yield drawn(num % at_once)


def seen_by_obs_mask(model: Program, guide: Program, batch: Batch, name: str) -> Tensor:
    """Which elements of a site are observed, by ``pyro.sample(name, ..., obs_mask=...)``, in its value's shape."""
    with evaluating(model, guide):
        drawn = poutine.trace(guide).get_trace(batch.x, **batch.arguments)
        traced = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(batch.x, **batch.arguments)
    site: Any = traced.nodes[f"{name}_observed"]
    value, mask = site["value"], torch.as_tensor(site["mask"], device=site["value"].device)
    mask = mask.reshape(mask.shape + (1,) * site["fn"].event_dim)
    return rows_first(site, mask.expand(value.shape))
