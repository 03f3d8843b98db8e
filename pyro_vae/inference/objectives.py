r"""What is maximised: the evidence lower bound, in tensors throughout.

.. math:: \log p(x) \ge \mathrm{ELBO}(x) =
    \mathbb{E}_{q(z \mid x)}\left[\log p(x \mid z)\right] - \mathrm{KL}\left(q(z \mid x) \,\|\, p(z)\right)

estimated, as by :class:`pyro.infer.Trace_ELBO`, from draws of the guide, with its gradient: by reparametrisation where
a site allows it, else by the score function. With the KL in closed form it is :class:`pyro.infer.TraceMeanField_ELBO`'s
estimate. What differs is the unit, nats per datum, and that nothing is read back from the device.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pyro
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, get_plate_stacks
from torch import Tensor
from torch.distributions import kl_divergence

__all__ = ["ElboTerms", "KlEstimate", "elbo_terms"]

KlEstimate = Literal["sampled", "analytic", "auto"]

_PARTICLES = "particles"  # the plate of the draws


@dataclass(frozen=True)
class ElboTerms:
    """An estimate for a batch of N rows, in nats, from one draw or from K of them.

    Args:
        reconstruction: log p(x | z) of each row's observed sites: ``(N,)``, or ``(K, N)`` with particles.
        kl: log q(z | x) − log p(z) of each row's latent sites, of the same shape: an unbiased estimate of the KL, or
            rate; the KL itself at the sites in ``closed_form``.
        surrogate: A scalar whose gradient estimates that of the mean of ``reconstruction - kl_weight * kl``.
        latents: The guide's draw at each of its sites.
        closed_form: Names of the latent sites whose KL was taken in closed form.
    """

    reconstruction: Tensor
    kl: Tensor
    surrogate: Tensor
    latents: dict[str, Tensor]
    closed_form: tuple[str, ...] = ()

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound of each row; with a sampled KL, each draw's log-weight log p(x, z) / q(z | x)."""
        return self.reconstruction - self.kl


def elbo_terms(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    x: Tensor,
    context: Mapping[str, Any] | None = None,
    *,
    kl_weight: float | Tensor = 1.0,
    num_rows: int | None = None,
    kl: KlEstimate = "sampled",
    num_particles: int | None = None,
    particle_dim: int = -2,
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
        kl: ``"sampled"`` estimates the KL from the draw, as ``Trace_ELBO``; ``"analytic"`` takes it in closed form,
            site by site, as ``TraceMeanField_ELBO``; ``"auto"`` does so at the sites that have one.
        num_particles: Draws of the guide for each row, K, in one vectorised run under a plate of their own; by
            default one draw without such a plate.
        particle_dim: Dimension of that plate, left of all plates that the programs have.

    Returns:
        The terms.

    Raises:
        ValueError: if ``kl="analytic"`` and a latent site has no closed form.
    """
    rows, draws = len(x), num_particles or 1
    shared = 1 / (rows if num_rows is None else num_rows)
    if num_particles is not None:
        model, guide = (_under_particles(program, num_particles, particle_dim) for program in (model, guide))
    model_trace, guide_trace = get_importance_trace("flat", math.inf, model, guide, (x,), dict(context or {}))
    closed_form = {} if kl == "sampled" else _closed_forms(model_trace, guide_trace, required=kl == "analytic")

    shape = (rows,) if num_particles is None else (num_particles, rows)

    def by_row(site: Any, values: Tensor) -> Tensor:
        """A site's values for each draw and row, summed over its other plates; a global site's are shared among all."""
        local = _is_local(site)
        summed = tuple(range(num_particles is not None, values.dim() - local))
        values = values.sum(summed) if summed else values
        return (values if local else values[..., None] * shared).expand(shape)

    reconstruction = rate = x.new_zeros(shape)
    surrogate = x.new_zeros(())
    stacks = get_plate_stacks(model_trace)
    costs = MultiFrameTensor()

    for name, site in model_trace.nodes.items():
        if site["type"] != "sample" or name in closed_form:
            continue
        log_prob = site["log_prob"]
        weight: float | Tensor = (1 / rows if _is_local(site) else shared) / draws
        if site["is_observed"]:
            reconstruction = reconstruction + by_row(site, log_prob)
        else:
            rate = rate - by_row(site, log_prob)
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
        weight = (1 / rows if _is_local(site) else shared) / draws
        if name in closed_form:
            rate = rate + by_row(site, closed_form[name])
            surrogate = surrogate - weight * kl_weight * closed_form[name].sum()
            continue
        rate = rate + by_row(site, site["log_prob"])
        _, score_function_term, entropy_term = site["score_parts"]
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - weight * kl_weight * entropy_term.sum()
        if not is_identically_zero(score_function_term):
            cost = costs.sum_to(site["cond_indep_stack"])
            surrogate = surrogate + (cost * score_function_term).sum()

    return ElboTerms(reconstruction.detach(), rate.detach(), surrogate, latents, tuple(closed_form))


def _under_particles(program: Callable[..., Any], num_particles: int, dim: int) -> Callable[..., Any]:
    def repeated(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(_PARTICLES, num_particles, dim=dim):
            return program(*args, **kwargs)

    return repeated


def _is_local(site: Any) -> bool:
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def _closed_forms(model_trace: Any, guide_trace: Any, *, required: bool) -> dict[str, Tensor]:
    """The KL at each latent site that has one, given the draws at the sites before it.

    That is unbiased where both programs come to their latents in the same order, so that the sites before are the same
    ones, and where draws can be differentiated through.
    """
    sites = {name: site for name, site in guide_trace.nodes.items() if site["type"] == "sample"}
    found: dict[str, Tensor] = {}
    why = ""
    if list(sites) != [name for name in model_trace.nodes if name in sites]:
        why = "the programs come to their latents in different orders"
    elif stuck := [name for name, site in sites.items() if not site["fn"].has_rsample]:
        why = f"draws at {', '.join(stuck)} cannot be differentiated through"
    else:
        for name, site in sites.items():
            other = model_trace.nodes[name]
            try:
                value = kl_divergence(site["fn"], other["fn"])
            except NotImplementedError:
                why = f"none is known at {name}"
                continue
            found[name] = scale_and_mask(value, site["scale"], site["mask"])
    if required and why:
        raise ValueError(f"kl='analytic' needs a closed form at every latent site, and {why}: use 'auto' or 'sampled'")
    return found
