"""Objectives that weight the draws of a row: importance-weighted and Rényi bounds."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_vae.inference.sites import Draws, over_draws
from pyro_vae.inference.structure import ContractError

__all__ = ["ImportanceWeighted", "Renyi", "require_rows"]


@dataclass(frozen=True)
class Renyi:
    r"""Rényi's bound of order α for each row, from K draws.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \log \frac{1}{K} \sum_k w_k^{1 - \alpha}, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

    It rises as α falls: at 1 it is the ELBO, at 0 the importance-weighted bound, and below 0 it may exceed the
    evidence. The gradient goes through the draws, so a guide whose draws cannot be differentiated through raises an
    error. Scales that the programs put on their sites count in the weights. Sites that the guide observes are maximised
    as well, as with :class:`~pyro_vae.Elbo`.

    Source: Li & Turner, *Rényi Divergence Variational Inference*, 2016.

    Args:
        num_particles: Draws K from the guide for each row.
        alpha: The order.

    Raises:
        ValueError: if there are no particles, or ``alpha`` is not finite; or, when called, if latents belong to all
            rows, because single rows cannot weight their draws.

    Example:
        >>> from pyro_vae import fit, mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> import torch
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> history = fit(vae, torch.rand(64, 6).round(), objective=Renyi(5, alpha=0.5), epochs=1, progress=False)
    """

    num_particles: int = 5
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, found {self.num_particles}")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be finite, found {self.alpha}")

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        require_rows(draws)
        log_weights = draws.scaled.log_weights
        power = 1 - self.alpha
        if power:
            bound = ((power * log_weights).logsumexp(0) - math.log(len(log_weights))) / power
        else:
            bound = over_draws(log_weights)
        for values in draws.scaled.auxiliary.values():
            bound = bound + over_draws(values)
        return bound


@dataclass(frozen=True)
class ImportanceWeighted:
    r"""The importance-weighted bound for each row, from K draws.

    .. math:: \mathcal{L}_K = \mathbb{E}\left[\log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}\right]

    It rises with K towards the evidence; K = 1 gives the ELBO. It is :class:`Renyi` of order 0.

    With many draws, the plain gradient of the guide is mostly noise. The doubly reparameterised one has the same mean
    and less noise. It needs a guide that draws one latent vector for each row, from a distribution made of tensors.

    Source: Burda et al., *Importance Weighted Autoencoders*, 2016; Tucker et al., *Doubly Reparameterized Gradient
    Estimators for Monte Carlo Objectives*, 2019.

    Args:
        num_particles: Draws K from the guide for each row.
        doubly_reparameterized: Use the doubly reparameterised gradient.

    Raises:
        ValueError: as for :class:`Renyi`; or if the guide does not fit the doubly reparameterised gradient.

    Example:
        >>> ImportanceWeighted(50, doubly_reparameterized=True).num_particles
        50
    """

    num_particles: int = 5
    doubly_reparameterized: bool = False

    def __post_init__(self) -> None:
        self._plain()

    def _plain(self) -> Renyi:
        return Renyi(self.num_particles, alpha=0.0)

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        bound = self._plain()(draws, progress)
        if not self.doubly_reparameterized:
            return bound
        if draws.auxiliary:
            raise ContractError(
                "the doubly reparameterised gradient does not support sites that the guide observes: remove them"
            )
        name = draws.only_latent("The doubly reparameterised gradient")
        z, (q, _) = draws.latents[name], draws.distributions(name)
        # log q(z | x) of the same draws, with a gradient only through the draws.
        plain = draws.scaled.log_weights
        log_weights = plain + draws.log_guide[name] - detached(q).log_prob(z).expand(draws.shape)
        weights = plain.softmax(0).detach()
        if z.requires_grad:
            z.register_hook(lambda gradient: gradient * weights.reshape(*z.shape[:-1], 1))
        surrogate = (weights * log_weights).sum(0)
        return bound.detach() + surrogate - surrogate.detach()


def require_rows(draws: Draws) -> None:
    """Raises an error for latents that belong to all rows, because single rows cannot weight their draws."""
    for term in draws.terms:
        if not term.is_local:
            raise ContractError(
                f"this bound weights the draws of each row, and {term.name!r} lies outside the plate 'data': use "
                f"Elbo(...)"
            )


def detached(fn: Any) -> Any:
    """A copy of a distribution with detached parameters.

    Raises:
        ContractError: if it is not made of tensors alone, such as a flow.

    Example:
        >>> import torch
        >>> from pyro.distributions import Normal
        >>> scale = torch.ones(2, requires_grad=True)
        >>> detached(Normal(0.0, scale).to_event(1)).log_prob(torch.zeros(2)).requires_grad
        False
    """
    made = copy.copy(fn)
    for name, value in vars(fn).items():
        if isinstance(value, Tensor):
            setattr(made, name, value.detach())
        elif isinstance(value, Distribution):
            setattr(made, name, detached(value))
        elif not isinstance(value, (torch.Size, bool, int, float, str, dict, type(None))):
            raise ContractError(
                f"the doubly reparameterised gradient needs a guide whose distribution is made of tensors, and a "
                f"{type(fn).__name__} is not: omit doubly_reparameterized"
            )
    return made
