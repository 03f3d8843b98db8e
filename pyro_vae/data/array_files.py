"""Files of arrays: NumPy's ``.npy`` and ``.npz``, SciPy's sparse ``.npz``, AnnData's ``.h5ad``."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.arrays import FileRows, LazyRows, SparseRows, as_tensor, check_uint64, in_chunks
from pyro_vae.data.dataset import BITS, COUNTS, COUNTS_OR_LEVELS, INTENSITIES, DataSet, coded

__all__ = ["ARRAY_FILES", "describe", "read_array_file"]


def read_array_file(path: Path, in_memory: int) -> DataSet:
    """Reads all rows of a file; those of an ``.npy`` of more than ``in_memory`` bytes stay on disk.

    Raises:
        ValueError: if it cannot be read, or does not hold rows of numbers.
    """
    return ARRAY_FILES[path.suffix.lower()](path, in_memory)


def _read_numpy(path: Path, in_memory: int) -> DataSet:
    if path.suffix.lower() == ".npy" and _reading(path, path.stat).st_size > in_memory:
        mapped = _reading(path, lambda: np.load(path, mmap_mode="r", allow_pickle=False))
        if mapped.dtype.kind in "biuf" and mapped.dtype.itemsize <= 8 and mapped.ndim > 0 and mapped.flags.c_contiguous:
            rows = FileRows(mapped)
            return _data_set(path, [rows, rows[:0]], mapped.dtype.name)
    with _reading(path, lambda: open(path, "rb")) as file:
        content = _reading(path, lambda: np.load(file, allow_pickle=False))
        if isinstance(content, np.ndarray):
            return _from_arrays(path, {"x_train": content}, ())
        if {"format", "shape", "data"} <= set(content.files):
            import scipy.sparse

            matrix = _reading(path, lambda: scipy.sparse.load_npz(path))
            rows = SparseRows(matrix, str(path))
            return _data_set(path, [rows, rows[:0]], matrix.dtype.name)

        def load(name: str) -> np.ndarray:
            return _reading(path, lambda: content[name])

        names, notes = _chosen(path, content.files, load)
        return _from_arrays(path, {part: load(name) for part, name in names.items()}, notes)


def _read_anndata(path: Path, in_memory: int) -> DataSet:
    try:
        import anndata  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(f"reading {path} needs anndata: pip install 'pyro-vae[anndata]'") from error
    data = _reading(path, lambda: anndata.read_h5ad(path), "an AnnData file")
    if data.X is None:
        raise ValueError(f"{path} has no matrix X, whose rows are the training data: put the numbers there")
    x: Any = data.X
    rows = SparseRows(x, str(path)) if hasattr(x, "tocsr") else _numbers(np.asarray(x), path)
    ids = np.asarray(data.obs_names, dtype=str)
    found = _data_set(path, [rows, rows[:0]], x.dtype.name, ids=[ids, None], counts=True)
    unused = [f"layers {', '.join(data.layers)}" if len(data.layers) else "", _columns("obs", data.obs)]
    notes = [f"{path.name}: X is used; not used: {' and '.join(filter(None, unused))}."] if any(unused) else []
    columns = tuple(np.asarray(data.var_names, dtype=str).tolist())
    return _with_notes(replace(found, about=data.obs, columns=columns), notes)


def _columns(name: str, frame: Any) -> str:
    return f"the columns {', '.join(map(str, frame.columns))} of {name}" if len(frame.columns) else ""


ARRAY_FILES: Mapping[str, Callable[[Path, int], DataSet]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".h5ad": _read_anndata,
}


def _reading(path: Path, read: Callable[[], Any], kind: str = "NumPy data") -> Any:
    """The result of ``read``; its errors for damaged or foreign files become one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise ValueError(f"cannot read {path}: {error.strerror}") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        if "pickle" in reason:  # NumPy suggests to allow them
            reason = "it holds Python objects, which could run code: save it again as an array of numbers"
        raise ValueError(f"cannot read {path} as {kind} ({reason})") from error


_FIELDS = {"x": ("x",), "y": ("y", "labels"), "ids": ("ids",), "lengths": ("lengths",)}
_PARTS = {"train": ("", "_train"), "test": ("_test",)}


