"""Digits as a few codes: a codebook of vectors, and a learned prior over the codes, from which new digits are drawn."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from sklearn.datasets import load_digits

sys.path.append(str(Path(__file__).parents[1]))
from pyro_vae import evaluate, fit, plotting, vector_quantized_vae
from pyro_vae.cli.running import run_command
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.priors import IndependentCodes
from pyro_vae.transforms import Binarize

NUM_CODES, NUM_VALUES, NUM_DRAWS = 4, 16, 12


def main(
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("codes.png"),
    epochs: Annotated[int, typer.Option(help="Number of passes over the data.")] = 150,
) -> None:
    """Trains a vector-quantised VAE, and draws digits from its prior and with independent codes."""
    digits: Any = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)  # 8 x 8, from 0 to 16
    torch.manual_seed(0)
    vae = vector_quantized_vae(
        (8, 8), NUM_CODES, NUM_VALUES, likelihood=Bernoulli(), hidden_dims=(128,), transform=Binarize(0, 16)
    )
    fit(vae, x, epochs=epochs, learning_rate=2e-3, progress=False)
    codes = vae.codes(x)
    found = evaluate(vae, x)
    print(f"{len(codes.unique(dim=0))} of {NUM_VALUES**NUM_CODES:,} combinations are in use")
    print(
        f"a digit takes {found['rate']:.1f} nats; {torch.tensor(NUM_VALUES).log() * NUM_CODES:.1f} with a uniform prior"
    )

    # How often each code occurs, independently of the others.
    alone = IndependentCodes(NUM_CODES, NUM_VALUES)
    counts = torch.stack([column.bincount(minlength=NUM_VALUES) for column in codes.T])
    alone.logits.data = (counts + 1e-3).log()
    blocks = alone().sample((NUM_DRAWS,)).unflatten(-1, (NUM_CODES, NUM_VALUES))
    rows = {
        "digits": x[:NUM_DRAWS],
        "by their codes": vae.reconstruct(x[:NUM_DRAWS]),
        "drawn from the prior": vae.sample(NUM_DRAWS, mean=True),
        "drawn code by code": vae.mean_at(vae.vectors(blocks.argmax(-1))),
    }
    figure = plotting.plot_grid(torch.stack(list(rows.values())), bounds=(0, 16), row_labels=list(rows))
    plotting.save_figure(figure, out)


if __name__ == "__main__":
    run_command(main)
