"""Neural networks, tensor in and tensor out. Nothing here depends on probability.

Every network maps ``(*B, *in_shape)`` to ``(*B, *out_shape)`` for any number of batch dimensions ``B``, including none,
so Pyro can add plates (particles, posterior samples) on the left. The output for a row never depends on the other rows:
networks normalise within a row, by layer or group, and use no batch statistics.
"""

from pyro_vae.networks.base import ACTIVATIONS, NORMALIZATIONS, Normalization
from pyro_vae.networks.convolutional import (
    UPSAMPLES,
    ConvDecoder,
    ConvEncoder,
    GatedConvDecoder,
    GatedConvEncoder,
    ResidualConvDecoder,
    ResidualConvEncoder,
    Upsample,
)
from pyro_vae.networks.fully_connected import MLP, GatedMLP, ResidualMLP
from pyro_vae.networks.premade import (
    VampPriorConvDecoder,
    VampPriorConvEncoder,
    iwae_network,
    vamp_prior_network,
)
from pyro_vae.networks.sequences import RecurrentDecoder, RecurrentEncoder
from pyro_vae.networks.topics import TopicDecoder
from pyro_vae.networks.transitions import GatedTransition

__all__ = [
    "ACTIVATIONS",
    "MLP",
    "NORMALIZATIONS",
    "UPSAMPLES",
    "ConvDecoder",
    "ConvEncoder",
    "GatedConvDecoder",
    "GatedConvEncoder",
    "GatedMLP",
    "GatedTransition",
    "Normalization",
    "RecurrentDecoder",
    "RecurrentEncoder",
    "ResidualConvDecoder",
    "ResidualConvEncoder",
    "ResidualMLP",
    "TopicDecoder",
    "Upsample",
    "VampPriorConvDecoder",
    "VampPriorConvEncoder",
    "iwae_network",
    "vamp_prior_network",
]
