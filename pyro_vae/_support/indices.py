"""Detects indices that are out of bounds before a GPU uses them."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["checked_indices"]

aten = torch.ops.aten


def checked_indices(device: torch.device) -> AbstractContextManager[Any]:
    """Raises ``IndexError`` for indices out of bounds on a GPU too, at the cost of a wait at every indexing.

    Without this check the GPU fails for good: every later call of the process fails too. On the CPU this does nothing.

    Example:
        >>> with checked_indices(torch.device("cpu")):
        ...     torch.arange(3)[torch.tensor([0, 2])]
        tensor([0, 2])
    """
    return nullcontext() if device.type == "cpu" else CheckedIndices()


class CheckedIndices(TorchDispatchMode):
    """Checks the indices of every operation that takes them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of = _INDICES.get(getattr(func, "overloadpacket", None))
        if of is not None:
            with contextlib.suppress(TypeError):  # given by name: left to the device
                for index, size, from_end in of(*args):
                    _check(index, size, from_end=from_end)
        return func(*args, **(kwargs or {}))


def _check(index: Tensor, size: int, *, from_end: bool) -> None:
    if not index.numel() or index.dtype in (torch.bool, torch.uint8):
        return
    low, high = (int(end) for end in torch.aminmax(index))
    if low < (-size if from_end else 0) or high >= size:
        raise IndexError(f"index {high if high >= size else low} is out of bounds for dimension of size {size}")


_Indices = Iterator[tuple[Tensor, int, bool]]


def _in_brackets(x: Tensor, indices: Any, *_: Any) -> _Indices:
    dim = 0
    for index in indices:
        if index is not None:
            yield index, x.shape[dim], True
        dim += index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1


def _along(x: Tensor, dim: int, index: Tensor, *_: Any) -> _Indices:
    yield index, x.shape[dim] if x.dim() else 1, False


def _in_all(x: Tensor, index: Tensor, *_: Any) -> _Indices:
    yield index, x.numel(), True


def _in_rows(weight: Tensor, index: Tensor, *_: Any) -> _Indices:
    yield index, len(weight), False


_INDICES: dict[Any, Callable[..., _Indices]] = {
    **dict.fromkeys((aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_), _in_brackets),
    **dict.fromkeys(
        (aten.index_select, aten.gather, aten.scatter, aten.scatter_, aten.scatter_add, aten.scatter_add_), _along
    ),
    **dict.fromkeys((aten.take, aten.put, aten.put_), _in_all),
    aten.embedding: _in_rows,
}
