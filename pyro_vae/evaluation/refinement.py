r"""The best posterior of the guide's own family for each row, and how much the guide loses against it.

.. math::
    \log p(x) - \mathrm{ELBO}(q_\phi) =
    \underbrace{\log p(x) - \mathrm{ELBO}(q^*)}_{\text{approximation}} +
    \underbrace{\mathrm{ELBO}(q^*) - \mathrm{ELBO}(q_\phi)}_{\text{amortisation}}

with :math:`q_\phi(z \mid x)` the guide and :math:`q^*` the member of its family that is best for the row by itself
(Cremer et al., *Inference Suboptimality in Variational Autoencoders*, 2018). A large approximation gap asks for another
family, a large amortisation gap for a larger encoder or longer training, or for :func:`refine`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from pyro import poutine
from pyro.distributions import Independent, TorchDistribution
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import transform_to

from pyro_vae.evaluation.density import RowPrograms, row_log_prob, row_programs
from pyro_vae.evaluation.evidence import log_mean_exp
from pyro_vae.pair import Array, Pair
from pyro_vae.predictive import rows_of
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["Refined", "gaps", "refine"]

_ROWS = 256  # optimised together

# Parameters that say again what another one says.
_REDUNDANT = {"probs": "logits", "covariance_matrix": "scale_tril", "precision_matrix": "scale_tril"}


@dataclass(frozen=True)
class Refined:
    """The refined posterior of N rows.

    Args:
        pair: The model with the refined posterior as its guide, for these rows alone and in the model's units: give
            ``x`` and ``context`` of this object to whatever takes a pair.
        x: The rows in the model's units, ``(N, *E)``.
        context: The programs' keyword arguments, and ``row``, which tells the guide which rows it is given.
        posteriors: The refined distribution at each latent site: batch ``(N,)``.
    """

    pair: Pair
    x: Tensor
    context: dict[str, Tensor]
    posteriors: dict[str, TorchDistribution]


class _Freed:
    """A distribution whose parameters are tensors to be optimised, as unconstrained numbers for each row."""

    def __init__(self, p: Any, name: str) -> None:
        self.event_dims = 0
        while isinstance(p, Independent):
            self.event_dims += p.reinterpreted_batch_ndims
            p = p.base_dist
        names = [n for n in p.arg_constraints if _REDUNDANT.get(n) not in p.arg_constraints]
        if not p.arg_constraints or not p.has_rsample:
            raise ValueError(
                f"refine needs draws at {name!r} that can be differentiated through, of a distribution with named "
                f"parameters; found {type(p).__name__}"
            )
        self.kind = type(p)
        self.constraints = {n: p.arg_constraints[n] for n in names}
        batch = p.batch_shape
        self.free: dict[str, Tensor] = {}
        for n in names:
            value = getattr(p, n).detach()
            constraint = self.constraints[n]
            value = value.expand(batch + value.shape[value.dim() - constraint.event_dim :])
            self.free[n] = transform_to(constraint).inv(value).clone().requires_grad_()

    def __call__(self, row: Tensor, *, fixed: bool = False) -> TorchDistribution:
        free = {n: value.detach() if fixed else value for n, value in self.free.items()}
        values = {n: transform_to(self.constraints[n])(value[row]) for n, value in free.items()}
        return self.kind(**values, validate_args=False).to_event(self.event_dims)


def refine(
    pair: Pair,
    x: Array,
    *,
    num_steps: int = 400,
    num_particles: int = 8,
    learning_rate: float = 0.1,
    seed: int = 0,
    **context: Any,
) -> Refined:
    r"""Optimises the posterior of each row by itself, within the guide's own family, from where the guide left it.

    The parameters of the guide's distribution at each latent site are set free, for each row its own, and climb that
    row's ELBO by Adam on draws of the refined posterior; the model stays as it is.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents lie in the plate ``"data"``.
        x: Rows ``(N, *E)`` in the user's units.
        num_steps: Steps of Adam.
        num_particles: Draws for each row in a step.
        learning_rate: Adam's step size at the start, in unconstrained parameters; it falls to zero along a cosine.
        seed: Seeds the draws, and the transform's.
        context: Keyword arguments of both programs, rows first.

    Returns:
        The refined posterior, as distributions and as the guide of a pair.

    Raises:
        ValueError: if rows or programs do not suit; if draws of a latent cannot be differentiated through; or if the
            guide's distribution at one latent depends on the draw of another, for then no parameters stand for it.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> refined = refine(vae, torch.rand(4, 6).round(), num_steps=10)
        >>> refined.posteriors["z"].mean.shape, refined.pair.encode(refined.x, **refined.context).event_shape
        (torch.Size([4, 2]), torch.Size([2]))

    Source: Kim et al., *Semi-Amortized Variational Autoencoders*, 2018, without its training.
    """
    if num_steps < 1 or num_particles < 1:
        raise ValueError(f"num_steps and num_particles must be at least 1, found {num_steps} and {num_particles}")
    x = pair.check(x, **context)
    parts: list[dict[str, _Freed]] = []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        rows, prepared, _ = pair.prepare(x, context)
        programs = row_programs(pair, rows, prepared)
        for start in range(0, len(rows), _ROWS):
            here = rows_of(prepared, start, start + _ROWS)
            parts.append(_climb(programs, rows[start : start + _ROWS], here, num_steps, num_particles, learning_rate))
    posteriors = {name: _joined([part[name] for part in parts]) for name in parts[0]}

    def guide(x: Tensor, *, row: Tensor, **context: Any) -> None:
        with pyro.plate("data", len(x), dim=-1):
            for name, posterior in posteriors.items():
                pyro.sample(name, posterior(row))

    def model(x: Tensor | None = None, *, row: Tensor | None = None, **context: Any) -> Any:
        return pair.model(x, **context)

    everywhere = torch.arange(len(rows), device=rows.device)
    refined = Pair(model, guide, event_shape=pair.event_shape, data_range=pair.data_range)
    refined.add_module("refined", pair)  # for its device and type
    found = {name: posterior(everywhere) for name, posterior in posteriors.items()}
    return Refined(refined, rows, {**prepared, "row": everywhere}, found)


def _climb(
    programs: RowPrograms,
    x: Tensor,
    context: Mapping[str, Any],
    num_steps: int,
    num_particles: int,
    learning_rate: float,
) -> dict[str, _Freed]:
    """The parameters of these rows' posteriors, at the end of their climb."""
    freed = {name: _Freed(site["fn"], name) for name, site in _sites(programs, x, context).items()}
    every = torch.arange(len(x), device=x.device)

    def guide(x: Tensor, *, fixed: bool = False, **context: Any) -> None:
        with pyro.plate("data", len(x), dim=-1):
            for name, posterior in freed.items():
                pyro.sample(name, posterior(every, fixed=fixed))

    draws = num_particles if programs.vectorised else None
    shape = (draws or 1, len(x))

    def elbo() -> Tensor:
        # log q with its parameters fixed: what is left out has mean zero, and without it the gradient has no variance
        # where the posterior is reached (Roeder et al., Sticking the Landing, 2017).
        drawn = programs.trace(guide, draws, x, context)
        q = programs.trace(poutine.replay(guide, trace=drawn), draws, x, {**context, "fixed": True})
        p = programs.trace(poutine.replay(programs.model, trace=drawn), draws, x, context)
        return (row_log_prob(p, shape) - row_log_prob(q, shape, "guide")).mean(0)

    leaves = [free for posterior in freed.values() for free in posterior.free.values()]
    optimizer = torch.optim.Adam(leaves, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    with pyro.validation_enabled(is_validate=False), torch.enable_grad():
        for _ in range(num_steps):
            gradients = torch.autograd.grad(-elbo().sum(), leaves)
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()
    for posterior in freed.values():
        posterior.free = {n: free.detach() for n, free in posterior.free.items()}
    return freed


def _sites(programs: RowPrograms, x: Tensor, context: Mapping[str, Any]) -> dict[str, Any]:
    """The guide's latents, once it is known that their distributions do not depend on each other's draws."""
    traces = [prune_subsample_sites(poutine.trace(programs.guide).get_trace(x, **context)) for _ in range(2)]
    first, second = (
        {n: s for n, s in t.nodes.items() if s["type"] == "sample" and not s["is_observed"]} for t in traces
    )
    for name, site in first.items():
        at: Any = site["value"]
        if not torch.allclose(site["fn"].log_prob(at), second[name]["fn"].log_prob(at), rtol=1e-4, atol=1e-4):
            raise ValueError(
                f"the guide's distribution at {name!r} depends on what it drew at another latent, so no parameters "
                f"stand for it: refine takes guides whose latents are independent given the row"
            )
    return first


def _joined(parts: list[_Freed]) -> _Freed:
    """The posteriors of all rows as one."""
    first = parts[0]
    first.free = {n: torch.cat([part.free[n] for part in parts]) for n in first.free}
    return first


def gaps(
    pair: Pair,
    x: Array,
    *,
    num_particles: int = 1000,
    num_steps: int = 400,
    seed: int = 0,
    **context: Any,
) -> pd.DataFrame:
    r"""Splits what the ELBO lacks of the evidence, row by row, as at the top of :mod:`pyro_vae.evaluation.refinement`.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` that :func:`refine` takes.
        x: Rows ``(N, *E)`` in the user's units.
        num_particles: Draws for each row and estimate. The evidence is importance-weighted from the refined posterior.
        num_steps: Steps of the refinement.
        seed: Seeds the draws, and the transform's.
        context: Keyword arguments of both programs, rows first.

    Returns:
        A table with a row for each datum, in nats: ``amortisation``, ``approximation``, and each one's Monte Carlo
        standard error under its name and ``_se``. Their sum is the KL from the guide to the posterior.

    Raises:
        ValueError: as :func:`refine`.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> table = gaps(vae, torch.rand(4, 6).round(), num_steps=10)
        >>> list(table.columns)
        ['amortisation', 'amortisation_se', 'approximation', 'approximation_se']
    """
    refined = refine(pair, x, num_steps=num_steps, seed=seed, **context)
    prepared = {name: value for name, value in refined.context.items() if name != "row"}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        before = _log_weights(pair, refined.x, prepared, num_particles)
        after = _log_weights(refined.pair, refined.x, refined.context, num_particles)
    log_evidence, evidence_error, _ = log_mean_exp(after)
    elbos, errors = zip(*((w.mean(0), w.std(0) / math.sqrt(num_particles)) for w in (before, after)), strict=True)
    columns = {
        "amortisation": elbos[1] - elbos[0],
        "amortisation_se": (errors[0].square() + errors[1].square()).sqrt(),
        "approximation": log_evidence - elbos[1],
        "approximation_se": (evidence_error.square() + errors[1].square()).sqrt(),
    }
    return pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})


def _log_weights(pair: Pair, x: Tensor, context: Mapping[str, Any], num_particles: int) -> Tensor:
    """Log-weights ``(K, N)`` in float64."""
    programs = row_programs(pair, x, context)
    at_once = max(1, 2**26 // (programs.bytes_per_draw * num_particles))
    parts = [
        programs.log_weights(x[start : start + at_once], rows_of(context, start, start + at_once), num_particles)
        for start in range(0, len(x), at_once)
    ]
    return torch.cat(parts, dim=1).double()
