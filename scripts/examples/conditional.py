"""Digits of a given class: a conditional VAE with labels as covariates."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import conditional_vae, fit, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Scale

NUM_STYLES = 12


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("conditional.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 100,
) -> None:
    """Trains a VAE given the labels of digits, and draws the ten digits in many styles."""
    digits: Any = load_digits()
    data = {"x": torch.tensor(digits.images, dtype=torch.float32), "labels": torch.tensor(digits.target)}
    torch.manual_seed(0)
    vae = conditional_vae(
        (8, 8),
        latent_dim=4,
        given={"labels": 10},
        likelihood=Normal(link="sigmoid"),
        transform=Scale(0, 16),
        hidden_dims=(128,),
    )
    fit(vae, data, epochs=epochs, batch_size=100, learning_rate=2e-3, progress=False)

    # Latents encode what labels do not: each column has one z, each row one label.
    z = torch.randn(NUM_STYLES, 4)
    grid = torch.stack([vae.mean_at(z, given={"labels": label}) for label in range(10)])
    title = "each row one label, each column one latent vector"
    plotting.save_figure(plotting.plot_grid(grid, row_labels=[*map(str, range(10))], title=title), out)


if __name__ == "__main__":
    run_command(main)
