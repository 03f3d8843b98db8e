r"""Pairs on disk: a folder with ``config.json`` and ``model.safetensors``, which contain no code.

The programs of a pair are the user's code; only their state is written. That is the weights and buffers of the modules
that they use, their entries in Pyro's parameter store, and the pair's facts about its data: transform, shape, range,
number of rows.
"""

import importlib.metadata
import inspect
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_vae import __version__, transforms
from pyro_vae._support import configs, files
from pyro_vae._support.names import listed
from pyro_vae._support.ranges import Columns, Constraint
from pyro_vae.programs.arguments import arguments_for
from pyro_vae.programs.running import evaluating, forked_random_state
from pyro_vae.transforms import Transform

__all__ = [
    "CONFIG",
    "FORMAT_VERSION",
    "WEIGHTS",
    "argument_shapes",
    "check_shapes",
    "describe_constraint",
    "load_config",
    "open_into",
    "read_weights",
    "save_pair",
]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 2

_DESCRIBED = "config"  # in the weights' metadata: the fingerprint of their configuration
_PARAM = "pyro.param: "  # before the names of tensors from Pyro's parameter store
_OF_NUMBERS = ("greater_than", "greater_than_eq", "less_than", "interval", "half_open_interval", "integer_interval")
_TRANSFORMS = {
    name: part
    for name in transforms.__all__
    if isinstance(part := getattr(transforms, name), type) and issubclass(part, Transform)
}


# Writing


def save_pair(
    pair: Any,
    folder: str | os.PathLike[str],
    run: Mapping[str, Any] | None = None,
    *,
    description: Mapping[str, Any] | None = None,
    weights: bool = True,
) -> None:
    """Writes a pair to a folder: ``config.json`` and ``model.safetensors``, both complete or neither.

    Args:
        pair: A :class:`~pyro_vae.Pair`.
        folder: Created if it does not exist; the two files in it are replaced.
        run: JSON data to save along with it, such as where and how it was trained.
        description: A description to build the pair from, if there is more than its state.
        weights: Write the tensors too.

    Raises:
        ValueError: if something can't be saved, before anything is written.
    """
    folder, store = Path(folder), pyro.get_param_store()
    names = sorted(_store_names(pair)) if weights else []
    content = {
        "format_version": FORMAT_VERSION,
        "pyro_vae_version": __version__,
        "torch_version": torch.__version__,
        "pyro_version": importlib.metadata.version("pyro-ppl"),
        "model": _describe_pair(pair) if description is None else dict(description),
        "num_rows": getattr(pair, "num_rows", None),
        "arguments": getattr(pair, "argument_shapes", None) or {},
        "params": {name: describe_constraint(store.get_state()["constraints"][name]) for name in names},
        "run": dict(run or {}),
    }
    try:
        text = json.dumps(content, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"run must be JSON data: names, numbers, lists and mappings ({error})") from error
    state = {**pair.state_dict(), **{f"{_PARAM}{name}": store.get_state()["params"][name] for name in names}}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.is_meta:
            kind = type(value).__name__ if not isinstance(value, Tensor) else "tensor that is not dense"
            raise ValueError(f"{name} is a {kind}, which can't be saved: keep weights and buffers as dense tensors")
    if not weights:
        files.write_json(content, folder / CONFIG)
        return
    # The weights come last: between the two renames a description without weights exists, which cannot be loaded.
    with files.replacing_all(folder / CONFIG, folder / WEIGHTS) as (config, tensors):
        config.write_text(text, encoding="utf-8")
        files.save_tensors(state, tensors, {_DESCRIBED: _fingerprint(json.loads(text))})


def _fingerprint(config: Mapping[str, Any]) -> str:
    """Fingerprint of the pair's description, to detect damage; it excludes versions and ``run``."""
    said = {name: config.get(name) for name in ("model", "num_rows", "arguments", "params")}
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def _describe_pair(pair: Any) -> dict[str, Any]:
    try:
        transform = configs.describe(pair.transform)
    except ValueError:  # the user's own, without stored arguments: it comes from code, like the programs
        transform = {"class": type(pair.transform).__name__, "from_code": True}
    return {
        "class": "Pair",
        "programs": {"model": _called(pair.model), "guide": _called(pair.guide)},
        "transform": transform,
        "event_shape": None if pair.event_shape is None else list(pair.event_shape),
        "data_range": None if pair.data_range is None else describe_constraint(pair.data_range),
        "missing": pair.missing,
    }


