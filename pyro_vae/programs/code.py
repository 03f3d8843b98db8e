"""Which user code runs, and which outside names and functions it uses."""

import dis
import functools
import gc
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from pyro_vae._support.libraries import is_library

__all__ = ["Code", "is_library"]

_SILENT = {"logging", "warnings", "traceback", "linecache"}  # may read the clock for their own use


class Code:
    """The user's code that has run.

    ``ran`` maps the code to its globals; ``asks`` has sentences on its calls to the outside, which may return something
    else next time; ``reads_environment`` says whether it read environment variables.

    Example:
        >>> import time
        >>> code = Code()
        >>> code.run(lambda: time.time() > 0)
        True
        >>> list(code.asks)
        ['<lambda> reads the clock (time.time)']
    """

    def __init__(self) -> None:
        self.ran: dict[types.CodeType, dict[str, Any]] = {}
        self.asks: dict[str, None] = {}
        self.reads_environment = False
        self._functions: dict[types.CodeType, types.FunctionType] = {}
        self._looked_for = 0
        self._objects: list[weakref.ref[Any]] = []  # whose methods have run
        self._known: set[int] = set()

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Runs a function and notes the user code that runs."""
        before: Any = sys.getprofile()
        collected, gc.callbacks[:] = gc.callbacks[:], []  # garbage collection callbacks are not part of the program
        sys.setprofile(self._note)
        try:
            return function(*args)
        finally:
            sys.setprofile(before if callable(before) else None)
            gc.callbacks[:] = collected
            if before is not None and not callable(before):  # cProfile's, which Python cannot set
                before.enable()

    def _note(self, frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            if not is_library(code.co_filename):
                self.ran.setdefault(code, frame.f_globals)
                self._note_object(frame, code)
            elif (caller := _user_behind(frame.f_back)) is not None:
                self._note_call(frame.f_globals.get("__name__", ""), code.co_qualname, caller)
        elif event == "c_call" and (caller := _user_behind(frame)) is not None:
            owner = getattr(arg, "__self__", None)
            module = getattr(arg, "__module__", None)
            if module is None and owner is not None:
                module = (owner if isinstance(owner, type) else type(owner)).__module__
            self._note_call(module or "", getattr(arg, "__name__", ""), caller)

    def _note_call(self, module: str, name: str, caller: types.CodeType) -> None:
        if module == "os" and name.partition(".")[0] in ("_Environ", "getenv"):
            self.reads_environment = True
        elif (what := _asked(module, name)) is not None:
            self.asks[f"{caller.co_qualname} {what}"] = None

    def _note_object(self, frame: types.FrameType, code: types.CodeType) -> None:
        if not code.co_argcount:
            return
        first = frame.f_locals.get(code.co_varnames[0])
        if id(first) in self._known or isinstance(first, Tensor) or not self.is_own(type(first)):
            return
        address = id(first)
        try:
            self._objects.append(weakref.ref(first, lambda _: self._known.discard(address)))
        except TypeError:
            return
        self._known.add(address)

    def objects(self) -> Iterator[Any]:
        """Objects of the user's classes whose methods have run, if they still exist."""
        self._objects = [reference for reference in self._objects if reference() is not None]
        return (thing for reference in self._objects if (thing := reference()) is not None)

    def functions(self) -> Iterator[types.FunctionType]:
        """Functions that have run, wherever they are stored: their closures are state."""
        if self._looked_for < len(self.ran):
            self._looked_for = len(self.ran)
            for thing in gc.get_referrers(*self.ran) if self.ran else ():
                if isinstance(thing, types.FunctionType) and thing.__code__ in self.ran:
                    self._functions.setdefault(thing.__code__, thing)
        return iter(self._functions.values())

    @staticmethod
    def names(code: types.CodeType) -> "tuple[frozenset[str], frozenset[str], frozenset[str]]":
        """The global variables, attributes and modules that code names, and the functions written in it."""
        return _names(code)

    @staticmethod
    def is_own(kind: type) -> bool:
        """Whether a class is the user's."""
        return _is_own(kind)

    @staticmethod
    def is_library_module(module: types.ModuleType) -> bool:
        """Whether a module belongs to the standard library or a known library."""
        return _is_library_module(module.__name__, getattr(module, "__file__", None))


@functools.cache
def _names(code: types.CodeType) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    variables, attributes, modules = set(), set(), set()
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME", "STORE_GLOBAL"):
            variables.add(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "IMPORT_FROM"):
            attributes.add(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            modules.add(instruction.argval)
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            for names, more in zip((variables, attributes, modules), _names(inner), strict=True):
                names |= more
    return frozenset(variables), frozenset(attributes), frozenset(modules)


@functools.cache
def _is_own(kind: type) -> bool:
    module = sys.modules.get(kind.__module__)
    return not _is_library_module(kind.__module__, getattr(module, "__file__", None))


@functools.cache
def _is_library_module(name: str, file: str | None) -> bool:
    return name.partition(".")[0] in sys.stdlib_module_names - {"__main__"} or (file is not None and is_library(file))


def _user_behind(frame: types.FrameType | None) -> types.CodeType | None:
    """The user code that a frame runs, or that called the standard library's frame; None behind other libraries."""
    for _ in range(6):
        if frame is None:
            return None
        if not is_library(frame.f_code.co_filename):
            return frame.f_code
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        if name not in sys.stdlib_module_names or name in _SILENT:
            return None
        frame = frame.f_back
    return None


_CLOCK, _SYSTEM, _FILE = "reads the clock", "asks the operating system", "reads or writes a file"
_ENTROPY, _SEED = "draws from the operating system's entropy", "reads or sets the state of a random generator"
_ASKED: dict[str, tuple[str, set[str] | None, set[str]]] = {  # description, these names or all, except those
    "time": (_CLOCK, None, {"sleep", "strftime", "strptime", "struct_time"}),
    "datetime": (_CLOCK, {"now", "utcnow", "today"}, set()),
    "posix": (_SYSTEM, None, {"fspath", "urandom", "putenv"}),
    "nt": (_SYSTEM, None, {"fspath", "urandom", "putenv"}),
    "_io": (_FILE, None, {"write", "flush", "StringIO", "BytesIO", "getvalue", "isatty"}),
    "io": (_FILE, {"open"}, set()),
    "socket": (_SYSTEM, None, set()),
    "_socket": (_SYSTEM, None, set()),
    "subprocess": (_SYSTEM, None, set()),
    "select": (_SYSTEM, None, set()),
    "secrets": (_ENTROPY, None, set()),
    "uuid": (_ENTROPY, {"uuid1", "uuid4"}, set()),
    "psutil": (_SYSTEM, None, set()),
    "resource": (_SYSTEM, None, set()),
    "torch.random": (_SEED, None, set()),
    "torch.cuda.random": (_SEED, None, set()),
    "pyro.util": (_SEED, {"set_rng_seed", "get_rng_state", "set_rng_state"}, set()),
    "numpy.random.mtrand": (_SEED, {"seed", "get_state", "set_state"}, set()),
}


def _asked(module: str, name: str) -> str | None:
    """A description of a call to the outside, which may return something else next time; None for other calls."""
    if module in ("posix", "os") and name == "urandom":
        return f"{_ENTROPY} (os.urandom)"
    if module == "builtins" and name in ("input", "open"):
        return f"{_FILE} ({name})"
    what, only, never = _ASKED.get(module, (None, set(), set()))
    stem = name.rpartition(".")[2]
    if what is None or stem in never or (only is not None and stem not in only):
        return None
    return f"{what} ({module.lstrip('_')}.{stem})"
