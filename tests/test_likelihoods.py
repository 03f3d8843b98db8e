"""Likelihoods: one contract for all of them. A new one is one row in ``CASES``."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from pyro_vae import mlp_vae
from pyro_vae.likelihoods import Bernoulli, Likelihood, Normal


@dataclass(frozen=True)
class Case:
    """A likelihood and the truth about it."""

    make: Callable[[], Likelihood]
    oracle: Callable[..., Any]  # the likelihood and its raw parameters as arrays -> a frozen scipy distribution
    inside: tuple[float, ...]  # values of one element that it describes, the ends included
    outside: tuple[float, ...]  # values that it does not
    raw: Callable[[tuple[int, ...]], torch.Tensor] = torch.randn


# Of each link: the mean, where a learned scale starts, values inside and outside its range.
LINKS = {
    "linear": (lambda raw: raw, 1.0, (-5.0, 0.0, 5.0), (math.nan,)),
    "sigmoid": (special.expit, 0.25, (0.0, 0.5, 1.0), (-0.01, 1.01, math.nan)),
    "tanh": (np.tanh, 0.5, (-1.0, 0.0, 1.0), (-1.01, 1.01, math.nan)),
}
LEARNED = ["shared", "element", "network"]
FLOOR = 1e-3


def softplus(raw):
    return np.logaddexp(0.0, raw)


def normal_scale(likelihood, raw_scale):
    if likelihood.scale == "network":
        start = LINKS[likelihood.link][1]
        return softplus(raw_scale + np.log(np.expm1(start - FLOOR))) + FLOOR
    if likelihood.scale in LEARNED:
        return softplus(next(likelihood.parameters()).detach().numpy()) + FLOOR
    return 0.3


def normal_case(scale, link):
    mean, _, inside, outside = LINKS[link]
    return Case(
        make=lambda: Normal(scale=scale, link=link),
        oracle=lambda likelihood, loc, raw_scale=None: stats.norm(mean(loc), normal_scale(likelihood, raw_scale)),
        inside=inside,
        outside=outside,
    )


CASES = {
    "bernoulli": Case(
        make=Bernoulli,
        oracle=lambda _, logits: stats.bernoulli(special.expit(logits)),
        inside=(0.0, 1.0),
        outside=(0.5, -1.0, 2.0, math.nan),
    ),
    **{
        f"normal, {link} link, scale {scale}": normal_case(scale, link)
        for link, scale in itertools.product(LINKS, [0.3, *LEARNED])
    },
}

# Those that can be called before they know their event.
UNTOLD = [Bernoulli, lambda: Normal(scale=0.3), Normal, lambda: Normal(scale="network")]

cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
events = pytest.mark.parametrize("event_shape", [(4,), (2, 3), ()], ids=str)


def made(case, event_shape):
    """The case's likelihood for such events, its own parameters moved away from where they start."""
    likelihood = case.make().for_event(event_shape)
    for parameter in likelihood.parameters():
        torch.nn.init.normal_(parameter)
    return likelihood


def oracle_of(case, likelihood, raw, batch_dim=0):
    return case.oracle(likelihood, *np.moveaxis(raw.numpy(), batch_dim, 0))


def is_discrete(oracle):
    return isinstance(oracle.dist, stats.rv_discrete)


def oracle_log_prob(oracle, x):
    return (oracle.logpmf if is_discrete(oracle) else oracle.logpdf)(x)


@cases
@events
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.usefixtures("float64")
def test_log_prob_equals_scipy(case, event_shape, batch_shape):
    likelihood = made(case, event_shape)
    raw = case.raw((*batch_shape, *likelihood.raw_shape(event_shape)))
    p_x = likelihood(raw)
    assert (p_x.batch_shape, p_x.event_shape) == (batch_shape, event_shape)
    x = p_x.sample()
    elements = oracle_log_prob(oracle_of(case, likelihood, raw, len(batch_shape)), x.numpy())
    expected = elements.reshape(*batch_shape, -1).sum(-1)
    np.testing.assert_allclose(p_x.log_prob(x).numpy(force=True), expected, rtol=1e-10, atol=1e-10)


