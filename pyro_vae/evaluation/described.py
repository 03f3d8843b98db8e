"""Data as a model describes them, in the user's units, for comparison with its draws."""

import math
from typing import Any

import numpy as np
import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from pyro_vae.data.rows import Inputs, as_rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import rows_first
from pyro_vae.inference.structure import sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["as_described", "entries_that_count", "plain_rows"]

_ROWS = 1024  # at a time


def as_described(pair: Pair, given: Tensor, batch: Batch) -> Tensor:
    """Rows as the model describes them: for bits drawn from grey levels, the bits at their two levels.

    Args:
        pair: The programs.
        given: Rows ``(N, *E)`` in the user's units.
        batch: The same, as :meth:`~pyro_vae.Pair.prepare` returns them.

    Returns:
        ``(N, *E)`` on the CPU, NaN where an entry is missing or the model masks it, such as steps after the end of a
        sequence. Values that the transform and its inverse change only by rounding are returned unchanged.
    """
    y = pair.transform.inverse(batch.x).detach().cpu()
    y = y if y.is_floating_point() else y.to(pair.dtype)
    given = given.cpu().to(y.dtype)
    rounding = 1e-5 * given.nan_to_num().abs().max()
    y = torch.where((y - given).abs() <= rounding, given, y)
    seen = entries_that_count(pair, batch)
    return y if seen is None else torch.where(seen.cpu(), y, math.nan)


def entries_that_count(pair: Pair, batch: Batch) -> Tensor | None:
    """True where an entry of ``x`` is observed: neither missing nor masked by the model; None if all are."""
    parts = []
    with forked_random_state(pair.device), evaluating(pair.model):
        for part in batch.chunks(_ROWS):
            site = sample_sites(poutine.trace(pair.programs[0]).get_trace(part.x, **part.arguments)).get("x")
            mask = None if site is None else _mask(site)
            if mask is not None and mask.shape != part.x.shape:
                mask = None  # an x that is assembled from entries in another order
            parts.append(mask)
    counted = batch.mask
    if any(mask is not None for mask in parts):
        chunks = zip(parts, batch.chunks(_ROWS), strict=True)
        masked = torch.cat([torch.ones_like(c.x, dtype=torch.bool) if mask is None else mask for mask, c in chunks])
        counted = masked if counted is None else masked & counted
    return counted


def _mask(site: Any) -> Tensor | None:
    """Where a site's entries count, in the shape of its value, rows first; None if all do."""
    fn, shape = site["fn"], site["fn"].shape()
    masks = [_left_of(site["mask"], fn.event_dim)]
    while isinstance(fn, (Independent, MaskedDistribution, ExpandedDistribution)):
        if isinstance(fn, MaskedDistribution):
            masks.append(_left_of(fn._mask, fn.event_dim))
        fn = fn.base_dist
    found = [mask for mask in masks if isinstance(mask, Tensor)]
    if not found:
        return None
    return rows_first(site, torch.stack([mask.bool().expand(shape) for mask in found]).all(0))


def _left_of(mask: Any, event_dim: int) -> Any:
    """A mask of a batch of events, shaped to broadcast over their entries."""
    return mask.reshape(*mask.shape, *[1] * event_dim) if isinstance(mask, Tensor) else None


def plain_rows(rows: Inputs, name: str) -> Tensor | np.ndarray:
    """Rows alone, for tools that take no keyword arguments: arrays unchanged, other data read into memory.

    Raises:
        ValueError: if the rows cannot be read as numbers.
    """
    if isinstance(rows, (Tensor, np.ndarray)):
        return rows
    return next(as_rows(rows, torch.device("cpu"), num_workers=0, name=name).chunks(2**62))["x"]
