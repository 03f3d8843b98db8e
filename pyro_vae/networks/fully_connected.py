"""Fully connected networks."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.networks.base import Network, Normalization, activation_named, normalized

__all__ = ["MLP", "GatedMLP", "ResidualMLP"]


class MLP(Network):
    """Fully connected network; with no hidden layer, an affine map.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dims: Widths of the hidden layers, from input to output.
        activation: Name of a ``torch.nn`` activation: ReLU, LeakyReLU, Tanh, Softplus, SiLU or GELU.
        normalization: Normalisation of each hidden layer, before its activation: ``"layer"`` (Ba et al., *Layer
            Normalization*, 2016), ``"group"`` (Wu & He, *Group Normalization*, 2018) or ``"none"``.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> MLP((28, 28), (2, 50), hidden_dims=(400,))(torch.zeros(5, 3, 28, 28)).shape
        torch.Size([5, 3, 2, 50])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden_dims: Sequence[int] = (400,),
        activation: str = "ReLU",
        normalization: Normalization = "none",
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden_dims, self.activation, self.normalization = tuple(hidden_dims), activation, normalization
        nonlinearity = activation_named(activation)
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for hidden_dim in self.hidden_dims:
            layers += [nn.Linear(width, hidden_dim), *normalized(normalization, hidden_dim), nonlinearity()]
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(self.out_shape)))

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.layers(x.reshape(x.shape[0], math.prod(self.in_shape)))


class GatedMLP(Network):
    r"""Fully connected network of gated layers, :math:`h = (A x + a) \odot \sigma(B x + b)`, then an affine map.

    Source: the layer is that of Dauphin et al., *Language Modeling with Gated Convolutional Networks*, 2017; for VAEs
    with such networks see Tomczak & Welling, *VAE with a VampPrior*, 2018.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dims: Widths of the gated layers, from input to output.
        normalization: Normalisation of values and gates together, before the gates, as in :class:`MLP`.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> GatedMLP((28, 28), (2, 40))(torch.zeros(5, 28, 28)).shape
        torch.Size([5, 2, 40])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        hidden_dims: Sequence[int] = (300, 300),
        normalization: Normalization = "none",
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden_dims, self.normalization = tuple(hidden_dims), normalization
        layers: list[nn.Module] = []
        width = math.prod(self.in_shape)
        for hidden_dim in self.hidden_dims:
            layers += [nn.Linear(width, 2 * hidden_dim), *normalized(normalization, 2 * hidden_dim), nn.GLU()]
            width = hidden_dim
        self.layers = nn.Sequential(*layers, nn.Linear(width, math.prod(self.out_shape)))

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.layers(x.reshape(x.shape[0], math.prod(self.in_shape)))


class ResidualMLP(Network):
    r"""Fully connected residual network of constant width.

    .. math:: h \leftarrow h + W_2\, \phi\left(W_1\, \mathrm{norm}(h) + b_1\right) + b_2

    Source: He et al., *Identity Mappings in Deep Residual Networks*, 2016.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.
        hidden_dim: The width.
        num_blocks: Number of blocks.
        activation: Name of a ``torch.nn`` activation, as in :class:`MLP`.
        normalization: As in :class:`MLP`, at the start of a block and before the last affine map.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
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
        normalization: Normalization = "layer",
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden_dim, self.num_blocks = hidden_dim, num_blocks
        self.activation, self.normalization = activation, normalization
        nonlinearity = activation_named(activation)
        self.first = nn.Linear(math.prod(self.in_shape), hidden_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                *normalized(normalization, hidden_dim),
                nn.Linear(hidden_dim, hidden_dim),
                nonlinearity(),
                nn.Linear(hidden_dim, hidden_dim),
            )
            for _ in range(num_blocks)
        )
        last = nn.Linear(hidden_dim, math.prod(self.out_shape))
        self.last = nn.Sequential(*normalized(normalization, hidden_dim), last)

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        h = self.first(x.reshape(x.shape[0], math.prod(self.in_shape)))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)
