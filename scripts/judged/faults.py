"""Faults of a pair or its data: each at three strengths, applied to a sound pair."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from judged.sound import with_gaps
from judged.system import Case, System, by_sum, linear_gaussian, mixture_prior, on_grid
from pyro_vae import Pair

__all__ = ["FAULTS", "STRENGTHS", "Fault"]

STRENGTHS = ("slight", "plain", "gross")

GUIDE = frozenset({"calibration", "joint_calibration", "calibration_at_rows", "amortisation", "modes"})
MODEL = frozenset({"checks", "coverage", "samples"})

_ROWS = 500


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Args:
        about: What is wrong, and what the three strengths are.
        named_by: The findings that are right to say so.
        strengths: A number for each.
        build: From such a number to the case.
    """

    about: str
    named_by: frozenset[str]
    strengths: tuple[float, float, float]
    build: Callable[[float], Case]

    def make(self, strength: int) -> Case:
        """The case of a strength, 0 to 2."""
        return self.build(self.strengths[strength])


FAULTS: dict[str, Fault] = {}


def fault(about: str, named_by: frozenset[str], *strengths: float) -> Callable[[Any], Any]:
    """Adds a function to the table, under its name."""

    def added(build: Callable[[float], Case]) -> Callable[[float], Case]:
        first, second, third = strengths
        FAULTS[build.__name__.replace("_", " ")] = Fault(about, named_by, (first, second, third), build)
        return build

    return added


# The sound systems


def gaussian(prior_loc: float = 0.0, prior_scale: float = 1.0, *, noise: float = 0.6) -> System:
    """Six columns, two latents."""
    return linear_gaussian(_WEIGHT, torch.full((6,), noise), _LOC, prior_loc, prior_scale)


_WEIGHT = torch.tensor([[1.0, 0.2], [-0.7, 0.5], [0.3, -1.0], [0.0, 0.8], [0.9, 0.6], [-0.4, -0.3]])
_LOC = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.3, -0.2])
_CENTRES = torch.tensor([[2.0, 0.0, 1.0], [-2.0, 1.0, 0.0], [0.0, -2.0, -1.0], [1.0, 2.0, -2.0]])


def clusters(spread: float = 1.0) -> System:
    """Four clusters that overlap."""
    return by_sum(torch.zeros(4), lambda z: dist.Normal(0.7 * _CENTRES[z], spread).to_event(1))


def counts() -> System:
    """Three clusters of counts."""
    return by_sum(torch.zeros(3), lambda z: dist.Poisson(_RATES[z]).to_event(1))


_RATES = torch.tensor([[1.0, 4.0, 8.0, 2.0], [5.0, 1.0, 3.0, 6.0], [3.0, 9.0, 1.0, 4.0]])


def two_modes(share: float) -> System:
    """Two modes that the rows hardly distinguish; the first has this share."""
    slopes = torch.tensor([[0.0], [0.1]])
    return mixture_prior(torch.tensor([share, 1 - share]), torch.tensor([[2.0], [-2.0]]), 0.5, slopes, 1.0)


def with_guide(system: System, change: Callable[[Any, Tensor], Any]) -> Case:
    """The system with another guide, computed from its own distribution and the rows."""
    return system.but(posterior=lambda x: change(system.posterior(x), x)).case(_ROWS)


def moved(q: Any, shift: Tensor | float = 0.0, width: float = 1.0) -> Any:
    """A normal moved by a number of its standard deviations, and scaled."""
    deviation = q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
    return dist.MultivariateNormal(q.mean + shift * deviation, scale_tril=width * q.scale_tril)


def some_rows(x: Tensor, share: float) -> Tensor:
    """A share of the rows, independent of their position: ``(N, 1)``."""
    return (x.reshape(len(x), -1).sum(1, keepdim=True) * 1e3).frac().abs() < share


# The guide is wrong


@fault("guide too narrow: its width times 0.8, 0.5, 0.2", GUIDE, 0.8, 0.5, 0.2)
def narrow(width: float) -> Case:
    return with_guide(gaussian(), lambda q, x: moved(q, width=width))


@fault("guide too wide: its width times 1.25, 2, 4", GUIDE, 1.25, 2.0, 4.0)
def wide(width: float) -> Case:
    return with_guide(gaussian(), lambda q, x: moved(q, width=width))


