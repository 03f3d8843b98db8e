"""What a posterior family is."""

from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_vae.heads import Head

__all__ = ["Posterior"]


class Posterior(Head):
    """Base class of posterior families: a :class:`~pyro_vae.heads.Head` whose event is the latent vector, ``(L,)``."""

    @property
    def infer(self) -> Any:
        """How the latent is to be inferred, as :func:`pyro.sample` takes it; by default in no other way than usual."""
        return {}

    arguments: tuple[str, ...] = ()

    def join(self, prior: Any, decoder: Any) -> None:
        """Called when a VAE is put together of its encoder and these two; by default it does nothing."""

    def of_rows(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> TorchDistribution:
        """The distributions of rows ``x`` with this raw output; by default the rows do not count.

        A family that looks at them names in ``arguments`` what it takes of what they come with.
        """
        return self(raw)

    @property
    def known_event_shape(self) -> tuple[int, ...]:
        """The event's shape.

        Raises:
            ValueError: if ``for_event`` has not told it.
        """
        if self.event_shape is None:
            raise ValueError(f"{type(self).__name__} must know the number of latents: use for_event((latent_dim,))")
        return self.event_shape
