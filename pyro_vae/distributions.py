"""Distributions that Pyro and PyTorch lack."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.contrib.zuko import ZukoToPyro
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

from pyro_vae._support.devices import forked_random_state

__all__ = [
    "AutoregressiveOneHots",
    "Columns",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "FixedMixture",
    "Flow",
    "Kinds",
    "Levels",
    "MixtureOfNormals",
    "Multinomial",
    "OneHots",
    "Quantized",
    "ZeroInflated",
    "nearest_codes",
]


class ContinuousBernoulli(dist.ContinuousBernoulli):
    r"""The continuous Bernoulli distribution from its logits, right where its probability rounds to 0 or 1.

    With logits :math:`l`, the log-density is :math:`l x - \mathrm{softplus}(l) + \log \frac{l}{\tanh(l / 2)}`. PyTorch
    computes the constant and the moments from the probability, which in float32 ends at logits of 16.

    Source: Loaiza-Ganem & Cunningham, *The Continuous Bernoulli*, 2019.
    """

    def _split(self, near_zero: Any, elsewhere: Any) -> Tensor:
        """A series around logits of 0, where the formulas divide zero by zero."""
        is_near = self.logits.abs() < 0.05
        safe = torch.where(is_near, torch.ones_like(self.logits), self.logits)
        return torch.where(is_near, near_zero(self.logits.square()), elsewhere(safe))

    def _cont_bern_log_norm(self) -> Tensor:
        return self._split(lambda s: (2 + s / 6 - s**2 / 360).log(), lambda x: (x / (x / 2).tanh()).log())

    @property
    def mean(self) -> Tensor:
        """The mean, 1 / (1 - exp(-l)) - 1 / l."""
        by_logit = self._split(
            lambda s: 1 / 12 - s / 720 + s**2 / 30240, lambda x: (1 / (2 * (x / 2).tanh()) - 1 / x) / x
        )
        return 0.5 + self.logits * by_logit

    @property
    def variance(self) -> Tensor:
        """The variance, 1 / l² - 1 / (4 sinh²(l / 2))."""
        return self._split(
            lambda s: 1 / 12 - s / 240 + s**2 / 6048, lambda x: 1 / x.square() - 0.25 / (x / 2).sinh().square()
        )

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile, log(1 + u (exp(l) - 1)) / l."""
        logits = self.logits
        # From the end that holds the mass, so that nothing overflows.
        size = logits.abs()
        from_end = torch.where(logits > 0, 1 - value, value)
        safe = size.clamp(min=1e-6)
        distance = -torch.log1p(from_end * torch.expm1(-safe)) / safe
        distance = torch.where(size < 1e-3, from_end, distance)
        return torch.where(logits > 0, 1 - distance, distance).clamp(0, 1)


