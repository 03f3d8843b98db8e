"""Likelihoods: one contract for all of them. A new one is one row in ``CASES``."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats

from pyro_vae import mlp_vae
from pyro_vae._support.ranges import bounds
from pyro_vae.distributions import DiscretizedLogistic as DiscretizedLogisticDistribution
from pyro_vae.likelihoods import (
    Anchored,
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gamma,
    Laplace,
    Likelihood,
    LogNormal,
    Mixed,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

# The truth: distributions over arrays of elements, from SciPy or worked out here, each in another way than the library.


class Scipy:
    """A frozen SciPy distribution."""

    def __init__(self, frozen):
        self.frozen = frozen
        self.discrete = isinstance(frozen.dist, stats.rv_discrete)

    def log_prob(self, x):
        return (self.frozen.logpmf if self.discrete else self.frozen.logpdf)(x)

    def cdf(self, x):
        return self.frozen.cdf(x)

    def moments(self):
        return self.frozen.stats("mv")

    def highest(self):
        """A value that hardly anything lies above."""
        return np.max(self.frozen.isf(1e-13))

    def uniform(self, x, rng):
        """Numbers that are uniform on [0, 1] if and only if ``x`` follows the distribution."""
        return self.cdf(x) - (rng.random(x.shape) * np.exp(self.log_prob(x)) if self.discrete else 0)


class NegativeBinomialTruth(Scipy):
    """SciPy's, but for its log-probability where one of its arguments rounds to 1."""

    def __init__(self, log_mean, total_count):
        self.logits, self.total_count = np.broadcast_arrays(log_mean - np.log(total_count), total_count)
        super().__init__(stats.nbinom(self.total_count, special.expit(-self.logits)))

    def log_prob(self, x):
        r = self.total_count
        ways = special.gammaln(x + r) - special.gammaln(r) - special.gammaln(x + 1)
        return ways + r * special.log_expit(-self.logits) + x * special.log_expit(self.logits)


class ZeroInflated(Scipy):
    """Zero with probability ``expit(gate_logits)``, else what ``base`` says; moments by adding up."""

    def __init__(self, base, gate_logits):
        self.base, self.discrete = base, True
        self.log_gate, self.log_open = special.log_expit(gate_logits), special.log_expit(-gate_logits)

    def log_prob(self, x):
        counted = self.log_open + self.base.log_prob(x)
        return np.where(np.equal(x, 0), np.logaddexp(self.log_gate, counted), counted)

    def cdf(self, x):
        return np.where(np.less(x, 0), 0.0, np.exp(self.log_gate) + np.exp(self.log_open) * self.base.cdf(x))

    def highest(self):
        return self.base.highest()

    def moments(self):
        x = np.arange(2 * self.highest()).reshape(-1, *([1] * self.log_gate.ndim))
        p = np.exp(self.log_prob(x))
        mean = (p * x).sum(0)
        return mean, (p * (x - mean) ** 2).sum(0)


class ContinuousBernoulliTruth(Scipy):
    """An exponential distribution cut off at 1, turned round where it rises."""

    def __init__(self, logits):
        self.rises, self.discrete = logits > 0, False
        self.frozen = stats.truncexpon(np.abs(logits), scale=1 / np.abs(logits))

    def log_prob(self, x):
        return self.frozen.logpdf(np.where(self.rises, 1 - x, x))

    def cdf(self, x):
        return np.where(self.rises, self.frozen.sf(1 - x), self.frozen.cdf(x))

    def moments(self):
        mean, variance = self.frozen.stats("mv")
        return np.where(self.rises, 1 - mean, mean), variance


class Table(Scipy):
    """Log-probabilities of the levels 0, 1, …, ``(*elements, levels)``."""

    def __init__(self, log_probs):
        self.log_probs, self.discrete = log_probs, True

    @staticmethod
    def at(table, x):
        level = np.broadcast_to(x, np.broadcast_shapes(np.shape(x), table.shape[:-1])).astype(int)
        return np.take_along_axis(np.broadcast_to(table, (*level.shape, table.shape[-1])), level[..., None], -1)[..., 0]

    def log_prob(self, x):
        return self.at(self.log_probs, x)

    def cdf(self, x):
        return self.at(np.exp(self.log_probs).cumsum(-1), x)

    def highest(self):
        return self.log_probs.shape[-1] - 1

    def moments(self):
        p, x = np.exp(self.log_probs), np.arange(self.log_probs.shape[-1])
        mean = (p * x).sum(-1)
        return mean, (p * (x - mean[..., None]) ** 2).sum(-1)


class Kinds(Table):
    """Levels without an order: the most probable one, and no variance."""

    def moments(self):
        return self.log_probs.argmax(-1), np.full(self.log_probs.shape[:-1], np.nan)


class SideBySide(Scipy):
    """A distribution for each column."""

    def __init__(self, columns):
        self.columns = columns

    def log_prob(self, x):
        return np.stack([column.log_prob(x[..., i]) for i, column in enumerate(self.columns)], -1)

    def moments(self):
        return tuple(np.stack(moment, -1) for moment in zip(*(c.moments() for c in self.columns), strict=True))

    def uniform(self, x, rng):
        return np.stack([column.uniform(x[..., i], rng) for i, column in enumerate(self.columns)], -1)


def softplus(raw):
    return np.logaddexp(0.0, raw)


def dispersion(likelihood, raw, name, start):
    """The positive parameter in force: fixed, the likelihood's own, or the network's."""
    value, floor = getattr(likelihood, name), getattr(likelihood, f"min_{name}")
    if value == "network":
        return softplus(raw + np.log(np.expm1(start - floor))) + floor
    if value in LEARNED:
        return softplus(next(likelihood.parameters()).detach().double().numpy()) + floor
    if value == "optimal":
        return np.sqrt(likelihood.batch_variance.double().numpy())
    return value


