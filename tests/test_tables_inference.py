"""What a column holds is told from its entries, what is guessed is noted, and what is unclear is refused at once."""

import datetime
import decimal
import re

import numpy as np
import pandas as pd
import pytest
from mixed_tables import KIND_OF, NAN, kinds, only, table

from pyro_vae.data.tables import KINDS, Schema, parse_kinds
from pyro_vae.data.tables.names import quoted


@pytest.mark.parametrize(
    ("values", "settings", "kind", "categories"),
    [
        pytest.param([True, False, True], {}, "binary", (False, True), id="bool"),
        pytest.param([True, True], {}, "binary", (False, True), id="bool that never changes"),
        pytest.param([True, None, True], {}, "binary", (False, True), id="bool among objects"),
        pytest.param([True, None], {"dtype": "boolean"}, "binary", (False, True), id="nullable bool"),
        pytest.param([1, 0, 1], {}, "binary", (0, 1), id="two integers"),
        pytest.param([7, -7, 7], {}, "binary", (-7, 7), id="two other integers"),
        pytest.param([2.5, 0.5, NAN], {}, "binary", (0.5, 2.5), id="two floats"),
        pytest.param(["yes", "no", None], {}, "binary", ("no", "yes"), id="two texts"),
        pytest.param(["a", "b", "a"], {"dtype": "category"}, "binary", ("a", "b"), id="two levels"),
        pytest.param([0, 1, 2], {}, "count", (), id="integers"),
        pytest.param([5, 9, 11], {"dtype": "uint8"}, "count", (), id="small unsigned integers"),
        pytest.param([0, 1, 2, None], {"dtype": "Int64"}, "count", (), id="nullable integers"),
        pytest.param([0, 1, 2, None], {"dtype": object}, "count", (), id="integers among objects"),
        pytest.param([0.0, 1.0, 2.0, NAN], {}, "count", (), id="integers that gaps made floats"),
        pytest.param([0, -1, 2], {}, "real", (), id="negative integers"),
        pytest.param([1.0, 2.0, 3.0], {}, "positive", (), id="whole floats without gaps"),
        pytest.param([1.5, 2.0, 3.0, NAN], {}, "positive", (), id="floats above 0"),
        pytest.param([0.0, 1.5, 3.0], {}, "real", (), id="floats from 0"),
        pytest.param([-1.0, 1.0, 3.0, NAN], {}, "real", (), id="whole floats below 0"),
        pytest.param([4, 4, 4], {}, "real", (), id="integer that never changes"),
        pytest.param([0.5, 0.5, NAN], {}, "real", (), id="float that never changes"),
        pytest.param(["b", "c", "a"] * 3, {}, "category", ("a", "b", "c"), id="texts"),
        pytest.param(["b", "b", None], {}, "category", ("b",), id="text that never changes"),
        pytest.param(["b"], {"dtype": pd.CategoricalDtype(["c", "b", "a"])}, "category", ("c", "b", "a"), id="levels"),
        pytest.param([3, 1, 1], {"dtype": pd.CategoricalDtype([3, 2, 1])}, "category", (3, 2, 1), id="integer levels"),
    ],
)  # fmt: skip
def test_the_kind_of_a_column_is_seen_in_its_entries(values, settings, kind, categories):
    column = only(values, **settings).columns[0]
    assert (column.kind, column.categories) == (kind, categories)
    assert [type(level) for level in column.categories] == [type(level) for level in categories]


@pytest.mark.parametrize(
    ("values", "kind", "categories", "code"),
    [
        ([1, 2, 4], "category", (1, 2, 4), [0, 1, 2]),
        ([0.5, NAN, 0.25], "category", (0.25, 0.5), [1, NAN, 0]),
        ([True, False], "category", (False, True), [1, 0]),
        ([0, 1], "count", (), [0, 1]),
        ([1, 2, 3], "positive", (), [1, 2, 3]),
        ([1, 2, 3], "real", (), [1, 2, 3]),
        ([4.0, 5.0, 7.0], "count", (), [4, 5, 7]),
        (pd.Categorical([5, 2, 9, None]), "count", (), [5, 2, 9, NAN]),
        ([f"text {i}" for i in range(3)], "category", ("text 0", "text 1", "text 2"), [0, 1, 2]),
    ],
)
def test_a_kind_that_is_given_stands(values, kind, categories, code):
    schema = only(values, kind)
    assert (schema.columns[0].kind, schema.columns[0].categories) == (kind, categories)
    frame = pd.DataFrame({"a": values, "b": range(len(values))})
    np.testing.assert_array_equal(Schema.infer(frame, {"a": kind}).encode(frame)[:, 0], code)


