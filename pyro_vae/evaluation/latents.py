"""What latents are good for: the rows nearest to a row, and what each latent does to the data."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.inference.batch import rows_that_fit
from pyro_vae.pair import Pair

__all__ = ["latent_effects", "nearest_rows"]

_ROWS = 256  # at which effects are averaged


def nearest_rows(
    pair: Pair, x: Inputs, among: Inputs, num_nearest: int = 5, *, site: str | None = None
) -> tuple[Tensor, Tensor]:
    r"""The rows whose posteriors are nearest to those of some rows, by :math:`\mathrm{KL}(q(z|x) \,\|\, q(z|x'))`.

    Args:
        pair: A trained pair whose guide draws the latent from a normal with independent entries.
        x: The rows ``(N, *E)`` whose neighbours are asked for.
        among: The rows ``(M, *E)`` among which they are.
        num_nearest: Neighbours k of each.
        site: Name of the latent; by default the only one there is, or ``"z"``.

    Returns:
        Their places in ``among``, the nearest first, and the divergences in nats: ``(N, k)`` each, on the CPU.

    Raises:
        ValueError: if there are fewer rows, or the guide's distribution is another.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.randn(20, 3)
        >>> nearest, nats = nearest_rows(vae, x[:4], x, num_nearest=1)
        >>> nearest[:, 0].tolist(), bool((nats.abs() < 1e-4).all())
        ([0, 1, 2, 3], True)
    """
    (loc, scale), (locs, scales) = (_normal(pair, rows, site) for rows in (x, among))
    if not 1 <= num_nearest <= len(locs):
        raise ValueError(f"num_nearest must be from 1 to {len(locs)}, the number of rows; found {num_nearest}")
    found = []
    for start in range(0, len(loc), at_once := rows_that_fit(locs.numel())):
        mine, spread = loc[start : start + at_once, None], scale[start : start + at_once, None]
        ratio = (spread / scales).square()
        kl = 0.5 * (ratio + ((mine - locs) / scales).square() - 1 - ratio.log()).sum(-1)
        found.append(kl.topk(num_nearest, largest=False))
    return torch.cat([part.indices for part in found]).cpu(), torch.cat([part.values for part in found]).cpu()


def _normal(pair: Pair, rows: Inputs, site: str | None) -> tuple[Tensor, Tensor]:
    q = pair.encode(rows, site=site)
    if not (isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)):
        raise ValueError(
            f"nearest_rows compares normals with independent entries, and the guide draws this latent from a "
            f"{type(q).__name__}: train a pair with a diagonal posterior"
        )
    return q.mean.flatten(1).double(), q.stddev.flatten(1).double()


@torch.no_grad()
def latent_effects(pair: Pair, x: Inputs, *, site: str | None = None) -> Tensor:
    r"""What each latent does to each element of a row: ``(L, *E)``, in the user's units.

    The mean over rows of how far :math:`E[x_d \mid z]` goes when latent j is moved from one standard deviation of the
    posterior means below where the row has it to one above, and the other latents stay.

    Args:
        pair: A trained pair with one latent vector for each row.
        x: Rows; the first 256 are taken.
        site: Name of the latent; by default the only one there is, or ``"z"``.

    Raises:
        ValueError: if the guide's distribution has no mean, or the model has other latents too.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
        >>> latent_effects(vae, torch.randn(20, 3)).shape
        torch.Size([2, 3])
    """
    rows = next(pair.check(x).chunks(_ROWS))
    z = pair.encode(rows, site=site).mean
    spread, effects = z.std(0), []
    for latent in range(z.shape[1]):
        step = torch.zeros_like(z[0])
        step[latent] = spread[latent]
        effects.append((pair.mean_at(z + step) - pair.mean_at(z - step)).mean(0))
    return torch.stack(effects).cpu()
