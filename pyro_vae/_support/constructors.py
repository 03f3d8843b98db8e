"""Creates tensors on the intended device, without repeated copies of constants from the host."""

import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["tensors_on"]

_FROM_DATA = {torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor}
_NUMBERS = {bool, int, float, complex}


def tensors_on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes functions that create tensors use this device by default.

    Numbers become tensors by a kernel that fills them. Lists and arrays of numbers are copied to the device only the
    first time: otherwise each step would wait for a copy from the host, which cannot be part of a CUDA graph. On the
    CPU this does nothing.

    Example:
        >>> with tensors_on(torch.device("meta")):
        ...     torch.tensor([1.0, 2.0]).device, torch.zeros(3).device, torch.ones(2, device="cpu").device
        (device(type='meta'), device(type='meta'), device(type='cpu'))
    """
    return nullcontext() if device.type == "cpu" else _MadeOn(device)


class _MadeOn(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _constructors() and kwargs.get("device") is None and kwargs.get("generator") is None:
            kwargs = {**kwargs, "device": self.device}
        if func in _FROM_DATA:
            return _from_data(func, *args, **kwargs)
        return func(*args, **kwargs)


@functools.cache
def _constructors() -> frozenset[Any]:
    return frozenset(_device_constructors())


def _from_data(func: Any, *args: Any, device: Any = None, dtype: Any = None, **others: Any) -> Tensor:
    """The result of :func:`torch.tensor` and similar functions, created on the device if the data are plain numbers."""
    *tensors, data = [*args, *([others.pop("data")] if "data" in others else [])]
    if func is Tensor.new_tensor:
        device, dtype = device or tensors[0].device, dtype or tensors[0].dtype
    device = torch.device(device)
    if isinstance(data, Tensor) or device.type == "cpu":
        return func(*tensors, data, device=device, dtype=dtype, **others)
    grad = others.get("requires_grad", False)
    if type(data) in _NUMBERS:
        return torch.full((), data, device=device, dtype=dtype, requires_grad=grad)
    with _disable_current_modes():  # a trace of the program sees an existing tensor
        made = torch.tensor(data, dtype=dtype, device="cpu").contiguous()
        there = _constant(made.reshape(-1).view(torch.uint8).numpy().tobytes(), made.dtype, made.shape, device)
    return there.clone().requires_grad_(grad)


@functools.lru_cache(maxsize=256)
def _constant(content: bytes, dtype: torch.dtype, shape: torch.Size, device: torch.device) -> Tensor:
    made = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return made.reshape(shape).to(device)
