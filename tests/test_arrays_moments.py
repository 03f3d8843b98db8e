"""Rows that stay in their file, and moments of rows that come in parts."""

import pickle

import numpy as np
import pytest
import torch

from pyro_vae._support.arrays import CHUNK, FileRows, as_tensor, in_chunks
from pyro_vae._support.moments import Moments


def in_file(folder, x):
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(50, 3, 2)).astype(np.float32)


def test_views_of_views_are_the_rows_that_numpy_gives(tmp_path, x):
    rows = FileRows(in_file(tmp_path, x))
    order = torch.randperm(50)
    assert np.array_equal(rows.read(), x)
    assert np.array_equal(rows[order].read(), x[order.numpy()])
    assert np.array_equal(rows[order][10:20][torch.tensor([3, 3, 0])].read(), x[order.numpy()][10:20][[3, 3, 0]])
    assert np.array_equal(rows[10:][4], x[14])
    assert np.array_equal(FileRows(in_file(tmp_path, x)[20:])[5:].read(), x[25:])
    assert (rows[order][:7].shape, len(rows[:0]), rows.dtype) == ((7, 3, 2), 0, torch.float32)
    assert np.array_equal(as_tensor(rows[2:4]), x[2:4])


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "uint16", "uint8", "bool"])
def test_every_type_of_number_is_read_as_it_is(tmp_path, dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 100, (20, 3)).astype(dtype)
    rows = FileRows(in_file(tmp_path, x))
    assert np.array_equal(rows.read().numpy(), x)
    assert rows.read().dtype is rows.dtype


def test_chunks_are_all_rows_in_their_order_and_none_is_large(tmp_path):
    x = np.arange(3 * CHUNK // 1024 * 1024, dtype=np.int32).reshape(-1, 1024)
    rows = FileRows(in_file(tmp_path, x))
    chunks = list(rows.chunks())
    assert np.array_equal(torch.cat(chunks), x)
    assert max(chunk.numel() for chunk in chunks) <= CHUNK
    for chunk, other in zip(chunks, in_chunks(torch.as_tensor(x)), strict=True):  # resident rows come in the same parts
        assert torch.equal(chunk, other)


def test_workers_can_take_them_along(tmp_path, x):
    rows = pickle.loads(pickle.dumps(FileRows(in_file(tmp_path, x))[5:]))
    assert np.array_equal(rows.read(), x[5:])


def test_a_file_that_was_cut_off_and_rows_that_are_not_numbers_are_refused(tmp_path, x):
    rows = FileRows(in_file(tmp_path, x))
    path = tmp_path / "x.npy"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="ends before its row 48"):
        rows[48:].read()
    with pytest.raises(ValueError, match="not rows of numbers"):
        FileRows(in_file(tmp_path, np.array([["a"], ["b"]])))
    with pytest.raises(ValueError, match="row by row"):
        FileRows(in_file(tmp_path, np.asfortranarray(x)))


def test_read_only_memory_becomes_a_tensor_without_a_copy_or_a_warning(tmp_path, x):
    x.flags.writeable = False
    assert as_tensor(x).data_ptr() == x.ctypes.data
    assert np.array_equal(as_tensor(in_file(tmp_path, x)), x)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [60, 1, 39]])
def test_moments_of_parts_are_those_of_the_whole(sizes):
    x = torch.randn(100, 4, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 10, 0]) + torch.tensor([0.0, 1e3, 5, 3])
    x[torch.rand(100, 4) < 0.3] = torch.nan
    x[:60, 2] = torch.nan  # of which the first parts see nothing
    moments = Moments()
    for part in x.split(sizes):
        moments.add(part)
    array = x.numpy()
    assert np.array_equal(moments.count, (~np.isnan(array)).sum(0))
    np.testing.assert_allclose(moments.mean, np.nanmean(array, 0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, np.nanvar(array, 0), rtol=1e-8, atol=1e-20)
    assert np.array_equal(moments.low, np.nanmin(array, 0))
    assert np.array_equal(moments.high, np.nanmax(array, 0))
    assert moments.varies.tolist() == [True, True, True, False]
