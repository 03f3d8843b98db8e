"""Ranges in words, which transform fits which likelihood, and the sentence for each mistake in the data."""

import copy
import math
import re

import pytest
import torch

from pyro_vae import fit, load, mlp_vae
from pyro_vae._support.ranges import constraints, elementwise, interval, is_bounded, phrase, within
from pyro_vae.data.checks import check_fit, check_rows
from pyro_vae.likelihoods import Bernoulli, Mixed, Normal, Poisson
from pyro_vae.transforms import Binarize, Identity, Scale, Standardize

BITS, UNIT, SIGNED, REAL = constraints.boolean, constraints.unit_interval, interval(-1, 1), constraints.real
COUNTS, POSITIVE, NONNEGATIVE = constraints.nonnegative_integer, constraints.positive, constraints.nonnegative


@pytest.mark.parametrize(
    ("inner", "outer", "expected"),
    [
        (BITS, UNIT, True),
        (BITS, COUNTS, True),
        (BITS, BITS, True),
        (constraints.integer_interval(0, 1), BITS, True),
        (constraints.integer_interval(0, 2), BITS, False),
        (UNIT, BITS, False),
        (UNIT, SIGNED, True),
        (SIGNED, UNIT, False),
        (UNIT, interval(0, 1), True),
        (interval(0, 0.5), UNIT, True),
        (interval(0, 1.001), UNIT, False),
        (COUNTS, NONNEGATIVE, True),
        (NONNEGATIVE, COUNTS, False),
        (COUNTS, REAL, True),
        (REAL, NONNEGATIVE, False),
        (REAL, REAL, True),
        (constraints.positive_integer, POSITIVE, True),
        (POSITIVE, NONNEGATIVE, True),
        (NONNEGATIVE, POSITIVE, False),
        (UNIT, POSITIVE, False),
        (COUNTS, POSITIVE, False),
        (interval(0.5, 1), POSITIVE, True),
        (POSITIVE, POSITIVE, True),
        (UNIT, constraints.half_open_interval(0, 1), False),
        (constraints.half_open_interval(0, 1), UNIT, True),
    ],
    ids=str,
)
def test_one_range_lies_within_another(inner, outer, expected):
    assert within(inner, outer) is expected


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [
        (BITS, "0 or 1"),
        (constraints.integer_interval(0, 1), "0 or 1"),
        (UNIT, "the interval [0, 1]"),
        (SIGNED, "the interval [-1, 1]"),
        (interval(0, 0.25), "the interval [0, 0.25]"),
        (REAL, "the real numbers"),
        (NONNEGATIVE, "the real numbers from 0"),
        (constraints.less_than(3.0), "the real numbers up to 3"),
        (COUNTS, "the whole numbers from 0"),
        (constraints.integer_interval(0, 16), "the whole numbers from 0 to 16"),
    ],
    ids=str,
)
def test_a_range_is_said_in_words(constraint, expected):
    assert phrase(constraint) == expected


@pytest.mark.parametrize("constraint", [BITS, UNIT, SIGNED, REAL, COUNTS], ids=str)
def test_a_copied_range_is_the_same_range(constraint):
    same = copy.deepcopy(constraint)
    assert phrase(same) == phrase(constraint)
    assert within(same, constraint)
    assert within(constraint, same)


@pytest.mark.parametrize(
    ("constraint", "expected"),
    [(BITS, True), (UNIT, True), (SIGNED, True), (REAL, False), (COUNTS, False), (POSITIVE, False)],
    ids=str,
)
def test_a_range_is_bounded_if_both_its_ends_are_finite(constraint, expected):
    assert is_bounded(constraint) is expected


def test_the_range_of_an_event_is_that_of_its_elements():
    assert elementwise(constraints.independent(constraints.independent(UNIT, 1), 1)) is UNIT
    assert elementwise(BITS) is BITS


