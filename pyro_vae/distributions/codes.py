"""Codes: categories as one-hot blocks, or as vectors of a codebook."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_vae.distributions.categories import gumbel_like, one_hot

__all__ = ["AutoregressiveOneHots", "OneHots", "Quantized", "nearest_codes"]


class _Blocks(constraints.Constraint):
    """Categories as one-hot blocks side by side, or relaxed values between these."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_values: int) -> None:
        self.num_values = num_values
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        blocks = value.unflatten(-1, (-1, self.num_values))
        return ((blocks.sum(-1) - 1).abs() < 1e-4).all(-1) & (blocks > -1e-4).all(-1).all(-1)


class OneHots(TorchDistribution):
    r"""M independent categories, each a one-hot block of K: one vector of M K entries.

    With a ``temperature`` draws have gradients: they are Gumbel-softmax draws, :math:`\mathrm{softmax}((\text{logits} +
    g) / \tau)`. If ``hard``, they are rounded to the nearest one-hot vector and keep the gradient of the unrounded draw
    (straight-through). The log-probability of a relaxed value is :math:`\sum_{mk} z_{mk} \log \pi_{mk}`.

    Source: Jang et al., *Categorical Reparameterization with Gumbel-Softmax*, 2017; Maddison et al., *The Concrete
    Distribution*, 2017.

    Args:
        logits: ``(*B, M, K)``.
        temperature: :math:`\tau`; without it draws have no gradient.
        hard: Whether to round draws.

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
        return logits + gumbel_like(logits)

    def _rounded(self, scores: Tensor) -> Tensor:
        return one_hot(scores.argmax(-1), scores.shape[-1], scores.dtype).flatten(-2)

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
        values = one_hot(index, num_values, self.logits.dtype).flatten(-2)
        values = values.reshape(len(values), *(1,) * len(self.batch_shape), -1)
        return values.expand(len(values), *self.batch_shape, -1) if expand else values

    @property
    def mean(self) -> Tensor:
        """The probabilities, ``(*B, M K)``."""
        return self.logits.softmax(-1).flatten(-2)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
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
        network: Maps one-hot blocks ``(*B, M, K)`` to the logits of each, ``(*B, M, K)``, the m-th of which depend only
            on the blocks before.
        zeros: ``(M, K)``, with the type and device of the network.

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
            drawn.append(one_hot((logits + gumbel_like(logits)).argmax(-1), num_values, logits.dtype))
        return torch.cat(drawn, -1)

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        blocks = value.unflatten(-1, self.zeros.shape)
        log_prob = (blocks * self.network(blocks).log_softmax(-1)).sum((-2, -1))
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))


class Quantized(TorchDistribution):
    r"""Codes represented by vectors: M of K codebook vectors of D entries, side by side.

    Args:
        codes: Distribution of the codes as one-hot blocks: batch ``(*B,)``, event ``(M K,)``.
        codebook: The vectors, ``(K, D)``. A value is identified by the vectors nearest to it.

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
        return self.codes.log_prob(one_hot(index, len(self.codebook), value.dtype).flatten(-2))


class _Discrete(constraints.Constraint):
    is_discrete = True
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite().all(-1)


def nearest_codes(vectors: Tensor, codebook: Tensor) -> Tensor:
    """The index of the vector of a codebook ``(K, D)`` nearest to each of ``(*B, D)``, ``(*B,)``."""
    vectors, codebook = vectors.detach(), codebook.detach()
    return (codebook.square().sum(-1) - 2 * vectors @ codebook.T).argmin(-1)
