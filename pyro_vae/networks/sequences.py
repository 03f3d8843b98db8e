"""Recurrent networks for sequences: an encoder and a decoder."""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.networks.base import Network

__all__ = ["RecurrentDecoder", "RecurrentEncoder"]


class RecurrentEncoder(Network):
    """Gated recurrent units that read a sequence from its first step, then an affine map of the last state.

    Source: Cho et al., *Learning Phrase Representations using RNN Encoder–Decoder for Statistical Machine Translation*,
    2014.

    Args:
        in_shape: ``(..., T, C)``: T steps of C numbers; dimensions left of T belong to each step, too.
        out_shape: Shape of one output, of any rank.
        hidden_dims: State sizes of the layers, each of which reads the one before.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> RecurrentEncoder((12, 3), (2, 5), hidden_dims=(32,))(torch.zeros(4, 12, 3)).shape
        torch.Size([4, 2, 5])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], hidden_dims: Sequence[int] = (128,)) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden_dims = tuple(hidden_dims)
        num_parts, self.num_steps, num_features = _as_sequence(self.in_shape, "inputs")
        widths = [num_parts * num_features, *_checked(self.hidden_dims)]
        self.layers = _units(widths)
        self.last = nn.Linear(widths[-1], math.prod(self.out_shape))

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        num_parts, num_steps, num_features = _as_sequence(self.in_shape, "inputs")
        steps = x.reshape(x.shape[0], num_parts, num_steps, num_features).transpose(1, 2)
        h = steps.reshape(x.shape[0], num_steps, num_parts * num_features)
        for layer in self.layers:
            h, _ = layer(h)
        return self.last(h[:, -1])


class RecurrentDecoder(Network):
    """The counterpart of :class:`RecurrentEncoder`: gated recurrent units that get the input at each of T steps.

    Each step's output is an affine map of its state, which starts at zero. The steps are independent given the input:
    none depends on earlier draws.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: ``(..., T, C)``: T steps of C numbers; dimensions left of T belong to each step, too.
        hidden_dims: The encoder's ``hidden_dims``, in the encoder's order.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> RecurrentDecoder((5,), (2, 12, 3), hidden_dims=(32,))(torch.zeros(4, 5)).shape
        torch.Size([4, 2, 12, 3])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], hidden_dims: Sequence[int] = (128,)) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden_dims = tuple(hidden_dims)
        num_parts, self.num_steps, num_features = _as_sequence(self.out_shape, "outputs")
        widths = [math.prod(self.in_shape), *reversed(_checked(self.hidden_dims))]
        self.layers = _units(widths)
        self.last = nn.Linear(widths[-1], num_parts * num_features)

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        num_parts, num_steps, num_features = _as_sequence(self.out_shape, "outputs")
        h = x.reshape(x.shape[0], 1, math.prod(self.in_shape)).expand(-1, num_steps, -1)
        for layer in self.layers:
            h, _ = layer(h)
        return self.last(h).reshape(x.shape[0], num_steps, num_parts, num_features).transpose(1, 2)


def _as_sequence(shape: tuple[int, ...], role: str) -> tuple[int, int, int]:
    """Reads ``(..., T, C)`` as the size of the dimensions left of T, T and C."""
    if len(shape) < 2 or shape[-2] < 1:
        raise ValueError(f"a recurrent network needs {role} of shape (T, C), with at least one step, found {shape}")
    return math.prod(shape[:-2]), shape[-2], shape[-1]


def _checked(hidden_dims: tuple[int, ...]) -> tuple[int, ...]:
    if not hidden_dims:
        raise ValueError("a recurrent network needs at least one layer, and hidden_dims is empty")
    return hidden_dims


def _units(widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.GRU(width, hidden_dim, batch_first=True) for width, hidden_dim in itertools.pairwise(widths)
    )
