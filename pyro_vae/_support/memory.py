"""How much memory there is to be had."""

import contextlib
from pathlib import Path

import psutil

__all__ = ["available_memory", "check_memory", "in_gib"]

_CONTAINER = Path("/sys/fs/cgroup")


def check_memory(needed: int, what: str, instead: str) -> None:
    """Refuses what memory has no room for, before it is asked for.

    Args:
        needed: Bytes.
        what: What takes them, in the plural.
        instead: What to do.

    Raises:
        ValueError: with both sizes.

    Example:
        >>> check_memory(2**80, "a million draws", "draw fewer")
        Traceback (most recent call last):
        ...
        ValueError: a million draws take ... GiB, and ... GiB of memory are free: draw fewer
    """
    free = available_memory()
    if needed > free:
        raise ValueError(f"{what} take {in_gib(needed)}, and {in_gib(free)} of memory are free: {instead}")


def available_memory() -> int:
    """Bytes that this process could still take: of the machine, or of its container where that has less."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # there is no container, or its limit is "max"
        limit, used = (int((_CONTAINER / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free


def in_gib(num_bytes: int) -> str:
    """Bytes in words.

    Example:
        >>> in_gib(3 * 2**29)
        '1.5 GiB'
    """
    size = num_bytes / 2**30
    return f"{size:,.0f} GiB" if size >= 10 else f"{size:.3g} GiB"
