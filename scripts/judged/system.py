"""Models with one latent for each row whose posterior is known: exactly, by a sum, or on a fine grid."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import Pair

__all__ = ["Case", "System", "by_sum", "linear_gaussian", "mixture_prior", "on_grid"]


@dataclass(frozen=True)
class Case:
    """The input of a suite.

    Args:
        pair: The programs.
        x: Rows that the pair was not trained on, as every tool takes them.
        train: Rows that it was trained on, where there are any.
    """

    pair: Pair
    x: Any
    train: Any = None


@dataclass(frozen=True)
class System:
    """A model of rows with a latent ``"z"``, and a guide.

    Args:
        prior: p(z), without a batch.
        likelihood: z to p(x | z).
        posterior: x to q(z | x).
        options: Arguments of ``Pair``.
    """

    prior: Callable[[], Any]
    likelihood: Callable[[Tensor], Any]
    posterior: Callable[[Tensor], Any]
    options: dict[str, Any] = field(default_factory=dict)

    def pair(self) -> Pair:
        """The two programs."""

        def model(x: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", self.prior())
                return pyro.sample("x", self.likelihood(z), obs=x)

        def guide(x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.posterior(x))

        return Pair(model, guide, **self.options)

    def draw(self, num_rows: int) -> Tensor:
        """Rows that the model draws."""
        return self.likelihood(self.prior().expand([num_rows]).sample()).sample()

    def case(self, num_rows: int, data: "System | None" = None) -> Case:
        """The pair with its own rows, or with those of another model."""
        return Case(self.pair(), (data or self).draw(num_rows))

    def but(self, **parts: Any) -> "System":
        """The same system with other parts."""
        return replace(self, **parts)


def linear_gaussian(
    weight: Tensor,
    noise: Tensor,
    loc: Tensor | None = None,
    prior_loc: Tensor | float = 0.0,
    prior_scale: Tensor | float = 1.0,
) -> System:
    """X = W z + m + noise, z normal with independent entries: the posterior is normal."""
    num_dims, num_latents = weight.shape
    loc = torch.zeros(num_dims) if loc is None else loc
    prior_loc = torch.as_tensor(prior_loc).expand(num_latents)
    prior_scale = torch.as_tensor(prior_scale).expand(num_latents)
    noise = noise.expand(num_dims)
    precision = (prior_scale**-2).diag() + (weight.T / noise**2) @ weight
    covariance = torch.linalg.inv(precision.double())
    factor = torch.linalg.cholesky((covariance + covariance.T) / 2).float()
    gain = (covariance.float() @ (weight.T / noise**2)).T

    def posterior(x: Tensor) -> Any:
        mean = prior_loc + (x - loc - weight @ prior_loc) @ gain
        return dist.MultivariateNormal(mean, scale_tril=factor)

    return System(
        lambda: dist.Normal(prior_loc, prior_scale).to_event(1),
        lambda z: dist.Normal(z @ weight.T + loc, noise).to_event(1),
        posterior,
    )


def mixture_prior(weights: Tensor, centres: Tensor, scale: float, slopes: Tensor, noise: float) -> System:
    """X = W z + noise, z of a mixture of round normals: the posterior is a mixture of normals."""
    num_latents = centres.shape[1]
    eye = torch.eye(num_latents)
    covariance = torch.linalg.inv(eye / scale**2 + slopes.T @ slopes / noise**2)
    factor = torch.linalg.cholesky(covariance)
    marginal = dist.MultivariateNormal(
        centres @ slopes.T, scale**2 * slopes @ slopes.T + noise**2 * torch.eye(len(slopes))
    )

    def components(loc: Tensor, scale_tril: Tensor, logits: Tensor) -> Any:
        return dist.MixtureSameFamily(
            dist.Categorical(logits=logits), dist.MultivariateNormal(loc, scale_tril=scale_tril)
        )

    def posterior(x: Tensor) -> Any:
        loc = (centres / scale**2 + (x @ slopes / noise**2)[..., None, :]) @ covariance
        return components(loc, factor, weights.log() + marginal.log_prob(x[..., None, :]))

    return System(
        lambda: components(centres, scale * eye, weights.log()),
        lambda z: dist.Normal(z @ slopes.T, noise).to_event(1),
        posterior,
    )


def by_sum(logits: Tensor, likelihood: Callable[[Tensor], Any]) -> System:
    """A latent with K values: the posterior is a sum away."""
    values = torch.arange(len(logits))

    def posterior(x: Tensor) -> Any:
        fn = likelihood(values)
        return dist.Categorical(logits=logits + fn.log_prob(x[:, None]))

    return System(lambda: dist.Categorical(logits=logits), likelihood, posterior)


_COARSE, _FINE = 200, 72  # points of the two grids
_NEGLIGIBLE = 10.0  # nats below the highest


def on_grid(prior: Any, likelihood: Callable[[Tensor], Any], low: float, high: float) -> System:
    """A latent number with any prior and likelihood: the posterior as a mixture of narrow normals on a grid.

    A coarse grid finds where a row's posterior lies, a fine one is laid there.
    """
    coarse = torch.linspace(low, high, _COARSE)

    def log_joint(x: Tensor, z: Tensor) -> Tensor:
        return prior.log_prob(z) + likelihood(z).log_prob(x[:, None])

    def posterior(x: Tensor) -> Any:
        found = log_joint(x, coarse.expand(len(x), -1))
        near = found > found.amax(1, keepdim=True) - _NEGLIGIBLE
        step = (high - low) / (_COARSE - 1)
        start = torch.where(near, coarse, torch.inf).amin(1, keepdim=True) - step
        width = torch.where(near, coarse, -torch.inf).amax(1, keepdim=True) + step - start
        grid = start + width * torch.linspace(0, 1, _FINE)
        spread = (width / (_FINE - 1)).expand_as(grid)
        return dist.MixtureSameFamily(dist.Categorical(logits=log_joint(x, grid)), dist.Normal(grid, spread))

    return System(lambda: prior, likelihood, posterior)
