"""Arrays of rows: NumPy's as tensors, and rows that stay in their file until they are asked for."""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["CHUNK", "FileRows", "as_tensor", "in_chunks", "is_mapped"]

CHUNK = 2**20  # elements looked at together, so that memory stays flat: 4 MiB in float32


def as_tensor(x: Any) -> Tensor:
    """A tensor of whatever holds numbers: without a copy where possible, and without a warning of read-only memory."""
    if isinstance(x, FileRows):
        x = x.read()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.as_tensor(x)


def is_mapped(x: Any) -> TypeGuard[np.memmap]:
    """Whether an array is a file mapped into memory, and not the result of a computation with one."""
    return isinstance(x, np.memmap) and getattr(x, "_mmap", None) is not None


class FileRows(Dataset):
    """Rows of a memory-mapped array, read from its file: mapped pages would count as this process's memory.

    Args:
        array: What ``np.load(path, mmap_mode="r")`` returned, or a slice of it.
        indices: The rows meant, in their order; by default all.

    With an index it gives one row, with a slice or a tensor of indices a view that has read nothing yet.

    Raises:
        ValueError: if the array does not lie row by row in its file, or does not hold numbers.

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
            raise ValueError("a memory-mapped array must lie row by row in its file: save it again with np.save")
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise ValueError(f"a memory-mapped array of {array.dtype} is not rows of numbers: save it as float32")
        root: Any = array
        while isinstance(root.base, np.memmap):
            root = root.base
        # A slice keeps the offset of the whole array, so where it begins is read off the addresses.
        self._offset = root.offset + array.ctypes.data - root.ctypes.data
        self._path, self._type, self._row = str(root.filename), array.dtype, array.shape[1:]
        self._indices = torch.arange(len(array)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def shape(self) -> torch.Size:
        """``(N, *E)``."""
        return torch.Size((len(self), *self._row))

    @property
    def dtype(self) -> torch.dtype:
        """The type of the tensors that it reads."""
        return torch.from_numpy(np.empty(0, self._type.newbyteorder("="))).dtype

    def __getitem__(self, index: int | slice | Tensor) -> Any:
        if isinstance(index, int):
            return self.__getitems__([index])[0]
        view = object.__new__(type(self))
        view.__dict__ |= self.__dict__ | {"_indices": self._indices[index]}
        return view

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        places = self._indices[torch.as_tensor(indices, dtype=torch.long)].numpy()
        out = np.empty((len(places), *self._row), self._type)
        with open(self._path, "rb", buffering=0) as file:
            for place in np.argsort(places):
                row = out[place : place + 1]
                file.seek(self._offset + int(places[place]) * row.nbytes)
                if row.nbytes and file.readinto(row.data.cast("B")) != row.nbytes:
                    raise ValueError(f"{self._path} ends before its row {int(places[place])}: it has been cut off")
        return torch.from_numpy(out.astype(self._type.newbyteorder("="), copy=False))

    def read(self) -> Tensor:
        """All rows, in memory."""
        return self.__getitems__(range(len(self)))

    def chunks(self) -> Iterator[Tensor]:
        """All rows in their order, a few megabytes at a time."""
        for rows in torch.arange(len(self)).split(rows_at_once(self.shape)):
            yield self.__getitems__(rows.tolist())


def rows_at_once(shape: Sequence[int]) -> int:
    """How many rows of data of this shape make a chunk."""
    return max(1, CHUNK // max(1, math.prod(shape[1:])))


def in_chunks(x: Any) -> Iterator[Tensor]:
    """Rows a few megabytes at a time: of a tensor, of :class:`FileRows`, or of chunks as they come."""
    if isinstance(x, Tensor):
        return iter(x.split(rows_at_once(x.shape)) if x.dim() else (x,))
    return x.chunks() if isinstance(x, FileRows) else iter(x)