@cases
@pytest.mark.usefixtures("float64")
def test_probability_sums_to_one(case):
    likelihood = made(case, ())
    raw = case.raw(likelihood.raw_shape(()))
    oracle = oracle_of(case, likelihood, raw)
    low, high = oracle.ppf(1e-13), oracle.isf(1e-13)
    points = torch.arange(low, high + 1) if is_discrete(oracle) else torch.linspace(low, high, 20_001)
    density = likelihood(raw).log_prob(points).exp()
    total = density.sum() if is_discrete(oracle) else torch.trapezoid(density, points)
    assert total.item() == pytest.approx(1, abs=1e-9)


@cases
@pytest.mark.usefixtures("float64")
def test_mean_and_variance_are_those_of_scipy_and_of_samples(case):
    likelihood, num_samples = made(case, (2, 3)), 20_000
    raw = case.raw(likelihood.raw_shape((2, 3)))
    p_x = likelihood(raw)
    mean, variance, excess = oracle_of(case, likelihood, raw).stats(moments="mvk")
    np.testing.assert_allclose(p_x.mean.numpy(force=True), mean, rtol=1e-10)
    np.testing.assert_allclose(p_x.variance.numpy(force=True), np.broadcast_to(variance, (2, 3)), rtol=1e-10)
    x = p_x.sample(torch.Size([num_samples])).numpy()
    z_mean = (x.mean(0) - mean) / np.sqrt(variance / num_samples)
    z_variance = (x.var(0, ddof=1) / variance - 1) / np.sqrt(excess / num_samples + 2 / (num_samples - 1))
    assert np.abs(z_mean).max() < 5
    assert np.abs(z_variance).max() < 5


@cases
def test_log_prob_stays_right_and_gradients_finite_at_extreme_raw_outputs(case):
    likelihood, x = case.make().for_event(()), torch.tensor(case.inside)
    for *values, own in itertools.product((-30.0, 30.0), repeat=likelihood.num_params + 1):
        raw = torch.tensor(values, requires_grad=True)
        for parameter in likelihood.parameters():
            torch.nn.init.constant_(parameter, own)
        log_prob = likelihood(raw).log_prob(x)
        oracle = oracle_of(case, likelihood, raw.detach().double())
        expected = oracle_log_prob(oracle, x.double().numpy())
        np.testing.assert_allclose(log_prob.numpy(force=True), expected, rtol=1e-4, atol=1e-4)
        gradients = torch.autograd.grad(log_prob.sum(), [raw, *likelihood.parameters()])
        assert all(g.isfinite().all() for g in gradients)


@cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_and_log_prob_have_the_type_of_the_raw_output(case, dtype):
    likelihood = case.make().for_event((4,)).to(dtype)
    p_x = likelihood(case.raw((3, *likelihood.raw_shape((4,)))).to(dtype))
    assert p_x.sample().dtype == p_x.log_prob(p_x.sample()).dtype == dtype


@cases
def test_data_range_holds_the_values_described_and_no_others(case):
    data_range = case.make().data_range
    assert data_range.check(torch.tensor(case.inside)).all()
    assert not data_range.check(torch.tensor(case.outside)).any()


@cases
def test_copies_for_events_share_no_parameters(case):
    original = case.make()
    copies = [original.for_event((4,)) for _ in range(2)]
    parameters = [*original.parameters(), *copies[0].parameters(), *copies[1].parameters()]
    assert len({p.data_ptr() for p in parameters}) == len(parameters)


@cases
@events
def test_raw_output_of_a_wrong_shape_is_refused_and_both_shapes_named(case, event_shape):
    likelihood = case.make().for_event(event_shape)
    num_params = likelihood.num_params
    expected = ", ".join(map(str, (num_params, *event_shape)))
    for wrong in [(5, num_params + 1, *event_shape), (5, num_params, *event_shape, 7), event_shape]:
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            likelihood(torch.zeros(wrong))
        assert f"(*batch, {expected})" in str(caught.value)
        assert f"found {wrong}" in str(caught.value)


