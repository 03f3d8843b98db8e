"""Opening a saved model. Files are data: nothing in them is executed."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, overload

import torch
from torch import nn

from pyro_vae._support import configs
from pyro_vae.pair import Pair
from pyro_vae.programs.saving import CONFIG, check_shapes, load_config, open_into, read_weights
from pyro_vae.vae.clusters import ClusterVAE
from pyro_vae.vae.conditional import ConditionalVAE
from pyro_vae.vae.description import PARTS, describe
from pyro_vae.vae.ladder import LadderVAE
from pyro_vae.vae.model import VAE
from pyro_vae.vae.multimodal import MultimodalVAE
from pyro_vae.vae.pooled import PooledVAE
from pyro_vae.vae.premade import Premade
from pyro_vae.vae.semi_supervised import SemiSupervisedVAE
from pyro_vae.vae.sequences import DeepMarkovModel
from pyro_vae.vae.topics import TopicModel
from pyro_vae.vae.vector_quantized import VectorQuantizedVAE

__all__ = ["check_same", "load"]

PREMADE: dict[str, type[Premade]] = {
    kind.__name__: kind
    for kind in (
        ClusterVAE,
        ConditionalVAE,
        DeepMarkovModel,
        LadderVAE,
        MultimodalVAE,
        PooledVAE,
        SemiSupervisedVAE,
        TopicModel,
        VAE,
        VectorQuantizedVAE,
    )
}

_Pair = TypeVar("_Pair", bound=Pair)


@overload
def load(folder: str | os.PathLike[str], *, into: None = ..., parts: Iterable[type[nn.Module]] = ...) -> Any: ...


@overload
def load(folder: str | os.PathLike[str], *, into: _Pair, parts: Iterable[type[nn.Module]] = ...) -> _Pair: ...


def load(folder: str | os.PathLike[str], *, into: Pair | None = None, parts: Iterable[type[nn.Module]] = ()) -> Pair:
    """Opens what ``save`` wrote, in evaluation mode.

    A :class:`~pyro_vae.VAE`, or another premade pair, is rebuilt from its description, on the CPU. Programs of your own
    come from your code: build the pair as it was when it was saved, and pass it as ``into``.

    Args:
        folder: The folder that the model was saved to.
        into: A pair of the same programs, or a premade one of the same parts, that receives the saved state: weights,
            buffers, entries in Pyro's parameter store, and transform.
        parts: Classes of your own that a premade pair or a transform is made of, if there are any.

    Returns:
        ``into``, or a new pair.

    Raises:
        ValueError: if the folder has no saved model, a damaged or half-written one, one of a newer version, or the
            state of another pair. ``into`` is then unchanged.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae import Pair, mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((4,), latent_dim=2, likelihood=Normal())
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vae.save(folder)
        ...     opened = load(folder)
        >>> torch.equal(opened.decode(torch.ones(1, 2)).mean, vae.decode(torch.ones(1, 2)).mean)
        True
    """
    folder, parts = Path(folder), tuple(parts)
    config = load_config(folder)
    if into is None:
        pair = _build(folder, config, parts)
        open_into(pair, folder, config, parts, whose=f"the model that {CONFIG} describes")
        return pair.eval()
    if isinstance(into, Premade):
        check_same(into, folder, config, whose=f"the {type(into).__name__} given as into=")
    open_into(into, folder, config, parts)
    return into.eval()


def _build(folder: Path, config: dict[str, Any], parts: tuple[type[nn.Module], ...]) -> Premade:
    """The model that a configuration describes, with fresh weights."""
    description = config["model"]
    if isinstance(description, dict) and description.get("class") == "Pair":
        programs = " and ".join(map(str, description.get("programs", {}).values()))
        raise ValueError(
            f"{folder} holds the state of a pair whose programs are code ({programs}): build the pair as it was, and "
            f"open it with load(folder, into=pair)"
        )
    own = {part.__name__: part for kind in PREMADE.values() for part in kind.parts}
    classes = PARTS | PREMADE | own | {part.__name__: part for part in parts}
    try:
        if not parts:  # before memory is allocated: a damaged size may be anything
            with torch.device("meta"):
                sizes = configs.build(description, classes)
            if not isinstance(sizes, Premade):
                raise ValueError("it does not describe a VAE")
            header, _ = read_weights(folder, config, header=True)
            check_shapes(sizes.state_dict(), header, sizes.dtype, folder, f"the model that {CONFIG} describes")
        model = configs.build(description, classes)
        if not isinstance(model, Premade):
            raise ValueError("it does not describe a VAE")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"cannot open {folder / CONFIG}: {error!s:.500}") from error
    return model


def check_same(pair: Premade, folder: Path, config: dict[str, Any], *, whose: str) -> None:
    """Checks that a premade pair has the saved parts, as far as both are described."""
    saved, own = configs.with_defaults(config["model"], PARTS | PREMADE), describe(pair)
    if own is None or not isinstance(saved, dict) or saved.get("class") != own["class"]:
        return
    for name, here in own.items():
        there = saved.get(name)
        if name != "transform" and here != there and not (config["format_version"] == 1 and name == "encoder"):
            raise ValueError(f"{whose} is not the one in {folder}: its {name} is {here}, saved was {there}")
