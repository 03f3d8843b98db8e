r"""The modules that a program uses, wherever they are stored.

A Pyro program may be a module, a method of one, a function that closes over networks or names them as globals, a
``functools.partial``, a lambda, an object with ``__call__``, and any of these inside Pyro's handlers. This module finds
a program's modules, and so its parameters, mode and device.
"""

import argparse
import dis
import functools
import sys
import types
import weakref
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyro_vae._support.libraries import LIBRARIES

__all__ = ["Owned", "loose_parameters", "modules_of"]

_MOST_OBJECTS = 10_000  # examined for one program
_MOST_ITEMS = 1_000  # examined in one list, set or mapping

_LIBRARIES = frozenset(sys.stdlib_module_names) - {"__main__"} | LIBRARIES
_PLAIN = (
    *(type(None), bool, int, float, complex, str, bytes, range, slice, np.ndarray, np.generic),
    *(torch.Size, torch.dtype, torch.device, torch.Generator, types.CodeType, types.BuiltinFunctionType),
)
# Objects that hold their arguments, though no user code names them: handlers, distributions, namespaces.
_HOLDING = ("pyro.", "torch.distributions.", "zuko.")
_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)
_NOT_RUN = {f"__{name}__" for name in ("init", "new", "init_subclass", "repr", "str", "del", "reduce", "getstate")}
_INTERNAL = frozenset(vars(nn.Module()))


def modules_of(program: Any) -> dict[str, nn.Module]:
    """Finds the modules that a program uses, by the variable or attribute that holds each.

    The search covers the program's ``__self__``, closure, defaults and partial arguments, the globals that its code
    names, and the functions and methods that it calls; lists, tuples, dictionaries and sets; attributes that the code
    names, also unregistered ones of modules; weak references, and the inside of Pyro's handlers. Libraries' own objects
    are skipped, and so is the model that an autoguide was made for. Nothing is run.

    Args:
        program: Any program, or a mapping of several by name: ``{"model": model, "guide": guide}``.

    Returns:
        Modules by name, such as ``decoder``, ``self.encoder`` or ``nets.0``, in the order they are found. None is a
        registered child of another. A program that is a module, or a method of one, has it under ``self``. The items of
        a set have no order, so similar items may be numbered differently in another process.

    Example:
        >>> decoder = nn.Linear(2, 4)
        >>> def model(x=None, *, batch_size=None):
        ...     return decoder(torch.zeros(3, 2))
        >>> modules_of(model)
        {'decoder': Linear(in_features=2, out_features=4, bias=True)}
    """
    return _Search(program).modules


def loose_parameters(program: Any) -> dict[str, nn.Parameter]:
    """Finds the parameters that a program uses and no module of :func:`modules_of` holds, by variable or attribute.

    Example:
        >>> loc = nn.Parameter(torch.zeros(2))
        >>> loose_parameters(lambda: loc * 2)
        {'loc': Parameter containing:
        tensor([0., 0.], requires_grad=True)}
    """
    return _Search(program).parameters


