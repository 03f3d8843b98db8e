"""Inductor, asked to be quick: what it compiled once it finds again, and what it compiles is one file of C++.

Left to itself it tries the compiler on each instruction set, translates a large header in advance, builds a library for
every kernel, and bypasses its cache of graphs where they do not come from ``torch.compile``: two thirds of the time to
the first compiled step. Importing this module imports Inductor, which takes more than a second.
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
    """Begins, beside whatever else there is to do, what every graph needs: digests of the libraries' sources."""
    for name in ("torch_key", "triton_key"):
        getattr(getattr(codecache, name, None), "prefetch", lambda: None)()  # not in every version of torch


def compile_quickly(graph: GraphModule, inputs: Sequence[Tensor]) -> Any:
    """A graph, compiled, with the random numbers that it would draw as it stands."""
    # Some versions reorder draws as well, each of which then is another's.
    in_order = {name: False for name in ("reorder_for_locality", "reorder_for_peak_memory") if hasattr(config, name)}
    settings = in_order | {
        "fallback_random": True,
        "cpp.threads": torch.get_num_threads(),
        # Takes as long as two graphs; whoever compiles dozens, as tests do, asks for it by Inductor's own variable.
        "cpp_cache_precompile_headers": os.environ.get("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS") == "1",
    }
    graph = _reshaping(graph)
    with torch.no_grad(), config.patch(settings), _found_again(), _without_garbage_collection():
        try:
            with _one_library(), _known_instructions(), _expanded_indices():
                return torch._inductor.compile(graph, list(inputs))
        except Exception:  # a compiler or a torch that has it otherwise: then as Inductor does it
            return torch._inductor.compile(graph, list(inputs))


def _reshaping(graph: GraphModule) -> GraphModule:
    """A copy that may make copies where other shapes were seen as views.

    What the compiler takes apart need not lie in memory as it lay when the graph was traced.
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
    """What a compiler makes is kept or freed at once; looking through it takes an eighth of the time."""
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
    """Lets Inductor keep its graphs, and look for them, in :func:`cache_folder`."""
    name, before = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    os.environ[name] = str(cache_folder())
    try:
        # It caches only where there is a place for the guards of a graph's shapes.
        with tracing(TracingContext(FakeTensorMode(shape_env=ShapeEnv()))):
            yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def cache_folder() -> Path:
    """Where compiled graphs are kept: in the user's cache folder, or in ``TORCHINDUCTOR_CACHE_DIR``.

    It is made where it is not there, for this user alone, for compiled code is trusted. Each kind of processor has its
    own: the code is for the one at hand, and machines may share a home. Where no such folder can be had, it is one that
    is gone when the process ends.
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
    """A name for the kind of processor, and for what PyTorch uses of it."""
    features = platform.processor()
    with contextlib.suppress(OSError):  # Linux alone has it
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), features)
    digest = hashlib.sha256(features.encode()).hexdigest()[:8]
    return f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}-{digest}".lower().replace(" ", "-")


# Its C++


@contextlib.contextmanager
def _one_library() -> Iterator[None]:
    """Lets Inductor compile all kernels of a graph together."""
    with _replaced(async_compile, "AsyncCompile", _TogetherCompile):
        yield


@contextlib.contextmanager
def _known_instructions() -> Iterator[None]:
    """Lets Inductor take the instructions that PyTorch takes, for which it would try the compiler."""
    kind = _INSTRUCTIONS.get(torch.backends.cpu.get_cpu_capability())
    if kind is None:
        yield
    else:
        with _replaced(cpu_vec_isa, "valid_vec_isa_list", lambda: [kind()]):
            yield


class _ExpandingSympy:
    """SymPy, which expands an expression where it is asked for the shortest that it can find."""

    simplify = staticmethod(sympy.expand)

    def __getattr__(self, name: str) -> Any:
        return getattr(sympy, name)


@contextlib.contextmanager
def _expanded_indices() -> Iterator[None]:
    """Lets Inductor expand the indices that it takes strides of, and not look for shorter forms.

    An index is a sum of multiples of counters, their quotients and remainders, so that terms cancel once it is
    expanded. The search takes more than half of the time to compile convolutions, and comes to the same code.
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

    def __bool__(self) -> bool:  # Inductor's would try the compiler
        return True


class _Avx512(cpu_vec_isa.VecAVX512):
    __hash__ = cpu_vec_isa.VecISA.__hash__

    def __bool__(self) -> bool:
        return True


_INSTRUCTIONS = {"AVX2": _Avx2, "AVX512": _Avx512}


@dataclass
class _Awaited:
    """Stands for a kernel until all are compiled."""

    number: int


class _TogetherCompile(async_compile.AsyncCompile):
    """What the code that Inductor writes hands its kernels to: compiles those of a graph as one library."""

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
    """The kernels of a library that is compiled from all their sources."""
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
    """Whether all of a library is there. One whose writing was cut short ends the process that loads it.

    In the ELF format, the table of sections comes last; the head of the file says where it is to end.
    """
    with library.open("rb") as file:
        head = file.read(64)
    if not head.startswith(b"\x7fELF\x02\x01"):  # of another system, or of another kind
        return len(head) == 64
    start, size, count = (int.from_bytes(head[i:j], "little") for i, j in ((40, 48), (58, 60), (60, 62)))
    return library.stat().st_size >= start + size * count > 0


_INCLUDE = re.compile(r"^ *#include .*$", re.MULTILINE)


class _Source(CppPythonBindingsCodeCache):
    """Keeps the source of a kernel, with what Python calls it by, and does not compile it."""

    source = ""

    @classmethod
    def load_async(cls, main_code: str, *_: Any, **__: Any) -> Any:
        cls.source = main_code
        return lambda: None


class _Library(CppPythonBindingsCodeCache):
    """Compiles a source and says where the library is."""

    cache: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def _load_library_inner(path: str, key: str) -> Any:
        return SimpleNamespace(path=path)
