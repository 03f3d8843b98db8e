"""Variational autoencoders on Pyro and PyTorch: train, look, sample, predict, and check the numbers."""

__version__ = "0.1.0"

from pyro_vae.evaluation import evaluate
from pyro_vae.loading import load
from pyro_vae.pair import Pair
from pyro_vae.training.fit import fit
from pyro_vae.vae import VAE, conv_vae, mlp_vae

__all__ = ["VAE", "Pair", "__version__", "conv_vae", "evaluate", "fit", "load", "mlp_vae"]
