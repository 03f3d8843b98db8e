"""Data sets by name, or from a file or folder, and splits of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae._support.names import lookup
from pyro_vae.data.array_files import ARRAY_FILES, read_array_file
from pyro_vae.data.dataset import DataSet, split
from pyro_vae.data.images import read_images
from pyro_vae.data.named import NAMED, TORCHVISION, from_torchvision, import_torchvision

if TYPE_CHECKING:
    from pyro_vae.data.tables import Schema

__all__ = ["NAMED", "DataSet", "default_root", "import_torchvision", "load_data", "split"]

_IN_MEMORY = 2**28  # bytes up to which an .npy file is read into memory
_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
_FILES = f"a .npy, .npz or .h5ad file, a table ({', '.join(_TABLES)})"


def default_root() -> Path:
    """The folder for downloaded data sets: the environment variable ``PYRO_VAE_DATA``, or ``data``."""
    return Path(os.environ.get("PYRO_VAE_DATA") or "data")


def load_data(
    name: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
    *,
    hold_out: bool = True,
    kinds: Mapping[str, str] | None = None,
    schema: "Schema | None" = None,
    resize: Sequence[int] | None = None,
    separator: str | None = None,
    decimal: str | None = None,
    encoding: str | None = None,
    header: bool | None = None,
) -> DataSet:
    """Loads a data set by its name, or from a file of arrays, a table or a folder of images.

    The rows of an ``.npy`` file above 256 MiB stay on disk and are read when they are needed; sparse rows stay sparse.

    Args:
        name: One of :data:`NAMED`; ``torchvision:CLASS`` for any class of images in ``torchvision.datasets``, with
            further arguments after commas if it needs them (``torchvision:EMNIST,split=letters``); or a path. An
            ``.npz`` holds ``x`` or ``x_train``, and optionally ``x_test``; labels as ``y`` or ``labels``, names of the
            rows as ``ids``, and the number of observed steps of padded rows as ``lengths``, each also with ``_train``
            and ``_test``. Or it was written by ``scipy.sparse.save_npz``. A folder holds images, directly or in one
            subfolder for each label.
        root: Folder of downloaded data sets; :func:`default_root` by default.
        hold_out: If there is no test part, hold out a fifth of the rows, always the same ones; otherwise all rows, in
            their order, are ``x_test``.
        kinds: Kinds of some columns of a table; those of the others are inferred.
        schema: The columns that a table must have, such as those of the table that a model was trained on.
        resize: Height and width to resize images to.
        separator: The separator between a table's cells; detected by default.
        decimal: The decimal mark of a table; detected by default.
        encoding: The encoding of a table's text; detected by default.
        header: Whether a table's first line names its columns; detected by default.

    Raises:
        ValueError: if the name is unknown or the data cannot be read.
    """
    reading = {"separator": separator, "decimal": decimal, "encoding": encoding, "header": header}
    data = _read(os.fspath(name), default_root() if root is None else Path(root), kinds or {}, schema, resize, reading)
    data = replace(data, rows_train=torch.arange(len(data.x_train)), rows_test=torch.arange(len(data.x_test)))
    if len(data.x_test):
        return data
    if not hold_out:
        return _parted(data, slice(0, 0), slice(None))
    return _parted(data, *split(len(data.x_train), 0.2))


def _parted(data: DataSet, train: slice | torch.Tensor, test: slice | torch.Tensor) -> DataSet:
    """Splits the training rows into two parts, with labels, ids, row numbers and lengths."""
    parts = {}
    for field in ("x", "y", "ids", "rows", "lengths"):
        whole = getattr(data, f"{field}_train")
        for part, indices in (("train", train), ("test", test)):
            if isinstance(whole, np.ndarray):  # NumPy would take a tensor with one index for a number
                indices = np.arange(len(whole))[indices] if isinstance(indices, slice) else indices.numpy()
            parts[f"{field}_{part}"] = None if whole is None else whole[indices]
    return replace(data, **parts)


def _read(
    name: str,
    root: Path,
    kinds: Mapping[str, str],
    schema: "Schema | None",
    resize: Sequence[int] | None,
    reading: Mapping[str, Any],
) -> DataSet:
    path = Path(name)
    known = name in NAMED or name.startswith(TORCHVISION)
    is_folder = not known and path.is_dir()
    suffix = path.with_suffix("").suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()
    if resize is not None and not is_folder:
        raise ValueError(f"resize is for folders of images, but {name} is not one: leave it out")
    given = [option for option, value in reading.items() if value is not None]
    if given and (known or is_folder or suffix not in _TABLES):
        options = f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'}"
        raise ValueError(
            f"{options} for tables, but {name} is not one: leave {'it' if len(given) == 1 else 'them'} out"
        )
    if known:
        return NAMED[name](root) if name in NAMED else from_torchvision(name, root)
    if is_folder:
        return read_images(path, resize)
    if not path.exists():
        _refuse_missing(name, path)
    if suffix in _TABLES:
        return _read_table(path, kinds, schema, reading)
    if suffix not in ARRAY_FILES:
        raise ValueError(f"cannot read {path}: expected {_FILES}, or a folder of images")
    return read_array_file(path, _IN_MEMORY)


def _read_table(path: Path, kinds: Mapping[str, str], schema: "Schema | None", reading: Mapping[str, Any]) -> DataSet:
    from pyro_vae.data.tables import Schema, read_table  # imports pandas

    table = read_table(path, **reading)
    notes = table.notes
    if schema is None:
        schema = Schema.infer(table.frame, kinds)
        notes = (*notes, *schema.notes)
    x = schema.encode(table.frame)
    return DataSet(path.stem, x, x[:0], None, schema=schema, notes=notes, table=table)


def _refuse_missing(name: str, path: Path) -> None:
    if path.suffix or len(path.parts) > 1:
        raise ValueError(
            f"there is no file or folder {path}; expected a path to {_FILES} or a folder of images, "
            f"{TORCHVISION}CLASS, or one of {', '.join(NAMED)}"
        )
    known = [*NAMED, f"{TORCHVISION}CLASS, such as {TORCHVISION}SVHN"]
    paths = ["a .npy, .npz or .h5ad file", "a table, such as a .csv file", "a folder of images"]
    lookup(name, [*known, *(f"a path to {kind}" for kind in paths)], "data set")
