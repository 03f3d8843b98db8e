"""A training run on disk: everything needed to resume as if it had never stopped, in one safetensors file."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae._support import files

__all__ = [
    "Checkpoint",
    "numbers_of",
    "pack_optimizer",
    "read_checkpoint",
    "unpack_optimizer",
    "write_checkpoint",
]


@dataclass
class Checkpoint:
    """The state of a run after a whole number of epochs.

    Args:
        tensors: Weights, best weights, averaged weights, moments of the optimiser and random states, by group and name.
        numbers: Everything else, as JSON data.
    """

    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes a checkpoint atomically."""
    flat = {f"{group}/{name}": tensor for group, named in checkpoint.tensors.items() for name, tensor in named.items()}
    files.write_tensors(flat, path, metadata={"numbers": json.dumps(checkpoint.numbers)})


def read_checkpoint(path: Path, *, like: Checkpoint, parameters: Sequence[Tensor]) -> Checkpoint:
    """Reads a checkpoint with the same names, shapes and types as a given state.

    Args:
        path: The file.
        like: The state of the run that resumes, at its start. Numbers that the file lacks, because an older version
            wrote it, are taken from here.
        parameters: The optimiser's parameters, in its order.

    Raises:
        ValueError: if the file is missing, damaged, not a checkpoint, or that of another model.
    """
    flat, metadata = files.read_tensors(path)
    if "numbers" not in metadata:
        raise ValueError(f"{path} is not a checkpoint of a training run")
    tensors: dict[str, dict[str, Tensor]] = {group: {} for group in like.tensors}
    for key, tensor in flat.items():
        group, _, name = key.partition("/")
        tensors.setdefault(group, {})[name] = tensor
    _check_weights(path, tensors["weights"], like.tensors["weights"])
    try:
        numbers = json.loads(metadata["numbers"])
        if tensors["best"]:
            _check_alike("best", tensors["best"], like.tensors["weights"])
        if _averages(numbers) and like.tensors["average"]:  # a run with another setting is refused for it
            _check_alike("average", tensors["average"], like.tensors["average"])
        _check_moments(tensors["moments"], parameters)
        _check_alike("random", tensors["random"], like.tensors["random"])
        _check_alike("order", tensors["order"], like.tensors["order"])
        for state in (tensors["random"]["cpu"], tensors["order"]["state"]):
            torch.Generator().set_state(state)
        numbers = _shaped(numbers, like.numbers, "numbers", free=("identity", "history", "changes", "state"))
        _check_history(numbers)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is damaged ({reason}): train again, or restore a copy of it") from error
    return Checkpoint(tensors, numbers)


def _averages(numbers: Any) -> bool:
    """Whether the run averages its weights."""
    return numbers["identity"].get("average_weights") is not None


def _check_weights(path: Path, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    try:
        _check_alike("weights", found, expected)
    except ValueError as error:
        raise ValueError(f"{path} is from another model ({error})") from error


def _check_alike(group: str, found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Refuses tensors with other names, shapes or types."""
    for name in sorted(found.keys() ^ expected.keys()):
        if not (group == "random" and name != "cpu"):  # a run may resume with or without a GPU
            raise ValueError(f"{group}: {'lacks' if name in expected else 'has'} {name}")
    for name, tensor in found.items():
        own = expected.get(name, tensor)
        if (tensor.shape, tensor.dtype) != (own.shape, own.dtype):
            raise ValueError(
                f"{group}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected {own.dtype} of shape "
                f"{tuple(own.shape)}"
            )


def _check_moments(moments: dict[str, Tensor], parameters: Sequence[Tensor]) -> None:
    """Refuses moments that are not numbers, or lack their parameter's shape and type where they should have it.

    All parameters with moments must have the same ones.
    """
    kinds: dict[str, set[str]] = {}
    for key, tensor in moments.items():
        index, _, name = key.partition("/")
        kinds.setdefault(index, set()).add(name)
        own = parameters[int(index)] if index.isdecimal() and int(index) < len(parameters) else None
        fits = own is not None and bool(name) and tensor.is_floating_point()
        if fits and own is not None and name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"):
            fits = (tensor.shape, tensor.dtype) == (own.shape, own.dtype)
        if fits and name == "step":
            fits = tensor.shape == ()
        if not fits:
            raise ValueError(f"{key} is not a moment of a parameter: {tensor.dtype} of shape {tuple(tensor.shape)}")
    expected = set().union(*kinds.values())
    for index, names in kinds.items():
        if names != expected:
            raise ValueError(f"parameter {index} lacks its moment {min(expected - names)}")


def _shaped(found: Any, own: Any, where: str, free: Sequence[str] = ()) -> Any:
    """JSON data with the names and types of ``own``, which also fills missing entries; ``free`` may be anything.

    Where ``own`` is None the result is None: such entries are not state but functions, or flags that depend on the
    device.
    """
    if own is None:
        return None
    if isinstance(own, dict):
        if not isinstance(found, dict):
            raise ValueError(f"{where} is {found!r:.40}")
        merged = {name: found.get(name, value) for name, value in own.items()}
        return {
            name: merged[name] if name in free else _shaped(merged[name], value, name, free)
            for name, value in own.items()
        }
    if isinstance(own, list):
        if not isinstance(found, list) or len(found) != len(own):
            raise ValueError(f"{where} is {found!r:.40}")
        return [_shaped(there, here, where, free) for there, here in zip(found, own, strict=True)]
    numbers = (int, float)
    alike = type(found) is type(own) or (type(found) in numbers and type(own) in numbers)
    if not alike:
        raise ValueError(f"{where} is {found!r:.40}")
    return found


def _check_history(numbers: dict[str, Any]) -> None:
    """Refuses a history without one row of numbers for each epoch, and entries that do not match it."""
    history = numbers["history"]
    if not isinstance(history, list) or not history:
        raise ValueError("its history has no epochs")
    for number, row in enumerate(history, start=1):
        plain = isinstance(row, dict) and all(type(value) in (int, float) for value in row.values())
        if not plain or row.get("epoch") != number or not {"elbo", "reconstruction", "kl"} <= row.keys():
            raise ValueError(f"epoch {number} of its history is {row!r:.80}")
    if not 0 <= numbers["best_epoch"] <= len(history):
        raise ValueError(f"its best epoch is {numbers['best_epoch']} of {len(history)}")
    if not isinstance(numbers["identity"], dict) or not isinstance(numbers["changes"], list):
        raise ValueError("it does not identify its run")
    rate = numbers["identity"].get("learning_rate")
    if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
        raise ValueError("it has no valid learning rate")
    if not isinstance(numbers["optimizer"].get("state"), dict):
        raise ValueError("it does not have the optimiser's state")


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors by name, and everything else as JSON data.

    A learning rate that is a tensor, as for a captured graph, becomes a number.
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
    """Nested mappings and lists as JSON data, with numbers instead of tensors, such as a learning rate."""
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
    """Restores what :func:`pack_optimizer` returned. A learning rate that is a tensor stays the same object."""
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
