"""Transforms: there and back, log-Jacobians against autograd, and outputs that stay where they are said to."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import special, stats

from pyro_vae import transforms
from pyro_vae.transforms import (
    Binarize,
    Compose,
    Dequantize,
    Identity,
    Log1p,
    Logit,
    Scale,
    Standardize,
    Transform,
)

NUM_ROWS = 5


@dataclass(frozen=True)
class Case:
    """A transform for rows of a shape, and rows that it takes."""

    make: Callable[[tuple[int, ...]], Transform]
    rows: Callable[[tuple[int, ...]], torch.Tensor]
    events: tuple[tuple[int, ...], ...] = ((4,), (2, 3), ())


def uniform(low, high):
    return lambda event_shape: low + (high - low) * torch.rand(NUM_ROWS, *event_shape)


def whole(num_levels):
    return lambda event_shape: torch.randint(num_levels, (NUM_ROWS, *event_shape)).double()


def with_gaps(x):
    """NaN in about a third of the entries."""
    return torch.where(torch.rand(x.shape) < 0.3, math.nan, x)


def bits_at(low, high):
    return lambda event_shape: torch.where(torch.rand(NUM_ROWS, *event_shape) < 0.5, low, high)


IMAGES, TABLES = {"events": ((3, 2, 4),)}, {"events": ((4,),)}
DIFFERENTIABLE = {
    "identity": Case(lambda _: Identity(), uniform(-3.0, 3.0)),
    "scale 0-255 onto 0-1": Case(lambda _: Scale(), uniform(0.0, 255.0)),
    "scale 0-16 onto -1-1": Case(lambda _: Scale(0, 16, onto=(-1, 1)), uniform(0.0, 16.0)),
    "scale -5-3 onto 2-10.5": Case(lambda _: Scale(-5, 3, onto=(2, 10.5)), uniform(-5.0, 3.0)),
    "standardize": Case(lambda shape: Standardize(shape).fit(7 + 3 * torch.randn(20, *shape)), uniform(0.0, 14.0)),
    "standardize with gaps": Case(
        lambda shape: Standardize(shape).fit(with_gaps(7 + 3 * torch.randn(20, *shape))), uniform(0.0, 14.0)
    ),
    "standardize each channel": Case(
        lambda shape: Standardize(shape, per_channel=True).fit(7 + 3 * torch.randn(20, *shape)),
        uniform(0.0, 14.0),
        **IMAGES,
    ),
    "standardize two columns": Case(
        lambda shape: Standardize(shape, columns=(2, 0)).fit(7 + 3 * torch.randn(20, *shape)),
        uniform(0.0, 14.0),
        **TABLES,
    ),
    "logit": Case(lambda _: Logit(), uniform(0.0, 1.0)),
    "logit without a margin": Case(lambda _: Logit(margin=0.0), uniform(0.001, 0.999)),
    "logit with a wide margin": Case(lambda _: Logit(margin=0.05), uniform(0.0, 1.0)),
    "log1p": Case(lambda _: Log1p(), uniform(0.0, 300.0)),
    "dequantize": Case(lambda _: Dequantize(256), whole(256)),
    "scale, then logit": Case(lambda _: Compose((Scale(0, 256), Logit(0.01))), uniform(0.0, 256.0)),
    "log1p, then standardize": Case(
        lambda shape: Compose((Log1p(), Standardize(shape))).fit(10 * torch.rand(20, *shape)), uniform(0.0, 10.0)
    ),
    "scale, then logit, then standardize, nested": Case(
        lambda shape: Compose((Compose((Scale(0, 256), Logit(0.01))), Standardize(shape))).fit(
            256 * torch.rand(20, *shape)
        ),
        uniform(0.0, 256.0),
    ),
}
CASES = {
    **DIFFERENTIABLE,
    "binarize at its two ends": Case(lambda _: Binarize(-2, 16), bits_at(-2.0, 16.0)),
    "binarize with a seed at its two ends": Case(lambda _: Binarize(-2, 16, seed=3), bits_at(-2.0, 16.0)),
    "dequantize, then scale, then logit": Case(
        lambda _: Compose((Dequantize(16), Scale(0, 16), Logit(0.01))), whole(16)
    ),
}


def with_events(table):
    return pytest.mark.parametrize(
        ("case", "event_shape"),
        [
            pytest.param(case, event_shape, id=f"{name}, event {event_shape}")
            for name, case in table.items()
            for event_shape in case.events
        ],
    )


cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
events = pytest.mark.parametrize("event_shape", [(4,), (2, 3), ()], ids=str)
decimal_bounds = pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (0.1, 0.3), (-0.3, 1.1), (0.2, 1.1), (1.0, 1.7), (-1.3, 2.7)]
)


@with_events(CASES)
@pytest.mark.usefixtures("float64")
def test_inverse_undoes_the_transform(case, event_shape):
    transform, x = case.make(event_shape), case.rows(event_shape)
    torch.testing.assert_close(transform.inverse(transform(x)), x, rtol=1e-12, atol=1e-12)


@cases
@pytest.mark.usefixtures("float64")
def test_inverse_takes_any_number_of_batch_dimensions(case):
    event_shape = case.events[-2] if len(case.events) > 1 else case.events[0]
    transform, x = case.make(event_shape), case.rows(event_shape)
    y = torch.stack([transform(x), transform(x.flip(0))])
    torch.testing.assert_close(transform.inverse(y), torch.stack([x, x.flip(0)]), rtol=1e-12, atol=1e-12)


@with_events(DIFFERENTIABLE)
@pytest.mark.usefixtures("float64")
def test_log_jacobian_equals_that_of_autograd(case, event_shape):
    transform, x = case.make(event_shape), case.rows(event_shape)
    found = transform.log_abs_det_jacobian(x)
    assert found.shape == x.shape
    together = transform.with_log_jacobian(x)[1]
    torch.testing.assert_close(together, found)
    for row, log_det in zip(x, found.reshape(NUM_ROWS, -1).sum(1), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: transform(r[None])[0], row)
        expected = torch.linalg.slogdet(torch.as_tensor(jacobian).reshape(row.numel(), row.numel())).logabsdet
        torch.testing.assert_close(log_det, expected, rtol=1e-12, atol=1e-12)


def test_bits_have_no_jacobian():
    assert Binarize(0, 16).log_abs_det_jacobian(torch.rand(3, 4)).tolist() == 3 * [4 * [0]]


@cases
@pytest.mark.usefixtures("float64")
def test_rows_lie_in_the_domain_and_what_comes_out_in_the_codomain(case):
    transform, x = case.make(case.events[0]), case.rows(case.events[0])
    assert transform.domain.check(x).all()
    assert transform.codomain is None or transform.codomain.check(transform(x)).all()


def test_the_identity_leaves_the_codomain_to_the_data():
    x = torch.randn(3, 4)
    assert Identity().codomain is None
    assert torch.equal(Identity()(x), x)


@pytest.mark.parametrize("onto", [(0.0, 1.0), (-1.0, 1.0)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_every_grey_level_is_scaled_into_the_interval_and_its_ends_are_met_exactly(onto, dtype):
    grey, scale = torch.arange(256, dtype=dtype)[:, None], Scale(0, 255, onto=onto)
    y = scale(grey)
    assert y.dtype == torch.float32
    assert scale.codomain.check(y).all()
    assert (y[0].item(), y[-1].item()) == onto
    np.testing.assert_allclose(y[:, 0].numpy(), np.linspace(onto[0], onto[1], 256), atol=1e-7)
    assert torch.equal(scale.inverse(y).round(), grey.float())


@decimal_bounds
@pytest.mark.parametrize("onto", [(0.0, 1.0), (-1.0, 1.0), (0.1, 0.7)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rounding_does_not_carry_the_ends_of_an_interval_out_of_the_other(low, high, onto, dtype):
    scale, x = Scale(low, high, onto=onto), torch.tensor([[low, high]], dtype=dtype)
    assert scale.domain.check(x).all()
    assert scale.codomain.check(scale(x)).all()


@pytest.mark.parametrize(
    ("scale", "x", "expected"),
    [
        (Scale(), 51.0, 0.2),
        (Scale(0, 16), 4.0, 0.25),
        (Scale(0, 16, onto=(-1, 1)), 4.0, -0.5),
        (Scale(-5, 3, onto=(2, 10)), 0.0, 7.0),
    ],
    ids=repr,
)
def test_scale_gives_the_numbers_worked_out_on_paper(scale, x, expected):
    torch.testing.assert_close(scale(torch.tensor([x])), torch.tensor([expected]))


@events
@pytest.mark.usefixtures("float64")
def test_standardized_training_rows_have_mean_0_and_standard_deviation_1(event_shape):
    x = (1e3 + 5 * torch.randn(50, *event_shape)).numpy()
    standardize = Standardize(event_shape).fit(torch.as_tensor(x))
    y = standardize(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-12)
    np.testing.assert_allclose(y, (x - x.mean(0)) / x.std(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("num_rows", [1, 3, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_column_that_never_varies_keeps_its_scale(value, num_rows, dtype):
    standardize = Standardize((1,)).fit(torch.full((num_rows, 1), value, dtype=dtype))
    assert standardize.scale.tolist() == [1]


def test_refitting_replaces_mean_and_scale():
    standardize = Standardize((1,)).fit(torch.tensor([[1.0], [3.0]])).fit(torch.tensor([[10.0], [30.0]]))
    assert standardize(torch.tensor([[40.0]])).tolist() == [[2]]


@pytest.mark.parametrize("shape", [(5, 3), (5,), (0, 4), (5, 4, 1)], ids=str)
def test_standardize_refuses_rows_of_another_shape_and_names_both(shape):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        Standardize((4,)).fit(torch.zeros(shape))
    assert f"expected rows of shape (4,), found data of shape {shape}" in str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0.0, 16.0), (-1.0, 1.0), (0.0, 255.0)])
def test_bits_are_1_as_often_as_the_grey_level_says(low, high):
    num_draws, probability = 4000, torch.arange(17) / 16
    bits = Binarize(low, high)((low + (high - low) * probability).expand(num_draws, 17))
    assert set(bits.unique().tolist()) == {0, 1}
    standard_error = (probability * (1 - probability) / num_draws).sqrt()
    # Where the grey level is an end, the error is zero and so the mean is exact.
    assert ((bits.mean(0) - probability).abs() <= 5 * standard_error).all()


def test_bits_are_drawn_again_at_each_call_and_on_their_own_for_each_element():
    binarize, grey = Binarize(), torch.full((100, 100), 0.5)
    first, second = binarize(grey), binarize(grey)
    agreement = (first == second).float().mean().item()
    assert abs(agreement - 0.5) < 5 * 0.5 / 100
    neighbours = (first[:, 1:] == first[:, :-1]).float().mean().item()
    assert abs(neighbours - 0.5) < 5 * 0.5 / math.sqrt(9900)


@decimal_bounds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bits_pass_unchanged_and_come_back_at_the_two_ends(low, high, dtype):
    binarize, ends = Binarize(low, high), torch.tensor([low, high], dtype=dtype).repeat(50, 1)
    bits = binarize(ends)
    assert torch.equal(bits, torch.tensor([0.0, 1.0], dtype=dtype).repeat(50, 1))
    torch.testing.assert_close(binarize.inverse(bits), ends)


def test_means_of_bits_come_back_as_grey_levels():
    torch.testing.assert_close(Binarize(-2, 16).inverse(torch.tensor([0.25])), torch.tensor([2.5]))


@pytest.mark.parametrize(("low", "high"), [(1, 1), (2, 1), (math.nan, 1), (0, math.nan), (-math.inf, 1), (0, math.inf)])
def test_bad_bounds_are_refused_and_named(low, high):
    sentence = f"two finite bounds, the lower one first; found {low:g} and {high:g}"
    for make in (lambda: Scale(low, high), lambda: Scale(onto=(low, high)), lambda: Binarize(low, high)):
        with pytest.raises(ValueError, match=sentence):
            make()


# Bits that stay the same.


@pytest.mark.usefixtures("float64")
def test_bits_with_a_seed_depend_on_the_row_and_the_seed_alone():
    binarize, x = Binarize(0, 255, seed=7), 255 * torch.rand(50, 3, 4)
    bits, order = binarize(x), torch.randperm(50)
    torch.manual_seed(1)
    assert torch.equal(binarize(x), bits)
    assert torch.equal(binarize(x[order]), bits[order])
    assert torch.equal(torch.cat([binarize(row[None]) for row in x]), bits)
    assert torch.equal(Binarize(0, 255, seed=7)(x), bits)
    state = torch.get_rng_state()
    binarize(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**31, 2**40, 2**63 - 1])
def test_any_whole_number_seeds_bits(seed):
    grey = torch.full((40, 100), 0.5) + torch.linspace(-1e-3, 1e-3, 40)[:, None]
    bits, others = Binarize(seed=seed)(grey), Binarize(seed=5)(grey)
    for share in (bits.mean().item(), (bits == others).float().mean().item()):
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(grey.numel())


@pytest.mark.parametrize(("low", "high"), [(0.0, 16.0), (-1.0, 1.0), (0.0, 255.0)])
def test_bits_with_a_seed_are_1_as_often_as_the_grey_level_says(low, high):
    num_rows, probability = 4000, torch.arange(17) / 16
    # Another pixel makes every row another one.
    grey = torch.cat([torch.linspace(0.1, 0.9, num_rows)[:, None], probability.expand(num_rows, 17)], 1)
    bits = Binarize(low, high, seed=1)(low + (high - low) * grey)[:, 1:]
    assert set(bits.unique().tolist()) == {0, 1}
    standard_error = (probability * (1 - probability) / num_rows).sqrt()
    assert ((bits.mean(0) - probability).abs() <= 5 * standard_error).all()


def correlations(bits):
    """Each column's correlation with each other one, in standard errors of what chance makes of it."""
    return (torch.corrcoef(bits.T) - torch.eye(bits.shape[1])) * math.sqrt(len(bits))