@fault("guide moved by 0.4, 1, 3 of its widths", GUIDE, 0.4, 1.0, 3.0)
def shifted(by: float) -> Case:
    return with_guide(gaussian(), lambda q, x: moved(q, shift=by))


@fault("guide too narrow in one of its entries: 0.8, 0.5, 0.2", GUIDE, 0.8, 0.5, 0.2)
def narrow_in_one_entry(width: float) -> Case:
    scale = torch.tensor([1.0, width])
    return with_guide(
        gaussian(), lambda q, x: dist.MultivariateNormal(q.mean, scale_tril=scale[:, None] * q.scale_tril)
    )


@fault("independent entries in the guide, correlated by 0.5, 0.8, 0.97 in the posterior", GUIDE, 0.5, 0.8, 0.97)
def independent_entries(correlation: float) -> Case:
    # Two similar columns of weights correlate the posterior's entries.
    angle = math.acos(correlation * 1.02) if correlation < 0.97 else 0.15
    weight = torch.stack([_WEIGHT[:, 0], math.cos(angle) * _WEIGHT[:, 0] + math.sin(angle) * _WEIGHT[:, 1]], 1)
    system = linear_gaussian(weight, torch.full((6,), 0.3))

    def change(q: Any, x: Tensor) -> Any:
        return dist.Normal(q.mean, q.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()).to_event(1)

    return with_guide(system, change)


@fault("guide follows the row too little: its mean times 0.8, 0.5, 0", GUIDE, 0.8, 0.5, 0.0)
def shrunk(by: float) -> Case:
    return with_guide(gaussian(), lambda q, x: dist.MultivariateNormal(by * q.mean, scale_tril=q.scale_tril))


@fault("guide is the prior for 10%, 40%, 100% of the rows", GUIDE | {"information"}, 0.1, 0.4, 1.1)
def prior_for_some(share: float) -> Case:
    def change(q: Any, x: Tensor) -> Any:
        chosen = some_rows(x, share)
        factor = torch.where(chosen[..., None], torch.eye(2), q.scale_tril)
        return dist.MultivariateNormal(torch.where(chosen, 0.0, q.mean), scale_tril=factor)

    return with_guide(gaussian(), change)


@fault("latents rotated into one another by 10°, 45°, 90°", GUIDE, 10.0, 45.0, 90.0)
def swapped_latents(degrees: float) -> Case:
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return with_guide(gaussian(), lambda q, x: dist.MultivariateNormal(q.mean @ turn, scale_tril=q.scale_tril))


@fault("guide for an earlier decoder, with weights off by 0.1, 0.4, 1.5", GUIDE, 0.1, 0.4, 1.5)
def stale(by: float) -> Case:
    weight = _WEIGHT + by * torch.randn(6, 2)
    old = linear_gaussian(weight, torch.full((6,), 0.6), _LOC)
    return gaussian().but(posterior=old.posterior).case(_ROWS)


@fault("guide reads 2, 3, 6 of the columns in another order", GUIDE, 2, 3, 6)
def columns_misread(count: float) -> Case:
    order = torch.arange(6)
    order[: int(count)] = order[: int(count)].roll(1)
    system = gaussian()
    return system.but(posterior=lambda x: system.posterior(x[:, order])).case(_ROWS)


@fault("guide reads the rows as 1.1, 1.5, 3 times as large", GUIDE, 1.1, 1.5, 3.0)
def units_misread(factor: float) -> Case:
    system = gaussian()
    return system.but(posterior=lambda x: system.posterior(_LOC + factor * (x - _LOC))).case(_ROWS)


@fault("guide has the wrong sign for 5%, 20%, 100% of the rows", GUIDE, 0.05, 0.2, 1.1)
def wrong_sign(share: float) -> Case:
    return with_guide(
        gaussian(),
        lambda q, x: dist.MultivariateNormal(
            torch.where(some_rows(x, share), -q.mean, q.mean), scale_tril=q.scale_tril
        ),
    )


@fault("5%, 20%, 100% of the rows have the posterior of the row before", GUIDE, 0.05, 0.2, 1.1)
def other_row(share: float) -> Case:
    return with_guide(
        gaussian(),
        lambda q, x: dist.MultivariateNormal(
            torch.where(some_rows(x, share), q.mean.roll(1, 0), q.mean), scale_tril=q.scale_tril
        ),
    )


