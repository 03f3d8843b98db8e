"""A snapshot of the Python state reachable from objects: taken, compared with a later one, and restored."""

import collections
import contextvars
import datetime
import decimal
import enum
import fractions
import functools
import io
import itertools
import logging
import os
import pathlib
import pickle
import random
import re
import sys
import threading
import types
import uuid
import warnings
import weakref
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from pyro_vae.programs.code import Code

__all__ = ["BESIDE", "Change", "Label", "State", "Walk"]

_MOST_OBJECTS = 200_000  # to follow
_MOST_COPIED = 2**20  # bytes of an array to copy; larger ones get a checksum
_MOST_ENTRIES = 10_000  # of a list outside the programs
_MOST_COMPARED = 2**20  # elements of replaced tensors to compare

_ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range, slice}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format, re.Pattern, uuid.UUID}
    | {datetime.date, datetime.time, datetime.datetime, datetime.timedelta, decimal.Decimal, fractions.Fraction}
)
_ALSO_ATOMS = (enum.Enum, np.generic, np.dtype, pathlib.PurePath, int, float, str, bytes, datetime.tzinfo)
_CLOSED = {"logging", "threading", "_thread", "concurrent", "multiprocessing", "asyncio", "importlib"}
_OF_MODULES = ("_parameters", "_buffers", "_modules")  # shown by nn.Module as attributes

_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is collections.OrderedDict)

BESIDE = "beside"  # the owner of state that is restored but not compared

_NOTHING = object()


class Label(NamedTuple):
    """The name of a piece of state: ``self.calls`` of the model, or the closure variable ``beta`` of the guide."""

    owner: str
    text: str
    note: str = ""

    def then(self, more: str) -> "Label":
        """The label of a part of it."""
        return Label(self.owner, self.text + more, self.note)

    def __str__(self) -> str:
        return f"the {self.note} {self.text}" if self.note else self.text


@dataclass(frozen=True)
class Change:
    """A piece of state that changed.

    Args:
        label: Its name.
        values: The old and new value, or what happened.
        tensor: The tensor that was replaced.
        is_generator: Whether it is a random generator that advanced.
    """

    label: Label
    values: str
    tensor: Tensor | None = None
    is_generator: bool = False

    @property
    def by_running(self) -> str:
        """The sentence if running the programs caused the change."""
        owner, many = self.label.owner, self.label.owner == "the programs"
        when = "when they run" if many else "when it runs"
        if self.is_generator:
            return f"{owner} {'draw' if many else 'draws'} from {self.label} {when}"
        return f"{owner} {'change' if many else 'changes'} {self.label} ({self.values}) {when}"

    @property
    def by_others(self) -> str:
        """The sentence if something else caused it."""
        return f"{self.label} of {self.label.owner} changed ({self.values})"


@dataclass
class _Restorable:
    """Something whose content can be restored."""

    get: Callable[[], Any]
    put: Callable[[Any], Any]
    value: Any


