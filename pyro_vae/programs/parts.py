"""The two parts of a VAE that are networks: what x is like given z, and what z is like given x."""

from collections.abc import Sequence
from typing import Any

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.encodings import Features, Plain
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Posterior

__all__ = ["Decoder", "Encoder"]


class Decoder(nn.Module):
    r"""A network and a likelihood: :math:`z \mapsto p(x \mid z)`.

    Args:
        network: Maps ``(*B, L)`` to ``(*B, *likelihood.raw_shape(event_shape))``.
        likelihood: Turns that into a distribution. The decoder takes a copy of its own.
        event_shape: Shape of one row of data.

    Shape:
        z: ``(*B, L)``. Returns a distribution with batch ``(*B,)`` and event ``event_shape``, in the model's units. Of
        ``x`` and ``mask``, ``(*B, *event_shape)``, the distribution does not depend on x but through a likelihood that
        asks to observe training data; entries where ``mask`` is false have no say in its log-probability. Other
        keyword arguments go to the likelihood.
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.network = network
        self.likelihood = likelihood.for_event(self.event_shape)

    def forward(  # noqa: D102
        self, z: Tensor, x: Tensor | None = None, mask: Tensor | None = None, **context: Any
    ) -> TorchDistribution:
        raw = self.network(z)
        if x is not None and self.training:
            self.likelihood.observe(raw, x, mask, **context)
        return self.likelihood(raw, mask=mask, **context)


class Encoder(nn.Module):
    r"""A network and a posterior family: :math:`x \mapsto q(z \mid x)`.

    Args:
        network: Maps ``(*B, *features.shape(event_shape))`` to ``(*B, *posterior.raw_shape((latent_dim,)))``.
        posterior: Turns that into a distribution. The encoder takes a copy of its own.
        latent_dim: Number of latents :math:`L`.
        features: How the network is shown a row; by default as it is.

    Shape:
        x: ``(*B, *event_shape)`` in the model's units; mask: the same, true where an entry is observed. Returns a
        distribution with batch ``(*B,)`` and event ``(L,)``.
    """

    def __init__(
        self, network: nn.Module, posterior: Posterior, latent_dim: int, features: Features | None = None
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.features = Plain() if features is None else features
        self.network = network
        self.posterior = posterior.for_event((latent_dim,))

    def forward(self, x: Tensor, mask: Tensor | None = None, **context: Any) -> TorchDistribution:  # noqa: D102
        if "size_factor" in context:  # what was looked at more is not more
            x = x / context["size_factor"].to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.posterior(self.network(self.features(x, mask)))
