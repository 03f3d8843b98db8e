"""Functions that build the usual VAEs, with parts of matching shapes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer

from pyro_vae import networks
from pyro_vae._support.names import lookup
from pyro_vae.encodings import Encoding, WithMask
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    GatedConvDecoder,
    GatedConvEncoder,
    GatedMLP,
    Normalization,
    RecurrentDecoder,
    RecurrentEncoder,
    ResidualConvDecoder,
    ResidualConvEncoder,
    ResidualMLP,
    Upsample,
)
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.parts import Decoder, Encoder, must_map, read_raw
from pyro_vae.programs.running import evaluating, forked_random_state
from pyro_vae.vae.model import VAE
from pyro_vae.vae.premade import GivenTransform

__all__ = [
    "Block",
    "Network",
    "conv_networks",
    "conv_vae",
    "encoding_of",
    "fully_connected",
    "make_network",
    "make_vae",
    "mlp_networks",
    "mlp_vae",
    "recurrent_networks",
    "recurrent_vae",
]

Block = Literal["plain", "gated", "residual"]
_BLOCKS: tuple[Block, ...] = ("plain", "gated", "residual")


def mlp_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    block: Block = "plain",
    activation: str = "ReLU",
    normalization: Normalization | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE with fully connected networks, for rows of any shape.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        likelihood: Distribution of a row given the latents.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse. Residual networks have a
            single width, repeated once for each block.
        block: ``"plain"`` for :class:`~pyro_vae.networks.MLP`, ``"gated"`` for
            :class:`~pyro_vae.networks.GatedMLP`, ``"residual"`` for :class:`~pyro_vae.networks.ResidualMLP`.
        activation: Name of a ``torch.nn`` activation. Gated layers take none.
        normalization: ``"layer"``, ``"group"`` or ``"none"``; by default that of the network's class: none, except in
            residual networks.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one from the
            training rows and says which and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Example:
        >>> import torch
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((28, 28), latent_dim=50, likelihood=Bernoulli())
        >>> vae.sample(3).shape, vae.encode(torch.zeros(2, 28, 28)).event_shape
        (torch.Size([3, 28, 28]), torch.Size([50]))
    """
    encoder_network, decoder_network = mlp_networks(hidden_dims, block, activation, normalization)
    return make_vae(
        event_shape,
        latent_dim,
        likelihood=likelihood,
        encoder_network=encoder_network,
        decoder_network=decoder_network,
        prior=prior,
        posterior=posterior,
        transform=transform,
        missing=missing,
    )


def conv_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    channels: Sequence[int] = (32, 64),
    upsample: Upsample = "transposed",
    kernel_size: int = 3,
    block: Block = "plain",
    activation: str = "ReLU",
    normalization: Normalization | None = None,
    num_dims: int = 2,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE with convolutional networks, for images or signals of any size; the decoder is the encoder's mirror image.

    Args:
        event_shape: ``(H, W)`` or ``(C, H, W)`` for images, ``(T,)`` or ``(C, T)`` for signals.
        latent_dim: Number of latents.
        likelihood: Distribution of a row given the latents.
        channels: Channels of the encoder's layers; each halves height and width.
        upsample: How the decoder doubles them, see :class:`~pyro_vae.networks.ConvDecoder`.
        kernel_size: Side of the kernels, odd.
        block: ``"plain"`` for :class:`~pyro_vae.networks.ConvEncoder` and its mirror image, ``"gated"`` for
            :class:`~pyro_vae.networks.GatedConvEncoder`, ``"residual"`` for
            :class:`~pyro_vae.networks.ResidualConvEncoder`.
        activation: Name of a ``torch.nn`` activation. Gated layers take none.
        normalization: ``"layer"``, ``"group"`` or ``"none"``; by default that of the network's class: none, except in
            residual networks.
        num_dims: 2 for images, 1 for signals.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one from the
            training rows and says which and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = conv_vae((1, 28, 28), latent_dim=32, likelihood=Normal(link="sigmoid"), upsample="nearest")
        >>> vae.sample(3).shape
        torch.Size([3, 1, 28, 28])
    """
    encoder_network, decoder_network = conv_networks(
        channels, upsample, kernel_size, block, activation, normalization, num_dims
    )
    return make_vae(
        event_shape,
        latent_dim,
        likelihood=likelihood,
        encoder_network=encoder_network,
        decoder_network=decoder_network,
        prior=prior,
        posterior=posterior,
        transform=transform,
        missing=missing,
    )


def recurrent_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (128,),
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE with recurrent networks, for sequences: the decoder unrolls each sequence from one latent vector.

    Args:
        event_shape: ``(T, C)``: T steps of C numbers.
        latent_dim: Number of latents.
        likelihood: Distribution of a row given the latents.
        hidden_dims: State sizes of the encoder's layers; the decoder has them in reverse. See
            :class:`~pyro_vae.networks.RecurrentEncoder`.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one from the
            training rows and says which and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = recurrent_vae((12, 3), latent_dim=4, likelihood=Normal())
        >>> vae.sample(5).shape
        torch.Size([5, 12, 3])
    """
    encoder_network, decoder_network = recurrent_networks(hidden_dims)
    return make_vae(
        event_shape,
        latent_dim,
        likelihood=likelihood,
        encoder_network=encoder_network,
        decoder_network=decoder_network,
        prior=prior,
        posterior=posterior,
        transform=transform,
        missing=missing,
    )


