"""Priors p(z): modules whose call, without arguments, returns a distribution over the latent vector."""

from pyro_vae.priors.base import Prior, StandardNormal
from pyro_vae.priors.classes import ClassPrior
from pyro_vae.priors.codes import AutoregressiveCodes, IndependentCodes
from pyro_vae.priors.dirichlet import SoftmaxDirichlet
from pyro_vae.priors.flows import FlowPrior
from pyro_vae.priors.mixtures import NormalMixture, VampPrior

__all__ = [
    "AutoregressiveCodes",
    "ClassPrior",
    "FlowPrior",
    "IndependentCodes",
    "NormalMixture",
    "Prior",
    "SoftmaxDirichlet",
    "StandardNormal",
    "VampPrior",
]