SIGMOID, TANH, LINEAR = Normal(link="sigmoid"), Normal(link="tanh"), Normal(link="linear")


@pytest.mark.parametrize(
    ("transform", "likelihood"),
    [
        (Binarize(0, 255), Bernoulli()),
        (Binarize(0, 255), SIGMOID),
        (Scale(0, 255), SIGMOID),
        (Scale(0, 255, onto=(-1, 1)), TANH),
        *[(t, LINEAR) for t in (Identity(), Scale(), Scale(onto=(-1, 1)), Standardize((4,)), Binarize())],
        *[(Identity(), likelihood) for likelihood in (Bernoulli(), SIGMOID, TANH)],
    ],
    ids=repr,
)
def test_a_fitting_transform_is_allowed(transform, likelihood):
    check_fit(transform, likelihood.data_range, "Normal")


BERNOULLI_MEND = "use transform=Binarize(low, high), or likelihood=Normal(link='sigmoid') with Scale(low, high)"
SIGMOID_MEND = "use transform=Scale(low, high), or a likelihood for real numbers with Standardize"
TANH_MEND = "use transform=Scale(low, high, onto=(-1, 1)), or a likelihood for real numbers with Standardize"


@pytest.mark.parametrize(
    ("transform", "likelihood", "found", "remedy"),
    [
        (Scale(0, 255), Bernoulli(), "Scale yields the interval [0, 1]", BERNOULLI_MEND),
        (Standardize((4,)), Bernoulli(), "Standardize yields the real numbers", BERNOULLI_MEND),
        (Standardize((4,)), SIGMOID, "Standardize yields the real numbers", SIGMOID_MEND),
        (Scale(onto=(-1, 1)), SIGMOID, "Scale yields the interval [-1, 1]", SIGMOID_MEND),
        (Scale(onto=(0, 0.5)), SIGMOID, "Scale yields the interval [0, 0.5]", SIGMOID_MEND),
        (Scale(0, 255), TANH, "Scale yields the interval [0, 1]", TANH_MEND),
        (Standardize((4,)), TANH, "Standardize yields the real numbers", TANH_MEND),
        (Binarize(0, 255), TANH, "Binarize yields 0 or 1", TANH_MEND),
    ],
    ids=repr,
)
def test_a_transform_that_does_not_fit_is_refused_with_one_that_would(transform, likelihood, found, remedy):
    name = type(likelihood).__name__
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_fit(transform, likelihood.data_range, name)
    assert str(caught.value) == f"{name} describes {phrase(likelihood.data_range)}, but {found}: {remedy}"


def check(x, transform=None, data_range=REAL, event_shape=None, dtype=torch.float32):
    check_rows(
        x,
        event_shape=x.shape[1:] if event_shape is None else event_shape,
        data_range=data_range,
        transform=Identity() if transform is None else transform,
        dtype=dtype,
        device=torch.device("cpu"),
        name="x_train",
    )


def with_values(*values, shape=(6, 4), start=(2, 1), dtype=torch.float32):
    """Zeros, but for these values one after another from an index on."""
    x = torch.zeros(shape, dtype=dtype)
    first = start[0] * shape[1] + start[1]
    x.view(-1)[first : first + len(values)] = torch.tensor(values, dtype=dtype)
    return x


GREY = torch.linspace(0, 1, 24).reshape(6, 4)
BYTES = torch.arange(0, 240, 10, dtype=torch.uint8).reshape(6, 4)


@pytest.mark.parametrize(
    ("x", "settings"),
    [
        (torch.tensor([[0.0, 1.0]]), {"data_range": BITS}),
        (torch.tensor([[False, True]]), {"data_range": BITS}),
        (torch.tensor([[0, 1]], dtype=torch.uint8), {"data_range": BITS}),
        (GREY, {"data_range": UNIT}),
        (GREY, {"data_range": BITS, "transform": Binarize()}),
        (GREY, {"data_range": SIGNED, "transform": Scale(0, 1, onto=(-1, 1))}),
        (BYTES, {"data_range": UNIT, "transform": Scale()}),
        (BYTES, {"data_range": BITS, "transform": Binarize(0, 255)}),
        (BYTES, {"data_range": REAL}),
        (BYTES, {"data_range": None}),
        (-1e30 * GREY, {"data_range": REAL}),
        (GREY[:1], {"data_range": UNIT}),
    ],
)
def test_good_rows_pass(x, settings):
    check(x, **settings)


