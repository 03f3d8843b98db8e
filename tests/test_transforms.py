"""Transforms: there and back, log-Jacobians against autograd, and outputs that stay where they are said to."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pyro_vae.transforms import Binarize, Identity, Scale, Standardize, Transform

NUM_ROWS = 5


@dataclass(frozen=True)
class Case:
    """A transform for rows of a shape, and rows that it takes."""

    make: Callable[[tuple[int, ...]], Transform]
    rows: Callable[[tuple[int, ...]], torch.Tensor]


def uniform(low, high):
    return lambda event_shape: low + (high - low) * torch.rand(NUM_ROWS, *event_shape)


def bits_at(low, high):
    return lambda event_shape: torch.where(torch.rand(NUM_ROWS, *event_shape) < 0.5, low, high)


DIFFERENTIABLE = {
    "identity": Case(lambda _: Identity(), uniform(-3.0, 3.0)),
    "scale 0-255 onto 0-1": Case(lambda _: Scale(), uniform(0.0, 255.0)),
    "scale 0-16 onto -1-1": Case(lambda _: Scale(0, 16, onto=(-1, 1)), uniform(0.0, 16.0)),
    "scale -5-3 onto 2-10.5": Case(lambda _: Scale(-5, 3, onto=(2, 10.5)), uniform(-5.0, 3.0)),
    "standardize": Case(lambda shape: Standardize(shape).fit(7 + 3 * torch.randn(20, *shape)), uniform(0.0, 14.0)),
}
CASES = {**DIFFERENTIABLE, "binarize at its two ends": Case(lambda _: Binarize(-2, 16), bits_at(-2.0, 16.0))}

cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
events = pytest.mark.parametrize("event_shape", [(4,), (2, 3), ()], ids=str)
decimal_bounds = pytest.mark.parametrize(
    ("low", "high"), [(0.0, 255.0), (0.1, 0.3), (-0.3, 1.1), (0.2, 1.1), (1.0, 1.7), (-1.3, 2.7)]
)


@cases
@events
@pytest.mark.usefixtures("float64")
def test_inverse_undoes_the_transform(case, event_shape):
    transform, x = case.make(event_shape), case.rows(event_shape)
    torch.testing.assert_close(transform.inverse(transform(x)), x, rtol=1e-12, atol=1e-12)


@cases
@pytest.mark.usefixtures("float64")
def test_inverse_takes_any_number_of_batch_dimensions(case):
    transform, x = case.make((2, 3)), case.rows((2, 3))
    y = torch.stack([transform(x), transform(x.flip(0))])
    torch.testing.assert_close(transform.inverse(y), torch.stack([x, x.flip(0)]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", DIFFERENTIABLE.values(), ids=list(DIFFERENTIABLE))
@events
@pytest.mark.usefixtures("float64")
def test_log_jacobian_equals_that_of_autograd(case, event_shape):
    transform, x = case.make(event_shape), case.rows(event_shape)
    found = transform.log_abs_det_jacobian(x)
    assert found.shape == x.shape
    for row, log_det in zip(x, found.reshape(NUM_ROWS, -1).sum(1), strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda r: transform(r[None])[0], row)
        expected = torch.linalg.slogdet(torch.as_tensor(jacobian).reshape(row.numel(), row.numel())).logabsdet
        torch.testing.assert_close(log_det, expected, rtol=1e-12, atol=1e-12)


def test_bits_have_no_jacobian():
    assert Binarize(0, 16).log_abs_det_jacobian(torch.rand(3, 4)).tolist() == 3 * [4 * [0]]


@cases
@pytest.mark.usefixtures("float64")
def test_rows_lie_in_the_domain_and_what_comes_out_in_the_codomain(case):
    transform, x = case.make((4,)), case.rows((4,))
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


def test_bits_are_drawn_anew_at_each_call_and_on_their_own_for_each_element():
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
