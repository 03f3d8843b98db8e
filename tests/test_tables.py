"""Tables: every entry comes back with its value and its type, and every mistake ends with one sentence."""

import datetime
import json

import numpy as np
import pandas as pd
import pytest
import torch
from mixed_tables import KIND_OF, NAN, only, table
from pandas.testing import assert_frame_equal, assert_series_equal
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from pyro_vae.data.tables import Column, Schema, parse_kinds

# --- there and back


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_a_table_comes_back_with_its_values_types_and_order(seed, missing):
    frame = table(seed, missing=missing)
    schema = Schema.infer(frame)
    x = schema.encode(frame, torch.float64)
    np.testing.assert_array_equal(x.isnan(), frame.isna())
    assert_frame_equal(schema.decode(x), frame)


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_in_single_precision_levels_and_counts_are_exact_and_numbers_nearly(missing):
    frame = table(missing=missing)
    schema = Schema.infer(frame)
    x = schema.encode(frame, torch.float32)
    assert x.dtype is torch.float32
    assert_frame_equal(schema.decode(x), frame, rtol=2**-24)
    exact = frame.drop(columns=["dose", "change"])
    assert_frame_equal(schema.decode(x)[exact.columns], exact)


def test_encode_gives_double_precision_unless_it_is_given_a_type():
    schema = Schema.infer(table())
    assert schema.encode(table()).dtype is torch.float64
    assert schema.encode(table(), torch.float32).dtype is torch.float32


def test_levels_are_numbered_in_their_order():
    frame = pd.DataFrame(
        {
            "cured": [True, False, True, True],
            "smoker": ["yes", "no", None, "no"],
            "grade": pd.Categorical(["mid", None, "high", "low"], ["low", "mid", "high"]),
            "side": [-1, 1, 1, -1],
            "visits": [4, 0, 2, 1],
        }
    )
    x = Schema.infer(frame).encode(frame)
    np.testing.assert_array_equal(x, [[1, 1, 1, 0, 4], [0, 0, NAN, 1, 0], [1, NAN, 2, 1, 2], [1, 0, 0, 0, 1]])


def test_columns_are_found_by_their_names_and_rows_by_their_place():
    frame = table(1, missing=0.2)
    schema = Schema.infer(frame)
    expected = schema.encode(frame)
    shuffled = frame[frame.columns[::-1]].set_axis(np.arange(len(frame))[::-1] * 7)
    torch.testing.assert_close(schema.encode(shuffled), expected, rtol=0, atol=0, equal_nan=True)


def test_a_level_is_known_in_whatever_type_it_comes():
    schema = Schema.infer(table())
    frame = table(3)
    expected = schema.encode(frame)
    other = frame.astype({"cured": int, "side": float, "colour": "category", "smoker": object, "ward": int})
    torch.testing.assert_close(schema.encode(other), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_come_back_as_they_were_or_with_room_for_what_is_missing(dtype):
    values = pd.Series([3, 0, 7, 1], dtype=dtype, name="a")
    nullable = dtype.replace("int", "Int").replace("u", "U")
    for kind in ("count", "real", "category"):
        schema = only(values, kind)
        x = schema.encode(values.to_frame())
        assert_series_equal(schema.decode(x)["a"], values)
        x[1] = NAN
        expected = pd.Series([3, None, 7, 1], dtype=nullable, name="a")
        assert_series_equal(schema.decode(x)["a"], expected)


@pytest.mark.parametrize(
    ("values", "dtype", "came_back"),
    [
        ([True, False, False], "bool", pd.array([None, False, False], "boolean")),
        ([True, False, False], "boolean", pd.array([None, False, False], "boolean")),
        (["a", "b", "c"], "string", pd.array([None, "b", "c"], "string")),
        (["a", "b", "c"], object, np.array([NAN, "b", "c"], object)),
        ([1.5, 2.5, 3.5], "Float64", pd.array([None, 2.5, 3.5], "Float64")),
        ([1.5, 2.5, 3.5], "float32", np.array([NAN, 2.5, 3.5], np.float32)),
        ([1.0, 2.0, 3.0], "float16", np.array([NAN, 2.0, 3.0], np.float16)),
    ],
)
def test_other_types_come_back_too(values, dtype, came_back):
    values = pd.Series(values, dtype=dtype, name="a")
    schema = only(values, "category" if values.dtype.kind == "O" else None)
    x = schema.encode(values.to_frame())
    assert_series_equal(schema.decode(x)["a"], values)
    x[0] = NAN
    assert_series_equal(schema.decode(x)["a"], pd.Series(came_back, dtype=came_back.dtype, name="a"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 4, None, 0], pd.array([1, 4, None, 0], "Int64")),
        ([0.5, 1, None, 3], np.array([0.5, 1, NAN, 3])),
        ([True, None, False, True], np.array([True, NAN, False, True], object)),
    ],
)
def test_python_objects_come_back_as_what_they_are(values, expected):
    frame = pd.DataFrame({"a": pd.Series(values, dtype=object), "b": range(4)})
    schema = Schema.infer(frame)
    assert_series_equal(schema.decode(schema.encode(frame))["a"], pd.Series(expected, name="a"))


