r"""Draws of any entries of a row given any others, with any trained pair."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._support.arrays import as_tensor
from pyro_vae._support.devices import memory_for_draws
from pyro_vae._support.memory import check_memory
from pyro_vae._support.precision import arithmetic, floating
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.annealing import annealed_draws
from pyro_vae.evaluation.evidence import log_mean_exp
from pyro_vae.evaluation.latent_density import LatentDensity, latent_layout
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.gaps import leaving_out_gaps
from pyro_vae.inference.imputation import draw_rows, resampled
from pyro_vae.inference.sites import Draws, check_log_weights, run_pair
from pyro_vae.inference.structure import ContractError, Fixed, Structure, nothing, sample_sites, under_particles
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating

__all__ = ["ConditionalDraws", "conditional"]

Program = Callable[..., Any]

_FILLINGS = 8  # ways to fill a row's gaps, for each of which the guide proposes
_ROUNDS = 3  # of drawing them again, given the observed entries
_CHAINS_PER_ESS = 4  # chains of an annealed row for each effective draw in min_ess


@dataclass(frozen=True)
class ConditionalDraws:
    r"""Whole rows given some of their entries, and how far to trust them.

    Args:
        draws: ``(S, N, *E)`` in the user's units; observed entries are unchanged.
        ess: Effective sample size of each row's weights, ``(N,)``, on the CPU: the draws are worth at most this many
            independent ones.
        log_evidence: Log evidence of the observed entries of each row, :math:`\log p(x_\text{obs})`, ``(N,)``, in nats
            and in the user's units, on the CPU.
        annealed: Which rows had to be annealed, ``(N,)``, on the CPU.
    """

    draws: Tensor
    ess: Tensor
    log_evidence: Tensor
    annealed: Tensor

    def __str__(self) -> str:
        return (
            f"{len(self.draws):,} draws for each of {len(self.ess):,} rows, of which {int(self.annealed.sum()):,} were "
            f"annealed; effective sample size from {float(self.ess.min()):.0f} to {float(self.ess.max()):.0f}"
        )


def conditional(
    pair: Pair,
    x: Inputs,
    num_samples: int = 1,
    *,
    num_particles: int = 1000,
    min_ess: float = 20,
    num_steps: int = 50,
    memory_mib: float | None = None,
) -> ConditionalDraws:
    r"""Draws the missing entries of each row given the observed ones, with any trained pair.

    .. math:: z \sim p(z \mid x_\text{obs}),\ x_\text{mis} \sim p(x_\text{mis} \mid z)

    The pair need not have been trained with missing entries, and its guide need not handle them. If the model takes no
    ``mask``, the density of the observed entries comes from its likelihood, which must factorise over entries.

    For each row, latents are proposed by a mixture of the prior and of the guide at several fillings
    :math:`\tilde x_g` of the gaps,

    .. math:: r(z) = \frac{1}{G + 1} \Bigl(p(z) + \sum_{g=1}^G q(z \mid \tilde x_g)\Bigr), \qquad
        w_k = \frac{p(x_\text{obs}, z_k)}{r(z_k)}

    and resampled by their weights. The gaps are first filled with draws from the model, and then, in a few rounds, with
    draws given the observed entries (Cappé et al., *Population Monte Carlo*, 2004), so that the guide sees rows like
    those it was trained on. The prior in the mixture bounds the weights; the whole mixture in the denominator makes
    them nearly as even as the best of its parts does (Veach & Guibas, *Optimally Combining Sampling Techniques*, 1995).

    If the weights of a row collapse, as their effective sample size shows, its latents are annealed: chains from the
    prior to the posterior find where that lies, and others, from a normal distribution there, are weighted as in
    :func:`~pyro_vae.evaluation.ais_bounds` (Neal, *Annealed Importance Sampling*, 2001). If that does not help either,
    the draws would be a few repeated ones, and an error is raised.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents all lie in the plate
            ``"data"``.
        x: Rows with NaN in place of the entries to draw, or a mapping of ``"x"``, a ``"mask"`` of its shape, true where
            an entry is observed, and the programs' keyword arguments.
        num_samples: Draws S for each row.
        num_particles: Proposals K for each row.
        min_ess: The smallest effective sample size to accept. At 1 nothing is annealed or rejected.
        num_steps: Annealing steps.
        memory_mib: Bound on the memory for proposals, in MiB, as for :func:`~pyro_vae.evaluation.log_evidence`.

    Returns:
        The draws with their effective sample sizes, see :class:`ConditionalDraws`.

    Raises:
        ContractError: if rows, which the message names, have too small an effective sample size; if the likelihood does
            not factorise over entries; if latents lie outside the plate ``"data"``.
        ValueError: if the rows do not fit the model.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, likelihood=Normal())
        >>> found = conditional(vae, torch.tensor([[0.5, torch.nan, 0.1]]), num_samples=4)
        >>> found.draws.shape, found.draws[:, 0, 0].tolist(), bool(found.ess > 20)
        (torch.Size([4, 1, 3]), [0.5, 0.5, 0.5, 0.5], True)
    """
    for name, value in (("num_samples", num_samples), ("num_particles", num_particles), ("num_steps", num_steps)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, found {value}")
    if not 1 <= min_ess <= num_particles:
        raise ValueError(f"min_ess must be from 1 to num_particles, {num_particles}; found {min_ess}")
    whole = _with_gaps(pair)
    rows = whole.check(x)
    check_memory(
        num_samples * rows.num_rows * rows.num_elements * pair.dtype.itemsize,
        f"{num_samples:,} draws for each of {rows.num_rows:,} rows",
        "draw fewer times, or for fewer rows at once",
    )
    memory = memory_for_draws(pair.device) if memory_mib is None else int(memory_mib * 2**20)
    draws, weights = [], []
    with evaluating(pair.model, pair.guide):
        structure: Structure | None = None
        for chunk in rows.chunks(rows_that_fit(rows.num_elements)):
            batch = whole.prepare(chunk)
            structure = whole.structure(batch, count_bytes=True) if structure is None else structure
            structure.require_local("no row has its own posterior")
            given = arithmetic(as_tensor(chunk["x"])).to(pair.device)
            at_once = max(1, memory // (num_particles * structure.bytes_per_draw))
            for part in batch.chunks(at_once):
                start = sum(len(done.ess) for done in weights)
                row = _Rows(whole, structure, part, num_samples, num_particles, min_ess, num_steps, start)
                drawn = whole.transform.inverse(row.drawn())
                here, given = given[: len(part)], given[len(part) :]
                assert part.mask is not None  # set by missing="nan"
                draws.append(torch.where(part.mask, floating(here, drawn.dtype), drawn))
                weights.append(row)
    log_evidence = torch.cat([row.log_evidence for row in weights]).cpu()
    ess, annealed = (torch.cat([getattr(row, name) for row in weights]).cpu() for name in ("ess", "annealed"))
    return ConditionalDraws(torch.cat(draws, 1), ess, log_evidence, annealed)


def _with_gaps(pair: Pair) -> Pair:
    """The pair, with a model that ignores missing entries."""
    whole = Pair(
        leaving_out_gaps(pair.model),
        pair.guide,
        transform=pair.transform,
        event_shape=pair.event_shape,
        data_range=pair.data_range,
        missing="nan",
    )
    whole.num_rows, whole._place = pair.num_rows, pair._place
    return whole


class _Rows:
    """Draws for some rows, and afterwards their effective sample sizes.

    Args:
        pair: A pair whose model takes a mask.
        structure: The sites of its programs.
        batch: The n rows.
        num_samples: Draws S of each.
        num_particles: Proposals K.
        min_ess: Effective sample size below which a row is annealed, and then rejected.
        num_steps: Annealing steps.
        start: The first row's index among all rows.
    """

    def __init__(
        self,
        pair: Pair,
        structure: Structure,
        batch: Batch,
        num_samples: int,
        num_particles: int,
        min_ess: float,
        num_steps: int,
        start: int,
    ) -> None:
        self.pair, self.structure, self.batch = pair, structure, batch
        self.num_samples, self.num_particles, self.num_steps = num_samples, num_particles, num_steps
        self.min_ess, self.start = min_ess, start

    def drawn(self) -> Tensor:
        """``(S, n, *E)`` in the model's units."""
        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            proposals = _Proposals(self.pair, self.structure, self.batch)
            proposals.fill(self.num_particles)
            latents, log_weights = proposals.draw(self.num_particles)
            self._measure(log_weights)
            self.annealed = self.ess < self.min_ess
            chosen = resampled(latents, proposals.event_dims, log_weights, self.num_samples)
            x = self._rows_at(chosen, self.batch)
            if bool(self.annealed.any()):
                x[:, self.annealed] = self._anneal(self.annealed.nonzero()[:, 0])
        return x

    def _rows_at(self, latents: dict[str, Tensor], batch: Batch) -> Tensor:
        return draw_rows(self.pair.programs[0], latents, batch, self.structure, self.num_samples)["x"]

    def _measure(self, log_weights: Tensor, rows: Tensor | None = None) -> None:
        log_mean, _, ess = log_mean_exp(log_weights)
        log_mean, ess = log_mean + self.batch[rows if rows is not None else slice(None)].log_jacobian, ess.nan_to_num()
        if rows is None:
            self.log_evidence, self.ess = log_mean, ess
        else:
            self.log_evidence[rows], self.ess[rows] = log_mean, ess

    def _anneal(self, rows: Tensor) -> Tensor:
        """Draws for rows whose weights have collapsed, from chains that start at the prior."""
        batch = self.batch[rows]
        try:
            layout = latent_layout(self.pair, self.structure, batch, "prior")
        except ValueError as error:
            self._refuse(rows, f"and cannot be annealed: {error}")
        density = LatentDensity(self.pair, self.structure, batch, layout, "prior")
        u, log_weights = annealed_draws(density, int(_CHAINS_PER_ESS * self.min_ess), self.num_steps)
        self._measure(log_weights, rows)
        few = rows[self.ess[rows] < self.min_ess]
        if len(few):
            self._refuse(few, f"annealed in {self.num_steps} steps: raise num_particles or num_steps")
        chosen = resampled({"": u}, {"": 1}, log_weights, self.num_samples)[""]
        return self._rows_at(density.latents(chosen), batch)

    def _refuse(self, rows: Tensor, why: str) -> None:
        named = ", ".join(f"{self.start + int(row)} ({float(self.ess[row]):.1f})" for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        raise ContractError(
            f"the draws of {len(rows)} rows have an effective sample size below min_ess={self.min_ess:g}, rows "
            f"{named}{more}, {why}, or lower min_ess and accept fewer effective draws"
        )


class _Proposals:
    """Proposals for the latents of n rows: a mixture of the prior, and of the guide at several fillings of the gaps."""

    def __init__(self, pair: Pair, structure: Structure, batch: Batch) -> None:
        self.model, self.guide = pair.programs
        self.structure, self.batch = structure, batch
        one = run_pair(self.model, self.guide, batch, structure, enumerate_guide=False)
        self.names = [name for name in one.latents if name in structure.guided]
        self.event_dims = one.event_dims
        self.shapes = {name: one.latents[name].shape for name in self.names}
        self.filled: list[Batch] = []
        try:
            structure.require_weights()
            self.guide_has_density = True
        except ValueError:
            self.guide_has_density = False

    def fill(self, num_particles: int) -> None:
        """Fills the gaps with draws given the observed entries, approximated by a few proposals."""
        if not self.guide_has_density:
            return
        mask = self.batch.mask
        latents = self._from_prior(_FILLINGS)
        for round in range(_ROUNDS):
            x = draw_rows(self.model, latents, self.batch, self.structure, _FILLINGS)["x"]
            assert mask is not None
            self.filled = [self.batch.replace(x=torch.where(mask, self.batch.x, each)) for each in x]
            if round == 0:
                self._check_gaps()
            if round < _ROUNDS - 1:
                proposed, log_weights = self.draw(max(_FILLINGS, num_particles // _ROUNDS))
                latents = resampled(proposed, self.event_dims, log_weights, _FILLINGS)

    def _check_gaps(self) -> None:
        """Checks that the values in gaps do not matter to the model."""
        latents = self._from_prior(1)
        found = []
        for batch in self.filled[:2]:
            found.append(self._joint(latents, 1, batch)[1])
        if not torch.allclose(*found, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ContractError(
                "the model's density of the observed entries changes with the values in place of missing ones: it "
                "reads x as well as observing it, like an autoregressive decoder, or ignores its mask"
            )

    def draw(self, num: int) -> tuple[dict[str, Tensor], Tensor]:
        """About ``num`` draws of the latents, by site ``(K, *plates, n, *event)``, and their log-weights ``(K, n)``."""
        each = -(-num // (1 + len(self.filled)))
        parts = [self._from_prior(each), *(self._from_guide(batch, each) for batch in self.filled)]
        latents = {name: torch.cat([part[name] for part in parts]) for name in self.names}
        num = each * len(parts)
        log_prior, log_joint = self._joint(latents, num, self.batch)
        log_parts = [log_prior, *(self._log_guide(latents, num, batch) for batch in self.filled)]
        log_mixture = torch.stack(log_parts).double().nan_to_num(nan=-torch.inf).logsumexp(0)
        log_weights = log_joint.double() - log_mixture + torch.tensor(len(parts), dtype=torch.float64).log()
        check_log_weights(log_weights)
        return latents, log_weights

    def _canonical(self, latents: Mapping[str, Tensor], num: int) -> dict[str, Tensor]:
        """The latents without the spare dimensions of a plate of draws."""
        return {name: latents[name].reshape(num, *self.shapes[name]) for name in self.names}

    def _from_guide(self, batch: Batch, num: int) -> dict[str, Tensor]:
        draws = run_pair(nothing, self.guide, batch, self.structure, num_particles=num, enumerate_guide=False)
        return self._canonical(draws.latents, num)

    def _from_prior(self, num: int) -> dict[str, Tensor]:
        at_once, runs = (num, 1) if self.structure.vectorised else (None, num)
        program = under_particles(self.model, at_once, self.structure.particle_dim)
        found = [
            sample_sites(poutine.trace(program).get_trace(self.batch.x, **self.batch.arguments)) for _ in range(runs)
        ]
        values = {
            name: torch.stack([sites[name]["value"] for sites in found]) if at_once is None else found[0][name]["value"]
            for name in self.names
        }
        return self._canonical(values, num)

    def _joint(self, latents: Mapping[str, Tensor], num: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log p(z), and log p(x, z) of the observed entries, ``(K, n)``."""
        parts = self._at(latents, num, self.model, nothing, batch)
        priors = [-part.where(lambda term: term.kind == "prior").rate for part in parts]
        return torch.cat(priors), torch.cat([part.elbo for part in parts])

    def _log_guide(self, latents: Mapping[str, Tensor], num: int, batch: Batch) -> Tensor:
        parts = self._at(latents, num, nothing, self.guide, batch)
        return torch.cat([part.where(lambda term: term.kind == "guide").rate for part in parts])

    def _at(self, latents: Mapping[str, Tensor], num: int, model: Program, guide: Program, batch: Batch) -> list[Draws]:
        """A program's log-probabilities at these latents, in one run or one for each draw."""
        nesting, options = self.structure.nesting, {"enumerate_guide": False}
        if not self.structure.vectorised:
            parts = []
            for i in range(num):
                with Fixed({name: value[i] for name, value in latents.items()}):
                    parts.append(run_pair(model, guide, batch, self.structure, **options))
        else:
            plated = {}
            for name, value in latents.items():
                spare = (1,) * (nesting - (value.dim() - 1 - self.event_dims[name]))
                plated[name] = value.reshape(num, *spare, *value.shape[1:])
            with Fixed(plated):
                parts = [run_pair(model, guide, batch, self.structure, num_particles=num, **options)]
        return [part.where(lambda term: term.is_local) for part in parts]