@dataclass
class State:
    """Everything reachable at one moment.

    Args:
        leaves: Copies that can be compared, by label and kind.
        tensors: Every reachable tensor by address, with its count of in-place changes.
        generators: The states of the global random generators outside torch.
        unreadable: Sentences on objects that cannot be inspected.
    """

    leaves: dict[tuple[Label, str], Any] = field(default_factory=dict)
    tensors: dict[int, tuple[Tensor, int]] = field(default_factory=dict)
    generators: dict[str, Any] = field(default_factory=dict)
    unreadable: dict[str, None] = field(default_factory=dict)
    restorable: dict[tuple[int, str], _Restorable] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)  # keeps objects alive, so that addresses stay unique

    def changes(self, later: "State", *, held: Mapping[int, Any] | None = None) -> list[Change]:
        """The differences to a later snapshot, except global generators.

        Args:
            later: A later snapshot.
            held: Tensors by address that may not be replaced, not even by equal ones.
        """
        found = []
        for (label, kind), value in self.leaves.items():
            if label.owner == BESIDE:
                continue
            other = later.leaves.get((label, kind), _NOTHING)
            if other is not _NOTHING:  # removed parts show in their container
                found.extend(_compare(label, kind, value, other, held or {}))
        return found

    def moved(self, later: "State") -> list[str]:
        """Sentences on the global generators that advanced."""
        names = [name for name, value in self.generators.items() if value != later.generators[name]]
        return [f"the programs draw from {name} when they run" for name in names]

    def updated(self, later: "State") -> list[Tensor]:
        """Tensors changed in place."""
        both = ((tensor, count, later.tensors.get(address)) for address, (tensor, count) in self.tensors.items())
        return [tensor for tensor, count, other in both if other is not None and other[1] != count]

    def put_back(self, *, unless_moved_in: "State | None" = None) -> None:
        """Restores attributes, variables, lists, dictionaries, sets, arrays and generators.

        Args:
            unless_moved_in: Leaves unchanged what now differs from this snapshot.
        """
        for key, item in self.restorable.items():
            now = item.get()
            if _identical(now, item.value):
                continue
            if unless_moved_in is not None:
                other = unless_moved_in.restorable.get(key)
                if other is None or not _identical(now, other.value):
                    continue
            try:
                item.put(item.value)
            except (AttributeError, TypeError, ValueError):  # read-only
                continue


def _compare(label: Label, kind: str, before: Any, after: Any, held: Mapping[int, Any]) -> list[Change]:
    if before is after:
        return []
    if kind == "tensor":
        if _same_tensor(before, after, held):
            return []
        return [Change(label, "replaced by another tensor", before)]
    if kind == "values":
        if _equal(before, after):
            return []
        both = {key: (before.get(key, _NOTHING), after.get(key, _NOTHING)) for key in {**before, **after}}
        return [
            Change(label.then(f"{key}"), f"{_shown(was)} → {_shown(now)}")
            for key, (was, now) in both.items()
            if not _equal(was, now)
        ]
    if kind in ("attributes", "keys", *_OF_MODULES):
        if list(before) == list(after):
            return []
        new, gone = [n for n in after if n not in before], [n for n in before if n not in after]
        if not new and not gone:
            return [Change(label, "reordered")]
        names = [(name, "added") for name in new] + [(name, "removed") for name in gone]
        dotted = kind != "keys"
        return [Change(label.then(f".{n}" if dotted else f"[{n!r}]"), what) for n, what in names]
    if kind == "array":
        same = before.shape == after.shape and before.dtype == after.dtype and before.tobytes() == after.tobytes()
        return [] if same else [Change(label, "its values")]
    if _equal(before, after):
        return []
    if kind == "sequence":
        if len(before) != len(after):
            return [Change(label, f"{len(before)} entries → {len(after)}")]
        number = next(i for i in range(len(before)) if not _equal(before[i], after[i]))
        return [Change(label.then(f"[{number}]"), f"{_shown(before[number])} → {_shown(after[number])}")]
    if kind == "length":
        return [Change(label, f"{before} entries → {after}")]
    if kind == "value":
        return [Change(label, f"{_shown(before)} → {_shown(after)}")]
    return [Change(label, _HAPPENED.get(kind, "replaced by another object"), is_generator=kind == "generator")]


_HAPPENED = {"generator": "advanced", "set": "its elements", "content": "its content"}


def _equal(a: Any, b: Any) -> bool:
    try:
        return type(a) is type(b) and bool(a == b or (a != a and b != b))
    except Exception:
        return False


