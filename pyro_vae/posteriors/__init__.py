r"""Posterior families :math:`q(z \mid x)`: distributions of the latents given a row."""

from pyro_vae.posteriors.base import Posterior
from pyro_vae.posteriors.codes import Codes
from pyro_vae.posteriors.flows import FlowPosterior, Householder
from pyro_vae.posteriors.mixtures import MixturePosterior
from pyro_vae.posteriors.normal import DiagonalNormal, FullNormal, LowRankNormal
from pyro_vae.posteriors.semi_amortized import SemiAmortized

__all__ = [
    "Codes",
    "DiagonalNormal",
    "FlowPosterior",
    "FullNormal",
    "Householder",
    "LowRankNormal",
    "MixturePosterior",
    "Posterior",
    "SemiAmortized",
]