def _called(program: Any) -> str:
    """A program's name in its code, for human readers."""
    named = program if hasattr(program, "__qualname__") else type(program)
    return f"{named.__module__}.{named.__qualname__}"


def _bare() -> dict[str, Tensor]:
    """Unconstrained values in Pyro's store that no module holds."""
    params = pyro.get_param_store().get_state()["params"]
    return {name: value for name, value in params.items() if not isinstance(value, nn.Parameter)}


def argument_shapes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Type and shape of a row of each keyword argument, or the value of one that all rows share, as JSON data.

    With this in ``pair.argument_shapes``, a pair can run its programs without data.

    Example:
        >>> argument_shapes({"inputs": torch.zeros(5, 3), "temperature": 0.5})
        {'inputs': {'dtype': 'float32', 'shape': [3]}, 'temperature': {'value': 0.5}}
    """
    described: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() > 0:
            described[name] = {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape[1:])}
        elif value is None or isinstance(value, (bool, int, float, str)):
            described[name] = {"value": value}
        elif isinstance(value, Tensor):
            described[name] = {"value": value.item()}
    return described


def _made_up(described: Mapping[str, Any], fill: int, device: torch.device) -> dict[str, Any]:
    """Keyword arguments for two rows, with the right shapes and arbitrary values."""
    return {
        name: torch.full((2, *one["shape"]), fill, dtype=getattr(torch, one["dtype"]), device=device)
        if "shape" in one
        else one["value"]
        for name, one in described.items()
    }


def _store_names(pair: Any) -> set[str]:
    """Names in Pyro's store that belong to the pair: the known ones, or those that a run uses."""
    bare = _bare()
    known = {name for name in getattr(pair, "store_names", ()) if name in bare}
    if known or not bare:
        return known
    try:
        return _run_once(pair, getattr(pair, "argument_shapes", None) or {})
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Pyro's parameter store holds {listed(bare)}, and which of them are this pair's can't be told, because "
            f"its programs do not run without data ({reason}): name them, as in pair.store_names = {{{min(bare)!r}}}"
        ) from error


def _run_once(pair: Any, described: Mapping[str, Any]) -> set[str]:
    """Runs both programs on two rows drawn from the model, and returns the entries of Pyro's store that they use."""
    failed: list[Exception] = []
    for fill in (0, 1):  # an index may be too high, a length or an amount too low
        arguments = _made_up(described, fill, pair.device)
        try:
            with (
                forked_random_state(pair.device),
                evaluating(pair.model, pair.guide),
                poutine.trace(param_only=True) as seen,
            ):
                trace = poutine.trace(pair.model).get_trace(batch_size=2, **arguments_for(pair.model, arguments))
                pair.guide(trace.nodes["x"]["value"], **arguments_for(pair.guide, arguments))
        except Exception as error:
            failed.append(error)
            continue
        return {str(site["name"]) for site in seen.trace.nodes.values() if site["type"] == "param"} & _bare().keys()
    raise failed[0]


def describe_constraint(constraint: Constraint) -> Any:
    """A constraint as JSON data; None if it has no such form.

    Example:
        >>> describe_constraint(constraints.positive), describe_constraint(constraints.interval(0, 2.5))
        ('positive', {'class': 'interval', 'bounds': [0, 2.5]})
    """
    for name in dir(constraints):
        if getattr(constraints, name) is constraint:
            return name
    if isinstance(constraint, Columns):
        columns = [describe_constraint(column) for column in constraint.cseq]
        return None if None in columns else {"class": "columns", "columns": columns, "names": constraint.names}
    if isinstance(constraint, constraints.independent):
        base = describe_constraint(constraint.base_constraint)
        dims = constraint.reinterpreted_batch_ndims
        return None if base is None else {"class": "independent", "base": base, "dims": dims}
    for name in _OF_NUMBERS:
        kind = getattr(constraints, name)
        if type(constraint) is kind:
            bounds = [getattr(constraint, bound) for bound in inspect.signature(kind).parameters]
            bounds = [bound.tolist() if isinstance(bound, Tensor) else bound for bound in bounds]
            return {"class": name, "bounds": bounds}
    return None


