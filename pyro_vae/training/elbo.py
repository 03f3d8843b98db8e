"""The ELBO of every row of a data set."""

import torch
from torch import Tensor

from pyro_vae.data.rows import Rows
from pyro_vae.inference.objectives import elbo_terms
from pyro_vae.pair import Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["elbo_per_row"]


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
