"""Folders of images."""

import contextlib
import math
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.memory import check_memory
from pyro_vae.data.array_files import describe
from pyro_vae.data.dataset import BITS, INTENSITIES, DataSet, coded
from pyro_vae.data.pixels import pixels, resized

__all__ = ["read_images", "stacked"]


def read_images(folder: Path, resize: Sequence[int] | None = None) -> DataSet:
    """Reads all images in a folder and its subfolders, in the order of their names.

    Subfolders are labels if there are fewer of them than images and no image is outside of them. Files and folders
    whose names begin with a dot are skipped; a folder that several links point to is read once.

    Args:
        folder: The folder.
        resize: Height and width to resize images to.

    Raises:
        ValueError: naming all images that cannot be read or differ from the others, or if they do not fit in memory.
    """
    size = None if resize is None else _checked_size(resize)
    paths, notes = _image_files(folder)
    if not paths:
        raise ValueError(f"{folder} holds no images")
    _check_memory(folder, paths, size)
    pictures: dict[Path, np.ndarray] = {}
    unreadable: dict[Path, str] = {}
    done: Counter[str] = Counter()
    for path in paths:
        try:
            with _opened(path) as image:
                _refuse_frames(image)
                found, remarks = pixels(image)
            done["resized, each new pixel the mean of those that it covers"] += (
                size is not None and found.shape[:2] != size
            )
            height, width = found.shape[:2]
            done["stretched to other proportions"] += size is not None and height * size[1] != width * size[0]
            pictures[path] = found if size is None else resized(found, size)
            done.update(remarks)
        except Exception as error:  # Pillow raises many kinds for damaged files
            unreadable[path] = _reason(error)
    notes += [f"{folder.name}: {count} of {len(paths)} images were {what}." for what, count in done.items() if count]
    _refuse(folder, unreadable, pictures)
    notes += _one_kind(folder, pictures)
    x, bounds, values, described = stacked([pictures.pop(path) for path in paths], folder.name)
    labels, y, said = _labels(folder, paths)
    ids = np.array([path.relative_to(folder).as_posix() for path in paths])
    return DataSet(
        folder.name,
        x,
        x[:0],
        bounds,
        y,
        notes=(*notes, *described, *said),
        labels=labels,
        ids_train=ids,
        values=values,
    )


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it is not an image, or damaged"
    return " ".join(str(error).split()) or type(error).__name__


def stacked(
    images: list[np.ndarray], name: str
) -> tuple[Tensor, tuple[float, float] | None, str | None, tuple[str, ...]]:
    """Stacks images of one shape and type: ``(N, H, W)`` if grey, ``(N, C, H, W)`` if in colour.

    The list is emptied on the way, so there are never two copies of all images. Also returns bounds, values and notes.
    """
    kind, in_colour = images[0].dtype, images[0].ndim == 3
    shape = np.moveaxis(images[0], -1, 0).shape if in_colour else images[0].shape
    held = {"bool": np.uint8, "uint16": np.int32}.get(kind.name, kind)  # torch has hardly any arithmetic for uint16
    out = np.empty((len(images), *shape), held)
    for place in reversed(range(len(images))):
        image = images.pop()
        out[place] = np.moveaxis(image, -1, 0) if in_colour else image
    x = torch.from_numpy(out)
    if kind.name in _KNOWN:
        return x, *_KNOWN[kind.name], ()
    return x, *describe([x], kind.name, name)


_KNOWN = {"bool": ((0.0, 1.0), BITS), "uint8": ((0.0, 255.0), INTENSITIES), "uint16": ((0.0, 65535.0), INTENSITIES)}


def _checked_size(resize: Sequence[int]) -> tuple[int, int]:
    size = tuple(resize)
    if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"resize must be a height and a width in pixels, such as (64, 64); found {resize!r}")
    return size


# Formats that Pillow passes to other programs or only recognises, and formats without pixels.
_NOT_READ = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}


def _formats() -> list[str]:
    from PIL import Image

    Image.init()
    return [name for name in Image.OPEN if name not in _NOT_READ]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An open image. If it is damaged, this raises now or when the image is loaded."""
    from PIL import Image

    if not path.is_file():  # a pipe would never end
        raise OSError("it is not a file, or a broken link")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path, formats=_formats()) as image:
            yield image


def _refuse_frames(image: Any) -> None:
    # Photographs from phones (MPO) also hold previews, drawings (PSD) their layers.
    if image.format not in ("MPO", "PSD") and getattr(image, "is_animated", False):
        raise ValueError("it holds several frames: save each as a separate image, or keep only one")


def _image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The sorted paths of files with an image's suffix, and a note on the other files."""
    from PIL import Image

    formats = set(_formats())
    suffixes = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    found: list[Path] = []
    others: list[Path] = []
    seen = {os.path.realpath(folder)}
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        inside = [name for name in folders if not name.startswith(".")]
        real = {name: os.path.realpath(os.path.join(place, name)) for name in inside}
        folders[:] = [name for name in inside if real[name] not in seen and not seen.add(real[name])]
        shown = [Path(place, name) for name in files if not name.startswith(".")]
        found += [path for path in shown if path.suffix.lower() in suffixes]
        others += [path for path in shown if path.suffix.lower() not in suffixes]
    if not others or not found:
        return sorted(found), []
    kinds = sorted({path.suffix or path.name for path in others})
    said = _some(_printable(kind) for kind in kinds)
    return sorted(found), [f"{folder.name}: {len(others)} files without an image's suffix are left out: {said}."]


