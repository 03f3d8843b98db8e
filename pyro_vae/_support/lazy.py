"""Names that a package imports on first use (PEP 562)."""

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, names: Mapping[str, Iterable[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package that imports its modules on first use of one of their names.

    Args:
        package: Its full name, ``__name__``.
        names: The names that each of its modules provides.

    Example:
        >>> find, _ = lazily("pyro_vae", {"inference.objectives": ["Elbo"]})
        >>> find("Elbo").__name__
        'Elbo'
        >>> find("Elba")
        Traceback (most recent call last):
        ...
        AttributeError: module 'pyro_vae' has no attribute 'Elba'
    """
    module_of = {name: module for module, given in names.items() for name in given}

    def __getattr__(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(sys.modules[package].__all__)
