"""Dates come back as they were written, and gaps are filled with everything else untouched."""

import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from pyro_vae.data.tables import Column, Schema, read_table, write_table

DAYS = pd.date_range("2019-12-20", periods=40, freq="9D")


@pytest.mark.parametrize(
    ("written", "kind", "form"),
    [
        (DAYS.strftime("%Y-%m-%d"), "date", "%Y-%m-%d"),
        (DAYS.strftime("%Y-%m-%dT%H:%M:%SZ"), "date", "%Y-%m-%dT%H:%M:%SZ"),
        (DAYS.strftime("%Y/%m/%d %H:%M"), "date", "%Y/%m/%d %H:%M"),
        (DAYS.strftime("%d.%m.%Y"), "date", "%d.%m.%Y"),
        ([f"{day.day}.{day.month}.{day.year}" for day in DAYS], "date", "%-d.%-m.%Y"),
        (DAYS.strftime("%d/%m/%Y"), "date", "%d/%m/%Y"),
        (DAYS.strftime("%m/%d/%Y"), "date", "%m/%d/%Y"),
        (["03/04/2020", "05/06/2020"], "date-dmy", "%d/%m/%Y"),
        (["03/04/2020", "05/06/2020"], "date-mdy", "%m/%d/%Y"),
    ],
)
def test_dates_in_text_come_back_in_their_format(written, kind, form):
    frame = pd.DataFrame({"when": list(written)})
    schema = Schema.infer(frame, {"when": kind})
    assert schema.columns[0].format == form
    x = schema.encode(frame)
    expected = pd.to_datetime(frame["when"], format=form.replace("%-", "%"))
    np.testing.assert_array_equal(x[:, 0], (expected - expected.min()).dt.total_seconds() / 86400)
    assert_frame_equal(schema.decode(x), frame)
    assert Schema.from_json(schema.to_json()) == schema


def test_dates_with_two_readings_are_refused_with_both():
    frame = pd.DataFrame({"when": ["03/04/2020", "05/06/2020", "03/04/2020"]})
    for kinds in ({}, {"when": "date"}):
        with pytest.raises(ValueError, match="may be 2020-04-03 or 2020-03-04; give when=date-dmy, when=date-mdy"):
            Schema.infer(frame, kinds)


@pytest.mark.parametrize(
    "values",
    [
        pd.Series(DAYS),
        pd.Series(DAYS).astype("datetime64[ns]"),
        pd.Series(DAYS).dt.tz_localize("Europe/Berlin"),
        pd.Series([*DAYS[:5], pd.NaT]),
        pd.Series([day.date() for day in DAYS], dtype=object),
        pd.Series(DAYS + pd.to_timedelta(np.arange(40) * 1_000_001, "us")),
    ],
)
def test_dates_come_back_in_their_type(values):
    frame = pd.DataFrame({"when": values, "x": np.arange(len(values)) * 0.5})
    schema = Schema.infer(frame, {"when": "date"})
    assert_frame_equal(schema.decode(schema.encode(frame)), frame)


def test_draws_of_days_are_days():
    frame = pd.DataFrame({"a": [str(day.date()) for day in DAYS], "b": [day.date() for day in DAYS]})
    schema = Schema.infer(frame, {"a": "date", "b": "date"})
    drawn = schema.decode(torch.tensor([[1.4, -3.6]]))
    assert drawn.iloc[0].tolist() == ["2019-12-21", datetime.date(2019, 12, 16)]
    with pytest.raises(ValueError, match=r"column 'a' cannot have a date 1e.12 days after 2019-12-20"):
        schema.decode(torch.tensor([[1e12, 0.0]]))


def test_times_finer_than_days_can_tell_are_refused():
    frame = pd.DataFrame({"when": pd.Series(["1800-01-01", "2200-01-01 00:00:00.000000001"]).astype("datetime64[ns]")})
    with pytest.raises(ValueError, match=r"a number of days since 1800.* cannot represent.*round it"):
        Schema.infer(frame, {"when": "date"})


# --- there and back, over generated tables

WHOLE = st.integers(-(2**53), 2**53)
ENTRIES = {
    "int64": WHOLE,
    "Int64": WHOLE | st.none(),
    "uint8": st.integers(0, 255),
    "float64": st.floats(allow_infinity=False),
    "float32": st.floats(width=32, allow_infinity=False),
    "Float64": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
    "str": st.sampled_from(["u", "v", "ü", ""]) | st.none(),
    "string": st.sampled_from(["u", "v", "ü"]) | st.none(),
    "string[python]": st.sampled_from(["u", "v"]) | st.none(),
    "boolean": st.booleans() | st.none(),
    "bool": st.booleans(),
    "category": st.sampled_from(["u", "v", "w"]) | st.none(),
    "datetime64[us]": st.datetimes(datetime.datetime(1950, 1, 1), datetime.datetime(2030, 1, 1)) | st.none(),
    "int64[pyarrow]": WHOLE | st.none(),
    "double[pyarrow]": st.floats(allow_nan=False, allow_infinity=False) | st.none(),
}


@st.composite
def tables(draw):
    num_rows = draw(st.integers(1, 12))
    dtypes = draw(st.lists(st.sampled_from(list(ENTRIES)), min_size=1, max_size=5))
    columns = {
        f"{dtype} {i}": pd.Series(draw(st.lists(ENTRIES[dtype], min_size=num_rows, max_size=num_rows)), dtype=dtype)
        for i, dtype in enumerate(dtypes)
    }
    return pd.DataFrame({**columns, "whole": np.arange(num_rows) % 3})


