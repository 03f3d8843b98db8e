"""Data sets: by name, or from a file or folder; and splits of them."""

import contextlib
import gzip
import inspect
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.arrays import FileRows
from pyro_vae._support.names import lookup
from pyro_vae.transforms import customary_bounds

if TYPE_CHECKING:
    from pyro_vae.data.tables import Schema

__all__ = ["NAMED", "DataSet", "default_root", "import_torchvision", "load_data", "split"]


@dataclass(frozen=True)
class DataSet:
    """Rows to train on and rows held out, in the units they came in.

    Args:
        name: What to call it.
        x_train: Training rows ``(N, *E)``, in memory or, where they are many, in their file.
        x_test: Held-out rows ``(M, *E)``, likewise.
        bounds: Lowest and highest value that an element can have (0 and 255 for 8-bit grey levels), or None where
            there are no such bounds.
        y_train: Labels of the training rows, for colouring figures, or None.
        y_test: Labels of the held-out rows, likewise.
        schema: The columns of a table, or None where the rows are not one.
    """

    name: str
    x_train: Any  # Tensor | FileRows, which most uses need not tell apart
    x_test: Any
    bounds: tuple[float, float] | None
    y_train: Tensor | None = None
    y_test: Tensor | None = None
    schema: "Schema | None" = None


def default_root() -> Path:
    """Where downloaded data sets live: the environment variable ``PYRO_VAE_DATA``, or ``data``."""
    return Path(os.environ.get("PYRO_VAE_DATA") or "data")


