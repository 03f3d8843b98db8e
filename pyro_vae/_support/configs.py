"""Parts as plain data: a module's constructor arguments as JSON, and back.

Every part stores each constructor argument under the argument's own name, and its description is read from there.
Rebuilding looks class names up among the given classes and PyTorch's layers, and calls nothing else.
"""

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["arguments", "build", "describe", "printed", "with_defaults"]

_TORCH = "torch.nn."


def arguments(part: nn.Module) -> dict[str, Any]:
    """A part's constructor arguments, by name.

    Raises:
        ValueError: if the part does not store them.
    """
    if type(part).__init__ is nn.Module.__init__:
        return {}
    parameters = inspect.signature(type(part)).parameters.values()
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise ValueError(f"{type(part).__name__} takes arbitrary arguments, which cannot be saved")
    try:
        return {p.name: getattr(part, p.name) for p in parameters}
    except AttributeError as error:
        raise ValueError(f"{type(part).__name__} does not store its argument {error.name!r}") from error


def printed(part: nn.Module) -> str:
    """A part's constructor arguments, as printed; empty if it does not store them."""
    try:
        return ", ".join(f"{name}={value!r}" for name, value in arguments(part).items())
    except ValueError:
        return ""


def _layer_arguments(layer: nn.Module) -> dict[str, Any]:
    """The constructor arguments of one of PyTorch's own layers, which store most of them."""
    found = {}
    for name in inspect.signature(type(layer)).parameters:
        value = getattr(layer, name, inspect.Parameter.empty)
        if name == "bias":
            value = value is not None
        if name not in ("device", "dtype") and value is not inspect.Parameter.empty:
            found[name] = value
    return found


def _is_layer(part: nn.Module) -> bool:
    return getattr(nn, type(part).__name__, None) is type(part)


def describe(part: Any) -> Any:
    """A part, or a value among its arguments, as JSON data.

    Raises:
        ValueError: if a part does not store its arguments, or an argument is neither plain data nor a part.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> describe(Normal(scale=0.1, link="tanh"))
        {'class': 'Normal', 'scale': 0.1, 'link': 'tanh', 'min_scale': 0.001}
        >>> describe(nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False)))["layers"]["1"]
        {'class': 'torch.nn.Linear', 'in_features': 4, 'out_features': 2, 'bias': False}
    """
    if type(part) is nn.Sequential:
        return {"class": "torch.nn.Sequential", "layers": {n: describe(layer) for n, layer in part.named_children()}}
    if isinstance(part, nn.Module):
        if part._forward_hooks or part._forward_pre_hooks:
            raise ValueError(f"{type(part).__name__} has hooks, which are code and cannot be saved")
        is_layer = _is_layer(part)
        named = _layer_arguments(part) if is_layer else arguments(part)
        name = f"{_TORCH if is_layer else ''}{type(part).__name__}"
        return {"class": name, **{name: describe(value) for name, value in named.items()}}
    if isinstance(part, (list, tuple)):
        return [describe(value) for value in part]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    raise ValueError(f"cannot save a {type(part).__name__} among a part's arguments: use numbers, names and parts")


def build(description: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    """The part that :func:`describe` described.

    Raises:
        ValueError: if a class is not among ``classes`` or PyTorch's layers, or does not take the arguments.
    """
    if isinstance(description, list):
        return tuple(build(value, classes) for value in description)
    if not isinstance(description, dict):
        return description
    name, named = str(description.get("class")), {k: v for k, v in description.items() if k != "class"}
    if name == "torch.nn.Sequential" and isinstance(named.get("layers"), dict):
        return nn.Sequential(OrderedDict((key, build(layer, classes)) for key, layer in named["layers"].items()))
    kind = getattr(nn, name.removeprefix(_TORCH), None) if name.startswith(_TORCH) else classes.get(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"it uses a part {name!r} that this version of pyro_vae does not have")
    arguments = {key: build(value, classes) for key, value in named.items()}
    try:
        return kind(**arguments)
    except ValueError:
        raise
    except Exception as error:  # arbitrary arguments raise arbitrary errors
        reason = " ".join(str(error).split())
        raise ValueError(f"its description of {name} is damaged ({reason or type(error).__name__})") from error


def with_defaults(description: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    """A description from an older version, with the defaults of arguments that its parts lacked.

    Example:
        >>> with_defaults({"class": "Softplus", "beta": 2.0}, {"Softplus": nn.Softplus})
        {'class': 'Softplus', 'beta': 2.0, 'threshold': 20.0}
    """
    if isinstance(description, list):
        return [with_defaults(value, classes) for value in description]
    if not isinstance(description, dict):
        return description
    known = {name: with_defaults(value, classes) for name, value in description.items()}
    kind = classes.get(str(description.get("class")))
    parameters = () if kind is None else inspect.signature(kind).parameters.values()
    return known | {p.name: describe(p.default) for p in parameters if p.name not in known and p.default is not p.empty}
