"""The names that the command line accepts, and the parts that they stand for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pyro_vae import ImportanceWeighted, InfoVae, Renyi, TotalCorrelation, WakeSleep, likelihoods, posteriors, priors
from pyro_vae._support.arrays import as_tensor, in_chunks
from pyro_vae._support.moments import Moments
from pyro_vae._support.names import lookup
from pyro_vae._support.ranges import is_boolean
from pyro_vae.cli.models import MODELS
from pyro_vae.data.dataset import BITS, COUNTS, COUNTS_OR_LEVELS, INTENSITIES, DataSet
from pyro_vae.data.tables.names import quoted
from pyro_vae.likelihoods import Likelihood
from pyro_vae.transforms import Compose, Dequantize, Transform, choose_transform
from pyro_vae.vae.builders import Networks, conv_networks, mlp_networks, recurrent_networks

__all__ = ["AGGREGATE", "LIKELIHOODS", "MODELS", "NETWORKS", "POSTERIORS", "PRIORS", "WEIGHTED"]

_FULLY_CONNECTED = ("hidden_dims", "activation", "normalization")
_CONVOLUTIONAL = ("channels", "upsample", "activation", "normalization")
# The function that builds an encoder's and a decoder's network, and its options.
NETWORKS: Mapping[str, tuple[Callable[..., Networks], tuple[str, ...]]] = {
    "mlp": (mlp_networks, _FULLY_CONNECTED),
    "gated": (partial(mlp_networks, block="gated"), ("hidden_dims", "normalization")),
    "residual": (partial(mlp_networks, block="residual"), _FULLY_CONNECTED),
    "conv": (conv_networks, _CONVOLUTIONAL),
    "gated-conv": (partial(conv_networks, block="gated"), ("channels", "upsample", "normalization")),
    "residual-conv": (partial(conv_networks, block="residual"), _CONVOLUTIONAL),
    "conv1d": (partial(conv_networks, num_dims=1), _CONVOLUTIONAL),
    "recurrent": (recurrent_networks, ("hidden_dims",)),
}
PRIORS: Mapping[str, Callable[[int], priors.Prior]] = {  # by the number of latents
    "standard-normal": priors.StandardNormal,
    "normal-mixture": priors.NormalMixture,
    "vamp": priors.VampPrior,
    "flow": priors.FlowPrior,
    "coupling-flow": lambda latent_dim: priors.FlowPrior(latent_dim, "coupling"),
    "spline-flow": lambda latent_dim: priors.FlowPrior(latent_dim, "spline"),
}
POSTERIORS: Mapping[str, Callable[[], posteriors.Posterior]] = {
    "diagonal": posteriors.DiagonalNormal,
    "full": posteriors.FullNormal,
    "low-rank": posteriors.LowRankNormal,
    "mixture": posteriors.MixturePosterior,
    "householder": posteriors.Householder,
    "flow": posteriors.FlowPosterior,
    "spline-flow": lambda: posteriors.FlowPosterior("spline"),
    "semi-amortized": lambda: posteriors.SemiAmortized(posteriors.DiagonalNormal()),
}
# By the number of draws per row. The ELBO has settings of its own.
WEIGHTED: Mapping[str, Callable[[int], Any]] = {
    "importance-weighted": ImportanceWeighted,
    "doubly-reparameterized": partial(ImportanceWeighted, doubly_reparameterized=True),
    "renyi": Renyi,
    "wake-sleep": WakeSleep,
}
AGGREGATE: Mapping[str, Callable[[], Any]] = {"total-correlation": TotalCorrelation, "mmd": InfoVae}


@dataclass(frozen=True)
class Choice:
    """What a likelihood may depend on: the data and ``--scale``."""

    data: DataSet
    scale: Any

    @property
    def link(self) -> Any:
        """Sigmoid if the data have bounds, otherwise linear."""
        return "linear" if self.data.bounds is None else "sigmoid"

    @property
    def num_levels(self) -> int:
        """Number of levels of data with bounds."""
        if self.data.bounds is None or self.data.bounds[0] != 0 or self.data.x_train.dtype.is_floating_point:
            raise ValueError(
                f"this likelihood describes whole numbers from 0 to a known maximum, such as 8-bit grey levels, "
                f"but {self.data.name} has none: use --likelihood normal"
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
    "multinomial": lambda choice: likelihoods.Multinomial(),
    "mixed": _mixed,
}


# The likelihood for each kind of values, and why.
_BY_VALUES: Mapping[str | None, tuple[str, str]] = {
    BITS: ("bernoulli", "the data are 0 and 1"),
    INTENSITIES: ("normal", "the data are grey levels or colours; bernoulli would draw only black and white"),
    COUNTS: ("negative-binomial", "the data are counts"),
    None: ("normal", "the data are treated as measurements"),
}
_INKED = 0.5  # share of entries at either bound from which images are treated as black and white


def default_likelihood(data: DataSet) -> tuple[str, str]:
    """The default likelihood for the data, and why.

    Raises:
        ValueError: if the data are ambiguous.
    """
    if data.schema is not None:
        return "mixed", "the data are a table, and each column has its own"
    if data.values == COUNTS_OR_LEVELS:
        raise ValueError(
            f"{data.name} holds whole numbers that may be counts or levels: give --likelihood negative-binomial for "
            f"counts, --likelihood normal for measurements; for grey levels, save them as 8-bit numbers (uint8)"
        )
    if data.values == INTENSITIES and data.bounds is not None and _inked(data.x_train, data.bounds) >= _INKED:
        return "bernoulli", "the data are mostly black or white, and bits are drawn from them"
    return _BY_VALUES[data.values]


def _inked(x: Any, bounds: tuple[float, float]) -> float:
    """The share of entries at either bound, in the first rows; 0 for colour images."""
    few = as_tensor(x[:1000])
    return 0.0 if few.dim() == 4 else float(((few == bounds[0]) | (few == bounds[1])).double().mean())


def choose(table: Mapping[str, Any], name: str, kind: str) -> Any:
    """The entry of a table under a name that the user typed."""
    return table[lookup(name, table, kind)]


def likelihood_and_transform(
    data: DataSet, name: str, scale: Any, *, dequantize: bool
) -> tuple[Likelihood, Transform, str]:
    """The likelihood of this name, the transform that brings the data into its range, and why that transform."""
    choice = Choice(data, scale)
    levels = [] if data.schema is None else [column.name for column in data.schema.columns if not column.is_number]
    if levels and name != "mixed":
        raise ValueError(
            f"{data.name} has columns of levels, such as {levels[0]!r}, which {name} would treat as amounts: leave "
            f"--likelihood out, or drop them with --columns {quoted(levels[0])}=drop"
        )
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
