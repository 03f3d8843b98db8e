"""Precision and reproducibility of matrix products and convolutions during training."""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["Precision", "bfloat16_products", "has_bfloat16", "in_force", "repeatable"]

Precision = Literal["full", "tf32", "bfloat16"]

_PRODUCTS = {
    F.linear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.addmm,
    torch.baddbmm,
    torch.einsum,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.__rmatmul__,
    Tensor.mm,
    Tensor.bmm,
}


class _Bfloat16Products(TorchFunctionMode):
    """Computes matrix products and convolutions of float32 in bfloat16 and returns float32; nothing else changes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            out = func(*args, **(kwargs or {}))
        return out.float() if out.dtype == torch.bfloat16 else out


def bfloat16_products(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """A context in which products are computed in bfloat16, if that is the precision."""
    return _Bfloat16Products() if precision == "bfloat16" else contextlib.nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU without such instructions is many times slower with it."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


_ALL: Any = torch.backends
_CUDNN: Any = torch.backends.cudnn
_CUBLAS: Any = torch.backends.cuda.matmul
_ONEDNN: Any = torch.backends.mkldnn
_ON_GPU = (_CUBLAS, _CUDNN.conv, _CUDNN.rnn)
_ON_CPU = (_ONEDNN.matmul, _ONEDNN.conv, _ONEDNN.rnn)
_PARENTS: dict[Any, Any] = {_CUDNN: _ALL} | dict.fromkeys(_ON_GPU, _CUDNN) | dict.fromkeys(_ON_CPU, _ALL)


@contextlib.contextmanager
def in_force(precision: Precision) -> Iterator[None]:
    """Sets how torch multiplies float32 numbers: in full precision, or on a GPU in TF32.

    This covers products, convolutions and recurrent networks. It must also be active when a step is compiled or
    captured, as kernels are chosen then. The caller's settings are restored.

    Torch has each setting under an old and a new name, and refuses to read the old one if the two disagree. So both are
    set, and each is restored separately.
    """
    newer = {setting: _own(setting) for setting in _PARENTS if setting is not _CUDNN}
    older = _older_settings()
    try:
        _CUBLAS.allow_tf32 = _CUDNN.allow_tf32 = precision == "tf32"
        for setting in _ON_GPU:
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        for setting in _ON_CPU:
            setting.fp32_precision = "ieee"
        yield
    finally:
        _put_back(newer, older)


def _own(setting: Any) -> str:
    """The value of a setting, by its new name: ``"none"`` if it inherits that of its library or of torch."""
    parent, now = _PARENTS[setting], setting.fp32_precision
    of_parent = _own(parent) if parent in _PARENTS else parent.fp32_precision
    goes_by = now == parent.fp32_precision  # the default TF32 in convolutions inherits nothing
    seen = []
    for value in ("ieee", "tf32"):
        parent.fp32_precision = value
        seen.append(setting.fp32_precision)
    parent.fp32_precision = of_parent
    return "none" if goes_by and seen == ["ieee", "tf32"] else now


def _older_settings() -> tuple[str, bool]:
    """Precision of products and TF32 in cuDNN, by their old names, which must not conflict with the new ones.

    Changes the new settings.
    """
    for setting in (*_ON_GPU, *_ON_CPU):
        setting.fp32_precision = "ieee"
    products = torch.get_float32_matmul_precision()
    try:
        return products, _CUDNN.allow_tf32
    except RuntimeError:  # it is set and conflicts with the new ones
        return products, True


def _put_back(newer: dict[Any, str], older: tuple[str, bool]) -> None:
    torch.set_float32_matmul_precision(older[0])
    _CUDNN.allow_tf32 = older[1]
    for setting, value in newer.items():
        setting.fp32_precision = value


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Makes convolutions on a GPU reproducible to the bit.

    By default cuDNN may choose its algorithms by timing them, and some sum in the order in which threads finish.
    """
    before = _CUDNN.deterministic, _CUDNN.benchmark
    try:
        _CUDNN.deterministic, _CUDNN.benchmark = True, False
        yield
    finally:
        _CUDNN.deterministic, _CUDNN.benchmark = before
