"""Everything that depends on the kind of device: supported devices, random states, and capture of steps."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "captures",
    "current",
    "forked_random_state",
    "get_random_state",
    "memory_for_draws",
    "resolve_device",
    "set_random_state",
]

_ACCELERATORS = ("cuda", "xpu")  # "auto" takes the first available one
_USE = "use auto, cpu, cuda or xpu"


def resolve_device(device: str | torch.device) -> torch.device:
    """The device with this name; ``"auto"`` is CUDA if available, else XPU, else the CPU.

    Apple's MPS is not supported: it lacks float64, which transforms need for the digits of data and for sums. An XPU
    without float64 is not supported either.

    Raises:
        ValueError: if the device is not available, or lacks float64.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device == "auto":
        found = (kind for kind in _ACCELERATORS if torch.get_device_module(kind).is_available())
        usable = (torch.device(kind) for kind in found if _has_float64(torch.device(kind)))
        return next(usable, torch.device("cpu"))
    try:
        device = torch.device(device)
        if device.type in _ACCELERATORS:
            _check_is_there(device)
        elif device.type != "mps":  # mps is refused below; without one, its error fills a page
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use device {str(device)!r} ({reason}): {_USE}") from error
    if device.type == "meta":
        raise ValueError(f"cannot use device 'meta', which holds no numbers: {_USE}")
    if not _has_float64(device):
        raise ValueError(
            f"cannot use device {str(device)!r}, which lacks float64, needed to keep the digits of data: {_USE}"
        )
    return device


def _check_is_there(device: torch.device) -> None:
    """Refuses an unavailable accelerator, without opening it, because each of several processes has its own."""
    module = torch.get_device_module(device.type)
    found = module.device_count() if module.is_available() else 0
    if (device.index or 0) >= found:
        raise RuntimeError(f"{found or 'none'} of that kind {'is' if found < 2 else 'are'} available")


def _has_float64(device: torch.device) -> bool:
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def captures(device: torch.device) -> bool:
    """Whether steps can be captured in a CUDA graph on this device."""
    return device.type == "cuda"


def memory_for_draws(device: torch.device) -> int:
    """The number of bytes for draws at a time: 64 MiB on a CPU, whose caches are small; a 64th of a GPU's memory.

    On a GPU many draws take no longer than few. The share is of total memory, not of free memory, so a seed always
    gives the same draws.
    """
    if device.type not in _ACCELERATORS:
        return 2**26
    return int(torch.get_device_module(device.type).get_device_properties(device).total_memory) // 64


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes the device torch's current one of its kind, for streams and graphs, and restores the previous one."""
    if device.type not in _ACCELERATORS or device.index is None:
        return contextlib.nullcontext()
    module = torch.get_device_module(device.type)
    return contextlib.nullcontext() if device.index == module.current_device() else module.device(device)


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators on the CPU and on ``device``, by the kind of device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type in _ACCELERATORS:
        state[device.type] = torch.get_device_module(device.type).get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restores the state that :func:`get_random_state` returned, on this or another kind of device."""
    torch.set_rng_state(state["cpu"])
    if device.type in _ACCELERATORS and device.type in state:
        torch.get_device_module(device.type).set_rng_state(state[device.type], device)


@contextlib.contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Restores torch's random state, on the CPU and on ``device``, on exit."""
    before = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)