@given(frame=tables())
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
def test_what_is_encoded_comes_back_exactly(frame):
    try:
        kinds = {name: "date" for name in frame if str(name).startswith("datetime")}
        kinds |= {name: "category" for name in frame if str(name).startswith("str")}
        schema = Schema.infer(frame, kinds)
        x = schema.encode(frame)
    except ValueError as error:
        assert "no entries" in str(error) or "beyond 2^53" in str(error)  # noqa: PT017
        return
    back = schema.decode(x)
    assert_frame_equal(back, frame, check_exact=True)
    for name in [name for name in frame if str(name).startswith("float64")]:  # signs of zeros too
        np.testing.assert_array_equal(np.signbit(back[name].dropna()), np.signbit(frame[name].dropna()))
    assert Schema.from_json(schema.to_json()) == schema
    schema.decode(x.float())


def test_whole_numbers_that_would_lose_digits_are_refused_by_name():
    frame = pd.DataFrame({"a": [2**53 + 1, 5, 7], "b": [0.5, 1.5, 2.5]})
    for kind in ("count", "real"):
        with pytest.raises(ValueError, match="column 'a' has 9007199254740993, but whole numbers beyond 2"):
            Schema.infer(frame, {"a": kind})
    assert Schema.infer(frame, {"a": "index"}).names == ("b",)


def test_identifiers_keep_their_digits():
    frame = pd.DataFrame({"a": [1_700_000_001, 1_700_000_000, 5]})
    schema = Schema.infer(frame, {"a": "count"})
    assert schema.decode(schema.encode(frame))["a"].tolist() == frame["a"].tolist()


@pytest.mark.parametrize(
    ("values", "kind"), [([3.0, 41.0, None, 7.0], None), ([-3.0, 4.0, 9.0], None), ([3.0, 4.0, 9.0], "positive")]
)
def test_columns_of_whole_numbers_are_drawn_as_whole_numbers(values, kind):
    frame = pd.DataFrame({"a": values, "b": range(len(values))})
    schema = Schema.infer(frame, {"a": kind} if kind else {})
    assert schema.columns[0].whole
    drawn = schema.decode(torch.tensor([[33.24, 0.0], [0.2, 0.0]]))["a"].tolist()
    assert drawn == [33.0, 1.0 if kind == "positive" else 0.0]  # a positive number is not rounded to 0


# --- gaps

FILE = """id;when;dose;visits;smoker;note;weight
p3;01.02.2020;1,50;3;TRUE;a;61
p1;;0,25;;FALSE;"b;c";
p2;13.02.2020;;0;;;1.072
p9;15.02.2020;0,125;4;TRUE;d;70
"""
KINDS = {"id": "index", "when": "date", "note": "drop", "weight": "positive", "smoker": "binary"}


def test_gaps_are_filled_as_the_file_writes_its_entries_and_nothing_else_is_touched(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(FILE)
    found = read_table(path)
    schema = Schema.infer(found.frame, KINDS)
    draws = torch.tensor([[9.0, 9.0, 9.0, 0.0, 9.0]] * 4)
    draws[1] = torch.tensor([4.3, 0.0, 2.2, 0.0, 64.6])
    draws[2, 1], draws[2, 3] = 2.34567, 1.0
    filled = schema.fill(found, draws)
    write_table(filled, path, found)
    assert path.read_text() == (
        "id;when;dose;visits;smoker;weight\np3;01.02.2020;1,50;3;TRUE;61\np1;05.02.2020;0,25;2;FALSE;65\n"
        "p2;13.02.2020;2,346;0;TRUE;1.072\np9;15.02.2020;0,125;4;TRUE;70\n"
    )


@given(frame=tables(), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_observed_entries_of_typed_columns_stay(frame, seed):
    try:
        kinds = {name: "date" for name in frame if str(name).startswith("datetime")}
        kinds |= {name: "category" for name in frame if str(name).startswith("str")}
        schema = Schema.infer(frame, kinds)
        x = schema.encode(frame)
    except ValueError:
        return
    filled = schema.fill(frame, torch.where(x.isnan(), torch.ones(()), x + 1000))
    assert not filled.isna().any(axis=None)
    for name in frame:
        seen = frame[name].notna()
        assert filled[name][seen].tolist() == frame[name][seen].tolist()


def test_filling_takes_a_row_of_draws_for_each_row():
    frame = pd.DataFrame({"a": [1.5, None, 2.5]})
    with pytest.raises(ValueError, match="a row of draws for each of the table's 3"):
        Schema.infer(frame, {"a": "real"}).fill(frame, torch.zeros(2, 1))


# --- other schemas


def test_schemas_say_in_what_they_differ():
    ours = Schema((Column("age", "count", dtype="int64"), Column("s", "binary", ("n", "y"), "object")))
    assert ours.differs(ours) == []
    assert ours.differs(Schema((Column("age", "count", dtype="int64", high=9.0), ours.columns[1]))) == []
    other = Schema((Column("age", "real", dtype="int64"), Column("s", "binary", ("n", "j"), "object")))
    assert ours.differs(other) == [
        "column 'age' is of kind count here and real there",
        "column 's' has the levels 'n', 'y' here and 'n', 'j' there",
    ]
    assert ours.differs(Schema(ours.columns[:1])) == ["column 's' is modelled here and not there"]
    assert "another order" in ours.differs(Schema(ours.columns[::-1]))[0]


def test_descriptions_of_earlier_versions_are_read():
    data = {"name": "age", "kind": "real", "categories": [], "dtype": "Int64", "ordered": None, "low": 0.0, "high": 9.0}
    column = Schema.from_json({"columns": [{**data, "num_missing": 1}]}).columns[0]
    assert column.whole
    assert (column.origin, column.format) == (None, None)
