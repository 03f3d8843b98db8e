r"""What is maximised: the evidence lower bound, in tensors throughout.

.. math:: \log p(x) \ge \mathrm{ELBO}(x) =
    \mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] - \mathrm{KL}\left(q(z \mid x) \,\|\, p(z)\right)

estimated, as by :class:`pyro.infer.Trace_ELBO`, from one draw of the guide, with its gradient: by reparametrisation
where a site allows it, else by the score function. What differs is the unit, nats per datum, and that nothing is read
back from the device.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from torch import Tensor

__all__ = ["ElboTerms", "elbo_terms"]


@dataclass(frozen=True)
class ElboTerms:
    """One draw's estimate for a batch of N rows, in nats.

    Args:
        reconstruction: log p(x | z) of each row's observed sites, ``(N,)``.
        kl: log q(z | x) − log p(z) of each row's latent sites, ``(N,)``: an unbiased estimate of the KL, or rate.
        surrogate: A scalar whose gradient estimates that of the mean of ``reconstruction - kl_weight * kl``.
        latents: The guide's draw at each of its sites.
    """

    reconstruction: Tensor
    kl: Tensor
    surrogate: Tensor
    latents: dict[str, Tensor]

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound of each row, ``(N,)``."""
        return self.reconstruction - self.kl


def elbo_terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Mapping[str, Any] | None = None,
    *,
    kl_weight: float | Tensor = 1.0,
    num_rows: int | None = None,
) -> ElboTerms:
    r"""Runs the guide, then the model on its draw, and adds up the log-probabilities of their sites.

    Args:
        model: The generative program.
        guide: The inference program.
        x: Rows ``(N, *E)`` in the model's units.
        context: Keyword arguments of both programs, rows first.
        kl_weight: Weight :math:`\beta` of the KL in the surrogate (KL warm-up; β-VAE, Higgins et al., 2017). The terms
            themselves are reported unweighted.
        num_rows: Rows in the whole data set, if ``x`` is a part of it. A site outside the plate ``"data"`` belongs to
            them all, so each row bears 1/num_rows of it.

    Returns:
        The terms, for one draw.
    """
    rows = len(x)
    share = {True: 1 / rows, False: 1 / (rows if num_rows is None else num_rows)}
    model_trace, guide_trace = get_importance_trace("flat", math.inf, model, guide, (x,), dict(context or {}))
    reconstruction = kl = x.new_zeros(rows)
    surrogate = x.new_zeros(())
    stacks = get_plate_stacks(model_trace)
    costs = MultiFrameTensor()

    for name, site in model_trace.nodes.items():
        if site["type"] != "sample":
            continue
        local = _is_local(site)
        log_prob = site["log_prob"]
        weight: float | Tensor = share[local]
        if site["is_observed"]:
            reconstruction = reconstruction + _per_row(log_prob, rows, local=local, share=share[False])
        else:
            kl = kl - _per_row(log_prob, rows, local=local, share=share[False])
            weight = weight * kl_weight
            if name in guide_trace.nodes:
                log_prob = log_prob - guide_trace.nodes[name]["log_prob"]
        surrogate = surrogate + weight * site["log_prob"].sum()
        costs.add((stacks[name], (weight * log_prob).detach()))

    latents: dict[str, Any] = {}
    for name, site in guide_trace.nodes.items():
        if site["type"] != "sample":
            continue
        latents[name] = site["value"]
        local = _is_local(site)
        kl = kl + _per_row(site["log_prob"], rows, local=local, share=share[False])
        _, score_function_term, entropy_term = site["score_parts"]
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - share[local] * kl_weight * entropy_term.sum()
        if not is_identically_zero(score_function_term):
            cost = costs.sum_to(site["cond_indep_stack"])
            surrogate = surrogate + (cost * score_function_term).sum()

    return ElboTerms(reconstruction.detach(), kl.detach(), surrogate, latents)


def _is_local(site: Any) -> bool:
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def _per_row(log_prob: Tensor, rows: int, *, local: bool, share: float) -> Tensor:
    """A site's log-probability as ``(N,)``; a global site's is shared among all rows."""
    if not local:
        return (log_prob.sum() * share).expand(rows)
    log_prob = log_prob.sum(tuple(range(log_prob.dim() - 1))) if log_prob.dim() > 1 else log_prob
    return log_prob.expand(rows)