def split(num_rows: int, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Indices of two disjoint parts, shuffled by ``seed``; the second has ``fraction`` of the rows, at least one.

    Example:
        >>> kept, held_out = split(10, 0.2)
        >>> len(kept), len(held_out), len(set(kept.tolist()) & set(held_out.tolist()))
        (8, 2, 0)
    """
    held_out = max(1, round(num_rows * fraction))
    if held_out >= num_rows:
        raise ValueError(f"cannot hold out {held_out} of {num_rows} rows: nothing would be left to train on")
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed))
    return order[held_out:], order[:held_out]


def load_data(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    hold_out: bool = True,
    kinds: Mapping[str, str] | None = None,
    schema: "Schema | None" = None,
) -> DataSet:
    """Loads a data set by its name, or from a ``.npy``, ``.npz``, ``.csv`` or ``.parquet`` file or a folder of images.

    The rows of an ``.npy`` file above 256 MiB stay in it and are read when they are needed.

    Args:
        name: One of :data:`NAMED`; ``torchvision:CLASS`` for any class of images in ``torchvision.datasets``, with
            further arguments after commas where it needs them (``torchvision:EMNIST,split=letters``); or a path. An
            ``.npz`` holds ``x`` or ``x_train``, and may hold ``x_test``, ``y``, ``y_train`` and ``y_test``. Images
            lie in the folder or in one subfolder for each label.
        root: Folder of downloaded data sets; :func:`default_root` by default.
        hold_out: Where there is no test part, hold a fifth of the rows out, always the same ones; else all rows, in
            their order, are ``x_test``.
        kinds: Kinds of some columns of a table; those of the others are inferred.
        schema: The columns that a table must have, such as those of the one that a model was trained on.

    Raises:
        ValueError: if the name is unknown or the data cannot be read.
    """
    data = _read(name, default_root() if root is None else Path(root), kinds or {}, schema)
    if len(data.x_test):
        return data
    if not hold_out:
        return replace(data, x_train=data.x_test, y_train=None, x_test=data.x_train, y_test=data.y_train)
    train, test = split(len(data.x_train), 0.2)
    y = data.y_train
    return replace(
        data,
        x_train=data.x_train[train],
        x_test=data.x_train[test],
        y_train=None if y is None else y[train],
        y_test=None if y is None else y[test],
    )


def _read(name: str, root: Path, kinds: Mapping[str, str], schema: "Schema | None") -> DataSet:
    if name in NAMED:
        return NAMED[name](root)
    if name.startswith(_TORCHVISION):
        return _from_torchvision(name, root)
    path = Path(name)
    if path.is_dir():
        return _from_images(path)
    if not path.exists() and (path.suffix or len(path.parts) > 1):
        raise ValueError(
            f"there is no file or folder {path}; expected a path to a .npy or .npz file, a .csv or .parquet table or a "
            f"folder of images, {_TORCHVISION}CLASS, or one of {', '.join(NAMED)}"
        )
    if not path.exists():
        lookup(
            name,
            [
                *NAMED,
                f"{_TORCHVISION}CLASS, such as {_TORCHVISION}SVHN",
                "a path to a .npy or .npz file",
                "a path to a .csv or .parquet table",
                "a path to a folder of images",
            ],
            "data set",
        )
    if path.suffix in (".csv", ".tsv", ".parquet"):
        from pyro_vae.data.tables import Schema, read_table  # which brings in pandas

        frame = read_table(path)
        schema = Schema.infer(frame, kinds) if schema is None else schema
        x = schema.encode(frame)
        return DataSet(path.stem, x, x[:0], None, schema=schema)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(
            f"cannot read {path}: expected a .npy or .npz file, a .csv or .parquet table, or a folder of images"
        )
    return _from_numpy(path)


def _digits(root: Path) -> DataSet:
    """The 1,797 handwritten 8×8 digits that scikit-learn bundles, grey levels 0–16 (Alpaydin & Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels).to(torch.uint8).reshape(-1, 8, 8)
    return DataSet("digits", x, x[:0], (0.0, 16.0), torch.as_tensor(labels))


def import_torchvision() -> Any:
    """Imports torchvision, or says why that fails.

    Raises:
        ValueError: naming the two versions that disagree, where torchvision was built for another torch.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        import torchvision
        import torchvision.datasets
    except Exception as error:
        try:
            found = f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            found = "no torchvision"
        raise ValueError(
            f"this data set needs torchvision, which does not import: found torch {torch.__version__} and {found}, "
            f"which do not belong together; install a matching pair with `pip install torch torchvision`, or use "
            f"--data digits, a .npy file or a folder of images, which do without ({type(error).__name__})"
        ) from error
    return torchvision


_TORCHVISION = "torchvision:"
_TRAIN = {"train": (True,), "split": ("train", "trainval"), "image_set": ("train",), "background": (True,)}
_TEST = {"train": (False,), "split": ("test", "val", "valid"), "image_set": ("val",), "background": (False,)}


def _torchvision_set(name: str, class_name: str, expected: str) -> Callable[[Path], DataSet]:
    return lambda root: _torchvision_rows(name, class_name, {}, root, expected)


def _from_torchvision(name: str, root: Path) -> DataSet:
    """Any class of images in torchvision, by its name and arguments."""
    class_name, *options = name.removeprefix(_TORCHVISION).split(",")
    datasets = import_torchvision().datasets
    lookup(class_name, [known for known in datasets.__all__ if known[0].isupper()], "class of torchvision.datasets")
    known = _parameters(getattr(datasets, class_name))
    arguments: dict[str, str] = {}
    for option in options:
        argument, _, value = option.partition("=")
        arguments[lookup(argument, known, f"argument of {class_name}")] = value
    chosen = next((chooser for chooser in _TRAIN if chooser in known), None)
    for argument, default in known.items():
        if default is inspect.Parameter.empty and argument not in ("root", chosen, *arguments):
            raise ValueError(f"{class_name} needs to be told its {argument}: write {name},{argument}=VALUE")
    data = _torchvision_rows(name, class_name, arguments, root, f"the files of {class_name}")
    return replace(data, name=class_name)


def _torchvision_rows(name: str, class_name: str, arguments: Mapping[str, str], root: Path, expected: str) -> DataSet:
    """Both parts of a torchvision set, or one where it has no test part."""
    cls = getattr(import_torchvision().datasets, class_name)
    before = {root, *root.rglob("*")} if root.exists() else set()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = _unpack(root / class_name / "raw", Path(scratch) / class_name / "raw")
            source = Path(scratch) if found else root
            train = _torchvision_part(cls, arguments, source, _TRAIN, download=not found)
            test = _torchvision_part(cls, arguments, source, _TEST, download=not found)
        except Exception as error:  # whatever the network, the disk or a damaged file raises
            for path in sorted({root, *root.rglob("*")} - before, reverse=True):
                with contextlib.suppress(OSError):  # what a failed download leaves empty
                    path.rmdir()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{name} could not be read from {root}, nor downloaded ({reason}): put {expected} under "
                f"{root}, or name another --data-root; --data digits needs no files"
            ) from error
    (x_train, y_train) = _rows_of_part(train, name)
    (x_test, y_test) = (x_train[:0], None) if test is None else _rows_of_part(test, name)
    if x_test.shape[1:] != x_train.shape[1:]:
        raise ValueError(
            f"{name} has images of shape {tuple(x_train.shape[1:])} to train on and {tuple(x_test.shape[1:])} to test: "
            f"save them in one size, and name the folder"
        )
    return DataSet(
        class_name if name.startswith(_TORCHVISION) else name, x_train, x_test, (0.0, 255.0), y_train, y_test
    )


def _parameters(cls: Any) -> dict[str, Any]:
    """Names and defaults of a class's arguments, with those that it hands on to its base class."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        parameters = inspect.signature(base).parameters.values()
        named = {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = named | found
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def _torchvision_part(
    cls: Any, arguments: Mapping[str, str], root: Path, values: Mapping[str, Sequence[Any]], *, download: bool
) -> Any:
    """One part of a set; None if it has only one. What the part is called, differs from class to class."""
    known = _parameters(cls)
    given: dict[str, Any] = dict(arguments)
    if "root" in known:
        given["root"] = root
    chooser = next((n for n in values if n in known and n not in arguments), None)
    if chooser is None and values is _TEST:
        return None
    # From files that are there, if they are, for their folder may be read-only and the network far away.
    ways = [{"download": False}, {"download": True}] if "download" in known and download else []
    ways = ways or [{"download": False} if "download" in known else {}]
    names = values[chooser] if chooser else (None,)
    first: Exception | None = None
    for value in names:
        choice = {} if chooser is None else {chooser: value}
        try:
            for way in ways[:-1]:
                with contextlib.suppress(Exception):
                    return cls(**given, **choice, **way)
            return cls(**given, **choice, **ways[-1])
        except ValueError as error:  # it may be another name that this part goes by
            first = first or error
    if values is _TEST and len(names) > 1:
        return None
    assert first is not None
    raise first


def _rows_of_part(part: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Images and labels, at once where the set keeps them so, else one by one."""
    x, y = getattr(part, "data", None), getattr(part, "targets", getattr(part, "labels", None))
    if isinstance(x, (np.ndarray, Tensor)) and x.ndim in (3, 4) and y is not None:
        x = x if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[-1] not in (1, 3) else _images(x)
        return torch.as_tensor(x), torch.as_tensor(np.asarray(y))
    images, labels = [], []
    for number in range(len(part)):
        image, label = part[number][:2]
        if not hasattr(image, "mode"):
            raise ValueError(f"{name} holds {type(image).__name__} items; expected images")
        images.append(_pixels(image))
        labels.append(label)
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{name} has images of shapes {images[0].shape} and {images[-1].shape}: save them in one size and one "
                f"kind, grey or colour, and name the folder"
            )
    whole = all(isinstance(label, (int, np.integer)) for label in labels)
    return _images(np.stack(images)), torch.as_tensor(labels) if whole else None


def _unpack(packed: Path, target: Path) -> bool:
    """Unpacks the ``.gz`` files of an MNIST-like set elsewhere, for the data root may be read-only."""
    paths = sorted(packed.glob("*-ubyte.gz"))
    if len(paths) < 4:
        return False
    target.mkdir(parents=True)
    for path in paths:
        with gzip.open(path) as source, open(target / path.stem, "wb") as sink:
            shutil.copyfileobj(source, sink)
    return True


def _images(x: Any) -> Tensor:
    """Images as ``(N, H, W)`` if grey, ``(N, C, H, W)`` if in colour."""
    x = torch.as_tensor(np.asarray(x))
    return x.movedim(-1, 1).contiguous() if x.dim() == 4 else x


def _idx(class_name: str) -> str:
    return f"{class_name}/raw/{{train,t10k}}-{{images-idx3,labels-idx1}}-ubyte.gz"


NAMED: Mapping[str, Callable[[Path], DataSet]] = {
    "digits": _digits,
    "mnist": _torchvision_set("mnist", "MNIST", _idx("MNIST")),
    "fashion-mnist": _torchvision_set("fashion-mnist", "FashionMNIST", _idx("FashionMNIST")),
    "kmnist": _torchvision_set("kmnist", "KMNIST", _idx("KMNIST")),
    "cifar10": _torchvision_set("cifar10", "CIFAR10", "cifar-10-python.tar.gz"),
}


_IN_MEMORY = 2**28  # bytes of an .npy file up to which it is read as a whole


def _from_numpy(path: Path) -> DataSet:
    try:
        if path.suffix == ".npy" and path.stat().st_size > _IN_MEMORY:
            mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            if mapped.dtype.kind in "biuf" and mapped.ndim > 0 and mapped.flags.c_contiguous:
                return _from_file(path, FileRows(mapped))
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = {"x": content} if isinstance(content, np.ndarray) else dict(content)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # numpy raises many kinds for a file that is not its own
        raise ValueError(f"cannot read {path} as NumPy data ({error})") from error
    x = arrays.get("x_train", arrays.get("x"))
    if x is None:
        raise ValueError(f"{path} holds {', '.join(arrays) or 'nothing'}; expected an array named x or x_train")
    x_train = _numbers(x, path)
    x_test = _numbers(arrays["x_test"], path) if "x_test" in arrays else x_train[:0]
    if len(x_train) == 0:
        raise ValueError(f"{path} holds no rows")
    if x_test.shape[1:] != x_train.shape[1:]:
        raise ValueError(
            f"{path} has rows of shape {tuple(x_train.shape[1:])} to train on and {tuple(x_test.shape[1:])} to test: "
            f"bring them to one shape"
        )
    y_train, y_test = _labels([arrays.get("y_train", arrays.get("y")), arrays.get("y_test")], [x_train, x_test], path)
    return DataSet(path.stem, x_train, x_test, customary_bounds(x_train), y_train, y_test)


def _from_file(path: Path, rows: FileRows) -> DataSet:
    """Rows that stay in their file."""
    return DataSet(path.stem, rows, rows[:0], customary_bounds(rows))


def _numbers(x: np.ndarray, path: Path) -> Tensor:
    if x.dtype.kind not in "biuf" or x.ndim == 0:
        raise ValueError(f"{path} holds {x.dtype} data of shape {x.shape}; expected rows of numbers")
    return torch.as_tensor(np.ascontiguousarray(x.astype(_TORCH_TYPES.get(x.dtype.name, x.dtype.newbyteorder("=")))))


# Of these torch has none, or hardly any arithmetic.
_TORCH_TYPES = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64, "longdouble": np.float64}


def _labels(ys: Sequence[np.ndarray | None], xs: Sequence[Tensor], path: Path) -> list[Tensor | None]:
    """Labels as whole numbers, the same ones in every part."""
    for y, x in zip(ys, xs, strict=True):
        if y is not None and y.shape != (len(x),):
            raise ValueError(f"{path} has labels of shape {y.shape} for {len(x)} rows; expected one for each")
    kinds = np.unique(np.concatenate([y for y in ys if y is not None] or [np.empty(0)]))
    return [None if y is None else torch.as_tensor(np.searchsorted(kinds, y)) for y in ys]


def _from_images(folder: Path) -> DataSet:
    from PIL import Image, UnidentifiedImageError

    suffixes = Image.registered_extensions()
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in suffixes and not p.name.startswith("."))
    if not paths:
        raise ValueError(f"{folder} holds no images")
    images = []
    for path in paths:
        try:
            with Image.open(path) as image:
                images.append(_pixels(image))
        except (OSError, UnidentifiedImageError) as error:
            raise ValueError(f"cannot read {path} as an image ({error})") from error
        if images[-1].shape != images[0].shape:
            raise ValueError(
                f"{path} has shape {images[-1].shape} and {paths[0]} has {images[0].shape}: bring all images to one "
                f"size and one kind, grey or colour"
            )
    subfolders = [path.relative_to(folder).parts[0] for path in paths]
    labelled = len(set(subfolders)) < len(paths) and all(path.parent != folder for path in paths)
    y = torch.as_tensor(np.unique(subfolders, return_inverse=True)[1]) if labelled else None
    x = _images(np.stack(images))
    return DataSet(folder.name, x, x[:0], (0.0, 255.0) if x.dtype is torch.uint8 else (0.0, 65535.0), y)


def _pixels(image: Any) -> np.ndarray:
    """Grey ``(H, W)`` or colour ``(H, W, 3)``, 8 or 16 bits deep as it came."""
    if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        return _deep_pixels(image)
    if image.mode.startswith("I"):
        return np.asarray(image).astype(np.int32)
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"))
    colours = np.asarray(image.convert("RGB"))
    grey_palette = image.mode in ("P", "PA") and (colours == colours[..., :1]).all()
    return colours[..., 0] if grey_palette else colours


def _deep_pixels(image: Any) -> np.ndarray:
    """Colours of 16 bits, of which Pillow would keep 8."""
    if image.format != "PNG":
        raise OSError(f"it has 16-bit colours, which can be read from PNG files and not from {image.format}")
    import_torchvision()
    try:
        from torchvision.io import ImageReadMode, decode_png
    except ImportError as error:
        raise OSError("it has 16-bit colours, for which this torchvision has no reader: save it in 8 bits") from error
    mode = ImageReadMode.GRAY if image.mode == "LA" else ImageReadMode.RGB
    packed = torch.frombuffer(bytearray(Path(image.filename).read_bytes()), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of decoding in torchvision at large
        pixels = decode_png(packed, mode).to(torch.int32).numpy()
    return pixels[0] if image.mode == "LA" else np.moveaxis(pixels, 0, -1)
