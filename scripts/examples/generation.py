"""Digits drawn in six ways from one trained VAE, and digits completed from their upper halves."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

from pyro_vae import fit, mlp_vae
from pyro_vae.evaluation import active_latents
from pyro_vae.generation import aggregate_posterior, attribute_direction, conditional, moved_along, traverse
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.plotting import plot_grid, plot_traversal, save_figure
from pyro_vae.transforms import Binarize


def main(
    out: Annotated[Path, typer.Option(help="The picture to write; a second one, with traversals, goes next to it.")],
    epochs: Annotated[int, typer.Option(help="Passes over the data.")] = 60,
) -> None:
    """Trains a VAE and draws from it."""
    torch.manual_seed(0)
    digits: Any = load_digits()
    x, labels = torch.tensor(digits.images, dtype=torch.float32), torch.tensor(digits.target)
    train, test = slice(0, 1500), slice(1500, None)
    vae = mlp_vae((8, 8), 8, hidden_dims=(200,), likelihood=Bernoulli(), transform=Binarize(0, 16))
    fit(vae, x[train], epochs=epochs, seed=0, progress=False)

    rows = {
        "the prior": vae.sample(16, mean=True),
        "temperature 0.7": vae.sample(16, temperature=0.7, mean=True),
        "mixture of codes": aggregate_posterior(vae, x[train], num_components=30).sample(16, mean=True),
        "flow of codes": aggregate_posterior(vae, x[train], "flow", max_epochs=60).sample(16, mean=True),
    }
    ones = x[test][labels[test] == 1][:4]
    sevens, others = labels[train] == 7, labels[train] == 1
    direction = attribute_direction(vae, x[train], sevens) - attribute_direction(vae, x[train], others)
    rows["from 1 towards 7"] = moved_along(vae, ones, direction, [0.0, 0.3, 0.6, 0.9]).movedim(1, 0).flatten(0, 1)

    whole = x[test][:4]
    mask = torch.ones_like(whole, dtype=torch.bool)
    mask[:, 4:] = False
    found = conditional(vae, {"x": whole, "mask": mask}, 100)
    print(found)
    drawn = found.draws[:, :, 4:].gt(0).float().mean(0) * 16  # how often a pixel is on
    completed = torch.cat([whole[:, :4], drawn], 1)
    rows["data; half; completed"] = torch.cat([whole, whole * mask, completed, vae.reconstruct(whole)])
    grid = torch.stack(list(rows.values()))
    save_figure(plot_grid(grid, bounds=(0, 16), row_labels=list(rows)), out)
    active = active_latents(vae, x[train]).nonzero()[:, 0].tolist()
    steps = traverse(vae, x[test][:1], latents=active, steps=11)
    save_figure(
        plot_traversal(steps, [f"z[{i}]" for i in active], bounds=(0, 16)),
        out.with_name(f"{out.stem}-traversals{out.suffix}"),
    )


if __name__ == "__main__":
    typer.run(main)
