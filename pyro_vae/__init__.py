"""Variational autoencoders on Pyro and PyTorch: train, explore, sample, predict, and check the numbers."""

from typing import TYPE_CHECKING

from pyro_vae._support.lazy import lazily

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyro_vae.estimator import VAETransformer
    from pyro_vae.evaluation import check_pair, evaluate
    from pyro_vae.inference.aggregate import InfoVae, TotalCorrelation
    from pyro_vae.inference.importance import ImportanceWeighted, Renyi
    from pyro_vae.inference.objectives import Elbo
    from pyro_vae.inference.wake_sleep import WakeSleep
    from pyro_vae.pair import Batch, Pair
    from pyro_vae.training import epochs, fit
    from pyro_vae.vae import (
        VAE,
        ClusterVAE,
        ConditionalVAE,
        DeepMarkovModel,
        LadderVAE,
        MultimodalVAE,
        PooledVAE,
        SemiSupervisedVAE,
        TopicModel,
        VectorQuantizedVAE,
        categorical_vae,
        cluster_vae,
        conditional_vae,
        conv_vae,
        deep_markov_model,
        ladder_vae,
        load,
        make_vae,
        mlp_vae,
        multimodal_vae,
        pooled_vae,
        recurrent_vae,
        semi_supervised_vae,
        topic_model,
        vector_quantized_vae,
    )

__all__ = [
    "VAE",
    "Batch",
    "ClusterVAE",
    "ConditionalVAE",
    "DeepMarkovModel",
    "Elbo",
    "ImportanceWeighted",
    "InfoVae",
    "LadderVAE",
    "MultimodalVAE",
    "Pair",
    "PooledVAE",
    "Renyi",
    "SemiSupervisedVAE",
    "TopicModel",
    "TotalCorrelation",
    "VAETransformer",
    "VectorQuantizedVAE",
    "WakeSleep",
    "__version__",
    "categorical_vae",
    "check_pair",
    "cluster_vae",
    "conditional_vae",
    "conv_vae",
    "deep_markov_model",
    "epochs",
    "evaluate",
    "fit",
    "ladder_vae",
    "load",
    "make_vae",
    "mlp_vae",
    "multimodal_vae",
    "pooled_vae",
    "recurrent_vae",
    "semi_supervised_vae",
    "topic_model",
    "vector_quantized_vae",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "estimator": ["VAETransformer"],
        "evaluation": ["check_pair", "evaluate"],
        "inference.aggregate": ["InfoVae", "TotalCorrelation"],
        "inference.importance": ["ImportanceWeighted", "Renyi"],
        "inference.objectives": ["Elbo"],
        "inference.wake_sleep": ["WakeSleep"],
        "pair": ["Batch", "Pair"],
        "training": ["epochs", "fit"],
        "vae": [
            "VAE",
            "ClusterVAE",
            "ConditionalVAE",
            "DeepMarkovModel",
            "LadderVAE",
            "MultimodalVAE",
            "PooledVAE",
            "SemiSupervisedVAE",
            "TopicModel",
            "VectorQuantizedVAE",
            "categorical_vae",
            "cluster_vae",
            "conditional_vae",
            "conv_vae",
            "deep_markov_model",
            "ladder_vae",
            "load",
            "make_vae",
            "mlp_vae",
            "multimodal_vae",
            "pooled_vae",
            "recurrent_vae",
            "semi_supervised_vae",
            "topic_model",
            "vector_quantized_vae",
        ],
    },
)
