"""What depends on the kind of device: which are taken, their random numbers, and whether steps are captured there."""

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

_ACCELERATORS = ("cuda", "xpu")  # that "auto" takes, the first that is there
_USE = "use auto, cpu, cuda or xpu"


def resolve_device(device: str | torch.device) -> torch.device:
    """The device that a name stands for; ``"auto"`` is CUDA where there is one, else XPU, else the CPU.

    Apple's MPS is not taken: it has no float64, in which transforms keep the digits of data and sums are added up.
    Nor is an XPU without it.

    Raises:
        ValueError: if there is no such device here, or it lacks float64.

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
        elif device.type != "mps":  # which is refused below, and says a page where there is none
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"cannot use device {str(device)!r} ({reason}); {_USE}") from error
    if device.type == "meta":
        raise ValueError(f"cannot use device 'meta', which holds no numbers; {_USE}")
    if not _has_float64(device):
        raise ValueError(
            f"cannot use device {str(device)!r}, which lacks float64, in which data keep their digits; {_USE}"
        )
    return device


def _check_is_there(device: torch.device) -> None:
    """Refuses an accelerator that is not there; asks without opening it, for each process of several has its own."""
    module = torch.get_device_module(device.type)
    found = module.device_count() if module.is_available() else 0
    if (device.index or 0) >= found:
        raise RuntimeError(f"{found or 'none'} of that kind {'is' if found < 2 else 'are'} here")


def _has_float64(device: torch.device) -> bool:
    if device.type == "xpu":
        return bool(torch.xpu.get_device_properties(device).has_fp64)
    return device.type != "mps"


def captures(device: torch.device) -> bool:
    """Whether steps can be captured there, in a CUDA graph."""
    return device.type == "cuda"


def memory_for_draws(device: torch.device) -> int:
    """How many bytes draws may take at a time: 64 MiB on a CPU, whose caches are small; a 64th of a GPU's memory.

    On a GPU many draws take no longer than few. It is a share of all its memory, and not of what happens to be free, so
    that a seed gives the same draws every time.
    """
    if device.type not in _ACCELERATORS:
        return 2**26
    return int(torch.get_device_module(device.type).get_device_properties(device).total_memory) // 64


def current(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Makes it the one of its kind that torch takes where none is named, for streams and graphs, and puts that back."""
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
    """Puts back what :func:`get_random_state` returned, here or on another kind of device."""
    torch.set_rng_state(state["cpu"])
    if device.type in _ACCELERATORS and device.type in state:
        torch.get_device_module(device.type).set_rng_state(state[device.type], device)


@contextlib.contextmanager
def forked_random_state(device: torch.device) -> Iterator[None]:
    """Puts torch's random state, on the CPU and on ``device``, back to what it was."""
    before = get_random_state(device)
    try:
        yield
    finally:
        set_random_state(before, device)
