"""Priors that are mixtures: of normals, or of the encoder's posteriors at some inputs."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn import functional as F

from pyro_vae._support.ranges import bounds
from pyro_vae.priors.base import Prior

__all__ = ["NormalMixture", "VampPrior"]


class NormalMixture(Prior):
    r"""A mixture of normals with independent latents, learned with the rest of the model.

    .. math:: p(z) = \sum_k \pi_k \prod_j \mathcal{N}(z_j \mid \mu_{kj}, \sigma_{kj}^2)

    Args:
        latent_dim: Number of latents :math:`L`.
        num_components: Number of components K.
        min_scale: Floor of the standard deviations.

    Raises:
        ValueError: if a number is below 1, or ``min_scale`` is not in (0, 1).

    Example:
        >>> NormalMixture(2, num_components=5)().event_shape
        torch.Size([2])
    """

    def __init__(self, latent_dim: int, num_components: int = 10, min_scale: float = 1e-2) -> None:
        super().__init__(latent_dim)
        _check_components(num_components)
        if not 0 < min_scale < 1:
            raise ValueError(f"min_scale must lie between 0 and 1, found {min_scale}")
        self.num_components, self.min_scale = num_components, min_scale
        self.locs = nn.Parameter(torch.randn(num_components, latent_dim))
        start = math.log(math.expm1(1 - min_scale))  # standard deviations of 1
        self.raw_scales = nn.Parameter(torch.full((num_components, latent_dim), start))
        self.logits = nn.Parameter(torch.zeros(num_components))

    def weights(self) -> dist.Categorical:
        r"""The distribution of the component, with probabilities :math:`\pi_k`."""
        return dist.Categorical(logits=self.logits)

    def components(self, index: Tensor | None = None) -> dist.TorchDistribution:
        """The components with these indices, ``(*B,)``, one for each; by default all, ``(K,)``."""
        locs, scales = self.locs, F.softplus(self.raw_scales) + self.min_scale
        if index is not None:
            locs, scales = locs[index], scales[index]
        return dist.Normal(locs, scales).to_event(1)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return dist.MixtureSameFamily(self.weights(), self.components())

    @torch.no_grad()
    def start_at(self, locs: Tensor, scales: Tensor, weights: Tensor) -> None:
        """Starts training from these means and standard deviations, ``(K, L)``, and weights, ``(K,)``.

        Scales at or below the floor are set slightly above it, as there they would have no gradient.
        """
        self.locs.copy_(locs)
        above = scales.clamp(min=1.1 * self.min_scale) - self.min_scale
        self.raw_scales.copy_(above + (-torch.expm1(-above)).log())  # its softplus is ``above``
        self.logits.copy_(weights.log())


class VampPrior(Prior):
    r"""A mixture of the encoder's posteriors at some inputs u: the aggregate posterior of a few pseudo-rows.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z \mid u_k)

    The inputs are learned with the rest of the model, in the model's units and within the range of the data.

    Source: Tomczak & Welling, *VAE with a VampPrior*, 2018.

    Args:
        latent_dim: Number of latents :math:`L`.
        num_components: Number of inputs K.

    Raises:
        ValueError: if a number is below 1; when a VAE is built with it, if its data are categories or several kinds of
            columns; when it is called, if it is not part of a VAE.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((28, 28), latent_dim=10, likelihood=Bernoulli(), prior=VampPrior(10, num_components=50))
        >>> vae.prior.pseudo_inputs.shape, vae.sample(3).shape
        (torch.Size([50, 28, 28]), torch.Size([3, 28, 28]))
    """

    pseudo_inputs: Tensor
    asks_encoder = True

    def __init__(self, latent_dim: int, num_components: int = 500) -> None:
        super().__init__(latent_dim)
        _check_components(num_components)
        self.num_components = num_components
        self._encoder: list[Any] = []  # in a list, as it is a part of the guide
        self._low, self._high = -math.inf, math.inf

    def join(self, encoder: Any, decoder: Any) -> None:  # noqa: D102
        if self._encoder and self._encoder[0] is not encoder:
            raise ValueError("this VampPrior is part of another VAE and uses its encoder: give each VAE its own")
        self._encoder[:] = [encoder]
        if "pseudo_inputs" in self._parameters:
            return
        if isinstance(decoder.likelihood.data_range, constraints.stack):
            raise ValueError(
                "a VampPrior needs data of one kind, and these have several kinds of columns: use another prior"
            )
        self._low, self._high = bounds(decoder.likelihood.data_range)
        shape = (self.num_components, *decoder.event_shape)
        start = torch.randn(shape)
        if math.isfinite(self._low) and math.isfinite(self._high):
            start = self._low + (self._high - self._low) * torch.rand(shape)
        elif math.isfinite(self._low):
            start = self._low + start.abs()
        self.pseudo_inputs = nn.Parameter(start)
        if not encoder.encoding(self.pseudo_inputs).requires_grad:
            raise ValueError("a VampPrior learns its inputs by gradient, and categories have none: use another prior")

    def start_at(self, rows: Tensor) -> None:
        """Starts the inputs at these rows, ``(K, *E)`` in the model's units, as :meth:`Pair.prepare` returns them.

        Raises:
            ValueError: if their number is not that of the components, or their shape differs.
        """
        if not self._encoder or rows.shape != self.pseudo_inputs.shape:
            expected = tuple(self.pseudo_inputs.shape) if self._encoder else "those of a VAE's rows"
            raise ValueError(f"the inputs have shape {expected}, found {tuple(rows.shape)}")
        with torch.no_grad():
            self.pseudo_inputs.copy_(rows)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        if not self._encoder:
            raise ValueError("a VampPrior must be part of a VAE, whose encoder it uses: pass it to mlp_vae(prior=…)")
        components = self._encoder[0](self.pseudo_inputs.clamp(self._low, self._high))
        weights = dist.Categorical(logits=self.pseudo_inputs.new_zeros(self.num_components))
        return dist.MixtureSameFamily(weights, components)


def _check_components(num_components: int) -> None:
    if num_components < 1:
        raise ValueError(f"num_components must be at least 1, found {num_components}")
