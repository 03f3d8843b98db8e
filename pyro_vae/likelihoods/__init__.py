r"""Likelihoods :math:`p(x \mid z)`: the distribution of the data given the decoder's output.

One class for each kind of data. The docstring of :class:`Likelihood` says how to add one.
"""

from pyro_vae.likelihoods.base import Anchored, Dispersed, Likelihood
from pyro_vae.likelihoods.bits import Bernoulli, ContinuousBernoulli
from pyro_vae.likelihoods.counts import (
    Multinomial,
    NegativeBinomial,
    Poisson,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.likelihoods.levels import Categorical, DiscretizedLogistic, DiscretizedLogisticMixture
from pyro_vae.likelihoods.mixed import Mixed
from pyro_vae.likelihoods.positive import Beta, Gamma, LogNormal
from pyro_vae.likelihoods.real import Laplace, Normal, StudentT

__all__ = [
    "Anchored",
    "Bernoulli",
    "Beta",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "DiscretizedLogisticMixture",
    "Dispersed",
    "Gamma",
    "Laplace",
    "Likelihood",
    "LogNormal",
    "Mixed",
    "Multinomial",
    "NegativeBinomial",
    "Normal",
    "Poisson",
    "StudentT",
    "ZeroInflatedNegativeBinomial",
    "ZeroInflatedPoisson",
]
