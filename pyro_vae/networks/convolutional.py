"""Convolutional networks for rows on a grid, images or signals: encoders, and the decoders that mirror them.

An encoder halves the grid with each convolution, a decoder doubles it. Between two changes of size, both have the same
*stage*: an activation, a gate, or residual blocks.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae._support.names import lookup
from pyro_vae.networks.base import Network, Normalization, activation_named, normalized

__all__ = [
    "UPSAMPLES",
    "ConvDecoder",
    "ConvEncoder",
    "GatedConvDecoder",
    "GatedConvEncoder",
    "ResidualConvDecoder",
    "ResidualConvEncoder",
    "Upsample",
    "as_grid",
]

Upsample = Literal["transposed", "nearest"]
UPSAMPLES: tuple[Upsample, ...] = ("transposed", "nearest")

_CONVOLUTIONS = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d)}
_GRIDS = {1: "(T,) or (C, T)", 2: "(H, W) or (C, H, W)"}

_Size = tuple[int, ...]
_Stage = Callable[[int, _Size], list[nn.Module]]  # takes its input channels, and their height and width


def as_grid(shape: Sequence[int], num_dims: int, role: str) -> tuple[int, _Size]:
    """Reads ``(..., H, W)``, or ``(..., T)``, as channels and a grid; everything left of the grid is a channel."""
    if num_dims not in _GRIDS:
        raise ValueError(f"num_dims must be 1 for signals or 2 for images, found {num_dims}")
    shape = tuple(shape)
    if len(shape) < num_dims:
        raise ValueError(f"a convolutional network needs {role} of shape {_GRIDS[num_dims]}, found {shape}")
    return math.prod(shape[:-num_dims]), shape[-num_dims:]


def _sizes(size: _Size, depth: int) -> list[_Size]:
    """Heights and widths after 0, 1, …, ``depth`` halvings, rounded up."""
    sizes = [size]
    for _ in range(depth):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


class _Encoder(Network):
    """Convolutions of stride 2, each with a stage after it, then an affine map."""

    layers: nn.Sequential

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int],
        kernel_size: int,
        num_dims: int,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.channels, self.kernel_size, self.num_dims = tuple(channels), kernel_size, num_dims
        width, size = as_grid(self.in_shape, num_dims, "inputs")
        self.image_shape = (width, *size)
        _check_kernel(kernel_size)

    def _layers(self, stage: _Stage, expand: int = 1) -> nn.Sequential:
        """The layers; a stage has ``expand`` times as many input channels as output channels."""
        convolution, _ = _CONVOLUTIONS[self.num_dims]
        width, *size = self.image_shape
        sizes = _sizes(tuple(size), len(self.channels))
        layers: list[nn.Module] = []
        for channel, size in zip(self.channels, sizes[1:], strict=True):
            layers += [convolution(width, expand * channel, self.kernel_size, 2, self.kernel_size // 2)]
            layers += stage(expand * channel, size)
            width = channel
        features = width * math.prod(sizes[-1])
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, math.prod(self.out_shape)))

    def of_rows(self, x: Tensor) -> Tensor:
        return self.layers(x.reshape(x.shape[0], *self.image_shape))


class _Decoder(Network):
    """An affine map, then layers that double the grid, each with a stage before it."""

    stem: nn.Linear
    layers: nn.Sequential

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int],
        upsample: Upsample,
        kernel_size: int,
        num_dims: int,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.channels, self.kernel_size, self.num_dims = tuple(channels), kernel_size, num_dims
        self.upsample: Upsample = lookup(upsample, UPSAMPLES, "upsampling")  # pyright: ignore[reportAttributeAccessIssue]
        as_grid(self.out_shape, num_dims, "outputs")
        _check_kernel(kernel_size)

    def _build(self, stage: _Stage, expand: int = 1) -> None:
        """Builds the layers; a stage has ``expand`` times as many input channels as output channels."""
        out_channels, size = as_grid(self.out_shape, self.num_dims, "outputs")
        depth, sizes = len(self.channels), _sizes(size, len(self.channels))
        returned = [out_channels, *self.channels]
        given = [out_channels, *(expand * channel for channel in self.channels)]
        larger = _transposed if self.upsample == "transposed" else _nearest
        self.stem_shape = (given[-1], *sizes[-1])
        self.stem = nn.Linear(math.prod(self.in_shape), math.prod(self.stem_shape))
        layers: list[nn.Module] = []
        for d in range(depth, 0, -1):
            layers += [*stage(given[d], sizes[d]), larger(returned[d], given[d - 1], sizes[d - 1], self.kernel_size)]
        self.layers = nn.Sequential(*layers)

    def of_rows(self, x: Tensor) -> Tensor:
        features = self.stem(x.reshape(x.shape[0], math.prod(self.in_shape)))
        return self.layers(features.reshape(x.shape[0], *self.stem_shape))


class ConvEncoder(_Encoder):
    """Convolutions of stride 2, then an affine map: image or signal in, features out.

    Each layer halves height and width, rounding up, so any size works, including odd ones and 1×1.

    Args:
        in_shape: ``(H, W)`` or ``(C, H, W)`` for images, ``(T,)`` or ``(C, T)`` for signals.
        out_shape: Shape of one output, of any rank.
        channels: Channels after each convolution, from input to output.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.
        normalization: Normalisation of each convolution, before its activation, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> ConvEncoder((3, 32, 32), (2, 10), channels=(16, 32))(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 2, 10])
        >>> ConvEncoder((100,), (2, 10), num_dims=1)(torch.zeros(4, 100)).shape
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        activation: str = "ReLU",
        normalization: Normalization = "none",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, kernel_size, num_dims)
        self.activation, self.normalization = activation, normalization
        self.layers = self._layers(_activated(activation, normalization))


