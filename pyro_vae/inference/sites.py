r"""The only reader of traces: runs both programs on a batch, and computes what each of their sites contributes.

:func:`run_pair` runs the guide, then the model on its draws, K times for each of N rows. The result is a
:class:`Draws`: for each site its log-probability by draw and row, in nats,

.. math:: \log w_{kn} = \sum_{\text{observed}} \log p(x_n \mid z_{kn}) + \sum_{\text{latent}}
    \left( \log p(z_{kn}) - \log q(z_{kn} \mid x_n) \right)

with the ELBO as its mean over draws, and the importance-weighted bound as its log-mean-exp. All tools read traces here,
so these rules hold for all of them:

- **Unscaled.** ``poutine.scale`` and the subsampling of the plate ``"data"`` affect the objective
  (:attr:`Draws.scaled`), never the reported values. Masks affect both. A plate within a row that subsamples its
  elements is scaled up to all of them, which gives an unbiased estimate of the row's ELBO.
- **Shared.** A site outside the plate ``"data"`` belongs to all rows: each carries 1/num_rows of it.
- **Enumerated.** A latent that the model marks ``infer={"enumerate": "parallel"}`` is summed over, with all sites that
  depend on it. Latents among these are one entry of ``log_prior``, their marginal; the observed sites are one entry of
  ``log_likelihood``, the rest of the sum: log p(x | z) with the enumerated latent's posterior given z. A latent that
  the guide marks this way is summed over with the guide's probabilities: in the ELBO as the mean of log-weights, in a
  weight as the mean of the weights themselves, sum over y of p(x, y, z_y) / q(z_y | x, y). If single draws are needed,
  it is drawn.
- **Auxiliary.** Sites that the guide observes, and factors in the guide, are separate losses, not part of the ELBO. An
  observed site is maximised, as in CEVAE (Louizos et al., 2017); a factor has Pyro's sign: it counts as part of
  :math:`\log q`, so it is minimised.
"""

import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import is_identically_zero, scale_and_mask
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree, contract_to_tensor
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import check_sites, rows_first
from pyro_vae.inference.structure import (
    PARTICLES,
    ContractError,
    Fixed,
    Structure,
    is_local,
    is_point,
    is_unobserved_part,
    sample_sites,
    under_particles,
    vectorised_frames,
)

__all__ = ["Draws", "Term", "check_log_weights", "enumerated_logits", "over_draws", "run_pair", "unscaled"]

Program = Callable[..., Any]
Kind = Literal["likelihood", "prior", "guide", "auxiliary"]


class ByValue(NamedTuple):
    """A site's contribution for each value that the guide enumerates, ``(*values, K or 1, N or 1)``."""

    rows: Tensor
    scaled: Tensor
    score: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """The contribution of one site.

    Args:
        name: Name of the site, or of several that an enumerated latent joins.
        kind: Which sum it belongs to.
        rows: Its log-probability by draw and row, ``(K, N)``, in nats.
        scaled: The same with the programs' scale.
        frames: The plates of the site's own shape.
        cost: The scaled log-probability in the site's own shape, without gradient.
        score: The unscaled log-probability in the site's own shape, for a site of the guide whose draws cannot be
            differentiated through: the score function is its gradient.
        by_value: ``rows``, ``scaled`` and ``score`` for each value that the guide enumerates, if it enumerates any.
    """

    name: str
    kind: Kind
    rows: Tensor
    scaled: Tensor
    frames: tuple[Any, ...]
    cost: Tensor
    score: Tensor | None = None
    by_value: ByValue | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is in the plate ``"data"``."""
        return _frames_local(self.frames)

    def as_scaled(self) -> "Term":
        """The term with the programs' scales in all of its numbers."""
        each = self.by_value and self.by_value._replace(rows=self.by_value.scaled)
        return replace(self, rows=self.scaled, by_value=each)


