"""Tables are read as what they are, what is guessed is said, and what has two readings is refused."""

import gzip
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixed_tables import KIND_OF, kinds, table
from pandas.testing import assert_frame_equal

from pyro_vae.data.tables import Schema, Table, parse_kinds, read_table, write_table
from pyro_vae.data.tables.names import advice


@pytest.mark.parametrize(("name", "separator"), [("table.csv", ","), ("table.tsv", "\t"), ("TABLE.CSV", ",")])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_text_file_comes_back_and_so_does_what_is_drawn_from_it(tmp_path, name, separator, missing):
    frame = table(missing=missing).astype({"weight": "float64"})
    frame.to_csv(tmp_path / name, sep=separator, index=False)
    read = read_table(tmp_path / name).frame
    assert read.columns.tolist() == frame.columns.tolist()
    for column in frame:
        present = frame[column].notna()
        np.testing.assert_array_equal(read[column].notna(), present)
        found, expected = read[column][present].tolist(), frame[column][present].tolist()
        assert found == expected
    schema = Schema.infer(read)
    assert {column.name: column.kind for column in schema.columns} == {**KIND_OF, "ward": "count"}
    decoded = schema.decode(schema.encode(read))
    assert_frame_equal(decoded, read)
    decoded.to_csv(tmp_path / "again.csv", sep=separator, index=False)
    read.to_csv(tmp_path / "read.csv", sep=separator, index=False)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "read.csv").read_bytes()


@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_a_parquet_file_comes_back_without_its_index(tmp_path, missing):
    pytest.importorskip("pyarrow")
    frame = table(missing=missing)
    frame["ward"] = frame["ward"].astype("Int64")  # Parquet has categoricals of text only
    frame.set_axis(np.arange(len(frame)) * 3).to_parquet(tmp_path / "table.parquet")
    read = read_table(str(tmp_path / "table.parquet")).frame
    assert_frame_equal(read, frame)
    assert kinds(read) == {**KIND_OF, "ward": "count"}


def test_quoted_names_and_a_byte_order_mark_are_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes('\ufeff"dose, mg",größe\n0.5,1\n1.5,2\n'.encode())
    assert read_table(path).frame.to_dict("list") == {"dose, mg": [0.5, 1.5], "größe": [1, 2]}


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("table.csv", b"", "{} is empty; expected a row of column names, and rows below it"),
        ("table.csv", b"\n\n", "{} is empty"),
        ("table.csv", b"a,b\n", "{} has no rows"),
        ("table.csv", b"a,b,a\n1,2,3\n", r"cannot read {} as a table \(the table has two columns named 'a'"),
        (
            "table.csv",
            b"a,b\n1,2,3\n4,5,6\n",
            r"cannot read {} as a table \(the first row has 2 .* line 2 has 3, line 3 has 3, with commas",
        ),
        (
            "table.csv",
            b"a,b\n1,2\n4,5,6\n",
            r"cannot read {} as a table \(the first row has 2 .* but line 3 has 3",
        ),
        (
            "table.csv",
            b'a,b\n1,"2\n',
            r"cannot read {} as a table \(the quote that opens in line 2 or below",
        ),
        ("table.csv", b"\x89PNG\r\n\x1a\n\x00", r"cannot read {} as a table \(its first bytes are those of an image"),
        ("table.tsv", b"", "{} is empty"),
        ("table.xlsx", b"a,b\n1,2\n", r"cannot read {} as a table \(File is not a zip file"),
        ("table", b"a,b\n1,2\n", "cannot read {} as a table: expected a .csv, .tsv, .txt, .*, .parquet, .xlsx file"),
        ("table.csv", None, "cannot read {}: No such file or directory"),
        ("table.parquet", None, "cannot read {}: No such file or directory"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused(tmp_path, name, content, complaint):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint.format(path)):
        read_table(path)


def test_a_folder_is_not_a_table(tmp_path):
    (tmp_path / "table.csv").mkdir()
    with pytest.raises(ValueError, match=f"cannot read {tmp_path / 'table.csv'}: Is a directory"):
        read_table(tmp_path / "table.csv")


