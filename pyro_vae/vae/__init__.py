r"""Premade pairs. The one that most people want has one latent vector, a prior, a decoder and an encoder."""

from pyro_vae.programs.saving import CONFIG, FORMAT_VERSION, WEIGHTS, load_config
from pyro_vae.vae.builders import conv_vae, make_vae, mlp_vae, recurrent_vae
from pyro_vae.vae.categorical import categorical_vae
from pyro_vae.vae.clusters import ClusterVAE, cluster_vae
from pyro_vae.vae.conditional import ConditionalVAE, conditional_vae
from pyro_vae.vae.ladder import LadderVAE, ladder_vae
from pyro_vae.vae.model import VAE
from pyro_vae.vae.multimodal import MultimodalVAE, multimodal_vae
from pyro_vae.vae.pooled import PooledVAE, pooled_vae
from pyro_vae.vae.saving import load
from pyro_vae.vae.semi_supervised import SemiSupervisedVAE, semi_supervised_vae
from pyro_vae.vae.sequences import DeepMarkovModel, deep_markov_model
from pyro_vae.vae.topics import TopicModel, topic_model
from pyro_vae.vae.vector_quantized import VectorQuantizedVAE, vector_quantized_vae

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "VAE",
    "WEIGHTS",
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
    "load_config",
    "make_vae",
    "mlp_vae",
    "multimodal_vae",
    "pooled_vae",
    "recurrent_vae",
    "semi_supervised_vae",
    "topic_model",
    "vector_quantized_vae",
]
