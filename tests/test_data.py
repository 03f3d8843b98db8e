"""Data sets: every row and label accounted for, files of each kind, and one sentence where something is missing."""

import gzip
import struct
import sys
import urllib.error
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pyro_vae._support.arrays import FileRows
from pyro_vae.data import sources
from pyro_vae.data.sources import NAMED, default_root, import_torchvision, load_data, split

IDX_SETS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}


def save_images(folder, arrays):
    """Writes each array as an image, under its name."""
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / name)
    return str(folder)


def save_array(folder, array, **settings):
    np.save(folder / "rows.npy", array, **settings)
    return str(folder / "rows.npy")


def save_arrays(folder, **arrays):
    np.savez(folder / "rows.npz", **arrays)
    return str(folder / "rows.npz")


def idx(array):
    """Bytes in the format of MNIST: type, rank, big-endian sizes, values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def read_idx(path, header):
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def write_idx_set(root, class_name, seed=0):
    """A data set like MNIST of four training and two test images; returns its arrays by file name."""
    rng = np.random.default_rng(seed)
    arrays = {
        "train-images-idx3-ubyte": rng.integers(0, 256, (4, 28, 28), np.uint8),
        "train-labels-idx1-ubyte": np.array([5, 0, 4, 1], np.uint8),
        "t10k-images-idx3-ubyte": rng.integers(0, 256, (2, 28, 28), np.uint8),
        "t10k-labels-idx1-ubyte": np.array([7, 2], np.uint8),
    }
    raw = root / class_name / "raw"
    raw.mkdir(parents=True)
    for name, array in arrays.items():
        (raw / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
    return arrays


def content(folder):
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def numbers(labels):
    """Labels as a list; there must be some."""
    assert labels is not None
    return labels.tolist()


@pytest.fixture
def no_network(monkeypatch):
    """A download makes its folders, as torchvision does, and then fails."""

    def download(self):
        Path(self.raw_folder).mkdir(parents=True, exist_ok=True)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(import_torchvision().datasets.MNIST, "download", download)


@pytest.fixture
def broken_torchvision(tmp_path, monkeypatch):
    """Importing torchvision fails as it does when it was built for another torch."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms is missing')")
    monkeypatch.syspath_prepend(tmp_path / "shadow")


# --- splits


def test_a_split_has_every_row_once_and_the_fraction_asked_for():
    kept, held_out = split(1000, 0.2)
    assert (len(kept), len(held_out)) == (800, 200)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(1000))
    # Shuffled: the rows held out lie all over, their mean within five standard errors of the middle.
    assert abs(held_out.float().mean() - 499.5) < 5 * 1000 / (12 * 200) ** 0.5