Network = nn.Module | Callable[[tuple[int, ...], tuple[int, ...]], nn.Module]
Networks = tuple[Network, Network]
"""An encoder network and a decoder network, or functions of two shapes that build them."""


def mlp_networks(
    hidden_dims: Sequence[int] = (400,),
    block: Block = "plain",
    activation: str = "ReLU",
    normalization: Normalization | None = None,
) -> Networks:
    """The networks of :func:`mlp_vae`, as functions of the two shapes that they map."""
    widths, options = tuple(hidden_dims), _options(block, activation, normalization)
    if block == "residual" and len(set(widths)) != 1:
        raise ValueError(
            f"all blocks of a residual network have the same width, found hidden_dims={widths}: repeat one width for "
            f"each block, such as (400, 400)"
        )

    def network(in_shape: tuple[int, ...], out_shape: tuple[int, ...], widths: tuple[int, ...]) -> nn.Module:
        if block == "residual":
            return ResidualMLP(in_shape, out_shape, widths[0], len(widths), **options)
        return (GatedMLP if block == "gated" else MLP)(in_shape, out_shape, widths, **options)

    return (lambda i, o: network(i, o, widths)), (lambda i, o: network(i, o, widths[::-1]))


def conv_networks(
    channels: Sequence[int] = (32, 64),
    upsample: Upsample = "transposed",
    kernel_size: int = 3,
    block: Block = "plain",
    activation: str = "ReLU",
    normalization: Normalization | None = None,
    num_dims: int = 2,
) -> Networks:
    """The networks of :func:`conv_vae`, as functions of the two shapes that they map."""
    options = _options(block, activation, normalization)
    options |= {"channels": tuple(channels), "kernel_size": kernel_size, "num_dims": num_dims}
    encoder, decoder = _CONVOLUTIONAL[block]
    return (lambda i, o: encoder(i, o, **options)), (lambda i, o: decoder(i, o, upsample=upsample, **options))


def recurrent_networks(hidden_dims: Sequence[int] = (128,)) -> Networks:
    """The networks of :func:`recurrent_vae`, as functions of the two shapes that they map."""
    return (lambda i, o: RecurrentEncoder(i, o, hidden_dims)), (lambda i, o: RecurrentDecoder(i, o, hidden_dims))


_CONVOLUTIONAL: Mapping[Block, tuple[Callable[..., nn.Module], Callable[..., nn.Module]]] = {
    "plain": (ConvEncoder, ConvDecoder),
    "gated": (GatedConvEncoder, GatedConvDecoder),
    "residual": (ResidualConvEncoder, ResidualConvDecoder),
}


def _options(block: Block, activation: str, normalization: Normalization | None) -> dict[str, Any]:
    """The options of a network with such blocks."""
    lookup(block, _BLOCKS, "block")
    if block == "gated" and activation != "ReLU":
        raise ValueError(f"gated layers take no activation, found activation={activation!r}: leave it out")
    options = {} if block == "gated" else {"activation": activation}
    return options if normalization is None else options | {"normalization": normalization}


