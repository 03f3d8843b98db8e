"""Converts Python objects to rows of numbers: arrays, tables, sparse matrices and lists, by their protocols."""

import contextlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.arrays import FileRows, LazyRows, SparseRows, as_tensor, check_uint64, is_mapped

__all__ = ["as_numbers"]

# The protocols that export tables and columns. Objects with ``ndim``, from pandas or NumPy, do not need them.
_ARROW = ("__arrow_c_stream__", "__arrow_c_array__")
_NUMBERS = {
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16, torch.int32),
    *(torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
}


def as_numbers(value: Any, name: str) -> Tensor | LazyRows:
    """Converts anything that holds numbers to a tensor, or to rows that are read when they are needed.

    Supported, in this order: tensors and lazy rows; memory maps; observations with a matrix ``X`` (AnnData); sparse
    matrices (``tocsr``); tables and columns of pandas, and of other libraries that export them by Arrow's protocol;
    masked arrays; and everything that NumPy can convert to an array.

    Args:
        value: The data.
        name: The data's name in messages.

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
            raise ValueError(f"{name} has no matrix X, whose rows are the training data: put the numbers there")
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
    except Exception as error:  # other libraries raise many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{name} is a {type(value).__name__} that cannot be read as rows of numbers ({reason}): give a tensor, an "
            f"array or a list of rows of equal length"
        ) from error
    return _strided(tensor, name)


class _Refused(ValueError):
    """An error whose message is complete."""


def _strided(value: Tensor, name: str) -> Tensor:
    """A strided tensor of real numbers, detached from any graph."""
    ways = [
        (value.device.type == "meta", "is on the device meta and holds no numbers: create it on a real device"),
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
    if hasattr(value, "collect") and not hasattr(value, "__array__"):  # a lazy query
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
        raise _Refused(f"{name} holds {array.dtype} numbers, which torch does not have: round them to float64")
    return array


def _not_numbers(value: Any, array: np.ndarray, name: str) -> str:
    if array.dtype.kind == "c":
        return f"{name} holds complex numbers: give their real and imaginary parts as separate elements"
    kinds = {"U": "text", "S": "bytes", "M": "dates", "m": "spans of time", "V": "records"}
    return (
        f"{name} is a {type(value).__name__} that cannot be read as rows of numbers: it holds "
        f"{kinds.get(array.dtype.kind, 'objects')}; give a tensor, an array or a list of rows of equal length"
    )


def _from_arrow(value: Any, name: str) -> Any:
    """Converts a table or column to pandas, keeping whole numbers with missing entries exact."""
    try:
        import pandas as pd
        import pyarrow as pa
    except ImportError as error:
        raise _Refused(
            f"{name} is a {type(value).__name__}, which needs pyarrow: pip install 'pyro-vae[tables]', or give "
            f"{name}.to_numpy()"
        ) from error

    def exact(kind: Any) -> Any:  # pandas' own types would round whole numbers with missing entries
        numeric = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
        return pd.ArrowDtype(kind) if any(is_one(kind) for is_one in numeric) else None

    is_table = hasattr(value, "columns") or hasattr(value, "column_names")
    return (pa.table(value) if is_table else pa.chunked_array(value)).to_pandas(types_mapper=exact)


def _from_pandas(value: Any, name: str) -> np.ndarray:
    """A column ``(N,)``, or a table ``(N, D)`` in a common type of its columns."""
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
            f"{f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''}: leave them out, or convert a table with "
            f"columns of several kinds with pyro_vae.data.tables.Schema"
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
    """A column's numbers, with NaN for missing entries."""
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
            f"{name} has whole numbers beyond {highest} in the column {column!r}, which {joint}, the common type of "
            f"columns with missing entries or of all columns, would round: rescale it or give it as float64"
        )


def _unmasked(value: Any, name: str) -> np.ndarray:
    """A masked array with NaN, the library's missing entry, where it is masked."""
    if not np.ma.is_masked(value):
        return value.data
    if value.dtype.kind != "f":
        raise _Refused(
            f"{name} is a masked array of {value.dtype}, a type without NaN for missing entries: give "
            f"{name}.astype(float).filled(np.nan), or {name}.data and the mask {name}.mask == False as arguments"
        )
    return value.filled(np.nan)
