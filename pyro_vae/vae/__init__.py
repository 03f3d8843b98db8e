r"""The pair that most people want, put together for them: one latent vector, a prior, a decoder, an encoder."""

from pyro_vae.programs.saving import CONFIG, FORMAT_VERSION, WEIGHTS, load_config
from pyro_vae.vae.builders import conv_vae, make_vae, mlp_vae
from pyro_vae.vae.clusters import ClusterVAE, cluster_vae
from pyro_vae.vae.conditional import ConditionalVAE, conditional_vae
from pyro_vae.vae.model import VAE
from pyro_vae.vae.saving import load
from pyro_vae.vae.semi_supervised import SemiSupervisedVAE, semi_supervised_vae

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "VAE",
    "WEIGHTS",
    "ClusterVAE",
    "ConditionalVAE",
    "SemiSupervisedVAE",
    "cluster_vae",
    "conditional_vae",
    "conv_vae",
    "load",
    "load_config",
    "make_vae",
    "mlp_vae",
    "semi_supervised_vae",
]