def test_a_split_depends_on_its_seed_and_on_nothing_else():
    state = torch.get_rng_state()
    first = split(100, 0.3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    same, other = split(100, 0.3, seed=1), split(100, 0.3, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not torch.equal(first[1], other[1])


def test_a_split_holds_out_at_least_one_row_and_keeps_at_least_one():
    assert [len(part) for part in split(2, 0.01)] == [1, 1]
    for num_rows, fraction in [(0, 0.2), (1, 0.2), (3, 1.0)]:
        with pytest.raises(ValueError, match=f"of {num_rows} rows: nothing would be left to train on"):
            split(num_rows, fraction)


# --- digits


def test_digits_are_those_of_scikit_learn_each_once_with_its_label():
    pixels, labels = load_digits(return_X_y=True)
    label_of = {row.astype(np.uint8).tobytes(): label for row, label in zip(pixels, labels, strict=True)}
    data = load_data("digits")
    assert (len(data.x_train), len(data.x_test), len(label_of)) == (1438, 359, 1797)
    x, y = torch.cat([data.x_train, data.x_test]), numbers(data.y_train) + numbers(data.y_test)
    found = {row.numpy().tobytes(): label for row, label in zip(x, y, strict=True)}
    assert found == label_of
    assert (x.shape[1:], int(x.min()), int(x.max()), data.bounds) == ((8, 8), 0, 16, (0, 16))


def test_digits_hold_out_the_same_rows_every_time():
    first = load_data("digits")
    torch.manual_seed(99)
    second = load_data("digits")
    assert torch.equal(first.x_test, second.x_test)
    assert numbers(first.y_test) == numbers(second.y_test)


def test_digits_without_a_part_held_out_are_all_there_in_their_order():
    data = load_data("digits", hold_out=False)
    pixels, labels = load_digits(return_X_y=True)
    np.testing.assert_array_equal(data.x_test.reshape(-1, 64).numpy(), pixels)
    np.testing.assert_array_equal(data.y_test, labels)
    assert len(data.x_train) == 0


# --- arrays


@pytest.mark.parametrize("dtype", ["float32", ">f8", "uint8", "int64", ">i2", "uint16", ">u2", "uint32", "bool"])
def test_rows_of_an_npy_file_come_in_their_order_with_their_values(tmp_path, dtype):
    rows = np.asfortranarray(np.arange(24).reshape(6, 2, 2) % 7).astype(dtype)
    data = load_data(save_array(tmp_path, rows), hold_out=False)
    np.testing.assert_array_equal(data.x_test.numpy(), rows)
    assert (len(data.x_train), data.y_test, data.name) == (0, None, "rows")


def test_a_fifth_of_an_npy_file_is_held_out(tmp_path):
    data = load_data(save_array(tmp_path, np.arange(10.0)[:, None]))
    assert len(data.x_test) == 2
    assert sorted(torch.cat([data.x_train, data.x_test]).flatten().tolist()) == list(range(10))


@pytest.mark.parametrize(
    ("values", "dtype", "bounds"),
    [
        ([0, 1], "bool", (0, 1)),
        ([0, 1], "uint8", (0, 1)),
        ([0, 200], "uint8", (0, 255)),
        ([0, 200], "int64", None),
        ([0, 4095], "uint16", None),
        ([0, 70_000], "int64", None),
        ([-1, 1], "int64", None),
        ([0, 0.7], "float32", (0, 1)),
        ([0, 1.5], "float32", None),
        ([-0.1, 1], "float64", None),
    ],
)
def test_bounds_are_those_that_such_values_have_by_custom(tmp_path, values, dtype, bounds):
    path = save_array(tmp_path, np.array([values, values], dtype))
    assert load_data(path).bounds == bounds


def test_an_npz_file_with_both_parts_is_left_as_it_is(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x_train": rng.random((5, 3)), "x_test": rng.random((4, 3))}
    labels = {"y_train": np.array([2, 0, 1, 1, 0]), "y_test": np.array([1, 0, 2, 2])}
    path = save_arrays(tmp_path, **arrays, **labels)
    for hold_out in (True, False):
        data = load_data(path, hold_out=hold_out)
        for name, expected in (arrays | labels).items():
            np.testing.assert_array_equal(getattr(data, name), expected)


@pytest.mark.parametrize("names", [("x", "y"), ("x_train", "y_train")])
def test_rows_held_out_of_an_npz_file_keep_their_labels(tmp_path, names):
    rows, labels = np.arange(20.0)[:, None], np.array(["even", "odd"] * 10)
    data = load_data(save_arrays(tmp_path, **dict(zip(names, (rows, labels), strict=True))))
    assert (len(data.x_train), len(data.x_test)) == (16, 4)
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert (x[:, 0] % 2).tolist() == numbers(y)


def test_one_label_has_one_number_in_both_parts(tmp_path):
    path = save_arrays(
        tmp_path,
        x_train=np.zeros((3, 2)),
        y_train=np.array(["cat", "dog", "owl"]),
        x_test=np.zeros((2, 2)),
        y_test=np.array(["owl", "dog"]),
    )
    data = load_data(path)
    assert (numbers(data.y_train), numbers(data.y_test)) == ([0, 1, 2], [2, 1])


def test_labels_that_are_not_one_for_each_row_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"labels of shape \(2,\) for 3 rows; expected one for each"):
        load_data(save_arrays(tmp_path, x=np.zeros((3, 4)), y=np.zeros(2)))


def test_test_rows_of_another_shape_than_the_training_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)|\(4,\).*\(5,\)"):
        load_data(save_arrays(tmp_path, x_train=np.zeros((3, 4)), x_test=np.zeros((3, 5))))


def test_an_npz_file_without_rows_names_what_it_holds(tmp_path):
    with pytest.raises(ValueError, match="holds images \\(3,\\), masks \\(3, 2\\); expected an array named x or x"):
        load_data(save_arrays(tmp_path, images=np.zeros(3), masks=np.zeros((3, 2))))


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("save", [lambda folder, array: save_array(folder, array, allow_pickle=True), save_arrays])
def test_an_array_of_objects_is_refused_and_nothing_in_it_is_run(tmp_path, save):
    rows = np.array([[Trap(tmp_path / "sprung"), 1]], dtype=object)
    path = save_arrays(tmp_path, x=rows) if save is save_arrays else save(tmp_path, rows)
    with pytest.raises(ValueError, match=r"cannot read .*rows\.np[yz] as NumPy data \(it holds Python objects"):
        load_data(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.array(["a", "b"]), "holds <U1 data of shape (2,); expected rows of numbers"),
        (np.array(1.0), "holds float64 data of shape (); expected rows of numbers"),
        (np.zeros((2, 2), complex), "holds complex128 data of shape (2, 2); expected rows of numbers"),
        (np.zeros((0, 4)), "holds no rows"),
    ],
    ids=["words", "one number", "complex numbers", "no rows"],
)
def test_an_array_that_is_not_rows_of_numbers_is_refused(tmp_path, array, sentence):
    path = save_array(tmp_path, array)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_data(path)
    assert str(caught.value) == f"{path} {sentence}"


