"""The hardware and versions that numbers were made with."""

import contextlib
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["machine", "versions"]


def machine(device: str) -> dict[str, object]:
    """The names of the hardware."""
    found: dict[str, object] = {"cpu": cpu_model(), "cores": usable_cores(), "system": platform.system()}
    found["vectors"] = torch.backends.cpu.get_cpu_capability()
    return found | ({"gpu": torch.cuda.get_device_name()} if device == "cuda" else {})


def usable_cores() -> int | None:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def cpu_model() -> str:
    """The processor's name."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the measured libraries."""
    found = {"python": platform.python_version()}
    for name in ("torch", "pyro-ppl", "jax", "numpyro"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