@dataclass(frozen=True)
class Draws:
    """K draws from the guide for each of N rows, with the log-probabilities at the sites of both programs.

    Only :func:`run_pair` makes them. Every tensor of log-probabilities is ``(K, N)``, in nats, and differentiable.

    Args:
        terms: The sites' contributions.
        latents: The guide's draws by site, in the programs' shapes: ``(K, *plates, N, *event)``, without K if the
            programs ran for a single draw.
        event_dims: Number of dimensions of an event at each of those.
        shape: ``(K, N)``.
        closed_form: Names of the latents whose KL was taken in closed form.
    """

    terms: tuple[Term, ...]
    latents: Mapping[str, Tensor]
    event_dims: Mapping[str, int]
    shape: tuple[int, int]
    closed_form: tuple[str, ...] = ()
    _run: Any = None
    _parts: tuple["Draws", ...] = field(default=())

    def _by(self, kind: Kind) -> dict[str, Tensor]:
        return {term.name: term.rows for term in self.terms if term.kind == kind}

    @property
    def log_likelihood(self) -> dict[str, Tensor]:
        """Log p(x | z) at each observed site of the model."""
        return self._by("likelihood")

    @property
    def log_prior(self) -> dict[str, Tensor]:
        """Log p(z) at each latent site of the model that is not summed over."""
        return self._by("prior")

    @property
    def log_guide(self) -> dict[str, Tensor]:
        """Log q(z | x) at each site that the guide draws."""
        return self._by("guide")

    @property
    def auxiliary(self) -> dict[str, Tensor]:
        """What the guide's observed sites and, with a minus sign, its factors add to the objective."""
        return self._by("auxiliary")

    def _total(self, kind: Kind) -> Tensor:
        rows = [term.rows for term in self.terms if term.kind == kind]
        if not rows:
            like = self.terms[0].rows if self.terms else self._run.like
            return like.new_zeros(self.shape)
        return sum(rows[1:], rows[0])

    @property
    def reconstruction(self) -> Tensor:
        """Log p(x | z) of all observed sites."""
        return self._total("likelihood")

    @property
    def rate(self) -> Tensor:
        """Log q(z | x) − log p(z) of all latents: an unbiased estimate of the KL."""
        return self._total("guide") - self._total("prior")

    @property
    def elbo(self) -> Tensor:
        """``reconstruction - rate``: each draw's estimate of the evidence lower bound."""
        return self.reconstruction - self.rate

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) − log q(z | x) of each draw: the same as ``elbo``, for importance weighting.

        Values that the guide enumerates are summed over; then it is the logarithm of their mean weight under the
        guide's probabilities.
        """
        if self._parts:
            return torch.cat([part.log_weights for part in self._parts])
        if self._run is None or self._run.probabilities is None:
            return self.elbo
        total, of_values = torch.zeros(()), self._run.log_probabilities
        for term in self.terms:
            if term.kind == "auxiliary" or term.by_value is None:
                continue
            value = term.by_value.rows
            if term.kind != "guide":
                total = total + value
            elif term.name in of_values:  # the rest of it if the guide masks or scales it; else 0, for -inf too
                total = total + torch.where(of_values[term.name] == value, 0.0, of_values[term.name] - value)
            else:
                total = total - value
        return total.logsumexp(tuple(range(total.dim() - 2))).expand(self.shape)

    @property
    def num_rows(self) -> int:
        """Number of rows in the whole data set, of which these are a part."""
        return self._run.num_rows

    def only_latent(self, who: str) -> str:
        """The name of the guide's only latent, which must be one vector for each row.

        Raises:
            ContractError: if there is no such latent, which ``who`` needs, or each draw was a separate run.
        """
        if self._parts:
            raise ContractError(f"{who} takes programs that run for several draws at once, which these do not")
        if len(self.latents) == 1:
            ((name, z),) = self.latents.items()
            for site in (self._run.guide[name], self._run.model[name]):
                if site["mask"] is not None or not _is_same(site["scale"], 1.0):
                    raise ContractError(f"{who} takes latents without a mask and a scale, and {name!r} has one")
            if z.shape[:-1].numel() == math.prod(self.shape):
                return name
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in self.latents.items()) or "none"
        raise ContractError(f"{who} takes a guide that draws one latent vector for each row, (N, L); found {shapes}")

    def distributions(self, name: str) -> tuple[Any, Any]:
        """The guide's and the model's distribution at a latent site, for these rows."""
        return self._run.guide[name]["fn"], self._run.model[name]["fn"]

    @property
    def scaled(self) -> "Draws":
        """The same draws with the programs' scales, as objectives use them."""
        return self._with([term.as_scaled() for term in self.terms], lambda part: part.scaled)

    def where(self, keep: Callable[[Term], bool]) -> "Draws":
        """The same draws with some of their terms: ``draws.where(lambda term: term.is_local)`` has no global sites.

        Call it before :meth:`with_closed_forms`, which replaces terms.
        """
        return self._with([term for term in self.terms if keep(term)], lambda part: part.where(keep))

    def with_closed_forms(self, *, required: bool = False) -> "Draws":
        """The same draws with the KL itself at each latent site that has a closed form.

        It replaces log q(z | x), and 0 replaces log p(z). This is unbiased if both programs sample their latents in the
        same order, so that each site has the same sites before it, and draws can be differentiated through.

        Args:
            required: Raise an error if a site has no closed form.

        Raises:
            ValueError: if one is required and missing, with the reason.
        """
        if self._parts:
            return _joined([part.with_closed_forms(required=required) for part in self._parts])
        found = self._run.closed_forms({term.name for term in self.terms if term.kind == "prior"}, required=required)
        terms = [
            replace(term, **found[term.name][0 if term.kind == "guide" else 1])
            if term.kind in ("guide", "prior") and term.name in found
            else term
            for term in self.terms
        ]
        return replace(self, terms=tuple(terms), closed_form=tuple(found))

    def held(self) -> "Draws":
        """The same draws as fixed values: no gradient goes through them, and log q has that of its own parameters.

        Wake-sleep uses this, without a score function; the draws themselves remain fixed from then on.
        """
        if self._parts:
            return _joined([part.held() for part in self._parts])
        return replace(self, terms=tuple(map(self._run.held, self.terms)))

    def dreamed(self) -> Tensor:
        r"""Log q(z | x) at z and x drawn from the model, for as many rows: ``(N,)``.

        Each row is drawn with its own keyword arguments. The gradient is for the guide's parameters.
        """
        return (self._parts[0] if self._parts else self)._run.dreamed()

    def _with(self, terms: list[Term], of_part: Callable[["Draws"], "Draws"]) -> "Draws":
        return replace(self, terms=tuple(terms), _parts=tuple(of_part(part) for part in self._parts))

    def score_function(self, weight: Callable[[Term], float | Tensor]) -> Tensor | None:
        """A scalar with the value 0 whose gradient supplies that of draws that cannot be differentiated through.

        Added to a mean over draws and rows, it makes the gradient of that mean right. The cost of a draw is the sum of
        all terms, with these weights, over the plates that it shares
        (Schulman et al., *Gradient Estimation Using Stochastic Computation Graphs*, 2015).

        Args:
            weight: A term's weight in that mean, negative for the guide's terms.

        Returns:
            The scalar; None if every draw can be differentiated through.
        """
        if self._parts:
            found = [s for part in self._parts if (s := part.score_function(weight)) is not None]
            return _sum(found) / len(self._parts) if found else None
        scored = [term for term in self.terms if term.score is not None]
        if not scored:
            return None
        self._run.has_score_function = True
        if self._run.probabilities is not None:
            total = self._score_function_by_value(scored, weight)
        else:
            costs = MultiFrameTensor()
            for term in self.terms:
                share = self._run.weights[not term.is_local]
                costs.add((term.frames, (weight(term) * share * term.cost).detach()))
            total = _sum([(costs.sum_to(term.frames) * term.score).sum() for term in scored if term.score is not None])
        return total - total.detach()

    @property
    def without_score_function(self) -> list[str]:
        """The guide's sites whose draws cannot be differentiated through, if :meth:`score_function` was not called."""
        runs = self._parts[:1] or (self,)
        return [term.name for d in runs for term in d.terms if term.score is not None and not d._run.has_score_function]

    def _score_function_by_value(self, scored: list[Term], weight: Callable[[Term], float | Tensor]) -> Tensor:
        cost = _sum([weight(term) * term.by_value.scaled for term in self.terms if term.by_value]).detach()
        total = cost.new_zeros(())
        for term in scored:
            score = term.by_value and term.by_value.score
            assert score is not None
            if term.is_local:
                total = total + self._run.expected(cost * score, fixed=True).mean()
            else:  # a global draw changes the cost of every row
                total = total + (self._run.expected(cost, fixed=True).mean(-1, keepdim=True) * score).mean()
        return total