@pytest.mark.parametrize("name", ["rows.npy", "rows.npz"])
@pytest.mark.parametrize("kept", [0, 5, 200])
def test_a_truncated_file_is_refused_by_name(tmp_path, name, kept):
    save_array(tmp_path, np.zeros((50, 4)))
    save_arrays(tmp_path, x=np.zeros((50, 4)))
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"cannot read .*{name} as NumPy data"):
        load_data(str(tmp_path / name))


@pytest.mark.parametrize("name", ["missing.npy", "no/such/folder", "missing.csv"])
def test_a_missing_file_is_refused_by_name_with_what_would_do(tmp_path, name):
    path = str(tmp_path / name)
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        load_data(path)
    assert path in str(caught.value)
    assert "a path to a .npy, .npz or .h5ad file" in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "rows.doc").write_text("1,2\n")
    with pytest.raises(ValueError, match=r"cannot read .*rows\.doc: expected a \.npy, \.npz or \.h5ad file, a"):
        load_data(str(tmp_path / "rows.doc"))


@pytest.mark.parametrize(
    ("name", "near"), [("mnits", "mnist"), ("MNIST", "mnist"), ("digit", "digits"), ("fashion", "fashion-mnist")]
)
def test_an_unknown_name_names_the_nearest_and_all_there_are(name, near):
    with pytest.raises(ValueError, match=f"unknown data set '{name}': did you mean '{near}'") as caught:
        load_data(name)
    assert all(known in str(caught.value) for known in NAMED)


# --- folders of images


def test_a_folder_of_grey_images_comes_in_the_order_of_their_names(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)
    order = [3, 0, 4, 1, 2]
    folder = save_images(tmp_path / "grey", {f"{i}.png": images[i] for i in order})
    (tmp_path / "grey" / "notes.txt").write_text("not an image")
    (tmp_path / "grey" / ".hidden.png").write_text("not an image")
    data = load_data(folder, hold_out=False)
    np.testing.assert_array_equal(data.x_test, images)
    assert (data.x_test.dtype, data.bounds, data.y_test, data.name) == (torch.uint8, (0, 255), None, "grey")


def test_colour_images_have_their_channels_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    data = load_data(save_images(tmp_path, {f"{i}.png": image for i, image in enumerate(images)}), hold_out=False)
    np.testing.assert_array_equal(data.x_test, np.transpose(images, (0, 3, 1, 2)))


def test_subfolders_are_labels_and_go_with_their_images(tmp_path):
    label_of_grey = {10: 0, 20: 0, 30: 0, 40: 1, 50: 1, 60: 2}
    names = ["cat", "dog", "owl"]
    images = {f"{names[y]}/{grey}.png": np.full((2, 2), grey, np.uint8) for grey, y in label_of_grey.items()}
    folder = save_images(tmp_path, images)
    data = load_data(folder, hold_out=False)
    assert dict(zip(data.x_test[:, 0, 0].tolist(), numbers(data.y_test), strict=True)) == label_of_grey
    data = load_data(folder)
    x, y = torch.cat([data.x_train, data.x_test]), numbers(data.y_train) + numbers(data.y_test)
    assert dict(zip(x[:, 0, 0].tolist(), y, strict=True)) == label_of_grey


