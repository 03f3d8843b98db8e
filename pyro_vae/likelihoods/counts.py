r"""Counts: whole numbers from 0, without an upper bound.

All except the multinomial take, as a keyword argument of the programs, a ``size_factor`` for each row, ``(N,)``, or one
number for all rows: the exposure, such as the depth of sequencing. It multiplies the mean, and the encoder sees the
counts divided by it. In the formulas :math:`\eta` is the first raw output plus the anchor of :class:`Anchored`.
"""

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae._support.ranges import Constraint, constraints
from pyro_vae.distributions import Multinomial as MultinomialDistribution
from pyro_vae.distributions import ZeroInflated
from pyro_vae.encodings import Encoding, LogCounts, LogOnePlus, by_row
from pyro_vae.likelihoods.base import Anchored, Dispersed, Likelihood
from pyro_vae.likelihoods.real import Scale

__all__ = ["Multinomial", "NegativeBinomial", "Poisson", "ZeroInflatedNegativeBinomial", "ZeroInflatedPoisson"]


class _Counts(Anchored):
    """Likelihoods of counts; the first raw output is the logarithm of the mean."""

    arguments = ("size_factor",)

    @property
    def data_range(self) -> Constraint:
        """Whole numbers from 0."""
        return constraints.nonnegative_integer

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Logarithms."""
        return LogOnePlus(event_shape)

    def check_arguments(self, *, size_factor: Any = None) -> None:
        """Size factors are positive numbers."""
        if size_factor is None:
            return
        factors = torch.as_tensor(size_factor)
        if factors.dim() > 1:
            raise ValueError(
                f"size_factor has shape {tuple(factors.shape)}, expected one number for each row: ({len(factors)},)"
            )
        good = (factors > 0) & factors.isfinite()
        if not bool(good.all()):
            where = (~good).nonzero()[0].tolist()
            raise ValueError(
                "size_factor must be a positive number for each row, because it multiplies the mean; "
                f"found {factors[tuple(where)].item():g}{f' in row {where[0]}' if where else ''}"
            )

    def exposure(self, x: Tensor, *, size_factor: Tensor | float | None = None) -> Tensor | float:
        """The size factor."""
        event_dim = 1 if self.event_shape is None else len(self.event_shape)
        return 1.0 if size_factor is None else by_row(size_factor, x, event_dim, "size_factor")

    def log_rate(self, raw: Tensor, size_factor: Tensor | float | None) -> Tensor:
        """The logarithm of the mean, including the size factor."""
        exposure = self.exposure(raw, size_factor=size_factor)
        return self.log_mean(raw) + exposure.log() if isinstance(exposure, Tensor) else self.log_mean(raw)


class Poisson(_Counts):
    r"""Factorised Poisson likelihood, for counts whose variance equals their mean.

    .. math:: p(x \mid z) = \prod_i \mathrm{Poisson}(x_i \mid \ell\, \exp(\eta_i)), \quad \ell: \text{size factor}

    Shape:
        raw: ``(*B, 1, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> Poisson()(torch.zeros(2, 1, 3), size_factor=torch.tensor([1.0, 10.0])).mean[:, 0]
        tensor([ 1., 10.])
    """

    def distribution(self, *params: Tensor, size_factor: Tensor | float | None = None) -> dist.TorchDistribution:
        """Poisson with the exponential of the raw output as rate."""
        return dist.Poisson(self.log_rate(params[0], size_factor).exp())


class ZeroInflatedPoisson(_Counts):
    r"""Factorised zero-inflated Poisson likelihood: zero with probability :math:`g`, else Poisson.

    .. math:: p(x_i \mid z) = g_i\, [x_i = 0] + (1 - g_i)\, \mathrm{Poisson}(x_i \mid \ell\, \exp(\eta_i)),
        \qquad g_i = \mathrm{sigmoid}(\text{raw}_{i2})

    Source: Lambert, *Zero-Inflated Poisson Regression*, 1992.

    Shape:
        raw: ``(*B, 2, *E)``. Returns a distribution with batch ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> ZeroInflatedPoisson()(torch.zeros(2, 2, 3)).mean[0]
        tensor([0.5000, 0.5000, 0.5000])
    """

    num_params = 2

    def distribution(self, *params: Tensor, size_factor: Tensor | float | None = None) -> dist.TorchDistribution:
        """Zero-inflated Poisson with rate and gate from the network."""
        return ZeroInflated(dist.Poisson(self.log_rate(params[0], size_factor).exp()), gate_logits=params[1])


class NegativeBinomial(Dispersed, _Counts):
    r"""Factorised negative binomial likelihood, for counts whose variance exceeds their mean.

    .. math:: \mathrm{E}(x_i \mid z) = m_i = \ell\, \exp(\eta_i), \quad \mathrm{Var}(x_i \mid z) = m_i + m_i^2/r_i

    Args:
        total_count: The inverse dispersion :math:`r`: a number, ``"shared"``, ``"element"`` or ``"network"``.
        min_total_count: Floor of a learned ``total_count``.

    Shape:
        raw: ``(*B, 2, *E)`` with ``total_count="network"``, else ``(*B, 1, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> NegativeBinomial(total_count=3.0)(torch.zeros(1, 1, 2)).mean
        tensor([[1.0000, 1.0000]])
    """

    def __init__(self, total_count: Scale = "element", min_total_count: float = 1e-2) -> None:
        super().__init__()
        self.min_total_count = min_total_count
        self.set_dispersion("total_count", total_count, floor=min_total_count, start=1.0)

    def distribution(self, *params: Tensor, size_factor: Tensor | float | None = None) -> dist.TorchDistribution:
        """Negative binomial with the raw output as the logarithm of the mean."""
        total_count = self.dispersion(params)
        return dist.NegativeBinomial(total_count, logits=self.log_rate(params[0], size_factor) - total_count.log())


class ZeroInflatedNegativeBinomial(Dispersed, _Counts):
    r"""Factorised zero-inflated negative binomial likelihood, for counts with still more zeros.

    .. math:: p(x_i \mid z) = g_i\, [x_i = 0] + (1 - g_i)\, \mathrm{NB}(x_i \mid m_i, r_i), \qquad
        m_i = \ell\, \exp(\eta_i), \quad g_i = \mathrm{sigmoid}(\text{raw}_{i2})

    Source: Risso et al., *A general and flexible method for signal extraction from single-cell RNA-seq data*, 2018.

    Args:
        total_count: The inverse dispersion :math:`r`: a number, ``"shared"``, ``"element"`` or ``"network"``.
        min_total_count: Floor of a learned ``total_count``.

    Shape:
        raw: ``(*B, 3, *E)`` with ``total_count="network"``, else ``(*B, 2, *E)``. Returns a distribution with batch
        ``(*B,)`` and event ``E``.

    Example:
        >>> import torch
        >>> ZeroInflatedNegativeBinomial(total_count=3.0)(torch.zeros(1, 2, 2)).mean
        tensor([[0.5000, 0.5000]])
    """

    base_params = 2

    def __init__(self, total_count: Scale = "element", min_total_count: float = 1e-2) -> None:
        super().__init__()
        self.min_total_count = min_total_count
        self.set_dispersion("total_count", total_count, floor=min_total_count, start=1.0)

    def distribution(self, *params: Tensor, size_factor: Tensor | float | None = None) -> dist.TorchDistribution:
        """Zero-inflated negative binomial with mean and gate from the network."""
        total_count = self.dispersion(params)
        logits = self.log_rate(params[0], size_factor) - total_count.log()
        return ZeroInflated(dist.NegativeBinomial(total_count, logits=logits), gate_logits=params[1])


class Multinomial(Likelihood):
    r"""Multinomial likelihood, for counts of words or other kinds whose total is known and independent of z.

    .. math:: P(x \mid z) = \frac{n!}{\prod_v x_v!} \prod_v \pi_v(z)^{x_v}, \qquad \pi = \mathrm{softmax}(\text{raw}),
        \quad n = \sum_v x_v

    The log-probability needs only the counts. To draw rows, give their totals by the keyword argument ``total_count``,
    ``(N,)``, or one number for all rows; the default is the mean total of the first training batch. All counts of a row
    are one event, so none can be missing.

    Shape:
        raw: ``(*B, 1, V)``. Returns a distribution with batch ``(*B,)`` and event ``(V,)``.

    Example:
        >>> import torch
        >>> Multinomial()(torch.zeros(2, 1, 4), total_count=torch.tensor([4, 8])).mean[:, 0]
        tensor([1., 2.])
    """

    arguments = ("total_count",)
    typical_total: Tensor
    has_total: Tensor

    def add_parameters(self, event_shape: tuple[int, ...]) -> None:
        """The default total of rows."""
        super().add_parameters(event_shape)
        self.register_buffer("typical_total", torch.ones(()))
        self.register_buffer("has_total", torch.tensor(False))  # noqa: FBT003

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        if len(event_shape) != 1:
            raise ValueError(f"Multinomial describes rows of one dimension, found rows of shape {tuple(event_shape)}")
        return super().raw_shape(event_shape)

    @property
    def data_range(self) -> Constraint:
        """Whole numbers from 0."""
        return constraints.nonnegative_integer

    def encoding(self, event_shape: Sequence[int]) -> Encoding:
        """Logarithms."""
        return LogCounts(event_shape)

    def check_arguments(self, *, total_count: Any = None) -> None:
        """Totals are whole numbers from 0."""
        totals = torch.as_tensor(0 if total_count is None else total_count)
        good = (totals >= 0) & (totals == totals.round()) & totals.isfinite()
        if totals.dim() > 1 or not bool(good.all()):
            found = f"shape {tuple(totals.shape)}" if totals.dim() > 1 else f"{totals[~good].reshape(-1)[0].item():g}"
            raise ValueError(f"total_count must be a whole number from 0 for each row; found {found}")

    def observe(self, raw: Tensor, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> None:
        """Sets the default total from the first batch."""
        with torch.no_grad():
            total = x.sum(-1).mean().round()
            self.typical_total.copy_(torch.where(self.has_total, self.typical_total, total))
            self.has_total.fill_(True)  # noqa: FBT003

    def distribution(self, *params: Tensor, total_count: Tensor | float | None = None) -> dist.TorchDistribution:
        """Multinomial with the raw outputs as logits."""
        (logits,) = params
        if total_count is None:
            total_count = 1.0 if self.event_shape is None else self.typical_total
        return MultinomialDistribution(logits, by_row(total_count, logits, 1, "total_count").squeeze(-1))
