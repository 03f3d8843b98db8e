"""Counts with too many zeros, and counts whose sum is given."""

import itertools
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn import functional as F

__all__ = ["Multinomial", "ZeroInflated"]


class ZeroInflated(dist.ZeroInflatedDistribution):
    """Zero with a probability given by ``gate_logits``, else a draw from ``base_dist``.

    Its log-probability is always computed from the logits. Pyro's is computed from the probability, and loses digits,
    after the first moment or draw.
    """

    def log_prob(self, value: Tensor) -> Tensor:  # noqa: D102
        if self._validate_args:
            self._validate_sample(value)
        gate: Any = self.gate_logits
        gate_logits, value = broadcast_all(gate, value)
        counted = F.logsigmoid(-gate_logits) + self.base_dist.log_prob(value)
        return torch.where(value == 0, torch.logaddexp(F.logsigmoid(gate_logits), counted), counted)


class Multinomial(TorchDistribution):
    r"""Counts of V kinds among a number of draws that may differ by row.

    .. math:: P(x) = \frac{(\sum_v x_v)!}{\prod_v x_v!} \prod_v p_v^{x_v}

    The log-probability is PyTorch's, of counts given their own total. ``total_count`` is used for draws and moments and
    may differ by row, which the multinomials of PyTorch and Pyro do not support.

    Args:
        logits: Logits of the kinds, ``(*B, V)``.
        total_count: ``(*B,)``, or a shape that broadcasts to it.

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
            # Totals are split in two by binomials, and the parts again, so no value has to be read.
            leaves = F.pad(self.probs.expand(shape).double(), (0, 2 ** (shape[-1] - 1).bit_length() - shape[-1]))
            levels = [leaves]
            while levels[-1].shape[-1] > 1:
                levels.append(levels[-1].unflatten(-1, (-1, 2)).sum(-1))
            counts = self.total_count.expand(shape[:-1]).double()[..., None]
            for parents, children in itertools.pairwise(reversed(levels)):
                share = children[..., ::2] / parents.clamp_min(torch.finfo(parents.dtype).tiny)
                first = torch.binomial(counts, share.clamp(max=1))
                counts = torch.stack([first, counts - first], -1).flatten(-2)
            return counts[..., : shape[-1]].to(self.probs.dtype)

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
