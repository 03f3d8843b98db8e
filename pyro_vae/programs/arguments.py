"""Keyword arguments of programs. One that neither program takes is an error, and never ignored."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_messenger import TraceHandler
from torch import nn

from pyro_vae._support.names import hinted, listed

__all__ = ["accepted", "arguments_for", "check_arguments", "check_mask", "check_values"]

_THE_LIBRARYS = frozenset({"x", "batch_size"})
_PYROS = frozenset({"context", "fn"})  # arguments of the functions that a handler returns


def accepted(program: Callable[..., Any]) -> set[str] | None:
    """Names of the keyword arguments that a program takes, except its rows and ``batch_size``; None if it takes any.

    They come from its signature, also inside Pyro's handlers and ``functools.partial``; an autoguide takes those of its
    model. A program with ``**kwargs`` takes any, unless its attribute ``arguments`` names them.

    Example:
        >>> def model(x=None, *, labels, batch_size=None, temperature=1.0): ...
        >>> sorted(accepted(model))
        ['labels', 'temperature']
        >>> accepted(lambda x, **kwargs: x) is None
        True
    """
    declared = getattr(program, "arguments", None)
    if isinstance(declared, (tuple, list, set, frozenset)) and all(isinstance(name, str) for name in declared):
        return set(declared)
    if isinstance(program, PyroModule) and hasattr(program, "_model") and hasattr(program, "guide"):  # an EasyGuide
        return accepted(program.guide)
    if isinstance(program, AutoCallable):
        return accepted(program._guide)
    if isinstance(program, AutoGuide):
        return None if program._model is None else accepted(program.model)
    inner = _unwrapped(program)
    if inner is not program:
        return accepted(inner)
    if isinstance(program, nn.Module):
        return accepted(program.forward)
    try:
        parameters = list(inspect.signature(program).parameters.values())
    except (TypeError, ValueError):  # written in C
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    if parameters and parameters[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        del parameters[0]  # the rows, under any name
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name for p in parameters if p.kind in by_name} - _THE_LIBRARYS


def _unwrapped(program: Any) -> Any:
    """The program inside Pyro's handlers, with its partial arguments."""
    while True:
        match program:
            case TraceHandler():
                program = program.fn
            case functools.partial(args=(), keywords=given) if not given:
                program = program.func
            case functools.partial(args=(Messenger(), inner, *rest), keywords=given):
                program = functools.partial(inner, *rest, **given) if rest or given else inner
            case _:
                return program


def arguments_for(program: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a program takes, out of ``arguments``.

    Example:
        >>> arguments_for(lambda x, labels: x, {"labels": 1, "mask": 2})
        {'labels': 1}
    """
    taken = accepted(program)
    return {name: value for name, value in arguments.items() if taken is None or name in taken}


def check_arguments(model: Callable[..., Any], guide: Callable[..., Any], names: Iterable[str]) -> None:
    """Checks that each argument is taken by the model, the guide, or both.

    Raises:
        TypeError: if neither takes one; the message lists those that they take.

    Example:
        >>> check_arguments(lambda x, mask=None: x, lambda x, labels=None: x, ["mask", "label"])
        Traceback (most recent call last):
        ...
        TypeError: neither program takes 'label': did you mean 'labels'? The model takes mask; the guide takes labels
    """
    names = list(names)
    if taken := _PYROS.intersection(names):
        raise TypeError(
            f"no keyword argument of a program can be called {min(taken)!r}, which Pyro's handlers use: give it "
            f"another name"
        )
    by_model, by_guide = accepted(model), accepted(guide)
    if by_model is None or by_guide is None:
        return
    for name in names:
        if name not in by_model | by_guide:
            if by_model == by_guide:
                known = f"both take {listed(by_model)}"
            else:
                known = f"the model takes {listed(by_model)}; the guide takes {listed(by_guide)}"
            raise TypeError(f"neither program takes {name!r}{hinted(name, by_model | by_guide, known)}")


def check_mask(model: Callable[..., Any]) -> None:
    """Checks that a model can ignore missing entries: that it takes their mask.

    A guide need not: with values in the gaps it still gives a distribution to draw from.

    Raises:
        TypeError: if it does not take ``mask``.

    Example:
        >>> check_mask(lambda x, labels=None: x)
        Traceback (most recent call last):
        ...
        TypeError: the model takes no 'mask', needed to ignore missing entries: it takes labels
    """
    names = accepted(model)
    if names is not None and "mask" not in names:
        raise TypeError(f"the model takes no 'mask', needed to ignore missing entries: it takes {listed(names)}")


def check_values(programs: Iterable[Callable[..., Any]], arguments: Mapping[str, Any]) -> None:
    """Checks the arguments' values with the programs' method ``check_arguments(**arguments)``, if they have one.

    Raises:
        ValueError: raised by such a method.
    """
    for program in programs:
        look = getattr(program, "check_arguments", None)
        if callable(look):
            look(**arguments_for(program, arguments))