def _identical(a: Any, b: Any) -> bool:
    """Whether two copies of a container's content hold the same objects."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(key in b and (b[key] is v or _same_atom(v, b[key])) for key, v in a.items())
    if isinstance(a, tuple):
        return len(a) == len(b) and all(x is y or _same_atom(x, y) for x, y in zip(a, b, strict=True))
    return _same_atom(a, b) or (isinstance(a, frozenset) and a == b)


def _same_atom(a: Any, b: Any) -> bool:
    return type(a) in _ATOMS and _equal(a, b)


def _same_tensor(a: Tensor, b: Tensor, held: Mapping[int, Any]) -> bool:
    """Whether replacing a tensor makes no difference: a constant that each run creates again."""
    if id(a) in held or isinstance(a, nn.Parameter) or a.requires_grad or b.requires_grad:
        return False
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    return a.layout is torch.strided and a.numel() <= _MOST_COMPARED and bool(torch.equal(a, b))


def _shown(value: Any) -> str:
    if value is _NOTHING:
        return "something else"
    text = f"{value:.6g}" if type(value) is float else repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Walk:
    """A breadth-first walk through everything reachable.

    Args:
        code: Which code has run: only what it can reach is state.
    """

    def __init__(self, code: Code) -> None:
        self.found = State()
        self.found.generators["Python's random"] = random.getstate()
        self.found.generators["NumPy's global generator"] = pickle.dumps(np.random.get_state())
        self._code = code
        self._queue: collections.deque[tuple[Label, Any]] = collections.deque()
        self._seen: dict[int, Label] = {}  # labels of the first visit
        self._globals: set[tuple[int, str]] = set()

    def follow(self, label: Label, thing: Any) -> None:
        """Adds an object to the walk."""
        self._queue.append((label, thing))

    def go(self) -> None:
        """Walks until nothing is left."""
        while self._queue and len(self._seen) < _MOST_OBJECTS:
            label, thing = self._queue.popleft()
            kind = type(thing)
            if kind in _ATOMS:
                self._leaf(label, "value", thing)
                continue
            first = self._seen.setdefault(id(thing), label)
            self._leaf(label, "place", first)
            if first is label:
                self.found.kept.append(thing)
                try:
                    _handler(kind)(self, label, thing)
                except Exception:  # an object that does not behave like its type
                    self._leaf(label, "thing", thing)

    def _leaf(self, label: Label, kind: str, value: Any) -> None:
        self.found.leaves.setdefault((label, kind), value)

    def _restorable(self, holder: Any, part: str, get: Callable[[], Any], put: Callable[[Any], Any]) -> None:
        key = (id(holder), part)
        if key not in self.found.restorable:
            self.found.kept.append(holder)
            self.found.restorable[key] = _Restorable(get, put, get())

    # One method for each kind of thing

    def _atom(self, label: Label, thing: Any) -> None:
        self._leaf(label, "value", thing)

    def _tensor(self, label: Label, tensor: Tensor) -> None:
        self._leaf(label, "tensor", tensor)
        self.found.tensors[id(tensor)] = (tensor, 0 if tensor.is_inference() else tensor._version)

    def _thing(self, label: Label, thing: Any) -> None:
        self._leaf(label, "thing", thing)

    def _pass(self, label: Label, thing: Any) -> None:
        pass

    def _method(self, label: Label, method: types.MethodType) -> None:
        self.follow(label, method.__self__)
        self.follow(label.then(f".{method.__func__.__name__}"), method.__func__)

    def _function(self, label: Label, function: types.FunctionType) -> None:
        """A function's closure and defaults, if it has run, and its attributes."""
        if function.__dict__:
            self._attributes(label, function.__dict__)
            self._restorable_mapping(function.__dict__)
        code = function.__code__
        if code not in self._code.ran and label.owner != BESIDE:
            return
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            self.follow(Label(label.owner, name, "closure variable"), value)
            self._restorable(
                cell,
                "content",
                lambda cell=cell: cell.cell_contents,
                lambda value, cell=cell: setattr(cell, "cell_contents", value),
            )
        positional = code.co_varnames[: code.co_argcount]
        defaults = function.__defaults__ or ()
        named = dict(zip(positional[len(positional) - len(defaults) :], defaults, strict=True))
        for name, value in {**named, **(function.__kwdefaults__ or {})}.items():
            self.follow(Label(label.owner, name, "default argument"), value)
        self.globals_of(code, function.__globals__)

    def globals_of(self, code: types.CodeType, space: dict[str, Any]) -> None:
        """The names outside itself that code uses."""
        names, attributes, modules = self._code.names(code)
        for name in names:
            if name in space:
                self._global(Label("the programs", name, "global"), space, name, attributes)
        for name in modules:
            if name in sys.modules:
                self._module(Label("the programs", name, "global"), sys.modules[name], attributes)

    def _global(self, label: Label, space: dict[str, Any], name: str, attributes: frozenset[str]) -> None:
        if (id(space), name) in self._globals:
            return
        value = space[name]
        if isinstance(value, types.ModuleType):
            self._module(label, value, attributes)
            return
        self._globals.add((id(space), name))
        if isinstance(value, type) and not self._code.is_own(value):
            return
        self.follow(label, value)
        self._restorable(
            space,
            name,
            lambda: space.get(name, _NOTHING),
            lambda value: None if value is _NOTHING else space.__setitem__(name, value),
        )

    def _module(self, label: Label, module: types.ModuleType, attributes: frozenset[str]) -> None:
        """Names of a module that the code uses; in libraries, only the user's functions put there."""
        library, space = self._code.is_library_module(module), vars(module)
        for name in attributes & space.keys():
            value = space[name]
            if not library or (isinstance(value, types.FunctionType) and value.__code__ in self._code.ran):
                self._global(label.then(f".{name}"), space, name, attributes)

    def _class(self, label: Label, kind: type) -> None:
        for base in kind.__mro__:
            if base is not kind:
                if id(base) in self._seen:
                    continue
                self._seen[id(base)] = label
            if not self._code.is_own(base):
                continue
            for name, value in list(vars(base).items()):
                inner = getattr(value, "__func__", value)  # of static and class methods
                parts = (inner.fget, inner.fset) if isinstance(inner, property) else (inner,)
                if isinstance(inner, functools.cached_property):
                    parts = (inner.func,)
                functions = all(part is None or isinstance(part, types.FunctionType) for part in parts)
                if not functions and name.startswith("__") and name.endswith("__"):
                    continue
                here = Label("the programs", f"{base.__name__}.{name}", "" if functions else "class attribute")
                for part in parts:
                    self.follow(here, part)
                if not functions:
                    self._restorable(
                        base,
                        name,
                        lambda base=base, name=name: vars(base).get(name, _NOTHING),
                        lambda value, base=base, name=name: setattr(base, name, value),
                    )

    def _instance(self, label: Label, thing: Any) -> None:
        kind = type(thing)
        if isinstance(thing, threading.local):
            self._attributes(label, vars(thing))
            self._restorable_mapping(vars(thing))
            return
        if kind.__module__.partition(".")[0] in _CLOSED or isinstance(thing, torch.fx.GraphModule):
            self._leaf(label, "thing", thing)
            return
        self._leaf(label, "kind", kind)
        self.follow(label, kind)
        space, slots = getattr(thing, "__dict__", None), _slots(thing)
        if isinstance(space, dict):
            self._attributes(label, space, _derived(thing))
            self._restorable_mapping(space)
        for name, value in slots.items():
            self.follow(label.then(f".{name}"), value)
            self._restorable(
                thing,
                name,
                lambda name=name: getattr(thing, name, _NOTHING),
                lambda value, name=name: setattr(thing, name, value),
            )
        if not slots and not isinstance(space, dict):
            content = _bytes(thing)
            self._leaf(label, "thing" if content is None else "content", thing if content is None else content)

    def _attributes(self, label: Label, space: Mapping[str, Any], skipped: tuple[str, ...] = ()) -> None:
        shown = {n: v for n, v in space.items() if n not in skipped}
        plain = {n: v for n, v in shown.items() if type(v) in _ATOMS}
        plain |= {n: None for n in _HOOKS & shown.keys() if not shown[n]}
        self._leaf(label, "attributes", dict.fromkeys(shown))
        self._leaf(label.then("."), "values", plain)
        for name, value in shown.items():
            if name in plain:
                continue
            if name in _OF_MODULES and type(value) is dict:
                self._leaf(label, name, dict.fromkeys(value))
                self._restorable_mapping(value)
                for key, part in value.items():
                    self.follow(label.then(f".{key}"), part)
            else:
                self.follow(label.then(f".{name}"), value)

    def _restorable_mapping(self, space: Any) -> None:
        def put(value: Any) -> None:
            space.clear()
            space.update(value)

        self._restorable(space, "content", lambda: dict(space), put)

    def _mapping(self, label: Label, space: Any) -> None:
        content = dict(space)
        atoms = set(map(type, content)) <= _ATOMS
        self._leaf(label, "keys" if atoms else "length", dict.fromkeys(content) if atoms else len(content))
        plain = {k: v for k, v in content.items() if type(v) in _ATOMS and type(k) in _ATOMS}
        self._leaf(label.then(" at "), "values", plain)
        for number, (key, value) in enumerate(content.items()):
            if type(key) not in _ATOMS:
                self.follow(label.then(f".values()[{number}]"), value)
            elif key not in plain:
                self.follow(label.then(f"[{key!r}]"), value)
        if not isinstance(space, types.MappingProxyType):
            self._restorable_mapping(space)
        if getattr(space, "__dict__", None):
            self._attributes(label, vars(space))

    def _sequence(self, label: Label, sequence: Any) -> None:
        if label.owner == BESIDE and len(sequence) > _MOST_ENTRIES:
            return
        if set(map(type, sequence)) <= _ATOMS:
            self._leaf(label, "sequence", tuple(sequence))
        else:
            self._leaf(label, "length", len(sequence))
            for number, value in enumerate(sequence):
                self.follow(label.then(f"[{number}]"), value)
        if not isinstance(sequence, tuple):

            def put(value: Any) -> None:
                sequence.clear()
                sequence.extend(value)

            self._restorable(sequence, "content", lambda: tuple(sequence), put)
        if getattr(sequence, "__dict__", None):
            self._attributes(label, vars(sequence))

    def _set(self, label: Label, thing: Any) -> None:
        atoms = set(map(type, thing)) <= _ATOMS
        self._leaf(label, "set", frozenset(thing if atoms else map(id, thing)))
        if isinstance(thing, set):

            def put(value: Any) -> None:
                thing.clear()
                thing.update(value)

            self._restorable(thing, "content", lambda: frozenset(thing), put)

    def _array(self, label: Label, array: np.ndarray) -> None:
        if isinstance(array, np.memmap):
            self._leaf(label, "thing", array)
        elif array.dtype.hasobject:
            self.follow(label, array.tolist())
        elif array.nbytes <= _MOST_COPIED:
            self._leaf(label, "array", array.copy())
            if array.flags.writeable:
                self._restorable(
                    array,
                    "content",
                    lambda: array.tobytes(),
                    lambda value: np.copyto(array, np.frombuffer(value, array.dtype).reshape(array.shape)),
                )
        elif label.owner != BESIDE:
            content: Any = np.ascontiguousarray(array)
            self._leaf(label, "content", (array.shape, array.dtype, zlib.crc32(content)))

    def _generator(self, label: Label, thing: Any) -> None:
        if thing is not torch.default_generator:
            get, put = _access(thing)
            self._leaf(label, "generator", get())
            self._restorable(thing, "content", get, put)

    def _store(self, label: Label, store: ParamStoreDict) -> None:
        for name, parameter in store._params.items():
            if not isinstance(parameter, nn.Parameter):  # those of modules come and go with each run
                self.follow(Label(label.owner, f"pyro.param({name!r})"), parameter)

    def _reference(self, label: Label, reference: weakref.ReferenceType[Any]) -> None:
        self.follow(label, reference())

    def _file(self, label: Label, file: io.IOBase) -> None:
        try:
            self._leaf(label, "value", file.tell())
        except (OSError, ValueError):  # closed, or a stream
            self._leaf(label, "thing", file)

    def _suspended(self, label: Label, generator: types.GeneratorType) -> None:
        frame = generator.gi_frame
        self._leaf(label, "value", None if frame is None else frame.f_lasti)
        for name, value in ({} if frame is None else frame.f_locals).items():
            self.follow(label.then(f", its {name}"), value)

    def _variable(self, label: Label, variable: contextvars.ContextVar) -> None:
        self.follow(label, variable.get(None))
        self._restorable(variable, "content", lambda: variable.get(None), variable.set)

    def _counter(self, label: Label, counter: itertools.count) -> None:
        self._leaf(label, "value", _Plain(repr(counter)))

    def _iterator(self, label: Label, thing: Any) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts: Any = thing.__reduce__()
        except Exception:
            parts = ()
        if isinstance(parts, tuple) and len(parts) > 1:
            for number, part in enumerate(parts[1:]):
                self.follow(label.then(" at" if number else ""), part)
        elif isinstance(getattr(thing, "__dict__", None), dict):
            self._instance(label, thing)
        else:
            self.found.unreadable[f"{label.owner} keeps an iterator, {label}, that cannot be inspected"] = None


