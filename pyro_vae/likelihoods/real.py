"""Measurements on the real line, or scaled into an interval."""

import math
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae._support.ranges import Constraint, constraints, interval
from pyro_vae.likelihoods.base import Dispersed

__all__ = ["Laplace", "Normal", "StudentT"]

Link = Literal["linear", "sigmoid", "tanh"]
Scale = float | Literal["shared", "element", "network"]

# Name, range of the data, the map from raw output to the mean, and the start of a learned scale: about the standard
# deviation of such data around a rough prediction.
_LINKS = {
    "linear": (constraints.real, lambda raw: raw, 1.0),
    "sigmoid": (constraints.unit_interval, torch.sigmoid, 0.25),
    "tanh": (interval(-1, 1), torch.tanh, 0.5),
}


class _LocationScale(Dispersed):
    """A location with a link, and a scale."""

    def __init__(self, scale: Any = "shared", link: Link = "linear", min_scale: float = 1e-3) -> None:
        super().__init__()
        self.link, self.min_scale = lookup(link, _LINKS, "link"), min_scale
        self.set_dispersion("scale", scale, floor=min_scale, start=_LINKS[self.link][2])

    @property
    def data_range(self) -> Constraint:
        """The range of the link: the real line, [0, 1] or [-1, 1]."""
        return _LINKS[self.link][0]

    def location(self, raw: Tensor) -> Tensor:
        """The raw output through the link."""
        return _LINKS[self.link][1](raw)


class Normal(_LocationScale):
    r"""Factorised normal likelihood, for measurements.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    Squared error is this with a fixed scale. A learned shared scale lets the data decide the weight of reconstruction
    relative to the KL (Rybkin et al., *Simple and Effective VAE Training with Calibrated Decoders*, 2021).

    Args:
        scale: The standard deviation :math:`\sigma` in the model's units: a positive number fixes it;
            ``"shared"`` learns one; ``"element"`` learns one for each element; ``"network"`` takes it from the decoder;
            ``"optimal"`` sets one, at each training step, to the root mean square of that batch's residuals, which
            maximises the likelihood (σ-VAE, same source). Outside training it is the running average of those.
        link: The map from raw output to mean, by the range of the data: ``"sigmoid"`` for [0, 1], ``"tanh"`` for [-1,
            1], ``"linear"`` for standardised or unbounded data.
        min_scale: Floor of a learned scale. Without it the density has no upper bound.

    Shape:
        raw: ``(*B, 2, *E)`` with ``scale="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Raises:
        ValueError: if ``scale`` or ``min_scale`` is not positive, or a name is unknown.

    Example:
        >>> p_x = Normal(scale="network")(torch.zeros(64, 2, 784))
        >>> p_x.batch_shape, p_x.event_shape
        (torch.Size([64]), torch.Size([784]))
    """

    _MOMENTUM = 0.99
    batch_variance: Tensor
    variance_sum: Tensor
    variance_weight: Tensor

    def __init__(
        self,
        scale: float | Literal["shared", "element", "network", "optimal"] = "shared",
        link: Link = "linear",
        min_scale: float = 1e-3,
    ) -> None:
        if isinstance(scale, str):
            lookup(scale, ("shared", "element", "network", "optimal"), "scale")
        super().__init__(1.0 if scale == "optimal" else scale, link, min_scale)
        self.scale = scale
        if scale == "optimal":
            self.register_buffer("batch_variance", torch.tensor(_LINKS[self.link][2] ** 2))
            self.register_buffer("variance_sum", torch.zeros(()))
            self.register_buffer("variance_weight", torch.zeros(()))

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """With ``scale="optimal"``, stores the batch's mean squared residual."""
        if self.scale != "optimal":
            return
        with torch.no_grad():
            squares = (x - self.location(self.read(raw)[0][0])).square()
            seen = torch.ones_like(squares) if mask is None else mask.to(squares.dtype).expand_as(squares)
            self.batch_variance.copy_((squares * seen).sum() / seen.sum().clamp(min=1))
            self.variance_sum.lerp_(self.batch_variance, 1 - self._MOMENTUM)
            self.variance_weight.lerp_(torch.ones_like(self.variance_weight), 1 - self._MOMENTUM)

    def dispersion(self, params: Any) -> Tensor:
        """The current scale."""
        if self.scale != "optimal":
            return super().dispersion(params)
        average = torch.where(
            self.variance_weight > 0,
            self.variance_sum / self.variance_weight.clamp(min=1e-12),
            self.batch_variance,
        )
        variance = self.batch_variance if self.training else average
        # A copy, because the next batch overwrites the buffer before this one's gradient is computed.
        return variance.clone().sqrt().clamp(min=self.min_scale)

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Normal with the linked mean and the current scale."""
        return dist.Normal(self.location(params[0]), self.dispersion(params))


class Laplace(_LocationScale):
    r"""Factorised Laplace likelihood, for measurements with outlying elements; minus its logarithm is absolute error.

    .. math:: p(x \mid z) = \prod_i \frac{1}{2 b_i} \exp\left(-\frac{|x_i - \mu_i(z)|}{b_i}\right)

    Args:
        scale: The scale :math:`b`, :math:`1/\sqrt 2` of the standard deviation: a number, ``"shared"``,
            ``"element"`` or ``"network"``, as in :class:`Normal`.
        link: As in :class:`Normal`.
        min_scale: Floor of a learned scale.

    Shape:
        raw: ``(*B, 2, *E)`` with ``scale="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> round(Laplace(scale=0.5)(torch.zeros(1, 1, 2)).log_prob(torch.zeros(2)).item(), 6)
        0.0
    """

    def __init__(self, scale: Scale = "shared", link: Link = "linear", min_scale: float = 1e-3) -> None:
        super().__init__(scale, link, min_scale)

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Laplace with the linked location and the current scale."""
        return dist.Laplace(self.location(params[0]), self.dispersion(params))


class StudentT(_LocationScale):
    r"""Factorised Student's t likelihood, for measurements with heavy tails.

    .. math:: p(x \mid z) = \prod_i \mathrm{St}(x_i \mid \nu, \mu_i(z), s_i)

    Args:
        df: Degrees of freedom :math:`\nu > 1`. The mean exists above 1, the variance above 2.
        scale: The scale :math:`s`, as in :class:`Normal`. The standard deviation is
            :math:`s \sqrt{\nu / (\nu - 2)}`.
        link: As in :class:`Normal`.
        min_scale: Floor of a learned scale.

    Shape:
        raw: ``(*B, 2, *E)`` with ``scale="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Raises:
        ValueError: if ``df`` is not above 1.

    Example:
        >>> StudentT(df=3.0, scale=1.0)(torch.zeros(1, 1, 2)).mean
        tensor([[0., 0.]])
    """

    def __init__(
        self, df: float = 5.0, scale: Scale = "shared", link: Link = "linear", min_scale: float = 1e-3
    ) -> None:
        super().__init__(scale, link, min_scale)
        if not 1 < df < math.inf:
            raise ValueError(f"df must be above 1, or there is no mean; found {df}")
        self.df = df

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Student's t with the linked location and the current scale."""
        return dist.StudentT(self.df, self.location(params[0]), self.dispersion(params))
