r"""Training objectives: functions of the draws from both programs.

An objective is called with :class:`~pyro_vae.inference.sites.Draws` and the share of training that is done, and returns
nats per row, ``(N,)``; training maximises their mean. A new one takes a few lines:
importance-weighted bound of K draws:

.. code-block:: python

    @dataclass(frozen=True)
    class Weighted:
        num_particles: int = 5

        def __call__(self, draws, progress):
            return draws.scaled.log_weights.logsumexp(0) - math.log(self.num_particles)

If the guide has draws that cannot be differentiated through, the gradient of such a function lacks a part. An objective
for those adds :meth:`Draws.score_function <pyro_vae.inference.sites.Draws.score_function>`, as :class:`Elbo` does;
without it, training raises an error.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from pyro.infer import (
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.elbo import ELBO
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae.inference.sites import Draws, Term, over_draws

__all__ = ["Elbo", "KlEstimate", "Objective", "as_objective", "is_pyros"]

KlEstimate = Literal["sampled", "analytic", "auto"]


@runtime_checkable
class Objective(Protocol):
    """A function for :func:`~pyro_vae.fit` to maximise."""

    @property
    def num_particles(self) -> int:
        """Draws K from the guide for each row."""
        ...

    def __call__(self, draws: Draws, progress: Tensor) -> Tensor:
        """Nats per row, ``(N,)``, from K draws; ``progress`` is the share of training that is done, from 0 to 1."""
        ...


@dataclass(frozen=True)
class Elbo:
    r"""The evidence lower bound, with a weight on its KL.

    .. math:: \mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] - \beta\, \sum_i \max\left(\lambda,
        \mathrm{KL}\left(q(z_i \mid x) \,\|\, p(z_i)\right)\right)

    estimated from the guide's draws. Its gradient uses reparametrisation at sites that allow it, and the score function
    at others. With the defaults, value and gradient are those of :class:`pyro.infer.Trace_ELBO`, in nats per datum;
    latents marked for enumeration are summed over, as in :class:`pyro.infer.TraceEnum_ELBO`.

    Args:
        num_particles: Draws from the guide for each row.
        kl: ``"sampled"`` estimates the KL from the draws, as ``Trace_ELBO``; ``"analytic"`` uses the closed form, as
            ``TraceMeanField_ELBO``, and fails if there is none; ``"auto"`` uses it at the sites that have one.
        kl_weight: The weight β (Higgins et al., 2017).
        kl_warmup: Share of the training over which that weight rises from 0 (Bowman et al., 2016).
        free_nats: λ, in nats: the KL of a latent site is not pushed further down once its average over the batch is
            below λ (Kingma et al., *Improved Variational Inference with Inverse Autoregressive Flow*, 2016). It applies
            to sites with a separate KL, not to draws that only the guide makes, or sites joined by a sum over values.
        kl_cycles: How often the weight starts from 0; ``kl_warmup`` is then a share of each cycle (Fu et al.,
            *Cyclical Annealing Schedule*, 2019).

    Sites that the guide observes are maximised as well, and its factors are minimised: see
    :mod:`pyro_vae.inference.sites`.

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> Elbo(kl_weight=2.0, kl_warmup=0.5).weight(0.25)
        1.0
        >>> [Elbo(kl_warmup=0.5, kl_cycles=4).weight(progress) for progress in (0.0625, 0.125, 0.25, 0.3125)]
        [0.5, 1.0, 0.0, 0.5]
    """

    num_particles: int = 1
    kl: KlEstimate = "sampled"
    kl_weight: float = 1.0
    kl_warmup: float = 0.0
    free_nats: float = 0.0
    kl_cycles: int = 1

    def __post_init__(self) -> None:
        if self.num_particles < 1:
            raise ValueError(f"num_particles must be at least 1, found {self.num_particles}")
        lookup(self.kl, ("sampled", "analytic", "auto"), "KL estimate")
        for name in ("kl_weight", "free_nats"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number from 0, found {getattr(self, name)}")
        if not 0 <= self.kl_warmup <= 1:
            raise ValueError(f"kl_warmup is a share of the training, from 0 to 1; found {self.kl_warmup}")
        if self.kl_cycles < 1:
            raise ValueError(f"kl_cycles must be at least 1, found {self.kl_cycles}")

    def weight(self, progress: Any) -> Any:
        """The weight of the KL when this share of the training is done: a number, or a tensor with one."""
        if not self.kl_warmup:
            return self.kl_weight
        share = (progress * self.kl_cycles) % 1 if self.kl_cycles > 1 else progress
        share = share / self.kl_warmup
        return self.kl_weight * (share.clamp(max=1.0) if isinstance(share, Tensor) else min(1.0, share))

    def __call__(self, draws: Draws, progress: Tensor) -> Tensor:  # noqa: D102
        draws = self.estimated(draws).scaled
        beta = self.weight(progress)
        kept: dict[str, Tensor] = {}
        bound = draws.reconstruction
        if self.free_nats:
            bound, kept = self._above_free_nats(draws, bound, beta)
        else:
            bound = bound - beta * draws.rate
        for values in draws.auxiliary.values():
            bound = bound + values

        def weight(term: Term) -> Any:
            sign = {"guide": -beta, "prior": beta}.get(term.kind, 1.0)
            return sign * kept.get(term.name, 1.0) if term.kind in ("guide", "prior") else sign

        score = draws.score_function(weight)
        bound = over_draws(bound)
        return bound if score is None else bound + score

    def estimated(self, draws: Draws) -> Draws:
        """The draws, with the KL in closed form if ``kl`` says so."""
        if self.kl == "sampled" or draws.closed_form:
            return draws
        return draws.with_closed_forms(required=self.kl == "analytic")

    def _above_free_nats(self, draws: Draws, bound: Tensor, beta: Any) -> tuple[Tensor, dict[str, Tensor]]:
        kept: dict[str, Tensor] = {}
        prior = draws.log_prior
        for name, log_guide in draws.log_guide.items():
            if name not in prior:
                bound = bound - beta * log_guide
                continue
            rate = log_guide - prior[name]
            kept[name] = (rate.detach().mean() > self.free_nats).to(rate.dtype)
            bound = bound - beta * (kept[name] * rate + (1 - kept[name]) * self.free_nats)
        return bound, kept


def as_objective(objective: Any) -> Any:
    """The :class:`Elbo` that is equal to one of Pyro's objectives, if there is one; otherwise the objective itself.

    ``Trace_ELBO``, ``TraceMeanField_ELBO``, ``TraceEnum_ELBO`` and their ``Jit`` forms are equal to an :class:`Elbo`;
    other subclasses are not. Pyro's other objectives are returned unchanged, and are run on the programs.

    Raises:
        TypeError: if it is not an objective.

    Example:
        >>> as_objective(Trace_ELBO(num_particles=4))
        Elbo(num_particles=4, kl='sampled', kl_weight=1.0, kl_warmup=0.0, free_nats=0.0, kl_cycles=1)
    """
    equal: Mapping[type, KlEstimate] = {
        **dict.fromkeys((Trace_ELBO, JitTrace_ELBO, TraceEnum_ELBO, JitTraceEnum_ELBO), "sampled"),
        **dict.fromkeys((TraceMeanField_ELBO, JitTraceMeanField_ELBO), "auto"),
    }
    if type(objective) in equal:
        return Elbo(objective.num_particles, equal[type(objective)])
    is_other = callable(objective) and hasattr(objective, "num_particles")
    if isinstance(objective, ELBO) or (is_other and not type(objective).__module__.startswith("pyro.")):
        return objective
    raise TypeError(
        f"objective is {objective!r}; expected Elbo(...), another function of draws with num_particles, or an ELBO "
        f"object of pyro.infer"
    )


def is_pyros(objective: Any) -> bool:
    """Whether an objective is one of Pyro's, which its own code runs on the programs."""
    return isinstance(objective, ELBO)