@pytest.mark.parametrize("seed", [0, 1, None])
def test_bits_of_one_row_do_not_depend_on_each_other(seed):
    bits = Binarize(seed=seed)(torch.cat([torch.linspace(0, 1, 5000)[:, None], torch.full((5000, 60), 0.5)], 1))[:, 1:]
    assert correlations(bits).abs().max() < 5.5  # the largest of 1770


@pytest.mark.parametrize("pixel", [0, 17, 59])
@pytest.mark.parametrize("step", [1.0, 255.0], ids=["one grey level apart", "black and white"])
def test_bits_with_a_seed_of_rows_that_differ_in_one_pixel_do_not_depend_on_each_other(pixel, step):
    first = torch.randint(64, 192, (2000, 60)).float()
    first[:, pixel] = 0
    second = first.clone()
    second[:, pixel] = step
    binarize = Binarize(0, 255, seed=2)
    centred = [(binarize(x) - x / 255)[:, torch.arange(60) != pixel] for x in (first, second)]
    products = centred[0] * centred[1]
    assert abs(products.mean() / products.std()) * math.sqrt(products.numel()) < 5


@pytest.mark.parametrize("seeds", [range(6), [None] * 6], ids=["seeds", "again"])
def test_bits_with_different_seeds_or_drawn_again_do_not_depend_on_each_other(seeds):
    grey = torch.rand(500, 60)
    centred = [Binarize(seed=seed)(grey) - grey for seed in seeds]
    for one, other in itertools.combinations(centred, 2):
        products = one * other
        assert abs(products.mean() / products.std()) * math.sqrt(products.numel()) < 5