def anchored(likelihood, raw):
    """The logarithm of a mean, where the first raw output counts from an anchor."""
    return raw if likelihood.event_shape is None else raw + likelihood.anchor.double().numpy()


def logistic_levels(loc, scale, num_levels):
    """Log-probabilities of levels as differences of the distribution function, taken on the side of the nearer tail."""
    edges = (2 * np.arange(1, num_levels) - 1) / (num_levels - 1) - 1
    edges = (edges - np.expand_dims(loc, -1)) / np.expand_dims(scale, -1)
    ends = np.full((*edges.shape[:-1], 1), np.inf)
    low, high = np.concatenate([-ends, edges], -1), np.concatenate([edges, ends], -1)
    low, high = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
    log_low, log_high = stats.logistic.logcdf(low), stats.logistic.logcdf(high)
    return log_high + np.log1p(-np.exp(log_low - log_high))


def logistic_truth(likelihood, raw_loc, raw_scale):
    scale = softplus(raw_scale - 3) + likelihood.min_scale
    return Table(logistic_levels(np.tanh(raw_loc), scale, likelihood.num_levels))


def logistic_mixture_truth(likelihood, *raw):
    logits, raw_loc, raw_scale = np.split(np.stack(raw), 3)
    spread = np.linspace(-1, 1, likelihood.num_components).reshape(-1, *([1] * (raw_loc.ndim - 1)))
    levels = logistic_truth(likelihood, raw_loc + spread, raw_scale).log_probs
    return Table(special.logsumexp(special.log_softmax(logits, axis=0)[..., None] + levels, axis=0))


def beta_truth(likelihood, raw, raw_concentration=None):
    concentration = dispersion(likelihood, raw_concentration, "concentration", 2.0)
    a, b = ((1e-4 + (1 - 2e-4) * special.expit(sign * raw)) * concentration for sign in (1, -1))
    return Scipy(stats.beta(a, b))


def gamma_truth(likelihood, raw, raw_concentration=None):
    concentration = dispersion(likelihood, raw_concentration, "concentration", 1.0)
    return Scipy(stats.gamma(concentration, scale=np.exp(anchored(likelihood, raw)) / concentration))


def negative_binomial_truth(likelihood, raw, raw_count=None):
    return NegativeBinomialTruth(anchored(likelihood, raw), dispersion(likelihood, raw_count, "total_count", 1.0))


def poisson_truth(likelihood, raw):
    return Scipy(stats.poisson(np.exp(anchored(likelihood, raw))))


def mixed_truth(likelihood, *raw):
    raw, truths = iter(raw), []
    for column, case in zip(likelihood.columns, COLUMNS, strict=True):
        truths.append(case.truth(column, *itertools.islice(raw, column.num_params)))
    return SideBySide(truths)


# The contract's rows.


@dataclass(frozen=True)
class Case:
    """A likelihood and the truth about it."""

    make: Callable[[], Likelihood]
    truth: Callable[..., Any]  # the likelihood and its raw outputs as arrays, one after another
    inside: tuple[Any, ...]  # values of one element that it describes, the ends included; of one row for tables
    outside: tuple[Any, ...]  # values that it does not
    raw: Callable[[tuple[int, ...]], torch.Tensor] = torch.randn
    own: float = 0.0  # about where its own parameters are put
    events: tuple[tuple[int, ...], ...] = ((), (4,), (2, 3))
    takes_size_factor: bool = False


LEARNED = ["shared", "element", "network"]
FLOOR = 1e-3
REAL = {"inside": (-5.0, 0.0, 5.0), "outside": (math.nan,)}
UNIT = {"inside": (0.0, 0.5, 1.0), "outside": (-0.01, 1.01, math.nan)}
SIGNED = {"inside": (-1.0, 0.0, 1.0), "outside": (-1.01, 1.01, math.nan)}
POSITIVE = {"inside": (1e-37, 1e-3, 1.0, 50.0), "outside": (0.0, -1.0, math.nan)}
WITHIN_MARGIN = {"inside": (1e-3, 0.5, 1 - 1e-3), "outside": (0.0, 9e-4, 1 - 9e-4, 1.0, math.nan)}
COUNTS = {"inside": (0.0, 1.0, 100.0), "outside": (-1.0, 0.5, math.nan)}


def levels(num_levels):
    return {"inside": (0.0, 1.0, num_levels - 1.0), "outside": (-1.0, 0.5, num_levels, math.nan)}


# Of each link: the mean, where a learned scale starts, values inside and outside its range.
LINKS = {
    "linear": (lambda raw: raw, 1.0, REAL),
    "sigmoid": (special.expit, 0.25, UNIT),
    "tanh": (np.tanh, 0.5, SIGNED),
}


def location_scale_case(cls, frozen, scale, link):
    mean, start, values = LINKS[link]
    return Case(
        make=lambda: cls(scale=scale, link=link),
        truth=lambda likelihood, loc, raw_scale=None: Scipy(
            frozen(loc=mean(loc), scale=dispersion(likelihood, raw_scale, "scale", start))
        ),
        **values,
    )