def test_images_of_other_sizes_are_refused_and_named(tmp_path):
    images = {f"{number}.png": np.zeros((4, 3), np.uint8) for number in range(9)}
    folder = save_images(tmp_path, images | {f"z{i}.png": np.zeros((4, 4 + i), np.uint8) for i in range(7)})
    with pytest.raises(ValueError, match=r"9 images have the size 4×3 and 7 another, z0\.png ") as caught:
        load_data(folder)
    assert "z4.png (4×8) and 2 more: save them in one size, or give resize" in str(caught.value)


def test_the_colours_of_a_palette_are_kept(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    Image.fromarray(colours).convert("P").save(tmp_path / "a.png")
    data = load_data(str(tmp_path), hold_out=False)
    np.testing.assert_array_equal(data.x_test[0], np.transpose(colours, (2, 0, 1)))


def test_grey_levels_of_sixteen_bits_are_kept_or_refused_but_never_clipped(tmp_path):
    levels = np.array([[0, 255, 256, 65535]], np.uint16)
    folder = save_images(tmp_path, {"a.png": levels})
    try:
        x = load_data(folder, hold_out=False).x_test
    except ValueError as error:
        assert "a.png" in str(error)  # noqa: PT017
    else:
        np.testing.assert_array_equal(x.squeeze().numpy(), levels[0])


def test_a_file_that_only_looks_like_an_image_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"cannot read as images: a\.png \(it is not an image, or damaged\)"):
        load_data(str(tmp_path))


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no images here")
    with pytest.raises(ValueError, match="holds no images"):
        load_data(str(tmp_path))


# --- sets that torchvision reads


@pytest.mark.usefixtures("broken_torchvision")
def test_a_torchvision_for_another_torch_is_said_with_both_versions():
    with pytest.raises(ValueError, match="needs torchvision, which cannot be imported") as caught:
        load_data("mnist")
    assert f"found torch {torch.__version__} and torchvision {version('torchvision')}" in str(caught.value)
    assert "the data set digits" in str(caught.value)


@pytest.mark.usefixtures("broken_torchvision")
def test_a_torchvision_for_another_torch_does_not_stand_in_the_way_of_other_data(tmp_path):
    rows = np.arange(10.0)[:, None]
    np.testing.assert_array_equal(load_data(save_array(tmp_path, rows), hold_out=False).x_test, rows)
    save_images(tmp_path / "images", {"a.png": np.full((2, 2), 7, np.uint8)})
    assert load_data(str(tmp_path / "images"), hold_out=False).x_test.unique().tolist() == [7]
    assert len(load_data("digits").x_train) == 1438


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", IDX_SETS)
def test_packed_files_are_read_and_nothing_is_written_beside_them(tmp_path, name):
    arrays = write_idx_set(tmp_path, IDX_SETS[name])
    before = content(tmp_path)
    data = load_data(name, tmp_path)
    for found, file in zip((data.x_train, data.y_train, data.x_test, data.y_test), arrays.values(), strict=True):
        np.testing.assert_array_equal(found, file)
    assert (data.name, data.x_train.dtype, data.bounds) == (name, torch.uint8, (0, 255))
    assert content(tmp_path) == before


@pytest.mark.usefixtures("no_network")
def test_mnist_is_read_from_the_data_root_as_it_was_published(data_root):
    before = content(data_root)
    data = load_data("mnist", data_root)
    assert content(data_root) == before
    assert data.x_train.dtype == torch.uint8
    assert (data.x_train.shape, data.x_test.shape) == ((60_000, 28, 28), (10_000, 28, 28))
    assert numbers(data.y_train)[:5] == [5, 0, 4, 1, 9]
    raw = data_root / "MNIST" / "raw"
    for part, x, y in (("train", data.x_train, data.y_train), ("t10k", data.x_test, data.y_test)):
        np.testing.assert_array_equal(x.flatten(), read_idx(raw / f"{part}-images-idx3-ubyte.gz", header=16))
        np.testing.assert_array_equal(numbers(y), read_idx(raw / f"{part}-labels-idx1-ubyte.gz", header=8))


def test_cifar10_has_its_channels_first(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32, 3), np.uint8)

    class CIFAR10:
        def __init__(self, root, *, train, download):
            self.data, self.targets = images[0 if train else 1], [3, 1, 2] if train else [0, 9, 9]

    monkeypatch.setattr(import_torchvision().datasets, "CIFAR10", CIFAR10)
    data = load_data("cifar10", tmp_path)
    np.testing.assert_array_equal(data.x_train, np.transpose(images[0], (0, 3, 1, 2)))
    np.testing.assert_array_equal(data.x_test, np.transpose(images[1], (0, 3, 1, 2)))
    assert (numbers(data.y_train), numbers(data.y_test)) == ([3, 1, 2], [0, 9, 9])