def _build_constraint(description: Any) -> Constraint:
    """The constraint that :func:`describe_constraint` described."""
    match description:
        case str():
            found = getattr(constraints, description, None)
            if isinstance(found, Constraint):
                return found
        case {"class": "columns", "columns": columns, "names": names}:
            return Columns([_build_constraint(column) for column in columns], names)
        case {"class": "independent", "base": base, "dims": dims}:
            return constraints.independent(_build_constraint(base), dims)
        case {"class": name, "bounds": bounds} if name in _OF_NUMBERS:
            numbers = [torch.tensor(bound) if isinstance(bound, list) else bound for bound in bounds]
            return getattr(constraints, name)(*numbers)
    raise ValueError(f"it names a constraint {description!r} that this version does not have")


# Reading


def load_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a saved pair's ``config.json``: ``model`` describes it, ``run`` was saved along with it.

    Raises:
        ValueError: if the folder holds no saved model, a damaged one, or one of a newer version.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no saved model: there is no {CONFIG} in it")
    config = files.read_json(path)
    if not isinstance(config, dict) or not {"format_version", "model", "run"} <= config.keys():
        raise ValueError(f"{path} is damaged: it lacks a part of a model's description")
    if not isinstance(config["format_version"], int) or config["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {config['format_version']!s:.40}, "
            f"written by pyro_vae {config.get('pyro_vae_version')!s:.40}; "
            f"this is pyro_vae {__version__}, which reads up to format {FORMAT_VERSION}: install a newer version"
        )
    if config["format_version"] == 1:
        config["model"] = _encoding_for_features(config["model"])
    return config


def _encoding_for_features(description: Any) -> Any:
    """Converts a description of format 1, in which encodings were called features."""
    if isinstance(description, list):
        return [_encoding_for_features(value) for value in description]
    if not isinstance(description, dict):
        return description
    rename = {"features": "encoding"} if description.get("class") in ("Encoder", "WithMask") else {}
    return {rename.get(name, name): _encoding_for_features(value) for name, value in description.items()}


