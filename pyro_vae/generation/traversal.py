"""The effect of one latent, while the others stay the same."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.inference.batch import Batch, rows_of, with_rows
from pyro_vae.inference.predictive import at_centre, forward_trace
from pyro_vae.inference.structure import ContractError, innermost, is_discrete, is_local, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.arguments import accepted
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["traverse"]

_DRAWS = 10_000  # from a prior whose quantiles have no formula


def traverse(
    pair: Pair,
    x: Inputs | None = None,
    *,
    latents: Sequence[int] | None = None,
    steps: int = 9,
    quantiles: tuple[float, float] = (0.025, 0.975),
    values: Tensor | Sequence[float] | None = None,
    site: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> Tensor:
    r"""Means :math:`E[x \mid z]` as one latent after another moves through its range: ``(latents, steps, *E)``.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` with a continuous latent for each row.
        x: One row. The other latents stay at its code, the middle of :math:`q(z \mid x)`; without ``x``, at the middle
            of the prior.
        latents: Indices of the entries of the latent to move; by default all.
        steps: Number of values for each entry.
        quantiles: Quantiles of the prior, between which the values are evenly spaced in probability.
        values: The values themselves, instead of quantiles.
        site: Name of the latent; by default the only one, or ``"z"``.
        given: Keyword arguments of the model, with one row each if they have rows; only without ``x``.

    Raises:
        ContractError: if the latent is discrete.
        ValueError: if steps, quantiles or the number of rows are invalid.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((4, 4), latent_dim=3, likelihood=Normal())
        >>> traverse(vae, torch.randn(1, 4, 4), steps=5).shape, traverse(vae, latents=[2]).shape
        (torch.Size([3, 5, 4, 4]), torch.Size([1, 9, 4, 4]))
    """
    if values is None and not (0 < quantiles[0] < quantiles[1] < 1 and steps >= 2):
        raise ValueError(f"steps must be at least 2 and quantiles rise within (0, 1), found {steps} and {quantiles}")
    if x is not None and given is not None:
        raise ValueError("given is for use without x; put keyword arguments with a row: {'x': x, 'labels': labels}")
    if x is None:
        batch = pair._given(given, 1)
        centre = _prior(pair, batch)
        middle = {name: site["value"] for name, site in centre.items() if is_local(site)}
    else:
        batch = pair.batch(x)
        if len(batch) != 1:
            raise ValueError(f"x must be one row, x[:1], found {len(batch)}")
        middle = pair.middle(batch)
        centre = _prior(pair, batch)
    name = _named(centre, site)
    event_dim = centre[name]["fn"].event_dim
    code = rows_of(middle[name], event_dim)[0]
    moved = range(len(code)) if latents is None else [range(len(code))[i] for i in latents]
    if values is None:
        levels = torch.linspace(*quantiles, steps, dtype=torch.float64, device=code.device)
        each = rows_of(_quantiles(centre[name]["fn"], levels), event_dim)[0].reshape(steps, -1)[:, list(moved)].T
    else:
        each = torch.as_tensor(values, dtype=code.dtype).reshape(1, -1).expand(len(moved), -1)
    codes = code.repeat(len(moved), each.shape[1], 1)
    for row, i in enumerate(moved):
        codes[row, :, i] = each[row].to(codes)
    num = len(moved) * each.shape[1]
    whole = batch[torch.zeros(num, dtype=torch.long, device=batch.x.device)]
    held = {
        other: _repeated(value, centre[other], num) if is_local(centre[other]) else value
        for other, value in middle.items()
    }
    held[name] = with_rows(codes.flatten(0, 1), middle[name].shape, event_dim)
    found = pair.mean_at(held, given=whole.forward)
    return found.reshape(len(moved), each.shape[1], *found.shape[1:])


def _prior(pair: Pair, batch: Batch) -> dict[str, Any]:
    """The sites of the model's latents, each at the middle of its distribution given those before."""
    with forked_random_state(pair.device), evaluating(pair.model):
        torch.manual_seed(0)
        sites = sample_sites(forward_trace(at_centre(pair.programs[0]), 1, batch[:1].forward))
    observed = {"x", *(accepted(pair.model) or ())}
    return {name: site for name, site in sites.items() if name not in observed and not site["is_observed"]}


def _named(sites: Mapping[str, Any], site: str | None) -> str:
    local = [name for name, each in sites.items() if is_local(each)]
    name = site or ("z" if "z" in local else local[0] if len(local) == 1 else None)
    if name not in local:
        raise ValueError(f"name one of the latents of a row with site=: {', '.join(local) or 'there is none'}")
    if is_discrete(sites[name]["fn"]):
        raise ContractError(f"the latent {name!r} is discrete, and has no range to move through")
    return name


def _quantiles(fn: Any, levels: Tensor) -> Tensor:
    """Quantiles of each entry of a distribution separately, ``(steps, *batch, *event)``."""
    base, shape = innermost(fn), fn.shape()
    at = levels.reshape(-1, *[1] * len(shape))
    try:
        return base.icdf(at.to(base.mean)).expand(len(levels), *shape)
    except NotImplementedError:
        with forked_random_state(levels.device):
            torch.manual_seed(0)
            draws = fn(torch.Size((_DRAWS,))).double()
        return torch.quantile(draws, levels.to(draws), dim=0)


def _repeated(value: Tensor, site: Any, num: int) -> Tensor:
    event_dim = site["fn"].event_dim
    return with_rows(rows_of(value, event_dim).expand(num, -1), value.shape, event_dim)