def _chosen(path: Path, files: Sequence[str], load: Callable[[str], np.ndarray]) -> tuple[dict[str, str], list[str]]:
    """The names of a file's arrays by their role, and notes on guesses and unused arrays."""
    names: dict[str, str] = {}
    notes = []
    for field, aliases in _FIELDS.items():
        for part, endings in _PARTS.items():
            found = [alias + ending for alias in aliases for ending in endings if alias + ending in files]
            if len(found) > 1:
                raise ValueError(f"{path} holds {' and '.join(found)}, which is ambiguous: keep one of them")
            names |= {f"{field}_{part}": name for name in found}
    if "x_train" not in names:
        others = [name for name in files if name not in names.values()]
        if len(others) != 1:
            shapes = [f"{name} {load(name).shape}" for name in files]
            raise ValueError(
                f"{path} holds {', '.join(shapes) or 'nothing'}; expected an array named x or x_train, or only one"
            )
        names["x_train"] = others[0]
        notes.append(f"{path.name}: its array {others[0]} is used as the rows; name it x to say so.")
    if "x_test" not in names:
        names = {part: name for part, name in names.items() if not part.endswith("_test")}
    unused = [name for name in files if name not in names.values()]
    if unused:
        notes.append(
            f"{path.name}: {', '.join(unused)} {'is' if len(unused) == 1 else 'are'} not used; the arrays that are "
            f"used are x, y, labels, ids and lengths, also with _train or _test."
        )
    return names, notes


def _from_arrays(path: Path, arrays: Mapping[str, np.ndarray], notes: Sequence[str]) -> DataSet:
    first = arrays["x_train"]
    x_train = _numbers(first, path)
    x_test = _numbers(arrays["x_test"], path) if "x_test" in arrays else x_train[:0]
    if len(x_train) == 0:
        raise ValueError(f"{path} holds no rows")
    if x_test.shape[1:] != x_train.shape[1:]:
        raise ValueError(
            f"{path} has rows of shape {tuple(x_train.shape[1:])} to train on and {tuple(x_test.shape[1:])} to test: "
            f"give both the same shape"
        )
    if len(x_test) and x_test.dtype != x_train.dtype:
        raise ValueError(
            f"{path} has {first.dtype} rows to train on and {arrays['x_test'].dtype} rows to test, which may be in "
            f"different units: save both in one type"
        )
    per_row = {}
    for field, what in (("y", "labels"), ("ids", "ids"), ("lengths", "lengths")):
        given = [arrays.get(f"{field}_{part}") for part in _PARTS]
        per_row[field] = [_one_each(y, x, path, what) for y, x in zip(given, (x_train, x_test), strict=True)]
    if first.dtype == np.longdouble and first.dtype.itemsize > 8:
        notes = [*notes, f"{path.name} holds {first.dtype} numbers, which are rounded to float64."]
    lengths = [_steps(value, path) for value in per_row["lengths"]]
    found = _data_set(path, [x_train, x_test], first.dtype.name, per_row["y"], per_row["ids"])
    found = replace(found, lengths_train=lengths[0], lengths_test=lengths[1])
    return _with_notes(found, notes)


# Types that torch lacks, or has hardly any arithmetic for.
_TORCH_TYPES = {"uint16": np.int32, "uint32": np.int64, np.dtype(np.longdouble).name: np.float64}


def _numbers(x: np.ndarray, path: Path) -> Tensor:
    """Rows unchanged, in a torch type that holds every value."""
    if x.dtype.kind not in "biuf" or x.ndim == 0:
        raise ValueError(f"{path} holds {x.dtype} data of shape {x.shape}; expected rows of numbers")
    if len(x) and x.size == 0:
        raise ValueError(f"{path} holds rows of shape {x.shape[1:]}, which have no elements")
    with np.errstate(over="ignore"):
        known = np.ascontiguousarray(x.astype(_TORCH_TYPES.get(x.dtype.name, x.dtype.newbyteorder("=")), copy=False))
    if x.dtype.kind == "f" and known.dtype != x.dtype and (np.isinf(known) & ~np.isinf(x)).any():
        raise ValueError(f"{path} holds {x.dtype} numbers beyond the range of float64: rescale them")
    tensor = check_uint64(as_tensor(known), str(path))
    return tensor.to(torch.int64) if tensor.dtype is torch.uint64 else tensor


def _one_each(y: np.ndarray | None, x: Tensor, path: Path, what: str) -> np.ndarray | None:
    """Labels or ids, numbers or words, one for each row."""
    if y is None:
        return None
    if y.shape != (len(x),):
        raise ValueError(f"{path} has {what} of shape {y.shape} for {len(x)} rows; expected one for each")
    if y.dtype.kind not in "biufUS" or y.dtype in (np.longdouble, np.float16):
        raise ValueError(f"{path} has {what} of type {y.dtype}; expected whole numbers or words")
    try:
        return np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y.astype(y.dtype.newbyteorder("="), copy=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} has {what} of bytes that are not UTF-8 ({error}): save them as words") from error


def _steps(lengths: np.ndarray | None, path: Path) -> Tensor | None:
    """Lengths as whole numbers."""
    if lengths is None:
        return None
    if lengths.dtype.kind not in "iu":
        raise ValueError(f"{path} has lengths of type {lengths.dtype}; expected whole numbers of steps")
    return torch.as_tensor(lengths.astype(np.int64))


