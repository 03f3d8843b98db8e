"""Neural networks, tensor in and tensor out. Nothing here knows of probability.

Every network maps ``(*B, *in_shape)`` to ``(*B, *out_shape)`` for any number of batch dimensions ``B``, none included,
so that Pyro may put plates (particles, posterior samples) on the left. What it says of a row never depends on the other
rows: it normalises within a row, by layer or group, and has no statistics of a batch.
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