def test_a_parquet_file_that_is_not_one_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "table.parquet"
    for content in (b"", b"a,b\n1,2\n", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"cannot read {path}"):
            read_table(path)
    table().iloc[:0].to_parquet(path)
    with pytest.raises(ValueError, match=f"{path} has no rows"):
        read_table(path)
    parquet.write_table(pyarrow.table([[1], [2]], names=["a", "a"]), path)
    with pytest.raises(ValueError, match=rf"cannot read {path} as a table \(the table has two columns named 'a'"):
        read_table(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "table.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=rf"reading {path} needs pyarrow: pip install 'pyro-vae\[tables\]'"):
        read_table(path)


# --- how a file is written


@pytest.fixture
def read(tmp_path):
    def read(content, name="table.csv", **arguments):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_table(path, **arguments)

    return read


def test_the_table_of_a_european_spreadsheet_is_read(read):
    content = "sep=;\r\nGröße;Preis;Stadt\r\n1,5;1.234,50;Köln\r\n;99,00;Paris\r\n0,25;;Ath;;\r\n".replace(
        "Ath;;", "Athen"
    )
    found = read(content.encode("cp1252"))
    assert found.frame["Größe"].fillna(-1).tolist() == [1.5, -1, 0.25]
    assert found.frame["Preis"].fillna(-1).tolist() == [1234.5, 99, -1]
    assert found.text is not None
    assert found.text["Preis"].tolist() == ["1.234,50", "99,00", ""]
    assert (found.separator, found.decimal, found.encoding, found.newline) == (";", ",", "cp1252", "\r\n")
    said = " ".join(found.notes)
    assert all(word in said for word in ("cp1252", "decimal commas", "thousands separators"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("decimal", [".", ","])
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_table_is_found_as_it_was_written(tmp_path, encoding, separator, decimal, header, suffix):
    frame = table(num_rows=20)[["dose", "change", "visits", "smoker", "colour", "cured"]].astype({"colour": "str"})
    frame.insert(0, "größe", frame["dose"] * 3)
    like = Table(frame, None, (), separator, decimal, encoding, header, "\n")
    write_table(frame, tmp_path / f"t{suffix}", like)
    found = read_table(tmp_path / f"t{suffix}", header=header)
    expected = frame if header else frame.set_axis([f"column {i}" for i in range(1, 8)], axis=1)
    assert_frame_equal(found.frame, expected.astype({c: found.frame[c].dtype for c in expected}))
    assert (found.separator, found.decimal, found.header) == (separator, decimal, header)
    write_table(found.text, tmp_path / f"again{suffix}", found)
    unpacked = gzip.decompress if suffix.endswith(".gz") else bytes
    again, before = (unpacked((tmp_path / f"{name}{suffix}").read_bytes()) for name in ("again", "t"))
    assert again == before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a;b\n1.234;x\n", "numbers such as '1.234' in column 'a' may be 1234 or 1.234: give decimal"),
        ('a,b\n"1,234",x\n', "numbers such as '1,234' in column 'a' may be 1234 or 1.234: give decimal"),
        ('a,b\n"1,5",2.5\n', "some numbers have decimal commas .* and others decimal points"),
        (
            "5.1,3.5,setosa\n4.9,3.0,setosa\n",
            "its first row may be names or data: '5.1', '3.5', 'setosa'; say",
        ),
        ("2019,2020\nx,y\n", "its first row may be names or data"),
        ("a,b,a,b,c\n1,2,3,4,5\n", "two columns named 'a', 'b'"),
        ("a,b\n1,\x002\n", "line 2 has NUL bytes"),
        ("a,b\n1,2\n3\n", "line 3 has 1"),
        (b"a,b\n\x81\xff,1\n", "neither utf-8 nor cp1252"),
        (b"PK\x03\x04 and more", "those of an Excel workbook"),
        ("a,b;c,d\nx,y;z,u\n", "fields may be separated by commas .3 columns. or semicolons .2 columns."),
    ],
)
def test_what_has_two_readings_or_none_is_refused(read, content, complaint):
    with pytest.raises(ValueError, match=complaint):
        read(content)


def test_arguments_overrule_what_would_be_found(read):
    assert read("a;b\n1.234;x\n", decimal=",").frame["a"].tolist() == [1234]
    assert read("a;b\n1.234;x\n", decimal=".").frame["a"].tolist() == [1.234]
    assert read("2019,2020\n1,2\n", header=True).frame.columns.tolist() == ["2019", "2020"]
    assert read("2019,2020\n1,2\n", header=False).frame["column 1"].tolist() == [2019, 1]
    assert read("a,b;c,d\nx,y;z,u\n", separator="semicolon").frame.shape == (1, 2)
    for arguments in ({"encoding": "klingon"}, {"separator": ";;"}, {"decimal": "-"}, {"encoding": "ascii"}):
        with pytest.raises(ValueError, match=r"encoding|separator|decimal"):
            read("ä,b\n1,2\n", **arguments)


def test_what_a_number_would_lose_stays_text(read):
    frame = read("a,b,c\n0123," + "9" * 400 + ",1e999\n4567,1,2\n").frame
    assert frame.astype(str).to_dict("list") == {"a": ["0123", "4567"], "b": ["9" * 400, "1"], "c": ["1e999", "2"]}
    assert read("a,b\n18446744073709551615,x\n1,y\n").frame["a"].tolist() == [2**64 - 1, 1]


def test_what_spreadsheets_leave_at_the_edges_is_left_out(read):
    found = read("a;b;;\n1;2;;\n3;4;;\n;;;\n")
    assert found.frame.to_dict("list") == {"a": [1, 3], "b": [2, 4]}
    assert "2 columns at the right" in " ".join(found.notes)


@pytest.mark.parametrize(
    "content", [b"", b"not gzip", gzip.compress(b"a,b\n1,2\n" * 50)[:-12]], ids=["empty", "other", "cut"]
)
def test_a_broken_gzip_file_is_refused(read, content):
    with pytest.raises(ValueError, match=r"cannot read .*|is empty"):
        read(content, "table.csv.gz")


def test_columns_of_a_parquet_file_that_are_nested_are_all_named(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"a": [[1]], "b": [{"x": 1}], "c": [1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="columns 'a', 'b' hold lists or structures"):
        read_table(tmp_path / "t.parquet")


def test_a_workbook_comes_back(tmp_path):
    pytest.importorskip("openpyxl")
    frame = table(missing=0.2)[["dose", "visits", "smoker"]]
    write_table(frame, tmp_path / "t.xlsx")
    found = read_table(tmp_path / "t.xlsx")
    assert found.text is None
    assert_frame_equal(found.frame, frame, check_dtype=False)
    monkeypatched = pytest.MonkeyPatch()
    monkeypatched.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(ValueError, match="needs openpyxl"):
        read_table(tmp_path / "t.xlsx")
    monkeypatched.undo()


@given(value=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2), decimal=st.sampled_from(".,"))
@settings(deadline=None, max_examples=50, suppress_health_check=list(HealthCheck))
def test_numbers_are_read_to_the_last_bit(tmp_path_factory, value, decimal):
    path = tmp_path_factory.getbasetemp() / "bits.csv"
    frame = pd.DataFrame({"a": value, "b": "x"})
    write_table(frame, path, Table(frame, separator=";", decimal=decimal))
    found = read_table(path, decimal=decimal).frame["a"]
    np.testing.assert_array_equal(found.to_numpy(np.float64).view(np.int64), np.array(value).view(np.int64))


@given(content=st.binary(max_size=60) | st.text(st.sampled_from('ab1.,;|\t"\n\r '), max_size=60).map(str.encode))
@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet", ".xlsx"])
def test_any_bytes_are_a_table_or_one_sentence(tmp_path_factory, suffix, content):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    try:
        found = read_table(path)
    except ValueError as error:
        assert "\n" not in str(error).strip()  # noqa: PT017
    else:
        assert found.text is not None
        assert len(found.text) == len(found.frame) > 0


# --- the command line


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["age=count"], {"age": "count"}),
        (["age=count", "sex=binary"], {"age": "count", "sex": "binary"}),
        (["age=count, sex = binary,", "colour=category"], {"age": "count", "sex": "binary", "colour": "category"}),
        (["a=b=real"], {"a=b": "real"}),
        (["age=count,age=count"], {"age": "count"}),
    ],
)
def test_kinds_are_read_from_the_command_line(texts, expected):
    assert parse_kinds(texts) == expected


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("age", "kinds have the form name=kind, such as age=count,stage=category, .* in double quotes; found 'age'"),
        ("age=", "found 'age='"),
        ("=count", "found '=count'"),
        ("sex=binary,age:count", "found 'age:count'"),
        ("age=cuont", "unknown kind 'cuont': did you mean 'count'"),
        ("age=count,age=real", "column 'age' has two kinds, count and real: give one"),
    ],
)
def test_kinds_in_another_form_are_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_kinds([text])


@given(name=st.text(), kind=st.sampled_from(["drop", "index", "count"]))
def test_advice_is_read_as_it_is_printed(name, kind):
    assert parse_kinds([advice(name, kind).removeprefix("give ")]) == {name: kind}


@pytest.mark.parametrize("text", ['"a=count', '"a\\q"=count', '"a"', '"a"x=count', '"a"=', "="])
def test_quotes_that_mean_nothing_are_refused(text):
    with pytest.raises(ValueError, match=r"quotes|name=kind"):
        parse_kinds([text])
