"""Digits from six scanners, each with its own shading: partial pooling finds it, even from few pictures."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import fit, plotting, pooled_vae
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Normal

SIZES = (600, 600, 400, 150, 30, 5)  # pictures of each scanner


def scanned() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures, the scanner of each, and the scanners' shadings."""
    torch.manual_seed(0)
    loaded: Any = load_digits()
    digits = torch.tensor(loaded.images, dtype=torch.float32)[: sum(SIZES)] / 16
    groups = torch.arange(len(SIZES)).repeat_interleave(torch.tensor(SIZES))
    down, right = torch.meshgrid(torch.linspace(-1, 1, 8), torch.linspace(-1, 1, 8), indexing="ij")
    shadings = 0.5 * torch.stack([down, right, -down, -right, down * right, 1 - down**2 - right**2])
    return digits + shadings[groups], groups, shadings


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("pooled.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 150,
) -> None:
    """Trains a VAE with an effect for each scanner, and draws the effects, and one digit as every scanner sees it."""
    x, groups, shadings = scanned()
    vae = pooled_vae((8, 8), latent_dim=8, num_groups=len(SIZES), likelihood=Normal(), hidden_dims=(128,))
    fit(vae, {"x": x, "groups": groups}, epochs=epochs, batch_size=100, learning_rate=2e-3, progress=False)

    last = groups.bincount().cumsum(0) - 1  # a picture of each scanner
    learned = vae.effects().mean.detach().reshape(-1, 8, 8)
    learned = learned - learned.mean(0) + shadings.mean(0)  # the decoder may absorb the common part
    z = vae.encode({"x": x[:1], "groups": groups[:1]}).mean
    seen = vae.mean_at(z.expand(len(SIZES), -1), given={"groups": torch.arange(len(SIZES))})
    grid = torch.stack([x[last], shadings, learned, seen])
    labels = ("a picture", "its shading", "as learned", "one digit\nby each")
    title = "scanners with " + ", ".join(map(str, SIZES)) + " pictures"
    plotting.save_figure(plotting.plot_grid(grid, row_labels=labels, title=title), out)


if __name__ == "__main__":
    run_command(main)
