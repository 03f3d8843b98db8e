"""Arrays of rows: NumPy arrays as tensors, and rows that are read only when needed."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Self, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["CHUNK", "FileRows", "LazyRows", "SparseRows", "as_tensor", "check_uint64", "in_chunks", "is_mapped"]

CHUNK = 2**20  # elements processed at a time, to bound memory: 4 MiB in float32


def as_tensor(x: Any) -> Tensor:
    """Converts anything that holds numbers to a tensor, without a copy if possible or a warning of read-only memory."""
    if isinstance(x, LazyRows):
        x = x.read()
    if isinstance(x, np.ndarray):
        x = x.astype(x.dtype.newbyteorder("="), copy=False)
        if any(stride < 0 or stride % x.itemsize for stride in x.strides if x.itemsize):  # torch does not support these
            x = x.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(x)


def check_uint64(x: Tensor, name: str) -> Tensor:
    """Returns ``x``, unless it has whole numbers that no signed torch type holds: they would become negative.

    Raises:
        ValueError: naming one of them.

    Example:
        >>> check_uint64(as_tensor(np.array([2**63], np.uint64)), "x")
        Traceback (most recent call last):
        ...
        ValueError: x holds 9223372036854775808, above the largest whole number that is supported, 2**63 - 1...
    """
    if x.dtype is torch.uint64:
        beyond = x.view(torch.int64)
        beyond = beyond[beyond < 0]
        if len(beyond):
            raise ValueError(
                f"{name} holds {int(beyond[0]) + 2**64}, above the largest whole number that is supported, 2**63 - 1: "
                f"give such numbers as float64, rounded, or as labels"
            )
    return x


def is_mapped(x: Any) -> TypeGuard[np.memmap]:
    """Whether an array is a memory-mapped file, rather than the result of a computation with one."""
    return isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None


class LazyRows(Dataset):
    """Base class: rows ``(N, *E)`` that become tensors when needed, a batch at a time.

    An index gives one row; a slice or a tensor of indices gives a view that has read nothing yet. Subclasses define
    :meth:`_read`.
    """

    _indices: Tensor
    _row: tuple[int, ...]

    def _read(self, places: np.ndarray) -> Tensor:
        """The rows at these indices of the whole, in this order."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def shape(self) -> torch.Size:
        """``(N, *E)``."""
        return torch.Size((len(self), *self._row))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensors that are read."""
        return self.__getitems__([]).dtype

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        if isinstance(index, int):
            return self.__getitems__([index])[0]
        view: Self = object.__new__(type(self))
        view.__dict__ |= self.__dict__ | {"_indices": self._indices[index]}
        return view

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        return self._read(self._indices[torch.as_tensor(indices, dtype=torch.long)].numpy())

    def read(self) -> Tensor:
        """All rows, in memory."""
        return self.__getitems__(range(len(self)))

    def chunks(self) -> Iterator[Tensor]:
        """All rows in their order, a few megabytes at a time."""
        for rows in torch.arange(len(self)).split(rows_at_once(self.shape)):
            yield self.__getitems__(rows.tolist())


class FileRows(LazyRows):
    """Rows of a memory-mapped array, read from its file because mapped pages would count as this process's memory.

    Args:
        array: The result of ``np.load(path, mmap_mode="r")``, or a slice of it.
        indices: The rows to use, in this order; by default all.

    Raises:
        ValueError: if the array is not stored row by row, or does not hold numbers; on reading, if the file can no
            longer be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/x.npy", np.arange(12).reshape(6, 2))
        ...     rows = FileRows(np.load(f"{folder}/x.npy", mmap_mode="r"))
        ...     rows[torch.tensor([5, 0, 3])][1:].read()
        tensor([[0, 1],
                [6, 7]])
    """

    def __init__(self, array: np.memmap, indices: Tensor | None = None) -> None:
        if array.ndim == 0 or not array.flags.c_contiguous:
            raise ValueError("a memory-mapped array must be stored row by row: save it again with np.save")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"a memory-mapped array of {array.dtype} is not rows of numbers: save it as float32")
        root: Any = array
        while isinstance(root.base, np.memmap):
            root = root.base
        # A slice keeps the offset of the whole array, so its own offset is computed from the addresses.
        self._offset = root.offset + array.ctypes.data - root.ctypes.data
        self._path, self._type, self._row = str(root.filename), array.dtype, array.shape[1:]
        self._indices = torch.arange(len(array)) if indices is None else indices

    def _read(self, places: np.ndarray) -> Tensor:
        out = np.empty((len(places), *self._row), self._type)
        try:
            with open(self._path, "rb", buffering=0) as file:
                for place in np.argsort(places):
                    row = out[place : place + 1]
                    file.seek(self._offset + int(places[place]) * row.nbytes)
                    if row.nbytes and file.readinto(row.data.cast("B")) != row.nbytes:
                        raise ValueError(
                            f"{self._path} ends before its row {int(places[place])}: it has been truncated"
                        )
        except OSError as error:
            raise ValueError(f"{self._path} can no longer be read: {error.strerror or error}") from error
        return check_uint64(as_tensor(out), self._path)


class SparseRows(LazyRows):
    """Rows of a SciPy sparse matrix or array, made dense a batch at a time.

    Args:
        matrix: ``(N, D)``, in any of SciPy's formats.
        name: The data's name in messages.

    Raises:
        ValueError: if it is not a matrix of real numbers, or its indices are out of bounds.

    Example:
        >>> import scipy.sparse
        >>> SparseRows(scipy.sparse.eye_array(3))[torch.tensor([2, 0])].read()
        tensor([[0., 0., 1.],
                [1., 0., 0.]], dtype=torch.float64)
    """

    def __init__(self, matrix: Any, name: str = "x") -> None:
        if len(matrix.shape) != 2 or matrix.dtype.kind not in "biuf" or matrix.dtype.itemsize > 8:
            raise ValueError(
                f"{name} is a sparse array of {matrix.dtype} of shape {tuple(matrix.shape)}; expected rows of numbers, "
                f"(N, D): convert it with astype and reshape"
            )
        try:
            if hasattr(matrix, "check_format"):
                matrix.check_format(full_check=True)  # otherwise indices out of bounds would be written to
            self._matrix = matrix.tocsr()
        except ValueError as error:
            raise ValueError(f"{name} is a damaged sparse array ({error}): build it again") from error
        self._row, self._name = (int(matrix.shape[1]),), name
        self._indices = torch.arange(matrix.shape[0])

    def _read(self, places: np.ndarray) -> Tensor:
        return check_uint64(as_tensor(self._matrix[places].toarray()), self._name)


def rows_at_once(shape: Sequence[int]) -> int:
    """The number of rows in a chunk of data of this shape."""
    return max(1, CHUNK // max(1, math.prod(shape[1:])))


def in_chunks(x: Any) -> Iterator[Tensor]:
    """Rows a few megabytes at a time, from a tensor, :class:`LazyRows`, or an iterable of chunks."""
    if isinstance(x, Tensor):
        return iter(x.split(rows_at_once(x.shape)) if x.dim() else (x,))
    return x.chunks() if isinstance(x, LazyRows) else iter(x)