def test_sparse_columns_come_back_dense():
    values = pd.Series([0, 1, 2, 0], name="a")
    frame = values.astype(pd.SparseDtype(int)).to_frame()
    schema = Schema.infer(frame)
    assert_series_equal(schema.decode(schema.encode(frame))["a"], values)


def test_categoricals_keep_their_levels_and_whether_these_are_ordered():
    for ordered in (False, True):
        for values in (["c", "a", "b"], [3, 1, 2], [True, False], [0.5, 0.1, 0.2], np.array([3, 1, 2], np.int8)):
            levels = pd.Index(values)
            dtype = pd.CategoricalDtype(levels, ordered)
            frame = pd.DataFrame({"a": pd.Series([levels[1], None, levels[0]], dtype=dtype), "b": range(3)})
            schema = Schema.infer(frame)
            np.testing.assert_array_equal(schema.encode(frame)[:, 0], [1, NAN, 0])
            decoded = schema.decode(schema.encode(frame))
            assert_frame_equal(decoded, frame)
            assert decoded["a"].cat.categories.dtype == levels.dtype


def test_rows_to_decode_may_have_a_gradient_and_any_floating_point_type():
    frame = table()
    schema = Schema.infer(frame)
    x = schema.encode(frame).requires_grad_()
    assert_frame_equal(schema.decode(x), schema.decode(x.detach().double()))
    small = schema.decode(x.to(torch.bfloat16))
    assert small["visits"].tolist() == frame["visits"].tolist()


def test_no_rows_decode_to_a_table_of_none():
    frame = table()
    assert_frame_equal(Schema.infer(frame).decode(torch.zeros(0, len(KIND_OF))), frame.iloc[:0])


# --- means and draws


def test_means_give_the_nearest_level_and_the_nearest_whole_number():
    frame = pd.DataFrame({"smoker": ["no", "yes"] * 2, "visits": [0, 1, 2, 4], "dose": [0.1, 0.2, 0.3, 0.4]})
    frame["colour"] = pd.Categorical(["red", "green", "blue", "red"], ["red", "green", "blue"])
    schema = Schema.infer(frame)
    x = torch.tensor([[0.51, 2.4, 0.125, 1.6], [0.49, -0.3, 0.25, 0.4], [-3.0, 2.6, 0.5, 9.0], [7.0, 3.0, 1.0, -1.0]])
    decoded = schema.decode(x)
    assert decoded["smoker"].tolist() == ["yes", "no", "no", "yes"]
    assert decoded["visits"].tolist() == [2, 0, 3, 3]
    assert decoded["dose"].tolist() == [0.125, 0.25, 0.5, 1.0]
    assert decoded["colour"].tolist() == ["blue", "red", "blue", "red"]
    assert_series_equal(decoded.dtypes, frame.dtypes)
    means = schema.decode(x.double(), rounding=False)
    assert means["visits"].tolist() == x[:, 1].tolist()
    assert_frame_equal(means.drop(columns="visits"), decoded.drop(columns="visits"))


