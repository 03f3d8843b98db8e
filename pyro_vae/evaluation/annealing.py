r"""Annealed importance sampling: the evidence of each row, in many small steps from the guide or the prior."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.evidence import log_mean_exp, warn_if_in_turn
from pyro_vae.evaluation.latent_density import LatentDensity, Point, Start, latent_layout
from pyro_vae.evaluation.simulation import Simulated, Simulator, given_rows
from pyro_vae.evaluation.transitions import Density, Transitions
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.sites import check_log_weights
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = [
    "AnnealedBounds",
    "Nearby",
    "ais_bounds",
    "annealed_draws",
    "posterior_kernel",
    "settled",
    "sigmoidal_schedule",
]

_PILOT_CHAINS = 16
_PILOT_TRANSITIONS = 100  # at least, in a pilot run, however few the temperatures
_TARGET = 0.8  # acceptance that the pilot run aims at
_GAIN = 0.3  # change of the logarithm of a step size for each unit of acceptance off the target
_STEEPNESS = 4.0
_WIDENED = 1.5  # variance of a normal start over that of the chains it was fitted to


@dataclass(frozen=True)
class AnnealedBounds:
    """Stochastic bounds on the evidence of N rows, in nats, on the CPU in float64.

    Args:
        lower: Lower bound for each row, ``(N,)``: in expectation it is at most the log evidence.
        standard_error: Its Monte Carlo standard error, ``(N,)``; NaN with one chain. Near 1 it is unreliable.
        acceptance: Mean acceptance rate of the forward transitions; NaN with one step, which has none.
        upper: Upper bound for each row, ``(N,)``, on simulated rows; None if rows were passed. Its chains all start at
            the one draw that made the row, so they cannot give a standard error.
        x: The simulated rows, in the model's units; None if rows were passed.
        arguments: The programs' keyword arguments of the simulated rows: those that were passed, and those that were
            simulated along with ``x``.
    """

    lower: Tensor
    standard_error: Tensor
    acceptance: float
    upper: Tensor | None = None
    x: Tensor | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def gap(self) -> Tensor:
        """Upper minus lower bound of each row, ``(N,)``: on average, at least the error of either."""
        if self.upper is None:
            raise ValueError("an upper bound exists on simulated rows only: omit x and pass num_rows")
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
    x: Inputs | None = None,
    *,
    num_rows: int | None = None,
    given: Mapping[str, Any] | None = None,
    num_chains: int = 16,
    num_steps: int = 200,
    num_leapfrog: int = 5,
    start: Start = "guide",
    seed: int = 0,
    memory_mib: float = 256,
) -> AnnealedBounds:
    r"""Bounds the log evidence of each row by annealed importance sampling.

    A chain starts at :math:`z_0 \sim q(z \mid x)` and passes through

    .. math:: \pi_t(z) \propto q(z \mid x)^{1 - t}\, p(x, z)^t, \qquad 0 = t_0 < \dots < t_T = 1

    with one transition of Hamiltonian Monte Carlo, corrected by Metropolis' rule, at each temperature between the
    ends. Its weight is

    .. math:: \log w = \sum_{k=1}^T (t_k - t_{k-1}) \bigl(\log p(x, z_{k-1}) - \log q(z_{k-1} \mid x)\bigr)

    and :math:`\log \frac{1}{C} \sum_c w_c` is the lower bound: the importance-weighted one at ``num_steps=1``, and
    tighter with more steps, where more draws from a poor guide would not help. Transitions move the latents as
    vectors of real numbers, with the Jacobian of that map.

    Without ``x``, rows are simulated from the model. The latents that a row came from are a draw from its exact
    posterior, so chains can run from there back to the start, and :math:`-\log \frac{1}{C} \sum_c 1 / w_c` is an
    upper bound in expectation. It holds on simulated rows only, because no exact posterior draw is known for real ones.
    Simulated rows are in the model's units, and so are their bounds.

    Here x stands for everything that the model observes about a row. If it observes a keyword argument ``y`` as well as
    ``x``, both are simulated, and the bounds are for :math:`\log p(x, y)`. Sites observed outside the plate ``"data"``
    are conditioned on. Latents that the model enumerates are summed over, and the others moved. If there are no others,
    there is nothing to anneal, and the bounds are the evidence itself. Scales in the programs are ignored, masks are
    kept, and sites that the guide observes, and its factors, are ignored.

    Step sizes are adapted in a pilot run with separate chains, for each row and temperature, in units of the start's
    standard deviation, and are then fixed for the forward and the reverse run. Steps that adapted to the chains that
    they move would not leave :math:`\pi_t` invariant, and the bounds would not hold.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents are continuous and lie in
            the plate ``"data"``.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments, as
            :func:`~pyro_vae.fit` takes them; their bound is in the user's units too. None simulates rows.
        num_rows: Number of rows to simulate, if ``x`` is None.
        given: Keyword arguments to simulate rows with, such as labels, with ``num_rows`` rows each if they have rows.
            Values of observed sites are ignored, because they are drawn.
        num_chains: Chains C for each row, in either direction.
        num_steps: Steps T from the start to the posterior.
        num_leapfrog: Leapfrog steps of a transition; each computes the gradient of both programs.
        start: ``"guide"``, or ``"prior"``, which ignores the guide.
        seed: Seeds all draws. The results also depend, within their error, on ``memory_mib``.
        memory_mib: Rough bound on the memory for chains, in MiB; it sets how many rows are processed at a time.

    Returns:
        The bounds, see :class:`AnnealedBounds`.

    Raises:
        ValueError: if data or arguments do not fit; if a latent is discrete and not enumerated by the model, or lies
            outside the plate ``"data"``; if the programs break the contract in another way, or rows cannot be
            simulated.
        FloatingPointError: if a weight is NaN.

    Warns:
        UserWarning: if the programs must be run once for each chain, with the reason.

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
        raise ValueError("pass either rows x, or num_rows=n to simulate n rows from the model")
    if given is not None and x is not None:
        raise ValueError("given is for simulated rows; put keyword arguments with rows: {'x': x, 'labels': labels}")
    if num_rows is not None and num_rows < 1:
        raise ValueError(f"num_rows must be at least 1, found {num_rows}")
    run = _Run(pair, sigmoidal_schedule(num_steps), num_chains, num_leapfrog, start, memory_mib)
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        if x is not None:
            rows = pair.check(x)
            for chunk in rows.chunks(rows_that_fit(rows.num_elements)):
                run.add(pair.prepare(chunk))
            return run.bounds()
        assert num_rows is not None
        arguments = given_rows(pair, given, num_rows)
        simulated = Simulator(pair, arguments).draw(arguments)
        run.add(simulated.batch, simulated)
        return run.bounds()


