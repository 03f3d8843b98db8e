"""What a user has in Python, as rows of numbers: arrays, tables, sparse matrices and lists, by what they share."""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.arrays import FileRows, LazyRows, SparseRows, as_tensor, check_uint64, is_mapped

__all__ = ["as_numbers"]

# What tables and columns are exported by. Those of pandas, and arrays, have a number of dimensions and need it not.
_ARROW = ("__arrow_c_stream__", "__arrow_c_array__")
_NUMBERS = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def as_numbers(value: Any, name: str) -> Tensor | LazyRows:
    """A tensor of whatever holds numbers, or rows that are read when they are needed.

    What it understands, in this order: tensors, and rows that are lazy already; memory maps; observations with a matrix
    ``X`` (AnnData); sparse matrices (``tocsr``); tables and columns of pandas, and those of other libraries that export
    them by Arrow's protocol; masked arrays; and all else that NumPy makes an array of.

    Args:
        value: What was given.
        name: What it is called in messages.

    Raises:
        ValueError: if it does not hold numbers, saying what to do.

    Example:
        >>> import pandas as pd
        >>> as_numbers(pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), "x")
        tensor([[1.0000, 0.5000],
                [2.0000, 1.5000]], dtype=torch.float64)
    """
    if isinstance(value, Tensor):
        return _strided(value, name)
    if isinstance(value, LazyRows):
        return value
    if is_mapped(value):
        return FileRows(value)
    if hasattr(value, "obs_names") and hasattr(value, "X"):
        if value.X is None:
            raise ValueError(f"{name} has no matrix X, whose rows are what is learned: put the numbers there")
        return as_numbers(value.X, f"{name}.X")
    if hasattr(value, "tocsr"):
        return SparseRows(value, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array = _array(value, name)
        tensor = array if isinstance(array, Tensor) else as_tensor(array)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # whatever another library raises for what it cannot turn into numbers
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} is a {type(value).__name__} that cannot be read as rows of numbers ({reason}): give a tensor, an "
            f"array or a list of rows of equal length"
        ) from error
    return _strided(tensor, name)


class _Refused(ValueError):
    """A sentence that stands as it is."""


def _strided(value: Tensor, name: str) -> Tensor:
    """A tensor of real numbers in memory, apart from any graph."""
    ways = [
        (value.device.type == "meta", "is on the device meta and holds no numbers: make it on a real one"),
        (value.is_quantized, f"is quantised: give {name}.dequantize()"),
        (value.is_nested, f"is a nested tensor, whose rows differ in length: pad them, and give {name} with a mask"),
        (value.is_complex(), f"holds complex numbers: give torch.view_as_real({name})"),
        (not value.is_complex() and value.dtype not in _NUMBERS, f"holds {value.dtype} numbers: give {name}.float()"),
    ]
    for wrong, sentence in ways:
        if wrong:
            raise ValueError(f"{name} {sentence}")
    value = value.detach()
    return check_uint64(value if value.layout is torch.strided else value.to_dense(), name)


def _array(value: Any, name: str) -> Any:
    if hasattr(value, "collect") and not hasattr(value, "__array__"):  # a query that has not been run
        value = value.collect()
    if any(hasattr(value, protocol) for protocol in _ARROW) and not hasattr(value, "ndim"):
        value = _from_arrow(value, name)
    if hasattr(value, "iloc"):  # of pandas
        return _from_pandas(value, name)
    if isinstance(value, np.ma.MaskedArray):
        return _unmasked(value, name)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        with contextlib.suppress(Exception):  # plain numbers, in torch's types
            return torch.as_tensor(value)
    array = np.asarray(value)
    if array.dtype == object:
        array = np.asarray(array.tolist())
    if array.dtype.kind not in "biuf":
        raise _Refused(_not_numbers(value, array, name))
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        raise _Refused(f"{name} holds {array.dtype} numbers, which torch has none of: give them as float64, rounded")
    return array


def _not_numbers(value: Any, array: np.ndarray, name: str) -> str:
    if array.dtype.kind == "c":
        return f"{name} holds complex numbers: give their real and imaginary parts as elements of their own"
    kinds = {"U": "text", "S": "bytes", "M": "dates", "m": "spans of time", "V": "records"}
    return (
        f"{name} is a {type(value).__name__} that cannot be read as rows of numbers: it holds "
        f"{kinds.get(array.dtype.kind, 'objects')}; give a tensor, an array or a list of rows of equal length"
    )


