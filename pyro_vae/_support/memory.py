"""How much memory there is to be had."""

import contextlib
import os
from pathlib import Path

__all__ = ["available_memory", "in_gib"]


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
    return f"{num_bytes / 2**30:.3g} GiB"