@fault("normal guide for a posterior with tails of a Student t with 6, 3, 1.5 degrees", GUIDE, 6.0, 3.0, 1.5)
def light_tails(degrees: float) -> Case:
    system = on_grid(
        dist.StudentT(degrees), lambda z: dist.Normal(0.2 * z[..., None].expand(*z.shape, 2), 1.0).to_event(1), -60, 60
    )
    return with_guide(system, lambda q, x: dist.Normal(q.mean.clamp(-2, 2), 1.0))


@fault("guide misses one of two modes, with 20%, 35%, 50% of the posterior", GUIDE, 0.2, 0.35, 0.5)
def missing_mode(share: float) -> Case:
    return with_guide(two_modes(1 - share), lambda q, x: dist.Normal(torch.full((len(x), 1), 2.0), 0.5).to_event(1))


@fault("guide in the smaller of two modes; the other has 65%, 80%, 95%", GUIDE, 0.65, 0.8, 0.95)
def lesser_mode(share: float) -> Case:
    return with_guide(two_modes(1 - share), lambda q, x: dist.Normal(torch.full((len(x), 1), 2.0), 0.5).to_event(1))


@fault("guide with 10%, 30%, 60% in a mode that is not there", GUIDE, 0.1, 0.3, 0.6)
def invented_mode(share: float) -> Case:
    def change(q: Any, x: Tensor) -> Any:
        loc = torch.stack([q.mean, q.mean + 6.0], 1)
        parts = dist.MultivariateNormal(loc, scale_tril=q.scale_tril[:, None].expand(-1, 2, -1, -1))
        weights = torch.tensor([1 - share, share]).expand(len(x), 2)
        return dist.MixtureSameFamily(dist.Categorical(weights), parts)

    return with_guide(gaussian(), change)


@fault("logits of a categorical guide times 0.7, 0.4, 0.05", GUIDE | {"information"}, 0.7, 0.4, 0.05)
def flat_classes(by: float) -> Case:
    return with_guide(clusters(), lambda q, x: dist.Categorical(logits=by * q.logits))


@fault("logits of a categorical guide times 1.5, 3, 10", GUIDE, 1.5, 3.0, 10.0)
def sharp_classes(by: float) -> Case:
    return with_guide(clusters(), lambda q, x: dist.Categorical(logits=by * q.logits))


@fault("10%, 40%, 95% of a categorical guide's probability goes to another class", GUIDE, 0.1, 0.4, 0.95)
def permuted_classes(share: float) -> Case:
    return with_guide(clusters(), lambda q, x: dist.Categorical((1 - share) * q.probs + share * q.probs.roll(1, -1)))


def _rates() -> System:
    return System(
        lambda: dist.Gamma(2.0, 0.5),
        lambda z: dist.Poisson(z[..., None].expand(*z.shape, 3)).to_event(1),
        lambda x: dist.Gamma(2.0 + x.sum(-1), 3.5),
    )


@fault("gamma guide with 1.5, 4, 20 times the posterior's shape, at its mean", GUIDE, 1.5, 4.0, 20.0)
def narrow_gamma(by: float) -> Case:
    return with_guide(_rates(), lambda q, x: dist.Gamma(by * q.concentration, by * q.rate))


@fault("gamma guide with 1.1, 1.4, 3 times the posterior's mean", GUIDE, 1.1, 1.4, 3.0)
def shifted_gamma(by: float) -> Case:
    return with_guide(_rates(), lambda q, x: dist.Gamma(q.concentration, q.rate / by))


@fault("beta guide that counts 1, 4, 20 successes too many", GUIDE, 1.0, 4.0, 20.0)
def shifted_beta(by: float) -> Case:
    system = System(
        lambda: dist.Beta(2.0, 2.0),
        lambda z: dist.Bernoulli(z[..., None].expand(*z.shape, 10)).to_event(1),
        lambda x: dist.Beta(2.0 + x.sum(-1), 12.0 - x.sum(-1)),
    )
    return with_guide(system, lambda q, x: dist.Beta(q.concentration1 + by, q.concentration0))


