"""The base class of posterior families."""

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.heads import Head

__all__ = ["Posterior"]


class Posterior(Head):
    """Base class of posterior families: a :class:`~pyro_vae.heads.Head` whose event is the latent vector, ``(L,)``."""

    @property
    def infer(self) -> Any:
        """The ``infer`` argument of :func:`pyro.sample` for the latent; by default empty."""
        return {}

    arguments: tuple[str, ...] = ()

    def join(self, prior: Any, decoder: Any) -> None:
        """Called when a VAE is built from its encoder and these two; by default does nothing."""

    def of_rows(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> TorchDistribution:
        """The distributions for rows ``x`` with this raw output; by default the rows are ignored.

        A family that uses them names in ``arguments`` the keyword arguments that it takes.
        """
        return self(raw)

    @property
    def known_event_shape(self) -> tuple[int, ...]:
        """The event's shape.

        Raises:
            ValueError: if ``for_event`` has not been called.
        """
        if self.event_shape is None:
            raise ValueError(f"{type(self).__name__} must know the number of latents: use for_event((latent_dim,))")
        return self.event_shape
