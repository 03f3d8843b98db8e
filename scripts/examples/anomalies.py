"""Digits that a VAE has never seen, found by their evidence: one class is held out of training."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import RocCurveDisplay, roc_auc_score

from pyro_vae import fit, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Normal
from pyro_vae.plotting import save_figure
from pyro_vae.transforms import Scale


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")],
    held_out: Annotated[int, typer.Option(help="The digit left out of the training rows.")] = 4,
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 80,
) -> None:
    """Trains a VAE without one digit, and ranks new rows by how improbable they are."""
    torch.manual_seed(0)
    digits: Any = load_digits()
    x, labels = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    known = labels[:1200] != held_out
    vae = mlp_vae((8, 8), 8, hidden_dims=(200,), likelihood=Normal(scale="optimal"), transform=Scale(0, 16))
    fit(vae, x[:1200][known], epochs=epochs, seed=0, progress=False)

    rows, is_new = x[1200:], labels[1200:] == held_out
    score = -log_evidence(vae, rows, num_particles=200).log_evidence  # the less probable, the higher
    print(f"area under the ROC curve {roc_auc_score(is_new, score):.3f}, over {len(rows)} rows")

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    bins = torch.linspace(float(score.min()), float(score.quantile(0.99)), 40).numpy()
    for which, name in ((~is_new, "other digits"), (is_new, f"the digit {held_out}")):
        axes[0].hist(score[which].numpy(), bins, density=True, alpha=0.6, label=name)
    axes[0].set(xlabel="minus the log evidence, nats", ylabel="density")
    axes[0].legend(frameon=False)
    RocCurveDisplay.from_predictions(is_new.numpy(), score.numpy(), ax=axes[1], name="log evidence")
    worst = score.topk(16).indices
    tiles = torch.nn.functional.pad(rows[worst], (1, 1, 1, 1), value=8.0)
    tiles = tiles.reshape(4, 4, 10, 10).movedim(1, 2).reshape(40, 40)
    axes[2].imshow(tiles, cmap="gray", vmin=0, vmax=16)
    axes[2].set(title=f"the 16 least probable: {int(is_new[worst].sum())} of them a {held_out}", xticks=[], yticks=[])
    save_figure(figure, out)


if __name__ == "__main__":
    typer.run(main)