def refused(name, root):
    """The sentence that says which files are missing, where they go, and what needs none."""
    with pytest.raises(ValueError, match=f"^{name} could not be read from ") as caught:
        load_data(name, root)
    sentence = str(caught.value)
    expected = f"put {IDX_SETS[name]}/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz under {root}"
    assert expected in sentence
    assert "the data set digits needs no files" in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("name", IDX_SETS)
def test_a_root_with_nothing_names_the_files_and_stays_as_it_was(tmp_path, name):
    root = tmp_path / "data"
    root.mkdir()
    assert "no network" in refused(name, root)
    assert root.is_dir()
    assert content(root) == {}


@pytest.mark.usefixtures("no_network")
def test_a_root_that_is_not_there_is_not_made(tmp_path):
    refused("mnist", tmp_path / "nowhere")
    assert content(tmp_path) == {}


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("damage", ["packed file cut", "unpacked file cut", "not packed", "empty", "one missing"])
def test_a_damaged_file_in_the_root_names_the_files_and_stays_as_it_was(tmp_path, damage):
    write_idx_set(tmp_path, "MNIST")
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    packed = path.read_bytes()
    damaged = {
        "packed file cut": packed[: len(packed) // 2],
        "unpacked file cut": gzip.compress(gzip.decompress(packed)[:1000]),
        "not packed": b"<html>404</html>",
        "empty": b"",
        "one missing": None,
    }[damage]
    path.unlink() if damaged is None else path.write_bytes(damaged)
    before = content(tmp_path)
    refused("mnist", tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize(("value", "expected"), [("/somewhere", "/somewhere"), ("", "data"), (None, "data")])
def test_the_data_root_is_the_environment_variable_or_the_folder_data(monkeypatch, value, expected):
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    if value is not None:
        monkeypatch.setenv("PYRO_VAE_DATA", value)
    assert default_root() == Path(expected)


@pytest.mark.usefixtures("no_network")
def test_without_a_root_the_environment_variable_is_used(tmp_path, monkeypatch):
    write_idx_set(tmp_path, "MNIST")
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    assert numbers(load_data("mnist").y_train) == [5, 0, 4, 1]


# --- files that stay on disk


def test_the_rows_of_a_large_file_stay_in_it_and_are_split_as_those_of_a_small_one(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 200, (40, 3, 3)).astype(np.uint8)
    name = save_array(tmp_path, x)
    small = load_data(name)
    monkeypatch.setattr(sources, "_IN_MEMORY", 100)
    large = load_data(name)
    assert isinstance(large.x_train, FileRows)
    assert np.array_equal(large.x_train.read(), small.x_train)
    assert np.array_equal(large.x_test.read(), small.x_test)
    assert (large.bounds, large.name) == (small.bounds, small.name)
    assert np.array_equal(load_data(name, hold_out=False).x_test.read(), x)


def test_a_large_file_is_refused_as_a_small_one_is(tmp_path, monkeypatch):
    name = save_array(tmp_path, np.array([["a", "b"]] * 99))
    sentences = []
    for limit in (2**28, 10):
        monkeypatch.setattr(sources, "_IN_MEMORY", limit)
        with pytest.raises(ValueError, match="expected rows of numbers") as caught:
            load_data(name)
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


# --- any class of torchvision


class Toy:
    """A set with parts of its own names, whose items are images with labels."""

    parts: ClassVar = {"trainval": 6, "valid": 3}

    def __init__(self, root, split="trainval", transform=None, download=False):
        if split not in self.parts:
            raise ValueError(f"Unknown value {split!r} for argument split. Valid values are {set(self.parts)}.")
        if not download:
            raise RuntimeError("Dataset not found")
        self.split = split

    def __len__(self):
        return self.parts[self.split]

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        level = 10 * index + (self.split == "valid")
        return Image.fromarray(np.full((4, 5, 3), level, np.uint8)), index % 2


@pytest.fixture
def toy(monkeypatch):
    datasets = import_torchvision().datasets
    monkeypatch.setattr(datasets, "Toy", Toy, raising=False)
    monkeypatch.setattr(datasets, "__all__", (*datasets.__all__, "Toy"))


@pytest.mark.usefixtures("toy")
def test_any_class_of_torchvision_is_read_part_by_part(tmp_path):
    data = load_data("torchvision:Toy", tmp_path)
    assert (data.name, data.x_train.shape, data.x_test.shape) == ("Toy", (6, 3, 4, 5), (3, 3, 4, 5))
    assert data.x_train[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 50]
    assert data.x_test[:, 0, 0, 0].tolist() == [1, 11, 21]
    assert (numbers(data.y_train), numbers(data.y_test)) == ([0, 1] * 3, [0, 1, 0])
    assert data.bounds == (0, 255)


@pytest.mark.usefixtures("toy")
def test_a_part_that_is_asked_for_is_the_one_that_is_split(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "parts", {"extra": 10})
    data = load_data("torchvision:Toy,split=extra", tmp_path)
    assert sorted(torch.cat([data.x_train, data.x_test])[:, 0, 0, 0].tolist()) == list(range(0, 100, 10))
    assert len(data.x_test) == 2
    with pytest.raises(ValueError, match=r"Valid values are \{'extra'\}"):
        load_data("torchvision:Toy", tmp_path)


def test_arrays_that_a_class_keeps_with_channels_first_stay_so(tmp_path, monkeypatch):
    """SVHN keeps (N, 3, 32, 32) and calls its labels so."""
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 32, 32), np.uint8)

    class SVHN:
        def __init__(self, root, split="train", download=False):
            self.data, self.labels = images[["train", "test"].index(split)], np.arange(4)

    monkeypatch.setattr(import_torchvision().datasets, "SVHN", SVHN)
    data = load_data("torchvision:SVHN", tmp_path)
    np.testing.assert_array_equal(data.x_train, images[0])
    np.testing.assert_array_equal(data.x_test, images[1])