@pytest.mark.parametrize("make", UNTOLD)
def test_a_wrong_number_of_raw_outputs_is_refused_before_the_event_is_known(make):
    likelihood = make()
    with pytest.raises(ValueError, match="raw output"):
        likelihood(torch.zeros(5, likelihood.num_params + 1, 4))


@pytest.mark.parametrize("make", UNTOLD)
def test_a_head_that_was_not_told_its_event_takes_events_of_one_dimension(make):
    likelihood = make()
    raw = torch.randn(3, likelihood.num_params, 4)
    p_x, expected = likelihood(raw), likelihood.for_event((4,))(raw)
    x = expected.sample()
    assert (p_x.batch_shape, p_x.event_shape) == ((3,), (4,))
    assert torch.equal(p_x.log_prob(x), expected.log_prob(x))


def test_a_scale_for_each_element_says_that_it_needs_to_know_the_event():
    with pytest.raises(ValueError, match="event"):
        Normal(scale="element")(torch.zeros(5, 1, 4))


@pytest.mark.parametrize("scale", ["shared", "element"])
def test_two_models_made_with_one_likelihood_learn_their_own_scales(scale):
    likelihood = Normal(scale=scale)
    first, second = (mlp_vae((4,), 2, likelihood=likelihood, hidden_dims=()) for _ in range(2))
    with torch.no_grad():
        next(first.decoder.likelihood.parameters()).fill_(3.0)
    scales = [vae.decoder(torch.zeros(2)).variance.sqrt() for vae in (first, second)]
    torch.testing.assert_close(scales[0], torch.full((4,), float(softplus(3.0) + FLOOR)))
    torch.testing.assert_close(scales[1], torch.ones(4))


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("scale", LEARNED)
def test_a_learned_scale_starts_where_the_link_says(scale, link):
    likelihood = Normal(scale=scale, link=link).for_event((4,))
    p_x = likelihood(torch.zeros(likelihood.raw_shape((4,))))
    torch.testing.assert_close(p_x.variance.sqrt(), torch.full((4,), LINKS[link][1]))


@pytest.mark.parametrize("scale", LEARNED)
@pytest.mark.parametrize("min_scale", [1e-3, 0.7, 200.0])
@pytest.mark.usefixtures("float64")
def test_a_learned_scale_never_falls_below_its_floor(scale, min_scale):
    likelihood = Normal(scale=scale, min_scale=min_scale).for_event((4,))
    for parameter in likelihood.parameters():
        torch.nn.init.constant_(parameter, -1e4)
    p_x = likelihood(torch.full((likelihood.num_params, 4), -1e4))
    torch.testing.assert_close(p_x.variance.sqrt(), torch.full((4,), min_scale))


@pytest.mark.parametrize("scale", LEARNED)
def test_a_large_floor_starts_at_a_finite_scale(scale):
    likelihood = Normal(scale=scale, min_scale=200.0).for_event((4,))
    assert likelihood(torch.zeros(likelihood.raw_shape((4,)))).variance.isfinite().all()


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scale": 0.0}, "scale must be a positive number or one of shared, element, network; found 0"),
        ({"scale": -0.1}, "scale must be a positive number .* found -0.1"),
        ({"scale": math.nan}, "scale must be a positive number .* found nan"),
        ({"scale": math.inf}, "scale must be a positive number .* found inf"),
        ({"scale": "elements"}, "unknown scale 'elements': did you mean 'element'"),
        ({"link": "sigmod"}, "unknown link 'sigmod': did you mean 'sigmoid'"),
        ({"min_scale": 0.0}, "min_scale must be positive, .* found 0"),
        ({"min_scale": -1.0}, "min_scale must be positive, .* found -1"),
        ({"min_scale": math.nan}, "min_scale must be positive, .* found nan"),
        ({"min_scale": math.inf}, "min_scale must be .* found inf"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_with_a_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        Normal(**wrong)
