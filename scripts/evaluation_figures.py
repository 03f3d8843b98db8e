"""Draws the figures of docs/evaluation.md."""

from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from pyro_vae import Pair, mlp_vae
from pyro_vae.cli.running import run_command
from pyro_vae.evaluation import plot_predictive_check, plot_rate_distortion, predictive_check, rate_distortion_curve
from pyro_vae.likelihoods import Normal
from pyro_vae.plotting import save_figure

FOLDER = Path(__file__).parents[1] / "docs" / "images" / "evaluation"


def counts_pair(*, normal: bool) -> Pair:
    """Two kinds of rows of counts, 35% of them zero at any rate; the normal has their mean and variance."""

    def p_x(z: torch.Tensor) -> dist.TorchDistribution:
        right: Any = dist.ZeroInflatedPoisson(torch.where(z > 0, 9.0, 2.0), gate=torch.tensor(0.35))
        return dist.Normal(right.mean, right.variance.sqrt()) if normal else right

    def model(x: torch.Tensor | None = None, *, batch_size: int | None = None) -> torch.Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            return pyro.sample("x", p_x(z), obs=x)

    def guide(x: torch.Tensor) -> None:
        log_odds = p_x(torch.tensor(1.0)).log_prob(x) - p_x(torch.tensor(0.0)).log_prob(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=log_odds))

    return Pair(model, guide)


def main() -> None:
    """Draws the figures of docs/evaluation.md."""
    torch.manual_seed(0)
    x = counts_pair(normal=False).sample(500)
    check = predictive_check(counts_pair(normal=True), x, kind="prior")
    save_figure(plot_predictive_check(check), FOLDER / "predictive-check.png")

    x = torch.randn(2000, 3) * torch.tensor([2.0, 0.5, 0.5])
    curve = rate_distortion_curve(
        lambda: mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal(scale=0.5)),
        x,
        x,
        betas=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
        fit_arguments={"epochs": 20, "learning_rate": 5e-2, "batch_size": 50, "progress": False},
    )
    figure = plot_rate_distortion(curve)
    # Reverse water-filling: one direction is coded, the others are left to the likelihood.
    first, *others = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0).tolist()
    water = torch.linspace(0.03, first, 200)
    constant = 3 * torch.log(torch.tensor(0.5 * (2 * torch.pi) ** 0.5))
    figure.axes[0].plot(
        0.5 * (first / water).log(),
        (water + sum(others)) / (2 * 0.5**2) + constant,
        color="black",
        linewidth=0.8,
        zorder=0,
        label="closed form",
    )
    figure.axes[0].legend(frameon=False, fontsize=8)
    save_figure(figure, FOLDER / "rate-distortion.png")


if __name__ == "__main__":
    run_command(main)
