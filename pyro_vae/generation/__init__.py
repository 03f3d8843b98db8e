"""Drawing from a trained pair of programs, beyond new rows: see ``docs/generation.md``."""

from typing import TYPE_CHECKING

from pyro_vae._support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vae.generation.aggregate import AggregatePosterior, aggregate_posterior
    from pyro_vae.generation.attributes import attribute_direction, moved_along
    from pyro_vae.generation.entries import ConditionalDraws, conditional
    from pyro_vae.generation.traversal import traverse

__all__ = [
    "AggregatePosterior",
    "ConditionalDraws",
    "aggregate_posterior",
    "attribute_direction",
    "conditional",
    "moved_along",
    "traverse",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "aggregate": ("AggregatePosterior", "aggregate_posterior"),
        "attributes": ("attribute_direction", "moved_along"),
        "entries": ("ConditionalDraws", "conditional"),
        "traversal": ("traverse",),
    },
)
