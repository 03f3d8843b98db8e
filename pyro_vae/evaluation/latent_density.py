"""The latents of each row as one vector of real numbers, and a pair's densities and their gradients there."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_vae.inference.batch import Batch
from pyro_vae.inference.sites import Draws, run_pair
from pyro_vae.inference.structure import Fixed, Structure, is_discrete, nothing, sample_sites, under_particles
from pyro_vae.pair import Pair

__all__ = ["LatentDensity", "Point", "Start", "latent_layout", "support_of"]

Program = Callable[..., Any]
Start = Literal["guide", "prior"]


class Point(NamedTuple):
    """Latents ``(C, N, d)`` of chains, with two log-densities ``(C, N)`` and their gradients there."""

    u: Tensor
    log_start: Tensor
    log_joint: Tensor
    grad_start: Tensor
    grad_joint: Tensor

    def log_prob(self, t: float | Tensor) -> Tensor:
        """The geometric path's log-density at temperature t, up to a constant."""
        return (1 - t) * self.log_start + t * self.log_joint

    def grad(self, t: float | Tensor) -> Tensor:
        """Its gradient."""
        return (1 - t) * self.grad_start + t * self.grad_joint

    def log_ratio(self) -> Tensor:
        """The log-ratio of the joint density and that of the start, in which the Jacobian cancels."""
        return (self.log_joint - self.log_start).double()