def _two_sites(guide_of: Callable[[Tensor, Tensor, Tensor], tuple[Any, Any]]) -> Case:
    """A ~ N(0, 1), b ~ N(a, ½), x ~ N(b, ½): the guide takes x, draws b and then a."""

    def model(x: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a, 0.5))
            return pyro.sample("x", dist.Normal(b[..., None].expand(*b.shape, 3), 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        variance = 1 / (1 / 1.25 + 3 / 0.25)
        mean = variance * x.sum(-1) / 0.25
        with pyro.plate("data", len(x), dim=-1):
            of_b = dist.Normal(mean, variance**0.5)
            b = pyro.sample("b", guide_of(of_b.mean, of_b.stddev, mean)[0])
            pyro.sample("a", guide_of(of_b.mean, of_b.stddev, b)[1])

    pair = Pair(model, guide)
    return Case(pair, pair.sample(_ROWS))


@fault("one of two latents with 0.8, 0.5, 0.2 of its width", GUIDE, 0.8, 0.5, 0.2)
def narrow_site(width: float) -> Case:
    return _two_sites(lambda loc, scale, b: (dist.Normal(loc, scale), dist.Normal(0.8 * b, width * 0.2**0.5)))


@fault("one of two latents follows the other 0.8, 0.4, 0 times as far", GUIDE, 0.8, 0.4, 0.0)
def loose_site(by: float) -> Case:
    return _two_sites(lambda loc, scale, b: (dist.Normal(loc, scale), dist.Normal(0.8 * by * b, 0.2**0.5)))


@fault(
    "one of two latents partly drawn from the prior: its mean times 0.7, 0.3, 0, its variance accordingly",
    GUIDE,
    0.7,
    0.3,
    0.0,
)
def dropped_site(by: float) -> Case:
    return _two_sites(lambda loc, scale, b: (dist.Normal(loc, scale), dist.Normal(0.8 * by * b, (1 - 0.8 * by) ** 0.5)))


@fault("KL weighted by 0.7, 0.3, 0.05: the best guide for that", GUIDE, 0.7, 0.3, 0.05)
def little_kl(beta: float) -> Case:
    system = gaussian()
    return system.but(posterior=gaussian(noise=0.6 * beta**0.5).posterior).case(_ROWS)


@fault("KL weighted by 1.5, 4, 20: the best guide for that", GUIDE | {"information"}, 1.5, 4.0, 20.0)
def much_kl(beta: float) -> Case:
    system = gaussian()
    return system.but(posterior=gaussian(noise=0.6 * beta**0.5).posterior).case(_ROWS)


@fault("guide that ignores labels, which shift rows by 0.5, 1.5, 4", GUIDE, 0.5, 1.5, 4.0)
def labels_ignored(shift: float) -> Case:
    return _labelled(shift, lambda x, group: x, wrong=0.0)


@fault("10%, 40%, 100% of the labels are another row's", MODEL, 0.1, 0.4, 1.0)
def labels_shuffled(share: float) -> Case:
    return _labelled(2.0, lambda x, group: x - 2.0 * group[:, None].to(x), wrong=share)


def _labelled(shift: float, seen: Callable[[Tensor, Tensor], Tensor], wrong: float) -> Case:
    """Rows of three columns, which a label 0 or 1 shifts."""
    slopes, noise = torch.tensor([1.0, -0.5, 0.8]), 0.6
    variance = 1 / (1 + (slopes / noise).square().sum())

    def model(x: Tensor | None = None, *, group: Tensor, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = z[..., None] * slopes + shift * group[:, None].to(z)
            return pyro.sample("x", dist.Normal(loc, noise).to_event(1), obs=x)

    def guide(x: Tensor, *, group: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(variance * (seen(x, group) @ slopes) / noise**2, variance.sqrt()))

    group = torch.arange(_ROWS) % 2
    pair = Pair(model, guide)
    x = pair.sample(_ROWS, given={"group": group})
    other = torch.where(torch.rand(_ROWS) < wrong, group[torch.randperm(_ROWS)], group)
    return Case(pair, {"x": x, "group": other})


@fault("guide as certain about rows with gaps as about complete ones; 30%, 60%, 90% are missing", GUIDE, 0.3, 0.6, 0.9)
def gaps_ignored(share: float) -> Case:
    slopes, noise = torch.tensor([1.0, -0.5, 0.8, 1.2]), 0.6

    def model(x: Tensor | None = None, *, mask: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            fn = dist.Normal(z[..., None] * slopes, noise)
            return pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)

    def guide(x: Tensor, *, mask: Tensor | None = None) -> None:
        seen = torch.ones_like(x) if mask is None else mask.to(x)
        precision = 1 + (slopes / noise).square().sum()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((seen * x) @ slopes / noise**2 / precision, precision.rsqrt()))

    pair = Pair(model, guide, missing="nan")
    return Case(pair, with_gaps(pair.sample(_ROWS), share))


# A density is not that of the draws


class Offset(dist.Normal):
    """A normal whose log-density is off by a constant, as without a Jacobian."""

    nats = 0.0

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(value) + self.nats

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Offset":
        new = Offset(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        new.nats = self.nats
        return new


class Drawn(dist.Normal):
    """A normal whose draws are wider than its density."""

    by = 1.0

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.loc + self.by * (super().rsample(sample_shape) - self.loc)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.rsample(sample_shape).detach()

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Drawn":
        new = Drawn(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        new.by = self.by
        return new


@fault(
    "the guide's log-density without a Jacobian: off by 0.2, 0.7, 3 nats", frozenset({"modes", "bounds"}), 0.2, 0.7, 3.0
)
def jacobian_left_out(nats: float) -> Case:
    def change(q: Any, x: Tensor) -> Any:
        fn = Offset(q.mean[:, 0], q.covariance_matrix[:, 0, 0].sqrt())
        fn.nats = nats
        return fn

    system = linear_gaussian(_WEIGHT[:, :1], torch.full((6,), 0.6), _LOC)
    return System(
        lambda: dist.Normal(torch.zeros(()), 1.0),
        lambda z: system.likelihood(z[..., None]),
        lambda x: change(system.posterior(x), x),
    ).case(_ROWS)


@fault("rows are drawn with 1.3, 2, 4 times the noise of their density", GUIDE | MODEL, 1.3, 2.0, 4.0)
def noise_not_as_drawn(by: float) -> Case:
    def likelihood(z: Tensor) -> Any:
        fn = Drawn(z @ _WEIGHT.T + _LOC, torch.full((6,), 0.6))
        fn.by = by
        return fn.to_event(1)

    return gaussian().but(likelihood=likelihood).case(_ROWS, gaussian())


@fault("latents are drawn 1.3, 2, 4 times as wide as their density", GUIDE | MODEL, 1.3, 2.0, 4.0)
def prior_not_as_drawn(by: float) -> Case:
    def prior() -> Any:
        fn = Drawn(torch.zeros(2), torch.ones(2))
        fn.by = by
        return fn.to_event(1)

    return gaussian().but(prior=prior).case(_ROWS, gaussian())


# The model is wrong: its guide is right for it, but the rows are from another


@fault("noise of the likelihood 0.85, 0.6, 0.3 times that of the rows", MODEL, 0.85, 0.6, 0.3)
def little_noise(by: float) -> Case:
    return gaussian(noise=0.6 * by).case(_ROWS, gaussian())


@fault("noise of the likelihood 1.2, 1.7, 3 times that of the rows", MODEL, 1.2, 1.7, 3.0)
def much_noise(by: float) -> Case:
    return gaussian(noise=0.6 * by).case(_ROWS, gaussian())


def rows_changed(change: Callable[[Tensor], Tensor], system: System | None = None) -> Case:
    """A sound pair with its own rows, which were changed."""
    system = gaussian() if system is None else system
    return Case(system.pair(), change(system.draw(_ROWS)))


@fault("rows moved by 0.2, 0.6, 2 in all columns", MODEL, 0.2, 0.6, 2.0)
def rows_moved(by: float) -> Case:
    return rows_changed(lambda x: x + by)


@fault("rows in units that make them 1.15, 1.5, 5 times as large", MODEL, 1.15, 1.5, 5.0)
def other_units(by: float) -> Case:
    return rows_changed(lambda x: by * x)


@fault("one column 1.3, 2, 5 times as large", MODEL, 1.3, 2.0, 5.0)
def one_column_scaled(by: float) -> Case:
    return rows_changed(lambda x: torch.cat([by * x[:, :1], x[:, 1:]], 1))


@fault("2, 3, 6 of the columns permuted", MODEL, 2, 3, 6)
def columns_permuted(count: float) -> Case:
    order = torch.arange(6)
    order[: int(count)] = order[: int(count)].roll(1)
    return rows_changed(lambda x: (x - _LOC)[:, order] + _LOC)


def noisy(noise: Callable[[Tensor], Tensor]) -> Case:
    """The linear-Gaussian pair with rows with other noise; ``noise`` takes the rows' means without any."""
    z = torch.randn(_ROWS, 2)
    return Case(gaussian().pair(), noise(z @ _WEIGHT.T + _LOC))


@fault("noise of a Student t with 6, 3, 1.5 degrees, at the likelihood's scale", MODEL, 6.0, 3.0, 1.5)
def heavy_tails(degrees: float) -> Case:
    return noisy(lambda mean: dist.StudentT(degrees, mean, 0.6).sample())


@fault("1%, 5%, 20% of the entries are outliers", MODEL, 0.01, 0.05, 0.2)
def outliers(share: float) -> Case:
    return rows_changed(lambda x: torch.where(torch.rand_like(x) < share, x + 5 * torch.randn_like(x), x))


@fault("skewed noise, with an exponential part of 0.5, 0.8, 1", MODEL, 0.5, 0.8, 1.0)
def skewed(part: float) -> Case:
    def noise(mean: Tensor) -> Tensor:
        skew = -torch.rand_like(mean).log() - 1
        return mean + 0.6 * (part * skew + (1 - part**2) ** 0.5 * torch.randn_like(mean))

    return noisy(noise)


@fault("noise of neighbouring columns correlated by 0.15, 0.4, 0.85", MODEL, 0.15, 0.4, 0.85)
def correlated_noise(correlation: float) -> Case:
    places = torch.arange(6.0)
    covariance = 0.36 * correlation ** (places[:, None] - places).abs()
    return noisy(lambda mean: dist.MultivariateNormal(mean, covariance).sample())


@fault("noise whose scale depends on a latent, by a factor of exp(0.3), exp(0.6), exp(1.2)", MODEL, 0.3, 0.6, 1.2)
def uneven_noise(by: float) -> Case:
    return noisy(lambda mean: mean + 0.6 * (by * (mean - _LOC)[:, :1]).exp() * torch.randn_like(mean))


@fault("rows curve with a latent: 0.3, 0.8, 2 times its square", MODEL, 0.3, 0.8, 2.0)
def curved(by: float) -> Case:
    return noisy(lambda mean: mean + by * ((mean - _LOC)[:, :1] ** 2 - 1) + 0.6 * torch.randn_like(mean))


@fault("a factor of the rows that the model lacks, of size 0.3, 0.7, 2", MODEL, 0.3, 0.7, 2.0)
def lacks_a_factor(by: float) -> Case:
    pattern = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, -1.0])
    return noisy(lambda mean: mean + by * torch.randn(len(mean), 1) * pattern + 0.6 * torch.randn_like(mean))


@fault("weights of the decoder off by 0.15, 0.4, 1.2", MODEL, 0.15, 0.4, 1.2)
def wrong_weights(by: float) -> Case:
    weight = _WEIGHT + by * torch.randn(6, 2)
    return linear_gaussian(weight, torch.full((6,), 0.6), _LOC).case(_ROWS, gaussian())


@fault("prior 0.8, 0.6, 0.3 times as wide as the latents are", MODEL, 0.8, 0.6, 0.3)
def narrow_prior(by: float) -> Case:
    return gaussian(prior_scale=by).case(_ROWS, gaussian())


@fault("prior 1.25, 1.7, 4 times as wide as the latents are", MODEL, 1.25, 1.7, 4.0)
def wide_prior(by: float) -> Case:
    return gaussian(prior_scale=by).case(_ROWS, gaussian())


@fault("prior off by 0.3, 1, 3", MODEL, 0.3, 1.0, 3.0)
def moved_prior(by: float) -> Case:
    return gaussian(prior_loc=by).case(_ROWS, gaussian())


@fault(
    "latents in two clusters 2, 3, 6 standard deviations apart, under one normal of their variance",
    MODEL,
    1.0,
    1.5,
    3.0,
)
def two_clusters_in_one(half: float) -> Case:
    scale = (1 + half**2) ** 0.5
    z = torch.randn(_ROWS, 2)
    z[:, 0] += half * (2 * torch.randint(2, (_ROWS,)) - 1)
    system = linear_gaussian(_WEIGHT, torch.full((6,), 0.3), _LOC, 0.0, torch.tensor([scale, 1.0]))
    return Case(system.pair(), (z @ _WEIGHT.T + _LOC) + 0.3 * torch.randn(_ROWS, 6))


def _shares(data: Tensor, model: Tensor) -> Case:
    def of(shares: Tensor) -> System:
        return by_sum(shares.log(), lambda z: dist.Normal(2 * _CENTRES[z], 0.7).to_event(1))

    return of(model).case(_ROWS, of(data))


@fault("the model lacks a cluster with 5%, 20%, 60% of the rows", MODEL, 0.05, 0.2, 0.6)
def lacks_a_cluster(share: float) -> Case:
    rest = (1 - share) / 3
    return _shares(torch.tensor([rest, rest, rest, share]), torch.tensor([1.0, 1.0, 1.0, 1e-6]) / 3)


@fault("5%, 20%, 60% of the model's draws are from a cluster that is not in the data", MODEL, 0.05, 0.2, 0.6)
def invents_a_cluster(share: float) -> Case:
    rest = (1 - share) / 3
    return _shares(torch.tensor([1.0, 1.0, 1.0, 1e-6]) / 3, torch.tensor([rest, rest, rest, share]))


@fault("5%, 15%, 40% of the entries are clipped at a value", MODEL, 0.05, 0.15, 0.4)
def cut_off(share: float) -> Case:
    return rows_changed(lambda x: torch.minimum(x, x.flatten().quantile(1 - share)))


@fault("rows rounded to steps of 0.5, 1, 3", MODEL, 0.5, 1.0, 3.0)
def rounded(step: float) -> Case:
    return rows_changed(lambda x: (x / step).round() * step)


@fault("bits under a normal distribution with their mean and variance, with noise of 0.4, 0.2, 0", MODEL, 0.4, 0.2, 0.0)
def bits_as_numbers(noise: float) -> Case:
    weight, loc = 0.2 * torch.ones(6, 1), torch.full((6,), 0.5)
    z = torch.randn(_ROWS, 1)
    x = (torch.rand(_ROWS, 6) < (0.5 + 0.2 * z).clamp(0, 1)).float() + noise * torch.randn(_ROWS, 6)
    return Case(linear_gaussian(weight, torch.full((6,), (0.21 + noise**2) ** 0.5), loc).pair(), x)


@fault(
    "logarithm forgotten: rows with skewness of exp(0.25 z), exp(0.5 z), exp(z), under a normal", MODEL, 0.25, 0.5, 1.0
)
def logarithm_forgotten(by: float) -> Case:
    x = (by * gaussian().draw(2000)).exp()
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    weight = vectors[:, -2:] * (values[-2:] - values[:-2].mean()).clamp_min(0.01).sqrt()
    system = linear_gaussian(weight, values[:-2].mean().sqrt().expand(6), x.mean(0))
    return Case(system.pair(), x[:_ROWS])


@fault("counts with 1.4, 2, 5 times a Poisson's variance", MODEL, 1.4, 2.0, 5.0)
def overdispersed(by: float) -> Case:
    # A negative binomial with total count r and odds o has mean r o and variance r o (1 + o).
    data = by_sum(
        torch.zeros(3),
        lambda z: dist.NegativeBinomial(_RATES[z] / (by - 1), logits=torch.tensor(by - 1).log()).to_event(1),
    )
    return counts().case(_ROWS, data)


@fault("counts with 0.75, 0.5, 0.2 times a Poisson's variance", MODEL, 0.75, 0.5, 0.2)
def underdispersed(by: float) -> Case:
    trials = (_RATES / (1 - by)).round().clamp_min(1)
    data = by_sum(
        torch.zeros(3), lambda z: dist.Binomial(trials[z], _RATES[z] / trials[z].clamp_min(_RATES[z])).to_event(1)
    )
    return counts().case(_ROWS, data)


@fault("5%, 15%, 40% of the counts are 0 whatever their rate", MODEL, 0.05, 0.15, 0.4)
def extra_zeros(share: float) -> Case:
    return rows_changed(lambda x: torch.where(torch.rand_like(x) < share, 0.0, x), counts())


@fault("counts 1.1, 1.4, 3 times as high", MODEL, 1.1, 1.4, 3.0)
def more_counts(by: float) -> Case:
    data = by_sum(torch.zeros(3), lambda z: dist.Poisson(by * _RATES[z]).to_event(1))
    return counts().case(_ROWS, data)


_LOGITS = torch.tensor([[2.0, -1.0, 0.5, -2.0, 1.0, 0.0] * 3, [-1.0, 2.0, -2.0, 1.0, -0.5, 1.5] * 3])


def bits(by: float = 1.0) -> System:
    """Two clusters of 18 bits."""
    return by_sum(torch.zeros(2), lambda z: dist.Bernoulli(logits=by * _LOGITS[z]).to_event(1))


@fault("logits of the bits 0.8, 0.5, 0.1 times what they should be", MODEL, 0.8, 0.5, 0.1)
def dull_bits(by: float) -> Case:
    return bits(by).case(_ROWS, bits())


@fault("a bit copies the column before in 10%, 30%, 80% of the cases", MODEL, 0.1, 0.3, 0.8)
def bits_that_copy(share: float) -> Case:
    def change(x: Tensor) -> Tensor:
        columns = [x[:, 0]]
        for column in x[:, 1:].unbind(1):
            columns.append(torch.where(torch.rand_like(column) < share, columns[-1], column))
        return torch.stack(columns, 1)

    return rows_changed(change, bits())


@fault("5%, 20%, 50% of the bits are flipped", MODEL, 0.05, 0.2, 0.5)
def flipped_bits(share: float) -> Case:
    return rows_changed(lambda x: torch.where(torch.rand_like(x) < share, 1 - x, x), bits())


_LEVELS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0, -2.0], [-2.0, 0.0, 2.0, 1.0, 0.0, -1.0]])


