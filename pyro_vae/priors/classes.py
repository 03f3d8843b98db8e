"""The prior of a row's class."""

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae._support.configs import printed

__all__ = ["ClassPrior"]


class ClassPrior(nn.Module):
    r"""The prior probabilities of the classes, :math:`p(y)`.

    Args:
        num_classes: Number of classes.
        learned: Whether to learn the probabilities with the rest of the model; by default all are equal.

    Shape:
        Returns a categorical distribution with batch ``()``.

    Example:
        >>> ClassPrior(4)().probs.tolist()
        [0.25, 0.25, 0.25, 0.25]
    """

    logits: Tensor

    def __init__(self, num_classes: int, *, learned: bool = False) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, found {num_classes}")
        self.num_classes, self.learned = num_classes, learned
        if learned:
            self.logits = nn.Parameter(torch.zeros(num_classes))
        else:
            self.register_buffer("logits", torch.zeros(num_classes), persistent=False)

    def extra_repr(self) -> str:
        """The constructor's arguments, for printing."""
        return printed(self)

    def forward(self) -> dist.Categorical:
        """The distribution of the class."""
        return dist.Categorical(logits=self.logits)
