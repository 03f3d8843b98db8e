"""Distributions of our own: their numbers against SciPy and against sums over every level."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

from pyro_vae.distributions import Bernoulli, Columns, ContinuousBernoulli, DiscretizedLogistic, Kinds, Levels

batches = pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
scales = pytest.mark.parametrize("scale", [1e-3, 3e-3, 1e-2, 0.1, 1.0, 10.0])
num_levels_of = pytest.mark.parametrize("num_levels", [2, 5, 256])
LOCATIONS = np.concatenate([np.linspace(-1.5, 1.5, 31), [1e-3, -1e-3, 1 / 255]])


def logistic_log_probs(loc, scale, num_levels):
    """Log-probabilities ``(*B, K)`` as differences of the distribution function, on the side of the nearer tail."""
    edges = (2 * np.arange(1, num_levels) - 1) / (num_levels - 1) - 1
    edges = (edges - np.expand_dims(loc, -1)) / np.expand_dims(scale, -1)
    ends = np.full((*edges.shape[:-1], 1), np.inf)
    low, high = np.concatenate([-ends, edges], -1), np.concatenate([edges, ends], -1)
    low, high = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
    log_low, log_high = stats.logistic.logcdf(low), stats.logistic.logcdf(high)
    return log_high + np.log1p(-np.exp(log_low - log_high))


def moments_of(log_probs):
    p, level = np.exp(log_probs), np.arange(log_probs.shape[-1])
    mean = (p * level).sum(-1)
    return mean, (p * (level - mean[..., None]) ** 2).sum(-1)


def logistic(scale, num_levels, dtype):
    loc = torch.as_tensor(LOCATIONS, dtype=dtype)
    return DiscretizedLogistic(loc, torch.tensor(scale, dtype=dtype), num_levels)


def all_levels(num_levels, dtype):
    return torch.arange(num_levels, dtype=dtype)[:, None]


@scales
@num_levels_of
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=str)
def test_probabilities_of_a_discretised_logistic_are_differences_of_its_distribution_function(
    scale, num_levels, dtype, tolerance
):
    p = logistic(scale, num_levels, dtype)
    found = p.log_prob(all_levels(num_levels, dtype)).numpy()
    # At the locations and the scale as they are in this type.
    expected = logistic_log_probs(p.loc.double().numpy(), p.scale.double().numpy(), num_levels).T
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@scales
@num_levels_of
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=str)
def test_probabilities_of_a_discretised_logistic_sum_to_one(scale, num_levels, dtype, tolerance):
    total = logistic(scale, num_levels, dtype).log_prob(all_levels(num_levels, dtype)).exp().sum(0)
    np.testing.assert_allclose(total.numpy(), 1, atol=tolerance)


@scales
@num_levels_of
@pytest.mark.parametrize(
    ("dtype", "tolerance", "least"), [(torch.float64, 1e-9, 1e-12), (torch.float32, 1e-3, 1e-8)], ids=str
)
def test_moments_of_a_discretised_logistic_equal_sums_over_every_level(scale, num_levels, dtype, tolerance, least):
    p = logistic(scale, num_levels, dtype)
    log_probs = logistic_log_probs(p.loc.double().numpy(), p.scale.double().numpy(), num_levels)
    mean, variance = moments_of(log_probs)
    np.testing.assert_allclose(p.mean.numpy(), mean, rtol=tolerance, atol=tolerance)
    assert (p.variance >= 0).all()
    np.testing.assert_allclose(p.variance.numpy(), variance, rtol=tolerance, atol=least)


@scales
def test_levels_are_drawn_as_often_as_they_are_probable(scale):
    num_draws, p = 20_000, logistic(scale, 5, torch.float32)
    draws = p.sample(torch.Size([num_draws]))
    probable = logistic_log_probs(p.loc.double().numpy(), p.scale.double().numpy(), 5)
    for level in range(5):
        share, expected = (draws == level).double().mean(0).numpy(), np.exp(probable[:, level])
        error = np.sqrt(expected * (1 - expected) / num_draws)
        assert (np.abs(share - expected) <= 5 * error + 1 / num_draws).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_log_probabilities_far_out_are_finite_and_so_are_their_gradients(dtype):
    loc = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype, requires_grad=True)
    for scale in (1e-6, 1e-3, 1.0, 1e3):
        scale = torch.tensor(scale, dtype=dtype, requires_grad=True)
        log_prob = DiscretizedLogistic(loc, scale, 256).log_prob(torch.tensor([[0.0], [128.0], [255.0]], dtype=dtype))
        assert log_prob.isfinite().all()
        assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), [loc, scale]))


def test_a_discretised_logistic_refuses_bad_arguments_and_values():
    with pytest.raises(ValueError, match="scale"):
        DiscretizedLogistic(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="loc"):
        DiscretizedLogistic(torch.tensor(math.nan), torch.tensor(1.0))
    for value in (-1.0, 0.5, 256.0, math.nan):
        with pytest.raises(ValueError, match="support"):
            DiscretizedLogistic(torch.zeros(()), torch.ones(())).log_prob(torch.tensor(value))


# Values in [0, 1]: an exponential distribution cut off at 1, turned round where it rises.

LOGITS = np.concatenate(
    [sign * np.array([1e-4, 1e-3, 0.01, 0.049, 0.051, 0.1, 0.5, 1.0, 5.0, 16.0, 30.0, 80.0]) for sign in (-1, 1)]
)


def cut_exponential(logits):
    return stats.truncexpon(np.abs(logits), scale=1 / np.abs(logits))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_densities_of_a_continuous_bernoulli_are_those_of_a_cut_exponential(dtype, tolerance):
    logits, x = torch.as_tensor(LOGITS, dtype=dtype), torch.tensor([[0.0], [0.25], [1.0]], dtype=dtype)
    logits.requires_grad_()
    log_prob = ContinuousBernoulli(logits=logits).log_prob(x)
    from_start = np.where(LOGITS > 0, 1 - x.numpy(), x.numpy())
    expected = cut_exponential(logits.detach().double().numpy()).logpdf(from_start)
    np.testing.assert_allclose(log_prob.numpy(force=True), expected, rtol=tolerance, atol=tolerance)
    assert all(torch.autograd.grad(one, logits, retain_graph=True)[0].isfinite().all() for one in log_prob.flatten())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=str)
def test_moments_of_a_continuous_bernoulli_are_those_of_a_cut_exponential(dtype, tolerance):
    # Worked out by adding up, for SciPy's own formulas cancel where the logit is small.
    x = (np.arange(200_000) + 0.5) / 200_000
    density = np.exp(-np.abs(LOGITS)[:, None] * x)
    density /= density.mean(1, keepdims=True)
    mean = (density * x).mean(1)
    variance = (density * (x - mean[:, None]) ** 2).mean(1)
    p = ContinuousBernoulli(logits=torch.as_tensor(LOGITS, dtype=dtype))
    np.testing.assert_allclose(p.mean.numpy(), np.where(LOGITS > 0, 1 - mean, mean), rtol=max(tolerance, 1e-7))
    np.testing.assert_allclose(p.variance.numpy(), variance, rtol=max(tolerance, 1e-6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_of_a_continuous_bernoulli_follow_a_cut_exponential(dtype):
    x = ContinuousBernoulli(logits=torch.as_tensor(LOGITS, dtype=dtype)).sample(torch.Size([5000])).double().numpy()
    assert ((x >= 0) & (x <= 1)).all()
    for column, logit in zip(x.T, LOGITS, strict=True):
        from_start = 1 - column if logit > 0 else column
        assert stats.kstest(cut_exponential(logit).cdf(from_start), "uniform").pvalue > 1e-4


def test_a_continuous_bernoulli_with_logits_of_zero_is_uniform():
    p = ContinuousBernoulli(logits=torch.zeros(3))
    assert p.log_prob(torch.tensor([0.0, 0.3, 1.0])).abs().max() < 1e-6
    torch.testing.assert_close(p.mean, torch.full((3,), 0.5))
    torch.testing.assert_close(p.variance, torch.full((3,), 1 / 12))
    assert stats.kstest(p.sample(torch.Size([5000])).flatten().numpy(), "uniform").pvalue > 1e-4


# Levels and kinds.


@batches
@pytest.mark.parametrize("cls", [Levels, Kinds])
@pytest.mark.usefixtures("float64")
def test_log_probabilities_of_categories_are_their_logits_normalised(cls, batch_shape):
    logits = torch.randn(*batch_shape, 6)
    p, x = cls(logits=logits), torch.randint(6, batch_shape)
    expected = np.take_along_axis(special.log_softmax(logits.numpy(), -1), x.numpy()[..., None], -1)[..., 0]
    for value in (x, x.double()):
        np.testing.assert_allclose(p.log_prob(value).numpy(), expected, rtol=1e-12)


@batches
@pytest.mark.usefixtures("float64")
def test_moments_of_levels_are_sums_over_them_and_those_of_draws(batch_shape):
    logits, num_draws = torch.randn(*batch_shape, 6), 20_000
    p = Levels(logits=logits)
    mean, variance = moments_of(special.log_softmax(logits.numpy(), -1))
    np.testing.assert_allclose(p.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(p.variance.numpy(), variance, rtol=1e-11)
    draws = p.sample(torch.Size([num_draws])).double().numpy()
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / num_draws)).all()
    fourth = ((draws - draws.mean(0)) ** 4).mean(0)
    assert (np.abs(draws.var(0) - variance) < 5 * np.sqrt((fourth - variance**2) / num_draws)).all()


@pytest.mark.parametrize("top", [0, 1, 200, 255])
def test_the_variance_of_levels_that_are_almost_certain_is_right_in_single_precision(top):
    logits = torch.zeros(256)
    logits[top] = 16.0
    mean, variance = moments_of(special.log_softmax(logits.double().numpy(), -1))
    np.testing.assert_allclose(Levels(logits=logits).mean.numpy(), mean, rtol=1e-4)
    np.testing.assert_allclose(Levels(logits=logits).variance.numpy(), variance, rtol=1e-3)


@batches
def test_the_most_probable_kind_stands_in_for_the_mean(batch_shape):
    logits = torch.randn(*batch_shape, 6)
    p = Kinds(logits=logits)
    assert p.mean.dtype == logits.dtype
    np.testing.assert_array_equal(p.mean.numpy(), logits.numpy().argmax(-1))
    assert p.variance.shape == batch_shape
    assert p.variance.isnan().all()


@pytest.mark.parametrize("cls", [Levels, Kinds])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_of_categories_have_the_type_of_the_logits(cls, dtype):
    assert cls(logits=torch.randn(3, 6, dtype=dtype)).sample().dtype == dtype


# Columns.


def columns_of(*batch_shape):
    """Columns of several kinds, and SciPy's distribution of each."""
    loc, rate, logits = torch.randn(batch_shape), torch.rand(batch_shape) + 0.5, torch.randn(*batch_shape, 4)
    parts = [
        dist.Normal(loc, 0.3),
        dist.Bernoulli(logits=loc),
        Levels(logits=logits),
        dist.Gamma(torch.tensor(2.0), rate),
        dist.Poisson(rate),
    ]
    level = np.arange(4)
    truths = [
        stats.norm(loc.numpy(), 0.3),
        stats.bernoulli(special.expit(loc.numpy())),
        None,
        stats.gamma(2.0, scale=1 / rate.numpy()),
        stats.poisson(rate.numpy()),
    ]
    p = special.softmax(logits.numpy(), -1)
    level_mean = (p * level).sum(-1)
    means = [level_mean if truth is None else truth.mean() for truth in truths]
    variances = [(p * (level - level_mean[..., None]) ** 2).sum(-1) if t is None else t.var() for t in truths]

    def log_prob(x):
        of_levels = np.take_along_axis(np.broadcast_to(np.log(p), (*x.shape[:-1], 4)), x[..., 2:3].astype(int), -1)
        parts = [(t.logpdf if hasattr(t.dist, "logpdf") else t.logpmf)(x[..., i]) for i, t in enumerate(truths) if t]
        return np.stack([*parts[:2], of_levels[..., 0], *parts[2:]], -1)

    return Columns(parts), log_prob, np.stack(means, -1), np.stack(np.broadcast_arrays(*variances), -1)