class _Run:
    """Bounds for all rows, several rows at a time."""

    def __init__(
        self,
        pair: Pair,
        temperatures: list[float],
        num_chains: int,
        num_leapfrog: int,
        start: Start,
        memory_mib: float,
    ) -> None:
        self.pair, self.temperatures = pair, temperatures
        self.start: Start = start
        self.num_chains, self.num_leapfrog = num_chains, num_leapfrog
        self.memory = int(memory_mib * 2**20)
        self.structure: Structure | None = None
        self.lowers: list[Tensor] = []
        self.errors: list[Tensor] = []
        self.uppers: list[Tensor] = []
        self.rates: list[float] = []
        self.simulated: Batch | None = None

    def add(self, batch: Batch, simulated: Simulated | None = None) -> None:
        """Adds rows: bounds from below, and also from above if the latents that made the rows are known."""
        if self.structure is None:
            self.structure = self.pair.structure(batch, count_bytes=True)
            self.structure.require_local()
            warn_if_in_turn(self.structure)
        chains = max(self.num_chains, _PILOT_CHAINS)
        at_once = max(1, self.memory // (2 * self.structure.bytes_per_draw * chains))  # twice, for the gradient
        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            whole = self._density(self.structure, batch)
            true_u = None
            if simulated is not None:
                self.simulated = batch
                true_u = whole.flatten({name: simulated.latents[name] for name in whole.layout}, None)
            for first in range(0, len(batch), at_once):
                here = slice(first, first + at_once)
                density = self._density(self.structure, batch[here])  # its rows may have fewer latents, such as steps
                u = None
                if true_u is not None:
                    parts = [true_u[:, here, whole.layout[name]] for name in density.layout]
                    u = torch.cat(parts, -1) if parts else true_u[:, here, :0]
                self._add(density, u)

    def _density(self, structure: Structure, batch: Batch) -> LatentDensity:
        layout = latent_layout(self.pair, structure, batch, self.start)
        return LatentDensity(self.pair, structure, batch, layout, self.start)

    def _add(self, density: LatentDensity, true_u: Tensor | None) -> None:
        temperatures = self.temperatures if density.layout else [0.0, 1.0]  # without latents the weights are exact
        moves, _ = _pilot(density, temperatures, self.num_leapfrog)
        weights, rate, _ = _anneal(density, density.draw(self.num_chains), temperatures, moves)
        lower, error, _ = log_mean_exp(weights)
        self.lowers.append(lower + density.batch.log_jacobian.double())
        self.errors.append(error)
        self.rates.append(rate * len(lower))
        if true_u is not None:
            u = true_u.expand(self.num_chains, -1, -1)
            weights, _, _ = _anneal(density, u, temperatures, moves, reverse=True)
            self.uppers.append(-log_mean_exp(-weights)[0])

    def bounds(self) -> AnnealedBounds:
        """The bounds of all rows added."""
        lower = torch.cat(self.lowers).cpu()
        return AnnealedBounds(
            lower,
            torch.cat(self.errors).cpu(),
            sum(self.rates) / len(lower),
            torch.cat(self.uppers).cpu() if self.uppers else None,
            None if self.simulated is None else self.simulated.x,
            {} if self.simulated is None else self.simulated.arguments,
        )


def annealed_draws(
    density: LatentDensity, num_chains: int, num_steps: int, num_leapfrog: int = 3
) -> tuple[Tensor, Tensor]:
    r"""Weighted draws from the posterior of each row, one per chain, annealed from a normal distribution near it.

    Chains without weights first run from the density's start to the posterior, to find where it lies. Their mean and
    covariance define a normal distribution for each row. From it chains are annealed as in :func:`ais_bounds`, in
    coordinates in which it is the standard normal. The weights are right however far off it is, and are more even the
    closer it is.

    Args:
        density: The density of the latents of N rows.
        num_chains: Chains C for each row.
        num_steps: Steps T to the posterior.
        num_leapfrog: Leapfrog steps of a transition.

    Returns:
        Latents as real numbers, ``(C, N, d)``, and log-weights ``(C, N)``.
    """
    temperatures = sigmoidal_schedule(num_steps)
    near = Nearby.of(density, _pilot(density, temperatures, num_leapfrog, num_chains)[1].u)
    near = Nearby.of(density, near.latents(_pilot(near, temperatures, num_leapfrog, num_chains)[1].u))
    moves, _ = _pilot(near, temperatures, num_leapfrog)
    weights, _, point = _anneal(near, near.draw(num_chains), temperatures, moves)
    return near.latents(point.u), weights


def posterior_kernel(density: LatentDensity, num_leapfrog: int = 5) -> Callable[[Point, int], Point]:
    """Transitions that leave each row's posterior invariant, and are reversible.

    Step sizes are adapted on separate chains from draws of the density's start, and then fixed.

    Args:
        density: The density of the latents of N rows.
        num_leapfrog: Leapfrog steps of a transition.

    Returns:
        A function of the chains' positions and a number of transitions, which returns the new positions.
    """
    moves, _ = _pilot(density, [0.0, 1.0, 1.0], num_leapfrog)
    steps = moves.steps[0][:, None] * moves.scale

    def moved(point: Point, num_transitions: int) -> Point:
        transition = Transitions(density, num_leapfrog, num_transitions)
        for _ in range(num_transitions):
            point, _ = transition(point, 1.0, steps)
        return point

    return moved


@dataclass(frozen=True)
class Nearby:
    """The joint density of a pair, in coordinates in which a normal distribution of each row is the standard normal.

    Args:
        density: The density of the latents u of N rows.
        loc: Means of the normals, ``(N, d)``.
        root: Their covariances' Cholesky factors, ``(N, d, d)``: u is ``loc + root @ v``.
    """

    density: LatentDensity
    loc: Tensor
    root: Tensor

    @staticmethod
    def of(density: LatentDensity, u: Tensor) -> "Nearby":
        """Normals with the moments of chains ``(C, N, d)``, widened to keep the weights bounded."""
        loc, num = u.mean(0), len(u)
        centred = (u - loc).movedim(0, 1).double()
        covariance = centred.mT @ centred / num
        variances = covariance.diagonal(dim1=-2, dim2=-1)
        alone = (variances + 1e-12).diag_embed()
        share = min(1.0, u.shape[-1] / num)  # too few chains cannot tell the correlations of many latents
        widened = _WIDENED * ((1 - share) * covariance + share * alone) + 1e-9 * alone
        return Nearby(density, loc, torch.linalg.cholesky(widened).to(u.dtype))

    @property
    def pair(self) -> Pair:
        """Whose density it is."""
        return self.density.pair

    def latents(self, v: Tensor) -> Tensor:
        """The latents u at these points."""
        return self.loc + (self.root @ v[..., None])[..., 0]

    def draw(self, num_chains: int) -> Tensor:
        """Draws of the standard normal, ``(C, N, d)``."""
        return torch.randn(num_chains, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)

    def at(self, v: Tensor) -> Point:
        """Both log-densities and their gradients at ``v``, ``(C, N, d)``."""
        point = self.density.at(self.latents(v))
        log_start = -0.5 * v.square().sum(-1) - 0.5 * v.shape[-1] * math.log(2 * math.pi)
        log_joint = point.log_joint + self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        grad = (self.root.mT @ point.grad_joint[..., None])[..., 0]
        return Point(v, log_start, log_joint, -v, grad)


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


@dataclass(frozen=True)
class _Moves:
    """How transitions move: units ``(N, d)``, and step sizes ``(N,)`` in them for each temperature."""

    scale: Tensor
    steps: list[Tensor]
    num_leapfrog: int


def _pilot(
    density: Density, temperatures: list[float], num_leapfrog: int, num_chains: int = _PILOT_CHAINS
) -> tuple[_Moves, Point]:
    """A forward run of separate chains: finds step sizes for every row and temperature, and where the chains end."""
    u = density.draw(num_chains)
    inner, steps = temperatures[1:-1], []
    if not inner:
        return _Moves(torch.ones_like(u[0]), steps, num_leapfrog), density.at(u)
    scale = u.std(0).nan_to_num(1.0).clamp_min(1e-6)
    step = torch.full_like(scale[:, 0], 0.5)
    point = density.at(u)
    repeats = math.ceil(_PILOT_TRANSITIONS / max(1, len(inner)))
    transition = Transitions(density, num_leapfrog, repeats * len(inner))
    for t in inner:
        for _ in range(repeats):
            point, accepted = transition(point, t, step[:, None] * scale)
            step = step * (_GAIN * (accepted.mean(0) - _TARGET)).exp()
        steps.append(step)
    return _Moves(scale, steps, num_leapfrog), point


def settled(density: LatentDensity, u: Tensor, temperatures: list[float], num_leapfrog: int) -> Tensor:
    """Positions of chains from ``u`` after a transition at each temperature: ``(T, C, N, d)``.

    Each chain's step size adapts along the way, so the draws are close to the density's bulk, but not exact.
    """
    scale = u.std(0).nan_to_num(1.0).clamp_min(1e-6)
    step = torch.full_like(u[..., :1], 0.5)
    point, places = density.at(u), []
    transition = Transitions(density, num_leapfrog, len(temperatures))
    for t in temperatures:
        point, accepted = transition(point, t, step * scale)
        step = step * (_GAIN * (accepted[..., None] - _TARGET)).exp()
        places.append(point.u)
    return torch.stack(places)


def _anneal(
    density: Density, u: Tensor, temperatures: list[float], moves: _Moves, *, reverse: bool = False
) -> tuple[Tensor, float, Point]:
    """Log-weights ``(C, N)`` of chains from the start to the posterior, or back, their mean acceptance, and their end.

    In both directions the weights are those of the forward direction. Transitions are reversible, so going back makes
    the same transitions in reverse order.
    """
    point = density.at(u)
    widths = [b - a for a, b in itertools.pairwise(temperatures)]
    order = range(len(moves.steps))
    if reverse:
        widths, order = widths[::-1], order[::-1]
    weights = widths[0] * point.log_ratio()
    rates, transition = [], Transitions(density, moves.num_leapfrog, len(moves.steps))
    for width, k in zip(widths[1:], order, strict=True):
        steps = moves.steps[k][:, None] * moves.scale
        point, accepted = transition(point, temperatures[k + 1], steps)
        weights = weights + width * point.log_ratio()
        rates.append(accepted.mean())
    check_log_weights(weights)
    return weights, float(torch.stack(rates).mean()) if rates else math.nan, point
