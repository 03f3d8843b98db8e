r"""The pair that most people want: one latent vector, a prior, a decoder, an encoder."""

from typing import Literal

from pyro_vae.priors import Prior
from pyro_vae.programs.latent import Guide, Model
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.vae.premade import GivenTransform, Premade, check_parts

__all__ = ["VAE"]


class VAE(Premade):
    r"""Variational autoencoder: :math:`p(z)\,p(x \mid z)` with the guide :math:`q(z \mid x)`.

    ``vae.model`` and ``vae.guide`` are Pyro programs in the model's units. Pyro's own ``SVI``, ``Predictive`` and
    ``NUTS`` take them unchanged.

    Args:
        prior: :math:`p(z)`.
        decoder: :math:`z \mapsto p(x \mid z)`.
        encoder: :math:`x \mapsto q(z \mid x)`.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
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
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        check_parts(prior.latent_dim, decoder, encoder)
        super().__init__(
            Model(prior, decoder),
            Guide(encoder),
            transform,
            missing,
        )
        prior.join(encoder, decoder)
        encoder.posterior.join(prior, decoder)

    @property
    def latent_dim(self) -> int:
        """Number of latents."""
        return self.encoder.latent_dim
