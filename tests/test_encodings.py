"""Encodings: the numbers that an encoder's network is shown, against NumPy."""

import math

import numpy as np
import pytest
import torch

from pyro_vae import mlp_vae
from pyro_vae.encodings import ByColumn, Centred, LogOnePlus, OneHot, Plain, WithMask
from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gamma,
    Laplace,
    LogNormal,
    Mixed,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)

events = pytest.mark.parametrize("event_shape", [(4,), (2, 3), ()], ids=str)
batches = pytest.mark.parametrize("batch_shape", [(), (5,), (2, 5)], ids=str)
NUM_LEVELS = 6


def levels(*shape):
    return torch.randint(NUM_LEVELS, shape).to(torch.get_default_dtype())


def one_hot(x):
    """``(*B, *E)`` to ``(*B, *E, K)``."""
    return np.eye(NUM_LEVELS)[x.numpy().astype(int)]


def centred(x):
    return 2 * x.numpy() / (NUM_LEVELS - 1) - 1


# Encodings that keep a row's shape: which, and the same in NumPy.
KEEPING = {
    "plain": (lambda _: Plain(), lambda x: x.numpy()),
    "centred": (lambda _: Centred(NUM_LEVELS - 1), centred),
    "logarithms, before any training": (
        lambda event_shape: LogOnePlus(event_shape).eval(),
        lambda x: np.log1p(x.numpy()),
    ),
}


@pytest.mark.parametrize(("make", "expected"), KEEPING.values(), ids=list(KEEPING))
@events
@batches
@pytest.mark.usefixtures("float64")
def test_features_of_one_number_for_each_element(make, expected, event_shape, batch_shape):
    x, encoding = levels(*batch_shape, *event_shape), make(event_shape)
    assert encoding.shape(event_shape) == event_shape
    np.testing.assert_allclose(encoding(x).numpy(), expected(x), rtol=1e-12)


def test_levels_are_centred_with_the_ends_at_minus_1_and_1():
    assert Centred(255)(torch.tensor([0.0, 127.5, 255.0])).tolist() == [-1, 0, 1]


def standardised(logs):
    """By NumPy; NaN is left out of account, and what never varies keeps its scale."""
    scale = np.nanstd(logs, axis=0)
    return np.nanmean(logs, axis=0), np.where(scale > 0, scale, 1)


@events
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("unit", [1.0, 1e4])
@pytest.mark.usefixtures("float64")
def test_logarithms_are_standardised_by_the_first_training_batch(event_shape, masked, unit):
    encoding, mask = LogOnePlus(event_shape), torch.rand((50, *event_shape)) < 0.7
    x, later = unit * torch.randn(2, 50, *event_shape).exp()
    first = encoding(x, mask if masked else None)
    loc, scale = standardised(np.log1p(torch.where(mask, x, torch.nan).numpy() if masked else x.numpy()))
    np.testing.assert_allclose(first.numpy(), (np.log1p(x.numpy()) - loc) / scale, rtol=1e-7, atol=1e-9)
    for again in (encoding(later), encoding.eval()(later)):
        np.testing.assert_allclose(again.numpy(), (np.log1p(later.numpy()) - loc) / scale, rtol=1e-7, atol=1e-9)


def test_logarithms_of_an_element_that_never_varies_or_is_never_seen_keep_their_scale():
    encoding, mask = LogOnePlus((2,)), torch.tensor([True, False]).expand(9, 2)
    x = torch.tensor([[5.0, 7.0]]).expand(9, 2)
    torch.testing.assert_close(encoding(x, mask), torch.tensor([0.0, math.log(8)]).expand(9, 2))


@events
@batches
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_one_hot_levels_stand_left_of_the_row(event_shape, batch_shape, dtype):
    x, encoding = levels(*batch_shape, *event_shape).to(dtype), OneHot(NUM_LEVELS, len(event_shape))
    y = encoding(x)
    assert y.shape == (*batch_shape, *encoding.shape(event_shape)) == (*batch_shape, NUM_LEVELS, *event_shape)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.numpy(), np.moveaxis(one_hot(x), -1, len(batch_shape)))


@batches
@pytest.mark.usefixtures("float64")
def test_columns_follow_one_another(batch_shape):
    x = levels(*batch_shape, 4)
    encoding = ByColumn([OneHot(NUM_LEVELS, 0), Plain(), Centred(NUM_LEVELS - 1), LogOnePlus(())]).eval()
    assert encoding.shape((4,)) == (NUM_LEVELS + 3,)
    columns = x[..., 1].numpy(), centred(x[..., 2]), np.log1p(x[..., 3].numpy())
    parts = [one_hot(x[..., 0]), *(column[..., None] for column in columns)]
    np.testing.assert_allclose(encoding(x).numpy(), np.concatenate(parts, -1), rtol=1e-12)


def test_columns_must_be_as_many_as_the_row_has():
    with pytest.raises(ValueError):  # noqa: PT011
        ByColumn([Plain(), Plain()])(torch.zeros(5, 3))


