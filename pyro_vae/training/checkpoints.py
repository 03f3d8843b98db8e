"""A training run on disk: everything that is needed to go on as if it had never stopped, in one safetensors file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae._support import files

__all__ = [
    "Checkpoint",
    "get_random_state",
    "numbers_of",
    "pack_optimizer",
    "read_checkpoint",
    "set_random_state",
    "unpack_optimizer",
    "write_checkpoint",
]


@dataclass
class Checkpoint:
    """The state of a run after a whole number of epochs.

    Args:
        tensors: Weights, best weights, moments of the optimiser and random states, by group and name.
        numbers: Everything else, as JSON data.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint, whole or not at all."""
    flat = {f"{group}/{name}": tensor for group, named in checkpoint.tensors.items() for name, tensor in named.items()}
    files.write_tensors(flat, path, metadata={"numbers": json.dumps(checkpoint.numbers)})


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint.

    Raises:
        ValueError: if the file is missing, half-written or not a checkpoint.
    """
    flat, metadata = files.read_tensors(path)
    if "numbers" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a training run")
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        tensors.setdefault(group, {})[name] = tensor
    return Checkpoint(tensors, json.loads(metadata["numbers"]))


def get_random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Puts back what :func:`get_random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name, and everything else as JSON data.

    A learning rate that is a tensor, as a captured graph needs it, is a number there.
    """
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                rest.setdefault(str(index), {})[name] = value
    return tensors, {"state": rest, "param_groups": numbers_of(state["param_groups"])}


def numbers_of(state: Any) -> Any:
    """Nested mappings and lists with numbers in the place of tensors, such as a learning rate, as JSON data."""
    match state:
        case Tensor():
            return state.item()
        case dict():
            return {name: numbers_of(value) for name, value in state.items()}
        case list() | tuple():
            return [numbers_of(value) for value in state]
        case _:
            return state


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
    """Puts back what :func:`pack_optimizer` returned. A learning rate that is a tensor stays that very tensor."""
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in rest["state"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    rates = [group["lr"] for group in optimizer.param_groups]
    groups = [
        {name: tuple(value) if isinstance(value, list) and name == "betas" else value for name, value in group.items()}
        for group in rest["param_groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(rate, Tensor):
            rate.fill_(float(group["lr"]))
            group["lr"] = rate