def _refuse_folder(error: OSError) -> None:
    raise ValueError(f"cannot read the folder {error.filename}: {error.strerror}") from error


def _check_memory(folder: Path, paths: Sequence[Path], size: tuple[int, int] | None) -> None:
    """Refuses images that do not fit in memory, by the sizes in their headers."""
    total = 0
    for path in paths:
        with contextlib.suppress(Exception), _opened(path) as image:  # unreadable images are reported later
            depth = {"1": 1, "L": 1, "I": 4, "F": 4}.get(image.mode, 4 if image.mode.startswith("I;16") else 3)
            total += math.prod(size or image.size) * depth
    check_memory(
        total,
        f"the {len(paths)} images in {folder}",
        "use fewer or smaller ones, or make them smaller with resize",
    )


def _refuse(folder: Path, unreadable: Mapping[Path, str], pictures: Mapping[Path, np.ndarray]) -> None:
    """Names all problematic images in one sentence."""
    problems = []
    if unreadable:
        problems.append(
            f"cannot read as images: {_some(f'{_name(p, folder)} ({why})' for p, why in unreadable.items())}"
        )
    sizes = {path: f"{x.shape[0]}×{x.shape[1]}" for path, x in pictures.items()}
    kinds = {path: _KIND[x.dtype.name] for path, x in pictures.items()}
    if set(kinds.values()) == {_KIND["bool"], _KIND["uint8"]}:  # which can be mixed
        kinds = {}
    for what, of_each, way in (
        ("size", sizes, "save them in one size, or give resize, a height and a width"),
        ("depth", kinds, "save all with one depth"),
    ):
        usual = Counter(of_each.values()).most_common(1)
        odd = [f"{_name(path, folder)} ({found})" for path, found in of_each.items() if found != usual[0][0]]
        if odd:
            problems.append(
                f"{usual[0][1]} images have the {what} {usual[0][0]} and {len(odd)} another, {_some(odd)}: {way}"
            )
    if problems:
        raise ValueError(f"{folder}: {'; '.join(problems)}")


_KIND = {"bool": "1 bit", "uint8": "8 bits", "uint16": "16 bits", "int32": "32 bits", "float32": "real numbers"}


def _one_kind(folder: Path, pictures: dict[Path, np.ndarray]) -> list[str]:
    """Converts bits among grey levels, and grey images among coloured ones, to the larger kind; returns notes."""
    notes = []
    bits = [path for path, x in pictures.items() if x.dtype == bool]
    if 0 < len(bits) < len(pictures):
        pictures |= {path: np.where(pictures[path], np.uint8(255), np.uint8(0)) for path in bits}
        notes.append(
            f"{folder.name}: {len(bits)} of {len(pictures)} images have 1 bit, which became the grey levels 0 and 255."
        )
    grey = [path for path, x in pictures.items() if x.ndim == 2]
    if 0 < len(grey) < len(pictures):
        pictures |= {path: np.repeat(pictures[path][..., None], 3, axis=-1) for path in grey}
        notes.append(
            f"{folder.name}: {len(grey)} of {len(pictures)} images are grey and the others in colour, so the grey ones "
            f"became equal parts of red, green and blue; convert all to grey to train on grey levels."
        )
    return notes


def _labels(folder: Path, paths: Sequence[Path]) -> tuple[tuple[str, ...] | None, Tensor | None, list[str]]:
    """Names of subfolders, each image's subfolder as a number, and a note if they may not be labels."""
    subfolders = [path.relative_to(folder).parts[0] for path in paths]
    if len(set(subfolders)) == len(paths) or any(path.parent == folder for path in paths):
        return None, None, []
    names, (y,) = coded([np.array(subfolders)])
    parts = set(subfolders) <= {"train", "test", "val", "valid", "validation"}
    said = (
        f"{folder.name}: the subfolders {', '.join(sorted(set(subfolders)))} are treated as labels, and rows are held "
        f"out from all of them; if they are parts, give one of them as the data."
    )
    return names, y, [said] if parts else []


def _name(path: Path, folder: Path) -> str:
    return _printable(path.relative_to(folder).as_posix())


def _printable(name: str) -> str:
    """A name on one line."""
    return name if name.isprintable() else repr(name)


def _some(items: Iterable[str]) -> str:
    """The first five, and the number of the others.

    Example:
        >>> _some("abcdefg")
        'a, b, c, d, e and 2 more'
    """
    items = list(items)
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
