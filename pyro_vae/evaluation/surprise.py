r"""The entries of a row that are least expected, given the rest of it."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._support.devices import memory_for_draws
from pyro_vae._support.progress import bar
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.evidence import warn_if_in_turn
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import ContractError, Fixed, Structure, under_particles
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["unexpectedness"]

_DRAWS = 32  # of each entry, for the model's expectation


@torch.no_grad()
def unexpectedness(pair: Pair, x: Inputs, *, num_particles: int = 500, seed: int = 0, progress: bool = False) -> Tensor:
    r"""Measures how much less probable each entry is than the model expects, given the other entries of its row.

    .. math:: s_d = E\bigl[\log p(x'_d \mid x_{-d})\bigr] - \log p(x_d \mid x_{-d}), \quad
        x'_d \sim p(x_d \mid x_{-d}) = \int p(x_d \mid z)\, p(z \mid x_{-d})\, dz

    The result is in nats, independent of the data's units, and so comparable among columns of any kind. It is 0 on
    average if the model is right, and large if an entry is out of place. Draws from the guide have weights
    :math:`p(x, z) / (q(z \mid x)\, p(x_d \mid z))`, which exclude the entry, because the guide has seen it. The
    expectation is the mean over 32 draws.

    Args:
        pair: A trained pair whose latents all lie in the plate ``"data"``, none of them enumerated by the model, and
            whose likelihood at ``"x"`` factorises over entries.
        x: Rows ``(N, *E)``, or a mapping, as for :func:`~pyro_vae.evaluation.log_evidence`.
        num_particles: Draws from the guide for each row.
        seed: Seeds the draws.
        progress: Show a progress bar.

    Returns:
        ``(N, *E)`` on the CPU in float64; NaN where an entry is missing.

    Raises:
        ContractError: if the pair does not have this form.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
        >>> nats = unexpectedness(vae, torch.tensor([[0.0, 9.0, 0.0]]))
        >>> int(nats[0].argmax()), bool(nats[0, 1] > 10)
        (1, True)

    Source: weights that leave an observation out are those of Gelfand, Dey & Chang, *Model Determination using
    Predictive Distributions*, 1992.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, found {num_particles}")
    rows, found = pair.check(x), []
    structure: Structure | None = None
    done = bar(total=rows.num_rows, disable=not progress, unit="row")
    with done, forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for chunk in rows.chunks(rows_that_fit(rows.num_elements)):
            batch = pair.prepare(chunk)
            if structure is None:
                structure = pair.structure(batch, count_bytes=True)
                structure.require_local()
                structure.require_weights()
                if names := structure.enumerated("model"):
                    raise ContractError(
                        f"the model sums over {', '.join(names)}, so no draw of it predicts an entry: let the guide "
                        f"sample it"
                    )
                warn_if_in_turn(structure)
            at_once = max(1, memory_for_draws(pair.device) // (num_particles * structure.bytes_per_draw))
            for part in batch.chunks(at_once):
                with pyro.validation_enabled(is_validate=False):
                    nats = _of_rows(pair, part, structure, num_particles)
                found.append(nats if part.mask is None else nats.where(part.mask.reshape(nats.shape), torch.nan))
                done.update(len(part))
    return torch.cat(found).cpu()


def _of_rows(pair: Pair, batch: Batch, structure: Structure, num_particles: int) -> Tensor:
    """Unexpectedness of these rows' entries, ``(n, *E)``."""
    counts = [num_particles] if structure.vectorised else [None] * num_particles
    log_weights, likelihoods = [], []
    for count in counts:
        draws = run_pair(*pair.programs, batch, structure, num_particles=count, enumerate_guide=False)
        program = under_particles(pair.programs[0], count, structure.particle_dim)
        with Fixed(draws.latents):
            site: Any = poutine.trace(program).get_trace(batch.x, **batch.arguments).nodes["x"]
        likelihoods.append(_of_entries(site["fn"]))
        log_weights.append(draws.where(lambda term: term.is_local).log_weights.double())

    def log_prob(x: Tensor) -> Tensor:
        """Log-probability of entries ``(n, *E)`` at each draw of the latents: ``(K, n, *E)``."""
        found = [fn.log_prob(x.reshape(site["value"].shape)) for fn in likelihoods]
        if any(part.numel() * len(counts) != num_particles * x.numel() for part in found):
            raise ContractError(
                f"the likelihood at 'x' has log-probabilities of shape {tuple(found[0].shape)}, not one for each entry "
                f"of rows {tuple(x.shape)}"
            )
        return torch.cat([part.reshape(-1, *x.shape) for part in found]).double()

    here = log_prob(batch.x)
    weights = torch.cat(log_weights).reshape(len(here), len(batch), *(1,) * (here.dim() - 2)) - here
    weights = weights.log_softmax(0)
    chosen = torch.multinomial(weights.exp().flatten(1).T, _DRAWS, replacement=True).T
    drawn = torch.cat([fn.sample().reshape(-1, *batch.x.shape) for fn in likelihoods])

    def predicted(x: Tensor) -> Tensor:
        """Log-probability of entries ``(n, *E)`` given the others of their row."""
        return (weights + log_prob(x)).logsumexp(0)

    chances = drawn.flatten(1).gather(0, chosen).reshape(_DRAWS, *batch.x.shape)
    distinct, place = _distinct(chances)
    expected = torch.stack([predicted(values) for values in distinct]).gather(0, place)
    return expected.mean(0) - predicted(batch.x)


def _distinct(draws: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of each entry, and where each draw ``(D, n, *E)`` is among them: bits have two at most."""
    ordered, order = draws.sort(0)
    is_new = ordered[1:] != ordered[:-1]
    ranks = torch.cat([is_new.new_zeros(1, *is_new.shape[1:]), is_new]).cumsum(0)
    values = ordered[:1].repeat(int(ranks.max()) + 1, *(1,) * (draws.dim() - 1)).scatter(0, ranks, ordered)
    return values, torch.empty_like(order).scatter(0, order, ranks)


def _of_entries(fn: Any) -> Any:
    """The distribution of single entries."""
    if isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
        return _of_entries(fn.base_dist)
    if fn.event_dim:
        raise ContractError(
            f"the {type(fn).__name__} at 'x' describes {tuple(fn.event_shape)} entries jointly: unexpectedness needs a "
            f"likelihood that factorises over entries, such as Normal(...).to_event(1)"
        )
    return fn