def _sum(parts: list[Any]) -> Any:
    return sum(parts[1:], parts[0])


def _is_enumerated(site: Any) -> bool:
    return site["infer"].get("_enumerate_dim") is not None


def _frames_local(frames: tuple[Any, ...]) -> bool:
    return any(frame.name == "data" for frame in frames)


def run_pair(
    model: Program,
    guide: Program,
    batch: Batch,
    structure: Structure,
    *,
    num_particles: int | None = None,
    num_rows: int | None = None,
    enumerate_guide: bool = True,
) -> Draws:
    """Runs the guide, then the model on its draws.

    Args:
        model: The generative program.
        guide: The inference program.
        batch: N rows.
        structure: The sites of the programs, see :func:`~pyro_vae.inference.inspection.inspect_pair`.
        num_particles: Draws K for each row; by default one, without a plate. Programs that cannot run for several draws
            at once are run K times.
        num_rows: Number of rows in the whole data set, which share a global site; by default the batch's.
        enumerate_guide: Sum over the values that the guide enumerates; False draws them, so every draw has a weight.

    Returns:
        The draws.
    """
    if num_particles is not None and not structure.vectorised:
        parts = [
            run_pair(model, guide, batch, structure, num_rows=num_rows, enumerate_guide=enumerate_guide)
            for _ in range(num_particles)
        ]
        return _joined(parts)
    run = _Run(model, guide, batch, structure, num_particles, num_rows, enumerate_guide=enumerate_guide)
    return run.draws()