ROWS = {
    "bernoulli": Case(
        make=Bernoulli,
        truth=lambda _, logits: Scipy(stats.bernoulli(special.expit(logits))),
        inside=(0.0, 1.0),
        outside=(0.5, -1.0, 2.0, math.nan),
    ),
    "continuous bernoulli": Case(ContinuousBernoulli, lambda _, logits: ContinuousBernoulliTruth(logits), **UNIT),
    **{
        f"normal, {link} link, scale {scale}": location_scale_case(Normal, stats.norm, scale, link)
        for link, scale in itertools.product(LINKS, [0.3, *LEARNED, "optimal"])
    },
    **{
        f"{name}, {link} link, scale {scale}": location_scale_case(cls, frozen, scale, link)
        for name, cls, frozen in [
            ("laplace", Laplace, lambda **k: stats.gennorm(1, **k)),
            ("student's t", StudentT, lambda **k: stats.t(5, **k)),
        ]
        for link, scale in [*itertools.product(["linear"], [0.3, *LEARNED]), ("sigmoid", "network"), ("tanh", "shared")]
    },
    "student's t, 12 degrees of freedom": Case(
        make=lambda: StudentT(df=12.0, scale=0.3),
        truth=lambda _, loc: Scipy(stats.t(12, loc=loc, scale=0.3)),
        **REAL,
    ),
    **{
        f"log-normal, scale {scale}": Case(
            make=lambda scale=scale: LogNormal(scale=scale),
            truth=lambda likelihood, loc, raw_scale=None: Scipy(
                stats.lognorm(dispersion(likelihood, raw_scale, "scale", 0.5), scale=np.exp(anchored(likelihood, loc)))
            ),
            **POSITIVE,
        )
        for scale in [0.3, *LEARNED]
    },
    **{
        f"gamma, concentration {concentration}": Case(
            make=lambda concentration=concentration: Gamma(concentration=concentration), truth=gamma_truth, **POSITIVE
        )
        for concentration in [3.0, *LEARNED]
    },
    **{
        f"beta, concentration {concentration}": Case(
            make=lambda concentration=concentration: Beta(concentration=concentration),
            truth=beta_truth,
            raw=lambda shape: 1 + 0.4 * torch.randn(shape),
            own=6.0,
            **WITHIN_MARGIN,
        )
        for concentration in [3.0, *LEARNED]
    },
    **{
        f"discretised logistic, {k} levels": Case(
            lambda k=k: DiscretizedLogistic(num_levels=k), logistic_truth, **levels(k)
        )
        for k in (2, 5, 256)
    },
    **{
        f"mixture of {c} discretised logistics, {k} levels": Case(
            lambda k=k, c=c: DiscretizedLogisticMixture(num_levels=k, num_components=c),
            logistic_mixture_truth,
            **levels(k),
        )
        for k, c in [(5, 3), (256, 2)]
    },
    "categorical, amounts": Case(
        make=lambda: Categorical(4),
        truth=lambda _, *raw: Table(special.log_softmax(np.stack(raw, -1), -1)),
        **levels(4),
    ),
    "categorical, kinds": Case(
        make=lambda: Categorical(4, ordered=False),
        truth=lambda _, *raw: Kinds(special.log_softmax(np.stack(raw, -1), -1)),
        **levels(4),
    ),
    "poisson": Case(Poisson, poisson_truth, takes_size_factor=True, **COUNTS),
    "zero-inflated poisson": Case(
        make=ZeroInflatedPoisson,
        truth=lambda likelihood, raw, gate: ZeroInflated(poisson_truth(likelihood, raw), gate),
        takes_size_factor=True,
        **COUNTS,
    ),
    **{
        f"negative binomial, total count {total_count}": Case(
            make=lambda total_count=total_count: NegativeBinomial(total_count=total_count),
            truth=negative_binomial_truth,
            takes_size_factor=True,
            **COUNTS,
        )
        for total_count in [3.0, *LEARNED]
    },
    **{
        f"zero-inflated negative binomial, total count {total_count}": Case(
            make=lambda total_count=total_count: ZeroInflatedNegativeBinomial(total_count=total_count),
            truth=lambda likelihood, raw, gate, raw_count=None: ZeroInflated(
                negative_binomial_truth(likelihood, raw, raw_count), gate
            ),
            takes_size_factor=True,
            **COUNTS,
        )
        for total_count in [3.0, *LEARNED]
    },
}

# The columns of a table; its rows hold the lowest and the highest value of each, or one that it does not describe.
COLUMNS = [
    ROWS["bernoulli"],
    ROWS["normal, linear link, scale network"],
    ROWS["categorical, kinds"],
    ROWS["negative binomial, total count element"],
    ROWS["gamma, concentration shared"],
]

CASES = {
    **ROWS,
    "mixed": Case(
        make=lambda: Mixed([column.make() for column in COLUMNS]),
        truth=mixed_truth,
        inside=tuple([column.inside[i] for column in COLUMNS] for i in (0, -1)),
        outside=tuple([column.outside[i] for column in COLUMNS] for i in (0, -1)),
        events=((len(COLUMNS),),),
    ),
}

UNTOLD = {name: case for name, case in CASES.items() if "element" not in name and "mixed" not in name}

cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
rows = pytest.mark.parametrize("case", ROWS.values(), ids=list(ROWS))
cases_and_events = pytest.mark.parametrize(
    ("case", "event_shape"),
    [
        pytest.param(case, event_shape, id=f"{name}, event {event_shape}")
        for name, case in CASES.items()
        for event_shape in case.events
    ],
)
untold = pytest.mark.parametrize("case", UNTOLD.values(), ids=list(UNTOLD))
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def made(case, event_shape):
    """The case's likelihood for such events, its own parameters moved away from where they start."""
    likelihood = case.make().for_event(event_shape)
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter, mean=case.own)
    for part in likelihood.modules():
        if isinstance(part, Anchored):
            part.anchor.normal_()
    return likelihood