class DiscretizedLogistic(TorchDistribution):
    r"""A logistic distribution cut into ``num_levels`` levels 0, 1, …; what lies beyond goes to the ends.

    .. math:: P(k) = F\left(\frac{b_{k+1} - \mu}{s}\right) - F\left(\frac{b_k - \mu}{s}\right), \qquad
        F = \mathrm{sigmoid}, \quad b_k = \frac{2k - 1}{K - 1} - 1, \quad b_0 = -\infty,\ b_K = \infty

    so level :math:`k` of :math:`K` sits at :math:`2k / (K - 1) - 1` in [-1, 1], half-way between its edges. An exact
    probability mass function: it sums to 1.

    Source: Kingma et al., *Improving Variational Inference with Inverse Autoregressive Flow*, 2016; Salimans et al.,
    *PixelCNN++*, 2017.

    Args:
        loc: Location :math:`\mu`, in [-1, 1] where the levels are.
        scale: Scale :math:`s > 0` in the same units.
        num_levels: Number of levels :math:`K`.

    Example:
        >>> levels = torch.arange(256.0)
        >>> p = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.05), 256).log_prob(levels).exp()
        >>> round(p.sum().item(), 5)
        1.0
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012  # pyright: ignore

    def __init__(self, loc: Tensor, scale: Tensor, num_levels: int = 256, *, validate_args: bool | None = None) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.num_levels = num_levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """The levels."""
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "DiscretizedLogistic":  # noqa: D102
        new = type(self).__new__(type(self))
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new.num_levels = self.num_levels
        TorchDistribution.__init__(new, torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _edge(self, level: Tensor | float) -> Tensor:
        """Where the edge below a level lies, from the location, in scales."""
        return ((2 * level - 1) / (self.num_levels - 1) - 1 - self.loc) / self.scale

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        below, above = self._edge(value), self._edge(value + 1)
        # sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)), each factor without cancellation
        width = 2 / (self.num_levels - 1) / self.scale
        inside = F.logsigmoid(above) + F.logsigmoid(-below) + torch.log(-torch.expm1(-width))
        at_top = torch.where(value >= self.num_levels - 1, F.logsigmoid(-below), inside)
        return torch.where(value <= 0, F.logsigmoid(above), at_top)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            uniform = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device)
            x = self.loc + self.scale * torch.logit(uniform, eps=torch.finfo(self.loc.dtype).tiny)
            return (0.5 * (x + 1) * (self.num_levels - 1)).round().clamp(0, self.num_levels - 1)

    @property
    def mean(self) -> Tensor:
        """The exact mean level, the sum of P(x ≥ k) over k ≥ 1."""
        total = torch.zeros_like(self.loc)
        for level in range(1, self.num_levels):
            total = total + torch.sigmoid(-self._edge(float(level)))
        return total

    @property
    def variance(self) -> Tensor:
        """The exact variance of the level, added up around the mean."""
        mean, total = self.mean, torch.zeros_like(self.loc)
        for level in range(self.num_levels):
            p = self.log_prob(torch.full_like(self.loc, float(level))).exp()
            total = total + p * (level - mean).square()
        return total


class Levels(dist.Categorical):
    """Categorical over ordered levels 0, 1, …, which have a mean and a variance."""

    def _level(self) -> Tensor:
        return torch.arange(self.probs.shape[-1], dtype=self.probs.dtype, device=self.probs.device)

    @property
    def mean(self) -> Tensor:
        """The mean level."""
        return (self.probs * self._level()).sum(-1)

    @property
    def variance(self) -> Tensor:
        """The variance of the level."""
        return (self.probs * (self._level() - self.mean[..., None]).square()).sum(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        return super().sample(sample_shape).to(self.probs.dtype)


class Kinds(dist.Categorical):
    """Categorical over kinds without an order; the most probable one stands in for the mean, which they lack."""

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        return super().sample(sample_shape).to(self.probs.dtype)

    @property
    def mean(self) -> Tensor:
        """The most probable kind."""
        return self.probs.argmax(-1).to(self.probs.dtype)


class Columns(TorchDistribution):
    """Columns of a table, each with its own distribution: batch ``(*B, D)`` from D distributions of batch ``(*B,)``.

    Args:
        columns: One distribution of scalars for each column.
    """

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore

    def __init__(self, columns: Sequence[TorchDistribution], *, validate_args: bool | None = None) -> None:
        self.columns = list(columns)
        batch_shape = torch.broadcast_shapes(*(column.batch_shape for column in self.columns))
        self.columns = [column.expand(batch_shape) for column in self.columns]
        super().__init__(torch.Size((*batch_shape, len(self.columns))), validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Each column's own support."""
        return constraints.stack([column.support for column in self.columns], dim=-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Columns":  # noqa: D102
        return Columns([column.expand(batch_shape[:-1]) for column in self.columns], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        parts = value.unbind(-1)
        return torch.stack([c.log_prob(part) for c, part in zip(self.columns, parts, strict=True)], dim=-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        draws = [column.sample(sample_shape) for column in self.columns]
        dtype = next((d.dtype for d in draws if d.is_floating_point()), torch.get_default_dtype())
        return torch.stack([draw.to(dtype) for draw in draws], dim=-1)

    @property
    def mean(self) -> Tensor:
        """Each column's mean; kinds without an order have their most probable one."""
        return torch.stack([column.mean for column in self.columns], dim=-1)

    @property
    def variance(self) -> Tensor:
        """Each column's variance; not a number for kinds without an order."""
        return torch.stack([column.variance for column in self.columns], dim=-1)


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Zero with a probability given by ``gate_logits``, else a draw of ``base_dist``.

    Its log-probability comes from the logits throughout. Pyro's switches to the probability, and loses digits, once a
    moment or a draw has been asked for.
    """

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        gate: Any = self.gate_logits
        gate_logits, value = broadcast_all(gate, value)
        counted = F.logsigmoid(-gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(F.logsigmoid(gate_logits), counted), counted)


class Flow(ZukoToPyro):
    """A normalising flow of zuko's, with draws as of any distribution and with moments.

    The moments are those of 512 draws, always the same ones: a flow knows none.

    Args:
        dist: A ``zuko.distributions.NormalizingFlow``.
    """

    support = constraints.real_vector
    has_rsample = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Flow":
        """The same for a larger batch."""
        return Flow(self.dist.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws through which gradients go."""
        return self.dist.rsample(torch.Size(sample_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        """The mean of those draws."""
        return self._draws().mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance of those draws."""
        return self._draws().var(0)

    def _draws(self) -> Tensor:
        flow: Any = self.dist
        with forked_random_state(flow.base.mean.device):
            torch.manual_seed(0)
            return self.rsample(torch.Size((512,)))


class FixedMixture(dist.MixtureSameFamily):
    """A mixture whose weights are not learned, so that draws can be differentiated through.

    A draw is one of the component that is drawn for it: as the weights are fixed, its derivatives are those of that
    component's draw alone. A component whose logit is minus infinity is never drawn.
    """

    has_rsample = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws through which gradients go."""
        components: Any = self.component_distribution
        draws = components.rsample(sample_shape)
        event_dim = len(self.event_shape)
        logits = self.mixture_distribution.logits.expand(draws.shape[: draws.dim() - event_dim])
        chosen = (logits - torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny).log().neg().log()).argmax(
            -1
        )
        index = chosen.reshape(*chosen.shape, 1, *[1] * event_dim).expand(*chosen.shape, 1, *self.event_shape)
        return draws.gather(draws.dim() - 1 - event_dim, index).squeeze(draws.dim() - 1 - event_dim)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class MixtureOfNormals(TorchDistribution):
    r"""Mixture of K normals with independent entries, whose draws have derivatives.

    .. math:: q(z) = \sum_k \pi_k \prod_j \mathcal{N}(z_j \mid \mu_{kj}, \sigma_{kj}^2)

    Each entry's distribution function given those before it, :math:`F_j(z_j \mid z_{<j})`, is that of uniform noise,
    whatever the parameters. So a draw moves with them by :math:`\dot z = -(\partial F / \partial z)^{-1} \dot F`, the
    solution of a triangular system. Weights of components are kept as logarithms, so that many entries or small scales
    do not overflow, as they do in Pyro's ``MixtureOfDiagNormals``.

    Source: Figurnov, Mohamed & Mnih, *Implicit Reparameterization Gradients*, 2018; Graves, *Stochastic Backpropagation
    through Mixture Density Distributions*, 2016.

    Args:
        locs: Means :math:`\mu`, ``(*B, K, L)``.
        scales: Standard deviations :math:`\sigma`, the same shape.
        logits: Logarithms of the weights :math:`\pi`, up to a constant, ``(*B, K)``.

    Example:
        >>> MixtureOfNormals(torch.zeros(5, 3, 2), torch.ones(5, 3, 2), torch.zeros(5, 3)).rsample().shape
        torch.Size([5, 2])
    """

    arg_constraints: Any = {  # noqa: RUF012 torch's own name and form
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
        "logits": constraints.real_vector,
    }
    support: Any = constraints.real_vector
    has_rsample = True

    def __init__(self, locs: Tensor, scales: Tensor, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self.locs, self.scales, self.logits = locs, scales, logits.log_softmax(-1)
        super().__init__(locs.shape[:-2], locs.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "MixtureOfNormals":
        """The same for a larger batch."""
        shape = torch.Size(batch_shape)
        locs, scales = (value.expand(*shape, *value.shape[-2:]) for value in (self.locs, self.scales))
        logits = self.logits.expand(*shape, *self.logits.shape[-1:])
        return MixtureOfNormals(locs, scales, logits, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return (self.logits + self._log_densities(value).sum(-1)).logsumexp(-1)

    def _log_densities(self, value: Tensor) -> Tensor:
        """Of each entry under each component: ``(*S, *B, K, L)``."""
        return _log_normal((value[..., None, :] - self.locs) / self.scales) - self.scales.log()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            ends = self.logits.softmax(-1).cumsum(-1)[..., :-1]
            which = (torch.rand(shape[:-1], dtype=ends.dtype, device=ends.device)[..., None] >= ends).sum(-1)
            chosen = F.one_hot(which, self.logits.shape[-1]).to(ends.dtype)[..., None]
            loc, scale = ((chosen * value).sum(-2) for value in (self.locs, self.scales))
            return loc + scale * torch.randn_like(loc)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws through which gradients go."""
        z = self.sample(sample_shape)
        if not torch.is_grad_enabled():
            return z
        standardized = (z[..., None, :] - self.locs) / self.scales
        densities = _log_normal(standardized) - self.scales.log()
        before = self.logits[..., None] + densities.cumsum(-1) - densities
        weights = before.softmax(-2)  # of each component for an entry, given the entries before it
        below = torch.special.ndtr(standardized)
        functions = (weights * below).sum(-2)
        with torch.no_grad():
            slopes = -standardized / self.scales
            off = (weights * (below - functions[..., None, :])).mT @ slopes
            own = (weights * densities.exp()).sum(-2).clamp(min=torch.finfo(z.dtype).tiny)[..., None]
            jacobian = (off / own).tril(-1) + torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        moved = (functions - functions.detach())[..., None] / own
        return z - torch.linalg.solve_triangular(jacobian, moved, upper=False, unitriangular=True).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """The mean of the components' means."""
        return (self._weights * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        """The mean of the components' second moments, less the square of the mean."""
        second = (self._weights * (self.locs.square() + self.scales.square())).sum(-2)
        return second - self.mean.square()

    @property
    def _weights(self) -> Tensor:
        return self.logits.exp()[..., None]


class Multinomial(TorchDistribution):
    r"""Counts of V kinds among so many draws, a number of draws for each row.

    .. math:: P(x) = \frac{(\sum_v x_v)!}{\prod_v x_v!} \prod_v p_v^{x_v}

    The log-probability is PyTorch's, of counts given their own total. ``total_count`` is that of draws and moments, and
    may be another for each row, which neither PyTorch's nor Pyro's own can draw.

    Args:
        logits: ``(*B, V)``, of the kinds.
        total_count: ``(*B,)``, or what broadcasts to it.

    Example:
        >>> fn = Multinomial(torch.zeros(2, 3), torch.tensor([3.0, 6.0]))
        >>> fn.sample().sum(-1), fn.mean[1]
        (tensor([3., 6.]), tensor([2., 2., 2.]))
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012  # pyright: ignore

    def __init__(self, logits: Tensor, total_count: Tensor, *, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.total_count = total_count.to(logits).expand(logits.shape[:-1])
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> constraints.Constraint:
        """Counts."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Multinomial":  # noqa: D102
        shape = torch.Size(batch_shape)
        logits, total_count = self.logits.expand(*shape, *self.event_shape), self.total_count.expand(shape)
        return Multinomial(logits, total_count, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        return torch.distributions.Multinomial(logits=self.logits, validate_args=False).log_prob(value)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            probs = self.probs.expand(shape).reshape(-1, shape[-1])
            totals = self.total_count.expand(shape[:-1]).reshape(-1, 1)
            most = max(1, int(totals.max()))
            kinds = torch.multinomial(probs, most, replacement=True)
            counted = (torch.arange(most, device=probs.device) < totals).to(probs.dtype)
            return torch.zeros_like(probs).scatter_add_(-1, kinds, counted).reshape(shape)

    @property
    def probs(self) -> Tensor:
        """Probabilities of the kinds."""
        return self.logits.softmax(-1)

    @property
    def mean(self) -> Tensor:
        """The mean, n p."""
        return self.total_count[..., None] * self.probs

    @property
    def variance(self) -> Tensor:
        """The variance of each count, n p (1 - p)."""
        return self.mean * (1 - self.probs)


def _log_normal(standardized: Tensor) -> Tensor:
    return -0.5 * standardized.square() - 0.5 * math.log(2 * math.pi)


@register_kl(dist.MultivariateNormal, dist.Independent)
@register_kl(dist.LowRankMultivariateNormal, dist.Independent)
def _kl_normal_independent(q: Any, p: Any) -> Tensor:
    """KL(q || p) of a normal of any covariance from independent ones: less q's entropy and p's mean log-density."""
    base = p.base_dist
    if not isinstance(base, torch.distributions.Normal) or len(p.event_shape) != 1:
        raise NotImplementedError
    square = (q.mean - base.mean).square() + q.variance
    log_densities = -0.5 * square / base.variance - base.scale.log() - 0.5 * math.log(2 * math.pi)
    return -q.entropy() - log_densities.sum(-1)


class _Blocks(constraints.Constraint):
    """Categories as one-hot blocks side by side; what is relaxed lies between them, and passes."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_values: int) -> None:
        self.num_values = num_values
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        blocks = value.unflatten(-1, (-1, self.num_values))
        return ((blocks.sum(-1) - 1).abs() < 1e-4).all(-1) & (blocks > -1e-4).all(-1).all(-1)


def _gumbel(logits: Tensor) -> Tensor:
    """Noise whose sum with logits is largest at a category drawn by them (Gumbel, 1954)."""
    return -(-torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny).log()).log()


def _one_hot(index: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
    return (index[..., None] == torch.arange(num_values, device=index.device)).to(dtype)


class OneHots(TorchDistribution):
    r"""M independent categories, each a one-hot block of K: one vector of M K entries.

    With a ``temperature`` draws have gradients: they are Gumbel-softmax ones,
    :math:`\mathrm{softmax}((\text{logits} + g) / \tau)`; where ``hard``, they are rounded to the nearest one-hot, and
    only their gradient is that of the former (straight-through). The log-probability of a relaxed value is
    :math:`\sum_{mk} z_{mk} \log \pi_{mk}`.

    Source: Jang et al., *Categorical Reparameterization with Gumbel-Softmax*, 2017; Maddison et al., *The Concrete
    Distribution*, 2017.

    Args:
        logits: ``(*B, M, K)``.
        temperature: :math:`\tau`; without one draws have no gradient.
        hard: Round draws.

    Shape:
        Batch ``(*B,)``, event ``(M K,)``.

    Example:
        >>> OneHots(torch.zeros(5, 3, 4)).sample().unflatten(-1, (3, 4)).sum(-1).unique().tolist()
        [1.0]
    """

    arg_constraints: ClassVar[Any] = {"logits": constraints.independent(constraints.real, 2)}
    has_enumerate_support = True

    def __init__(
        self,
        logits: Tensor,
        temperature: float | None = None,
        hard: bool = True,  # noqa: FBT001, FBT002
        validate_args: Any = None,
    ) -> None:
        self.logits, self.temperature, self.hard = logits, temperature, hard
        super().__init__(logits.shape[:-2], torch.Size((logits.shape[-2:].numel(),)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """One-hot blocks."""
        return _Blocks(self.logits.shape[-1])

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether draws have gradients."""
        return self.temperature is not None

    def expand(self, batch_shape: Any, _instance: Any = None) -> "OneHots":  # noqa: D102
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        return OneHots(logits, self.temperature, self.hard, validate_args=False)

    def _noisy(self, sample_shape: Any) -> Tensor:
        logits = self.logits.expand(*sample_shape, *self.logits.shape)
        return logits + _gumbel(logits)

    def _rounded(self, scores: Tensor) -> Tensor:
        return _one_hot(scores.argmax(-1), scores.shape[-1], scores.dtype).flatten(-2)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        return self._rounded(self._noisy(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        if self.temperature is None:
            raise NotImplementedError("without a temperature draws have no gradient")
        noisy = self._noisy(sample_shape)
        soft = (noisy / self.temperature).softmax(-1).flatten(-2)
        return self._rounded(noisy.detach()) + (soft - soft.detach()) if self.hard else soft

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        log_probs = self.logits.log_softmax(-1)
        return (value.unflatten(-1, log_probs.shape[-2:]) * log_probs).sum((-2, -1))

    def enumerate_support(self, expand: bool = True) -> Tensor:  # noqa: D102, FBT001, FBT002
        num_codes, num_values = self.logits.shape[-2:]
        index = torch.tensor(list(itertools.product(range(num_values), repeat=num_codes)), device=self.logits.device)
        values = _one_hot(index, num_values, self.logits.dtype).flatten(-2)
        values = values.reshape(len(values), *(1,) * len(self.batch_shape), -1)
        return values.expand(len(values), *self.batch_shape, -1) if expand else values

    @property
    def mean(self) -> Tensor:
        """The probabilities, ``(*B, M K)``."""
        return self.logits.softmax(-1).flatten(-2)

    @property
    def variance(self) -> Tensor:
        """That of each entry."""
        return self.mean * (1 - self.mean)

    @property
    def mode(self) -> Tensor:
        """The most probable categories, one-hot."""
        return self._rounded(self.logits)


@register_kl(OneHots, OneHots)
def _kl_between_one_hots(p: OneHots, q: OneHots) -> Tensor:
    log_p, log_q = p.logits.log_softmax(-1), q.logits.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


class AutoregressiveOneHots(TorchDistribution):
    r"""M categories one after another, each given those before: :math:`\prod_m p(z_m \mid z_1, \ldots, z_{m-1})`.

    Args:
        network: Maps one-hot blocks ``(*B, M, K)`` to the logits of each, ``(*B, M, K)``, of which the m-th depend on
            the blocks before alone.
        zeros: ``(M, K)``, in the type and on the device of the network.

    Shape:
        Batch ``()``, event ``(M K,)``.
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(self, network: Callable[[Tensor], Tensor], zeros: Tensor, batch_shape: Any = torch.Size()) -> None:  # noqa: B008
        self.network, self.zeros = network, zeros
        super().__init__(torch.Size(batch_shape), torch.Size((zeros.numel(),)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """One-hot blocks."""
        return _Blocks(self.zeros.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> "AutoregressiveOneHots":  # noqa: D102
        return AutoregressiveOneHots(self.network, self.zeros, batch_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        num_codes, num_values = self.zeros.shape
        rest = self.zeros.expand(*sample_shape, *self.batch_shape, num_codes, num_values)
        drawn: list[Tensor] = []
        for code in range(num_codes):
            blocks = torch.cat([*(block.unsqueeze(-2) for block in drawn), rest[..., code:, :]], -2)
            logits = self.network(blocks)[..., code, :]
            drawn.append(_one_hot((logits + _gumbel(logits)).argmax(-1), num_values, logits.dtype))
        return torch.cat(drawn, -1)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        blocks = value.unflatten(-1, self.zeros.shape)
        log_prob = (blocks * self.network(blocks).log_softmax(-1)).sum((-2, -1))
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


class Quantized(TorchDistribution):
    r"""Codes by their vectors: M of K vectors of D entries, side by side.

    Args:
        codes: Of the codes, as one-hot blocks: batch ``(*B,)``, event ``(M K,)``.
        codebook: The vectors, ``(K, D)``. A value is known by the vectors that it is nearest to.

    Shape:
        Batch ``(*B,)``, event ``(M D,)``.
    """

    arg_constraints: ClassVar[Any] = {}

    def __init__(self, codes: Any, codebook: Tensor) -> None:
        self.codes, self.codebook = codes, codebook
        num_codes = codes.event_shape[0] // len(codebook)
        super().__init__(codes.batch_shape, torch.Size((num_codes * codebook.shape[1],)), validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Vectors of the codebook; any other counts as the one nearest to it."""
        return _Discrete()

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Quantized":  # noqa: D102
        return Quantized(self.codes.expand(batch_shape), self.codebook)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008, D102
        blocks = self.codes.sample(sample_shape).unflatten(-1, (-1, len(self.codebook)))
        return (blocks @ self.codebook).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        index = nearest_codes(value.unflatten(-1, (-1, self.codebook.shape[1])), self.codebook)
        return self.codes.log_prob(_one_hot(index, len(self.codebook), value.dtype).flatten(-2))


class _Discrete(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite().all(-1)


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The number of the vector of a codebook ``(K, D)`` that each of ``(*B, D)`` is nearest to, ``(*B,)``."""
    vectors, codebook = vectors.detach(), codebook.detach()
    return (codebook.square().sum(-1) - 2 * vectors @ codebook.T).argmin(-1)
