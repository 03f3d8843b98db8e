"""The decoder network of a topic model."""

import math
from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["TopicDecoder"]


class TopicDecoder(nn.Module):
    r"""Latents to shares of K topics to logits of words: :math:`\theta = \mathrm{softmax}(z)`, then an affine map.

    The topics' distributions over words are multiplied, so their logits add up: :math:`B^\top \theta + b`.

    Source: Srivastava & Sutton, *Autoencoding Variational Inference for Topic Models*, 2017.

    Args:
        in_shape: ``(K,)``.
        out_shape: Shape of one output, of any rank.

    Shape:
        ``(*B, K)`` to ``(*B, *out_shape)``.

    Example:
        >>> import torch
        >>> TopicDecoder((5,), (1, 200))(torch.zeros(3, 5)).shape
        torch.Size([3, 1, 200])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.topics = nn.Linear(math.prod(self.in_shape), math.prod(self.out_shape))

    def forward(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.of_shares(z.softmax(-1))

    def of_shares(self, shares: Tensor) -> Tensor:
        """The raw output for topics' shares ``(*B, K)``."""
        return self.topics(shares).reshape(*shares.shape[:-1], *self.out_shape)
