"""The description of a premade pair's parts, if they can be rebuilt from it."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import covariates, encodings, likelihoods, networks, posteriors, priors, programs, transforms
from pyro_vae._support import configs
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["PARTS", "describe"]

# The library's own parts, by name.
PARTS = {
    name: part
    for room in (covariates, encodings, likelihoods, networks, posteriors, priors, programs, transforms)
    for name in room.__all__
    if isinstance(part := getattr(room, name), type) and issubclass(part, nn.Module)
}


def describe(pair: Any) -> dict[str, Any] | None:
    """A premade pair as JSON data; None if it can't be rebuilt from that.

    Networks of the user's own, and of PyTorch's layers, are rebuilt once to check that they come out the same.
    """
    try:
        description = configs.describe(pair)
        classes = _classes_of(pair)
        own = any(not type(part).__module__.startswith(("pyro_vae.", "torch.nn.")) for part in pair.modules())
        if (own or _names_layers(description)) and not _builds_again(pair, description, classes):
            return None
    except ValueError:
        return None
    return description


def _names_layers(description: Any) -> bool:
    if isinstance(description, dict):
        return str(description.get("class")).startswith("torch.nn.") or any(map(_names_layers, description.values()))
    return isinstance(description, list) and any(map(_names_layers, description))


def _classes_of(pair: nn.Module) -> dict[str, type[nn.Module]]:
    """The library's parts, and the pair's parts of the user's own.

    Raises:
        ValueError: if two of them have the same name.
    """
    classes = dict(PARTS)
    for part in pair.modules():
        if type(part).__module__.startswith("torch.nn."):
            continue
        if classes.setdefault(type(part).__name__, type(part)) is not type(part):
            raise ValueError(f"two classes are called {type(part).__name__}")
    return classes


def _builds_again(pair: Any, description: dict[str, Any], classes: dict[str, type[nn.Module]]) -> bool:
    """Whether networks built from the description have the same parameters and outputs."""
    with forked_random_state(pair.device), contextlib.suppress(Exception):
        again = configs.build(description, classes).to(device=pair.device, dtype=pair.dtype)
        if len(list(again.parameters())) != len(list(pair.parameters())):  # where two layers share one, it counts once
            return False
        again.load_state_dict(pair.state_dict())
        twins = again.networks()
        for name, (network, shape) in pair.networks().items():
            torch.manual_seed(0)
            rows = torch.rand(2, *shape, dtype=pair.dtype, device=pair.device)
            outputs = []
            for one in (network, twins[name][0]):
                torch.manual_seed(0)
                with evaluating(one):
                    outputs.append(one(rows))
            here, there = outputs
            if not (isinstance(here, Tensor) and torch.allclose(here, there, rtol=1e-4, atol=1e-6, equal_nan=True)):
                return False
        return True
    return False
