"""Data sets by name: one bundled with scikit-learn, and any class of images in torchvision."""

import contextlib
import gzip
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae.data.dataset import INTENSITIES, DataSet
from pyro_vae.data.images import stacked
from pyro_vae.data.pixels import pixels
from pyro_vae.data.torchvision_import import import_torchvision

__all__ = ["NAMED", "TORCHVISION", "from_torchvision", "import_torchvision"]


def _digits(root: Path) -> DataSet:
    """The 1,797 handwritten 8×8 digits that scikit-learn bundles, grey levels 0–16 (Alpaydin & Kaynak, 1998)."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.as_tensor(pixels).to(torch.uint8).reshape(-1, 8, 8)
    return DataSet("digits", x, x[:0], (0.0, 16.0), torch.as_tensor(labels), values=INTENSITIES)


TORCHVISION = "torchvision:"
_TRAIN = {"train": (True,), "split": ("train", "trainval"), "image_set": ("train",), "background": (True,)}
_TEST = {"train": (False,), "split": ("test", "val", "valid"), "image_set": ("val",), "background": (False,)}


def _torchvision_set(name: str, class_name: str, expected: str) -> Callable[[Path], DataSet]:
    return lambda root: _torchvision_rows(name, class_name, {}, root, expected)


def from_torchvision(name: str, root: Path) -> DataSet:
    """Any class of images in torchvision, by its name and arguments."""
    class_name, *options = name.removeprefix(TORCHVISION).split(",")
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
            raise ValueError(f"{class_name} needs the argument {argument}: write {name},{argument}=VALUE")
    data = _torchvision_rows(name, class_name, arguments, root, f"the files of {class_name}")
    return replace(data, name=class_name)


def _torchvision_rows(name: str, class_name: str, arguments: Mapping[str, str], root: Path, expected: str) -> DataSet:
    """Both parts of a torchvision set, or one if it has no test part."""
    cls = getattr(import_torchvision().datasets, class_name)
    before = {root, *root.rglob("*")} if root.exists() else set()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            found = _unpack(root / class_name / "raw", Path(scratch) / class_name / "raw")
            source = Path(scratch) if found else root
            train = _torchvision_part(cls, arguments, source, _TRAIN, download=not found)
            test = _torchvision_part(cls, arguments, source, _TEST, download=not found)
        except Exception as error:  # from the network, the disk or a damaged file
            for path in sorted({root, *root.rglob("*")} - before, reverse=True):
                with contextlib.suppress(OSError):  # empty folders of a failed download
                    path.rmdir()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{name} could not be read from {root}, nor downloaded ({reason}): put {expected} under "
                f"{root}, or give another root folder; the data set digits needs no files"
            ) from error
    (x_train, y_train) = _rows_of_part(train, name)
    (x_test, y_test) = (x_train[:0], None) if test is None else _rows_of_part(test, name)
    if x_test.shape[1:] != x_train.shape[1:]:
        raise ValueError(
            f"{name} has images of shape {tuple(x_train.shape[1:])} to train on and {tuple(x_test.shape[1:])} to test: "
            f"save them in one size, and name the folder"
        )
    called = class_name if name.startswith(TORCHVISION) else name
    return DataSet(called, x_train, x_test, (0.0, 255.0), y_train, y_test, values=INTENSITIES)


def _parameters(cls: Any) -> dict[str, Any]:
    """Names and defaults of a class's arguments, including those that it passes to its base class."""
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
    """One part of a set; None if it has only one. The name of the part differs from class to class."""
    known = _parameters(cls)
    given: dict[str, Any] = dict(arguments)
    if "root" in known:
        given["root"] = root
    chooser = next((n for n in values if n in known and n not in arguments), None)
    if chooser is None and values is _TEST:
        return None
    # Existing files first: their folder may be read-only and the network unavailable.
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
        except ValueError as error:  # the part may have another name
            first = first or error
    if values is _TEST and len(names) > 1:
        return None
    assert first is not None
    raise first


def _rows_of_part(part: Any, name: str) -> tuple[Tensor, Tensor | None]:
    """Images and labels, all at once if the set stores them so, otherwise one by one."""
    x, y = getattr(part, "data", None), getattr(part, "targets", getattr(part, "labels", None))
    if isinstance(x, (np.ndarray, Tensor)) and x.ndim in (3, 4) and y is not None:
        x = x if x.ndim == 4 and x.shape[1] in (1, 3) and x.shape[-1] not in (1, 3) else _images(x)
        return torch.as_tensor(x), torch.as_tensor(np.asarray(y))
    images, labels = [], []
    for number in range(len(part)):
        image, label = part[number][:2]
        if not hasattr(image, "mode"):
            raise ValueError(f"{name} holds {type(image).__name__} items; expected images")
        found, _ = pixels(image)
        images.append(np.where(found, np.uint8(255), np.uint8(0)) if found.dtype == bool else found)
        labels.append(label)
        if (images[-1].shape, images[-1].dtype) != (images[0].shape, images[0].dtype):
            raise ValueError(
                f"{name} has images of shapes {images[0].shape} and {images[-1].shape}: save them in one size, one "
                f"depth and one kind, grey or colour, and name the folder"
            )
    whole = all(isinstance(label, (int, np.integer)) for label in labels)
    return stacked(images, name)[0], torch.as_tensor(labels) if whole else None


def _unpack(packed: Path, target: Path) -> bool:
    """Unpacks the ``.gz`` files of an MNIST-like set to ``target``, because the data root may be read-only."""
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