def test_counts_with_gaps_are_whole_floats_and_unrounded_means():
    schema = only([0.0, 1.0, 2.0, NAN])
    x = torch.tensor([[1.4], [-0.4], [NAN]])
    rounded = schema.decode(x)["a"].tolist()
    np.testing.assert_array_equal(rounded, [1, 0, NAN])
    assert str(rounded[1]) == "0.0"
    np.testing.assert_array_equal(schema.decode(x.double(), rounding=False)["a"], x[:, 0].double())


def test_draws_beyond_a_narrow_type_come_in_a_wider_one():
    schema = only(pd.Series([0, 200, 3], dtype=np.uint8))
    draws = torch.tensor([[255.0], [256.0], [70000.0]])
    assert_series_equal(schema.decode(draws[:1])["a"], pd.Series([255], dtype=np.uint8, name="a"))
    assert_series_equal(schema.decode(draws)["a"], pd.Series([255, 256, 70000], name="a"))
    draws[0] = NAN
    assert_series_equal(schema.decode(draws)["a"], pd.Series([None, 256, 70000], dtype="Int64", name="a"))
    assert schema.decode(torch.tensor([[-2.0]]))["a"].tolist() == [-2]


@pytest.mark.parametrize("value", [2.0**63, -(2.0**64), np.inf])
def test_whole_numbers_beyond_64_bits_are_refused(value):
    with pytest.raises(ValueError, match=r"column 'a' cannot have whole numbers from .*: they exceed 64 bits"):
        only([0, 1, 2]).decode(torch.tensor([[1.0], [value]]))
    assert only([0, 1, 2]).decode(torch.tensor([[-(2.0**63)]]))["a"].tolist() == [-(2**63)]


@pytest.mark.parametrize("shape", [(3,), (4, 2), (2, 4, 3)])
def test_rows_of_another_shape_are_refused(shape):
    schema = Schema.infer(table()[["cured", "visits", "dose"]])
    with pytest.raises(ValueError, match=rf"expected rows of shape \(N, 3\), found shape \({shape[0]}"):
        schema.decode(torch.zeros(shape))


# --- tables that do not fit


@pytest.mark.parametrize(
    ("column", "row", "value", "complaint"),
    [
        ("colour", 2, "violet", "'colour' has 'violet', which is not among its levels in training: "
                                "'blue', 'green', 'red'"),
        ("side", 0, 2, "'side' has 2, which is not among its levels in training: -1, 1"),
        ("visits", 3, -1, "'visits' has -1 in row 3, but kind count takes the whole numbers from 0: fix such entries "
                          "or leave them empty"),
        ("visits", 3, 1.25, "'visits' has 1.25 in row 3, but"),
        ("visits", 3, "many", "'visits' has 'many' in row 3, but kind count takes the whole numbers from 0"),
        ("dose", 1, 0, "'dose' has 0 in row 1, but kind positive takes the real numbers above 0"),
        ("dose", 1, -0.5, "'dose' has -0.5 in row 1, but kind positive takes the real numbers above 0"),
        ("dose", 1, [1], r"'dose' has \[1\] in row 1, but kind positive takes"),
        ("change", 0, np.inf, "'change' has inf in row 0, but kind real takes the real numbers"),
        ("change", 5, "1e3", "'change' has '1e3' in row 5, but kind real takes the real numbers"),
        ("change", 5, datetime.datetime(2020, 1, 1), r"'change' has .*2020.* in row 5, but kind real takes"),
        ("change", 0, 1e300, "'change' has 1e[+]300 in row 0, which torch.float32 cannot hold: rescale the column"),
        ("dose", 0, 1e-60, "'dose' has 1e-60 in row 0, which torch.float32 cannot hold: rescale the column"),
    ],
)  # fmt: skip
def test_an_entry_that_does_not_suit_its_column_is_named(column, row, value, complaint):
    frame = table()
    schema = Schema.infer(frame)
    frame[column] = [value if i == row else entry for i, entry in enumerate(frame[column])]
    with pytest.raises(ValueError, match=f"column {complaint}"):
        schema.encode(frame, torch.float32)


def test_a_level_of_another_type_is_another_level():
    schema = Schema.infer(pd.DataFrame({"ward": ["1", "2", "2", "3", "3", "1"], "cured": [True, False] * 3}))
    with pytest.raises(ValueError, match=r"'ward' has 1, which is not among its levels in .*: '1', '2', '3'"):
        schema.encode(pd.DataFrame({"ward": [1], "cured": [True]}))
    with pytest.raises(ValueError, match=r"'cured' has 'maybe', which is not among its levels in .*: False, True"):
        schema.encode(pd.DataFrame({"ward": ["1"], "cured": ["maybe"]}))


