"""Latents in two dimensions by UMAP, which keeps near rows near."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Neighbours"]


@dataclass(frozen=True)
class Neighbours:
    """A map of latents by UMAP (McInnes et al., *UMAP*, 2018). Points of the map lead to the nearest row.

    Args:
        z: Latents ``(N, L)``.
        places: Where they are on the map, ``(N, 2)``.
    """

    z: Tensor
    places: Tensor

    @classmethod
    def of(cls, z: Tensor, seed: int = 0) -> "Neighbours":
        """The map of latents ``(N, L)``.

        Raises:
            ImportError: if UMAP is not installed.
        """
        try:
            import umap  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise ImportError("the map of neighbours needs UMAP: pip install 'pyro-vae[umap]'") from error
        found = umap.UMAP(random_state=seed, n_jobs=1, n_neighbors=min(15, len(z) - 1)).fit_transform(z.numpy())
        return cls(z, torch.as_tensor(found, dtype=z.dtype))

    @property
    def axes(self) -> tuple[str, str]:
        """Labels of the two axes."""
        return "UMAP of the latents", "near rows are near; distances mean little"

    def points(self, z: Tensor) -> Tensor:
        """Where the rows are whose latents are nearest to latents ``(M, L)``: ``(M, 2)``."""
        return self.places[torch.cdist(z, self.z).argmin(1)]

    def latents(self, points: Tensor) -> Tensor:
        """The latents ``(M, L)`` of the rows that are nearest to points ``(M, 2)``."""
        return self.z[torch.cdist(points, self.places).argmin(1)]