def _joined(parts: list[Draws]) -> Draws:
    """Several runs of one draw each, joined as if from one run."""
    first = parts[0]
    terms = tuple(
        replace(
            term,
            rows=torch.cat([part.terms[i].rows for part in parts]),
            scaled=torch.cat([part.terms[i].scaled for part in parts]),
        )
        for i, term in enumerate(first.terms)
    )
    latents = {name: torch.stack([part.latents[name] for part in parts]) for name in first.latents}
    return replace(first, terms=terms, latents=latents, shape=(len(parts), first.shape[1]), _parts=tuple(parts))


def over_draws(values: Tensor) -> Tensor:
    """The mean over draws ``(K, N)``; a single one is returned unchanged, without a kernel."""
    return values[0] if len(values) == 1 else values.mean(0)


def check_log_weights(log_weights: Tensor) -> None:
    """Raises a FloatingPointError if any log-weight ``(K, N)`` is NaN."""
    if bool(log_weights.isnan().any()):
        raise FloatingPointError(
            f"{int(log_weights.isnan().any(0).sum())} of {log_weights.shape[1]} rows have NaN among their log-weights: "
            f"the programs gave a distribution with NaN in it, or log-probabilities of opposite infinities"
        )


class _Run:
    """One run of both programs, and its shapes."""

    def __init__(
        self,
        model: Program,
        guide: Program,
        batch: Batch,
        structure: Structure,
        num_particles: int | None,
        num_rows: int | None,
        *,
        enumerate_guide: bool,
    ) -> None:
        self.structure, self.particles, self.rows = structure, num_particles, len(batch)
        self.programs, self.batch = (model, guide), batch
        self.shape, self.like = (num_particles or 1, len(batch)), batch.log_jacobian
        self.num_rows = len(batch) if num_rows is None else num_rows
        self.shared = 1 / self.num_rows
        self.weights = (1 / (self.rows * self.shape[0]), self.shared / self.shape[0])  # of local sites, of global ones
        self.nesting = structure.nesting
        self.has_score_function = False  # whether an objective has called it
        dim = structure.particle_dim
        model, guide = (under_particles(program, num_particles, dim) for program in (model, guide))
        first_enumerated = dim - (num_particles is not None)
        guided = bool(structure.enumerated("guide")) and enumerate_guide
        if guided:
            guide = EnumMessenger(first_available_dim=first_enumerated)(guide)
        if guided or structure.enumerated("model"):
            model = EnumMessenger(None if guided else first_enumerated)(model)
        nesting = math.inf if not (guided or structure.enumerated("model")) else -first_enumerated - 1
        with warnings.catch_warnings():  # the inspection has checked which latents belong to which program
            warnings.filterwarnings("ignore", message="Found (non-auxiliary )?vars")
            self.model_trace, self.guide_trace = get_importance_trace(
                "flat", nesting, model, guide, (batch.x,), batch.arguments
            )
        self.model, self.guide = sample_sites(self.model_trace), sample_sites(self.guide_trace)
        # The number of steps may depend on the rows, so enumerated sites are read from this run.
        self.enumerated = [name for name, site in self.guide.items() if _is_enumerated(site)]
        self.summed = [
            name
            for name, site in self.model.items()
            if name not in self.guide and _is_enumerated(site) and not self._is_left_to_the_model(name)
        ]
        # Of the values that the guide enumerates, ``(*values, K, N)``, regardless of masks and scales.
        self.log_probabilities = {
            name: self._in_rows(self.guide[name]["unscaled_log_prob"], local=True) for name in self.enumerated
        }
        self.probabilities = _sum(list(self.log_probabilities.values())).exp() if self.enumerated else None
        self.joined = self._joined_sites()

    def draws(self) -> Draws:
        joined = self.joined
        terms = self._marginals(joined) if joined else []
        for name, site in self.model.items():
            if name in joined or self._is_left_to_the_model(name):
                continue
            terms.append(self._term(name, "likelihood" if site["is_observed"] else "prior", site))
        for name, site in self.guide.items():
            auxiliary = site["is_observed"]
            sign = -1.0 if auxiliary and isinstance(site["fn"], dist.Unit) else 1.0
            terms.append(self._term(name, "auxiliary" if auxiliary else "guide", site, sign))
        latents = {name: site["value"] for name, site in self.guide.items() if not site["is_observed"]}
        event_dims = {name: self.guide[name]["fn"].event_dim for name in latents}
        return Draws(tuple(terms), latents, event_dims, self.shape, _run=self)

    def _in_rows(self, values: Tensor, *, local: bool, shared: bool = True) -> Tensor:
        """Values in a site's shape, summed over its plates except draws and rows: ``(*values, K or 1, N or 1)``."""
        depth = min(values.dim(), self.nesting)
        has_draws = self.particles is not None and values.dim() > self.nesting
        inner = tuple(range(-depth, -1 if local else 0))
        values = values.sum(inner) if inner else values
        if not local:
            values = values[..., None] * (self.shared if shared else 1.0)
        return values if has_draws else values.unsqueeze(-2)

    def expected(self, values: Tensor, *, fixed: bool = False) -> Tensor:
        """The mean over values that the guide enumerates, ``(K, N)``; ``fixed`` probabilities have no gradient."""
        if self.probabilities is not None:
            values = values * (self.probabilities.detach() if fixed else self.probabilities)
            values = values.sum(tuple(range(values.dim() - 2))) if values.dim() > 2 else values
        return values.expand(self.shape)

    def held(self, term: Term) -> Term:
        """A term of fixed draws; called for all terms before any backward pass."""
        if self.structure.extra:
            raise ContractError(
                f"the guide draws {self.structure.extra[0]!r}, which the model does not have, so nothing tells how to "
                f"draw it: use Elbo(...)"
            )
        if term.kind != "guide":
            return term
        site = self.guide[term.name]
        if is_point(site["fn"]):
            raise ContractError(
                f"the guide sets {term.name!r} to a point, and has no density there to learn from its own draws: use "
                f"Elbo(...)"
            )
        if site["value"].requires_grad:
            site["value"].register_hook(torch.zeros_like)
        self.has_score_function = True  # its score function is zero
        return self._term(term.name, "guide", site, held=True)

    def dreamed(self) -> Tensor:
        """Log q(z | x) of latents and rows drawn from the model, ``(N,)``."""
        model, guide = self.programs
        with torch.no_grad():
            drawn = sample_sites(poutine.trace(model).get_trace(batch_size=self.rows, **self.batch.forward))
        check_sites(drawn, ("x",))
        x, values = rows_first(drawn["x"], drawn["x"]["value"]), {}
        for name, argument in self.structure.observed.items():
            if name != "x" and name in drawn and argument is not None:
                values[argument] = rows_first(drawn[name], drawn[name]["value"])
        with Fixed({name: site["value"] for name, site in drawn.items()}):
            trace = poutine.trace(guide).get_trace(x, **{**self.batch.arguments, **values})
        trace.compute_log_prob()
        sites = {name: site for name, site in sample_sites(trace).items() if not site["is_observed"]}
        terms = [
            self._in_rows(site["log_prob"] / _subsampling(site)[0], local=is_local(site)) for site in sites.values()
        ]
        return _sum(terms).expand(1, self.rows)[0]

    def _term(self, name: str, kind: Kind, site: Any, sign: float = 1.0, *, held: bool = False) -> Term:
        local, frames = is_local(site), tuple(vectorised_frames(site))
        data, inner = _subsampling(site)
        plain = data == 1 and _is_one(site["scale"], inner)

        def in_rows(values: Tensor) -> Tensor:
            return self._in_rows(values, local=local)

        cost = sign * site["log_prob"] / data if data != 1 or sign != 1 else site["log_prob"]
        scaled_by_value = in_rows(cost)
        scaled = self.expected(scaled_by_value)
        by_value, rows = scaled_by_value, scaled
        if not plain:
            by_value = in_rows(sign * scale_and_mask(site["unscaled_log_prob"], inner, site["mask"]))
            rows = self.expected(by_value)
        score: Tensor | None = None
        if kind == "guide" and name not in self.enumerated and not held:
            _, score_function, entropy = site["score_parts"]
            if not is_identically_zero(score_function):
                # The value is log q; its gradient is that of the entropy term and of the guide's enumeration only.
                score, scaled = score_function, self.expected(scaled_by_value.detach())
                if not is_identically_zero(entropy):
                    gradient = self.expected(in_rows(entropy / data), fixed=True)
                    scaled = scaled + (gradient - gradient.detach())
        each = None
        if self.probabilities is not None:
            score_by_value = None if score is None else self._in_rows(score, local=local, shared=False)
            each = ByValue(by_value, scaled_by_value, score_by_value)
        return Term(name, kind, rows, scaled, frames, cost.detach(), score, each)

    def closed_forms(self, priors: set[str], *, required: bool) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
        """Replacements of the guide's and the model's term at each latent site with a closed form."""
        drawn = {n: s for n, s in self.guide.items() if not s["is_observed"] or isinstance(s["fn"], dist.Unit)}
        sites = {name: site for name, site in drawn.items() if name in self.model and not site["is_observed"]}
        found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        why = ""
        if list(sites) != [name for name in self.model if name in sites]:
            why = "the programs sample their latents in different orders"
        elif stuck := [name for name, site in drawn.items() if not site["fn"].has_rsample]:
            why = f"draws at {', '.join(stuck)} cannot be differentiated through"
        else:
            for name, site in sites.items():
                if name not in priors or name in self.joined:
                    why = f"the prior of {name} depends on a latent that is summed over"
                    continue
                try:
                    value = _kl(site, self.model[name])
                except NotImplementedError:
                    why = f"none is known at {name}"
                    continue
                found[name] = self._closed_form(site, value)
        if required and why:
            raise ValueError(
                f"kl='analytic' needs a closed form at every latent site, and {why}: use 'auto' or 'sampled'"
            )
        return found

    def _closed_form(self, site: Any, value: Tensor) -> tuple[dict[str, Any], dict[str, Any]]:
        local = is_local(site)
        data, inner = _subsampling(site)
        rows, scaled = (
            self.expected(self._in_rows(scale_and_mask(value, scale, site["mask"]), local=local))
            for scale in (inner, site["scale"] if data == 1 else site["scale"] / data)
        )
        nothing = torch.zeros_like(rows)
        cost = torch.zeros((), dtype=rows.dtype, device=rows.device)
        return {"rows": rows, "scaled": scaled, "cost": cost, "frames": ()}, {
            "rows": nothing,
            "scaled": nothing,
            "cost": cost,
            "frames": (),
        }

    def _joined_sites(self) -> list[str]:
        """The sites that an enumerated latent of the model joins: itself and those that depend on it."""
        if not self.summed:
            return []
        self.guide_trace.pack_tensors()
        self.model_trace.pack_tensors(self.guide_trace.plate_to_symbol)
        summed = self._summed()
        depend = [n for n, site in self.model.items() if not summed.isdisjoint(site["packed"]["log_prob"]._pyro_dims)]
        return [name for name in depend if not self._is_left_to_the_model(name)]

    def _is_left_to_the_model(self, name: str) -> bool:
        return name not in self.structure.latents and is_unobserved_part(name, self.model)

    def _summed(self) -> set[str]:
        return {self.model[name]["infer"]["_enumerate_symbol"] for name in self.summed}

    def factors(self, joined: list[str]) -> OrderedDict[frozenset[str], list[Tensor]]:
        """The log-probabilities of joined sites, by their plates within a row."""
        found: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
        for name in joined:
            site = self.model[name]
            factor = site["packed"]["unscaled_log_prob"]
            if name not in self.summed:
                factor = packed.scale_and_mask(factor, mask=site["packed"]["mask"])
            found.setdefault(self.ordinal(site), []).append(factor)
        return found

    def ordinal(self, site: Any) -> frozenset[str]:
        """A site's plates within a row, as symbols: rows and draws are dimensions that are not summed over."""
        symbols = self.model_trace.plate_to_symbol
        return frozenset(symbols[f.name] for f in vectorised_frames(site) if f.name not in ("data", PARTICLES))

    def _marginals(self, joined: list[str]) -> list[Term]:
        """Terms of the joined latents and observed sites, summed over the values that the model enumerates."""
        sites = [self.model[name] for name in joined]
        if any(not is_local(site) for site in sites):
            raise ContractError("an enumerated latent joins sites outside the plate 'data'")
        scale, (data, inner) = _common_scale(sites), _subsampling(sites[0])
        frames = {f.name: f for site in sites for f in vectorised_frames(site) if f.name in ("data", PARTICLES)}

        def term(names: list[str], kind: Kind, found: Tensor, costs: Tensor) -> Term:
            each = ByValue(found * inner, found * (scale / data))
            rows, scaled = self.expected(each.rows), self.expected(each.scaled)
            cost = (costs * (scale / data)).detach()
            name, by_value = " & ".join(names), None if self.probabilities is None else each
            return Term(name, kind, rows, scaled, tuple(frames.values()), cost, by_value=by_value)

        observed = [name for name in joined if self.model[name]["is_observed"]]
        drawn = [name for name in joined if name not in self.summed and name not in observed]
        total = self._contracted(joined)
        if not drawn:
            return [term(observed or joined, "likelihood", *total)]
        prior = self._contracted([name for name in joined if name not in observed])
        terms = [term(drawn, "prior", *prior)]
        if observed:
            terms.append(term(observed, "likelihood", total[0] - prior[0], total[1] - prior[1]))
        return terms

    def _contracted(self, joined: list[str]) -> tuple[Tensor, Tensor]:
        """The sites' log-probability summed over enumerated values, by row, and by draw and row in the sites' shape."""
        contracted = contract_tensor_tree(self.factors(joined), self._summed())
        found: list[Tensor] = []
        costs: list[Tensor] = []
        for terms in contracted.values():
            for term in terms:
                values = packed.unpack(term, self.model_trace.symbol_to_dim)
                found.append(self._in_rows(values, local=True))
                depth = tuple(range(-min(values.dim(), self.nesting), -1))
                costs.append(values.sum(depth, keepdim=True) if depth else values)
        return _sum(found), _sum(costs)