def test_only_the_first_levels_of_many_are_listed():
    schema = only([f"level {i:03d}" for i in range(100)], "category")
    with pytest.raises(ValueError, match=r"'level 018', 'level 019', … \(100 levels\)$"):
        schema.encode(pd.DataFrame({"a": ["another"]}))


def test_a_table_has_the_columns_of_the_schema_and_no_others():
    schema = Schema.infer(table())
    with pytest.raises(ValueError, match="the table lacks the column 'dose'; it has cured, smoker, side"):
        schema.encode(table().drop(columns="dose"))
    with pytest.raises(ValueError, match=r"unknown column 'Dose': did you mean 'dose'[?] Known: cured"):
        schema.encode(table().rename(columns={"dose": "Dose"}))
    with pytest.raises(ValueError, match="unknown column 0; known: cured"):
        schema.encode(table().assign(**{"x": 1}).rename(columns={"x": 0}))
    with pytest.raises(ValueError, match="the table has two columns named 'dose'"):
        schema.encode(pd.concat([table(), table()[["dose"]]], axis=1))
    with pytest.raises(ValueError, match="the table has no rows"):
        schema.encode(table().iloc[:0])


def test_rows_without_entries_are_named():
    frame = table(missing=0.2)
    schema = Schema.infer(frame)
    empty = np.isin(np.arange(len(frame)), [17, 30])
    with pytest.raises(ValueError, match="rows 17, 30 of the table, counted from 0, have no entries: drop"):
        schema.encode(frame.mask(empty[:, None] & np.ones(frame.shape, bool)))


def test_a_column_may_be_missing_altogether_once_the_schema_is_known():
    frame = table(missing=0.1)
    schema = Schema.infer(frame)
    expected = schema.encode(frame)
    for name in KIND_OF:
        without = schema.encode(frame.assign(**{name: None}))
        expected_without = expected.clone()
        expected_without[:, schema.names.index(name)] = NAN
        torch.testing.assert_close(without, expected_without, rtol=0, atol=0, equal_nan=True)


# --- what is printed


def test_the_description_says_kind_levels_extent_and_missing_entries():
    frame = pd.DataFrame(
        {
            "cured": [True, False, None, True],
            "colour": pd.Categorical(["red", None, None, "red"], ["red", "green", "blue"]),
            "visits": [3, 0, 12, 1],
            "dose": [0.25, 1e-3, NAN, 2.0],
            "name": ["a", "b", "c", "d"],
        }
    )
    described = Schema.infer(frame, {"name": "category"}).describe()
    assert described.to_dict("list") == {
        "name": ["cured", "colour", "visits", "dose", "name"],
        "kind": ["binary", "category", "count", "positive", "category"],
        "values": ["False, True", "'red', 'green', 'blue'", "0 to 12", "0.001 to 2", "'a', 'b', 'c', 'd'"],
        "missing": [1, 2, 0, 1, 0],
    }
    assert Schema((Column("age", "count"),)).describe()["values"].tolist() == [""]


# --- JSON


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_schema_comes_back_from_json_and_decodes_alike(missing):
    frame = table(missing=missing)
    schema = Schema.infer(frame)
    text = json.dumps(schema.to_json(), allow_nan=False)
    loaded = Schema.from_json(json.loads(text))
    assert loaded == schema
    assert [list(map(type, c.categories)) for c in loaded.columns] == [
        list(map(type, c.categories)) for c in schema.columns
    ]
    assert_frame_equal(loaded.decode(loaded.encode(frame, torch.float64)), frame)
    assert_frame_equal(loaded.describe(), schema.describe())


