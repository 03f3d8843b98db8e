"""Networks from one state of a sequence to the next."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["GatedTransition"]


class GatedTransition(nn.Module):
    r"""Maps one state of a sequence to the next: a gated mean of an affine map and a network.

    .. math:: \text{loc} = (1 - g) \odot (A z + a) + g \odot h(z), \qquad g = \sigma(\mathrm{MLP}(z)), \quad
        \text{raw scale} = B\, \mathrm{ReLU}(h(z)) + b

    It starts near the identity, so states persist.

    Source: Krishnan, Shalit & Sontag, *Structured Inference Networks for Nonlinear State Space Models*, 2017.

    Args:
        in_shape: ``(L,)``.
        out_shape: ``(2, L)``: location and raw scale.
        hidden_dim: Width of the hidden layers.

    Shape:
        ``(*B, L)`` to ``(*B, 2, L)``.

    Example:
        >>> GatedTransition((3,), (2, 3))(torch.zeros(5, 3)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int], hidden_dim: int = 64) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.hidden_dim = tuple(in_shape), tuple(out_shape), hidden_dim
        if self.out_shape != (2, *self.in_shape) or len(self.in_shape) != 1:
            raise ValueError(f"GatedTransition maps (L,) to (2, L), found {self.in_shape} and {self.out_shape}")
        (size,) = self.in_shape
        self.gate = nn.Sequential(nn.Linear(size, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, size), nn.Sigmoid())
        self.change = nn.Sequential(nn.Linear(size, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, size))
        self.affine, self.scale = nn.Linear(size, size), nn.Linear(size, size)
        nn.init.eye_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        gate, change = self.gate(z), self.change(z)
        loc = (1 - gate) * self.affine(z) + gate * change
        return torch.stack([loc, self.scale(change.relu())], -2)
