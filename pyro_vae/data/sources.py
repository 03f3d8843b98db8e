"""Data sets: by name, or from a file or folder; and splits of them."""

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

_IN_MEMORY = 2**28  # bytes of an .npy file up to which it is read as a whole
_TABLES = (".csv", ".tsv", ".txt", ".parquet", ".xlsx")
_FILES = f"a .npy, .npz or .h5ad file, a table ({', '.join(_TABLES)})"


def default_root() -> Path:
    """Where downloaded data sets live: the environment variable ``PYRO_VAE_DATA``, or ``data``."""
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

    The rows of an ``.npy`` file above 256 MiB stay in it and are read when they are needed; sparse rows stay sparse.

    Args:
        name: One of :data:`NAMED`; ``torchvision:CLASS`` for any class of images in ``torchvision.datasets``, with
            further arguments after commas where it needs them (``torchvision:EMNIST,split=letters``); or a path. An
            ``.npz`` holds ``x`` or ``x_train``, and may hold ``x_test``, and labels and names of the rows as ``y``,
            ``labels`` and ``ids``, how many steps of a padded row are there as ``lengths``, or those with ``_train``
            and ``_test``; or it is one of ``scipy.sparse.save_npz``.
            Images lie in the folder or in one subfolder for each label.
        root: Folder of downloaded data sets; :func:`default_root` by default.
        hold_out: Where there is no test part, hold a fifth of the rows out, always the same ones; else all rows, in
            their order, are ``x_test``.
        kinds: Kinds of some columns of a table; those of the others are inferred.
        schema: The columns that a table must have, such as those of the one that a model was trained on.
        resize: Height and width that images are brought to.
        separator: What separates the cells of a table, where that is not to be found out.
        decimal: The decimal sign of a table, likewise.
        encoding: The encoding of a table's text, likewise.
        header: Whether a table's first line names its columns, likewise.

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
    """The training rows as two parts, with all that belongs to each row."""
    parts = {}
    for field in ("x", "y", "ids", "rows", "lengths"):
        whole = getattr(data, f"{field}_train")
        for part, indices in (("train", train), ("test", test)):
            if isinstance(whole, np.ndarray):  # for which a tensor of one index would be a number
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
        raise ValueError(f"resize is for folders of images, which {name} is not: leave it out")
    given = [option for option, value in reading.items() if value is not None]
    if given and (known or is_folder or suffix not in _TABLES):
        raise ValueError(f"{' and '.join(given)} says how a table is read, which {name} is not: leave it out")
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
    from pyro_vae.data.tables import Schema, read_table  # which brings in pandas

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