def test_all_kinds_are_told_apart_with_and_without_missing_entries():
    assert kinds(table()) == KIND_OF
    assert kinds(table(missing=0.2)) == KIND_OF
    assert {*KIND_OF.values(), "date"} == set(KINDS)


def test_text_has_at_most_fifty_levels_and_half_as_many_as_entries():
    levels = [f"level {i}" for i in range(50)]
    assert len(only([*levels, *levels]).columns[0].categories) == 50
    looks = "it looks like free text or an identifier; give a=index, a=drop or a=category"
    with pytest.raises(ValueError, match=f"'a' has 51 distinct texts in 151 rows, such as 'level 0': {looks}"):
        only([*levels * 3, "another"])
    with pytest.raises(ValueError, match=f"'a' has 50 distinct texts in 99 rows, such as 'level 1': {looks}"):
        only([*levels, *levels[1:], None, None])
    # Where someone has said that they are levels, they are.
    assert len(only(pd.Categorical([*levels, "another"])).columns[0].categories) == 51
    assert len(only([*levels, "another"], "category").columns[0].categories) == 51


def test_a_column_that_would_be_numbers_but_for_a_few_entries_says_which():
    with pytest.raises(
        ValueError, match=r"'a' is text because of entries such as '\?' \(1\), but most .* leave them empty"
    ):
        only([*map(str, range(20)), "?"])


@pytest.mark.parametrize(
    ("values", "holds"),
    [
        (
            [datetime.timedelta(1)],
            "timedelta.* values; expected numbers, text, dates, or true and false: convert it, or",
        ),
        (pd.period_range("2020-01", periods=2, freq="M"), "period values"),
        (pd.Categorical(pd.to_datetime(["2020-01-01"])), "datetime64 values as levels"),
        ([1j], "complex values"),
        ([b"raw"], "bytes values"),
        ([1, "one"], "mixed-integer values"),
        ([True, 0.5, "one"], "mixed values"),
        ([[1], [2]], "mixed values"),
        (pd.cut(np.arange(4.0), 2), "interval values"),
    ],
)
def test_a_column_of_anything_else_is_refused(values, holds):
    for kind in (None, *KINDS):
        with pytest.raises(ValueError, match=f"column 'a' holds {holds}"):
            only(values, kind)


def test_decimals_are_numbers():
    frame = pd.DataFrame({"a": [decimal.Decimal("0.10"), None, decimal.Decimal("2.5"), decimal.Decimal("7.5")]})
    assert kinds(frame) == {"a": "positive"}
    np.testing.assert_array_equal(Schema.infer(frame.dropna()).encode(frame.dropna())[:, 0], [0.1, 2.5, 7.5])


@pytest.mark.parametrize("values", [[NAN, NAN], [None, None], pd.array([None], "Int64"), pd.Categorical([None])])
def test_a_column_without_entries_is_refused(values):
    for kind in (None, *KINDS):
        with pytest.raises(ValueError, match="column 'a' has no entries: drop it"):
            only(values, kind)