def truth_of(case, likelihood, raw, batch_dim=0):
    return case.truth(likelihood, *np.moveaxis(raw.detach().double().numpy(), batch_dim, 0))


def of_each_entry(likelihood, raw):
    """Sums over the raw outputs ``(*B, num_params, *E)`` of each entry: ``(*B, *E)``."""
    if not isinstance(likelihood, Mixed):
        return raw.sum(-1 - len(likelihood.event_shape))
    return torch.stack([part.sum(-1) for part in raw.split([c.num_params for c in likelihood.columns], -1)], -1)


@cases_and_events
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.usefixtures("float64")
def test_log_prob_equals_the_truth(case, event_shape, batch_shape):
    likelihood = made(case, event_shape)
    raw = case.raw((*batch_shape, *likelihood.raw_shape(event_shape)))
    p_x = likelihood(raw)
    assert (p_x.batch_shape, p_x.event_shape) == (batch_shape, event_shape)
    x = p_x.sample()
    elements = truth_of(case, likelihood, raw, len(batch_shape)).log_prob(x.numpy())
    expected = elements.reshape(*batch_shape, -1).sum(-1)
    np.testing.assert_allclose(p_x.log_prob(x).numpy(force=True), expected, rtol=1e-10, atol=1e-10)


def values_and_widths(p_x, truth):
    """Values of one element to add up a probability over, close together where it may be dense."""
    if truth.discrete:
        x = torch.arange(truth.highest() + 1)
        return x, torch.ones_like(x)
    low, high = bounds(p_x.support)
    if high == 1:
        t = torch.linspace(-36, 36, 40_001)
        return t.sigmoid(), t.sigmoid() * (-t).sigmoid() * (t[1] - t[0])
    if low == 0:
        t = torch.linspace(-150, 150, 40_001)
        return t.exp(), t.exp() * (t[1] - t[0])
    t = torch.linspace(-12, 12, 40_001)
    return p_x.mean + t.sinh(), t.cosh() * (t[1] - t[0])


@rows
@pytest.mark.usefixtures("float64")
def test_probability_sums_to_one(case):
    likelihood = made(case, ())
    raw = case.raw(likelihood.raw_shape(()))
    p_x = likelihood(raw)
    x, widths = values_and_widths(p_x, truth_of(case, likelihood, raw))
    assert (p_x.log_prob(x).exp() * widths).sum().item() == pytest.approx(1, abs=1e-6)


@cases
@pytest.mark.usefixtures("float64")
def test_mean_and_variance_equal_the_truth(case):
    event_shape = case.events[-1]
    likelihood = made(case, event_shape)
    raw = case.raw((3, *likelihood.raw_shape(event_shape)))
    p_x = likelihood(raw)
    mean, variance = truth_of(case, likelihood, raw, 1).moments()
    np.testing.assert_allclose(p_x.mean.numpy(force=True), mean, rtol=1e-9)
    np.testing.assert_allclose(p_x.variance.numpy(force=True), np.broadcast_to(variance, (3, *event_shape)), rtol=1e-9)


@cases
@pytest.mark.usefixtures("float64")
def test_samples_follow_the_truth_and_have_its_mean(case):
    event_shape, num_samples = case.events[-1], 5000
    likelihood = made(case, event_shape)
    raw = case.raw(likelihood.raw_shape(event_shape))
    truth = truth_of(case, likelihood, raw)
    x = likelihood(raw).sample(torch.Size([num_samples])).numpy()
    uniform = truth.uniform(x, np.random.default_rng(0))
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > 1e-3
    mean, variance = truth.moments()
    errors = (x.mean(0) - mean) / np.sqrt(variance / num_samples)
    assert np.nanmax(np.abs(errors), initial=0.0) < 5  # kinds without an order have no variance


