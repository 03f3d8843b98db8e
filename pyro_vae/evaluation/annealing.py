r"""Annealed importance sampling: the evidence of each row by many small steps from the guide, or the prior."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to

from pyro_vae.evaluation.evidence import log_mean_exp
from pyro_vae.inference.predictive import rows_of
from pyro_vae.inference.structure import Fixed, RowPrograms, latent_sites, row_log_prob, row_programs, sum_to_rows
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["AnnealedBounds", "LatentDensity", "ais_bounds", "sigmoidal_schedule"]

Start = Literal["guide", "prior"]

_PILOT_CHAINS = 16
_PILOT_TRANSITIONS = 100  # at least so many in a pilot run, however few the temperatures
_TARGET = 0.8  # acceptance that the pilot run aims at
_GAIN = 0.3  # change of the logarithm of a step size for each unit of acceptance off the target
_STEEPNESS = 4.0


@dataclass(frozen=True)
class AnnealedBounds:
    """Stochastic bounds on the evidence of N rows, in nats, on the CPU in float64.

    Args:
        lower: Lower bound for each row, ``(N,)``: in expectation it is at most the log evidence.
        standard_error: Its Monte Carlo standard error, ``(N,)``; NaN with one chain. Near 1 it is not to be believed.
        acceptance: Mean acceptance rate of the forward transitions; NaN with one step, which has none.
        upper: Upper bound for each row, ``(N,)``, on simulated rows; None where rows were given. Its chains all begin
            at the one draw that made the row, so no error of a row can be told from them.
        x: The simulated rows, in the model's units; None where rows were given.
    """

    lower: Tensor
    standard_error: Tensor
    acceptance: float
    upper: Tensor | None = None
    x: Tensor | None = None

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound of each row, ``(N,)``: on average, at least the error of either."""
        if self.upper is None:
            raise ValueError("there is an upper bound on simulated rows only: leave x out and give num_rows")
        return self.upper - self.lower

    def __str__(self) -> str:
        lower = f"log evidence at least {float(self.lower.mean()):.2f} nats"
        if self.upper is None:
            return f"{lower}, over {len(self.lower):,} rows"
        return (
            f"{lower} and at most {float(self.upper.mean()):.2f}, a gap of {float(self.gap.mean()):.3f}, "
            f"over {len(self.lower):,} simulated rows in the model's units"
        )


