r"""Exact answers: Gaussian closed forms, and sums over a grid of latents."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

__all__ = ["Gaussian", "Grid", "normal_grid", "uniform_grid", "without_gradients"]


def without_gradients(function: Callable[..., object]) -> Callable[..., object]:
    """The function, run without gradients."""
    return torch.no_grad()(function)


class Gaussian:
    r"""x = W z + m + s e with z and e standard normal: every answer in closed form (Tipping & Bishop, 1999).

    Args:
        weight: W, ``(D, L)``.
        loc: m, ``(D,)`` or ``(N, D)``.
        scale: s, a number or ``(D,)``.
    """

    def __init__(self, weight: Tensor, loc: Tensor, scale: Tensor | float) -> None:
        self.weight, self.loc = weight.detach().double(), loc.detach().double()
        self.scale = torch.as_tensor(scale).detach().double().expand(len(weight))
        self.covariance = self.weight @ self.weight.T + torch.diag(self.scale.square())

    def log_evidence(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The log-density of the entries where ``mask`` is true, ``(N,)``."""
        if mask is None:
            return MultivariateNormal(self.loc, self.covariance).log_prob(x.double())
        # Missing entries become standard normal, independent of the others, and equal to 0.
        both = mask[:, :, None] & mask[:, None, :]
        covariance = torch.where(both, self.covariance, torch.eye(x.shape[1], dtype=torch.float64))
        residual = torch.where(mask, x.double() - self.loc, 0.0)
        value = MultivariateNormal(torch.zeros_like(residual), covariance).log_prob(residual)
        return value + 0.5 * math.log(2 * math.pi) * (~mask).sum(-1)

    def posterior(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z given the observed entries: ``(N, L)`` both."""
        loc, covariance = self.posterior_covariance(x, mask)
        return loc, covariance.diagonal(dim1=-2, dim2=-1).sqrt().expand_as(loc)

    def posterior_covariance(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean ``(N, L)`` and covariance ``(N, L, L)`` of z."""
        seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        information = seen / self.scale.square()
        precision = torch.eye(self.weight.shape[1], dtype=torch.float64) + torch.einsum(
            "dk,nd,dl->nkl", self.weight, information, self.weight
        )
        residual = torch.where(seen, x.double() - self.loc, 0.0) * information
        covariance = torch.linalg.inv(precision)
        return (covariance @ (residual @ self.weight)[..., None])[..., 0], covariance

    def imputed(self, x: Tensor, mask: Tensor) -> Tensor:
        """The mean of x given its observed entries: these themselves, and conditional means of the others."""
        return torch.where(mask, x.double(), self.posterior(x, mask)[0] @ self.weight.T + self.loc)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x."""
        return self.loc, self.covariance.diagonal().sqrt()


class Grid:
    r"""Points of a latent space with the logarithm of the prior mass around each.

    Args:
        points: ``(G, L)``.
        log_mass: ``(G,)``, or ``(N, G)`` if each row has its own prior.
    """

    def __init__(self, points: Tensor, log_mass: Tensor) -> None:
        self.points, self.log_mass = points, log_mass

    def log_evidence(self, log_likelihood: Tensor) -> Tensor:
        r"""The sum log Σ p(z) p(x | z), ``(N,)``, from log p(x | z) at every point, ``(N, G)``."""
        return (log_likelihood.double() + self.log_mass).logsumexp(-1)

    def posterior(self, log_likelihood: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z given the row, ``(N, L)`` both."""
        weights = (log_likelihood.double() + self.log_mass).softmax(-1)
        points = self.points.double()
        mean = weights @ points
        return mean, (weights @ points.square() - mean.square()).clamp_min(0).sqrt()

    def moments(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of x, from those of x given z at every point, ``(G, *E)``."""
        weights = self.log_mass.softmax(-1)
        first = torch.tensordot(weights, mean.double(), 1)
        return first, (torch.tensordot(weights, (variance + mean.square()).double(), 1) - first.square()).sqrt()


def uniform_grid(dim: int, num: int, low: float, high: float) -> Tensor:
    """Midpoints of equal cells, ``(num ** dim, dim)``; a cell's volume is ``((high - low) / num) ** dim``."""
    step = (high - low) / num
    line = low + step * (torch.arange(num, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(*[line] * dim).reshape(-1, dim)


def normal_grid(dim: int, num: int | None = None, width: float = 6.5) -> Grid:
    """The standard normal in one or two dimensions, cell by cell. Points come in single precision, for networks."""
    num = {1: 1200, 2: 130}[dim] if num is None else num
    points = uniform_grid(dim, num, -width, width)
    log_mass = -0.5 * points.square().sum(-1) - dim * math.log(math.sqrt(2 * math.pi) * num / (2 * width))
    return Grid(points.float(), log_mass)
