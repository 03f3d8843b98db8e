"""What people have in Python: the rows of numbers that it holds, or one sentence."""

import decimal
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from datasets import Items
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset

from pyro_vae._support.arrays import FileRows
from pyro_vae.data.inputs import as_numbers
from pyro_vae.data.rows import Resident, as_rows

CPU = torch.device("cpu")
X = np.array([[1, 2], [3, 4], [5, 6]])


def rows_of(value, **options):
    """All rows that a tool would see."""
    rows = as_rows(value, CPU, num_workers=0, **options)
    return torch.cat([chunk["x"] for chunk in rows.chunks(2)])


def sentence(value, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        rows_of(value, **options)
    assert "\n" not in str(caught.value)
    assert str(caught.value)
    return str(caught.value)


# --- arrays and tensors


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_arrays_of_every_type_order_and_stride_come_with_their_values_or_are_refused(data):
    kind = data.draw(
        st.sampled_from(["?", "u1", "i1", "<u2", ">u4", "<u8", ">i8", "<f2", ">f4", "<f8", "c8", "M8[s]", "U2"])
    )
    shape = data.draw(st_np.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4))
    array = data.draw(st_np.arrays(np.dtype(kind), shape))
    change = data.draw(st.sampled_from([np.asarray, np.asfortranarray, lambda x: x[::-1], lambda x: x[..., ::-1]]))
    array = change(array)
    array.flags.writeable = data.draw(st.booleans())
    try:
        found = rows_of(array)
    except ValueError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert array.dtype.kind in "cMU" or (array.dtype.kind == "u" and (array > 2**63 - 1).any())
        return
    np.testing.assert_array_equal(found.numpy(), array)
    assert found.dtype.itemsize == array.dtype.itemsize


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(2, 2, dtype=torch.complex64), "complex"),
        (torch.zeros(2, 2, device="meta"), "meta"),
        (torch.zeros(2, 2).to(torch.float8_e4m3fn), r"x.float\(\)"),
        (torch.tensor([[2**63]], dtype=torch.uint64), "9223372036854775808, above"),
        (torch.tensor(1.0), "single number"),
        (np.array(1.0), "single number"),
        (3, "single number"),
        (np.zeros((2, 2), np.longdouble), "round them to float64"),
        (np.array([["1", "2"]]), "holds text"),
        (np.array([b"1"]), "holds bytes"),
        (np.zeros(3, "M8[s]"), "holds dates"),
        (np.zeros(3, [("a", "f4")]), "holds records"),
        (np.array([[1, None]], object), "holds objects"),
        ([[2**70, 1]], "holds objects"),
        ([[1.0], [1.0, 2.0]], "cannot be read as rows of numbers"),
        ([["1"], ["2"]], "holds text"),
        ("rows.npy", "holds text"),
        (b"rows", "holds bytes"),
        (None, "is a NoneType"),
        (iter([1.0, 2.0]), "cannot be read as rows of numbers"),
        ((value for value in [1.0]), "is a generator"),
        ({1.0, 2.0}, "is a set"),
        (object(), "is a object"),
        ({"X": X}, "no entry 'x', only X"),
        ({"x": X, "labels": "abc", "y": [None, 1, 2]}, "y is a list that cannot be read"),
    ],
)
def test_what_holds_no_rows_of_numbers_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        rows_of(value)
    sentence(value)


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.bfloat16, torch.uint16, torch.uint64, torch.int8])
def test_tensors_of_every_real_type_stay_as_they_are(dtype):
    x = torch.tensor([[1, 0], [0, 1]]).to(dtype)
    assert rows_of(x).dtype is dtype
    assert torch.equal(rows_of(x).double(), x.double())


@pytest.mark.filterwarnings("ignore")
def test_tensors_of_every_layout():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    for form in (x.to_sparse(), x.to_sparse_csr(), x.to_sparse_csc(), x.T.contiguous().T, x.requires_grad_()):
        found = rows_of(form)
        assert torch.equal(found, x.detach())
        assert not found.requires_grad
    assert "pad them" in sentence(torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]))


