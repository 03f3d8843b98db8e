"""A pair of the library's own programs, which is built again from what its parts say of themselves."""

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
    """Base class of premade pairs: a :class:`~pyro_vae.Pair` that :func:`~pyro_vae.load` opens without its code.

    To write a new one, keep each constructor argument under its own name, say in ``networks`` which networks it has
    beside the usual two, and name the class in ``pyro_vae/vae/saving.py``. Classes of parts that are its own stand in
    ``parts``.

    Args:
        model: Ends in a decoder, whose likelihood and rows are the pair's.
        guide: Begins with an encoder.
        transform: The user's units to the model's; by default the data are in the model's units, and ``"auto"`` has
            :func:`~pyro_vae.fit` choose one.
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
        """Whether the encoder was shown rows with gaps: premade programs take a mask in any case."""
        return self.missing is not None

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, by what they are called, each with the shape of one row that it takes."""
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


def check_parts(latent_dim: int, decoder: Decoder, encoder: Encoder) -> None:
    """Makes sure that parts go together; an encoder that does not know the shape of its rows is told the decoder's.

    Raises:
        ValueError: if they disagree on the rows or on the number of latents.
    """
    if latent_dim != encoder.latent_dim:
        raise ValueError(f"the prior has {latent_dim} latents and the encoder {encoder.latent_dim}")
    if encoder.event_shape is None:
        encoder.event_shape = decoder.event_shape
    if encoder.event_shape != decoder.event_shape:
        raise ValueError(f"the decoder's rows have shape {decoder.event_shape} and the encoder's {encoder.event_shape}")
