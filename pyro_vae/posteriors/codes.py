"""A posterior over codes: several categories, as one-hot blocks side by side."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro.distributions as dist
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae.distributions import OneHots
from pyro_vae.posteriors.base import Posterior

__all__ = ["Codes"]

_ESTIMATORS = ("relaxed", "straight-through", "enumerated", "score-function")
_MOST_VALUES = 4096  # of all codes together, to sum over


class Codes(Posterior):
    r"""Independent categories, each a one-hot block.

    .. math:: q(z \mid x) = \prod_{m=1}^{M} \pi_{m, z_m}(x)

    Draws of categories have no derivatives, so ``estimator`` chooses how gradients are computed in training. Outside
    training, draws are categories.

    =====================  =============================================================================================
    ``estimator``          gradient
    =====================  =============================================================================================
    "relaxed"              of Gumbel-softmax draws, unrounded: exact for a relaxed model, whose ELBO training reports;
                           with ``Elbo(kl="auto")`` its KL is that of the categories, as in Jang et al.
    "straight-through"     of Gumbel-softmax draws, rounded in the forward pass: biased, but for the model itself
    "enumerated"           exact: sums over all K ** M values, if these are few
    "score-function"       unbiased, with high variance
    =====================  =============================================================================================

    Source: Jang et al., *Categorical Reparameterization with Gumbel-Softmax*, 2017; Maddison et al., *The Concrete
    Distribution*, 2017.

    Args:
        num_values: Number of values K of a code; the number of latents is a multiple of it.
        estimator: As above.
        temperature: Of Gumbel-softmax draws: the lower it is, the closer draws are to categories, and the noisier the
            gradient.

    Shape:
        raw: ``(*B, M K)``. Returns a distribution with batch ``(*B,)`` and event ``(M K,)``.

    Raises:
        ValueError: if a number is not positive, the number of latents is not a multiple of ``num_values``, or there are
            too many values to sum over.

    Example:
        >>> import torch
        >>> Codes(8).for_event((80,))(torch.zeros(5, 80)).event_shape
        torch.Size([80])
    """

    def __init__(
        self,
        num_values: int,
        estimator: Literal["relaxed", "straight-through", "enumerated", "score-function"] = "relaxed",
        temperature: float = 2 / 3,
    ) -> None:
        super().__init__()
        if num_values < 1:
            raise ValueError(f"num_values must be at least 1, found {num_values}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.num_values, self.estimator = num_values, lookup(estimator, _ESTIMATORS, "estimator")
        self.temperature = temperature

    @property
    def infer(self) -> Any:
        """The ``infer`` argument of :func:`pyro.sample` for the latent."""
        return {"enumerate": "parallel"} if self.estimator == "enumerated" else {}

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        (size,) = event_shape
        if size % self.num_values:
            raise ValueError(f"the number of latents must be a multiple of num_values={self.num_values}, found {size}")
        num_codes = size // self.num_values
        if self.estimator == "enumerated" and self.num_values**num_codes > _MOST_VALUES:
            raise ValueError(
                f"{num_codes} codes of {self.num_values} values have more than {_MOST_VALUES} combinations, too many "
                f"to sum over: use estimator='relaxed'"
            )
        return (size,)

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:  # noqa: D102
        return [raw], 1

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        logits = params[0].unflatten(-1, (-1, self.num_values))
        if self.training and self.estimator in ("straight-through", "relaxed"):
            return OneHots(logits, self.temperature, hard=self.estimator == "straight-through")
        return OneHots(logits)