@batches
@pytest.mark.usefixtures("float64")
def test_columns_are_each_their_own_distribution(batch_shape):
    num_draws = 20_000
    p, log_prob, mean, variance = columns_of(*batch_shape)
    assert (p.batch_shape, p.event_shape) == ((*batch_shape, 5), ())
    np.testing.assert_allclose(p.mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(p.variance.numpy(), variance, rtol=1e-10)
    x = p.sample(torch.Size([num_draws]))
    assert x.shape == (num_draws, *batch_shape, 5)
    assert p.support.check(x).all()
    np.testing.assert_allclose(p.log_prob(x).numpy(), log_prob(x.numpy()), rtol=1e-10, atol=1e-12)
    assert (np.abs(x.numpy().mean(0) - mean) < 5 * np.sqrt(variance / num_draws)).all()
    correlation = torch.corrcoef(x.reshape(num_draws, -1).T) - torch.eye(math.prod(batch_shape) * 5)
    assert correlation.abs().max() < 5 / math.sqrt(num_draws)


@pytest.mark.usefixtures("float64")
def test_columns_of_different_batch_shapes_are_broadcast():
    p = Columns([dist.Normal(torch.zeros(3), 1.0), dist.Poisson(torch.tensor(2.0)), Kinds(logits=torch.zeros(2, 1, 4))])
    assert p.batch_shape == (2, 3, 3)
    assert p.sample().shape == p.mean.shape == p.log_prob(p.sample()).shape == (2, 3, 3)


EXPANDABLE = {
    "columns": lambda: columns_of(3)[0],
    "levels": lambda: Levels(logits=torch.randn(3, 4)),
    "kinds": lambda: Kinds(logits=torch.randn(3, 4)),
    "discretised logistic": lambda: DiscretizedLogistic(torch.randn(3), torch.rand(3) + 0.1, 16),
    "continuous bernoulli": lambda: ContinuousBernoulli(logits=torch.randn(3)),
}


@pytest.mark.parametrize("make", EXPANDABLE.values(), ids=list(EXPANDABLE))
@pytest.mark.usefixtures("float64")
def test_expanding_repeats_a_distribution_and_draws_each_copy_by_itself(make):
    p = make()
    rest = p.batch_shape[1:]
    wide = p.expand(torch.Size([100, 3, *rest]))
    assert type(wide) is type(p)
    assert wide.batch_shape == (100, 3, *rest)
    x = wide.sample()
    assert x.shape == (100, 3, *rest)
    assert len(x.reshape(100, -1).unique(dim=0)) > 10
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x))
    torch.testing.assert_close(wide.mean, p.mean.expand(100, 3, *rest))
    torch.testing.assert_close(wide.variance, p.variance.expand(100, 3, *rest), equal_nan=True)
    torch.testing.assert_close(wide.support.check(x), torch.ones_like(x, dtype=torch.bool))