class _Plain(str):
    """Text shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


@functools.cache
def _handler(kind: type) -> Callable[[Walk, Label, Any], None]:
    """The method that inspects objects of a type."""
    if issubclass(kind, _ALSO_ATOMS):
        return Walk._atom
    for kinds, handler in _HANDLERS:
        if issubclass(kind, kinds):
            return handler
    return Walk._iterator if hasattr(kind, "__next__") else Walk._instance


_HANDLERS: tuple[tuple[Any, Any], ...] = (
    (Tensor, Walk._tensor),
    (nn.Module, Walk._instance),
    (types.FunctionType, Walk._function),
    (types.MethodType, Walk._method),
    ((types.ModuleType, types.BuiltinFunctionType, types.WrapperDescriptorType, types.CodeType), Walk._pass),
    ((types.MethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType), Walk._pass),
    (type, Walk._class),
    (np.ndarray, Walk._array),
    ((dict, types.MappingProxyType, os._Environ), Walk._mapping),
    ((list, tuple, collections.deque), Walk._sequence),
    ((set, frozenset), Walk._set),
    ((random.Random, np.random.Generator, np.random.BitGenerator, np.random.RandomState), Walk._generator),
    (torch.Generator, Walk._generator),
    (ParamStoreDict, Walk._store),
    (weakref.ReferenceType, Walk._reference),
    (io.IOBase, Walk._file),
    (types.GeneratorType, Walk._suspended),
    (itertools.count, Walk._counter),
    (contextvars.ContextVar, Walk._variable),
    ((logging.Logger, logging.Handler), Walk._pass),
)


def _access(generator: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    """The getter and setter of a random generator's state."""
    if isinstance(generator, random.Random):
        return generator.getstate, generator.setstate
    if isinstance(generator, torch.Generator):
        return (
            lambda: generator.get_state().numpy().tobytes(),
            lambda value: generator.set_state(torch.frombuffer(bytearray(value), dtype=torch.uint8)),
        )
    if isinstance(generator, np.random.RandomState):
        return lambda: pickle.dumps(generator.get_state()), lambda value: generator.set_state(pickle.loads(value))
    bits: Any = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return lambda: pickle.dumps(bits.state), lambda value: setattr(bits, "state", pickle.loads(value))


def _slots(thing: Any) -> dict[str, Any]:
    return {
        name: getattr(thing, name)
        for kind in type(thing).__mro__
        for name, value in vars(kind).items()
        if isinstance(value, types.MemberDescriptorType) and not name.startswith("__") and hasattr(thing, name)
    }


def _bytes(thing: Any) -> bytes | None:
    """The content of objects made of bytes: Python arrays, C numbers."""
    try:
        return memoryview(thing).tobytes()
    except TypeError:
        return None


def _derived(thing: Any) -> tuple[str, ...]:
    """Attributes that torch and Pyro recompute before each use: caches of transforms, and normalised weights."""
    if not isinstance(thing, nn.Module | Transform):
        return ()
    names = tuple(name for name in vars(thing) if name.startswith("_") and "cache" in name)
    if isinstance(thing, nn.Module):
        stems = (n.removesuffix(end) for n in thing._parameters for end in ("_orig", "_g") if n.endswith(end))
        names += tuple(stem for stem in stems if stem in vars(thing))
    return names
