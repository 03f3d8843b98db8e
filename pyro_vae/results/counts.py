"""Counts: which likelihood fits their zeros and their spread."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae import fit, mlp_vae
from pyro_vae.data.sources import split
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from pyro_vae.results.row import Row, spread, with_error

TITLE = "Counts of visits to a doctor"
ABOUT = """RAND's health insurance experiment (Newhouse, 1993), as shipped with statsmodels (public domain): visits of a
person in a year (`mdvis`), 20,190 of them, with two latents and no covariates. Evidence of a held-out fifth, and the
share of zeros among draws. Differences to the Poisson are paired by row. Short: two
seeds, 10 epochs; full: five, 40."""
DIGITS = 3
NOTES = """All four are equally good: with two latents for each person, a Poisson gets all the spread and the zeros that
the others have in their formula. On single cells, where 765 genes share ten latents, they differ: the next table."""
LIKELIHOODS = {
    "Poisson": Poisson,
    "zero-inflated Poisson": ZeroInflatedPoisson,
    "negative binomial": NegativeBinomial,
    "zero-inflated negative binomial": ZeroInflatedNegativeBinomial,
}


def rows(*, short: bool, root: Path) -> list[Row]:
    """Evidence and zeros by likelihood."""
    visits = load_visits()
    found: dict[str, list[Tensor]] = {name: [] for name in LIKELIHOODS}
    zeros: dict[str, list[float]] = {name: [] for name in LIKELIHOODS}
    truth: list[float] = []
    for seed in range(2 if short else 5):
        kept, held = split(len(visits), 0.2, seed)
        truth.append(100 * float((visits[held] == 0).double().mean()))
        for name, likelihood in LIKELIHOODS.items():
            torch.manual_seed(seed)
            vae = mlp_vae((1,), 2, likelihood=likelihood(), hidden_dims=(32,))
            fit(vae, visits[kept], epochs=10 if short else 40, learning_rate=2e-3, seed=seed, progress=False)
            found[name].append(log_evidence(vae, visits[held], num_particles=200).log_evidence)
            torch.manual_seed(seed)
            zeros[name].append(100 * float((vae.sample(20000) == 0).double().mean()))
            print(f"seed {seed} {name}: {float(found[name][-1].mean()):.3f}, {zeros[name][-1]:.1f}% zeros", flush=True)
    return [*compared(found, zeros), {"": "held-out rows", "zeros, %": float(np.mean(truth))}]


def compared(found: Mapping[str, Sequence[Tensor]], zeros: Mapping[str, Sequence[float]]) -> list[Row]:
    """A row for each model: evidence of all held-out rows, paired differences to the Poisson, zeros of each seed."""
    first = torch.cat(tuple(found["Poisson"]))
    table: list[Row] = []
    for name, seeds in found.items():
        values = torch.cat(tuple(seeds))
        row: Row = {"": name, "log evidence, nats": with_error(values)}
        if name != "Poisson":
            row["to the Poisson"] = with_error(values - first)
        table.append({**row, "zeros, %": spread(zeros[name])})
    return table


def load_visits() -> Tensor:
    """Visits of each person in a year."""
    try:
        from statsmodels.datasets import randhie  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("these counts come with statsmodels: pip install 'pyro-vae[results]'") from error
    frame: Any = randhie.load_pandas().data
    return torch.tensor(frame["mdvis"].to_numpy(), dtype=torch.float32)[:, None]