def _kl(site: Any, prior: Any) -> Tensor:
    if is_point(site["fn"]):  # a point has only one draw; Pyro's KL would ignore its density
        return site["fn"].log_prob(site["value"]) - prior["fn"].log_prob(site["value"])
    return kl_divergence(site["fn"], prior["fn"])


def _subsampling(site: Any) -> tuple[float, float]:
    """The factors that a site's plates scale up by: the plate ``"data"``, and those within a row."""
    data = inner = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size is not None and frame.size:
            factor = frame.full_size / frame.size
            data, inner = (data * factor, inner) if frame.name == "data" else (data, inner * factor)
    return data, inner


class _Unscaled(Messenger):
    """Removes all scales except those of the plates."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = math.prod(_subsampling(msg))


def unscaled(program: Program) -> Program:
    """The program without the effect of ``poutine.scale``: its gradient is then that of unscaled nats."""
    return _Unscaled()(program)


def _is_one(scale: Any, inner: float) -> bool:
    return not isinstance(scale, Tensor) and scale == inner


def _common_scale(sites: list[Any]) -> Any:
    """The scale of sites that are summed over together: a number, or a tensor with one for each row."""
    first = sites[0]["scale"]
    if not all(_is_same(site["scale"], first) for site in sites):
        raise ContractError("sites that an enumerated latent joins have different scales: put one scale around them")
    if not isinstance(first, Tensor) or first.numel() == 1:
        return first
    if first.numel() != first.shape[-1]:
        raise ContractError("the scale of sites that an enumerated latent joins must not vary within a row")
    return first.reshape(-1)


def _is_same(scale: Any, other: Any) -> bool:
    if scale is other:
        return True
    if not isinstance(scale, Tensor) and not isinstance(other, Tensor):
        return scale == other
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    if get_proxy_mode() is not None:  # a traced graph has no values; they were compared before
        return True
    return bool((torch.as_tensor(scale) == torch.as_tensor(other)).all())


def enumerated_logits(
    model: Program, guide: Program, batch: Batch, structure: Structure, site: str, num_particles: int | None = None
) -> Tensor:
    """Log p(k | x, z) of a latent that the model enumerates, at draws of all others, up to a constant.

    Returns:
        ``(K, *plates, N, number of values)``; without K if ``num_particles`` is None.
    """
    run = _Run(model, guide, batch, structure, num_particles, None, enumerate_guide=False)
    node = run.model[site]
    symbol = node["infer"]["_enumerate_symbol"]
    logits = contract_to_tensor(
        run.factors(run.joined), run._summed(), target_ordinal=run.ordinal(node), target_dims={symbol}
    )
    size = logits.shape[logits._pyro_dims.index(symbol)]
    logits = packed.unpack(logits, run.model_trace.symbol_to_dim)
    dim = node["infer"]["_enumerate_dim"]
    logits = logits.unsqueeze(-1).transpose(-1, dim - 1)
    names = {frame.dim: frame.size for frame in vectorised_frames(node)}
    batch_shape = [names.get(d, 1) for d in range(-max(map(abs, names)), 0)]
    while logits.dim() > 1 + len(batch_shape):  # plates of other sites, of size 1 here
        logits = logits.squeeze(0)
    return logits.expand(*batch_shape, size)