def test_objects_and_lists_that_hold_numbers_are_numbers():
    assert rows_of(np.array([[1, 2.5]], object)).tolist() == [[1.0, 2.5]]
    assert rows_of(X.tolist()).dtype is torch.int64
    assert rows_of([[1.0, 2.0]]).dtype is torch.get_default_dtype()
    assert rows_of([np.array([1, 2]), np.array([3, 4])]).tolist() == [[1, 2], [3, 4]]
    assert rows_of([torch.tensor([1, 2]), torch.tensor([3, 4])]).tolist() == [[1, 2], [3, 4]]
    assert rows_of(((True, False),)).dtype is torch.bool
    assert rows_of(range(3)).tolist() == [0, 1, 2]


def test_masked_entries_are_missing_ones():
    x = np.ma.masked_array([[1.0, 2.0], [3.0, 4.0]], mask=[[False, True], [False, False]])
    np.testing.assert_array_equal(rows_of(x), [[1, np.nan], [3, 4]])
    assert "give x.astype(float).filled(np.nan)" in sentence(np.ma.masked_array([[1, 2]], mask=[[False, True]]))
    assert rows_of(np.ma.masked_array([[1, 2]])).tolist() == [[1, 2]]


# --- sparse matrices


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"])
@pytest.mark.parametrize("kind", ["matrix", "array"])
@pytest.mark.parametrize("dtype", [bool, np.uint16, np.int64, np.float32])
def test_sparse_rows_of_every_format(form, kind, dtype):
    dense = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], dtype)
    np.testing.assert_array_equal(rows_of(getattr(scipy.sparse, f"{form}_{kind}")(dense)), dense)


def test_sparse_rows_that_are_none_are_refused():
    assert "(3,)" in sentence(scipy.sparse.coo_array(np.ones(3)))
    assert "complex128" in sentence(scipy.sparse.csr_array(np.eye(2) * 1j))
    damaged = scipy.sparse.csc_array(np.eye(4))
    damaged.indices[0] = 10**8
    assert "damaged" in sentence(damaged)


# --- tables


def tables():
    polars, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "c": [True, False, True]}
    frame = pd.DataFrame(columns)
    table = pa.table(columns)
    return {
        "pandas": frame,
        "pandas nullable": frame.convert_dtypes(),
        "pandas arrow": frame.convert_dtypes(dtype_backend="pyarrow"),
        "pandas sparse": frame.astype(pd.SparseDtype(float, 0.0)),
        "pandas with one name twice": frame.set_axis(["a", "a", "b"], axis=1),
        "polars": polars.DataFrame(columns),
        "polars lazy": polars.LazyFrame(columns),
        "arrow table": table,
        "arrow batch": table.to_batches()[0],
    }


@pytest.mark.parametrize("kind", list(tables()))
def test_tables_of_every_library_are_the_same_rows(kind):
    assert rows_of(tables()[kind]).tolist() == [[1.0, 0.5, 1.0], [2.0, 1.5, 0.0], [3.0, 2.5, 1.0]]


def columns_of(values):
    polars, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    series = pd.Series(values)
    return {
        "pandas": series,
        "nullable": series.convert_dtypes(),
        "arrow in pandas": series.convert_dtypes(dtype_backend="pyarrow"),
        "index": pd.Index(values),
        "polars": polars.Series(values),
        "arrow": pa.array(values),
        "chunks": pa.chunked_array([values]),
    }


@pytest.mark.parametrize("kind", list(columns_of([1])))
@pytest.mark.parametrize("values", [[1, 2, 2**62 + 1], [0.5, 1.0, 2.0], [True, False, True]])
def test_columns_of_every_library_are_arguments(kind, values):
    rows = as_rows({"x": X, "labels": columns_of(values)[kind]}, CPU)
    assert next(rows.chunks(9))["labels"].tolist() == values


