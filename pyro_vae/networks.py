"""Neural networks, tensor in and tensor out. Nothing here knows of probability.

Every network maps ``(*B, *in_shape)`` to ``(*B, *out_shape)`` for any number of batch dimensions ``B``, none included,
so that Pyro may put plates (particles, posterior samples) on the left.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae._support.names import lookup

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP", "ResidualMLP"]

ACTIVATIONS = {a.__name__: a for a in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus, nn.SiLU, nn.GELU)}
UPSAMPLES = ("transposed", "nearest")


def _activation(name: str) -> type[nn.Module]:
    return ACTIVATIONS[lookup(name, ACTIVATIONS, "activation")]


def _batch_shape(x: Tensor, in_shape: tuple[int, ...], network: nn.Module) -> torch.Size:
    """The leading dimensions of ``x``, once its trailing ones are known to be ``in_shape``."""
    batch_dim = x.dim() - len(in_shape)
    if batch_dim < 0 or tuple(x.shape[batch_dim:]) != in_shape:
        raise ValueError(
            f"{type(network).__name__} takes tensors of shape (*batch, {', '.join(map(str, in_shape))}), "
            f"found {tuple(x.shape)}"
        )
    return x.shape[:batch_dim]


def _as_image(shape: tuple[int, ...], role: str) -> tuple[int, int, int]:
    """Reads ``(..., H, W)`` as channels, height, width; everything left of the height is a channel."""
    if len(shape) < 2:
        raise ValueError(f"a convolutional network needs {role} of shape (H, W) or (C, H, W), found {shape}")
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _sizes(size: tuple[int, int], depth: int) -> list[tuple[int, int]]:
    """Heights and widths after 0, 1, …, ``depth`` halvings, rounded up."""
    sizes = [size]
    for _ in range(depth):
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


class MLP(nn.Module):
    """Fully connected network; with no hidden layer, an affine map.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dims: Widths of the hidden layers, from input to output.
        activation: Name of a ``torch.nn`` activation: ReLU, LeakyReLU, Tanh, Softplus, SiLU or GELU.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> MLP((28, 28), (2, 50), hidden_dims=(400,))(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([5, 3, 2, 50])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden_dims: Sequence[int] = (400,),
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.hidden_dims, self.activation = tuple(hidden_dims), activation
        nonlinearity = _activation(activation)
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for hidden_dim in self.hidden_dims:
            layers += [nn.Linear(width, hidden_dim), nonlinearity()]
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_shape = _batch_shape(x, self.in_shape, self)
        return self.layers(x.reshape(*batch_shape, math.prod(self.in_shape))).reshape(*batch_shape, *self.out_shape)


class GatedMLP(nn.Module):
    r"""Fully connected network of gated layers, :math:`h = (A x + a) \odot \sigma(B x + b)`, then an affine map.

    With ``hidden_dims=(300, 300)`` it is the network of Tomczak & Welling, *VAE with a VampPrior*, 2018; the layer is
    that of Dauphin et al., *Language Modeling with Gated Convolutional Networks*, 2017.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dims: Widths of the gated layers, from input to output.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> GatedMLP((28, 28), (2, 40))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 40])
    """

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], hidden_dims: Sequence[int] = (300, 300)
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.hidden_dims = tuple(in_shape), tuple(out_shape), tuple(hidden_dims)
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for hidden_dim in self.hidden_dims:
            layers += [nn.Linear(width, 2 * hidden_dim), nn.GLU()]
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_shape = _batch_shape(x, self.in_shape, self)
        return self.layers(x.reshape(*batch_shape, math.prod(self.in_shape))).reshape(*batch_shape, *self.out_shape)