def test_usps_is_read_by_the_class_of_torchvision_from_files_that_are_there(tmp_path):
    import bz2

    for file, label in (("usps.bz2", 3), ("usps.t.bz2", 9)):
        line = f"{label} " + " ".join(f"{i + 1}:{i / 255 * 2 - 1:.6f}" for i in range(256))
        (tmp_path / file).write_bytes(bz2.compress(line.encode() + b"\n" + line.encode() + b"\n"))
    data = load_data("torchvision:USPS", tmp_path)
    assert abs(data.x_train[0].flatten().int() - torch.arange(256)).max() <= 1
    assert (numbers(data.y_train), numbers(data.y_test)) == ([2, 2], [8, 8])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:SVNH", ["did you mean 'SVHN'"]),
        ("torchvision:EMNIST", ["needs the argument split", "torchvision:EMNIST,split=VALUE"]),
        ("torchvision:EMNIST,splt=letters", ["unknown argument of EMNIST 'splt'", "did you mean 'split'"]),
    ],
)
def test_what_torchvision_does_not_know_is_said_in_one_sentence(tmp_path, name, words):
    with pytest.raises(ValueError, match=r"torchvision|EMNIST") as caught:
        load_data(name, tmp_path)
    assert all(word in str(caught.value) for word in words)


def test_a_class_without_its_files_and_without_a_network_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def urlopen(*arguments, **settings):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    for name in ("SVHN", "CIFAR100", "Flowers102", "STL10", "EMNIST,split=letters"):
        root = tmp_path / name
        with pytest.raises(ValueError, match=f"could not be read from {root}, nor downloaded .*no network") as caught:
            load_data(f"torchvision:{name}", root)
        assert "\n" not in str(caught.value)
        assert not root.exists()


# --- depth


def deep_png(path, pixels):
    """A PNG of 16-bit samples, ``(H, W)`` or ``(H, W, 3)``, by the standard (ISO/IEC 15948)."""
    height, width = pixels.shape[:2]
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    content = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=["grey", "colour"])
def test_images_of_sixteen_bits_keep_all_of_them(tmp_path, shape):
    x = np.random.default_rng(0).integers(0, 65536, (6, *shape))
    x[0].flat[:3] = [0, 65535, 256]
    for number, pixels in enumerate(x):
        deep_png(tmp_path / f"{number}.png", pixels)
    data = load_data(str(tmp_path), hold_out=False)
    np.testing.assert_array_equal(data.x_test, x if len(shape) == 2 else np.moveaxis(x, -1, 1))
    assert data.bounds == (0, 65535)