@pytest.mark.parametrize("given", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("name", KEEPING)
@events
@batches
@pytest.mark.usefixtures("float64")
def test_a_mask_is_shown_beside_features_of_the_rows_shape(name, event_shape, batch_shape, given):
    make, expected = KEEPING[name]
    x = levels(*batch_shape, *event_shape)
    mask = torch.rand(x.shape) < 0.5 if given else None
    masked = WithMask(make(event_shape), event_shape)
    assert masked.shape(event_shape) == (2, *event_shape)
    seen = mask.numpy() if given else np.ones(x.shape)
    stacked = np.stack([expected(x) * seen, np.broadcast_to(seen, x.shape)], len(batch_shape))
    np.testing.assert_allclose(masked(x, mask).numpy(), stacked, rtol=1e-12)


@events
@batches
@pytest.mark.usefixtures("float64")
def test_a_mask_is_one_level_more_beside_one_hot_levels(event_shape, batch_shape):
    x = levels(*batch_shape, *event_shape)
    mask = torch.rand(x.shape) < 0.5
    masked = WithMask(OneHot(NUM_LEVELS, len(event_shape)), event_shape)
    assert masked.shape(event_shape) == (NUM_LEVELS + 1, *event_shape)
    seen = mask.numpy()[..., None]
    expected = np.moveaxis(np.concatenate([one_hot(x) * seen, seen], -1), -1, len(batch_shape))
    np.testing.assert_array_equal(masked(x, mask).numpy(), expected)


@batches
@pytest.mark.usefixtures("float64")
def test_a_mask_is_appended_to_the_features_of_columns_and_hides_what_is_missing(batch_shape):
    x = levels(*batch_shape, 3)
    mask = torch.rand(x.shape) < 0.5
    columns = ByColumn([OneHot(NUM_LEVELS, 0), Plain(), Centred(NUM_LEVELS - 1)])
    masked = WithMask(columns, (3,))
    assert masked.shape((3,)) == (NUM_LEVELS + 5,)
    y = masked(x, mask)
    assert y.shape == (*batch_shape, NUM_LEVELS + 5)
    np.testing.assert_array_equal(y[..., -3:].numpy(), mask.numpy())
    # What stands in the place of a missing entry must not show.
    other = torch.where(mask, x, levels(*batch_shape, 3))
    assert torch.equal(masked(other, mask), y)
    assert torch.equal(masked(x), torch.cat([columns(x), torch.ones(*batch_shape, 3)], -1))


def test_a_mask_of_one_row_holds_for_all_rows():
    x, mask = torch.randn(5, 4), torch.tensor([True, False, True, True])
    assert torch.equal(WithMask(Plain(), (4,))(x, mask), WithMask(Plain(), (4,))(x, mask.expand(5, 4)))


LIKELIHOODS = {
    Plain: [Bernoulli(), ContinuousBernoulli(), Normal(), Laplace(), StudentT(), Beta()],
    Centred: [DiscretizedLogistic(NUM_LEVELS), DiscretizedLogisticMixture(NUM_LEVELS), Categorical(NUM_LEVELS)],
    LogOnePlus: [Poisson(), NegativeBinomial(), ZeroInflatedPoisson(), ZeroInflatedNegativeBinomial()],
    OneHot: [Categorical(NUM_LEVELS, ordered=False)],
}
MEASUREMENTS = [LogNormal(), Gamma()]


@pytest.mark.parametrize(
    ("kind", "likelihood"), [(kind, one) for kind, many in LIKELIHOODS.items() for one in many], ids=repr
)
@pytest.mark.parametrize("missing", [None, "nan"])
@events
def test_each_likelihood_shows_an_encoder_the_features_of_its_kind(kind, likelihood, missing, event_shape):
    encoding = likelihood.encoding(event_shape)
    assert type(encoding) is kind
    assert type(Mixed((likelihood,)).encoding((1,)).columns[0]) is kind
    if kind is Centred:
        assert encoding(torch.tensor([0.0, NUM_LEVELS - 1])).tolist() == [-1, 1]
    vae = mlp_vae(event_shape, 2, likelihood=likelihood, hidden_dims=(3,), missing=missing)
    x = torch.ones(5, *event_shape)
    x = 0.5 * x if isinstance(likelihood, Beta) else x
    assert vae.encode(x).batch_shape == (5,)


@pytest.mark.parametrize("likelihood", MEASUREMENTS, ids=repr)
@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("float64")
def test_an_encoder_is_shown_the_same_in_any_unit_of_measurement(likelihood, unit, masked):
    x, mask = torch.randn(50, 4).exp(), torch.rand(50, 4) < 0.7 if masked else None
    one, other = likelihood.encoding((4,))(x, mask), likelihood.encoding((4,))(unit * x, mask)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    assert one.std() > 0.5


@pytest.mark.parametrize("missing", [None, "nan"])
def test_what_a_program_draws_can_be_encoded(missing):
    for likelihood in (*MEASUREMENTS, *(one for many in LIKELIHOODS.values() for one in many)):
        vae = mlp_vae((4,), 2, likelihood=likelihood, hidden_dims=(3,), missing=missing)
        assert vae.encoder(vae.model(batch_size=5)).batch_shape == (5,)
