"""The base class of networks, for any batch shape, and the layers that are chosen by name."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pyro_vae._support.names import lookup

__all__ = ["ACTIVATIONS", "NORMALIZATIONS", "Network", "Normalization", "activation_named", "normalized"]

ACTIVATIONS = {a.__name__: a for a in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Softplus, nn.SiLU, nn.GELU)}

Normalization = Literal["none", "layer", "group"]
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "layer", "group")

_LEAST_IN_GROUP = 8  # channels: with one position, fewer give poor statistics


class Network(nn.Module, ABC):
    """Maps ``(*B, *in_shape)`` to ``(*B, *out_shape)``: the batch dimensions are flattened into one internally.

    Args:
        in_shape: Shape of one input.
        out_shape: Shape of one output, of any rank.
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        batch_dim = x.dim() - len(self.in_shape)
        if batch_dim < 0 or tuple(x.shape[batch_dim:]) != self.in_shape:
            raise ValueError(
                f"{type(self).__name__} takes tensors of shape (*batch, {', '.join(map(str, self.in_shape))}), "
                f"found {tuple(x.shape)}"
            )
        batch_shape = x.shape[:batch_dim]
        rows = x.reshape(math.prod(batch_shape), *self.in_shape)  # an export may leave their number open
        return self.of_rows(rows).reshape(*batch_shape, *self.out_shape)

    @abstractmethod
    def of_rows(self, x: Tensor) -> Tensor:
        """The outputs for ``(N, *in_shape)``: for each row the elements of ``out_shape``, in order."""


def activation_named(name: str) -> type[nn.Module]:
    """The class of an activation."""
    return ACTIVATIONS[lookup(name, ACTIVATIONS, "activation")]


def normalized(name: Normalization, channels: int, num_positions: int = 1) -> list[nn.Module]:
    r"""The layer that normalises ``(N, channels, *positions)``, with a scale and a shift for each channel; or none.

    ``"layer"`` takes mean and variance over all channels and positions of a row (Ba et al., *Layer Normalization*,
    2016), ``"group"`` over groups of channels, as many as possible with at least eight each (Wu & He, *Group
    Normalization*, 2018).

    Raises:
        ValueError: if a mean would be over a single number, which normalises to zero.
    """
    if lookup(name, NORMALIZATIONS, "normalization") == "none":
        return []
    groups = 1
    if name == "group":
        groups = max((g for g in range(1, channels // _LEAST_IN_GROUP + 1) if channels % g == 0), default=1)
    if channels // groups * num_positions < 2:
        raise ValueError(
            f"normalization {name!r} of a single number always gives zero: widen the layer, or leave the "
            f"normalization out"
        )
    return [nn.GroupNorm(groups, channels)]
