"""The plane in which latents vary most, with maps to it and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Plane"]


@dataclass(frozen=True)
class Plane:
    r"""A plane through latents: :math:`z = c + p D`, with a point p of the plane.

    Args:
        centre: Mean of all latents, ``(L,)``.
        directions: Two orthonormal directions, ``(2, L)``; for a single latent the second is zero.
        share: Share of the latents' variance that lies in the plane, from 0 to 1.
    """

    centre: Tensor
    directions: Tensor
    share: float

    @classmethod
    def through(cls, z: Tensor) -> "Plane":
        """The plane of the two principal directions of latents ``(N, L)``.

        Example:
            >>> z = torch.tensor([[0.0, 5.0, 1.0], [0.0, -5.0, 1.0], [2.0, 0.0, 1.0], [-2.0, 0.0, 1.0]])
            >>> plane = Plane.through(z)
            >>> plane.points(z).abs(), round(plane.share, 3)
            (tensor([[5., 0.],
                    [5., 0.],
                    [0., 2.],
                    [0., 2.]]), 1.0)
        """
        centre = z.mean(0)
        _, lengths, directions = torch.linalg.svd(z - centre, full_matrices=False)
        spread = lengths.square()
        found = torch.zeros(2, z.shape[1], dtype=z.dtype)
        found[: len(directions[:2])] = directions[:2]
        return cls(centre, found, float(spread[:2].sum() / spread.sum().clamp(min=torch.finfo(z.dtype).tiny)))

    @property
    def axes(self) -> tuple[str, str]:
        """Labels of the two axes."""
        return "first principal direction of the latents", f"second; the plane has {self.share:.0%} of their variance"

    def points(self, z: Tensor) -> Tensor:
        """Projects latents ``(N, L)`` onto the plane: ``(N, 2)``."""
        return (z - self.centre) @ self.directions.mT

    def latents(self, points: Tensor) -> Tensor:
        """The latents ``(N, L)`` at points ``(N, 2)`` of the plane."""
        return self.centre + points @ self.directions