@pytest.mark.parametrize(
    ("values", "kind", "complaint"),
    [
        ([0, 1, 2], "binary", "kind binary takes two distinct levels, but column 'a' has 3$"),
        ([0, 0], "binary", "kind binary takes two distinct levels, but column 'a' has 1$"),
        ([3, 2, -1], "count", "'a' has -1 in row 2, but kind count takes the whole numbers from 0: fix such"),
        ([3, 2.5, 1], "count", "'a' has 2.5 in row 1, but kind count takes the whole numbers from 0: fix such"),
        ([3.5, 0.0], "positive", "'a' has 0 in row 1, but kind positive takes the real numbers above 0: fix such"),
        ([3.5, np.inf, 1.0], None, "'a' has inf in row 1, but kind positive takes the real numbers above 0"),
        ([3.5, -np.inf, 1.0], None, "'a' has -inf in row 1, but kind real takes the real numbers"),
        ([1.0, np.inf], None, "'a' has the level inf; levels are numbers, text, or true and false"),
        (["3", "old", "4"], "count", "'a' has 'old' in row 1, but kind count takes the whole numbers from 0"),
        (["3", "4"], "real", "'a' has '3' in row 0, but kind real takes the real numbers"),
        ([None, True, False], "real", "'a' has True in row 1, but kind real takes the real numbers"),
        (pd.Categorical(["low", "high"]), "count", "'a' has 'low' in row 0, but kind count takes the whole numbers"),
        ([1, 2], "cuont", "unknown kind 'cuont': did you mean 'count'[?] Known: binary, category, count, positive"),
    ],
)  # fmt: skip
def test_entries_that_do_not_fit_the_kind_are_refused(values, kind, complaint):
    with pytest.raises(ValueError, match=complaint):
        only(values, kind)


def test_kinds_are_given_for_columns_that_are_there():
    with pytest.raises(ValueError, match=r"unknown column 'wieght': did you mean 'weight'[?] Known: cured, smoker"):
        Schema.infer(table(), {"wieght": "real"})


