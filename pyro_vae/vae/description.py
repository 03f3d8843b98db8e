"""What a VAE says of its parts, where they can be built again from it."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae import encodings, likelihoods, networks, posteriors, priors, programs, transforms
from pyro_vae._support import configs
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["PARTS", "describe_vae"]

# The library's own parts, by name.
PARTS = {
    name: part
    for room in (encodings, likelihoods, networks, posteriors, priors, programs, transforms)
    for name in room.__all__
    if isinstance(part := getattr(room, name), type) and issubclass(part, nn.Module)
}


def describe_vae(vae: Any) -> dict[str, Any] | None:
    """A VAE as JSON data; None if it can't be built again from that.

    Networks of the user's own, and of PyTorch's layers, are built once to see that they come out as they are.
    """
    try:
        description = configs.describe(vae)
        classes = _classes_of(vae)
        own = any(not type(part).__module__.startswith(("pyro_vae.", "torch.nn.")) for part in vae.modules())
        if (own or _names_layers(description)) and not _builds_again(vae, description, classes):
            return None
    except ValueError:
        return None
    return description


def _names_layers(description: Any) -> bool:
    if isinstance(description, dict):
        return str(description.get("class")).startswith("torch.nn.") or any(map(_names_layers, description.values()))
    return isinstance(description, list) and any(map(_names_layers, description))


def _classes_of(vae: nn.Module) -> dict[str, type[nn.Module]]:
    """The library's parts, and those of the user's own that the VAE is made of.

    Raises:
        ValueError: if two of them have one name.
    """
    classes = dict(PARTS)
    for part in vae.modules():
        if type(part).__module__.startswith("torch.nn."):
            continue
        if classes.setdefault(type(part).__name__, type(part)) is not type(part):
            raise ValueError(f"two classes are called {type(part).__name__}")
    return classes


def _builds_again(vae: Any, description: dict[str, Any], classes: dict[str, type[nn.Module]]) -> bool:
    """Whether the description gives networks that have the same parameters and compute the same."""
    with forked_random_state(vae.device), contextlib.suppress(Exception):
        again = configs.build(description, classes).to(device=vae.device, dtype=vae.dtype)
        if len(list(again.parameters())) != len(list(vae.parameters())):  # where two layers share one, it counts once
            return False
        again.load_state_dict(vae.state_dict())
        shown = vae.encoder.encoding.shape(vae.event_shape)
        for find, shape in ((lambda v: v.encoder.network, shown), (lambda v: v.decoder.network, (vae.latent_dim,))):
            torch.manual_seed(0)
            rows = torch.rand(2, *shape, dtype=vae.dtype, device=vae.device)
            outputs = []
            for network in (find(vae), find(again)):
                torch.manual_seed(0)
                with evaluating(network):
                    outputs.append(network(rows))
            here, there = outputs
            if not (isinstance(here, Tensor) and torch.allclose(here, there, rtol=1e-4, atol=1e-6, equal_nan=True)):
                return False
        return True
    return False