@pytest.mark.parametrize(
    ("values", "start", "expected"),
    [
        ((math.nan,), (2, 1), "x_train has 1 NaN or infinite value, the first at index (2, 1): remove or fill"),
        ((math.nan, 7.0, math.nan), (0, 3), "x_train has 2 NaN or infinite values, the first at index (0, 3): "),
        ((math.inf,), (5, 0), "x_train has 1 NaN or infinite value, the first at index (5, 0): "),
        ((-math.inf, math.inf, math.nan), (3, 3), "x_train has 3 NaN or infinite values, the first at index (3, 3): "),
    ],
)
def test_nan_and_infinity_are_counted_and_the_first_is_pointed_at(values, start, expected):
    with pytest.raises(ValueError, match=re.escape(expected)):
        check(with_values(*values, start=start))


def test_values_beyond_the_models_floating_point_type_are_refused():
    x = with_values(1e39, dtype=torch.float64)
    check(x, dtype=torch.float64)
    with pytest.raises(ValueError, match="x_train"):
        check(x, dtype=torch.float32)


@pytest.mark.parametrize("x", [torch.zeros(0, 4), torch.zeros(0), torch.tensor(1.0)], ids=repr)
def test_data_without_rows_are_refused(x):
    with pytest.raises(ValueError, match="x_train has no rows; expected at least one"):
        check(x, event_shape=(4,))