COLUMN = {"name": "a", "kind": "binary", "categories": ["no", "yes"], "dtype": "object"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (None, "not subscriptable"),
        ([], "indices"),
        ({}, "'columns'"),
        ({"columns": None}, "not iterable"),
        ({"columns": []}, "the table has no columns"),
        ({"columns": ["a"]}, "not a mapping|indices"),
        ({"columns": [COLUMN, COLUMN]}, "two columns named 'a'"),
        ({"columns": [{"kind": "real", "categories": []}]}, "'name'"),
        ({"columns": [{**COLUMN, "colour": "red"}]}, "'colour'"),
        ({"columns": [{**COLUMN, "name": 3}]}, "column names must be text, found 3"),
        ({"columns": [{**COLUMN, "kind": "binry"}]}, "unknown kind 'binry': did you mean 'binary'"),
        ({"columns": [{**COLUMN, "kind": ["binary"]}]}, "unknown kind"),
        ({"columns": [{**COLUMN, "kind": "real"}]}, "kind real takes no distinct levels, but column 'a' has 2"),
        (
            {"columns": [{**COLUMN, "kind": "category", "categories": []}]},
            "kind category takes one or more distinct levels, but column 'a' has 0",
        ),
        (
            {"columns": [{**COLUMN, "categories": ["no"]}]},
            "kind binary takes two distinct levels, but column 'a' has 1",
        ),
        ({"columns": [{**COLUMN, "categories": ["no", "no"]}]}, "one of its levels twice"),
        ({"columns": [{**COLUMN, "categories": ["no", None]}]}, "has the level None"),
        ({"columns": [{**COLUMN, "categories": ["no", [1]]}]}, r"has the level \[1\]"),
        ({"columns": [{**COLUMN, "categories": 2}]}, "not iterable"),
        ({"columns": [{**COLUMN, "dtype": "object", "ordered": "very"}]}, "'very' for ordered"),
        ({"columns": [{**COLUMN, "dtype": "no such type"}]}, "cannot have the type 'no such type'"),
        ({"columns": [{**COLUMN, "dtype": 7}]}, "cannot have the type 7"),
        ({"columns": [{**COLUMN, "dtype": "int64"}]}, "cannot have the type 'int64'"),
        ({"columns": [{**COLUMN, "dtype": "bool"}]}, "cannot have the type 'bool'"),
        ({"columns": [{**COLUMN, "categories": [0.5, 1.5], "dtype": "int64"}]}, "cannot have the type 'int64'"),
        ({"columns": [{**COLUMN, "categories": [1, 300], "dtype": "uint8"}]}, "cannot have the type 'uint8'"),
        ({"columns": [{**COLUMN, "categories": [1, 2], "dtype": "str"}]}, "cannot have the type 'str'"),
        ({"columns": [{**COLUMN, "dtype": "datetime64[ns]"}]}, "cannot have the type 'datetime64"),
        ({"columns": [{"name": "a", "kind": "real", "categories": [], "dtype": "object"}]}, "cannot have the type"),
        ({"columns": [{**COLUMN, "num_missing": "two"}]}, "'two' where a number belongs"),
        ({"columns": [{**COLUMN, "low": "low"}]}, "'low' where a number belongs"),
    ],
)
def test_a_damaged_description_is_refused(data, reason):
    with pytest.raises(ValueError, match=rf"the description of the table's columns is damaged \(.*({reason})"):
        Schema.from_json(data)


# --- data that people have


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (load_wine, {"category": 0, "positive": 13, "count": 1}),
        (load_diabetes, {"binary": 1, "real": 9, "positive": 1}),
        (load_breast_cancer, {"binary": 1, "positive": 24, "real": 6}),
    ],
)
def test_data_sets_of_scikit_learn_come_back(load, expected):
    frame = load(as_frame=True).frame
    schema = Schema.infer(frame)
    found = [column.kind for column in schema.columns]
    assert {kind: found.count(kind) for kind in expected} == expected
    assert_frame_equal(schema.decode(schema.encode(frame, torch.float64)), frame)
    described = schema.describe().set_index("name")["values"]
    for column in schema.columns:
        if column.is_number:
            assert described[column.name] == f"{frame[column.name].min():g} to {frame[column.name].max():g}"


def test_the_label_of_a_data_set_can_be_a_category():
    frame = load_wine(as_frame=True).frame
    column = Schema.infer(frame, parse_kinds(["target=category"])).columns[-1]
    assert (column.kind, column.categories, column.dtype) == ("category", (0, 1, 2), str(frame["target"].dtype))