class ResidualMLP(nn.Module):
    r"""Fully connected network of one width, whose blocks add to what they are given.

    .. math:: h \leftarrow h + W_2\, \phi\left(W_1\, \mathrm{norm}(h) + b_1\right) + b_2

    Source: He et al., *Identity Mappings in Deep Residual Networks*, 2016; the layers' norm of Ba et al., *Layer
    Normalization*, 2016.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dim: The width.
        num_blocks: Blocks in a row.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> ResidualMLP((10,), (2, 4), hidden_dim=32)(torch.zeros(5, 10)).shape
        torch.Size([5, 2, 4])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden_dim: int = 256,
        num_blocks: int = 2,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.hidden_dim, self.num_blocks, self.activation = hidden_dim, num_blocks, activation
        nonlinearity = _activation(activation)
        self.first = nn.Linear(math.prod(self.in_shape), hidden_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, hidden_dim), nonlinearity(),
                nn.Linear(hidden_dim, hidden_dim),
            )
            for _ in range(num_blocks)
        )  # fmt: skip
        self.last = nn.Sequential(nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, math.prod(self.out_shape)))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_shape = _batch_shape(x, self.in_shape, self)
        h = self.first(x.reshape(*batch_shape, math.prod(self.in_shape)))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).reshape(*batch_shape, *self.out_shape)


class ConvEncoder(nn.Module):
    """Convolutions of stride 2, then an affine map: image in, features out.

    Each layer halves height and width, rounding up, so that any size works, odd ones and 1×1 included.

    Args:
        in_shape: ``(H, W)`` or ``(C, H, W)``.
        out_shape: Shape of one output, of any rank.
        channels: Channels after each convolution, from input to output.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> ConvEncoder((3, 32, 32), (2, 10), channels=(16, 32))(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 2, 10])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        kernel_size: int = 3,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.channels, self.kernel_size, self.activation = tuple(channels), kernel_size, activation
        self.image_shape = _as_image(self.in_shape, "inputs")
        _check_kernel(kernel_size)
        nonlinearity = _activation(activation)
        layers: list[nn.Module] = []
        width, *size = self.image_shape
        for channel in self.channels:
            layers += [nn.Conv2d(width, channel, kernel_size, 2, kernel_size // 2), nonlinearity()]
            width = channel
        height, breadth = _sizes((size[0], size[1]), len(self.channels))[-1]
        self.layers = nn.Sequential(
            *layers, nn.Flatten(), nn.Linear(width * height * breadth, math.prod(self.out_shape))
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_shape = _batch_shape(x, self.in_shape, self)
        images = x.reshape(batch_shape.numel(), *self.image_shape)
        return self.layers(images).reshape(*batch_shape, *self.out_shape)


class ConvDecoder(nn.Module):
    """The mirror image of :class:`ConvEncoder`: an affine map, then layers that double height and width.

    A layer undoes the encoder's rounding too, so the output has exactly the asked-for size. ``upsample`` says how:
    ``"transposed"`` convolves with stride ½, and overlaps of the kernel can show as a checkerboard; ``"nearest"``
    repeats pixels and then convolves, which cannot (Odena et al., *Deconvolution and Checkerboard Artifacts*, 2016).

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: ``(..., H, W)``; everything left of the height is a channel.
        channels: The encoder's ``channels``, in the encoder's order.
        upsample: ``"transposed"`` or ``"nearest"``.
        kernel_size: Side of the kernels, odd.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> ConvDecoder((10,), (1, 28, 20), upsample="nearest")(torch.zeros(4, 10)).shape
        torch.Size([4, 1, 28, 20])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        channels: Sequence[int] = (32, 64),
        upsample: Literal["transposed", "nearest"] = "transposed",
        kernel_size: int = 3,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.channels, self.kernel_size, self.activation = tuple(channels), kernel_size, activation
        self.upsample = lookup(upsample, UPSAMPLES, "upsampling")
        _check_kernel(kernel_size)
        out_channels, height, breadth = _as_image(self.out_shape, "outputs")
        widths = [out_channels, *self.channels]
        sizes = _sizes((height, breadth), len(self.channels))
        layer = _transposed if self.upsample == "transposed" else _nearest
        self.stem = nn.Linear(math.prod(self.in_shape), widths[-1] * math.prod(sizes[-1]))
        self.stem_shape = (widths[-1], *sizes[-1])
        nonlinearity = _activation(activation)
        layers: list[nn.Module] = []
        for depth in range(len(self.channels), 0, -1):
            layers += [nonlinearity(), layer(widths[depth], widths[depth - 1], sizes[depth - 1], kernel_size)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_shape = _batch_shape(x, self.in_shape, self)
        features = self.stem(x.reshape(batch_shape.numel(), math.prod(self.in_shape)))
        images = self.layers(features.reshape(batch_shape.numel(), *self.stem_shape))
        return images.reshape(*batch_shape, *self.out_shape)


def _check_kernel(kernel_size: int) -> None:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, so that a layer halves any size exactly; found {kernel_size}")


def _transposed(in_channels: int, out_channels: int, size: tuple[int, int], kernel_size: int) -> nn.Module:
    # Without output padding the result is 2 * ceil(n / 2) - 1 wide, one short where n is even.
    output_padding = (1 - size[0] % 2, 1 - size[1] % 2)
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size, 2, kernel_size // 2, output_padding)


def _nearest(in_channels: int, out_channels: int, size: tuple[int, int], kernel_size: int) -> nn.Module:
    return nn.Sequential(_Resize(size), nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2))


class _Resize(nn.Module):
    """Repeats the nearest pixels up to a given height and width."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, size=self.size, mode="nearest")
