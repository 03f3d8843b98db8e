"""The linear-Gaussian VAE, probabilistic PCA: evidence and posterior in closed form (Tipping & Bishop, 1999)."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import VAE, Pair, mlp_vae
from pyro_vae.data.rows import Rows, as_rows
from pyro_vae.likelihoods import Normal


class LinearGaussian:
    """x = W z + m + s e, with z and e standard normal; D = 5 data dimensions, L = 2 latents, random weights."""

    def __init__(self, data_dim: int = 5, latent_dim: int = 2, scale: float = 0.7) -> None:
        self.vae: VAE = mlp_vae((data_dim,), latent_dim, hidden_dims=(), likelihood=Normal(scale=scale))
        self.scale = scale
        (self.affine,) = self.vae.decoder.network.layers
        with torch.no_grad():
            self.affine.weight.copy_(torch.randn(data_dim, latent_dim))
            self.affine.bias.copy_(torch.randn(data_dim))
        self.loc = self.affine.bias.detach()
        self.weight = self.affine.weight.detach()
        self.covariance = self.weight @ self.weight.T + scale**2 * torch.eye(data_dim)

    def draw(self, num_rows: int) -> Tensor:
        return dist.MultivariateNormal(self.loc, self.covariance).sample((num_rows,))

    def log_evidence(self, x: Tensor) -> Tensor:
        return dist.MultivariateNormal(self.loc, self.covariance).log_prob(x)

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        precision = torch.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self.scale**2
        loc = (x - self.loc) @ self.weight @ torch.linalg.inv(precision) / self.scale**2
        return dist.MultivariateNormal(loc, precision_matrix=precision)

    def exact_pair(self) -> Pair:
        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.posterior(x))

        return Pair(self.vae.model, guide)

    def partial_pair(self, *, shrink: float = 1.0, shift: float = 0.0) -> Pair:
        """The guide that is right given any of the entries, or one whose scale or mean is off."""

        def guide(x, mask=None):
            seen = torch.ones_like(x) if mask is None else mask.to(x)
            precision = torch.eye(self.weight.shape[1]) + (self.weight.T * seen[:, None]) @ self.weight / self.scale**2
            covariance = torch.linalg.inv(precision)
            loc = (covariance @ ((seen * (x - self.loc)) @ self.weight)[..., None])[..., 0] / self.scale**2
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.MultivariateNormal(loc + shift, shrink**2 * covariance))

        return Pair(self.vae.model, guide)


def maximum_log_evidence(x: Tensor, latent_dim: int) -> float:
    """Mean log evidence of the best linear-Gaussian model of these rows."""
    num_dims = x.shape[1]
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = values[latent_dim:].mean()
    log_det = values[:latent_dim].log().sum() + (num_dims - latent_dim) * noise.log()
    return float(-0.5 * (num_dims * math.log(2 * math.pi) + log_det + num_dims))


def resident(x: Tensor) -> Rows:
    """Rows as the tools take them when they have been checked."""
    return as_rows(x, x.device)
