"""One model, and every estimator of its evidence."""

from pathlib import Path
from typing import Any

import torch

from pyro_vae import evaluate, fit, mlp_vae
from pyro_vae.evaluation import ais_bounds, log_evidence, refine
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.posteriors import DiagonalNormal, SemiAmortized
from pyro_vae.results.pictures import differences_of
from pyro_vae.results.row import Row, with_error
from pyro_vae.transforms import Binarize

TITLE = "One model, every estimator"
ABOUT = """Bits of scikit-learn's digits, 64-128-8, trained on 1,500 rows. All estimators estimate or bound the log
evidence of the same held-out rows: the ELBO is lowest, importance weighting rises to the evidence with the number of
draws, annealing (Neal, 2001) from the guide is a lower bound in expectation, and refined guides are in between.
Differences to 5,000 draws are paired by row. From both sides, on rows drawn from the model itself, annealing brackets
the evidence (Grosse et al., 2015). The gap is that of the upper bound to the lower, or of the evidence to the ELBO."""
DIGITS = 3
PICTURE = differences_of("to 5,000 draws", "nats to 5,000 importance-weighted draws, ± 2 standard errors")


def rows(*, short: bool, root: Path) -> list[Row]:
    """Means over held-out rows by each estimator."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    bits = (torch.tensor(digits.data, dtype=torch.float32) > 7).float()
    train, test = bits[:1500], bits[1500 : 1600 if short else None]
    options: dict[str, Any] = {"likelihood": Bernoulli(), "hidden_dims": (128,), "transform": Binarize(0, 1)}
    torch.manual_seed(0)
    vae = mlp_vae((64,), 8, **options)
    fit(vae, train, epochs=200, progress=False)
    reference = log_evidence(vae, test, num_particles=5000).log_evidence
    found = {"ELBO, 200 draws": per_row_elbo(vae, test)}
    for particles in (1, 5, 50, 500, 5000):
        seed = 1 if particles == 5000 else 0
        name = f"importance weighting, {particles:,} draw{'s' if particles > 1 else ''}"
        found[name] = log_evidence(vae, test, num_particles=particles, seed=seed).log_evidence
    refined = refine(vae, test)
    numbered = refined.rows()
    found["ELBO of refined guides"] = per_row_elbo(refined, numbered)
    found["importance weighting by them, 500 draws"] = log_evidence(refined, numbered, num_particles=500).log_evidence
    found["annealing from the guide, 200 steps"] = ais_bounds(vae, test, num_chains=16, num_steps=200).lower
    table: list[Row] = [
        {"": name, "log evidence, nats": with_error(values), "to 5,000 draws": with_error(values - reference)}
        for name, values in found.items()
    ]
    both = ais_bounds(vae, num_rows=len(test), num_chains=16, num_steps=200)
    table.append(
        {
            "": "annealing from both sides, on rows of the model: lower bound",
            "log evidence, nats": with_error(both.lower),
            "gap": with_error(both.gap),
        }
    )
    torch.manual_seed(0)
    amortized = mlp_vae((64,), 8, posterior=SemiAmortized(DiagonalNormal()), **options)
    fit(amortized, train, epochs=200, progress=False)
    evidence = log_evidence(amortized, test, num_particles=500).log_evidence
    table.append(
        {
            "": "another model, trained semi-amortised: importance weighting, 500 draws",
            "log evidence, nats": with_error(evidence),
            "gap": float(evidence.mean()) - evaluate(amortized, test)["elbo"],
        }
    )
    return table


def per_row_elbo(pair: Any, x: Any, num_draws: int = 200) -> torch.Tensor:
    """The ELBO of each row: the mean of the log weights of draws."""
    with torch.no_grad():
        draws = [pair.draws(pair.batch(x)).log_weights for _ in range(num_draws)]
    return torch.cat(draws).double().mean(0)
