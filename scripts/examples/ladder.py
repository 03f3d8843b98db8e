"""Two levels of latents on the digits: what the upper level determines, and what the lower one adds."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import Elbo, evaluate, fit, ladder_vae, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize

NUM_DRAWS = 9


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("ladder.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 150,
) -> None:
    """Trains two levels, 16 latents and 2 above them, and draws digits with the same upper level."""
    digits: Any = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)  # 8 x 8, from 0 to 16
    torch.manual_seed(0)
    vae = ladder_vae((8, 8), latent_dims=(16, 2), likelihood=Bernoulli(), hidden_dims=(128,), transform=Binarize(0, 16))
    fit(vae, x, objective=Elbo(kl_warmup=0.5), epochs=epochs, learning_rate=2e-3, progress=False)
    found = evaluate(vae, x)
    for level in ("z_1", "z_2"):
        print(f"{level}: {found[f'rate_{level}']:.2f} nats, {found[f'active_units_{level}']} latents in use")

    # Each row of pictures has one z_2; z_1 is drawn again for each picture.
    where = torch.linspace(-1.5, 1.5, 6)
    z_2 = torch.stack([where, -where], -1).repeat_interleave(NUM_DRAWS, 0)
    with torch.no_grad():
        z_1 = vae.conditionals[0](z_2).sample()
    pictures = vae.mean_at({"z_1": z_1, "z_2": z_2}).reshape(len(where), NUM_DRAWS, 8, 8)
    labels = [f"z₂ = ({a:.1f}, {-a:.1f})" for a in where.tolist()]
    title = "digits with the same upper level; the lower one drawn again"
    plotting.save_figure(plotting.plot_grid(pictures, bounds=(0, 16), row_labels=labels, title=title), out)


if __name__ == "__main__":
    run_command(main)