class ConvDecoder(_Decoder):
    """The mirror image of :class:`ConvEncoder`: an affine map, then layers that double height and width.

    A layer undoes the encoder's rounding too, so the output has exactly the requested size. ``upsample`` sets the
    method: ``"transposed"`` convolves with stride ½, and overlaps of the kernel can leave a checkerboard; ``"nearest"``
    repeats pixels and then convolves, which leaves none (Odena et al., *Deconvolution and Checkerboard Artifacts*,
    2016).

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: ``(..., H, W)`` for images, ``(..., T)`` for signals. Dimensions further left are channels.
        channels: The encoder's ``channels``, in the encoder's order.
        upsample: ``"transposed"`` or ``"nearest"``.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.
        normalization: Normalisation of each layer's input, before the activation, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> ConvDecoder((10,), (1, 28, 20), upsample="nearest")(torch.zeros(4, 10)).shape
        torch.Size([4, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        upsample: Upsample = "transposed",
        kernel_size: int = 3,
        activation: str = "ReLU",
        normalization: Normalization = "none",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, upsample, kernel_size, num_dims)
        self.activation, self.normalization = activation, normalization
        self._build(_activated(activation, normalization))


class GatedConvEncoder(_Encoder):
    r"""Gated convolutions of stride 2, :math:`h = (A * x + a) \odot \sigma(B * x + b)`, then an affine map.

    Source: Dauphin et al., *Language Modeling with Gated Convolutional Networks*, 2017.

    Args:
        in_shape: As in :class:`ConvEncoder`.
        out_shape: Shape of one output, of any rank.
        channels: Channels after each gate, from input to output.
        kernel_size: Side of the kernels, odd.
        normalization: Normalisation of values and gates together, before the gates, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> GatedConvEncoder((1, 28, 28), (2, 10))(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        normalization: Normalization = "none",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, kernel_size, num_dims)
        self.normalization = normalization
        self.layers = self._layers(_gated(normalization), expand=2)


