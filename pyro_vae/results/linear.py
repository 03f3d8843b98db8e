"""The linear-Gaussian model: every number has a closed form."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import Elbo, evaluate, fit, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Normal
from pyro_vae.posteriors import FullNormal
from pyro_vae.results.row import Row, with_error

TITLE = "The linear-Gaussian model, in closed form"
ABOUT = """Probabilistic PCA (Tipping & Bishop, 1999) with two latents on the 150 irises of scikit-learn,
standardised: a linear decoder with one learned scale and a linear encoder with a full covariance, trained by `fit`.
The closed forms are computed from the trained weights; `sklearn.decomposition.PCA.score` is the evidence of the best
such model. Differences are means over rows of |ours − closed form|."""
DIGITS = 4


def rows(*, short: bool, root: Path) -> list[Row]:
    """Training, evidence, posterior and imputation compared with their closed forms."""
    from sklearn.datasets import load_iris
    from sklearn.decomposition import PCA

    irises: Any = load_iris()
    x = torch.tensor(irises.data, dtype=torch.float64)
    x = ((x - x.mean(0)) / x.std(0, correction=0)).float()
    epochs = 200 if short else 1500
    vae = trained(x, epochs)
    loc, weight, variance = parameters(vae)
    covariance = weight @ weight.T + variance * torch.eye(4, dtype=torch.float64)
    model = torch.distributions.MultivariateNormal(loc, covariance)
    truth = model.log_prob(x.double())
    found = log_evidence(vae, x, num_particles=1000)
    elbo = [evaluate(vae, x, seed=seed)["elbo"] for seed in range(100)]
    best = PCA(2).fit(x.numpy()).score(x.numpy()) + scikit_learn_gap(x)
    q = vae.encode(x)
    middle, spread = posterior(x.double(), loc, weight, variance)
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) < 0.25
    gaps[gaps.all(1), 0] = False
    incomplete = torch.where(gaps, torch.nan, x)
    with_gaps = trained(torch.cat([torch.where(torch.rand(x.shape) < 0.25, torch.nan, x) for _ in range(4)]), epochs)
    loc, weight, variance = parameters(with_gaps)
    means = conditional_means(incomplete.double(), loc, weight @ weight.T + variance * torch.eye(4).double())
    draws = with_gaps.impute(incomplete, 400 if short else 2000, num_particles=400)
    return [
        {"": "ELBO after training, of the best model", "ours": with_error(elbo), "closed form": float(best)},
        {
            "": "log evidence of a row, 1,000 particles",
            "ours": with_error(found.log_evidence),
            "closed form": float(truth.mean()),
            "difference": with_error((found.log_evidence - truth).abs()),
        },
        {
            "": "mean of the posterior, in its standard deviations",
            "difference": with_error(((q.mean.double() - middle) / spread.diagonal().sqrt()).abs().mean(1)),
        },
        {
            "": "covariance of the posterior, first entry",
            "ours": float(q.covariance_matrix[0, 0, 0]),
            "closed form": float(spread[0, 0]),
            "difference": with_error((q.covariance_matrix[0].double() - spread).abs().flatten()),
        },
        {
            "": "means of imputed entries (a quarter), 400 draws, of a model that has met gaps",
            "difference": with_error((draws.double().mean(0) - means)[gaps].abs()),
        },
    ]


def trained(x: Tensor, epochs: int) -> Any:
    """A linear model with a full posterior, trained on rows that may have gaps."""
    torch.manual_seed(0)
    vae: Any = mlp_vae((4,), 2, hidden_dims=(), likelihood=Normal(), posterior=FullNormal(), missing="nan")
    elbo = Elbo(kl="auto", num_particles=8)
    fit(vae, x, objective=elbo, epochs=epochs, batch_size=50, learning_rate=2e-2, progress=False)
    return vae


def parameters(vae: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, weights and noise variance of a trained model."""
    (affine,) = vae.decoder.network.layers
    noise = vae.decoder(torch.zeros(1, 2)).base_dist.scale.flatten()[0]
    return affine.bias.detach().double(), affine.weight.detach().double(), noise.detach().double() ** 2


def posterior(x: Tensor, loc: Tensor, weight: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Means of each row's posterior and their covariance."""
    spread = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + weight.T @ weight / variance)
    return (x - loc) @ weight @ spread / variance, spread


def conditional_means(x: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """Each missing entry's mean given the observed ones of its row."""
    filled = x.clone()
    for row in filled:
        gap = row.isnan()
        if gap.any():
            slope = covariance[gap][:, ~gap] @ torch.linalg.inv(covariance[~gap][:, ~gap])
            row[gap] = loc[gap] + slope @ (row[~gap] - loc[~gap])
    return filled


def scikit_learn_gap(x: Tensor) -> float:
    """The best model's evidence minus ``PCA.score``, whose covariance is divided by N − 1 instead of N."""
    num_rows, num_dims = x.shape
    ratio = (num_rows - 1) / num_rows
    return 0.5 * num_dims * (ratio - 1 - math.log(ratio))