@dataclass(frozen=True)
class LatentDensity:
    r"""The latents of each row as one vector of real numbers, and the densities of a pair there.

    With the map :math:`z = f(u)` from real numbers to the latents' supports in the model, the densities are
    :math:`\log p(x, f(u)) + \log |f'(u)|` and :math:`\log q(f(u) \mid x) + \log |f'(u)|`; for ``start="prior"`` the
    second has :math:`p(z)` for :math:`q`. Latents that the model enumerates are summed over in both. If a mask excludes
    a latent, its Jacobian is excluded too, so it has no gradient.

    Args:
        pair: The programs, which are run in their current mode.
        structure: The sites of the programs.
        batch: N rows.
        layout: The elements of u that belong to each latent.
        start: The density to compare with the joint one.
    """

    pair: Pair
    structure: Structure
    batch: Batch
    layout: Mapping[str, slice]
    start: Start = "guide"

    @functools.cached_property
    def _programs(self) -> tuple[Program, Program]:
        return self.pair.programs

    def draw(self, num_chains: int) -> Tensor:
        """Draws from the start, ``(C, N, d)``."""
        return torch.cat([self._draw(count) for count in self._counts(num_chains)])

    def _counts(self, num_chains: int) -> list[int | None]:
        """The number of chains in each run of the programs; None if it has no plate of chains."""
        return [num_chains] if self.structure.vectorised else [None] * num_chains

    def _draw(self, num_chains: int | None) -> Tensor:
        if self.start == "prior":
            return self.flatten({}, num_chains)
        return self.flatten(self._run(nothing, self._programs[1], num_chains).latents, num_chains)

    def _run(self, model: Program, guide: Program, num_chains: int | None) -> Draws:
        """Draws from two programs, either of which may be empty, without global sites."""
        draws = run_pair(model, guide, self.batch, self.structure, num_particles=num_chains, enumerate_guide=False)
        return draws.where(lambda term: term.is_local)

    def flatten(self, latents: Mapping[str, Tensor], num_chains: int | None) -> Tensor:
        """Values of latents as real numbers ``(C, N, d)``, C = 1 without a plate of chains.

        Latents without a value are drawn by the model. Supports are the model's, and may depend on the latents.
        """
        sites = self._model_sites(latents, num_chains)
        shape = (num_chains or 1, len(self.batch))
        parts = [_unconstrained(sites[name], shape, plated=num_chains is not None) for name in self.layout]
        if not parts:
            return self.batch.log_jacobian.new_zeros(*shape, 0)
        u = torch.cat(parts, -1)
        if bool(u.isnan().any()):
            raise ValueError(
                "the guide draws latents outside their support in the model: choose a guide with the model's support, "
                "or start='prior'"
            )
        return u

    def latents(self, u: Tensor) -> dict[str, Tensor]:
        """The latents that real numbers ``(C, N, d)`` are mapped to, by site ``(C, *plates, N, *event)``."""
        model, counts = self._programs[0], self._counts(len(u))
        shapes = {name: site["value"].shape for name, site in self._model_sites({}, None).items()}
        found: list[dict[str, Tensor]] = []
        for part, count in zip(u.split(len(u) // len(counts)), counts, strict=True):
            with _Mapped(part, self.layout, self.structure.nesting, plated=count is not None) as mapped:
                self._run(model, nothing, count)
            found.append(mapped.values)
        return {  # a plate of chains leaves spare dimensions
            name: torch.cat([values[name] for values in found]).reshape(len(u), *shapes[name]) for name in self.layout
        }

    def _model_sites(self, latents: Mapping[str, Tensor], num_chains: int | None) -> dict[str, Any]:
        """The model's sites with these values of some latents; latents that it enumerates are drawn."""
        program = under_particles(self._programs[0], num_chains, self.structure.particle_dim)
        with Fixed(latents):
            return sample_sites(poutine.trace(program).get_trace(self.batch.x, **self.batch.arguments))

    def at(self, u: Tensor) -> Point:
        """Both log-densities and their gradients at ``u``, ``(C, N, d)``."""
        u = u.detach().requires_grad_()
        counts = self._counts(len(u))
        with torch.enable_grad():
            parts = [self._log_probs(part, c) for part, c in zip(u.split(len(u) // len(counts)), counts, strict=True)]
            log_start, log_joint = (torch.cat(values) for values in zip(*parts, strict=True))
            if not self.layout:
                return Point(u.detach(), log_start.detach(), log_joint.detach(), u.detach(), u.detach())
            grad_start, grad_joint = (
                torch.autograd.grad(values.sum(), u, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
                for values in (log_start, log_joint)
            )
        return Point(u.detach(), log_start.detach(), log_joint.detach(), grad_start, grad_joint)

    @torch.no_grad()
    def log_probs(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Both log-densities at ``u``, ``(C, N)`` each in float64."""
        counts = self._counts(len(u))
        parts = [self._log_probs(part, c) for part, c in zip(u.split(len(u) // len(counts)), counts, strict=True)]
        log_start, log_joint = (torch.cat(values).double() for values in zip(*parts, strict=True))
        return log_start, log_joint

    def _log_probs(self, u: Tensor, num_chains: int | None) -> tuple[Tensor, Tensor]:
        model, guide = self._programs
        with _Mapped(u, self.layout, self.structure.nesting, plated=num_chains is not None) as mapped:
            joint = self._run(model, nothing, num_chains)
        if mapped.blurred:
            raise ValueError(
                f"the support of the latent {mapped.blurred!r} depends on one that the model enumerates, so there is "
                f"no map to it from real numbers"
            )
        if not self.layout or self.start == "prior":
            log_start = -joint.where(lambda term: term.kind == "prior").rate
        else:
            with Fixed(mapped.values):
                log_start = self._run(nothing, guide, num_chains).where(lambda term: term.kind == "guide").rate
        return log_start + mapped.log_jacobian, joint.elbo + mapped.log_jacobian


def support_of(fn: Any) -> Any:
    """A distribution's support; all real numbers if it names none, like some flows."""
    try:
        return _plain(fn.support)
    except (NotImplementedError, AttributeError):
        return constraints.independent(constraints.real, fn.event_dim)


def _plain(support: Any) -> Any:
    """The support itself, or for a mixture that of its components, to which torch has a map."""
    if isinstance(support, constraints.MixtureSameFamilyConstraint):
        return _plain(support.base_constraint)
    if isinstance(support, constraints.independent):
        return constraints.independent(_plain(support.base_constraint), support.reinterpreted_batch_ndims)
    return support


class _Mapped(Messenger):
    """Gives the model's latent sites the values that real numbers ``(C, N, d)`` are mapped to."""

    def __init__(self, u: Tensor, layout: Mapping[str, slice], nesting: int, *, plated: bool) -> None:
        super().__init__()
        self.u, self.layout, self.plated = u, layout, plated
        self.depth = nesting + plated  # dimensions of a batch; enumerated ones are left of them
        self.log_jacobian: Tensor = u.new_zeros(u.shape[:2])
        self.values: dict[str, Tensor] = {}
        self.blurred: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] not in self.layout or msg["is_observed"] or msg["done"]:
            return
        fn = msg["fn"]
        transform = biject_to(support_of(fn))
        batch = fn.batch_shape[-self.depth :]
        batch = batch if self.plated else (1, *batch)  # (C, *plates, N)
        event = transform.inverse_shape(fn.shape())[len(fn.batch_shape) :]
        flat = self.u[..., self.layout[msg["name"]]]
        u = flat.reshape(*flat.shape[:2], *batch[1:-1], *event).movedim(1, len(batch) - 1)
        u = u if self.plated else u[0]
        z: Any = transform(u)
        log_jacobian: Any = transform.log_abs_det_jacobian(u, z)
        extra = log_jacobian.dim() - (u.dim() - len(event))
        log_jacobian = log_jacobian.sum(tuple(range(-extra, 0))) if extra > 0 else log_jacobian
        if z.dim() - fn.event_dim > self.depth:
            self.blurred = msg["name"]
        log_jacobian = scale_and_mask(log_jacobian, mask=msg["mask"])
        log_jacobian = log_jacobian if self.plated else log_jacobian[None]
        inner = tuple(range(1, log_jacobian.dim() - 1))
        self.log_jacobian = self.log_jacobian + (log_jacobian.sum(inner) if inner else log_jacobian)
        self.values[msg["name"]] = z
        msg["value"], msg["done"] = z, True


def _unconstrained(site: Any, shape: tuple[int, int], *, plated: bool) -> Tensor:
    """A latent site of the model as real numbers ``(C, N, d_i)``."""
    u: Any = biject_to(support_of(site["fn"])).inv(site["value"])
    num_batch = site["value"].dim() - site["fn"].event_dim
    u, num_batch = (u, num_batch) if plated else (u[None], num_batch + 1)
    return u.movedim(num_batch - 1, 1).reshape(*shape, -1)


def latent_layout(pair: Pair, structure: Structure, batch: Batch, start: Start) -> dict[str, slice]:
    """The elements of u that belong to each latent of the model.

    Raises:
        ValueError: if a latent cannot be moved along gradients, or the start has no density.
    """
    density = LatentDensity(pair, structure, batch, {}, start)
    sites = {name: site for name, site in density._model_sites({}, None).items() if name in structure.guided}
    for name, site in sites.items():
        if structure.latents[name].is_discrete or is_discrete(site["fn"]):
            raise ValueError(
                f"the latent {name!r} is discrete, and annealing moves latents along gradients: let the model "
                f"enumerate it (infer={{'enumerate': 'parallel'}}), or use log_evidence"
            )
        try:
            biject_to(support_of(site["fn"]))
        except NotImplementedError:
            support = site["fn"].support
            raise ValueError(f"the latent {name!r} has the support {support}, to which no map is known") from None
    if start == "guide":
        _check_guide(structure)
    layout, first = {}, 0
    for name, site in sites.items():
        layout[name] = slice(first, first := first + _unconstrained(site, (1, len(batch)), plated=False).shape[-1])
    return layout


def _check_guide(structure: Structure) -> None:
    """Raises an error if the guide's density of the latents is not known."""
    if structure.extra:
        raise ValueError(
            f"the guide draws the auxiliary {structure.extra[0]!r}, so it has no density of the latents alone: "
            f"use start='prior'"
        )
    for name in structure.points:
        raise ValueError(f"the guide has no density at {name!r}, which it sets to a point: use start='prior'")
