"""Digits, a hundred of them labelled: the gain from the other rows, and what latents encode besides the class."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_vae import plotting
from pyro_vae.cli.running import run_command
from pyro_vae.results.semi_supervised import trained


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("semi_supervised.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 150,
    seed: Annotated[
        int, typer.Option(help="Seed of the weights, and of the choice of labelled and held-out rows.")
    ] = 0,
) -> None:
    """Trains model M2 with ten labels for each digit, and compares it with the same classifier on the labels alone."""
    vae, x, error, alone = trained(seed, epochs)
    z = vae.encode(x[:8]).mean.repeat_interleave(10, 0)  # in the style of each, all ten digits
    written = vae.mean_at({"y": torch.arange(10).repeat(8), "z": z}).reshape(8, 10, 8, 8)
    grid = torch.cat([x[:8, None], torch.full((8, 1, 8, 8), 8.0), written], 1)
    title = f"held-out digits, and all ten in their styles\n100 labels: {error:.1%} wrong"
    plotting.save_figure(plotting.plot_grid(grid, title=f"{title}; without other rows {alone:.1%}"), out)


if __name__ == "__main__":
    run_command(main)
