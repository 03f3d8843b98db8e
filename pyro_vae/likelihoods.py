r"""Likelihoods :math:`p(x \mid z)`: what kind of data the decoder describes.

One class each. The base class's docstring says how to add one; then give it a row in ``scripts/choices.py``, where the
command line finds it, and a row in ``tests/test_likelihoods.py``.
"""

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.heads import Head
from pyro_vae.names import lookup
from pyro_vae.ranges import Constraint, constraints, interval

__all__ = ["Bernoulli", "Likelihood", "Normal"]


class Likelihood(Head):
    """Base class of likelihoods: a :class:`~pyro_vae.heads.Head` that names the values it describes.

    To write a new one, follow :class:`~pyro_vae.heads.Head` and define ``data_range``: the constraint
    that data in the model's units must meet. Data and transforms are checked against it before training. Densities
    come from ``pyro.distributions`` with their constants, so that ELBOs compare.
    """

    @property
    def data_range(self) -> Constraint:
        """The values of one element, in the model's units, that this likelihood is for."""
        raise NotImplementedError(f"{type(self).__name__} must define data_range")


class Bernoulli(Likelihood):
    r"""Factorised Bernoulli likelihood, for bits.

    .. math:: p(x \mid z) = \prod_i \pi_i(z)^{x_i} (1 - \pi_i(z))^{1 - x_i}, \qquad \pi = \mathrm{sigmoid}(\text{raw})

    Minus its logarithm is the binary cross-entropy. Grey levels are not bits: give the model
    ``transform=Binarize(low, high)``, which draws bits from them.

    Shape:
        raw: ``(*B, 1, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> p_x = Bernoulli()(torch.zeros(64, 1, 784))
        >>> p_x.batch_shape, p_x.event_shape
        (torch.Size([64]), torch.Size([784]))
    """

    @property
    def data_range(self) -> Constraint:
        """Zero or one."""
        return constraints.boolean

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Bernoulli with the raw output as logits."""
        (logits,) = params
        return dist.Bernoulli(logits=logits)


# Name, range of the data, the map from raw output to the mean, and where a learned scale starts: about the standard
# deviation that data of that range have around a fair prediction.
_LINKS = {
    "linear": (constraints.real, lambda raw: raw, 1.0),
    "sigmoid": (constraints.unit_interval, torch.sigmoid, 0.25),
    "tanh": (interval(-1, 1), torch.tanh, 0.5),
}
_SCALES = ("shared", "element", "network")


class Normal(Likelihood):
    r"""Factorised normal likelihood, for measurements.

    .. math:: p(x \mid z) = \prod_i \mathcal{N}(x_i \mid \mu_i(z), \sigma_i^2)

    Squared error is this with a fixed scale; learning one shared scale instead lets the data say how much
    reconstruction is worth against the KL (Rybkin et al., *Simple and Effective VAE Training with Calibrated
    Decoders*, 2021).

    Args:
        scale: The standard deviation :math:`\sigma` in the model's units: a positive number keeps it fixed;
            ``"shared"`` learns one; ``"element"`` learns one for each element; ``"network"`` has the decoder give it.
        link: How the mean follows from the raw output, by the range of the data: ``"sigmoid"`` for [0, 1],
            ``"tanh"`` for [-1, 1], ``"linear"`` for standardised or unbounded data.
        min_scale: Floor of a learned scale; it bounds the density, which has no upper bound without it.

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

    def __init__(
        self,
        scale: float | Literal["shared", "element", "network"] = "shared",
        link: Literal["linear", "sigmoid", "tanh"] = "linear",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__()
        if not isinstance(scale, str):
            if not 0 < scale < math.inf:
                raise ValueError(f"scale must be a positive number or one of {', '.join(_SCALES)}; found {scale}")
        else:
            lookup(scale, _SCALES, "scale")
        if not 0 < min_scale < math.inf:
            raise ValueError(f"min_scale must be positive, for it bounds the density; found {min_scale}")
        self.scale, self.link, self.min_scale = scale, lookup(link, _LINKS, "link"), min_scale
        self.num_params = 2 if scale == "network" else 1
        # softplus(raw) + min_scale is the scale; the raw value that starts it where the link says.
        start = max(_LINKS[self.link][2] - min_scale, min_scale)
        self._start = start + math.log(-math.expm1(-start))
        if scale == "shared":
            self.raw_scale = nn.Parameter(torch.tensor(self._start))

    @property
    def data_range(self) -> Constraint:
        """The range of the link: the real line, [0, 1] or [-1, 1]."""
        return _LINKS[self.link][0]

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """One raw scale for each element, where that is asked for."""
        if self.scale == "element":
            self.raw_scale = nn.Parameter(torch.full(event_shape, self._start))

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:
        """Normal with the linked mean and the scale in force."""
        loc = _LINKS[self.link][1](params[0])
        if not isinstance(self.scale, str):
            return dist.Normal(loc, self.scale)
        if self.scale == "element" and self.event_shape is None:
            raise ValueError(
                "Normal(scale='element') has one scale for each element: call for_event(event_shape) first"
            )
        raw_scale = params[1] + self._start if self.scale == "network" else self.raw_scale
        return dist.Normal(loc, F.softplus(raw_scale) + self.min_scale)
