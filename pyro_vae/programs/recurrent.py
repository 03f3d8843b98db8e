"""The encoder of a deep Markov model, which reads rows backwards."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.encodings import Encoding
from pyro_vae.posteriors import DiagonalNormal

__all__ = ["BackwardEncoder", "by_step"]


class BackwardEncoder(nn.Module):
    r"""A recurrent network that reads a row backwards, and a normal distribution of the next state given the last.

    .. math:: q(z_t \mid z_{t-1}, h_t) = \mathcal{N}(\mathrm{affine}(c_t)), \qquad
        c_t = \tfrac{1}{2} (\tanh(\mathrm{affine}(z_{t-1})) + h_t)

    Args:
        encoding: How one step of a row is presented, with its mask.
        step_shape: Shape of one step.
        latent_dim: Size L of a state.
        hidden_dim: Width of the recurrent network.
    """

    def __init__(self, encoding: Encoding, step_shape: Sequence[int], latent_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.encoding, self.step_shape = encoding, tuple(step_shape)
        self.latent_dim, self.hidden_dim = latent_dim, hidden_dim
        self.cell = nn.GRUCell(torch.Size(encoding.shape(self.step_shape)).numel(), hidden_dim)
        self.combine, self.out = nn.Linear(latent_dim, hidden_dim), nn.Linear(hidden_dim, 2 * latent_dim)
        self.start = nn.Parameter(torch.zeros(latent_dim))
        self.normal = DiagonalNormal()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the encoding takes."""
        return self.encoding.arguments

    def read(self, x: Tensor, mask: Tensor, **arguments: Any) -> tuple[list[Tensor], list[Tensor]]:
        """Summaries of rows ``(N, T, *C)`` from each step on: h ``(N, H)``, and whether any is observed, ``(N, 1)``."""
        rows, steps = x.shape[:2]
        shown = self.encoding(x, mask, **by_step(arguments, rows, steps)).reshape(rows, steps, -1)
        seen = mask.reshape(rows, steps, -1).any(-1)
        h, any_yet = x.new_zeros(rows, self.hidden_dim), torch.zeros_like(seen[:, :1])
        states: list[Tensor] = []
        known: list[Tensor] = []
        for t in reversed(range(steps)):
            any_yet = any_yet | seen[:, t : t + 1]
            h = torch.where(any_yet, self.cell(shown[:, t], h), h)
            states.insert(0, h)
            known.insert(0, any_yet)
        return states, known

    def forward(self, before: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale of a state, given the last state ``(*B, L)`` and the summary from this step on."""
        combined = 0.5 * (self.combine(before).tanh() + h)
        made = self.normal(self.out(combined).unflatten(-1, (2, self.latent_dim))).base_dist
        return made.loc, made.scale


def by_step(arguments: dict[str, Any], rows: int, steps: int) -> dict[str, Any]:
    """The rows' arguments, repeated for each step."""
    return {
        name: value[:, None].expand(rows, steps) if isinstance(value, Tensor) and value.dim() == 1 else value
        for name, value in arguments.items()
    }
