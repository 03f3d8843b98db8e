"""Known libraries: their code is not part of a user's program, and holds no state that a program depends on."""

import functools
import importlib.util
import os
import sysconfig

__all__ = ["LIBRARIES", "is_library"]

LIBRARIES = frozenset(
    {
        "_pytest",
        "einops",
        "functorch",
        "jax",
        "lightning",
        "matplotlib",
        "numpy",
        "numpyro",
        "opt_einsum",
        "pandas",
        "PIL",
        "pluggy",
        "pyro",
        "pyro_vae",
        "pyroapi",
        "pytest",
        "pytorch_lightning",
        "safetensors",
        "scipy",
        "sklearn",
        "sympy",
        "torch",
        "torchvision",
        "tqdm",
        "typing_extensions",
        "zuko",
    }
)


@functools.cache
def is_library(file: str) -> bool:
    """Whether code from this file belongs to Python or a known library, rather than to a user's program."""
    if file.startswith(("<frozen", "<built-in")):
        return True
    if file.startswith(_known_folders()):
        return True
    return file.startswith(_STANDARD) and "site-packages" not in file and "dist-packages" not in file


@functools.cache
def _known_folders() -> tuple[str, ...]:
    specs = [importlib.util.find_spec(name) for name in sorted(LIBRARIES)]
    return tuple(
        folder + os.sep
        for spec in specs
        if spec is not None
        for folder in spec.submodule_search_locations or [str(spec.origin).removesuffix(".py")]
    )


_PATHS = [path for name in ("stdlib", "platstdlib") if (path := sysconfig.get_path(name))]
_STANDARD = tuple({path + os.sep for given in _PATHS for path in (given, os.path.realpath(given))})