class Owned(nn.Module):
    """The modules and parameters that programs use, in one module: for moving, saving, training and their modes.

    Programs that are modules are omitted, because their owner registers them; modules that they use without registering
    are included. Dots in a name become underscores.

    Example:
        >>> decoder = nn.Linear(2, 4)
        >>> owned = Owned(model=lambda z: decoder(z), guide=nn.Linear(4, 2))
        >>> [name for name, _ in owned.named_parameters()]
        ['decoder.weight', 'decoder.bias']
    """

    def __init__(self, **programs: Any) -> None:
        super().__init__()
        search, whole = _Search(programs), [p for p in programs.values() if isinstance(p, nn.Module)]
        held = {id(part) for program in whole for part in program.modules()}
        for name, module in search.modules.items():
            if id(module) not in held:
                self.add_module(self._free(name), module)
        for name, parameter in search.parameters.items():
            self.register_parameter(self._free(name), parameter)

    def _free(self, name: str) -> str:
        name = name.replace(".", "_")
        while hasattr(self, name):
            name += "_"
        return name


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of globals, of attributes and of imports in a code object and those nested in it. Code never changes."""
    variables: dict[str, None] = {}
    attributes: dict[str, None] = {}
    imports: dict[str, None] = {}
    for instruction in dis.get_instructions(code):
        match instruction.opname:
            case "LOAD_GLOBAL" | "LOAD_NAME" | "LOAD_FROM_DICT_OR_GLOBALS":
                variables[instruction.argval] = None
            case "LOAD_ATTR" | "LOAD_METHOD" | "LOAD_SUPER_ATTR" | "IMPORT_FROM":
                attributes[instruction.argval] = None
            case "IMPORT_NAME":
                imports[instruction.argval] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for mine, theirs in zip((variables, attributes, imports), _names_in(constant), strict=True):
                mine.update(dict.fromkeys(theirs))
    return tuple(variables), tuple(attributes), tuple(imports)


def _is_library(name: Any) -> bool:
    return isinstance(name, str) and name.partition(".")[0] in _LIBRARIES


class _Search:
    """A search through the objects that a program holds, breadth first, so that names are short."""

    def __init__(self, program: Any) -> None:
        self._found: dict[str, nn.Module | nn.Parameter] = {}
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # alive during the search, so that no other object gets its id
        self._attributes: dict[str, None] = {}  # named in the code found so far
        self._any_attribute = False
        self._holders: list[_Holder] = []
        self._definitions: dict[type, dict[str, list[Any]]] = {}
        self._queue: deque[tuple[str, Any]] = deque(
            program.items() if isinstance(program, Mapping) else [("self", program)]
        )
        while self._queue and len(self._seen) < _MOST_OBJECTS:
            self._look_at(*self._queue.popleft())
            if not self._queue:
                self._look_up_attributes()
        parts = [part for part in self._found.values() if isinstance(part, nn.Module)]
        children = {id(child) for part in parts for child in part.modules() if child is not part}
        held = {id(p) for part in parts for p in part.parameters()}
        self.modules: dict[str, nn.Module] = {}
        self.parameters: dict[str, nn.Parameter] = {}
        for name, part in self._found.items():
            if isinstance(part, nn.Module):
                if id(part) not in children:
                    self.modules[name] = part
            elif id(part) not in held:
                self.parameters[name] = part

    def _found_as(self, name: str, part: nn.Module | nn.Parameter) -> None:
        unique, number = name, 2
        while unique in self._found:
            unique, number = f"{name}_{number}", number + 1
        self._found[unique] = part

    def _look_at(self, name: str, thing: Any) -> None:
        if type(thing) in (weakref.ProxyType, weakref.CallableProxyType):
            thing = _behind(thing)
        if isinstance(thing, _PLAIN) or id(thing) in self._seen:
            return
        self._seen.add(id(thing))
        self._kept.append(thing)
        match thing:
            case Tensor():
                if isinstance(thing, nn.Parameter):
                    self._found_as(name, thing)
            case nn.Module():
                self._found_as(name, thing)
                self._look_into_module(name, thing)
            case types.FunctionType():
                self._look_into_function(thing)
            case types.MethodType():
                self._queue.extend([("self", thing.__self__), (name, thing.__func__)])
            case functools.partial():
                self._look_into_partial(name, thing)
            case weakref.ref():
                self._queue.append((name, thing()))
            case staticmethod() | classmethod():
                self._queue.append((name, thing.__func__))
            case property():
                self._queue.append((name, thing.fget))
            case functools.cached_property() | functools.partialmethod():
                self._queue.append((name, thing.func))
            case dict() | types.MappingProxyType() | weakref.WeakValueDictionary() | weakref.WeakKeyDictionary():
                for key, value in islice(list(thing.items()), _MOST_ITEMS):
                    self._queue.append((f"{name}.{key}" if isinstance(key, (str, int)) else f"{name}.values", value))
                    self._queue.append((f"{name}.keys", key))
            case set() | frozenset() | weakref.WeakSet():
                items = [item for item in islice(thing, _MOST_ITEMS) if not isinstance(item, _PLAIN)]
                items.sort(key=lambda item: (type(item).__name__, str(item)))
                self._queue.extend((f"{name}.{index}", item) for index, item in enumerate(items))
            case list() | tuple() | deque():
                names = getattr(thing, "_fields", range(len(thing)))
                self._queue.extend(
                    (f"{name}.{key}", item) for key, item in islice(zip(names, thing, strict=False), _MOST_ITEMS)
                )
            case types.ModuleType():
                if not _is_library(thing.__name__):
                    self._holders.append(_Holder(name, vars(thing), {}))
            case type():
                self._holders.append(_Holder(name, {}, self._definitions_of(thing)))
            case _:
                self._look_into_object(name, thing)

    def _definitions_of(self, kind: type) -> dict[str, list[Any]]:
        """The definitions in ``kind`` and its bases that are the user's own classes, by name."""
        if kind not in self._definitions:
            definitions: dict[str, list[Any]] = {}
            for part in kind.__mro__:
                if not _is_library(part.__module__):
                    for name, value in part.__dict__.items():
                        definitions.setdefault(name, []).append(value)
            self._definitions[kind] = definitions
            # Python and PyTorch call these without naming them.
            for name, values in definitions.items():
                if name == "forward" or (name.startswith("__") and name not in _NOT_RUN):
                    self._queue.extend((name, value) for value in values if isinstance(value, types.FunctionType))
        return self._definitions[kind]

    def _look_into_module(self, name: str, module: nn.Module) -> None:
        for path, part in module.named_modules():
            self._seen.add(id(part))
            here, definitions = f"{name}.{path}" if path else name, self._definitions_of(type(part))
            if definitions:
                self._holders.append(_Holder(here, vars(part), definitions))
            elif not type(part).__module__.startswith("torch."):
                # Functions stored in it, such as a pair's programs. An autoguide's model is not: it is in a tuple.
                given = (types.FunctionType, types.MethodType, functools.partial)
                self._queue.extend((here, value) for value in vars(part).values() if isinstance(value, given))

    def _look_into_function(self, function: types.FunctionType) -> None:
        code = function.__code__
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                self._queue.append((variable, cell.cell_contents))
            except ValueError:  # not filled yet
                continue
        defaults = function.__defaults__ or ()
        with_default = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        self._queue.extend(zip(with_default, defaults, strict=True))
        self._queue.extend((function.__kwdefaults__ or {}).items())
        self._queue.extend(vars(function).items())  # __wrapped__, and other attributes set by a decorator
        if _is_library(function.__module__) and not code.co_filename.startswith("<"):  # not typed at a prompt
            return
        variables, attributes, imports = _names_in(code)
        space = function.__globals__
        self._queue.extend((variable, space[variable]) for variable in variables if variable in space)
        self._queue.extend((path, sys.modules[path]) for path in imports if path in sys.modules)
        self._attributes.update(dict.fromkeys(attributes))
        # Names built at run time cannot be read from the code, so every attribute is examined then.
        self._any_attribute |= "getattr" in variables or "vars" in variables or "__dict__" in attributes

    def _look_into_partial(self, name: str, partial: functools.partial[Any]) -> None:
        """Its function and its arguments, each under the name of the function's parameter."""
        function, given = partial.func, list(partial.args)
        if len(given) >= 2 and isinstance(given[0], Messenger):  # a handler, and the program that it handles
            self._queue.extend([(name, function), (name, given[0])])
            function, given = given[1], given[2:]
        plain = getattr(function, "__func__", function)
        code = getattr(plain, "__code__", None)
        names = [] if code is None else list(code.co_varnames[plain is not function : code.co_argcount])
        names += [f"args.{index}" for index in range(len(names), len(given))]
        self._queue.append((name, function))
        self._queue.extend(zip(names, given, strict=False))
        self._queue.extend(partial.keywords.items())
        self._queue.extend(vars(partial).items())

    def _look_into_object(self, name: str, thing: Any) -> None:
        kind = type(thing)
        holding = any(f"{part.__module__}.".startswith(_HOLDING) for part in kind.__mro__)
        if (holding and not isinstance(thing, Trace)) or isinstance(thing, _NAMESPACES):
            self._queue.extend((f"{name}.{attribute}", value) for attribute, value in _attributes_of(thing).items())
        if definitions := self._definitions_of(kind):
            self._holders.append(_Holder(name, _attributes_of(thing), definitions))
        else:
            self._queue.append((name, getattr(thing, "__dict__", {}).get("__wrapped__")))  # functools.lru_cache

    def _look_up_attributes(self) -> None:
        """Queues the attributes named in code, of the objects found so far."""
        names = list(self._attributes)
        for holder in self._holders:
            for name in names[holder.done :]:
                if name in holder.space:
                    self._queue.append((f"{holder.name}.{name}", holder.space[name]))
                if name in holder.definitions:
                    self._queue.extend((f"{holder.name}.{name}", value) for value in holder.definitions[name])
            holder.done = len(names)
            if self._any_attribute and not holder.whole:
                holder.whole = True
                self._queue.extend((f"{holder.name}.{n}", v) for n, v in holder.space.items() if n not in _INTERNAL)


@dataclass
class _Holder:
    """An object whose attributes are examined if code names them."""

    name: str
    space: Mapping[str, Any]  # its own attributes
    definitions: dict[str, list[Any]]  # those of its classes
    done: int = 0  # number of names looked up
    whole: bool = False


def _behind(proxy: Any) -> Any:
    """The object behind a weak proxy, if it still exists."""
    try:
        return proxy.__init__.__self__
    except ReferenceError:
        return None


def _attributes_of(thing: Any) -> dict[str, Any]:
    """The attributes of an object itself, including slots."""
    slots = {
        name: value.__get__(thing)
        for kind in type(thing).__mro__
        for name, value in kind.__dict__.items()
        if isinstance(value, types.MemberDescriptorType) and hasattr(thing, name)
    }
    return {**slots, **getattr(thing, "__dict__", {})}
