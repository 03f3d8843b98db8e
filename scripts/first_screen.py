"""Draws the picture at the top of the README: draws, a walk between two of them, the latents, the head of a report."""

import textwrap
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure

from pyro_vae import fit, mlp_vae, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import evaluate_suite
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize

COLOURS = {"wrong": "#b3261e", "look": "#8a5a00", "fine": "#2e6b34"}


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("docs/images/first-screen.png"),
    epochs: Annotated[int, typer.Option(help="Times every digit is seen.")] = 600,
) -> None:
    """Trains a VAE on scikit-learn's digits and draws what there is to see of it, side by side."""
    data = load_data("digits")
    torch.manual_seed(0)
    vae = mlp_vae((8, 8), 10, hidden_dims=(400,), likelihood=Bernoulli(), transform=Binarize(0, 16))
    fit(vae, data.x_train, validation_data=data.x_test, epochs=epochs, progress=False)
    report = evaluate_suite(vae, data.x_test, train=data.x_train)

    figure = Figure(figsize=(14, 3.6), layout="constrained")
    samples, walk, latents, words = figure.subplots(1, 4, width_ratios=(1, 1, 1, 1.6))
    torch.manual_seed(1)
    show(samples, tiles(vae.sample(64, mean=True), 8), "drawn from the prior: E[x|z]")
    first, last = (torch.as_tensor(data.x_test[index : index + 8]) for index in (0, 20))
    ways = vae.interpolate(first, last, steps=8, path="spherical").transpose(0, 1).flatten(0, 1)
    show(walk, tiles(ways, 8), "from one digit to another")
    means, labels = vae.encode(data.x_test).mean, data.y_test
    centred = means - means.mean(0)
    points = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].mT
    latents.scatter(points[:, 0], points[:, 1], c=labels, cmap="tab10", s=7)
    latents.set(xticks=[], yticks=[], title="held-out digits among their latents")
    write(words, report)
    plotting.save_figure(figure, out)


def tiles(x: torch.Tensor, columns: int) -> np.ndarray:
    """Rows of pictures as one."""
    rows = [torch.cat(list(row), -1) for row in x.split(columns)]
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
