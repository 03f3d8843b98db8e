"""Upper halves, lower halves and labels of digits: any of them from any others."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import Elbo, fit, multimodal_vae, plotting
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Bernoulli, Categorical


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("multimodal.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 80,
) -> None:
    """Trains on all three together and each alone, and draws missing modalities given the observed ones."""
    digits: Any = load_digits()
    bits, labels = torch.tensor(digits.images > 7).float(), torch.tensor(digits.target)
    upper, lower, half = bits[:, :4], bits[:, 4:], ((4, 8), Bernoulli())
    kinds = Categorical(10, ordered=False)
    torch.manual_seed(0)
    vae = multimodal_vae({"x": half, "lower": half, "label": ((), kinds)}, latent_dim=10, hidden_dims=(128,))
    rows = {"x": upper[:1500], "lower": lower[:1500], "label": labels[:1500]}
    warm = Elbo(kl="auto", kl_warmup=0.5)  # else the prior, also an expert, drowns out the others
    fit(vae, vae.each_alone(rows), objective=warm, epochs=epochs, batch_size=100, learning_rate=4e-3, progress=False)

    new = torch.stack([torch.nonzero(labels[1500:] == digit)[0, 0] + 1500 for digit in range(10)])
    given_upper = vae.draw_given({"x": upper[new]}, 100, num_particles=500)
    given_both = vae.draw_given({"x": upper[new], "label": labels[new]}, 100, num_particles=500)
    given_label = vae.draw_given({"label": labels[new]}, 100, num_particles=500)
    guessed = vae.draw_given({"x": upper[1500:], "lower": lower[1500:]}, 25)["label"].mode(0).values
    accuracy = float((guessed == labels[1500:]).float().mean())

    def whole(top: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
        return torch.cat([top, bottom], -2)

    rows_of_tiles = {
        "new digits": bits[new],
        "upper halves": whole(upper[new], torch.full_like(lower[new], 0.5)),
        "lower halves\ngiven them": whole(upper[new], given_upper["lower"].mean(0)),
        "given labels,\ntoo": whole(upper[new], given_both["lower"].mean(0)),
        "given labels\nalone": whole(given_label["x"].mean(0), given_label["lower"].mean(0)),
    }
    title = f"means of 100 draws; label given picture: {accuracy:.0%} right of 297 new digits"
    grid = torch.stack(list(rows_of_tiles.values()))
    plotting.save_figure(plotting.plot_grid(grid, row_labels=list(rows_of_tiles), title=title), out)


if __name__ == "__main__":
    run_command(main)
