"""Drawing categories and encoding them."""

import torch
from torch import Tensor

__all__ = ["gumbel_like", "one_hot"]


def gumbel_like(logits: Tensor) -> Tensor:
    """Gumbel noise: the argmax of noise plus logits is a draw from the categorical (Gumbel, 1954)."""
    return -(-torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny).log()).log()


def one_hot(index: Tensor, num_values: int, dtype: torch.dtype) -> Tensor:
    """Categories as one-hot vectors, ``(*B,)`` to ``(*B, K)``, without reading their values."""
    return (index[..., None] == torch.arange(num_values, device=index.device)).to(dtype)
