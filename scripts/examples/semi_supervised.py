"""Digits, a hundred of them labelled: the gain from the other rows, and what latents encode besides the class."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import fit, plotting, semi_supervised_vae
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Scale


def trained(seed: int, epochs: int) -> tuple[Any, torch.Tensor, float, float]:
    """Model M2, held-out digits, and the error rates of M2 and of the labels alone."""
    digits: Any = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(seed)
    test, train = torch.randperm(len(x)).split([500, len(x) - 500])
    told = torch.cat([train[y[train] == k][:10] for k in range(10)])
    labels = torch.full_like(y, -1).index_copy(0, told, y[told])  # -1 for a row without one

    options = {"likelihood": Normal(link="sigmoid"), "transform": Scale(0, 16), "hidden_dims": (128,)}
    vae = semi_supervised_vae((8, 8), latent_dim=3, num_classes=10, label_weight=50, **options)
    data = {"x": x[train], "labels": labels[train]}
    fit(vae, data, epochs=epochs, batch_size=100, seed=seed, progress=False)
    alone = MLPClassifier((128,), max_iter=2000, random_state=seed).fit(x[told].flatten(1) / 16, y[told])
    error = float((vae.predict_label(x[test]).argmax(-1) != y[test]).double().mean())
    error_alone = 1 - float(alone.score(x[test].flatten(1) / 16, y[test]))
    print(f"seed {seed}: error {error:.1%}, with the labels alone {error_alone:.1%}", flush=True)
    return vae, x[test], error, error_alone


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