def _data_set(
    path: Path,
    xs: Sequence[Any],
    dtype: str,
    ys: Sequence[np.ndarray | None] = (None, None),
    ids: Sequence[np.ndarray | None] = (None, None),
    *,
    counts: bool = False,
) -> DataSet:
    if len(xs[0]) == 0:
        raise ValueError(f"{path} holds no rows")
    if math.prod(xs[0].shape[1:]) == 0:
        raise ValueError(f"{path} holds rows of shape {tuple(xs[0].shape[1:])}, which have no elements")
    if len({y.dtype.kind in "US" for y in ys if y is not None}) > 1:
        raise ValueError(f"{path} has numbers as labels in one part and words in the other: use one kind")
    bounds, values, notes = describe(xs, dtype, path.name, counts=counts)
    labels, (y_train, y_test) = coded(ys)
    return DataSet(
        path.stem,
        *xs,
        bounds=bounds,
        y_train=y_train,
        y_test=y_test,
        notes=notes,
        labels=labels,
        ids_train=ids[0],
        ids_test=ids[1],
        values=values,
    )


def _with_notes(data: DataSet, notes: Iterable[str]) -> DataSet:
    return replace(data, notes=(*notes, *data.notes))


@dataclass(frozen=True)
class _Extent:
    """Lowest and highest value, and whether all are whole; NaN is ignored."""

    low: float
    high: float
    whole: bool


def _extent(xs: Iterable[Tensor | LazyRows]) -> _Extent:
    low, high, whole = math.inf, -math.inf, True
    for x in xs:
        for chunk in in_chunks(x):
            values = chunk.numpy()
            if values.dtype.kind == "f":
                values = values[~np.isnan(values)]
                whole = whole and bool((np.isfinite(values) & (values == np.floor(values))).all())
            if values.size:
                low, high = min(low, float(values.min())), max(high, float(values.max()))
    return _Extent(low, high, whole)


def describe(
    xs: Sequence[Tensor | LazyRows], dtype: str, name: str, *, counts: bool = False
) -> tuple[tuple[float, float] | None, str | None, tuple[str, ...]]:
    """The bounds of rows, the kind of their values, and notes on what was guessed.

    Args:
        xs: Rows ``(N, *E)``, in parts.
        dtype: NumPy's name of the type that they were stored in.
        name: The data's name in notes.
        counts: Whether whole numbers in this kind of data are counts.

    Example:
        >>> describe([torch.tensor([[0, 7]])], "int64", "x")[:2]
        (None, 'counts or levels')
    """
    found = _extent(xs)
    picture = len(xs[0].shape) in (3, 4)
    unit = found.low >= 0 and found.high <= 1
    whole_from_0 = found.whole and found.low >= 0
    notes = []
    if picture and xs[0].shape[-1] in (1, 3, 4) and len(xs[0].shape) == 4 and xs[0].shape[1] not in (1, 3, 4):
        notes.append(
            f"{name}: rows of shape {tuple(xs[0].shape[1:])} are read as channels, height and width; if the channels "
            f"are last, move them to the front with np.moveaxis(x, -1, 1)."
        )
    if found.low > found.high:  # only NaN
        bounds, values = None, None
    elif unit and found.whole:
        bounds, values = (0.0, 1.0), BITS
    elif counts:
        bounds, values = None, COUNTS if whole_from_0 else None
        if not whole_from_0:
            notes.append(
                f"{name}: X holds numbers from {found.low:g} to {found.high:g} rather than counts; if a layer holds "
                f"counts, put them in X to train on them."
            )
    elif dtype == "uint8":
        bounds, values = (0.0, 255.0), INTENSITIES
        if not picture:
            notes.append(f"{name}: uint8 numbers are treated as intensities from 0 to 255; save counts as int64.")
    elif dtype == "uint16" and picture:
        bounds, values = (0.0, 65535.0), INTENSITIES
        notes.append(f"{name}: uint16 images are treated as intensities from 0 to 65535; save counts as int64.")
    elif dtype.startswith(("int", "uint")):
        bounds, values = None, COUNTS_OR_LEVELS if whole_from_0 else None
    elif unit and picture:
        bounds, values = (0.0, 1.0), INTENSITIES
        notes.append(f"{name}: images with values from 0 to 1 are treated as intensities between these bounds.")
    elif unit:
        bounds, values = (0.0, 1.0), None
        notes.append(
            f"{name}: all values lie between 0 and 1, which are treated as their bounds; if they are not, use other "
            f"units, such as percent."
        )
    else:
        bounds, values = None, None
        if whole_from_0:
            notes.append(
                f"{name}: whole numbers stored as {dtype} are treated as real numbers; save them as uint8 if they are "
                f"levels from 0 to 255, as int64 if they are counts."
            )
    return bounds, values, tuple(notes)
