"""Parts as plain data: a module's constructor arguments as JSON, and back.

Every part keeps each constructor argument under the argument's own name, so that its description can be read off it.
Rebuilding looks class names up among the classes it is given, and calls nothing else.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["arguments", "build", "describe"]


def arguments(part: nn.Module) -> dict[str, Any]:
    """A part's constructor arguments, by name."""
    parameters = inspect.signature(type(part)).parameters.values()
    named = (p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD))
    return {name: getattr(part, name) for name in named}


def describe(part: Any) -> Any:
    """A part, or a value among its arguments, as JSON data.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> describe(Normal(scale=0.1, link="tanh"))
        {'class': 'Normal', 'scale': 0.1, 'link': 'tanh', 'min_scale': 0.001}
    """
    if isinstance(part, nn.Module):
        return {"class": type(part).__name__, **{name: describe(v) for name, v in arguments(part).items()}}
    if isinstance(part, (list, tuple)):
        return [describe(value) for value in part]
    if part is None or isinstance(part, (bool, int, float, str)):
        return part
    raise ValueError(f"cannot save a {type(part).__name__} among a part's arguments: use numbers, names and parts")


def build(description: Any, classes: Mapping[str, type[nn.Module]]) -> Any:
    """The part that :func:`describe` described.

    Raises:
        ValueError: if a class is not among ``classes``, or does not take the arguments.
    """
    if isinstance(description, list):
        return tuple(build(value, classes) for value in description)
    if not isinstance(description, dict):
        return description
    name = str(description.get("class"))
    if name not in classes:
        raise ValueError(f"it uses a part {name!r} that this version of pyro_vae does not have")
    arguments = {key: build(value, classes) for key, value in description.items() if key != "class"}
    try:
        return classes[name](**arguments)
    except (TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"its description of {name} is damaged ({error})") from error
