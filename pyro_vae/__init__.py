"""Variational autoencoders on Pyro and PyTorch: train, look, sample, predict, and check the numbers."""

from typing import TYPE_CHECKING

from pyro_vae._support.lazy import lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyro_vae.evaluation import check_pair, evaluate
    from pyro_vae.inference.aggregate import InfoVae, TotalCorrelation
    from pyro_vae.inference.importance import ImportanceWeighted, Renyi
    from pyro_vae.inference.objectives import Elbo
    from pyro_vae.pair import Batch, Pair
    from pyro_vae.training import epochs, fit
    from pyro_vae.vae import (
        VAE,
        ClusterVAE,
        ConditionalVAE,
        SemiSupervisedVAE,
        cluster_vae,
        conditional_vae,
        conv_vae,
        load,
        make_vae,
        mlp_vae,
        semi_supervised_vae,
    )

__all__ = [
    "VAE",
    "Batch",
    "ClusterVAE",
    "ConditionalVAE",
    "Elbo",
    "ImportanceWeighted",
    "InfoVae",
    "Pair",
    "Renyi",
    "SemiSupervisedVAE",
    "TotalCorrelation",
    "__version__",
    "check_pair",
    "cluster_vae",
    "conditional_vae",
    "conv_vae",
    "epochs",
    "evaluate",
    "fit",
    "load",
    "make_vae",
    "mlp_vae",
    "semi_supervised_vae",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "evaluation": ["check_pair", "evaluate"],
        "inference.aggregate": ["InfoVae", "TotalCorrelation"],
        "inference.importance": ["ImportanceWeighted", "Renyi"],
        "inference.objectives": ["Elbo"],
        "pair": ["Batch", "Pair"],
        "training": ["epochs", "fit"],
        "vae": [
            "VAE",
            "ClusterVAE",
            "ConditionalVAE",
            "SemiSupervisedVAE",
            "cluster_vae",
            "conditional_vae",
            "conv_vae",
            "load",
            "make_vae",
            "mlp_vae",
            "semi_supervised_vae",
        ],
    },
)
