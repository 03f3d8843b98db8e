r"""The pair that most people want: one latent vector, a prior, a decoder, an encoder."""

from typing import Literal

from torch import nn

from pyro_vae.priors import Prior
from pyro_vae.programs.latent import Guide, Model
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.transforms import Identity, Transform
from pyro_vae.vae.premade import Premade, check_parts

__all__ = ["VAE"]


class VAE(Premade):
    r"""Variational autoencoder: :math:`p(z)\,p(x \mid z)` with the guide :math:`q(z \mid x)`.

    ``vae.model`` and ``vae.guide`` are Pyro programs in the model's units; Pyro's own ``SVI``, ``Predictive`` and
    ``NUTS`` take them as they are.

    Args:
        prior: :math:`p(z)`.
        decoder: :math:`z \mapsto p(x \mid z)`.
        encoder: :math:`x \mapsto q(z \mid x)`.
        transform: The user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, or the parts disagree on the
            number of latents.

    Source: Kingma & Welling, *Auto-Encoding Variational Bayes*, 2014.
    """

    model: Model
    guide: Guide

    def __init__(
        self,
        prior: Prior,
        decoder: Decoder,
        encoder: Encoder,
        transform: Transform | None = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        transform = Identity() if transform is None else transform
        check_parts(prior.latent_dim, decoder, encoder, transform)
        prior.join(encoder, decoder)
        encoder.posterior.join(prior, decoder)
        super().__init__(
            Model(prior, decoder),
            Guide(encoder),
            transform=transform,
            event_shape=decoder.event_shape,
            data_range=decoder.likelihood.data_range,
            missing=missing,
        )

    @property
    def prior(self) -> Prior:
        """The prior: ``prior()`` is p(z)."""
        return self.model.prior

    @property
    def decoder(self) -> Decoder:
        """The decoder: ``decoder(z)`` is p(x | z), for any number of batch dimensions and with gradients."""
        return self.model.decoder

    @property
    def encoder(self) -> Encoder:
        """The encoder: ``encoder(x)`` is q(z | x), for ``x`` in the model's units and with gradients."""
        return self.guide.encoder

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return self.encoder.latent_dim

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, each with the shape of one row that it takes."""
        shown = self.encoder.encoding.shape(self.decoder.event_shape)
        return {"encoder": (self.encoder.network, shown), "decoder": (self.decoder.network, (self.latent_dim,))}