@rows
def test_mean_and_variance_hold_in_single_precision(case):
    likelihood = case.make().for_event(())
    raw = torch.tensor(extremes(likelihood.num_params, (-4.0, 0.01, 4.0)))
    single = likelihood(raw)
    double = likelihood.double()(raw.double())
    torch.testing.assert_close(single.mean.double(), double.mean, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(single.variance.double(), double.variance, rtol=1e-3, atol=1e-6, equal_nan=True)


def extremes(length, values=(-30.0, 30.0)):
    """All rows of these values, or as many as are enough."""
    if len(values) ** length <= 256:
        return list(itertools.product(values, repeat=length))
    return np.random.default_rng(0).choice(values, (64, length)).tolist()


@cases
@dtypes
def test_log_prob_stays_right_and_gradients_finite_at_extreme_raw_outputs(case, dtype):
    event_shape = case.events[0]
    likelihood, x = case.make().for_event(event_shape).to(dtype), torch.tensor(case.inside, dtype=dtype)
    raw_shape, own = likelihood.raw_shape(event_shape), list(likelihood.parameters())
    for values in extremes(math.prod(raw_shape) + len(own)):
        raw = torch.tensor(values[len(own) :], dtype=dtype).reshape(raw_shape).requires_grad_()
        for parameter, value in zip(own, values, strict=False):
            torch.nn.init.constant_(parameter, value)
        log_prob = likelihood(raw).log_prob(x)
        expected = truth_of(case, likelihood, raw).log_prob(x.double().numpy()).reshape(len(x), -1).sum(1)
        np.testing.assert_allclose(log_prob.numpy(force=True), expected, rtol=1e-4, atol=1e-4)
        for one in log_prob:
            gradients = torch.autograd.grad(one, [raw, *own], retain_graph=True)
            assert all(g.isfinite().all() for g in gradients)


@cases
@dtypes
def test_samples_and_log_prob_have_the_type_of_the_raw_output(case, dtype):
    event_shape = case.events[-1]
    likelihood = case.make().for_event(event_shape).to(dtype)
    p_x = likelihood(case.raw((3, *likelihood.raw_shape(event_shape))).to(dtype))
    assert p_x.sample().dtype == p_x.log_prob(p_x.sample()).dtype == dtype


@cases
def test_data_range_holds_the_values_described_and_no_others(case):
    data_range = case.make().data_range
    assert data_range.check(torch.tensor(case.inside)).all()
    assert not data_range.check(torch.tensor(case.outside)).any()


@cases
def test_copies_for_events_share_no_tensors(case):
    original = case.make()
    copies = [original, *(original.for_event(case.events[-1]) for _ in range(2))]
    tensors = [t for copy in copies for t in (*copy.parameters(), *copy.buffers())]
    assert len({t.data_ptr() for t in tensors}) == len(tensors)


@cases_and_events
def test_raw_output_of_a_wrong_shape_is_refused_and_both_shapes_named(case, event_shape):
    likelihood = case.make().for_event(event_shape)
    first, *others = likelihood.raw_shape(event_shape)
    expected = ", ".join(map(str, (first, *others)))
    for wrong in [(5, first + 1, *others), (5, first, *others, 7), tuple(others)]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            likelihood(torch.zeros(wrong))
        assert f"(*batch, {expected})" in str(caught.value)
        assert f"found {wrong}" in str(caught.value)


@cases_and_events
@pytest.mark.usefixtures("float64")
def test_masked_entries_add_nothing_and_have_no_gradient(case, event_shape):
    likelihood = made(case, event_shape)
    raw = case.raw((3, *likelihood.raw_shape(event_shape))).requires_grad_()
    mask = torch.rand((3, *event_shape)) < 0.5
    x, other = likelihood(raw).sample(), likelihood(raw).sample()
    log_prob = likelihood(raw, mask=mask).log_prob(x)
    elements = truth_of(case, likelihood, raw, 1).log_prob(x.numpy())
    expected = (elements * mask.numpy()).reshape(3, -1).sum(-1)
    np.testing.assert_allclose(log_prob.numpy(force=True), expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(likelihood(raw, mask=mask).log_prob(torch.where(mask, x, other)), log_prob)
    (gradient,) = torch.autograd.grad(log_prob.sum(), raw)
    assert gradient.isfinite().all()
    assert torch.equal(of_each_entry(likelihood, gradient.abs())[~mask], torch.zeros(int((~mask).sum())))


@cases
def test_a_row_masked_throughout_adds_exactly_nothing_even_at_the_ends_of_the_support(case):
    event_shape = case.events[0]
    likelihood = case.make().for_event(event_shape)
    x = torch.tensor(case.inside)
    for value in (-30.0, 0.0, 30.0):
        raw = torch.full((len(x), *likelihood.raw_shape(event_shape)), value, requires_grad=True)
        log_prob = likelihood(raw, mask=torch.zeros(x.shape, dtype=torch.bool)).log_prob(x)
        assert torch.equal(log_prob, torch.zeros(len(x)))
        for gradient in torch.autograd.grad(log_prob.sum(), [raw, *likelihood.parameters()]):
            assert torch.equal(gradient, torch.zeros_like(gradient))


@rows
@pytest.mark.usefixtures("float64")
def test_a_size_factor_multiplies_the_mean_row_by_row_where_it_is_taken(case):
    size_factor = torch.tensor([1, 3, 20])
    for event_shape in case.events:
        likelihood = made(case, event_shape)
        raw = case.raw((3, *likelihood.raw_shape(event_shape)))
        if not case.takes_size_factor:
            with pytest.raises(TypeError, match="size_factor"):
                likelihood(raw, size_factor=size_factor)
            continue
        p_x = likelihood(raw, size_factor=size_factor)
        factor = size_factor.reshape(3, *([1] * len(event_shape)))
        torch.testing.assert_close(p_x.mean, factor * likelihood(raw).mean)
        raw[:, 0] += factor.log()
        x = p_x.sample()
        expected = truth_of(case, likelihood, raw, 1).log_prob(x.numpy()).reshape(3, -1).sum(1)
        np.testing.assert_allclose(p_x.log_prob(x).numpy(force=True), expected, rtol=1e-10, atol=1e-10)


@cases
def test_asking_for_moments_or_draws_leaves_log_prob_as_it_was(case):
    event_shape = case.events[0]
    likelihood, x = case.make().for_event(event_shape), torch.tensor(case.inside)
    raw_shape = likelihood.raw_shape(event_shape)
    for values in extremes(math.prod(raw_shape), (-15.0, 15.0)):
        p_x = likelihood(torch.tensor(values).reshape(raw_shape))
        before = p_x.log_prob(x)
        assert p_x.sample().shape == p_x.mean.shape == p_x.variance.shape
        torch.testing.assert_close(p_x.log_prob(x), before)


@untold
def test_a_wrong_number_of_raw_outputs_is_refused_before_the_event_is_known(case):
    likelihood = case.make()
    with pytest.raises(ValueError, match="raw output"):
        likelihood(torch.zeros(5, likelihood.num_params + 1, 4))


@untold
def test_a_head_that_was_not_told_its_event_takes_events_of_one_dimension(case):
    likelihood = case.make()
    raw = case.raw((3, likelihood.num_params, 4))
    p_x, expected = likelihood(raw), likelihood.for_event((4,))(raw)
    x = expected.sample()
    assert (p_x.batch_shape, p_x.event_shape) == ((3,), (4,))
    torch.testing.assert_close(p_x.log_prob(x), expected.log_prob(x))


# Positive parameters that can be learned: which class, which argument, and where a learned one starts.
DISPERSED = [
    *(
        (lambda cls=cls, link=link, **kwargs: cls(link=link, **kwargs), "scale", start)
        for cls in (Normal, Laplace, StudentT)
        for link, (_, start, _) in LINKS.items()
    ),
    (LogNormal, "scale", 0.5),
    (Gamma, "concentration", 1.0),
    (Beta, "concentration", 2.0),
    (NegativeBinomial, "total_count", 1.0),
    (ZeroInflatedNegativeBinomial, "total_count", 1.0),
]
dispersed = pytest.mark.parametrize(("make", "name", "start"), DISPERSED)
learned = pytest.mark.parametrize("kind", LEARNED)


def dispersion_in_force(likelihood, raw):
    """The positive parameter of each of four elements, where all that it may depend on is ``raw``."""
    for parameter in likelihood.parameters():
        torch.nn.init.constant_(parameter, raw)
    return likelihood.dispersion([torch.full((4,), raw)] * likelihood.num_params).expand(4)


@dispersed
@pytest.mark.parametrize("kind", ["shared", "element"])
def test_a_value_for_each_element_says_that_it_needs_to_know_the_event_and_one_for_all_does_not(
    make, name, start, kind
):
    likelihood = make(**{name: kind})
    raw = torch.zeros(5, likelihood.num_params, 4)
    if kind == "shared":
        assert likelihood(raw).event_shape == (4,)
    else:
        with pytest.raises(ValueError, match=rf"{name}='element' .* call for_event\(event_shape\) first"):
            likelihood(raw)


@pytest.mark.parametrize("scale", ["shared", "element"])
def test_two_models_made_with_one_likelihood_learn_their_own_scales(scale):
    likelihood = Normal(scale=scale)
    first, second = (mlp_vae((4,), 2, likelihood=likelihood, hidden_dims=()) for _ in range(2))
    with torch.no_grad():
        next(first.decoder.likelihood.parameters()).fill_(3.0)
    scales = [vae.decoder(torch.zeros(2)).variance.sqrt() for vae in (first, second)]
    torch.testing.assert_close(scales[0], torch.full((4,), float(softplus(3.0) + FLOOR)))
    torch.testing.assert_close(scales[1], torch.ones(4))


@dispersed
@learned
def test_a_learned_value_starts_where_it_is_said_to(make, name, start, kind):
    likelihood = make(**{name: kind}).for_event((4,))
    found = likelihood.dispersion([torch.zeros(4)] * likelihood.num_params).expand(4)
    torch.testing.assert_close(found, torch.full((4,), start))


@dispersed
@learned
@pytest.mark.parametrize("floor", [1e-3, 0.7, 200.0])
@pytest.mark.usefixtures("float64")
def test_a_learned_value_never_falls_below_its_floor(make, name, start, kind, floor):
    likelihood = make(**{name: kind, f"min_{name}": floor}).for_event((4,))
    torch.testing.assert_close(dispersion_in_force(likelihood, -1e4), torch.full((4,), floor))


@dispersed
@learned
def test_a_large_floor_starts_at_a_finite_value(make, name, start, kind):
    likelihood = make(**{name: kind, f"min_{name}": 200.0}).for_event((4,))
    assert likelihood.dispersion([torch.zeros(4)] * likelihood.num_params).isfinite().all()


def test_a_mixture_of_one_component_is_the_discretised_logistic():
    raw, x = torch.randn(50, 2, 4), torch.randint(0, 256, (50, 4)).float()
    mixture = DiscretizedLogisticMixture(num_components=1)(torch.cat([torch.randn(50, 1, 4), raw], 1))
    torch.testing.assert_close(mixture.log_prob(x), DiscretizedLogistic()(raw).log_prob(x))


def test_the_components_of_a_mixture_start_apart():
    components = DiscretizedLogisticMixture(num_components=3)(torch.zeros(9, 4)).base_dist.component_distribution
    assert isinstance(components, DiscretizedLogisticDistribution)
    assert len(components.loc[0].unique()) == 3


@pytest.mark.parametrize("df", [1.5, 2.0, 2.5])
def test_students_t_has_a_variance_above_two_degrees_of_freedom(df):
    variance = StudentT(df=df, scale=0.3)(torch.zeros(1, 4)).variance
    torch.testing.assert_close(variance, torch.full((4,), float(stats.t.var(df, scale=0.3))))


# The scale that is best for each batch.


def optimal_batch(num_rows=50):
    """A likelihood, raw outputs, rows and a mask."""
    likelihood = Normal(scale="optimal", link="sigmoid").for_event((2, 3))
    raw = torch.randn(num_rows, 1, 2, 3)
    x = torch.sigmoid(raw[:, 0]) + 0.2 * torch.randn(num_rows, 2, 3)
    return likelihood, raw, x, torch.rand(num_rows, 2, 3) < 0.7


def scale_in_force(likelihood):
    scale = likelihood(torch.zeros(likelihood.raw_shape(likelihood.event_shape))).variance.sqrt()
    assert len(scale.unique()) == 1
    return scale.flatten()[0].item()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("float64")
def test_the_optimal_scale_of_a_training_batch_is_where_its_likelihood_is_highest(masked):
    likelihood, raw, x, mask = optimal_batch()
    x = torch.where(mask, x, 1e6) if masked else x
    likelihood.observe(raw, x, mask if masked else None)
    residuals = (x - torch.sigmoid(raw[:, 0])).numpy()
    residuals = residuals[mask.numpy()] if masked else residuals.ravel()
    assert scale_in_force(likelihood) == pytest.approx(math.sqrt(np.mean(residuals**2)), rel=1e-12)
    best = optimize.minimize_scalar(lambda log: -stats.norm.logpdf(residuals, scale=math.exp(log)).sum(), tol=1e-12)
    assert scale_in_force(likelihood) == pytest.approx(math.exp(best.x), rel=1e-6)
    other = Normal(scale=math.exp(best.x), link="sigmoid").for_event((2, 3))
    mask = mask if masked else torch.ones_like(mask)
    log_prob = likelihood(raw, mask=mask).log_prob(x).sum().item()
    assert log_prob == pytest.approx(other(raw, mask=mask).log_prob(x).sum().item(), rel=1e-9)


@pytest.mark.usefixtures("float64")
def test_the_optimal_scale_lets_the_network_learn_as_a_fixed_one_of_that_size_would():
    likelihood, raw, x, mask = optimal_batch()
    raw.requires_grad_()
    likelihood.observe(raw, x, mask)
    fixed = Normal(scale=scale_in_force(likelihood), link="sigmoid").for_event((2, 3))
    found, expected = (torch.autograd.grad(p(raw, mask=mask).log_prob(x).sum(), raw)[0] for p in (likelihood, fixed))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_the_optimal_scale_outside_of_training_is_the_running_average():
    likelihood, raw, _, mask = optimal_batch()
    spreads, variances = [2.0, 0.1, 0.5, 1.0], []
    for spread in spreads:
        x = torch.sigmoid(raw[:, 0]) + spread * torch.randn(50, 2, 3)
        likelihood.observe(raw, x, mask)
        variances.append((x - torch.sigmoid(raw[:, 0]))[mask].square().mean().item())
    assert scale_in_force(likelihood) == pytest.approx(math.sqrt(variances[-1]))
    weights = 0.99 ** np.arange(len(spreads))[::-1]
    expected = math.sqrt(np.average(variances, weights=weights))
    assert scale_in_force(likelihood.eval()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("link", "start"), [(link, start) for link, (_, start, _) in LINKS.items()])
def test_the_optimal_scale_starts_where_the_link_says_and_keeps_above_its_floor(link, start):
    likelihood = Normal(scale="optimal", link=link, min_scale=0.05).for_event((4,))
    assert scale_in_force(likelihood) == scale_in_force(likelihood.eval()) == pytest.approx(start)
    raw = torch.randn(9, 1, 4)
    likelihood.train().observe(raw, likelihood.location(raw[:, 0]))
    assert scale_in_force(likelihood) == scale_in_force(likelihood.eval()) == pytest.approx(0.05)


@pytest.mark.usefixtures("float64")
def test_a_model_observes_its_training_batches_and_no_others():
    vae = mlp_vae((4,), 2, likelihood=Normal(scale="optimal"), hidden_dims=())
    likelihood, x, mask = vae.decoder.likelihood, 3 * torch.randn(50, 4), torch.rand(50, 4) < 0.7
    vae.eval()
    vae.model(x)
    vae.train()
    vae.model(batch_size=50)
    assert scale_in_force(likelihood) == 1
    z = torch.randn(50, 2)
    p_x = vae.decoder(z, x, mask)
    expected = (x - vae.decoder.network(z)[:, 0])[mask].square().mean().sqrt().item()
    assert scale_in_force(likelihood) == pytest.approx(expected)
    assert p_x.log_prob(x).sum().item() == pytest.approx(
        stats.norm.logpdf(x[mask], vae.decoder.network(z)[:, 0].detach()[mask], expected).sum()
    )


def test_the_optimal_scale_of_a_column_in_a_table_follows_its_residuals():
    mixed = Mixed((Bernoulli(), Normal(scale="optimal"))).for_event((2,))
    raw, bits, reals = torch.randn(50, 2), torch.randint(0, 2, (50,)), 7 * torch.randn(50)
    mask = torch.stack([torch.ones(50, dtype=torch.bool), torch.rand(50) < 0.5], 1)
    mixed.observe(raw, torch.stack([bits, reals], 1), mask)
    expected = (reals - raw[:, 1])[mask[:, 1]].square().mean()
    torch.testing.assert_close(mixed(raw).variance[:, 1], expected.expand(50))


# The anchor that logarithms of means count from.

ANCHORED_COUNTS = [Poisson, ZeroInflatedPoisson, NegativeBinomial, ZeroInflatedNegativeBinomial]
anchored_cases = pytest.mark.parametrize("make", [LogNormal, Gamma, *ANCHORED_COUNTS])


@anchored_cases
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("float64")
def test_the_anchor_is_the_logarithm_of_each_elements_mean_in_the_first_batch_and_is_kept(make, masked):
    likelihood, mask = make().for_event((2, 3)), torch.rand(50, 2, 3) < 0.5
    # Counts have a mean of about one, or they are hardly ever seen; measurements are in any unit.
    x = torch.logspace(0 if make in ANCHORED_COUNTS else -4, 4, 6).reshape(2, 3) * (1 + torch.rand(50, 2, 3))
    raw = torch.randn(50, *likelihood.raw_shape((2, 3)))
    before = likelihood(raw).mean
    likelihood.observe(raw, x, mask if masked else None)
    means = np.nanmean(torch.where(mask, x, math.nan).numpy() if masked else x.numpy(), axis=0)
    np.testing.assert_allclose(likelihood(raw).mean.numpy(force=True), before.numpy(force=True) * means, rtol=1e-9)
    likelihood.observe(raw, 100 * x)
    np.testing.assert_allclose(likelihood(raw).mean.numpy(force=True), before.numpy(force=True) * means, rtol=1e-9)


@anchored_cases
def test_an_element_that_the_first_batch_does_not_show_is_left_where_it_was(make):
    likelihood, mask = make().for_event((2,)), torch.tensor([True, False]).expand(50, 2)
    raw, x = torch.zeros(50, *likelihood.raw_shape((2,))), torch.full((50, 2), 300.0)
    before = likelihood(raw).mean
    likelihood.observe(raw, x, mask)
    torch.testing.assert_close(likelihood(raw).mean, before * torch.tensor([300.0, 1.0]))


@pytest.mark.parametrize("make", ANCHORED_COUNTS)
def test_an_element_that_is_always_zero_has_a_finite_anchor(make):
    likelihood = make().for_event((2,))
    raw = torch.zeros(5, *likelihood.raw_shape((2,)))
    likelihood.observe(raw, torch.zeros(5, 2))
    assert likelihood(raw).mean.isfinite().all()
    assert (likelihood(raw).mean > 0).all()


@anchored_cases
def test_a_model_takes_its_anchor_from_training_rows_alone(make):
    vae, x = mlp_vae((4,), 2, likelihood=make(), hidden_dims=()), torch.full((50, 4), 300.0)
    vae.eval()
    vae.model(x)
    vae.train()
    vae.model(batch_size=50)
    assert torch.equal(vae.decoder.likelihood.anchor, torch.zeros(4))
    vae.model(x)
    torch.testing.assert_close(vae.decoder.likelihood.anchor, torch.full((4,), math.log(300)))


@pytest.mark.parametrize("make", ANCHORED_COUNTS)
def test_the_anchor_reckons_with_size_factors(make):
    vae, size_factor = mlp_vae((4,), 2, likelihood=make(), hidden_dims=()), torch.logspace(2, 4, 50)
    raw = torch.zeros(50, *vae.decoder.likelihood.raw_shape((4,)))
    before = vae.decoder.likelihood(raw).mean
    vae.model(3 * size_factor[:, None].round().expand(50, 4), size_factor=size_factor.round())
    torch.testing.assert_close(vae.decoder.likelihood(raw).mean, 3 * before)


# Arguments.


@pytest.mark.parametrize(
    ("cls", "wrong", "sentence"),
    [
        *(
            (
                cls,
                {name: value},
                f"^{name} must be a positive number or one of shared, element, network.*; found {value}$",
            )
            for cls, name in [
                (Normal, "scale"),
                (Laplace, "scale"),
                (StudentT, "scale"),
                (LogNormal, "scale"),
                (Gamma, "concentration"),
                (Beta, "concentration"),
                (NegativeBinomial, "total_count"),
                (ZeroInflatedNegativeBinomial, "total_count"),
            ]
            for value in (0.0, -0.1, math.nan, math.inf)
        ),
        *(
            (cls, {f"min_{name}": value}, f"^min_{name} must be a positive number.*; found {value}$")
            for cls, name in [
                (Normal, "scale"),
                (Laplace, "scale"),
                (StudentT, "scale"),
                (LogNormal, "scale"),
                (Gamma, "concentration"),
                (Beta, "concentration"),
                (NegativeBinomial, "total_count"),
                (ZeroInflatedNegativeBinomial, "total_count"),
            ]
            for value in (0.0, -1.0, math.nan, math.inf)
        ),
        (Normal, {"scale": "elements"}, "unknown scale 'elements': did you mean 'element'"),
        (Normal, {"scale": "optimum"}, "unknown scale 'optimum': did you mean 'optimal'"),
        (Laplace, {"scale": "optimal"}, "unknown scale 'optimal'; known: shared, element, network"),
        (Gamma, {"concentration": "share"}, "unknown concentration 'share': did you mean 'shared'"),
        (NegativeBinomial, {"total_count": "net"}, "unknown total_count 'net'"),
        (Normal, {"link": "sigmod"}, "unknown link 'sigmod': did you mean 'sigmoid'"),
        (Laplace, {"link": "tan"}, "unknown link 'tan': did you mean 'tanh'"),
        (StudentT, {"link": "line"}, "unknown link 'line': did you mean 'linear'"),
        *((StudentT, {"df": df}, f"^df must be .*; found {df}$") for df in (1.0, 0.0, -3.0, math.nan, math.inf)),
        *((Beta, {"margin": m}, f"^margin must .*0 and 0.5.*found {m}$") for m in (0.0, 0.5, -0.1, 0.9, math.nan)),
        *(
            (cls, {"num_levels": k}, f"^num_levels must be at least 2, found {k}$")
            for cls in (DiscretizedLogistic, DiscretizedLogisticMixture, Categorical)
            for k in (1, 0, -2)
        ),
        *(
            (cls, {"min_scale": value}, f"^min_scale must be .*found {value}$")
            for cls in (DiscretizedLogistic, DiscretizedLogisticMixture)
            for value in (0.0, -1.0, math.nan, math.inf)
        ),
        *(
            (DiscretizedLogisticMixture, {"num_components": k}, f"^num_components must be at least 1, found {k}$")
            for k in (0, -1)
        ),
        (Mixed, {"columns": ()}, "^Mixed needs a likelihood for at least one column$"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_bad_arguments_are_refused_with_a_sentence(cls, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        cls(**wrong)


@pytest.mark.parametrize("event_shape", [(), (1,), (3,), (2, 1)], ids=str)
def test_a_table_with_another_number_of_columns_is_refused(event_shape):
    with pytest.raises(
        ValueError, match=rf"Mixed has 2 columns, found rows of shape \({', '.join(map(str, event_shape))}"
    ):
        Mixed((Bernoulli(), Normal())).raw_shape(event_shape)
