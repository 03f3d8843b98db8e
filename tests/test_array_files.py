"""Arrays in files: equal to what was saved or refused in one sentence, with what their numbers are."""

import io

import numpy as np
import pytest
import scipy.sparse
import torch
from datasets import save_h5ad
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from pyro_vae._support.arrays import SparseRows
from pyro_vae.data import sources
from pyro_vae.data.sources import load_data

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(folder, **arrays):
    np.savez(folder / "rows.npz", **arrays)
    return str(folder / "rows.npz")


def save_one(folder, array, **options):
    np.save(folder / "rows.npy", array, **options)
    return str(folder / "rows.npy")


def sentence(name, **options):
    """The one sentence that a file is refused with."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_data(name, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def values_of(x):
    """Rows as NumPy's, whether they are in memory, in a file or sparse."""
    return (x if isinstance(x, torch.Tensor) else x.read()).numpy()


# --- what was saved is what is loaded

TYPES = [
    "?",
    "u1",
    "i1",
    "u2",
    "i2",
    "u4",
    "i4",
    "u8",
    "i8",
    "f2",
    "f4",
    "f8",
    "g",
    "c8",
    "U3",
    "S3",
    "M8[s]",
    "m8[ns]",
]


@st.composite
def arrays(draw):
    kind = draw(st.sampled_from(TYPES))
    order = draw(st.sampled_from("<>")) if kind not in ("?", "u1", "i1", "S3", "g") else ""
    shape = draw(st_np.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    array = draw(st_np.arrays(np.dtype(order + kind), shape))
    return draw(st.sampled_from([np.ascontiguousarray, np.asfortranarray, lambda x: x[::-1] if x.ndim else x]))(array)


@QUICK
@given(array=arrays(), ending=st.sampled_from([".npy", ".npz", "streamed"]))
def test_what_was_saved_is_loaded_or_refused(tmp_path, array, ending):
    name = save(tmp_path, x=array) if ending == ".npz" else save_one(tmp_path, array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_IN_MEMORY", 2**28 if ending != "streamed" else 0)
        try:
            data = load_data(name, hold_out=False)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
            fine = array.dtype.kind in "biuf" and array.size and array.ndim
            big = array.dtype.kind == "u" and (array > 2**63 - 1).any()
            beyond = array.dtype == np.longdouble and array.size and np.isinf(array.astype(float)).any()
            assert not fine or big or beyond
            return
    found = values_of(data.x_test)
    assert found.dtype.kind in "biuf"
    np.testing.assert_array_equal(found, array.astype(float) if array.dtype == np.longdouble else array)
    if array.dtype.kind in "iuf" and array.dtype.itemsize <= 8:
        assert found.dtype.kind == array.dtype.kind or array.dtype.kind == "u"
        assert found.dtype.itemsize >= array.dtype.itemsize


@pytest.mark.parametrize("large", [False, True])
def test_whole_numbers_that_no_signed_type_holds_are_refused_with_one_of_them(tmp_path, monkeypatch, large):
    monkeypatch.setattr(sources, "_IN_MEMORY", 0 if large else 2**28)
    name = save_one(tmp_path, np.array([[1], [2**63]], np.uint64))
    assert "holds 9223372036854775808, above" in sentence(name)
    name = save_one(tmp_path, np.array([[1], [2**63 - 1]], np.uint64))
    assert int(values_of(load_data(name, hold_out=False).x_test)[1, 0]) == 2**63 - 1


def test_long_doubles_are_rounded_and_said_or_refused_where_they_would_become_infinite(tmp_path):
    x = np.array([[1], [3]], np.longdouble) / 3
    data = load_data(save_one(tmp_path, x), hold_out=False)
    assert data.x_test.dtype is torch.float64
    assert any("rounded to float64" in note for note in data.notes)
    assert "beyond the range of float64" in sentence(save_one(tmp_path, x * np.longdouble("1e400")))


@pytest.mark.parametrize(("shape", "words"), [((40, 0), "have no elements"), ((0, 5), "no rows"), ((), "of shape ()")])
def test_arrays_of_nothing_are_refused(tmp_path, shape, words):
    assert words in sentence(save_one(tmp_path, np.zeros(shape)))


def test_records_and_pickles_are_refused(tmp_path):
    assert "expected rows of numbers" in sentence(save_one(tmp_path, np.zeros(3, [("a", "f4"), ("b", "i4")])))
    assert "holds Python objects" in sentence(save_one(tmp_path, np.array([[1, None]], object), allow_pickle=True))
    (tmp_path / "rows.npy").write_bytes(__import__("pickle").dumps([1, 2]))
    assert "holds Python objects" in sentence(str(tmp_path / "rows.npy"))


def test_an_ending_in_capitals_is_the_same_ending(tmp_path):
    path = tmp_path / "ROWS.NPY"
    with open(path, "wb") as file:
        np.save(file, np.arange(6.0)[:, None])
    assert len(load_data(str(path)).x_train) == 5


# --- what the numbers are


@pytest.mark.parametrize(
    ("rows", "bounds", "values", "noted"),
    [
        (np.array([[0, 1]], bool), (0, 1), "bits", False),
        (np.array([[0.0, 1.0]]), (0, 1), "bits", False),
        (np.array([[0, 1]]), (0, 1), "bits", False),
        (np.array([[0, np.nan, 1]]), (0, 1), "bits", False),
        (np.full((1, 2, 2), 7, np.uint8), (0, 255), "intensities", False),
        (np.array([[0, 200]], np.uint8), (0, 255), "intensities", True),
        (np.full((1, 2, 2), 700, np.uint16), (0, 65535), "intensities", True),
        (np.array([[0, 700]], np.uint16), None, "counts or levels", False),
        (np.array([[0, 9]]), None, "counts or levels", False),
        (np.full((1, 2, 2), 9), None, "counts or levels", False),
        (np.full((1, 3, 2, 2), 70_000), None, "counts or levels", False),
        (np.array([[-1, 9]]), None, None, False),
        (np.array([[0.0, 0.7]]), (0, 1), None, True),
        (np.full((1, 2, 2), 0.5), (0, 1), "intensities", True),
        (np.full((1, 3, 2, 2), 0.5), (0, 1), "intensities", True),
        (np.array([[0.0, 1.5]]), None, None, False),
        (np.array([[0.0, 3.0]]), None, None, True),
        (np.array([[-0.1, 1.0]]), None, None, False),
        (np.array([[np.nan, np.inf]]), None, None, False),
        (np.array([[np.nan, np.nan]]), None, None, False),
        (np.full((1, 5, 5, 3), 7, np.uint8), (0, 255), "intensities", True),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_what_numbers_are_is_said_only_where_it_is_known(tmp_path, monkeypatch, large, rows, bounds, values, noted):
    monkeypatch.setattr(sources, "_IN_MEMORY", 0 if large else 2**28)
    data = load_data(save_one(tmp_path, rows), hold_out=False)
    assert (data.bounds, data.values, bool(data.notes)) == (bounds, values, noted)


def test_held_out_rows_of_an_npz_count_for_its_bounds(tmp_path):
    data = load_data(save(tmp_path, x_train=np.array([[0.5]]), x_test=np.array([[1.5]])))
    assert (data.bounds, data.values) == (None, None)


# --- an .npz of many arrays


@pytest.mark.parametrize("labels", ["y", "labels", "y_train", "labels_train"])
@pytest.mark.parametrize("rows", ["x", "x_train"])
def test_labels_and_ids_go_with_their_rows(tmp_path, rows, labels):
    x = np.arange(20.0)[:, None]
    words = np.array(["even", "odd"] * 10)
    data = load_data(save(tmp_path, **{rows: x, labels: words, "ids": np.array([f"r{i}" for i in range(20)])}))
    assert data.labels == ("even", "odd")
    for part in ("train", "test"):
        x, y, ids, places = (getattr(data, f"{field}_{part}") for field in ("x", "y", "ids", "rows"))
        assert [data.labels[code] for code in y] == [words[place] for place in places]
        assert x[:, 0].tolist() == places.tolist()
        assert ids.tolist() == [f"r{place}" for place in places]


def test_places_of_rows_are_their_own_for_each_part_that_came_as_one(tmp_path):
    data = load_data(save(tmp_path, x_train=np.zeros((3, 2)), x_test=np.zeros((2, 2)), ids_test=np.array([7, 5])))
    assert (data.rows_train.tolist(), data.rows_test.tolist()) == ([0, 1, 2], [0, 1])
    assert data.ids_train is None
    assert data.ids_test.tolist() == [7, 5]
    held = load_data(save(tmp_path, x=np.zeros((3, 2))), hold_out=False)
    assert (held.rows_train.tolist(), held.rows_test.tolist()) == ([], [0, 1, 2])


def test_what_is_not_used_is_named(tmp_path):
    (note,) = load_data(save(tmp_path, x=np.eye(4), weights=np.ones(4), y_test=np.ones(2))).notes
    assert "weights, y_test are not used" in note


def test_one_array_of_another_name_is_taken_and_several_are_refused_with_their_shapes(tmp_path):
    data = load_data(save(tmp_path, features=np.eye(4), y=np.arange(4)), hold_out=False)
    np.testing.assert_array_equal(data.x_test, np.eye(4))
    assert "its array features is used as the rows; name it x" in data.notes[0]
    assert data.y_test.tolist() == [0, 1, 2, 3]
    said = sentence(save(tmp_path, a=np.zeros((3, 2)), b=np.zeros(4)))
    assert "holds a (3, 2), b (4,)" in said
    assert "holds x and x_train" in sentence(save(tmp_path, x=np.eye(3), x_train=np.eye(3)))
    assert "holds y and labels" in sentence(save(tmp_path, x=np.eye(3), y=np.ones(3), labels=np.ones(3)))
    np.savez(tmp_path / "rows.npz")
    assert "holds nothing" in sentence(str(tmp_path / "rows.npz"))


def test_an_array_that_is_not_used_need_not_be_readable(tmp_path):
    path = save(tmp_path, x=np.eye(4), extra=np.array([None], object))
    assert "extra is not used" in load_data(path).notes[0]


@pytest.mark.parametrize("y", [
    np.zeros(3, complex), np.array([None, 1, 2], object), np.zeros(3, "M8[s]"), np.zeros(3, [("a", "i4")]),
    np.zeros(3, np.longdouble), np.array([b"\xff", b"a", b"b"]), np.zeros((3, 2)), np.array(1),
], ids=["complex", "objects", "dates", "records", "long doubles", "bytes", "one-hot", "one"])  # fmt: skip
@pytest.mark.parametrize("name", ["y", "ids"])
def test_labels_and_ids_of_other_types_are_refused(tmp_path, y, name):
    assert "rows.npz" in sentence(save(tmp_path, x=np.zeros((3, 2)), **{name: y}))


def test_labels_keep_their_values(tmp_path):
    big = np.array([2**64 - 1, 2**64 - 2, 5], np.uint64)
    data = load_data(save(tmp_path, x_train=np.eye(3), y_train=big, x_test=np.eye(3), y_test=np.array([-1, 5, 7])))
    assert data.labels == (-1, 5, 7, 2**64 - 2, 2**64 - 1)
    assert [data.labels[code] for code in data.y_train] == big.tolist()
    mixed = save(tmp_path, x_train=np.eye(3), y_train=big, x_test=np.eye(3), y_test=np.array(["a", "b", "5"]))
    assert "numbers as labels in one part and words in the other" in sentence(mixed)
    encoded = save(tmp_path, x=np.eye(3), y=np.array(["ä".encode(), b"b", b"b"]))
    assert load_data(encoded).labels == ("b", "ä")


def test_parts_of_two_types_are_refused(tmp_path):
    path = save(tmp_path, x_train=np.full((3, 2), 9, np.uint8), x_test=np.full((3, 2), 0.1))
    assert "uint8 rows to train on and float64 rows to test" in sentence(path)


# --- sparse


@pytest.mark.parametrize("form", ["csr", "csc", "coo", "bsr", "dia"])
@pytest.mark.parametrize("array", [False, True])
def test_sparse_files_stay_sparse_and_hold_what_was_saved(tmp_path, form, array):
    dense = np.random.default_rng(0).poisson(0.4, (30, 7)) * 3
    matrix = (scipy.sparse.coo_array if array else scipy.sparse.coo_matrix)(dense).asformat(form)
    scipy.sparse.save_npz(tmp_path / "rows.npz", matrix)
    data = load_data(str(tmp_path / "rows.npz"))
    assert isinstance(data.x_train, SparseRows)
    assert (data.values, data.bounds, len(data.x_train), data.x_train.shape[1:]) == ("counts or levels", None, 24, (7,))
    for part in ("train", "test"):
        rows = getattr(data, f"x_{part}")
        np.testing.assert_array_equal(rows.read(), dense[getattr(data, f"rows_{part}")])
        np.testing.assert_array_equal(rows[2:4].read(), rows.read()[2:4])
        np.testing.assert_array_equal(rows[1], rows.read()[1])


def test_sparse_files_that_point_outside_of_their_matrix_are_refused(tmp_path):
    matrix = scipy.sparse.csr_array(np.eye(4))
    for name, place, value in [("indices", 1, 9_000_000), ("indices", 1, -7), ("indptr", 2, 900)]:
        damaged = matrix.copy()
        getattr(damaged, name)[place] = value
        scipy.sparse.save_npz(tmp_path / "rows.npz", damaged)
        assert "damaged" in sentence(str(tmp_path / "rows.npz")) or "cannot read" in sentence(
            str(tmp_path / "rows.npz")
        )
    scipy.sparse.save_npz(tmp_path / "rows.npz", matrix * 1j)
    assert "complex128" in sentence(str(tmp_path / "rows.npz"))


# --- AnnData


@pytest.mark.parametrize("form", [np.asarray, scipy.sparse.csr_matrix, scipy.sparse.csc_matrix, scipy.sparse.csr_array])
def test_counts_of_an_h5ad_file_come_with_the_names_of_its_observations(tmp_path, form):
    counts = np.random.default_rng(0).poisson(1.0, (20, 5)).astype(np.float32)
    data = load_data(save_h5ad(tmp_path / "cells.h5ad", form(counts)))
    assert (data.name, data.values, data.bounds, data.notes) == ("cells", "counts", None, ())
    np.testing.assert_array_equal(values_of(data.x_train), counts[data.rows_train])
    assert data.ids_test.tolist() == [f"cell {place}" for place in data.rows_test]


def test_an_h5ad_file_without_counts_says_so_and_what_is_left_out(tmp_path):
    pd = pytest.importorskip("pandas")
    x = np.random.default_rng(0).normal(size=(20, 5))
    obs = pd.DataFrame({"kind": ["a"] * 20}, index=[str(i) for i in range(20)])
    data = load_data(save_h5ad(tmp_path / "cells.h5ad", x, layers={"raw": x}, obs=obs))
    assert data.values is None
    assert any("rather than counts" in note for note in data.notes)
    assert "cells.h5ad: X is used; not used: layers raw and the columns kind of obs." in data.notes


def test_an_h5ad_file_that_cannot_be_read_is_refused(tmp_path):
    pytest.importorskip("anndata")
    (tmp_path / "cells.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    assert "cannot read" in sentence(str(tmp_path / "cells.h5ad"))


def test_an_h5ad_file_needs_anndata(tmp_path, monkeypatch):
    (tmp_path / "cells.h5ad").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "anndata", None)
    assert "needs anndata: pip install 'pyro-vae[anndata]'" in sentence(str(tmp_path / "cells.h5ad"))


# --- damage


def packed(write):
    with io.BytesIO() as file:
        write(file)
        return file.getvalue()


WHOLE = {
    "a.npy": packed(lambda file: np.save(file, np.arange(24, dtype=np.int16).reshape(6, 4))),
    "a.npz": packed(lambda file: np.savez(file, x=np.eye(5), y=np.arange(5))),
    "b.npz": packed(lambda file: np.savez_compressed(file, x=np.eye(5), ids=np.arange(5))),
    "c.npz": packed(lambda file: scipy.sparse.save_npz(file, scipy.sparse.csr_array(np.eye(5)))),
}


@settings(QUICK, max_examples=300)
@given(name=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_damaged_files_are_read_or_refused_in_one_sentence(tmp_path, name, data):
    content = bytearray(WHOLE[name])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "_IN_MEMORY", data.draw(st.sampled_from([0, 2**28])))
        try:
            load_data(str(path))
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path):
    path = tmp_path / "rows.npy"
    for shape in ("(10**5, 10**9)", "(100000, 1000000000)", "(4611686018427387904, 4)", "(-1, 4)"):
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
        path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64))
        assert "cannot read" in sentence(str(path))


def test_options_that_have_nothing_to_do_with_a_file_are_refused(tmp_path):
    name = save_one(tmp_path, np.eye(4))
    assert "resize is for folders of images" in sentence(name, resize=(2, 2))
    assert "separator and header are for tables" in sentence(name, separator=";", header=False)
