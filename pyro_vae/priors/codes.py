"""Priors of codes: several categories, as one-hot blocks side by side."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.distributions import AutoregressiveOneHots, OneHots
from pyro_vae.priors.base import Prior

__all__ = ["AutoregressiveCodes", "IndependentCodes"]


class IndependentCodes(Prior):
    r"""Independent codes, each with its own probabilities.

    .. math:: p(z) = \prod_{m=1}^{M} \pi_{m, z_m}

    Args:
        num_codes: Number of codes M for each row.
        num_values: Number of values K of each code. The number of latents is M K, as each code is a one-hot block.
        learned: Whether the probabilities are learned; else they are 1 / K.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> IndependentCodes(10, num_values=8)().event_shape
        torch.Size([80])
    """

    logits: Tensor

    def __init__(self, num_codes: int, num_values: int, learned: bool = True) -> None:  # noqa: FBT001, FBT002
        _check_codes(num_codes, num_values)
        super().__init__(num_codes * num_values)
        self.num_codes, self.num_values, self.learned = num_codes, num_values, learned
        logits = torch.zeros(num_codes, num_values)
        if learned:
            self.logits = nn.Parameter(logits)
        else:
            self.register_buffer("logits", logits, persistent=False)

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return OneHots(self.logits)


class AutoregressiveCodes(Prior):
    r"""Codes that depend on those before them, learned with the rest of the model or after it.

    .. math:: p(z) = \prod_{m=1}^{M} p(z_m \mid z_1, \ldots, z_{m-1})

    by one network with masked weights, which gives the logits of all codes in one pass; draws take M passes.

    Source: van den Oord et al., *Neural Discrete Representation Learning*, 2017, which has such a prior over codes;
    Germain et al., *MADE: Masked Autoencoder for Distribution Estimation*, 2015.

    Args:
        num_codes: Number of codes M for each row.
        num_values: Number of values K of each code. The number of latents is M K, as each code is a one-hot block.
        hidden_dim: Width of the two hidden layers, for each code.

    Raises:
        ValueError: if a number is below 1.

    Example:
        >>> AutoregressiveCodes(10, num_values=8)().sample().shape
        torch.Size([80])
    """

    zeros: Tensor

    def __init__(self, num_codes: int, num_values: int, hidden_dim: int = 16) -> None:
        _check_codes(num_codes, num_values)
        super().__init__(num_codes * num_values)
        if hidden_dim < 1:
            raise ValueError(f"hidden_dim must be at least 1, found {hidden_dim}")
        self.num_codes, self.num_values, self.hidden_dim = num_codes, num_values, hidden_dim
        self.first = _Causal(num_codes, num_values, hidden_dim, strictly=True)
        self.second = _Causal(num_codes, hidden_dim, hidden_dim)
        self.last = _Causal(num_codes, hidden_dim, num_values)
        self.register_buffer("zeros", torch.zeros(num_codes, num_values), persistent=False)

    def logits(self, blocks: Tensor) -> Tensor:
        """Maps one-hot blocks ``(*B, M, K)`` to the logits of each given those before it."""
        hidden = F.relu(self.first(blocks.flatten(-2)))
        hidden = F.relu(hidden + self.second(hidden))
        return self.last(hidden).unflatten(-1, (self.num_codes, self.num_values))

    def forward(self) -> dist.TorchDistribution:  # noqa: D102
        return AutoregressiveOneHots(self.logits, self.zeros)


class _Causal(nn.Linear):
    """An affine map between blocks, one for each code, without dependence on later blocks, or on its own if strict."""

    mask: Tensor

    def __init__(self, num_blocks: int, in_size: int, out_size: int, *, strictly: bool = False) -> None:
        super().__init__(num_blocks * in_size, num_blocks * out_size)
        blocks = torch.ones(num_blocks, num_blocks).tril(-1 if strictly else 0)
        mask = blocks.repeat_interleave(out_size, 0).repeat_interleave(in_size, 1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


def _check_codes(num_codes: int, num_values: int) -> None:
    if num_codes < 1 or num_values < 1:
        raise ValueError(f"num_codes and num_values must be at least 1, found {num_codes} and {num_values}")