def test_complex_data_are_refused():
    with pytest.raises(ValueError, match="x_train has complex values; expected real numbers"):
        check(torch.zeros(3, 4, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("event_shape", "hint"),
    [((4, 6), "; reshape it to (N, 4, 6)"), ((24,), "; reshape it to (N, 24)"), ((5, 4), ""), ((), "")],
    ids=str,
)
def test_rows_of_another_shape_are_refused_and_both_shapes_named(event_shape, hint):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check(torch.zeros(3, 6, 4), event_shape=event_shape)
    expected = f"x_train has rows of shape (6, 4), but the model describes rows of shape {event_shape}{hint}"
    assert str(caught.value) == expected


def test_grey_pixels_under_bernoulli_are_pointed_to_binarize():
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check(torch.tensor([[0.0, 1.0], [0.5, 1.0]]), data_range=BITS)
    assert str(caught.value) == (
        "x_train has values from 0 to 1, such as 0.5, but the likelihood describes 0 or 1: "
        "use transform=Binarize(0, 1), or likelihood=Normal(link='sigmoid') with Scale(0, 1)"
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("data_range", "described", "remedy"),
    [
        (UNIT, "the interval [0, 1]", "use transform=Scale(0, 255), or a likelihood for real numbers with Standardize"),
        (SIGNED, "the interval [-1, 1]", "use transform=Scale(0, 255, onto=(-1, 1)), or a likelihood for real numbers"),
        (BITS, "0 or 1", "use transform=Binarize(0, 255), or likelihood=Normal(link='sigmoid') with Scale(0, 255)"),
    ],
    ids=str,
)
def test_bytes_where_fractions_are_meant_are_pointed_to_the_scale_of_bytes(data_range, described, remedy, dtype):
    expected = f"x_train has values from 0 to 230, such as 10, but the likelihood describes {described}: {remedy}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        check(BYTES.to(dtype), data_range=data_range)


def test_standardised_data_under_a_sigmoid_are_refused():
    expected = "values from -2 to 1, such as -2, but the likelihood describes the interval [0, 1]: use transform=Scale"
    with pytest.raises(ValueError, match=re.escape(expected)):
        check(with_values(-2.0, 1.0), data_range=UNIT)


@pytest.mark.parametrize(
    ("x", "transform", "expected"),
    [
        (BYTES, Scale(0, 1), "values from 0 to 230, but Scale takes the interval [0, 1]"),
        (BYTES, Binarize(0, 16), "values from 0 to 230, but Binarize takes the interval [0, 16]"),
        (GREY - 1, Scale(0, 255), "values from -1 to 0, but Scale takes the interval [0, 255]"),
        (GREY + 0.5, Binarize(), "values from 0.5 to 1.5, but Binarize takes the interval [0, 1]"),
    ],
)
def test_values_outside_the_domain_of_the_transform_are_refused(x, transform, expected):
    sentence = f"x_train has {expected}: give the transform the bounds that the data have"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        check(x, transform=transform)


@pytest.mark.parametrize("row", [0, 4096, 9999])
def test_every_row_is_looked_at(row):
    x = torch.zeros(10_000, 1)
    x[row] = 0.5
    with pytest.raises(ValueError, match=r"such as 0\.5"):
        check(x, data_range=BITS)


def test_checking_draws_no_random_numbers():
    before = torch.get_rng_state()
    check(GREY, transform=Binarize(), data_range=BITS)
    assert torch.equal(torch.get_rng_state(), before)


TABLE = Mixed((Bernoulli(), Poisson(), Normal()), names=("cured", "visits", "weight"))
ROWS = torch.tensor([[0.0, 3.0, -7.5], [1.0, 0.0, 2.5], [1.0, 12.0, 0.0]])


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        (0, 2.0, "values from 0 to 2, such as 2, but its likelihood describes 0 or 1: fix such entries, or"),
        (1, -3.0, "values from -3 to 12, such as -3, but its likelihood describes the whole numbers from 0: "),
        (1, 1.5, "values from 1.5 to 12, such as 1.5, but its likelihood describes the whole numbers from 0: "),
    ],
)
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
def test_a_value_that_a_column_cannot_have_is_refused_by_the_columns_name(column, value, expected, named, gaps):
    x = ROWS.clone()
    x[1, column] = value
    x[2, 2] = torch.nan if gaps else 0.0
    data_range = (TABLE if named else Mixed(TABLE.columns)).data_range
    which = f"column {TABLE.names[column]!r} (index {column})" if named else f"column {column}"
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        check_rows(
            x,
            event_shape=(3,),
            data_range=data_range,
            transform=Identity(),
            dtype=torch.float32,
            device=torch.device("cpu"),
            missing=gaps,
            name="x_train",
        )
    assert str(caught.value).startswith(f"{which} of x_train has {expected}")


def test_a_column_that_new_rows_do_not_have_is_no_reason_to_refuse_them():
    """Its gaps once held a value of another column, which it could not have."""
    x = torch.tensor([[torch.nan, 3.0, -7.5], [torch.nan, 0.0, 2.5]])
    vae = mlp_vae((3,), 2, likelihood=TABLE, missing="nan")
    drawn = vae.impute(x, 5)
    assert set(drawn[..., 0].unique().tolist()) <= {0.0, 1.0}
    with pytest.raises(ValueError, match="the first at column 'cured' \\(index 0\\): leave them out"):
        fit(vae, x, batch_size=2)


def test_the_names_of_columns_are_one_for_each_and_saved_with_the_model(tmp_path):
    mlp_vae((3,), 2, likelihood=TABLE).save(tmp_path)
    with pytest.raises(ValueError, match="column 'visits' \\(index 1\\) of x has"):
        load(tmp_path).encode(torch.tensor([[0.0, -1.0, 0.0]]))
    with pytest.raises(ValueError, match="3 columns and 1 names"):
        Mixed(TABLE.columns, names=("cured",))