def test_entries_that_are_missing_become_nan_and_nothing_is_rounded():
    polars, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    gaps = {"a": [1, None, 3], "b": [True, None, False], "c": [0.5, None, 1.5]}
    expected = [[1, 1, 0.5], [np.nan] * 3, [3, 0, 1.5]]
    for table in (pd.DataFrame(gaps).convert_dtypes(), polars.DataFrame(gaps), pa.table(gaps)):
        np.testing.assert_array_equal(rows_of(table), expected)
    exact = {"a": [2**60 + 1, None], "b": [1, 2]}
    for table in (pa.table(exact), polars.DataFrame(exact), pd.DataFrame({"a": [2**60 + 1, 1], "b": [0.5, 1.5]})):
        assert "beyond 9007199254740992 in the column 'a'" in sentence(table)
    whole = pd.DataFrame({"a": [2**60 + 1, 1], "b": [1, 2]})
    assert rows_of(whole)[0, 0] == 2**60 + 1
    assert rows_of(whole.convert_dtypes())[0, 0] == 2**60 + 1


def test_decimal_numbers_are_numbers():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"a": [decimal.Decimal("1.5"), None]})
    np.testing.assert_array_equal(rows_of(table), [[1.5], [np.nan]])


def test_all_columns_that_are_not_numbers_are_named():
    polars, pa = pytest.importorskip("polars"), pytest.importorskip("pyarrow")
    columns = {"a": [1, 2], "b": ["u", "v"], "c": pd.to_datetime(["2020-01-01", "2020-01-02"]), "d": [1j, 2j]}
    said = sentence(pd.DataFrame(columns).assign(e=pd.Categorical([1, 2])))
    assert all(f"'{name}' (" in said for name in "bcde")
    assert "'a' (" not in said
    assert "'b' (" in sentence(polars.DataFrame({"a": [1], "b": ["u"]}))
    assert "'b' (" in sentence(pa.table({"a": [1], "b": [[1.0]]}))
    many = sentence(pd.DataFrame({f"c{i}": ["u"] for i in range(9)}))
    assert "'c4' (" in many
    assert "and 4 more" in many


def test_other_libraries_arrays():
    xarray = pytest.importorskip("xarray")
    assert rows_of(xarray.DataArray(X)).tolist() == X.tolist()
    anndata = pytest.importorskip("anndata")
    for x in (X.astype(np.float32), scipy.sparse.csr_matrix(X.astype(np.float32))):
        assert rows_of(anndata.AnnData(x)).tolist() == X.tolist()
    assert "no matrix X" in sentence(anndata.AnnData(shape=(3, 2)))


# --- data sets


class Broken(Dataset):
    def __init__(self, error, at=3):
        self.error, self.at = error, at

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index == self.at:
            raise self.error
        return torch.tensor([float(index)])


class Unportable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and\n{b}")


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("label"), r"could not give row 3 \(KeyError: 'label'\)"),
        (OSError(2, "No such file", "a.png"), r"could not give row 3 \(FileNotFoundError: .*No such file: 'a.png'\)"),
        (ValueError("two\nlines"), r"could not give row 3 \(ValueError: two lines\)"),
        (Unportable("this", "that"), r"could not give row 3 \(Unportable: this and that\)"),
        (StopIteration(), r"could not give row 3 \(StopIteration\)"),
    ],
)
def test_an_error_of_a_data_set_arrives_as_one_sentence(num_workers, error, words):
    rows = as_rows(Broken(error), CPU, num_workers=num_workers)
    with pytest.raises(ValueError, match=words) as caught:
        list(rows.chunks(2))
    assert "\n" not in str(caught.value)
    if not isinstance(error, Unportable):
        assert type(caught.value.__cause__) is type(error)
    with pytest.raises(Exception):  # noqa: B017, PT011
        pickle.loads(pickle.dumps(Unportable("a", "b")))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_items_of_different_shapes_are_one_sentence(num_workers):
    class Growing(Broken):
        def __getitem__(self, index):
            return torch.zeros(index + 1)

    with pytest.raises(ValueError, match="could not give a batch of rows") as caught:
        list(as_rows(Growing(None), CPU, num_workers=num_workers).chunks(2))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_goes_while_it_is_read_is_one_sentence(tmp_path, num_workers):
    np.save(tmp_path / "x.npy", X)
    rows = as_rows(np.load(tmp_path / "x.npy", mmap_mode="r"), CPU, num_workers=num_workers)
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"^\S+x.npy ends before its row 2: it has been truncated$"):
        list(rows.chunks(2))
    (tmp_path / "x.npy").unlink()
    with pytest.raises(ValueError, match=r"^\S+x.npy can no longer be read: No such file or directory$"):
        list(rows.chunks(2))


