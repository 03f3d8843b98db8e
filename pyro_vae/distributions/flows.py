"""Zuko's normalising flows as Pyro distributions."""

from typing import Any

import torch
from pyro.contrib.zuko import ZukoToPyro
from torch import Tensor
from torch.distributions import constraints

from pyro_vae._support.devices import forked_random_state

__all__ = ["Flow"]


class Flow(ZukoToPyro):
    """A normalising flow from zuko, with the usual draws and with moments.

    A flow has no moments in closed form, so they are those of 512 draws, the same in each call.

    Args:
        dist: A ``zuko.distributions.NormalizingFlow``.
    """

    support = constraints.real_vector
    has_rsample = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Flow":
        """The same for a larger batch."""
        return Flow(self.dist.expand(torch.Size(batch_shape)))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws with gradients."""
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
