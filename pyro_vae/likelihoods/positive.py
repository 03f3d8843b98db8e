"""Positive measurements, and proportions."""

from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae._support.ranges import Constraint, constraints, interval
from pyro_vae.encodings import Encoding, Log
from pyro_vae.likelihoods.base import Anchored, Dispersed
from pyro_vae.likelihoods.real import Scale

__all__ = ["Beta", "Gamma", "LogNormal"]


class LogNormal(Dispersed, Anchored):
    r"""Factorised log-normal likelihood, for positive measurements with relative errors.

    .. math:: \log x_i \sim \mathcal{N}(\mu_i(z), \sigma_i^2), \qquad \mu = \text{raw} + \text{anchor}

    with the anchor of :class:`Anchored`.

    Args:
        scale: The standard deviation :math:`\sigma` of the logarithm: a number, ``"shared"``, ``"element"`` or
            ``"network"``.
        min_scale: Floor of a learned scale.

    Shape:
        raw: ``(*B, 2, *E)`` with ``scale="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> LogNormal(scale=0.1)(torch.zeros(1, 1, 2)).event_shape
        torch.Size([2])
    """

    def __init__(self, scale: Scale = "shared", min_scale: float = 1e-3) -> None:
        super().__init__()
        self.min_scale = min_scale
        self.set_dispersion("scale", scale, floor=min_scale, start=0.5)

    @property
    def data_range(self) -> Constraint:
        """Positive numbers."""
        return constraints.positive

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Logarithms."""
        return Log(event_shape)

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Log-normal with the raw output as the mean of the logarithm."""
        return dist.LogNormal(self.log_mean(params[0]), self.dispersion(params))


class Gamma(Dispersed, Anchored):
    r"""Factorised gamma likelihood, for positive measurements such as durations and amounts.

    .. math:: p(x \mid z) = \prod_i \mathrm{Gamma}\left(x_i \mid a_i, a_i / m_i(z)\right), \qquad
        m = \exp(\text{raw} + \text{anchor}), \quad \mathrm{Var}(x_i \mid z) = m_i^2 / a_i

    Args:
        concentration: The concentration :math:`a`: a number, ``"shared"``, ``"element"`` or ``"network"``.
        min_concentration: Floor of a learned ``concentration``.

    Shape:
        raw: ``(*B, 2, *E)`` with ``concentration="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> Gamma(concentration=2.0)(torch.zeros(1, 1, 2)).mean
        tensor([[1., 1.]])
    """

    def __init__(self, concentration: Scale = "shared", min_concentration: float = 1e-2) -> None:
        super().__init__()
        self.min_concentration = min_concentration
        self.set_dispersion("concentration", concentration, floor=min_concentration, start=1.0)

    @property
    def data_range(self) -> Constraint:
        """Positive numbers."""
        return constraints.positive

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Logarithms."""
        return Log(event_shape)

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Gamma with the raw output as the logarithm of the mean."""
        concentration = self.dispersion(params)
        return dist.Gamma(concentration, concentration * torch.exp(-self.log_mean(params[0])))


class Beta(Dispersed):
    r"""Factorised beta likelihood, for proportions strictly between 0 and 1.

    .. math:: p(x \mid z) = \prod_i \mathrm{Beta}\left(x_i \mid m_i(z)\, c_i, (1 - m_i(z))\, c_i\right), \qquad
        m = \epsilon + (1 - 2 \epsilon)\, \mathrm{sigmoid}(\text{raw}), \ \epsilon = 10^{-4}

    The density is zero or infinite at 0 and 1, so data must keep ``margin`` away from them:
    ``Scale(low, high, onto=(margin, 1 - margin))`` does so.

    Args:
        concentration: The concentration :math:`c`: a number, ``"shared"``, ``"element"`` or ``"network"``.
        min_concentration: Floor of a learned ``concentration``.
        margin: Distance from 0 and 1 that data must keep.

    Shape:
        raw: ``(*B, 2, *E)`` with ``concentration="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> Beta(concentration=2.0)(torch.zeros(1, 1, 2)).log_prob(torch.tensor([0.3, 0.9])).item()
        0.0
    """

    def __init__(self, concentration: Scale = "shared", min_concentration: float = 1e-2, margin: float = 1e-3) -> None:
        super().__init__()
        if not 0 < margin < 0.5:
            raise ValueError(f"margin must lie between 0 and 0.5, found {margin}")
        self.min_concentration, self.margin = min_concentration, margin
        self.set_dispersion("concentration", concentration, floor=min_concentration, start=2.0)

    @property
    def data_range(self) -> Constraint:
        """The interval from ``margin`` to ``1 - margin``."""
        return interval(self.margin, 1 - self.margin)

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Beta with the raw output as the logit of the mean."""
        concentration, low = self.dispersion(params), 1e-4
        # Each from its own sigmoid: one minus the other would round to zero.
        above, below = (low + (1 - 2 * low) * torch.sigmoid(sign * params[0]) for sign in (1, -1))
        return dist.Beta(above * concentration, below * concentration)
