"""Opening a saved model. Files are data: nothing in them is run."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pyro_vae import __version__, encodings, likelihoods, networks, posteriors, priors, programs, transforms, vae
from pyro_vae._support import configs, files
from pyro_vae.vae import CONFIG, FORMAT_VERSION, VAE, WEIGHTS

__all__ = ["load", "load_config"]

_ROOMS = (encodings, likelihoods, networks, posteriors, priors, programs, transforms, vae)
_CLASSES = {
    name: part
    for room in _ROOMS
    for name in room.__all__
    if isinstance(part := getattr(room, name), type) and issubclass(part, nn.Module)
}


def load_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a saved model's ``config.json``: ``model`` describes it, ``run`` is what was saved beside it.

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
            f"{path} has format {config['format_version']}, written by pyro_vae {config.get('pyro_vae_version')}; "
            f"this is pyro_vae {__version__}, which reads up to format {FORMAT_VERSION}: install a newer version"
        )
    return config


def load(folder: str | os.PathLike[str], *, parts: Sequence[type[nn.Module]] = ()) -> VAE:
    """Opens what :meth:`pyro_vae.VAE.save` wrote, in evaluation mode, on the CPU.

    Args:
        folder: The folder that it was saved to.
        parts: Classes of your own that the model is made of, if there are any.

    Raises:
        ValueError: if the folder holds no saved model, a damaged or half-written one, or one of a newer version.
    """
    folder = Path(folder)
    model = build_model(folder, load_config(folder), parts)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder} has no {WEIGHTS}: its training has not ended; go on with --resume {folder}")
    tensors, _ = files.read_tensors(folder / WEIGHTS)
    floating = next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.get_default_dtype())
    model.to(floating)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{folder / WEIGHTS} does not hold the model that {CONFIG} describes ({reason})") from error
    return model.eval()


def build_model(folder: Path, config: dict[str, Any], parts: Sequence[type[nn.Module]] = ()) -> VAE:
    """The model that a configuration describes, with fresh weights."""
    try:
        model = configs.build(config["model"], _CLASSES | {part.__name__: part for part in parts})
    except ValueError as error:
        raise ValueError(f"cannot open {folder / CONFIG}: {error}") from error
    if not isinstance(model, VAE):
        raise ValueError(f"{folder / CONFIG} is damaged: it does not describe a VAE")
    return model
