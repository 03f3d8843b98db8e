"""A row's code: all its continuous latents as one vector of real numbers."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.inference.batch import Batch, rows_of, with_rows
from pyro_vae.inference.predictive import posterior_latents
from pyro_vae.inference.structure import ContractError, Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["Layout", "draw_codes"]


@dataclass(frozen=True)
class Layout:
    """Where each continuous latent is in the code of a row.

    Args:
        shapes: For each latent its shape, with any number of rows, and the number of dimensions of an event.
    """

    shapes: Mapping[str, tuple[torch.Size, int]]

    def join(self, latents: Mapping[str, Tensor]) -> Tensor:
        """Latents as codes ``(N, d)``."""
        return torch.cat([rows_of(latents[name], event_dim) for name, (_, event_dim) in self.shapes.items()], -1)

    def split(self, codes: Tensor) -> dict[str, Tensor]:
        """Codes ``(N, d)`` as latents."""
        found = {}
        for name, (shape, event_dim) in self.shapes.items():
            size = shape.numel() // shape[len(shape) - 1 - event_dim]
            found[name], codes = with_rows(codes[:, :size], shape, event_dim), codes[:, size:]
        return found


def _layout(batch: Batch, structure: Structure, latents: Mapping[str, Tensor]) -> Layout:
    """The layout of a pair's latents.

    Raises:
        ContractError: if a latent of a row is discrete, or there are no latents of rows.
    """
    local = {name: latent for name, latent in structure.latents.items() if latent.is_local}
    for name, latent in local.items():
        if latent.is_discrete:
            raise ContractError(f"the latent {name!r} is discrete, and a density can be fitted only to continuous ones")
    if not local:
        raise ContractError("the model has no latents of its rows")
    return Layout({name: (latents[name].shape, latent.event_dim) for name, latent in local.items()})


def draw_codes(pair: Pair, x: Inputs, draws_per_row: int, seed: int) -> tuple[Tensor, Layout]:
    """Draws from the aggregate posterior: from the guide at every row.

    Returns:
        Codes ``(draws_per_row * N, d)``, and their layout.

    Raises:
        ContractError: if the latents are not continuous, not the same for every row, or bounded.
    """
    codes: list[Tensor] = []
    layout: Layout | None = None
    with forked_random_state(pair.device):
        for batch in pair.batches(x):
            structure = pair.structure(batch)
            torch.manual_seed(seed + len(codes))
            with evaluating(pair.model, pair.guide):
                drawn = posterior_latents(*pair.programs, batch, structure, draws_per_row)
            for i in range(draws_per_row):
                latents = {name: value[i] for name, value in drawn.items()}
                here = _layout(batch, structure, latents)
                layout = here if layout is None else layout
                codes.append(here.join(latents))
                if codes[-1].shape[1] != codes[0].shape[1]:
                    raise ContractError(
                        f"some rows have {codes[0].shape[1]} latents and some {codes[-1].shape[1]}, so no common "
                        f"density can be fitted"
                    )
    assert layout is not None
    return torch.cat(codes), layout