@pytest.mark.parametrize(
    ("frame", "complaint"),
    [
        (pd.DataFrame({"a": []}), "the table has no rows"),
        (pd.DataFrame(index=range(3)), "the table has no columns"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the table has two columns named 'a': rename or drop one"),
        (
            pd.DataFrame([[1, 2]]),
            "column names must be text, found 0, 1: rename the columns, such as with frame.columns",
        ),
        (pd.DataFrame([[1, 2, 3, 4]], columns=list("abab")), "the table has two columns named 'a', 'b'"),
    ],
)
def test_a_table_has_rows_and_columns_with_names_of_their_own(frame, complaint):
    with pytest.raises(ValueError, match=complaint):
        Schema.infer(frame)


# --- what is refused, with its ways out, and what is noted


def of(**columns):
    return pd.DataFrame(columns)


ROWS = np.arange(30)
RNG = np.random.default_rng(0)
AGES = RNG.permutation(np.arange(20, 95, 2))[:30]
UNCLEAR = {
    "patient id": [f"p{i}" for i in RNG.permutation(30)],
    "number": ROWS + 17,
    "account": 1_700_000_001 + RNG.permutation(300)[:30],
    "site_id": np.repeat([4, 7, 9, 11, 30], 6),
    "seen": pd.date_range("2020-01-01", periods=30),
    "born": [f"1950-01-{i + 1:02d}" for i in range(30)],
    "left": [f"{i % 12 + 1:02d}/{i // 3 + 1:02d}/2020" for i in range(30)],
    "size": [*map(str, RNG.normal(size=28)), "n/a", "<5"],
}


def test_all_unclear_columns_are_in_one_message_and_its_advice_works():
    frame = of(**UNCLEAR, dose=RNG.lognormal(size=30))
    with pytest.raises(ValueError, match=r"^8 columns need attention: column 'patient id' has") as raised:
        Schema.infer(frame)
    message = str(raised.value)
    assert "'patient id'=category" not in message
    assert '"patient id"=category' not in message
    for clause, name in zip(message.split("; column "), UNCLEAR, strict=True):
        assert name in clause
    given = dict(re.findall(r'give ("patient id"|\w+)=([\w-]+)', message))
    schema = Schema.infer(frame, parse_kinds([f"{name}={kind}" for name, kind in given.items()]))
    assert schema.names == ("seen", "born", "left", "dose")
    assert schema.index == ("patient id", "number", "account", "site_id", "size")
    assert [column.kind for column in schema.columns] == ["date", "date", "date", "positive"]


def test_gaps_of_other_columns_are_told_with_unclear_ones():
    dose = np.where(ROWS < 3, np.nan, RNG.lognormal(size=30))
    with pytest.raises(ValueError, match=r"\. Entries are missing too, in dose \(3\): missing=nan allows them$"):
        Schema.infer(of(seen=UNCLEAR["seen"], dose=dose))


@pytest.mark.parametrize("name", list(UNCLEAR))
def test_every_piece_of_advice_can_be_followed(name):
    frame = of(**{name: UNCLEAR[name]}, dose=RNG.lognormal(size=30))
    with pytest.raises(ValueError, match=name) as raised:
        Schema.infer(frame)
    ways = re.findall(r'(?:"[^"]*"|\w+)=[\w-]+', str(raised.value))
    assert len(ways) > 1
    for way in ways:
        schema = Schema.infer(frame, parse_kinds([way]))
        assert schema.encode(frame).shape == (30, len(schema.columns))


@pytest.mark.parametrize("values", [AGES, RNG.normal(size=30), RNG.permutation(10**6)[:30], RNG.normal(size=30) * 1e9])
def test_measurements_that_never_repeat_are_no_identifiers(values):
    assert Schema.infer(of(a=values)).names == ("a",)


@pytest.mark.parametrize("name", ["a b", "a,b", "a=b", 'a"b', "a\\b", "", "é 😀", "a\nb", " a", "'a'", "a=count,b"])
def test_names_of_any_kind_are_taken_by_the_advice_on_them(name):
    frame = of(**{name: UNCLEAR["patient id"], "dose": RNG.lognormal(size=30)})
    with pytest.raises(ValueError, match="give ") as raised:
        Schema.infer(frame)
    way = str(raised.value).rpartition("give ")[2].rpartition(" or ")[0]
    assert Schema.infer(frame, parse_kinds([way])).index == (name,)


@pytest.mark.parametrize("name", ["Unnamed: 0", "", "index", "__index_level_0__"])
@pytest.mark.parametrize("first", [0, 1])
def test_row_numbers_are_set_aside(name, first):
    frame = of(**{name: ROWS + first, "dose": RNG.normal(size=30)})
    schema = Schema.infer(frame)
    assert (schema.names, schema.index) == (("dose",), (name,))
    way = f"{quoted(name)}=count"
    assert schema.notes == (f"column {name!r} counts the rows: treated as an index; {way} models it",)
    assert name in Schema.infer(frame, parse_kinds([way])).names


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (ROWS % 4 + 1, "whole numbers from 1 to 4: treated as a count; for levels, a=category"),
        (
            np.where(ROWS % 3, 0.0, ROWS + 0.5),
            "is 0 in 67% of its entries, where its density, and so the ELBO, can grow without bound",
        ),
        (np.exp(RNG.normal(size=30)), "has only positive numbers: treated as log-normal; for a normal, a=real"),
        (1e6 + RNG.normal(size=30), "varies by less than a hundredth of its mean: treated as real"),
        (np.where(ROWS < 4, -99, AGES), "is -99 in 4 entries, far from the others"),
        (np.where(ROWS < 4, 999.0, AGES + 0.5), "is 999 in 4 entries, far from the others"),
        (np.where(ROWS % 2, 7.0, 3.0), "two values, 3 and 7: treated as binary; for numbers, a=real"),
        (np.full(30, 7), "is always 7, so nothing can be learned from it; a=drop leaves it out"),
    ],
)
def test_what_is_guessed_is_noted(values, note):
    assert note in " ".join(Schema.infer(of(a=values)).notes)


def test_what_is_clear_is_not_noted():
    frame = of(a=RNG.normal(size=30), b=ROWS % 2, c=ROWS % 2 == 0, d=AGES, e=np.repeat(["u", "v", "w"], 10))
    assert Schema.infer(frame).notes == ()


def test_many_notes_on_one_topic_are_shortened():
    notes = Schema.infer(of(**{f"a{i}": ROWS % 4 for i in range(100)})).notes
    assert len(notes) == 5
    assert notes[-1].endswith("(and 95 more columns likewise)")


def test_a_column_may_be_kept_aside_or_left_out():
    frame = of(who=UNCLEAR["patient id"], note=UNCLEAR["size"], dose=RNG.lognormal(size=30))
    schema = Schema.infer(frame, {"who": "index", "note": "drop"})
    assert (schema.names, schema.index, schema.dropped) == (("dose",), ("who",), ("note",))
    assert Schema.from_json(schema.to_json()) == schema
    np.testing.assert_array_equal(schema.encode(frame[["dose"]]), schema.encode(frame))
    with pytest.raises(ValueError, match="has no columns except those that are set aside"):
        Schema.infer(frame[["who"]], {"who": "index"})
