"""Faster use of Inductor: compiled graphs are cached, and each graph is one C++ file.

By default it tries the compiler on each instruction set, precompiles a large header, builds a library for every kernel,
and bypasses its cache for graphs that do not come from ``torch.compile``: two thirds of the time to the first compiled
step. Importing this module imports Inductor, which takes more than a second.
"""

import contextlib
import functools
import gc
import hashlib
import os
import platform
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import sympy
import torch
import torch._inductor
from platformdirs import user_cache_path
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._inductor import async_compile, codecache, config, cpu_vec_isa, sizevars
from torch._inductor.codecache import CppPythonBindingsCodeCache
from torch._subclasses import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["cache_folder", "compile_quickly", "prepare"]


def prepare() -> None:
    """Starts computing, in the background, what every graph needs: digests of the libraries' sources."""
    for name in ("torch_key", "triton_key"):
        getattr(getattr(codecache, name, None), "prefetch", lambda: None)()  # not in every version of torch


def compile_quickly(graph: GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Compiles a graph such that it draws the same random numbers as before."""
    # Some versions would also reorder draws, which would swap their random numbers.
    in_order = {name: False for name in ("reorder_for_locality", "reorder_for_peak_memory") if hasattr(config, name)}
    settings = in_order | {
        "fallback_random": True,
        "cpp.threads": torch.get_num_threads(),
        # On a CPU, arithmetic between convolutions takes three times as long in layouts that are chosen for these.
        "layout_optimization": inputs[0].device.type != "cpu",
        # Takes as long as two graphs; for dozens of them, as in tests, set Inductor's own variable.
        "cpp_cache_precompile_headers": os.environ.get("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS") == "1",
    }
    graph = _reshaping(graph)
    with torch.no_grad(), config.patch(settings), _found_again(), _without_garbage_collection():
        try:
            with _one_library(), _known_instructions(), _expanded_indices():
                return torch._inductor.compile(graph, list(inputs))
        except Exception:  # another compiler or version of torch: use Inductor's defaults
            return torch._inductor.compile(graph, list(inputs))


def _reshaping(graph: GraphModule) -> GraphModule:
    """A copy of the graph in which views may become copies.

    The compiler may choose other memory layouts than those at tracing.
    """
    copy = GraphModule(graph, Graph())
    copy.graph.output(copy.graph.graph_copy(graph.graph, {}))
    for node in copy.graph.nodes:
        if node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default
    copy.recompile()
    return copy


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Turns off garbage collection, which takes an eighth of the compile time and finds nothing."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# Its cache


@contextlib.contextmanager
def _found_again() -> Iterator[None]:
    """Makes Inductor cache its graphs in :func:`cache_folder`."""
    name, before = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ[name] = str(cache_folder())
    try:
        # It only caches with an environment for the guards of a graph's shapes.
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def cache_folder() -> Path:
    """The folder of compiled graphs: in the user's cache folder, or in ``TORCHINDUCTOR_CACHE_DIR``.

    It is created if missing, for this user only, as compiled code is trusted. Each kind of processor has its own
    folder, as the code is specific and machines may share a home. If no such folder is possible, a temporary one is
    used and deleted when the process ends.
    """
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    root = Path(given) if given else user_cache_path("pyro_vae") / "compiled"
    folder = root / f"torch-{torch.__version__}-{_processor()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.R_OK | os.W_OK | os.X_OK) and not _is_open_to_others(folder):
            return folder
    except OSError:
        pass
    return Path(_passing_folder().name)


def _is_open_to_others(folder: Path) -> bool:
    """Whether another user can put code into a folder."""
    found = folder.stat()
    return hasattr(os, "getuid") and (found.st_uid != os.getuid() or bool(found.st_mode & 0o022))


@functools.cache
def _passing_folder() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="pyro_vae-compiled-")


@functools.cache
def _processor() -> str:
    """A name for the kind of processor and its features that PyTorch uses."""
    features = platform.processor()
    with contextlib.suppress(OSError):  # only on Linux
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}-{digest}".lower().replace(" ", "-")


# Its C++


@contextlib.contextmanager
def _one_library() -> Iterator[None]:
    """Makes Inductor compile all kernels of a graph together."""
    with _replaced(async_compile, "AsyncCompile", _TogetherCompile):
        yield


@contextlib.contextmanager
def _known_instructions() -> Iterator[None]:
    """Makes Inductor use the same instruction set as PyTorch, instead of trying the compiler."""
    kind = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if kind is None:
        yield
    else:
        with _replaced(cpu_vec_isa, "valid_vec_isa_list", lambda: [kind()]):
            yield


class _ExpandingSympy:
    """SymPy with expansion instead of simplification."""

    simplify = staticmethod(sympy.expand)

    def __getattr__(self, name: str) -> Any:
        return getattr(sympy, name)


@contextlib.contextmanager
def _expanded_indices() -> Iterator[None]:
    """Makes Inductor expand index expressions to find strides, instead of simplifying them.

    An index is a sum of multiples of counters, their quotients and remainders, so terms cancel after expansion.
    Simplifying takes more than half of the time to compile convolutions and gives the same code.
    """
    with _replaced(sizevars, "sympy", _ExpandingSympy()):
        yield


@contextlib.contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


class _Avx2(cpu_vec_isa.VecAVX2):
    __hash__ = cpu_vec_isa.VecISA.__hash__

    def __bool__(self) -> bool:  # Inductor's own tries the compiler
        return True


class _Avx512(cpu_vec_isa.VecAVX512):
    __hash__ = cpu_vec_isa.VecISA.__hash__

    def __bool__(self) -> bool:
        return True


_INSTRUCTIONS = {"AVX2": _Avx2, "AVX512": _Avx512}


@dataclass
class _Awaited:
    """Placeholder for a kernel until all are compiled."""

    number: int


class _TogetherCompile(async_compile.AsyncCompile):
    """Receives kernels from Inductor's generated code and compiles those of a graph as one library."""

    def __init__(self) -> None:
        super().__init__()
        self._kernels: list[tuple[list[str], str]] = []

    def cpp_pybinding(self, argtypes: list[str], source_code: str) -> Any:
        self._kernels.append((argtypes, source_code))
        return _Awaited(len(self._kernels) - 1)

    def wait(self, scope: dict[str, Any]) -> None:
        if self._kernels:
            kernels = _library(self._kernels)
            scope |= {name: kernels[value.number] for name, value in scope.items() if isinstance(value, _Awaited)}
        super().wait(scope)


def _library(kernels: Sequence[tuple[list[str], str]]) -> list[Callable[..., None]]:
    """The kernels, from one library compiled from all their sources."""
    entries = [
        type("_Kernel", (_Source,), {"entry_function": name, "call_entry_function": f"{name}({{}}); Py_RETURN_NONE;"})
        for name in (f"kernel_{number}" for number in range(len(kernels)))
    ]
    includes: dict[str, None] = {}
    spaces = []
    for entry, (argtypes, source) in zip(entries, kernels, strict=True):
        name = entry.entry_function
        renamed, found = re.subn(r"\bkernel\(", f"{name}(", source)
        if found != 1:
            raise NotImplementedError(f"{found} functions in the source of a kernel")
        entry.load_pybinding_async(argtypes, renamed)
        includes |= dict.fromkeys(_INCLUDE.findall(entry.source))
        spaces.append(f"namespace space_{name} {{\n{_INCLUDE.sub('', entry.source)}\n}}\n")
    source = "\n".join(["#define PY_SSIZE_T_CLEAN", *includes, *spaces])
    library = _Library.load(source)
    if not _is_whole(Path(library.path)):
        Path(library.path).unlink()
        _Library.cache.clear()
        library = _Library.load(source)
    return [getattr(entry._load_library_inner(library.path, library.key), entry.entry_function) for entry in entries]


def _is_whole(library: Path) -> bool:
    """Whether a library file is complete. Loading a truncated one would crash the process.

    In the ELF format, the table of sections comes last, and the file's header says where it ends.
    """
    with library.open("rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x7fELF\x02\x01"):  # another system or format
        return len(head) == 64
    start, size, count = (int.from_bytes(head[i:j], "little") for i, j in ((40, 48), (58, 60), (60, 62)))
    return library.stat().st_size >= start + size * count > 0


_INCLUDE = re.compile(r"^ *#include .*$", re.MULTILINE)


class _Source(CppPythonBindingsCodeCache):
    """Stores the source of a kernel, with its Python binding, without compiling it."""

    source = ""

    @classmethod
    def load_async(cls, main_code: str, *_: Any, **__: Any) -> Any:
        cls.source = main_code
        return lambda: None


class _Library(CppPythonBindingsCodeCache):
    """Compiles a source and returns the library's path."""

    cache: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def _load_library_inner(path: str, key: str) -> Any:
        return SimpleNamespace(path=path)
