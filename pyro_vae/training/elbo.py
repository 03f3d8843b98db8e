"""The ELBO of every row of a data set, and its parts."""

import torch
from torch import Tensor

from pyro_vae.data.rows import Rows
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["elbo_per_row", "terms_per_row"]


def terms_per_row(
    pair: Pair,
    rows: Rows,
    *,
    num_rows: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    structure: Structure | None = None,
) -> dict[str, Tensor]:
    """Each row's terms, with one draw from the guide: in nats, without the scales that programs put on their sites.

    Args:
        pair: The programs.
        rows: Checked rows in the user's units, with the keyword arguments of the programs.
        num_rows: Number of rows that share a site outside the plate ``"data"``; by default that of the training rows,
            or of these.
        seed: Seeds the draws; the caller's random state is not changed.
        batch_size: Rows at a time.
        structure: Structure of the programs, if known.

    Returns:
        By name ``(N,)``: ``reconstruction``, log p(x | z), a log-density in the user's units; ``kl``, log q(z | x) −
        log p(z); with several latents, ``kl_name`` for each that has its own site in both programs; and, if the guide
        observes a site, ``auxiliary``, its contribution to the objective.
    """
    parts: dict[str, list[Tensor]] = {}
    num_rows = num_rows or pair.num_rows or rows.num_rows
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for chunk in rows.chunks(batch_size):
            batch = pair.prepare(chunk)
            structure = pair.structure(batch) if structure is None else structure
            draws = run_pair(*pair.programs, batch, structure, num_rows=num_rows)
            parts.setdefault("reconstruction", []).append(draws.reconstruction[0] + batch.log_jacobian)
            parts.setdefault("kl", []).append(draws.rate[0])
            guide, prior = draws.log_guide, draws.log_prior
            for name in guide.keys() & prior.keys() if len(structure.latents) > 1 else ():
                parts.setdefault(f"kl_{name}", []).append((guide[name] - prior[name])[0])
            if structure.auxiliary:
                parts.setdefault("auxiliary", []).append(torch.stack(list(draws.auxiliary.values())).sum(0)[0])
    return {name: torch.cat(values) for name, values in parts.items()}


def elbo_per_row(
    pair: Pair,
    rows: Rows,
    *,
    num_rows: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    structure: Structure | None = None,
) -> tuple[Tensor, Tensor]:
    """Reconstruction and KL of each row, ``(N,)`` each, whose difference is the ELBO: see :func:`terms_per_row`."""
    terms = terms_per_row(pair, rows, num_rows=num_rows, seed=seed, batch_size=batch_size, structure=structure)
    return terms["reconstruction"], terms["kl"]