def ais_bounds(
    pair: Pair,
    x: Array | None = None,
    *,
    num_rows: int | None = None,
    num_chains: int = 16,
    num_steps: int = 200,
    num_leapfrog: int = 5,
    start: Start = "guide",
    seed: int = 0,
    memory_mib: float = 256,
    **context: Any,
) -> AnnealedBounds:
    r"""Bounds the log evidence of each row by annealed importance sampling.

    A chain starts at :math:`z_0 \sim q(z \mid x)` and passes through

    .. math:: \pi_t(z) \propto q(z \mid x)^{1 - t}\, p(x, z)^t, \qquad 0 = t_0 < \dots < t_T = 1

    with one transition of Hamiltonian Monte Carlo, corrected by Metropolis' rule, at each temperature between the
    ends. Its weight is

    .. math:: \log w = \sum_{k=1}^T (t_k - t_{k-1}) \bigl(\log p(x, z_{k-1}) - \log q(z_{k-1} \mid x)\bigr)

    and :math:`\log \frac{1}{C} \sum_c w_c` is the lower bound: the importance-weighted one at ``num_steps=1``, and
    tighter with more steps where more draws of a poor guide would not help. Transitions move the latents as vectors
    of real numbers, with the Jacobian of that.

    Without ``x``, rows are simulated from the model. The latents that made a row are a draw from its exact posterior,
    so chains can run from there back to the start, and :math:`-\log \frac{1}{C} \sum_c 1 / w_c` is an upper bound in
    expectation. The upper bound holds on simulated rows only: no exact posterior draw is known for real ones.
    Simulated rows are in the model's units, and there both bounds are in the model's units too.

    Step sizes are adapted in a pilot run of chains of its own, for each row and temperature, in units of the standard
    deviation of the start, and then fixed for the forward and the reverse run. Steps that adapted to the chains that
    they move would leave no :math:`\pi_t` invariant, and the bounds would not hold.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents are continuous and lie in
            the plate ``"data"``.
        x: Rows ``(N, *E)`` in the user's units, and so is their bound; None simulates rows.
        num_rows: Number of rows to simulate, where ``x`` is None.
        num_chains: Chains C for each row, in either direction.
        num_steps: Steps T from the start to the posterior.
        num_leapfrog: Leapfrog steps of a transition, each of which takes the gradient of both programs.
        start: ``"guide"``, or ``"prior"``: then the guide's density has no say.
        seed: Seeds all draws. The numbers also depend, within their error, on ``memory_mib``.
        memory_mib: Rough bound on the memory for chains, in MiB: rows are gone through so many at a time.
        context: Keyword arguments of the programs, rows first.

    Returns:
        The bounds, see :class:`AnnealedBounds`.

    Raises:
        ValueError: if data or arguments do not suit; if a latent is discrete, lies outside the plate ``"data"``, or
            the guide does not sample just the latents of the model.
        FloatingPointError: if a weight is NaN.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> bounds = ais_bounds(vae, num_rows=4, num_chains=4, num_steps=20)
        >>> bounds.lower.shape, bounds.gap.shape
        (torch.Size([4]), torch.Size([4]))

    Source: Neal, *Annealed Importance Sampling*, 2001; Grosse et al., *Sandwiching the Marginal Likelihood Using
    Bidirectional Monte Carlo*, 2015; Wu et al., *On the Quantitative Analysis of Decoder-Based Generative Models*,
    2017.
    """
    for name, count in (("num_chains", num_chains), ("num_steps", num_steps), ("num_leapfrog", num_leapfrog)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")
    if start not in ("guide", "prior"):
        raise ValueError(f"start must be 'guide' or 'prior', found {start!r}")
    if not memory_mib > 0:
        raise ValueError(f"memory_mib must be positive, found {memory_mib}")
    if (x is None) == (num_rows is None):
        raise ValueError("give either rows x, or num_rows=n to simulate n rows from the model")
    checked = None if x is None else pair.check(x, **context)
    temperatures = sigmoidal_schedule(num_steps)
    simulated: Any = None
    lowers, errors, uppers, rates = [], [], [], []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        if checked is None:
            assert num_rows is not None
            if num_rows < 1:
                raise ValueError(f"num_rows must be at least 1, found {num_rows}")
            prepared = {name: torch.as_tensor(value).to(pair.device) for name, value in context.items()}
            simulated = poutine.trace(pair.model).get_trace(batch_size=num_rows, **prepared)
            rows: Tensor = simulated.nodes["x"]["value"]
            log_jacobian = torch.zeros(num_rows, device=rows.device)
        else:
            rows, prepared, log_jacobian = pair.prepare(checked, context)
        programs = row_programs(pair, rows, prepared)
        layout = _layout(programs, rows, prepared, start)
        true_u = None if simulated is None else _flatten(simulated, layout, len(rows), None)
        chains = max(num_chains, _PILOT_CHAINS)
        at_once = max(1, int(memory_mib * 2**20) // (2 * programs.bytes_per_draw * chains))  # twice, for the gradient
        with pyro.validation_enabled(is_validate=False):  # the programs were looked at with it
            for first in range(0, len(rows), at_once):
                here = slice(first, first + at_once)
                density = LatentDensity(programs, rows[here], rows_of(prepared, first, first + at_once), layout, start)
                moves = _pilot(density, temperatures, num_leapfrog)
                weights, rate = _anneal(density, density.draw(num_chains), temperatures, moves)
                lower, error, _ = log_mean_exp(weights)
                lowers.append(lower + log_jacobian[here].double())
                errors.append(error)
                rates.append(rate * len(lower))
                if true_u is not None:
                    u = true_u[:, here].expand(num_chains, -1, -1)
                    weights, _ = _anneal(density, u, temperatures, moves, reverse=True)
                    uppers.append(-log_mean_exp(-weights)[0])
    return AnnealedBounds(
        torch.cat(lowers).cpu(),
        torch.cat(errors).cpu(),
        sum(rates) / len(rows),
        torch.cat(uppers).cpu() if uppers else None,
        None if simulated is None else rows,
    )


def sigmoidal_schedule(num_steps: int) -> list[float]:
    r"""Temperatures :math:`0 = t_0 < \dots < t_T = 1`, close together near both ends.

    .. math:: t_k = \frac{\sigma(\delta (2k/T - 1)) - \sigma(-\delta)}{\sigma(\delta) - \sigma(-\delta)},
        \qquad \delta = 4

    Example:
        >>> [round(t, 3) for t in sigmoidal_schedule(4)]
        [0.0, 0.105, 0.5, 0.895, 1.0]

    Source: Grosse et al., *Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo*, 2015.
    """
    sigmoids = torch.linspace(-_STEEPNESS, _STEEPNESS, num_steps + 1, dtype=torch.float64).sigmoid()
    return ((sigmoids - sigmoids[0]) / (sigmoids[-1] - sigmoids[0])).tolist()


class Point(NamedTuple):
    """Latents ``(C, N, d)`` of chains, with two log-densities ``(C, N)`` and their gradients there."""

    u: Tensor
    log_start: Tensor
    log_joint: Tensor
    grad_start: Tensor
    grad_joint: Tensor

    def log_prob(self, t: float) -> Tensor:
        """The geometric path's log-density at temperature t, up to a constant."""
        return (1 - t) * self.log_start + t * self.log_joint

    def grad(self, t: float) -> Tensor:
        """Its gradient."""
        return (1 - t) * self.grad_start + t * self.grad_joint

    def log_ratio(self) -> Tensor:
        """The joint density over that of the start, where the Jacobian cancels."""
        return (self.log_joint - self.log_start).double()


@dataclass(frozen=True)
class LatentDensity:
    r"""The latents of each row as one vector of real numbers, and the densities of a pair there.

    With :math:`z = f(u)` the map from real numbers to the latents' supports in the model, the densities are
    :math:`\log p(x, f(u)) + \log |f'(u)|` and :math:`\log q(f(u) \mid x) + \log |f'(u)|`; for ``start="prior"`` the
    second has :math:`p(z)` for :math:`q`.

    Args:
        programs: The pair's programs.
        x: Rows ``(N, *E)`` in the model's units.
        context: Keyword arguments of both programs, rows first.
        layout: The elements of u that belong to each latent.
        start: Which density stands beside the joint one.
    """

    programs: RowPrograms
    x: Tensor
    context: Mapping[str, Any]
    layout: Mapping[str, slice]
    start: Start = "guide"

    def draw(self, num_chains: int) -> Tensor:
        """Draws of the start, ``(C, N, d)``."""
        if not self.programs.vectorised:
            return torch.cat([self._draw(None) for _ in range(num_chains)])
        return self._draw(num_chains)

    def _draw(self, num_chains: int | None) -> Tensor:
        model = self.programs.model
        if self.start == "guide":
            model = poutine.replay(
                model, trace=self.programs.trace(self.programs.guide, num_chains, self.x, self.context)
            )
        trace = self.programs.trace(model, num_chains, self.x, self.context)
        return _flatten(trace, self.layout, len(self.x), num_chains)

    def at(self, u: Tensor) -> Point:
        """Both log-densities and their gradients at ``u``, ``(C, N, d)``."""
        u = u.detach().requires_grad_()
        with torch.enable_grad():
            if self.programs.vectorised:
                log_start, log_joint = self._log_probs(u, len(u))
            else:
                parts = [self._log_probs(chain[None], None) for chain in u]
                log_start, log_joint = (torch.cat(values) for values in zip(*parts, strict=True))
            (grad_start,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
            (grad_joint,) = torch.autograd.grad(log_joint.sum(), u)
        return Point(u.detach(), log_start.detach(), log_joint.detach(), grad_start, grad_joint)

    def _log_probs(self, u: Tensor, num_chains: int | None) -> tuple[Tensor, Tensor]:
        shape = (num_chains or 1, len(self.x))
        with _Mapped(u, self.layout, shape, plated=num_chains is not None) as mapped:
            model = self.programs.trace(self.programs.model, num_chains, self.x, self.context)
        log_joint = row_log_prob(model, shape) + mapped.log_jacobian
        if self.start == "prior":  # the model's sites that are not observed
            return row_log_prob(model, shape, "guide") + mapped.log_jacobian, log_joint
        with Fixed({name: model.nodes[name]["value"] for name in self.layout}):
            guide = self.programs.trace(self.programs.guide, num_chains, self.x, self.context)
        return row_log_prob(guide, shape, "guide") + mapped.log_jacobian, log_joint


class _Mapped(Messenger):
    """Gives the model's latent sites the values that real numbers ``(C, N, d)`` are mapped to."""

    def __init__(self, u: Tensor, layout: Mapping[str, slice], shape: tuple[int, int], *, plated: bool) -> None:
        super().__init__()
        self.u, self.layout, self.shape, self.plated = u, layout, shape, plated
        self.log_jacobian: Tensor = u.new_zeros(shape)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.layout or msg["is_observed"]:
            return
        fn = msg["fn"]
        transform = biject_to(fn.support)
        batch = fn.batch_shape if self.plated else (1, *fn.batch_shape)
        event = transform.inverse_shape(fn.shape())[len(fn.batch_shape) :]
        flat = self.u[..., self.layout[msg["name"]]]
        u = flat.reshape(*self.shape, *batch[1:-1], *event).movedim(1, len(batch) - 1)
        u = u if self.plated else u[0]
        z: Any = transform(u)
        log_jacobian: Any = transform.log_abs_det_jacobian(u, z)
        extra = log_jacobian.dim() - len(fn.batch_shape)
        log_jacobian = log_jacobian.sum(tuple(range(-extra, 0))) if extra else log_jacobian
        self.log_jacobian = self.log_jacobian + sum_to_rows(log_jacobian, self.shape)
        msg["value"], msg["done"] = z, True


def _unconstrained(site: Any, num_rows: int, num_chains: int | None) -> Tensor:
    """A latent site of the model as real numbers ``(C, N, d_i)``; C = 1 without a plate of chains."""
    u: Any = biject_to(site["fn"].support).inv(site["value"])
    num_batch = site["value"].dim() - site["fn"].event_dim  # a replayed site's distribution knows no plate of chains
    if num_chains is None:
        u, num_batch = u[None], num_batch + 1
    return u.movedim(num_batch - 1, 1).reshape(num_chains or 1, num_rows, -1)


def _flatten(trace: Any, layout: Mapping[str, slice], num_rows: int, num_chains: int | None) -> Tensor:
    """The latents of a model's trace as real numbers ``(C, N, d)``."""
    u = torch.cat([_unconstrained(trace.nodes[name], num_rows, num_chains) for name in layout], -1)
    if bool(u.isnan().any()):
        raise ValueError(
            "the guide draws latents outside their support in the model: choose a guide with the model's support, "
            "or start='prior'"
        )
    return u


def _is_point_mass(fn: Any) -> bool:
    """Whether a distribution is a Delta, whatever it is wrapped in."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def _layout(programs: RowPrograms, x: Tensor, context: Mapping[str, Any], start: Start) -> dict[str, slice]:
    """Which elements of u belong to which latent of the model."""
    trace = programs.trace(programs.model, None, x, context)
    latents = latent_sites(trace)
    for name, site in latents.items():
        support: Any = site["fn"].support
        if support.is_discrete:
            raise ValueError(
                f"the latent {name!r} is discrete, and annealing moves latents along gradients: "
                f"use log_evidence, or sum over {name!r} in the model"
            )
        try:
            biject_to(support)
        except NotImplementedError:
            raise ValueError(f"the latent {name!r} has the support {support}, to which no map is known") from None
    if start == "guide":
        guided = latent_sites(programs.trace(programs.guide, None, x, context))
        if points := [name for name, site in guided.items() if _is_point_mass(site["fn"])]:
            raise ValueError(f"the guide has no density at {points[0]!r}, which it sets to a point: use start='prior'")
        if extra := [name for name in guided if name not in latents]:
            raise ValueError(
                f"the guide draws the auxiliary {extra[0]!r}, so that it has no density of the latents alone: "
                f"use start='prior'"
            )
    layout, first = {}, 0
    for name, site in latents.items():
        layout[name] = slice(first, first := first + _unconstrained(site, len(x), None).shape[-1])
    return layout


@dataclass(frozen=True)
class _Moves:
    """How transitions move: units ``(N, d)``, and step sizes ``(N,)`` in them for each temperature."""

    scale: Tensor
    steps: list[Tensor]
    num_leapfrog: int


def _pilot(density: LatentDensity, temperatures: list[float], num_leapfrog: int) -> _Moves:
    """A forward run of chains of its own, which finds step sizes for every row and temperature."""
    u = density.draw(_PILOT_CHAINS)
    scale = u.std(0).nan_to_num(1.0).clamp_min(1e-6)
    step = torch.full_like(scale[:, 0], 0.5)
    inner, steps = temperatures[1:-1], []
    point = density.at(u)
    repeats = math.ceil(_PILOT_TRANSITIONS / max(1, len(inner)))
    for t in inner:
        for _ in range(repeats):
            point, accepted = _transition(density, point, t, step[:, None] * scale, num_leapfrog)
            step = step * (_GAIN * (accepted.mean(0) - _TARGET)).exp()
        steps.append(step)
    return _Moves(scale, steps, num_leapfrog)


def _anneal(
    density: LatentDensity, u: Tensor, temperatures: list[float], moves: _Moves, *, reverse: bool = False
) -> tuple[Tensor, float]:
    """Log-weights ``(C, N)`` of chains from the start to the posterior, or back, and their mean acceptance rate.

    The weights are those of the way forward, either way. Transitions are reversible, so back is the same in turn.
    """
    point = density.at(u)
    widths = [b - a for a, b in itertools.pairwise(temperatures)]
    order = range(len(moves.steps))
    if reverse:
        widths, order = widths[::-1], order[::-1]
    weights = widths[0] * point.log_ratio()
    rates = []
    for width, k in zip(widths[1:], order, strict=True):
        steps = moves.steps[k][:, None] * moves.scale
        point, accepted = _transition(density, point, temperatures[k + 1], steps, moves.num_leapfrog)
        weights = weights + width * point.log_ratio()
        rates.append(accepted.mean())
    if bool(weights.isnan().any()):
        raise FloatingPointError(
            f"{int(weights.isnan().any(0).sum())} of {weights.shape[1]} rows have NaN among their log-weights: the "
            f"programs gave a distribution with NaN in it, or log-probabilities of opposite infinities"
        )
    return weights, float(torch.stack(rates).mean()) if rates else math.nan


def _transition(
    density: LatentDensity, point: Point, t: float, steps: Tensor, num_leapfrog: int
) -> tuple[Point, Tensor]:
    """One transition of Hamiltonian Monte Carlo at temperature t, with steps ``(N, d)``; and its acceptance ``(C, N)``.

    Steps are jittered by a fifth, whatever the state: no length of a trajectory is then an orbit's for every chain.
    """
    jitter = 0.8 + 0.4 * torch.rand_like(point.log_start)
    step = jitter[..., None] * steps
    start = torch.randn_like(point.u)
    momentum, here = start + 0.5 * step * point.grad(t), point
    for i in range(num_leapfrog):
        here = density.at(here.u + step * momentum)
        momentum = momentum + (0.5 if i == num_leapfrog - 1 else 1.0) * step * here.grad(t)
    kinetic = 0.5 * (start.square().sum(-1) - momentum.square().sum(-1))
    log_accept = (here.log_prob(t) - point.log_prob(t) + kinetic).nan_to_num(nan=-math.inf)
    accept = torch.rand_like(log_accept).log() < log_accept
    chosen = [
        torch.where(accept[..., None] if new.dim() == 3 else accept, new, old)
        for new, old in zip(here, point, strict=True)
    ]
    return Point(*chosen), log_accept.exp().clamp(max=1)
