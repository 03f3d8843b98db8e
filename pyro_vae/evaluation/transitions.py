"""Transitions of Hamiltonian Monte Carlo between a start and a posterior, for all chains of all rows at once."""

import math
from typing import Protocol

import torch
from torch import Tensor

from pyro_vae.evaluation.latent_density import Point
from pyro_vae.inference.replaying import Replayed
from pyro_vae.pair import Pair

__all__ = ["Density", "Transitions"]


class Density(Protocol):
    """Two log-densities of points, the start's and the joint one, with their gradients."""

    @property
    def pair(self) -> Pair:
        """Whose densities they are."""
        ...

    def draw(self, num_chains: int) -> Tensor:
        """Draws from the start, ``(C, N, d)``."""
        ...

    def at(self, u: Tensor, /) -> Point:
        """Both log-densities and their gradients at ``u``, ``(C, N, d)``."""
        ...


class Transitions:
    """Transitions that leave a density of the geometric path invariant. On a GPU, trajectories are CUDA graphs.

    Args:
        density: Both ends of the path.
        num_leapfrog: Leapfrog steps of a transition.
        num_calls: How many transitions there will be at least.
    """

    def __init__(self, density: Density, num_leapfrog: int, num_calls: int) -> None:
        self.density, self.num_leapfrog = density, num_leapfrog
        pair = density.pair
        programs = {"the model": pair.model, "the guide": pair.guide}
        self._trajectory = Replayed(self._moved, programs, pair.device, num_calls)

    def __call__(self, point: Point, t: float, steps: Tensor) -> tuple[Point, Tensor]:
        """One transition at temperature t.

        Steps are jittered by a fifth, whatever the state, so no trajectory length is a full orbit for every chain.

        Args:
            point: The chains' positions.
            t: Temperature.
            steps: Step sizes ``(N, d)``, or ``(C, N, d)``.

        Returns:
            The new positions, and the probabilities of acceptance, ``(C, N)``.
        """
        jitter = 0.8 + 0.4 * torch.rand_like(point.log_start)
        momentum = torch.randn_like(point.u)
        at = torch.full((), t, dtype=torch.float64, device=point.u.device)
        *moved, log_accept = self._trajectory(*point, at, jitter[..., None] * steps, momentum)
        accept = torch.rand_like(log_accept).log() < log_accept
        chosen = [
            torch.where(accept[..., None] if new.dim() == 3 else accept, new, old)
            for new, old in zip(moved, point, strict=True)
        ]
        return Point(*chosen), log_accept.exp().clamp(max=1)

    def _moved(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Where a trajectory ends, and the logarithm of the odds of that point."""
        *places, t, step, start = tensors
        point = here = Point(*places)
        momentum = start + 0.5 * step * point.grad(t)
        for i in range(self.num_leapfrog):
            here = self.density.at(here.u + step * momentum)
            momentum = momentum + (0.5 if i == self.num_leapfrog - 1 else 1.0) * step * here.grad(t)
        kinetic = 0.5 * (start.square().sum(-1) - momentum.square().sum(-1))
        log_accept = (here.log_prob(t) - point.log_prob(t) + kinetic).nan_to_num(nan=-math.inf)
        return *here, log_accept
