"""IWAE's first table: the bound by its number of draws, and by its gradient."""

from pathlib import Path
from typing import Any

import torch

from pyro_vae import ImportanceWeighted, fit, make_vae
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import iwae_network
from pyro_vae.results.row import Row, with_error
from pyro_vae.transforms import Binarize

TITLE = "IWAE, one layer, by the number of draws"
ABOUT = """MNIST, binarised again at each step; 784-200-200-50 with tanh and the initialisation of Burda et al.,
*Importance Weighted Autoencoders*, 2016, Table 1. Published: minus the test log evidence with 5,000 draws after 3,280
epochs, and that of a rerun (github.com/nbip/IWAE). Short: two seeds, 20,000 rows, 6 epochs, the first 500 test rows,
500 draws, which only shows the order, and distances that training for longer closes. Differences to k = 1 are paired by
row and seed."""
DIGITS = 2
BOUNDS = {
    "k = 1": (ImportanceWeighted(1), "86.76", "86.35"),
    "k = 5": (ImportanceWeighted(5), "85.54", "85.18"),
    "k = 50": (ImportanceWeighted(50), "84.78", "84.59"),
    "k = 50, doubly reparameterised": (ImportanceWeighted(50, doubly_reparameterized=True), "", "84.32"),
}


def rows(*, short: bool, root: Path) -> list[Row]:
    """Evidence by each bound, and its difference to the first."""
    data = load_data("mnist", root)
    train, test = (data.x_train[:20000], data.x_test[:500]) if short else (data.x_train, data.x_test)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in BOUNDS}
    for seed in range(2 if short else 3):
        for name, (objective, *_) in BOUNDS.items():
            torch.manual_seed(seed)
            networks: Any = {"encoder_network": iwae_network, "decoder_network": iwae_network}
            vae: Any = make_vae((28, 28), 50, likelihood=Bernoulli(), transform=Binarize(0, 255), **networks)
            epochs = 6 if short else 800
            fit(vae, train, objective=objective, epochs=epochs, batch_size=100, seed=seed, progress=False)
            found[name].append(log_evidence(vae, test, num_particles=500 if short else 5000).log_evidence)
            print(f"seed {seed} {name}: {float(found[name][-1].mean()):.2f} nats", flush=True)
    first = torch.cat(found["k = 1"])
    return [
        {
            "": name,
            "−log evidence, nats": with_error([-float(values.mean()) for values in found[name]]),
            "to k = 1": None if name == "k = 1" else with_error(torch.cat(found[name]) - first),
            "published": published,
            "rerun": rerun,
        }
        for name, (_, published, rerun) in BOUNDS.items()
    ]
