"""The ELBO of every row of a data set."""

import torch
from torch import Tensor

from pyro_vae.data.rows import Rows
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["elbo_per_row"]


def elbo_per_row(
    pair: Pair,
    rows: Rows,
    *,
    num_rows: int | None = None,
    seed: int = 0,
    batch_size: int = 1024,
    structure: Structure | None = None,
) -> tuple[Tensor, Tensor]:
    """Reconstruction log p(x | z) and KL log q(z | x) − log p(z) of each row at one draw of z, in nats.

    Args:
        pair: The programs.
        rows: Checked rows in the user's units, with the keyword arguments of the programs.
        num_rows: Rows that share a site outside the plate ``"data"``; by default those that the pair was trained on,
            or these.
        seed: Seeds the draws; the caller's random state is left alone.
        batch_size: Rows at a time.
        structure: What the programs are made of, if that is known.

    Returns:
        Two tensors ``(N,)``. The reconstruction is a log-density in the user's units; ELBO is their difference.
    """
    parts = []
    num_rows = num_rows or pair.num_rows or rows.num_rows
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for chunk in rows.chunks(batch_size):
            batch = pair.prepare(chunk)
            structure = pair.structure(batch) if structure is None else structure
            draws = run_pair(*pair.programs, batch, structure, num_rows=num_rows)
            parts.append((draws.reconstruction[0] + batch.log_jacobian, draws.rate[0]))
    reconstruction, kl = zip(*parts, strict=True)
    return torch.cat(reconstruction), torch.cat(kl)