def murmur(h):
    """The finaliser of MurmurHash3, on whole numbers of any size."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) % 2**32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) % 2**32
    return h ^ (h >> 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_noise_of_bits_is_a_hash_of_their_place_under_two_keys(dtype):
    state = torch.get_rng_state()
    noise = transforms._uniform_noise(torch.empty(30, 7, dtype=dtype))
    torch.set_rng_state(state)
    one, other = (int(key) % 2**32 for key in torch.randint(-(2**31), 2**31, (2,), dtype=torch.int32))
    expected = [murmur(murmur(place ^ one) ^ other) % 2**24 / 2**24 for place in range(210)]
    assert noise.flatten().tolist() == expected


# Whole numbers spread over intervals.


def test_whole_numbers_are_spread_uniformly_and_again_each_time():
    dequantize, x = Dequantize(256), torch.tensor([[0.0, 100.0, 255.0]]).expand(5000, 3)
    first, second = dequantize(x) - x, dequantize(x) - x
    for draws in (first, second, (first + second) % 1):
        assert stats.kstest(draws.flatten().numpy(), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(first.flatten(), second.flatten())[0, 1]) < 5 / math.sqrt(first.numel())


@pytest.mark.parametrize(("num_levels", "num_draws"), [(2, 1_000_000), (256, 20_000), (65_536, 50)])
def test_every_level_comes_back_exactly_from_every_draw(num_levels, num_draws):
    dequantize, x = Dequantize(num_levels), torch.arange(float(num_levels)).repeat(num_draws, 1)
    y = dequantize(x)
    assert torch.equal(dequantize.inverse(y), x)
    assert dequantize.codomain.check(y).all()
    assert (y < num_levels).all()


def test_levels_in_bytes_are_dequantized_as_others_are():
    x = torch.arange(256, dtype=torch.uint8)[None]
    compose = Compose((Dequantize(256), Scale(0, 256), Logit()))
    assert torch.equal(compose.fit(x).inverse(compose(x)), x.float())


# Transforms one after another.


@pytest.mark.usefixtures("float64")
def test_the_first_part_of_a_composition_is_nearest_to_the_user():
    x = 10 * torch.rand(50, 4)
    y = Compose((Log1p(), Standardize((4,)))).fit(x)(x).numpy()
    logs = np.log1p(x.numpy())
    np.testing.assert_allclose(y, (logs - logs.mean(0)) / logs.std(0), rtol=1e-10, atol=1e-12)
    scaled = Compose((Scale(0, 10, onto=(0, 4)), Log1p()))(x).numpy()
    np.testing.assert_allclose(scaled, np.log1p(0.4 * x.numpy()), rtol=1e-12)


def test_a_composition_has_the_domain_of_its_first_part_and_the_codomain_of_its_last():
    compose = Compose((Dequantize(16), Scale(0, 16), Logit()))
    assert compose.domain.check(torch.tensor([0.0, 7.0, 15.0])).all()
    assert not compose.domain.check(torch.tensor([0.5, 16.0, -1.0])).any()
    assert compose.codomain.check(torch.tensor([-100.0, 100.0])).all()
    assert Compose((Dequantize(16), Scale(0, 16))).codomain.check(torch.tensor([0.0, 1.0])).all()
    assert not Compose((Dequantize(16), Scale(0, 16))).codomain.check(torch.tensor([-0.1, 1.1])).any()
    assert Compose((Log1p(), Identity())).domain.check(torch.tensor([0.0])).all()


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((), "^Compose needs at least one transform$"),
        ((Logit(), Scale(0, 1)), r"^Logit yields the real numbers, but Scale takes the interval \[0, 1\]: "),
        (
            (Standardize((4,)), Log1p()),
            "^Standardize yields the real numbers, but Log1p takes the real numbers from 0: ",
        ),
        (
            (Dequantize(256), Scale(0, 255)),
            r"^Dequantize yields the interval \[0, 256\], but Scale takes .*\[0, 255\]: ",
        ),
        ((Scale(0, 255), Dequantize(256)), "^Scale yields .*, but Dequantize takes the whole numbers from 0 to 255: "),
        ((Scale(0, 1, onto=(-1, 1)), Logit()), r"^Scale yields the interval \[-1, 1\], but Logit takes .*\[0, 1\]: "),
        ((Log1p(), Scale(0, 6)), r"^Log1p yields the real numbers from 0, but Scale takes the interval \[0, 6\]: "),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_each_other_are_refused(parts, sentence):
    with pytest.raises(ValueError, match=sentence):
        Compose(parts)


@pytest.mark.parametrize(
    "parts",
    [
        (Identity(), Scale(0, 255)),
        (Binarize(0, 255), Scale(0, 1, onto=(-1, 1))),
        (Dequantize(256), Scale(0, 256), Logit(), Standardize((4,))),
        (Log1p(), Log1p()),
    ],
    ids=str,
)
def test_parts_that_fit_each_other_are_allowed(parts):
    assert Compose(parts).parts == parts


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.usefixtures("float64")
def test_value_and_jacobian_of_a_composition_share_one_draw(nested):
    margin, x = 0.01, torch.randint(256, (50, 4)).double()
    parts = (Dequantize(256), Scale(0, 256), Logit(margin))
    compose = Compose((parts[0], Compose(parts[1:]))) if nested else Compose(parts)
    y, found = compose.with_log_jacobian(x)
    u = special.expit(y.numpy())
    drawn = 256 * (u - margin) / (1 - 2 * margin) - x.numpy()
    assert ((drawn > -1e-9) & (drawn < 1)).all()
    assert drawn.std() > 0.2
    expected = np.log((1 - 2 * margin) / 256) - np.log(u) - np.log1p(-u)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-9)


# Means and scales.


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.usefixtures("float64")
def test_standardize_takes_each_channel_of_images(gaps):
    x = torch.tensor([1.0, 10.0, 1e4])[:, None, None] * (3 + torch.randn(20, 3, 4, 5))
    x = with_gaps(x) if gaps else x
    standardize = Standardize((3, 4, 5), per_channel=True).fit(x)
    loc, scale = (f(x.numpy(), axis=(0, 2, 3), keepdims=True)[0] for f in (np.nanmean, np.nanstd))
    np.testing.assert_allclose(standardize.loc.numpy(), loc, rtol=1e-12)
    np.testing.assert_allclose(standardize.scale.numpy(), scale, rtol=1e-12)
    np.testing.assert_allclose(standardize(x).numpy(), (x.numpy() - loc) / scale, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("columns", [(0,), (2, 0), (-1,), ()], ids=str)
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.usefixtures("float64")
def test_standardize_takes_the_columns_it_is_told_and_leaves_the_others(columns, gaps):
    x = torch.tensor([1.0, 10.0, 1e4]) * (3 + torch.randn(50, 3))
    x = with_gaps(x) if gaps else x
    standardize = Standardize((3,), columns=columns).fit(x)
    chosen = np.isin(np.arange(3), np.arange(3)[list(columns)])
    loc = np.where(chosen, np.nanmean(x.numpy(), axis=0), 0)
    scale = np.where(chosen, np.nanstd(x.numpy(), axis=0), 1)
    np.testing.assert_allclose(standardize(x).numpy(), (x.numpy() - loc) / scale, rtol=1e-10, atol=1e-12)
    assert torch.equal(standardize(x)[:, ~chosen].nan_to_num(), x[:, ~chosen].nan_to_num())
    np.testing.assert_allclose(standardize.log_abs_det_jacobian(x).numpy(), np.broadcast_to(-np.log(scale), x.shape))


@events
@pytest.mark.usefixtures("float64")
def test_standardize_leaves_nan_out_of_account_and_where_it_was(event_shape):
    x = with_gaps(7 + 3 * torch.randn(50, *event_shape))
    y = Standardize(event_shape).fit(x)(x).numpy()
    expected = (x.numpy() - np.nanmean(x.numpy(), axis=0)) / np.nanstd(x.numpy(), axis=0)
    np.testing.assert_allclose(y, expected, rtol=1e-10, atol=1e-12)


def test_a_column_without_any_observation_keeps_its_mean_and_scale():
    standardize = Standardize((2,)).fit(torch.tensor([[math.nan, 1.0], [math.nan, 3.0]]))
    assert standardize.loc.tolist() == [0, 2]
    assert standardize.scale.tolist() == [1, 1]


def test_a_column_with_gaps_that_never_varies_keeps_its_scale():
    standardize = Standardize((1,)).fit(torch.tensor([[0.1], [math.nan], [0.1], [0.1]]))
    assert standardize.scale.tolist() == [1]


@pytest.mark.parametrize(
    ("event_shape", "arguments", "sentence"),
    [
        ((4,), {"per_channel": True}, r"per_channel=True is for images \(C, H, W\), found rows of shape \(4,\)"),
        ((4, 5), {"per_channel": True}, r"per_channel=True .* found rows of shape \(4, 5\)"),
        ((3,), {"columns": (3,)}, "column"),
        ((3,), {"columns": (-4,)}, "column"),
        ((3, 4, 5), {"columns": (0,)}, "column"),
        ((3, 4, 5), {"columns": (0,), "per_channel": True}, "column"),
    ],
    ids=str,
)
def test_standardize_refuses_channels_and_columns_that_are_not_there(event_shape, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Standardize(event_shape, **arguments)


# Logits.


@pytest.mark.parametrize("margin", [1e-6, 1e-3, 0.1])
def test_logits_of_the_two_ends_are_each_others_mirror_image_in_single_precision(margin):
    logit, x = Logit(margin), torch.tensor([[0.0, 1.0]])
    end, slope = math.log(margin / (1 - margin)), math.log(1 - 2 * margin) - math.log(margin) - math.log1p(-margin)
    torch.testing.assert_close(logit(x), torch.tensor([[end, -end]]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logit.log_abs_det_jacobian(x), torch.tensor([[slope, slope]]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("margin", [-0.1, 0.5, 1.0, math.nan])
def test_bad_margins_are_refused(margin):
    with pytest.raises(ValueError, match=f"^margin must be at least 0 and below 0.5, found {margin}$"):
        Logit(margin)


@pytest.mark.parametrize("num_levels", [1, 0, -2])
def test_fewer_than_two_levels_are_refused(num_levels):
    with pytest.raises(ValueError, match=f"^num_levels must be at least 2, found {num_levels}$"):
        Dequantize(num_levels)
