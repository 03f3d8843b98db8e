"""Distributions that Pyro and PyTorch lack."""

from pyro_vae.distributions.bits import Bernoulli
from pyro_vae.distributions.codes import AutoregressiveOneHots, OneHots, Quantized, nearest_codes
from pyro_vae.distributions.columns import Columns
from pyro_vae.distributions.counts import Multinomial, ZeroInflated
from pyro_vae.distributions.flows import Flow
from pyro_vae.distributions.levels import DiscretizedLogistic, Kinds, Levels
from pyro_vae.distributions.normals import MixtureOfNormals, product_of_normals
from pyro_vae.distributions.proportions import ContinuousBernoulli

__all__ = [
    "AutoregressiveOneHots",
    "Bernoulli",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Flow",
    "Kinds",
    "Levels",
    "MixtureOfNormals",
    "Multinomial",
    "OneHots",
    "Quantized",
    "ZeroInflated",
    "nearest_codes",
    "product_of_normals",
]
