"""What latents do: their information about a row, which are active, their effects on the data, and neighbours."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae._support.moments import Moments
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.summary import ACTIVE_VARIANCE
from pyro_vae.inference.batch import Batch, rows_of, rows_that_fit, with_rows
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Fixed, is_point, nothing
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["active_latents", "latent_effects", "latent_information", "nearest_rows"]

_ROWS = 256  # that effects are averaged over


def nearest_rows(
    pair: Pair, x: Inputs, among: Inputs, num_nearest: int = 5, *, site: str | None = None, num_draws: int = 100
) -> tuple[Tensor, Tensor]:
    r"""Finds the rows whose posteriors are nearest to those of ``x``, by :math:`\mathrm{KL}(q(z|x) \,\|\, q(z|x'))`.

    The divergence of normals with independent entries is in closed form. For all other posteriors it is the mean of
    :math:`\log q(z|x) - \log q(z|x')` over draws of :math:`q(z|x)`, the same draws for every :math:`x'`.

    Args:
        pair: A trained pair whose guide draws the latent from a distribution with a density.
        x: The rows ``(N, *E)`` to find neighbours of.
        among: The rows ``(M, *E)`` to find them among.
        num_nearest: Neighbours k of each row.
        site: Name of the latent; by default the only one, or ``"z"``.
        num_draws: Draws from each row's posterior, if there is no closed form.

    Returns:
        Their indices in ``among``, nearest first, and the divergences in nats: ``(N, k)`` each, on the CPU.

    Raises:
        ValueError: if ``among`` has fewer rows, or the guide's distribution has no density.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.randn(20, 3)
        >>> nearest, nats = nearest_rows(vae, x[:4], x, num_nearest=1)
        >>> nearest[:, 0].tolist(), bool((nats.abs() < 1e-4).all())
        ([0, 1, 2, 3], True)
    """
    q, others = (_with_density(pair.encode(rows, site=site)) for rows in (x, among))
    count = others.batch_shape[0]
    if not 1 <= num_nearest <= count:
        raise ValueError(f"num_nearest must be from 1 to {count}, the number of rows; found {num_nearest}")
    if _is_normal(q) and _is_normal(others):
        divergences = _of_normals(q, others)
    else:
        with forked_random_state(pair.device):
            torch.manual_seed(0)
            divergences = _of_draws(q, others, num_draws)
    found = [part.topk(num_nearest, largest=False) for part in divergences]
    return torch.cat([part.indices for part in found]).cpu(), torch.cat([part.values for part in found]).cpu()


def _with_density(q: Any) -> Any:
    if isinstance(q, dist.Empirical) or is_point(q) or len(q.batch_shape) != 1:
        raise ValueError(
            f"nearest_rows compares densities of one latent of each row, and the guide has a {type(q).__name__} of "
            f"batch shape {tuple(q.batch_shape)} for this one: name another latent with site"
        )
    return q


def _is_normal(q: Any) -> bool:
    return isinstance(q, dist.Independent) and isinstance(q.base_dist, dist.Normal)


def _of_normals(q: Any, others: Any) -> Iterator[Tensor]:
    """Divergences of some rows at a time, ``(n, M)``, of normals with independent entries."""
    (loc, scale), (locs, scales) = ((d.mean.flatten(1).double(), d.stddev.flatten(1).double()) for d in (q, others))
    for start in range(0, len(loc), at_once := rows_that_fit(locs.numel())):
        mine, spread = loc[start : start + at_once, None], scale[start : start + at_once, None]
        ratio = (spread / scales).square()
        yield 0.5 * (ratio + ((mine - locs) / scales).square() - 1 - ratio.log()).sum(-1)


@torch.no_grad()
def _of_draws(q: Any, others: Any, num_draws: int) -> Iterator[Tensor]:
    """The same, estimated from draws."""
    z = q.sample((num_draws,))
    entropy = q.log_prob(z).double().mean(0)
    elements = num_draws * others.batch_shape[0] * max(1, math.prod(q.event_shape))
    for start in range(0, z.shape[1], at_once := rows_that_fit(elements)):
        rows = slice(start, start + at_once)
        yield entropy[rows, None] - others.log_prob(z[:, rows, None]).double().mean(0)


def active_latents(pair: Pair, x: Inputs, *, site: str | None = None) -> Tensor:
    r"""Finds the entries of a latent that depend on the rows: ``(L,)``, true or false, on the CPU.

    An entry is active if :math:`\mathrm{Var}_x(E_q[z_j]) > 0.01`, as in the number ``active_units`` of
    :func:`~pyro_vae.evaluate`. The others follow the prior, whatever the row.

    Args:
        pair: A trained pair.
        x: Rows.
        site: Name of the latent; by default the only one, or ``"z"``.

    Raises:
        ValueError: if the latent is discrete, or belongs to all rows.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> active_latents(mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.zeros(20, 3)).tolist()
        [False, False]

    Source: Burda et al., *Importance Weighted Autoencoders*, 2016.
    """
    moments = Moments()
    for batch in pair.batches(x):
        code, _, _ = _code(pair, batch, site)
        moments.add(code)
    return (moments.variance > ACTIVE_VARIANCE).cpu()


@torch.no_grad()
def latent_information(pair: Pair, x: Inputs, *, num_others: int = 31, seed: int = 0) -> dict[str, Tensor]:
    r"""Estimates the guide's latents' information about a row: a lower bound, in nats.

    It takes one draw z from each row's posterior, and compares its density there and in the posteriors of K other rows:

    .. math:: \log q(z_n \mid x_n) - \log \frac{1}{K + 1} \sum_{k=0}^{K} q(z_n \mid x_{n_k}), \qquad n_0 = n

    The mean over rows is at most :math:`I(x; z)`, and at most :math:`\log(K + 1)`. It is 0 if posteriors do not
    depend on the row, whatever the prior, the scale and the kind of the latent. With several latents, each has the
    information that it adds to those that the guide draws before it; their sum is the information of all.

    Args:
        pair: A trained pair.
        x: Rows, at least 2.
        num_others: Rows K to compare each with, at most all others.
        seed: Seeds the draws and the choice of rows.

    Returns:
        By latent, the term of each row, ``(N,)`` in float64 on the CPU. Global latents, those that the model sums over,
        and continuous latents that the guide sets to a point are omitted.

    Raises:
        ValueError: if there are fewer than two rows, or they do not fit.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae, x = mlp_vae((3,), latent_dim=2, likelihood=Normal()), torch.randn(50, 3)
        >>> of_one = latent_information(vae, x[:1].expand(50, 3))["z"].mean()
        >>> latent_information(vae, x)["z"].shape, abs(round(float(of_one), 6))
        (torch.Size([50]), 0.0)

    Source: van den Oord et al., *Representation Learning with Contrastive Predictive Coding*, 2018, with the guide's
    density for a critic: Poole et al., *On Variational Bounds of Mutual Information*, 2019.
    """
    rows = next(pair.check(x).chunks(2**62))
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        batch = pair.prepare(rows)
        if len(batch) < 2:
            raise ValueError("latent_information compares rows with others, and found a single one: pass more")
        structure = pair.structure(batch)
        named = [n for n in structure.guided if structure.latents[n].is_local and n not in structure.points]

        def log_guide(others: Batch, latents: Any) -> Tensor:
            """The log-density of each latent and those before it, ``(sites, N)``."""
            with Fixed(latents), pyro.validation_enabled(is_validate=False):
                draws = run_pair(nothing, pair.programs[1], others, structure, enumerate_guide=False)
            terms = [draws.log_guide[name][0].double() for name in draws.log_guide if name in named]
            return torch.stack(terms).cumsum(0) if terms else batch.x.new_zeros(0, len(batch)).double()

        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            drawn = run_pair(nothing, pair.programs[1], batch, structure, enumerate_guide=False)
        order = [name for name in drawn.log_guide if name in named]
        own = log_guide(batch, drawn.latents)
        places, total = torch.randperm(len(batch), device=batch.x.device), own
        offsets = 1 + torch.randperm(len(batch) - 1)[:num_others]
        for offset in offsets.tolist():
            other = torch.empty_like(places)
            other[places] = places.roll(offset)  # never itself
            total = torch.logaddexp(total, log_guide(batch[other], drawn.latents))
        so_far = own - total + math.log(len(offsets) + 1)
        each = torch.diff(so_far, dim=0, prepend=torch.zeros_like(so_far[:1]))
    return {name: values.cpu() for name, values in zip(order, each, strict=True)}


@torch.no_grad()
def latent_effects(pair: Pair, x: Inputs, *, site: str | None = None) -> Tensor:
    r"""Measures the effect of each latent on each element of a row: ``(L, *E)``, in the user's units.

    It is the change in :math:`E[x_d \mid z]`, averaged over rows, when latent j moves from one standard deviation of
    the posterior means below the row's value to one above. Other latents, and the rows' labels and other arguments,
    stay the same.

    Args:
        pair: A trained pair with a continuous latent for each row; L is the number of its entries, whatever its shape.
        x: Rows; the first 256 are used.
        site: Name of the latent; by default the only one, or ``"z"``.

    Raises:
        ValueError: if the latent is discrete, or belongs to all rows.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
        >>> latent_effects(vae, torch.randn(20, 3)).shape
        torch.Size([2, 3])
    """
    batch = next(pair.batches(x, _ROWS))
    code, middle, name = _code(pair, batch, site)
    event_dim = pair.structure(batch).latents[name].event_dim
    spread, effects = code.std(0), []

    def mean_at(moved: Tensor) -> Tensor:
        there = with_rows(moved, middle[name].shape, event_dim)
        return pair.mean_at({**middle, name: there}, given=batch.forward)

    for latent in range(code.shape[1]):
        step = torch.zeros_like(code[0])
        step[latent] = spread[latent]
        effects.append((mean_at(code + step) - mean_at(code - step)).mean(0))
    return torch.stack(effects).cpu()


def _code(pair: Pair, batch: Batch, site: str | None) -> tuple[Tensor, dict[str, Tensor], str]:
    """A continuous latent at the middle of its posterior, ``(N, L)``, all latents there, and its name."""
    structure = pair.structure(batch)
    name = structure.continuous_site(site)
    middle = pair.middle(batch, structure)
    return rows_of(middle[name], structure.latents[name].event_dim), middle, name
