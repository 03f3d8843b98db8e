"""A pair of the library's own programs, which can be rebuilt from the description of its parts."""

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from pyro_vae._support.notebooks import facts
from pyro_vae.data.checks import check_fit
from pyro_vae.pair import Pair
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.programs.saving import save_pair
from pyro_vae.transforms import Auto, Identity, Transform
from pyro_vae.vae.description import describe

__all__ = ["GivenTransform", "Premade", "check_parts"]

GivenTransform = Transform | Literal["auto"] | None


class Premade(Pair):
    """Base class of premade pairs: a :class:`~pyro_vae.Pair` that :func:`~pyro_vae.load` opens without other code.

    To write a new one, store each constructor argument under its own name, list the networks beyond the usual two in
    ``networks``, and add the class to ``pyro_vae/vae/saving.py``. List its own classes of parts in ``parts``.

    Args:
        model: Ends in a decoder, which gives the pair its likelihood and the shape of its rows.
        guide: Begins with an encoder.
        transform: Maps the user's units to the model's. By default the data are in the model's units; with ``"auto"``,
            :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes.
    """

    parts: ClassVar[tuple[type[nn.Module], ...]] = ()
    model: Any
    guide: Any

    def __init__(
        self,
        model: GenerativeProgram,
        guide: InferenceProgram,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        likelihood = model.decoder.likelihood
        transform = Identity() if transform is None else Auto() if isinstance(transform, str) else transform
        check_fit(transform, likelihood.data_range, type(likelihood).__name__)
        super().__init__(
            model,
            guide,
            transform=transform,
            event_shape=model.event_shape,
            data_range=likelihood.data_range,
            missing=missing,
        )

    @property
    def prior(self) -> Any:
        """The prior of the latents: ``prior()`` is p(z)."""
        return self.model.prior

    @property
    def decoder(self) -> Decoder:
        """The decoder: ``decoder(z)`` is p(x | z), for any number of batch dimensions and with gradients."""
        return self.model.decoder

    @property
    def encoder(self) -> Any:
        """The encoder: ``encoder(x)`` is q(z | x), for ``x`` in the model's units and with gradients."""
        return self.guide.encoder

    @property
    def has_met_gaps(self) -> bool:
        """Whether the encoder was trained on rows with gaps: premade programs always take a mask."""
        return self.missing is not None

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks by name, each with the shape of one row of its input."""
        shown = self.encoder.encoding.shape(self.decoder.event_shape)
        return {"encoder": (self.encoder.network, shown), "decoder": (self.decoder.network, (self.encoder.latent_dim,))}

    def _repr_html_(self) -> str:
        return facts(
            type(self).__name__,
            {
                "rows": " × ".join(map(str, self.decoder.event_shape)) or "one number",
                "p(z)": self.prior,
                "p(x|z)": self.decoder.likelihood,
                "q(z|x)": self.encoder.posterior,
                "transform": self.transform,
                "missing entries": self.missing or "none",
                "weights": f"{sum(p.numel() for p in self.parameters()):,}, on {self.device}",
            },
        )

    def save(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model to a folder: ``config.json`` and ``model.safetensors``, both or neither.

        :func:`~pyro_vae.load` rebuilds it from the description of its parts. If a part has none, such as a network that
        does not store its constructor arguments, only the state is written, as for any pair, and ``load(folder,
        into=pair)`` opens it.

        Args:
            folder: Created if missing; the two files in it are replaced.
            run: JSON data to store with the model's description, such as where and how it was trained.

        Raises:
            ValueError: if something can't be saved, before anything is written.
        """
        save_pair(self, folder, run, description=describe(self))

    def save_config(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model's description alone, without weights."""
        save_pair(self, folder, run, description=describe(self), weights=False)


def check_parts(latent_dim: int, decoder: Decoder, encoder: Encoder) -> None:
    """Checks that parts match; an encoder without a shape of rows takes the decoder's.

    Raises:
        ValueError: if they disagree on the rows or on the number of latents.
    """
    if latent_dim != encoder.latent_dim:
        raise ValueError(f"the prior has {latent_dim} latents and the encoder {encoder.latent_dim}")
    if encoder.event_shape is None:
        encoder.event_shape = decoder.event_shape
    if encoder.event_shape != decoder.event_shape:
        raise ValueError(f"the decoder's rows have shape {decoder.event_shape} and the encoder's {encoder.event_shape}")
