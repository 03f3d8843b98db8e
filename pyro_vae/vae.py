r"""The pair that most people want, put together for them: one latent vector, a prior, a decoder, an encoder."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pyro_vae import __version__
from pyro_vae._support import configs, files
from pyro_vae.data.checks import check_fit
from pyro_vae.encodings import WithMask
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.pair import Pair
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs import Decoder, Encoder, Guide, Model
from pyro_vae.transforms import Auto, Identity, Transform

__all__ = ["CONFIG", "FORMAT_VERSION", "VAE", "WEIGHTS", "conv_vae", "mlp_vae"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
FORMAT_VERSION = 1


class VAE(Pair):
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
        if prior.latent_dim != encoder.latent_dim:
            raise ValueError(f"the prior has {prior.latent_dim} latents and the encoder {encoder.latent_dim}")
        if encoder.event_shape is None:
            encoder.event_shape = decoder.event_shape
        if encoder.event_shape != decoder.event_shape:
            raise ValueError(
                f"the decoder's rows have shape {decoder.event_shape} and the encoder's {encoder.event_shape}"
            )
        transform = Identity() if transform is None else transform
        check_fit(transform, decoder.likelihood.data_range, type(decoder.likelihood).__name__)
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

    def save(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model to a folder: ``config.json`` and ``model.safetensors``, each whole or not at all.

        Args:
            folder: Made if it is not there; the two files in it are replaced.
            run: JSON data to keep beside the model's description, such as where it was trained and how.
        """
        folder = Path(folder)
        files.write_tensors(self.state_dict(), folder / WEIGHTS)
        self.save_config(folder, run)

    def save_config(self, folder: str | os.PathLike[str], run: Mapping[str, Any] | None = None) -> None:
        """Writes the model's description alone, without weights."""
        content = {
            "format_version": FORMAT_VERSION,
            "pyro_vae_version": __version__,
            "model": configs.describe(self),
            "run": dict(run or {}),
        }
        files.write_json(content, Path(folder) / CONFIG)


def mlp_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: Transform | Literal["auto"] | None = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE with fully connected networks, for rows of any shape.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        likelihood: What kind of data they are.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: The user's units to the model's; ``"auto"`` has :func:`~pyro_vae.fit` choose one when it sees the
            training rows, and say what and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Example:
        >>> import torch
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((28, 28), latent_dim=50, likelihood=Bernoulli())
        >>> vae.sample(3).shape, vae.encode(torch.zeros(2, 28, 28)).event_shape
        (torch.Size([3, 28, 28]), torch.Size([50]))
    """
    hidden_dims = tuple(hidden_dims)
    return _assemble(
        lambda in_shape, out_shape: MLP(in_shape, out_shape, hidden_dims[::-1], activation),
        lambda in_shape, out_shape: MLP(in_shape, out_shape, hidden_dims, activation),
        event_shape,
        latent_dim,
        likelihood,
        prior,
        posterior,
        transform,
        missing,
    )


def conv_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    channels: Sequence[int] = (32, 64),
    upsample: Literal["transposed", "nearest"] = "transposed",
    kernel_size: int = 3,
    activation: str = "ReLU",
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: Transform | Literal["auto"] | None = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE with convolutional networks, for images of any size; the decoder is the encoder's mirror image.

    Args:
        event_shape: ``(H, W)`` or ``(C, H, W)``.
        latent_dim: Number of latents.
        likelihood: What kind of data they are.
        channels: Channels of the encoder's layers; each halves height and width.
        upsample: How the decoder doubles them, see :class:`~pyro_vae.networks.ConvDecoder`.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: The user's units to the model's; ``"auto"`` has :func:`~pyro_vae.fit` choose one when it sees the
            training rows, and say what and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = conv_vae((1, 28, 28), latent_dim=32, likelihood=Normal(link="sigmoid"), upsample="nearest")
        >>> vae.sample(3).shape
        torch.Size([3, 1, 28, 28])
    """
    return _assemble(
        lambda in_shape, out_shape: ConvDecoder(in_shape, out_shape, channels, upsample, kernel_size, activation),
        lambda in_shape, out_shape: ConvEncoder(in_shape, out_shape, channels, kernel_size, activation),
        event_shape,
        latent_dim,
        likelihood,
        prior,
        posterior,
        transform,
        missing,
    )


_Network = Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]


def _assemble(
    decoder_network: _Network,
    encoder_network: _Network,
    event_shape: Sequence[int],
    latent_dim: int,
    likelihood: Likelihood,
    prior: Prior | None,
    posterior: Posterior | None,
    transform: Transform | Literal["auto"] | None,
    missing: Literal["nan"] | None,
) -> VAE:
    """Puts the parts together, each network with the shapes that its neighbours need."""
    event_shape, z_shape = tuple(event_shape), (latent_dim,)
    prior = StandardNormal(latent_dim) if prior is None else prior
    posterior = DiagonalNormal() if posterior is None else posterior
    encoding = likelihood.encoding(event_shape)
    if missing:
        encoding = WithMask(encoding, event_shape)
    return VAE(
        prior,
        Decoder(decoder_network(z_shape, likelihood.raw_shape(event_shape)), likelihood, event_shape),
        Encoder(
            encoder_network(encoding.shape(event_shape), posterior.raw_shape(z_shape)), posterior, latent_dim, encoding
        ),
        Auto() if transform == "auto" else transform,
        missing,
    )
