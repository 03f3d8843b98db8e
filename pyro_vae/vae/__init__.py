r"""The pair that most people want, put together for them: one latent vector, a prior, a decoder, an encoder."""

from pyro_vae.programs.saving import CONFIG, FORMAT_VERSION, WEIGHTS, load_config
from pyro_vae.vae.builders import conv_vae, make_vae, mlp_vae, recurrent_vae
from pyro_vae.vae.categorical import categorical_vae
from pyro_vae.vae.ladder import LadderVAE, ladder_vae
from pyro_vae.vae.model import VAE
from pyro_vae.vae.saving import load
from pyro_vae.vae.vector_quantized import VectorQuantizedVAE, vector_quantized_vae

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "VAE",
    "WEIGHTS",
    "LadderVAE",
    "VectorQuantizedVAE",
    "categorical_vae",
    "conv_vae",
    "ladder_vae",
    "load",
    "load_config",
    "make_vae",
    "mlp_vae",
    "recurrent_vae",
    "vector_quantized_vae",
]