def make_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    encoder_network: Network,
    decoder_network: Network,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    r"""A VAE with networks of any kind.

    A network is an ``nn.Module`` that maps rows to raw numbers. Likelihood and posterior turn these into distributions:

    =================  =================================================  =========================================
    network            takes                                              returns
    =================  =================================================  =========================================
    encoder_network    ``(N, *likelihood.encoding(E).shape(E))``: the     ``(N, *posterior.raw_shape((L,)))``:
                       row's shape :math:`E`, unless it is encoded        ``(N, 2, L)`` by default
                       otherwise or ``missing`` is given
    decoder_network    ``(N, L)``                                         ``(N, *likelihood.raw_shape(E))``
    =================  =================================================  =========================================

    It may return these numbers flat, or with neighbouring dimensions merged, and an encoder may take flat rows. It only
    ever gets one batch dimension. Both networks are run on two rows here, in evaluation mode, to find a wrong shape
    before training. This also gives lazy layers their shapes.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        likelihood: Distribution of a row given the latents.
        encoder_network: As above, or a function of the two shapes, without N, that builds it.
        decoder_network: As above, or a function of the two shapes that builds it.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one from the
            training rows and says which and why.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Raises:
        ValueError: if a network does not map these shapes; the message says what it returns.
        TypeError: if it is not a module.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = make_vae(
        ...     (28, 28),
        ...     latent_dim=10,
        ...     likelihood=Bernoulli(),
        ...     encoder_network=nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 20)),
        ...     decoder_network=nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 784)),
        ... )
        >>> vae.sample(3).shape
        torch.Size([3, 28, 28])
    """
    event_shape, z_shape = tuple(event_shape), (latent_dim,)
    prior = StandardNormal(latent_dim) if prior is None else prior
    posterior = DiagonalNormal() if posterior is None else posterior
    encoding = encoding_of(likelihood, event_shape, missing)
    decoder = make_network(decoder_network, z_shape, likelihood.raw_shape(event_shape), "decoder_network")
    encoder = make_network(
        encoder_network, encoding.shape(event_shape), posterior.raw_shape(z_shape), "encoder_network"
    )
    return VAE(
        prior,
        Decoder(decoder, likelihood, event_shape),
        Encoder(encoder, posterior, latent_dim, encoding, event_shape),
        transform,
        missing,
    )


def encoding_of(likelihood: Likelihood, event_shape: tuple[int, ...], missing: str | None) -> Encoding:
    """How a row is encoded for the network; if entries may be missing, with the mask of observed ones."""
    encoding = likelihood.encoding(event_shape)
    return WithMask(encoding, event_shape) if missing else encoding


def fully_connected(hidden_dims: Sequence[int], activation: str) -> Callable[..., MLP]:
    """A function of two shapes that builds an :class:`~pyro_vae.networks.MLP`."""
    return lambda in_shape, out_shape: MLP(in_shape, out_shape, tuple(hidden_dims), activation)


def make_network(network: Network, in_shape: tuple[int, ...], out_shape: tuple[int, ...], who: str) -> nn.Module:
    """The network, checked to map these shapes."""
    made = network if isinstance(network, nn.Module) else network(in_shape, out_shape) if callable(network) else network
    if not isinstance(made, nn.Module):
        raise TypeError(f"{who} must be an nn.Module, or a function of two shapes that builds one; found {made!r}")
    if type(made).__module__.startswith(f"{networks.__name__}."):
        return made
    try:
        _try_out(made, in_shape, out_shape, who)
    except ValueError:
        if len(in_shape) < 2:
            raise
        flattening = nn.Sequential(nn.Flatten(), made)
        try:
            _try_out(flattening, in_shape, out_shape, who)
        except ValueError:
            flattening = None
        if flattening is None:
            raise
        return flattening
    return made


def _try_out(network: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...], who: str) -> None:
    """Runs a network on two rows and leaves it unchanged.

    Raises:
        ValueError: if it does not map ``in_shape`` to ``out_shape``.
    """
    first = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
    rows = torch.zeros(2, *in_shape, dtype=first.dtype, device=first.device)
    kept = [
        (part, name, buffer, buffer.clone())
        for part in network.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and not isinstance(buffer, UninitializedBuffer)
    ]
    try:
        with forked_random_state(first.device), evaluating(network):
            try:
                raw = network(rows)
            except Exception as error:
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{must_map(who, in_shape, out_shape)}; given {tuple(rows.shape)} it fails "
                    f"({type(error).__name__}: {reason})"
                ) from error
        read_raw(raw, rows, len(in_shape), out_shape, who)
    finally:
        for part, name, buffer, value in kept:
            part._buffers[name] = buffer.copy_(value)
