"""VAEs with one part replaced: priors, posteriors, objectives and networks, otherwise the same."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae import (
    Elbo,
    ImportanceWeighted,
    InfoVae,
    TotalCorrelation,
    evaluate,
    fit,
    ladder_vae,
    make_vae,
    mlp_vae,
    posteriors,
    priors,
)
from pyro_vae.data.dataset import DataSet
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.networks import GatedMLP, ResidualConvDecoder, ResidualConvEncoder
from pyro_vae.transforms import Transform

# Differences to the first: prior, posterior, objective, networks.
PARTS: Mapping[str, dict[str, Any]] = {
    "standard": {},
    "standard, KL of draws": {"objective": Elbo()},  # as for parts without a KL in closed form
    "normal mixture prior": {"prior": priors.NormalMixture},
    "VampPrior": {"prior": priors.VampPrior},
    "flow prior": {"prior": priors.FlowPrior},
    "full covariance": {"posterior": posteriors.FullNormal},
    "low rank": {"posterior": posteriors.LowRankNormal},
    "mixture posterior": {"posterior": posteriors.MixturePosterior},
    "Householder": {"posterior": posteriors.Householder},
    "flow posterior": {"posterior": posteriors.FlowPosterior},
    "flow prior and posterior": {"prior": priors.FlowPrior, "posterior": posteriors.FlowPosterior},
    "IWAE 5": {"objective": ImportanceWeighted(5)},
    "IWAE 5 doubly": {"objective": ImportanceWeighted(5, doubly_reparameterized=True)},
    "IWAE 50": {"objective": ImportanceWeighted(50)},
    "IWAE 50 doubly": {"objective": ImportanceWeighted(50, doubly_reparameterized=True)},
    "total correlation": {"objective": TotalCorrelation(6.0)},
    "MMD": {"objective": InfoVae(100.0)},
    "gated networks": {"networks": (GatedMLP, GatedMLP)},
    "gated VampPrior": {"networks": (GatedMLP, GatedMLP), "prior": priors.VampPrior},
    "VampPrior, two levels": {"levels": 2, "prior": priors.VampPrior},
    "flow prior, residual networks": {
        "networks": (ResidualConvEncoder, ResidualConvDecoder),
        "prior": priors.FlowPrior,
    },
}


def trained(
    data: DataSet,
    parts: Mapping[str, Any],
    *,
    transform: Transform,
    latent_dim: int,
    epochs: int,
    num_rows: int | None,
    test_rows: int,
    num_particles: int,
    device: str = "auto",
) -> tuple[dict[str, Any], Tensor]:
    """A model's metrics, and the evidence of each test row."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "likelihood": Bernoulli(),
        "transform": transform,
        "prior": parts.get("prior", priors.StandardNormal)(latent_dim),
    }
    posterior, hidden_dims = parts.get("posterior", posteriors.DiagonalNormal)(), (300, 300)
    shape, x_test = tuple(data.x_train.shape[1:]), data.x_test[:test_rows]
    if levels := parts.get("levels"):
        vae: Any = ladder_vae(shape, (latent_dim,) * levels, hidden_dims=hidden_dims, **common)
    elif networks := parts.get("networks"):
        encoder, decoder = networks
        vae = make_vae(
            shape, latent_dim, encoder_network=encoder, decoder_network=decoder, posterior=posterior, **common
        )
    else:
        vae = mlp_vae(shape, latent_dim, hidden_dims=hidden_dims, posterior=posterior, **common)
    started = time.perf_counter()
    objective = parts.get("objective", Elbo(kl="auto"))
    fit(vae, data.x_train[:num_rows], objective=objective, epochs=epochs, device=device, progress=False)
    seconds = time.perf_counter() - started
    metrics = evaluate(vae, x_test)
    found = log_evidence(vae, x_test, num_particles=num_particles)
    return {
        "evidence": float(found.log_evidence.mean()),
        "elbo": metrics["elbo"],
        "rate": metrics["rate"],
        "active_units": metrics.get("active_units"),
        "seconds": seconds,
    }, found.log_evidence