class GatedConvDecoder(_Decoder):
    """The mirror image of :class:`GatedConvEncoder`.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: As in :class:`ConvDecoder`.
        channels: The encoder's ``channels``, in the encoder's order.
        upsample: As in :class:`ConvDecoder`.
        kernel_size: Side of the kernels, odd.
        normalization: Normalisation of values and gates together, before the gates, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> GatedConvDecoder((10,), (1, 28, 20))(torch.zeros(4, 10)).shape
        torch.Size([4, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        upsample: Upsample = "transposed",
        kernel_size: int = 3,
        normalization: Normalization = "none",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, upsample, kernel_size, num_dims)
        self.normalization = normalization
        self._build(_gated(normalization), expand=2)


class ResidualConvEncoder(_Encoder):
    r"""Convolutions of stride 2 with residual blocks after each, then an affine map.

    .. math:: h \leftarrow h + W_2 * \phi(\mathrm{norm}(W_1 * \phi(\mathrm{norm}(h)) + b_1)) + b_2

    Source: He et al., *Identity Mappings in Deep Residual Networks*, 2016.

    Args:
        in_shape: As in :class:`ConvEncoder`.
        out_shape: Shape of one output, of any rank.
        channels: Channels after each convolution of stride 2, from input to output.
        num_blocks: Number of blocks at each size.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.
        normalization: Normalisation before each activation, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> ResidualConvEncoder((1, 28, 28), (2, 10))(torch.zeros(4, 1, 28, 28)).shape
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        kernel_size: int = 3,
        activation: str = "ReLU",
        normalization: Normalization = "group",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, kernel_size, num_dims)
        self.num_blocks, self.activation, self.normalization = num_blocks, activation, normalization
        self.layers = self._layers(_residual(activation, normalization, num_blocks, kernel_size))


class ResidualConvDecoder(_Decoder):
    """The mirror image of :class:`ResidualConvEncoder`.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: As in :class:`ConvDecoder`.
        channels: The encoder's ``channels``, in the encoder's order.
        num_blocks: Number of blocks at each size.
        upsample: As in :class:`ConvDecoder`.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.
        normalization: Normalisation before each activation, as in :class:`MLP`.
        num_dims: 2 for images, 1 for signals.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> ResidualConvDecoder((10,), (1, 28, 20))(torch.zeros(4, 10)).shape
        torch.Size([4, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        upsample: Upsample = "transposed",
        kernel_size: int = 3,
        activation: str = "ReLU",
        normalization: Normalization = "group",
        num_dims: int = 2,
    ) -> None:
        super().__init__(in_shape, out_shape, channels, upsample, kernel_size, num_dims)
        self.num_blocks, self.activation, self.normalization = num_blocks, activation, normalization
        self._build(_residual(activation, normalization, num_blocks, kernel_size))


def _activated(activation: str, normalization: Normalization) -> _Stage:
    nonlinearity = activation_named(activation)

    def stage(width: int, size: _Size) -> list[nn.Module]:
        return [*normalized(normalization, width, math.prod(size)), nonlinearity()]

    return stage


def _gated(normalization: Normalization) -> _Stage:
    def stage(width: int, size: _Size) -> list[nn.Module]:
        return [*normalized(normalization, width, math.prod(size)), nn.GLU(dim=1)]

    return stage


def _residual(activation: str, normalization: Normalization, num_blocks: int, kernel_size: int) -> _Stage:
    activated = _activated(activation, normalization)

    def stage(width: int, size: _Size) -> list[nn.Module]:
        convolution, _ = _CONVOLUTIONS[len(size)]
        same = partial(convolution, width, width, kernel_size, padding=kernel_size // 2)
        blocks = [
            _Residual(*activated(width, size), same(), *activated(width, size), same()) for _ in range(num_blocks)
        ]
        return [*blocks, *activated(width, size)]

    return stage


class _Residual(nn.Sequential):
    """Adds the output of its layers to the input."""

    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


def _check_kernel(kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that layers halve any size; found {kernel_size}")


def _transposed(in_channels: int, out_channels: int, size: _Size, kernel_size: int) -> nn.Module:
    _, transposed = _CONVOLUTIONS[len(size)]
    # Without output padding the result is 2 * ceil(n / 2) - 1 wide, one too few for even n.
    output_padding = tuple(1 - side % 2 for side in size)
    return transposed(in_channels, out_channels, kernel_size, 2, kernel_size // 2, output_padding)  # pyright: ignore[reportArgumentType]


def _nearest(in_channels: int, out_channels: int, size: _Size, kernel_size: int) -> nn.Module:
    convolution, _ = _CONVOLUTIONS[len(size)]
    return nn.Sequential(_Resize(size), convolution(in_channels, out_channels, kernel_size, padding=kernel_size // 2))


class _Resize(nn.Module):
    """Repeats the nearest pixels up to a given height and width."""

    def __init__(self, size: _Size) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=self.size, mode="nearest")