def test_a_worker_that_dies_is_one_sentence():
    import os

    class Dying(Broken):
        def __getitem__(self, index):
            os._exit(1)

    with pytest.raises(ValueError, match="a process that reads rows has died"):
        list(as_rows(Dying(None), CPU, num_workers=1).chunks(2))


def test_a_stream_without_a_length_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            yield torch.zeros(2)

    assert "without a length" in sentence(Stream())


def test_data_sets_that_are_put_together():
    parts = [TensorDataset(torch.as_tensor(X)), TensorDataset(torch.as_tensor(X) + 6)]
    assert rows_of(ConcatDataset(parts)).tolist() == np.arange(1, 13).reshape(6, 2).tolist()
    assert rows_of(Subset(parts[0], [2, 0])).tolist() == [[5, 6], [1, 2]]


# --- fingerprints


def fingerprint(value):
    return as_rows(value, CPU, num_workers=0).fingerprint()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_equal_rows_have_one_fingerprint_however_they_come(tmp_path, dtype):
    x = torch.randint(0, 2, (3000, 2, 300)).to(dtype)
    labels = torch.arange(3000)
    forms = [
        x,
        Items(x=x),
        TensorDataset(x),
        x.clone(memory_format=torch.preserve_format),
        Subset(TensorDataset(x), range(3000)),
    ]
    if dtype is not torch.bfloat16:
        np.save(tmp_path / "x.npy", x.numpy())
        forms += [x.numpy(), np.asfortranarray(x.numpy()), np.load(tmp_path / "x.npy", mmap_mode="r")]
        forms.append(FileRows(np.load(tmp_path / "x.npy", mmap_mode="r")))
    assert len({fingerprint(form) for form in forms}) == 1
    with_labels = [{"x": x, "labels": labels}, {"labels": labels, "x": x}, Items(labels=labels, x=x)]
    assert len({fingerprint(form) for form in with_labels}) == 1
    assert fingerprint(with_labels[0]) != fingerprint(x)
    assert len(fingerprint(x)) == 32
    assert isinstance(as_rows(x, CPU), Resident)


def test_other_rows_have_another_fingerprint():
    x = torch.arange(12.0).reshape(6, 2)
    others = [
        x, x.double(), x.reshape(6, 2, 1), x.reshape(3, 4), x[:5], x.flip(0), x + 1e-6, x.int(),
        {"x": x, "a": 1}, {"x": x, "a": 2}, {"x": x, "a": True}, {"x": x, "b": 1}, {"x": x, "a": torch.tensor(1)},
        {"x": x, "a": x}, {"x": x, "a": x, "b": x}, {"x": x, "a": None}, {"x": x, "a": "1"},
    ]  # fmt: skip
    assert len({fingerprint(other) for other in others}) == len(others)


def test_numbers_of_a_column_stand_for_themselves():
    assert as_numbers(pd.Series([3, 1]), "labels").tolist() == [3, 1]
