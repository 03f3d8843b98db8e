"""How much memory there is to be had."""

import contextlib
import os
from pathlib import Path

__all__ = ["available_memory", "check_memory", "in_gib"]


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
    if free is not None and needed > free:
        raise ValueError(f"{what} take {in_gib(needed)}, and {in_gib(free)} of memory are free: {instead}")


def available_memory() -> int | None:
    """Bytes that this process could still take, as far as the system says; None where it does not."""
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))))
    with contextlib.suppress(OSError, ValueError):  # a container's limit; "max" is no number
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    if not found:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def in_gib(num_bytes: int) -> str:
    """Bytes in words.

    Example:
        >>> in_gib(3 * 2**29)
        '1.5 GiB'
    """
    size = num_bytes / 2**30
    return f"{size:,.0f} GiB" if size >= 10 else f"{size:.3g} GiB"
