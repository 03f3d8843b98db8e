"""Draws the picture at the top of the README: draws, a walk between two of them, the latents, the head of a report."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from pyro_vae import fit, mlp_vae, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import evaluate_suite
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize

COLOURS = {"wrong": "#b3261e", "look": "#8a5a00", "fine": "#2e6b34"}


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("docs/images/first-screen.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the digits.")] = 20,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
) -> None:
    """Trains a VAE on MNIST and draws samples, a walk, its latents and its report side by side."""
    data: Any = load_data("mnist", data_root)
    x_train, x_test = data.x_train[:20000], data.x_test[:2000]
    torch.manual_seed(0)
    vae = mlp_vae((28, 28), 16, hidden_dims=(400,), likelihood=Bernoulli(), transform=Binarize(0, 255))
    fit(vae, x_train, epochs=epochs, progress=False)
    report = evaluate_suite(vae, x_test, train=x_train)

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    samples, walk, latents, words = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    torch.manual_seed(1)
    show(samples, tiles(vae.sample(49, mean=True), 7), "drawn from the prior: E[x|z]")
    ways = vae.interpolate(x_test[:7], x_test[20:27], steps=7, path="spherical").transpose(0, 1).flatten(0, 1)
    show(walk, tiles(ways, 7), "from one digit to another")
    labels = data.y_test[: len(x_test)].numpy()
    points = LinearDiscriminantAnalysis(n_components=2).fit_transform(vae.encode(x_test).mean.numpy(), labels)
    latents.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=3, alpha=0.7, linewidths=0)
    latents.set(xticks=[], yticks=[], title="held-out digits among their latents")
    latents.set_box_aspect(1)
    write(words, report)
    plotting.save_figure(figure, out)


def tiles(x: torch.Tensor, columns: int) -> np.ndarray:
    """Rows of pictures as one."""
    framed = torch.nn.functional.pad(x, (1, 1, 1, 1), value=128)
    rows = [torch.cat(list(row), -1) for row in framed.split(columns)]
    return torch.cat(rows, -2).numpy()


def show(axes: Any, picture: np.ndarray, title: str) -> None:
    """A picture without ticks."""
    axes.imshow(picture, cmap="gray", interpolation="nearest")
    axes.set(xticks=[], yticks=[], title=title)


def write(axes: Any, report: Any) -> None:
    """The first lines of a report."""
    axes.axis("off")
    axes.set_title("the first lines of its report", loc="left")
    axes.text(0, 0.97, report.verdict, va="top", weight="bold", size=9, transform=axes.transAxes)
    place = 0.86
    for finding in report.findings:
        lines = textwrap.wrap(finding.text, 78)
        if place - 0.07 * len(lines) < 0:
            break
        axes.text(0, place, finding.level, va="top", size=8, color=COLOURS[finding.level], transform=axes.transAxes)
        axes.text(0.09, place, "\n".join(lines), va="top", size=8, transform=axes.transAxes)
        place -= 0.07 * len(lines) + 0.02


if __name__ == "__main__":
    run_command(main)
