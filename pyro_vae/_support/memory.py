"""How much memory is available."""

import contextlib
import functools
from pathlib import Path

import psutil
import torch

__all__ = ["available_memory", "check_memory", "in_gib", "keep_freed_memory"]

_CONTAINER = Path("/sys/fs/cgroup")
_LARGEST_KEPT = 31 * 2**20  # bytes; glibc always maps and returns pieces larger than 32 MiB


def check_memory(needed: int, what: str, instead: str) -> None:
    """Refuses a computation that does not fit in memory, before it starts.

    Args:
        needed: Bytes.
        what: The subject that takes them, in the plural.
        instead: What to do.

    Raises:
        ValueError: with both sizes.

    Example:
        >>> check_memory(2**80, "a million draws", "draw fewer")
        Traceback (most recent call last):
        ...
        ValueError: a million draws take ... GiB, but ... GiB of memory are free: draw fewer
    """
    free = available_memory()
    if needed > free:
        raise ValueError(f"{what} take {in_gib(needed)}, but {in_gib(free)} of memory are free: {instead}")


def available_memory() -> int:
    """Bytes that this process can still allocate: on the machine, or in its container if that has less."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # there is no container, or its limit is "max"
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


@functools.cache
def keep_freed_memory() -> None:
    """Makes the C library keep up to 62 MiB of memory freed by tensors of some megabytes, for the next ones.

    By default glibc returns such memory to the system each time, which then has to fill it with zeros, page by page: a
    quarter of the time of many draws. It keeps twice the size of the largest piece, up to 32 MiB, that was ever freed
    (``mallopt(3)``, on the dynamic threshold). So one piece is allocated, never touched, and freed.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


def in_gib(num_bytes: int) -> str:
    """Bytes in words.

    Example:
        >>> in_gib(3 * 2**29)
        '1.5 GiB'
    """
    size = num_bytes / 2**30
    return f"{size:,.0f} GiB" if size >= 10 else f"{size:.3g} GiB"