@pytest.mark.parametrize("make", EXPANDABLE.values(), ids=list(EXPANDABLE))
@pytest.mark.usefixtures("float64")
def test_a_program_may_put_plates_and_masks_around_them(make):
    p = make()
    dims = len(p.batch_shape)
    mask = torch.rand(p.batch_shape) < 0.5

    def program():
        with pyro.plate("outer", 7, dim=-2):
            return pyro.sample("x", p.mask(mask).to_event(dims - 1))

    trace = pyro.poutine.trace(program).get_trace()
    trace.compute_log_prob()
    x, log_prob = trace.nodes["x"]["value"], trace.nodes["x"]["log_prob"]
    assert x.shape == (7, *p.batch_shape)
    torch.testing.assert_close(log_prob, (p.log_prob(x) * mask).reshape(7, 3, -1).sum(-1))


def test_columns_refuse_a_row_of_another_length():
    with pytest.raises(ValueError):  # noqa: PT011
        columns_of(3)[0].log_prob(torch.zeros(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cls", [Levels, Kinds])
def test_draws_of_columns_have_the_type_of_their_parameters(cls, dtype):
    logits = torch.randn(3, 4, dtype=dtype)
    assert Columns([cls(logits=logits), dist.Bernoulli(logits=logits[:, 0])]).sample().dtype == dtype
    assert Columns([cls(logits=logits), cls(logits=logits)]).sample().dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_bits_have_their_probabilities(dtype):
    probs = torch.tensor([0.0, 1e-4, 0.03, 0.5, 0.97, 1 - 1e-4, 1.0], dtype=dtype)
    torch.manual_seed(0)
    draws = Bernoulli(probs=probs).sample((200_000,))
    assert draws.dtype == dtype
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    ones = draws.double().sum(0).long().numpy()
    for count, p in zip(ones, probs.tolist(), strict=True):
        assert stats.binomtest(int(count), 200_000, p).pvalue > 1e-3


def test_bits_are_independent_and_otherwise_as_those_of_pyro():
    logits = torch.randn(3, 1)
    torch.manual_seed(0)
    one = Bernoulli(logits=logits).expand([3, 2])
    draws = one.sample((50_000,)).flatten(1)
    assert np.abs(np.corrcoef(draws.T.numpy()) - np.eye(6)).max() < 0.02  # four standard errors and a half
    assert draws.requires_grad is False
    other = dist.Bernoulli(logits=logits).expand([3, 2])
    assert torch.equal(one.log_prob(draws[0].reshape(3, 2)), other.log_prob(draws[0].reshape(3, 2)))
    assert torch.equal(one.enumerate_support(), other.enumerate_support())
    kl = torch.distributions.kl_divergence(one, Bernoulli(logits=torch.zeros(3, 2)))
    torch.testing.assert_close(kl, math.log(2) - other.entropy())
