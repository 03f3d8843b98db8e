"""A pair of the library's own programs, which is built again from what its parts say of themselves."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from pyro_vae.data.checks import check_fit
from pyro_vae.pair import Pair
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.programs.saving import save_pair
from pyro_vae.transforms import Transform
from pyro_vae.vae.description import describe

__all__ = ["Premade", "check_parts"]


class Premade(Pair):
    """Base class of premade pairs: a :class:`~pyro_vae.Pair` that :func:`~pyro_vae.load` opens without its code.

    To write a new one, keep each constructor argument under its own name, say in ``networks`` which networks it has,
    and name the class in ``pyro_vae/vae/saving.py``. Classes of parts that are its own stand in ``parts``.
    """

    parts: ClassVar[tuple[type[nn.Module], ...]] = ()

    def networks(self) -> Mapping[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, by what they are called, each with the shape of one row that it takes."""
        raise NotImplementedError(f"{type(self).__name__} must define networks()")

    def save(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model to a folder: ``config.json`` and ``model.safetensors``, both whole or none at all.

        :func:`~pyro_vae.load` builds it again from what its parts say of themselves. Where a part does not, such as a
        network that keeps no constructor arguments, the state alone is written, as of any pair, and
        ``load(folder, into=pair)`` opens it.

        Args:
            folder: Made if it is not there; the two files in it are replaced.
            run: JSON data to keep beside the model's description, such as where it was trained and how.

        Raises:
            ValueError: if something can't be saved, before anything is written.
        """
        save_pair(self, folder, run, description=describe(self))

    def save_config(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model's description alone, without weights."""
        save_pair(self, folder, run, description=describe(self), weights=False)


def check_parts(latent_dim: int, decoder: Decoder, encoder: Encoder, transform: Transform) -> None:
    """Makes sure that parts go together; an encoder that does not know the shape of its rows is told the decoder's.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, or the parts disagree on the rows or
            on the number of latents.
    """
    if latent_dim != encoder.latent_dim:
        raise ValueError(f"the prior has {latent_dim} latents and the encoder {encoder.latent_dim}")
    if encoder.event_shape is None:
        encoder.event_shape = decoder.event_shape
    if encoder.event_shape != decoder.event_shape:
        raise ValueError(f"the decoder's rows have shape {decoder.event_shape} and the encoder's {encoder.event_shape}")
    check_fit(transform, decoder.likelihood.data_range, type(decoder.likelihood).__name__)
