"""The gain from a learned prior."""

from pathlib import Path

import torch

from pyro_vae.data.sources import load_data
from pyro_vae.results.parts import PARTS, trained
from pyro_vae.results.row import Row, with_error
from pyro_vae.transforms import Binarize

TITLE = "Priors"
ABOUT = """MNIST, binarised again at each step; 784-300-300-40, the same initialisation and budget for all. Published,
for a VampPrior after up to 2,000 epochs: 84.45 ± 0.12 → 82.43 ± 0.06 (minus the log evidence; Norouzi et al.,
*Exemplar VAE*, 2020, table 1). Short: 20,000 rows, 10 epochs, the first 500 test rows, 500 draws. Full: also a
VampPrior with gated networks and on the second of two levels, and a flow prior with residual convolutions.
Differences are paired by row."""
DIGITS = 2
NOTES = """In such a short run a VampPrior's inputs are not learned yet, while a flow already helps. After 20 epochs on
all rows both gain more than two nats: [parts.md](parts.md)."""
NAMES = ("standard, KL of draws", "normal mixture prior", "VampPrior", "flow prior")
FULL = (*NAMES, "gated VampPrior", "VampPrior, two levels", "flow prior, residual networks")


def rows(*, short: bool, root: Path) -> list[Row]:
    """Evidence with each prior, and its difference to the standard normal."""
    data = load_data("mnist", root)
    found: dict[str, torch.Tensor] = {}
    table: list[Row] = []
    for name in NAMES if short else FULL:
        made, found[name] = trained(
            data,
            PARTS[name],
            transform=Binarize(0, 255),
            latent_dim=40,
            epochs=10 if short else 200,
            num_rows=20000 if short else None,
            test_rows=500 if short else 10000,
            num_particles=500 if short else 5000,
        )
        print(f"{name}: {made['evidence']:.2f} nats", flush=True)
        table.append(
            {
                "": name,
                "log evidence, nats": with_error(found[name]),
                "to the first": with_error(found[name] - found[NAMES[0]]) if name != NAMES[0] else None,
                "rate": made["rate"],
                "active latents": made["active_units"],
            }
        )
    return table