def read_weights(
    folder: str | os.PathLike[str], config: Mapping[str, Any], *, header: bool = False
) -> tuple[dict[str, Tensor], ...]:
    """A saved pair's state, and its entries in Pyro's store.

    Args:
        folder: Where it was saved.
        config: The result of :func:`load_config` for the folder.
        header: Read only shapes and types: tensors on the device ``"meta"``, which take no memory.

    Raises:
        ValueError: if there is no state, or it is damaged, or it belongs to another configuration.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: its training has not finished, and can be resumed")
    tensors, metadata = (files.read_header(path), {}) if header else files.read_tensors(path)
    if metadata.get(_DESCRIBED) not in (None, _fingerprint(config)):
        raise ValueError(
            f"{Path(folder) / CONFIG} is not the one that {WEIGHTS} was saved with: one of the two was changed or is "
            f"damaged; restore it from a copy, or save the model again"
        )
    store = {name.removeprefix(_PARAM): tensors.pop(name) for name in list(tensors) if name.startswith(_PARAM)}
    if config["format_version"] == 1:
        old, new = "guide.encoder.features.", "guide.encoder.encoding."
        tensors = {
            name.replace(f"{old}features.", f"{new}encoding.").replace(old, new): t for name, t in tensors.items()
        }
    return tensors, store


def open_into(
    pair: Any,
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    parts: Iterable[type[nn.Module]] = (),
    whose: str = "this pair",
) -> None:
    """Loads the state of a pair with the same programs into a pair, completely or not at all.

    Args:
        pair: A :class:`~pyro_vae.Pair`.
        folder: Where it was saved.
        config: The result of :func:`load_config` for the folder.
        parts: The user's own classes of transforms.
        whose: The pair's name in messages.

    Raises:
        ValueError: if the folder holds no complete state, or that of other programs.
    """
    folder, path = Path(folder), Path(folder) / CONFIG
    header, _ = read_weights(folder, config, header=True)
    described, before = config["model"], pair.transform
    arguments = config.get("arguments") or getattr(pair, "argument_shapes", None) or {}
    try:
        pair.transform = _build_transform(described["transform"], before, parts)
        _check_state(pair, header, arguments, folder, whose)
        tensors, params = read_weights(folder, config)
        for name in dict(pair.named_parameters()):
            if bool(tensors[name].isnan().any()):
                raise ValueError(f"{folder / WEIGHTS} holds no trained model: {name} has NaN")
        stored = _constraints_for(pair, params, config.get("params", {}), arguments)
        shape, data_range = described.get("event_shape"), described.get("data_range")
        shape = pair.event_shape if shape is None else tuple(shape)
        data_range = pair.data_range if data_range is None else _build_constraint(data_range)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        pair.transform = before
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} is damaged: it lacks a part of a pair's description ({error!r})") from error
    except BaseException:
        pair.transform = before
        raise
    pair.to(device=pair.device, dtype=_dtype_of(tensors, pair.dtype))  # the transform is new
    pair.load_state_dict(tensors)
    pair.event_shape, pair.data_range = shape, data_range
    pair.missing = described.get("missing", pair.missing)  # some premade pairs have it fixed
    pair.num_rows = config.get("num_rows")
    pair.store_names, pair.argument_shapes = set(params), arguments
    state = pyro.get_param_store().get_state()
    for name, value in params.items():
        state["params"][name] = value.to(pair.device).requires_grad_()
        state["constraints"][name] = stored[name]
    pyro.get_param_store().set_state(state)


def _build_transform(description: Any, own: Transform, parts: Iterable[type[nn.Module]]) -> Transform:
    if description.get("from_code"):
        if type(own).__name__ != description["class"]:
            raise ValueError(
                f"the pair was saved with a transform {description['class']} that can't be built from its "
                f"description: build the pair with one, found {type(own).__name__}"
            )
        return own
    classes = {type(own).__name__: type(own)} | _TRANSFORMS | {part.__name__: part for part in parts}
    transform = configs.build(description, classes)
    if not isinstance(transform, Transform):
        raise ValueError("its description of the transform is damaged: it does not describe one")
    return transform


def _check_state(
    pair: Any, tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], folder: Path, whose: str
) -> None:
    """Checks that the tensors are those of this pair, in name and shape."""
    own = pair.state_dict()
    if tensors.keys() - own.keys():  # such as those that an autoguide makes when it first runs
        try:
            _run_once(pair, arguments)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"{folder / WEIGHTS} has {min(tensors.keys() - own.keys())}, which {whose} lacks, and its programs "
                f"do not run without data ({reason}): if they create it when they first run, encode a row before"
            ) from error
        own = pair.state_dict()
    check_shapes(own, tensors, pair.dtype, folder, whose)


def check_shapes(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], floating: torch.dtype, folder: Path, whose: str
) -> None:
    """Checks that tensors in a file are those of a model, in name, shape and type.

    Args:
        own: The model's state.
        tensors: The file's content, or its header.
        floating: The model's floating-point type; the file may have another.
        folder: The file's folder.
        whose: The model's name in the message.

    Raises:
        ValueError: with the first difference, and their number.
    """
    dtype = _dtype_of(tensors, floating)
    reasons = [f"it has an extra {name}" for name in sorted(tensors.keys() - own.keys())]
    reasons += [f"it lacks {name}" for name in sorted(own.keys() - tensors.keys())]
    for name, value in own.items():
        found = tensors.get(name, value)
        if found.shape != value.shape:
            reasons.append(f"{name} has shape {tuple(found.shape)} in the file and {tuple(value.shape)} in {whose}")
        elif not _same_kind(found.dtype, dtype if value.dtype == floating else value.dtype):
            reasons.append(f"{name} is {found.dtype} in the file and {value.dtype} in {whose}")
    if reasons:
        more = f", and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        raise ValueError(
            f"{folder / WEIGHTS} does not hold the state of {whose} ({reasons[0]}{more}): open it with the parts and "
            f"programs that it was saved with"
        )


def _dtype_of(tensors: Mapping[str, Tensor], default: torch.dtype) -> torch.dtype:
    """The type of a state's weights; a transform's buffers may have other types."""
    weights = (tensor for name, tensor in tensors.items() if not name.startswith("transform."))
    return next((tensor.dtype for tensor in weights if tensor.is_floating_point()), default)


def _same_kind(found: torch.dtype, expected: torch.dtype) -> bool:
    return found == expected or (found.is_floating_point and expected == torch.float64)


def _constraints_for(
    pair: Any, params: Mapping[str, Tensor], described: Mapping[str, Any], arguments: Mapping[str, Any]
) -> dict[str, Constraint]:
    """The constraint of each parameter, from the file if it has it, else from the programs."""
    if any(described.get(name) is None for name in params):
        _run_once(pair, arguments)
    own = pyro.get_param_store().get_state()["constraints"]
    return {n: own[n] if described.get(n) is None else _build_constraint(described[n]) for n in params}
