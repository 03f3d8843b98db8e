"""How precisely matrix products and convolutions are computed while a run trains, and that they come out the same."""

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
    """Takes matrix products and convolutions of float32 in bfloat16 and gives float32, as all else stays."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _PRODUCTS:
            return func(*args, **(kwargs or {}))
        device = next((a.device.type for a in args if isinstance(a, Tensor)), "cpu")
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            out = func(*args, **(kwargs or {}))
        return out.float() if out.dtype == torch.bfloat16 else out


def bfloat16_products(precision: Precision) -> contextlib.AbstractContextManager[Any]:
    """Programs that run inside have their products in bfloat16, if that is the precision."""
    return _Bfloat16Products() if precision == "bfloat16" else contextlib.nullcontext()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16; a CPU without such instructions takes many times as long for it."""
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
    """How torch multiplies numbers of float32 inside: as they are, or on a GPU as TF32.

    It holds for products, convolutions and recurrent networks; and for the kernels that are chosen when a step is
    compiled or captured, for which it is not enough to run programs inside. What the caller had set is put back.

    Torch has every setting by an older name and by a newer one, and refuses to read an older one that says something
    else. So both are set, and each is put back by itself.
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
    """What a setting says itself, by its newer name: ``"none"`` where it goes by that of its library or of torch."""
    parent, now = _PARENTS[setting], setting.fp32_precision
    of_parent = _own(parent) if parent in _PARENTS else parent.fp32_precision
    goes_by = now == parent.fp32_precision  # TF32 in convolutions, which nobody has asked for, goes by nothing
    seen = []
    for value in ("ieee", "tf32"):
        parent.fp32_precision = value
        seen.append(setting.fp32_precision)
    parent.fp32_precision = of_parent
    return "none" if goes_by and seen == ["ieee", "tf32"] else now


def _older_settings() -> tuple[str, bool]:
    """Precision of products, TF32 in cuDNN, by their older names: the newer ones must say nothing against them.

    Changes the newer ones.
    """
    for setting in (*_ON_GPU, *_ON_CPU):
        setting.fp32_precision = "ieee"
    products = torch.get_float32_matmul_precision()
    try:
        return products, _CUDNN.allow_tf32
    except RuntimeError:  # it is set, against what the newer ones say
        return products, True


def _put_back(newer: dict[Any, str], older: tuple[str, bool]) -> None:
    torch.set_float32_matmul_precision(older[0])
    _CUDNN.allow_tf32 = older[1]
    for setting, value in newer.items():
        setting.fp32_precision = value


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions on a GPU come to the same bits at every run inside.

    cuDNN would choose among its algorithms by a race, and some add up in the order in which threads arrive.
    """
    before = _CUDNN.deterministic, _CUDNN.benchmark
    try:
        _CUDNN.deterministic, _CUDNN.benchmark = True, False
        yield
    finally:
        _CUDNN.deterministic, _CUDNN.benchmark = before
