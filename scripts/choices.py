"""The names that the command line knows, and the parts they stand for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro_vae import VAE, conv_vae, likelihoods, mlp_vae
from pyro_vae._support.arrays import in_chunks
from pyro_vae._support.moments import Moments
from pyro_vae._support.names import lookup
from pyro_vae._support.ranges import is_boolean
from pyro_vae.data.sources import DataSet
from pyro_vae.likelihoods import Likelihood
from pyro_vae.transforms import Compose, Dequantize, Transform, choose_transform

NETWORKS: Mapping[str, Callable[..., VAE]] = {"mlp": mlp_vae, "conv": conv_vae}


@dataclass(frozen=True)
class Choice:
    """What a likelihood may depend on: the data, and ``--scale``."""

    data: DataSet
    scale: Any

    @property
    def link(self) -> Any:
        """Sigmoid where the data have bounds."""
        return "linear" if self.data.bounds is None else "sigmoid"

    @property
    def num_levels(self) -> int:
        """Number of levels of data that have bounds."""
        if self.data.bounds is None or self.data.bounds[0] != 0 or self.data.x_train.dtype.is_floating_point:
            raise ValueError(
                f"this likelihood describes whole numbers from 0 to a known highest one, such as 8-bit grey levels, "
                f"which {self.data.name} does not hold: use --likelihood normal"
            )
        return int(self.data.bounds[1]) + 1


def _mixed(choice: Choice) -> Likelihood:
    if choice.data.schema is None:
        raise ValueError(f"mixed describes a table with columns of several kinds, which {choice.data.name} is not")
    return choice.data.schema.likelihood()


# A likelihood by name.
LIKELIHOODS: Mapping[str, Callable[[Choice], Likelihood]] = {
    "bernoulli": lambda choice: likelihoods.Bernoulli(),
    "continuous-bernoulli": lambda choice: likelihoods.ContinuousBernoulli(),
    "normal": lambda choice: likelihoods.Normal(choice.scale, choice.link),
    "laplace": lambda choice: likelihoods.Laplace(choice.scale, choice.link),
    "student-t": lambda choice: likelihoods.StudentT(scale=choice.scale, link=choice.link),
    "log-normal": lambda choice: likelihoods.LogNormal(choice.scale),
    "gamma": lambda choice: likelihoods.Gamma(),
    "beta": lambda choice: likelihoods.Beta(),
    "discretized-logistic": lambda choice: likelihoods.DiscretizedLogistic(choice.num_levels),
    "discretized-logistic-mixture": lambda choice: likelihoods.DiscretizedLogisticMixture(choice.num_levels),
    "categorical": lambda choice: likelihoods.Categorical(choice.num_levels),
    "poisson": lambda choice: likelihoods.Poisson(),
    "negative-binomial": lambda choice: likelihoods.NegativeBinomial(),
    "zero-inflated-poisson": lambda choice: likelihoods.ZeroInflatedPoisson(),
    "zero-inflated-negative-binomial": lambda choice: likelihoods.ZeroInflatedNegativeBinomial(),
    "mixed": _mixed,
}


def default_likelihood(data: DataSet) -> str:
    """The likelihood for data of which nothing else is said."""
    return "mixed" if data.schema is not None else "normal" if data.bounds is None else "bernoulli"


def choose(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The entry of a table under a name that a person typed."""
    return table[lookup(name, table, kind)]


def likelihood_and_transform(
    data: DataSet, name: str, scale: Any, *, dequantize: bool
) -> tuple[Likelihood, Transform, str]:
    """The likelihood of this name, the transform that brings the data into its range, and why that one."""
    choice = Choice(data, scale)
    likelihood = choose(LIKELIHOODS, name, "likelihood")(choice)
    x = data.x_train
    if is_boolean(likelihood.data_range) and data.bounds is None:
        moments = Moments()
        for rows in in_chunks(x):
            moments.add(rows.flatten()[:, None])
        raise ValueError(
            f"bernoulli describes 0 or 1, or grey levels to draw bits from, but {data.name} has values from "
            f"{float(moments.low):g} to {float(moments.high):g}: use --likelihood normal"
        )
    if not dequantize:
        transform, why = choose_transform(x, likelihood.data_range, data.bounds)
        return likelihood, transform, why
    spread = Dequantize(choice.num_levels)
    parts = (spread(rows.float()) for rows in in_chunks(x))
    transform, why = choose_transform(parts, likelihood.data_range, (0.0, choice.num_levels))
    return likelihood, Compose((spread, transform)), why
