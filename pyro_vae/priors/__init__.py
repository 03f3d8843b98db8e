"""Priors p(z): modules that are called with nothing and return a distribution over the latent vector."""

from pyro_vae.priors.base import Prior, StandardNormal
from pyro_vae.priors.codes import AutoregressiveCodes, IndependentCodes
from pyro_vae.priors.dirichlet import SoftmaxDirichlet
from pyro_vae.priors.flows import FlowPrior
from pyro_vae.priors.mixtures import NormalMixture, VampPrior

__all__ = [
    "AutoregressiveCodes",
    "FlowPrior",
    "IndependentCodes",
    "NormalMixture",
    "Prior",
    "SoftmaxDirichlet",
    "StandardNormal",
    "VampPrior",
]