@fault("probabilities of levels mixed with uniform ones, 15%, 40%, 90%", MODEL, 0.15, 0.4, 0.9)
def even_levels(share: float) -> Case:
    def of(even: float) -> System:
        probs = (1 - even) * _LEVELS.softmax(-1) + even / 6
        return by_sum(
            torch.zeros(2), lambda z: dist.Categorical(probs[z][..., None, :].expand(*z.shape, 5, 6)).to_event(1)
        )

    return of(share).case(_ROWS, of(0.0))


@fault(
    "latents without effect, though the rows have a factor of size 0.5, 1, 3",
    frozenset({"information"}),
    0.5,
    1.0,
    3.0,
)
def collapsed(by: float) -> Case:
    sd = (0.36 + by**2 * _WEIGHT.square().sum(1)).sqrt()
    system = System(
        lambda: dist.Normal(torch.zeros(2), 1.0).to_event(1),
        lambda z: dist.Normal((0 * z) @ _WEIGHT.T + _LOC, sd).to_event(1),
        lambda x: dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1),
    )
    return system.case(_ROWS, linear_gaussian(by * _WEIGHT, torch.full((6,), 0.6), _LOC))


# The data are wrong, or already known


@fault("a model of other data than the rows, which come sorted, 1.5, 3, 10 apart", MODEL, 1.5, 3.0, 10.0)
def sorted_and_other(by: float) -> Case:
    x = torch.cat([by * _CENTRES[k] + torch.randn(_ROWS // 4, 3) for k in range(4)])
    return Case(linear_gaussian(torch.ones(3, 1), torch.ones(3)).pair(), x)


@fault("the model draws its training rows again, with noise of 0.5, 0.25, 0.05", frozenset({"copies"}), 0.5, 0.25, 0.05)
def copies(noise: float) -> Case:
    rows = gaussian().draw(150)
    system = by_sum(torch.zeros(len(rows)), lambda z: dist.Normal(rows[z], noise).to_event(1))
    return Case(system.pair(), gaussian().draw(300), train=rows)


@fault("2%, 10%, 50% of the held-out rows are among the training rows", frozenset({"leaks"}), 0.02, 0.1, 0.5)
def leaked(share: float) -> Case:
    train, held = gaussian().draw(600), gaussian().draw(_ROWS)
    count = int(share * _ROWS)
    return Case(gaussian().pair(), torch.cat([held[count:], train[:count]]), train=train)


@fault("the best possible model for 40, 20, 11 training rows", frozenset({"overfitting"}), 40, 20, 11)
def overfitted(num_rows: float) -> Case:
    wide = linear_gaussian(torch.randn(10, 3), torch.full((10,), 0.6))
    train = wide.draw(int(num_rows))
    centred = train - train.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(train))
    noise = values[:2].mean().clamp_min(1e-4)
    weight = vectors[:, 2:] * (values[2:] - noise).clamp_min(1e-6).sqrt()
    return Case(linear_gaussian(weight, noise.sqrt().expand(10), train.mean(0)).pair(), wide.draw(300), train=train)
