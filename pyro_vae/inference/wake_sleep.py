"""Wake-sleep: the guide learns the posterior itself, rather than the best guide for a bound."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae.inference.importance import require_rows
from pyro_vae.inference.sites import Draws, over_draws
from pyro_vae.inference.structure import ContractError

__all__ = ["WakeSleep"]


@dataclass(frozen=True)
class WakeSleep:
    r"""Wake-sleep, reweighted if there are several draws.

    The model maximises the importance-weighted bound of K draws from the guide, which are treated as fixed:

    .. math:: \sum_k \tilde w_k\, \nabla_\theta \log p_\theta(x, z_k), \qquad
        \tilde w_k \propto \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    The guide minimises the KL from the posterior to itself, :math:`\mathrm{KL}(p(z \mid x) \,\|\, q(z \mid x))`. In
    the sleep phase it uses rows and latents drawn from the model,

    .. math:: \nabla_\phi \log q_\phi(z \mid x), \qquad x, z \sim p

    in the wake phase the rows, with its own draws and their weights,

    .. math:: \sum_k \tilde w_k\, \nabla_\phi \log q_\phi(z_k \mid x)

    or half of each. No gradient goes through draws, so it works for discrete latents too, without the noise of a score
    function. This KL is large where the posterior has mass and the guide has none, so the guide learns to cover all
    modes. The reported value is the bound; with K = 1 it is the ELBO. Parameters that both programs use learn from
    both.

    Source: Hinton et al., *The Wake-Sleep Algorithm for Unsupervised Neural Networks*, 1995; Bornschein & Bengio,
    *Reweighted Wake-Sleep*, 2015.

    Args:
        num_particles: Draws K from the guide for each row.
        guide: When the guide learns: ``"sleep"``, ``"wake"`` or ``"both"``.

    Raises:
        ValueError: if there are no particles, or a single one for a guide that learns in the wake phase, where its
            weight is always one; or, when called, if latents belong to all rows, or the guide enumerates values, sets
            latents to points or draws others than the model.

    Example:
        >>> import torch
        >>> from pyro_vae import categorical_vae, fit
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = categorical_vae((6,), 2, 3, likelihood=Bernoulli(), estimator="score-function")
        >>> history = fit(vae, torch.rand(64, 6).round(), objective=WakeSleep(5), epochs=1, progress=False)
    """

    num_particles: int = 5
    guide: Literal["sleep", "wake", "both"] = "both"

    def __post_init__(self) -> None:
        lookup(self.guide, ("sleep", "wake", "both"), "guide")
        least = 1 if self.guide == "sleep" else 2
        if self.num_particles < least:
            raise ValueError(f"num_particles must be at least {least}, found {self.num_particles}")

    def __call__(self, draws: Draws, progress: Any) -> Tensor:  # noqa: D102
        require_rows(draws)
        if any(term.by_value is not None for term in draws.terms):
            raise ContractError(
                "wake-sleep learns from values that the guide draws, but this guide enumerates them: remove "
                "infer={'enumerate': 'parallel'} from the guide"
            )
        scaled = draws.held().scaled
        log_weights = scaled.log_weights
        weights = log_weights.softmax(0).detach()
        log_q = sum(scaled.log_guide.values())
        learned = (weights * (log_weights + log_q)).sum(0)  # log p(x, z), without the guide
        awake = {"wake": 1.0, "both": 0.5, "sleep": 0.0}[self.guide]
        if awake:
            learned = learned + awake * (weights * log_q).sum(0)
        if awake < 1:
            learned = learned + (1 - awake) * draws.dreamed()
        for values in scaled.auxiliary.values():
            learned = learned + over_draws(values)
        bound = log_weights.logsumexp(0) - math.log(len(log_weights))
        return bound.detach() + learned - learned.detach()