def _from_arrow(value: Any, name: str) -> Any:
    """A table or column as one of pandas, whole numbers with gaps among them kept exact."""
    try:
        import pandas as pd
        import pyarrow as pa
    except ImportError as error:
        raise _Refused(
            f"{name} is a {type(value).__name__}, for which pyarrow is needed: pip install 'pyro-vae[tables]', or give "
            f"{name}.to_numpy()"
        ) from error

    def exact(kind: Any) -> Any:  # pandas' own types would round whole numbers with gaps among them
        numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
        return pd.ArrowDtype(kind) if any(is_one(kind) for is_one in numeric) else None

    is_table = hasattr(value, "columns") or hasattr(value, "column_names")
    return (pa.table(value) if is_table else pa.chunked_array(value)).to_pandas(types_mapper=exact)


def _from_pandas(value: Any, name: str) -> np.ndarray:
    """A column ``(N,)``, or a table ``(N, D)`` in the type that holds all its columns."""
    from pandas.api import types

    columns = [value] if value.ndim == 1 else [value.iloc[:, place] for place in range(value.shape[1])]
    wrong = [
        f"{str(column.name)!r} ({column.dtype})"
        for column in columns
        if not (types.is_numeric_dtype(column.dtype) or types.is_bool_dtype(column.dtype))
        or types.is_complex_dtype(column.dtype)
        or isinstance(column.dtype, types.CategoricalDtype)
    ]
    if wrong:
        raise _Refused(
            f"{name} is a {type(value).__name__} with columns that are not numbers, {', '.join(wrong[:5])}"
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}: leave them out, or make rows of numbers of a "
            f"table with columns of several kinds by pyro_vae.data.tables.Schema"
        )
    if value.ndim == 2 and len(set(value.dtypes)) == 1 and isinstance(value.dtypes.iloc[0], np.dtype):
        return value.to_numpy()
    arrays = [_column(column, name) for column in columns]
    if value.ndim == 1:
        return arrays[0]
    joint = np.result_type(*arrays) if arrays else np.dtype(float)
    for column, array in zip(columns, arrays, strict=True):
        if joint.kind == "f" and array.dtype.kind in "iu":
            _check_exact(array, joint, str(column.name), name)
    return np.stack([array.astype(joint) for array in arrays], axis=1) if arrays else np.empty((len(value), 0))


def _column(column: Any, name: str) -> np.ndarray:
    """A column's numbers; NaN where entries of a type that allows for that are missing."""
    if isinstance(column.dtype, np.dtype):
        return column.to_numpy()
    missing = column.isna().to_numpy()
    kind = getattr(column.dtype, "numpy_dtype", None)
    kind = np.dtype(float) if kind is None or kind.kind not in "biuf" else kind  # such as decimal numbers
    if not missing.any():
        return column.to_numpy(dtype=kind)
    known = column[~missing].to_numpy(dtype=kind)
    joint = known.dtype if known.dtype.kind == "f" else np.dtype(float)
    _check_exact(known, joint, str(column.name), name)
    array = np.full(len(column), np.nan, joint)
    array[~missing] = known
    return array


def _check_exact(array: np.ndarray, joint: np.dtype, column: str, name: str) -> None:
    """Refuses whole numbers that a floating-point type would round."""
    highest = 2 ** (np.finfo(joint).nmant + 1)
    if array.dtype.kind in "iu" and ((array > highest) | (array < -highest)).any():
        raise _Refused(
            f"{name} has whole numbers beyond {highest} in the column {column!r}, which would be rounded beside the "
            f"{joint} numbers of the others or to leave gaps: rescale it or give it as float64"
        )


def _unmasked(value: Any, name: str) -> np.ndarray:
    """A masked array with NaN where it is masked, which is how the library writes a missing entry."""
    if not np.ma.is_masked(value):
        return value.data
    if value.dtype.kind != "f":
        raise _Refused(
            f"{name} is a masked array of {value.dtype}, in which nothing can stand for a missing entry: give "
            f"{name}.astype(float).filled(np.nan), or {name}.data and the mask {name}.mask == False as arguments"
        )
    return value.filled(np.nan)
