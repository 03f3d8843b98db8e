r"""Are the uncertainties right: those of the guide about z, and those of the model about x.

- :func:`simulation_based_calibration` asks whether the guide's posterior is the model's. It needs no data.
- :func:`predictive_coverage` asks whether the model's intervals for x hold held-out data as often as they say.

Both rest on ranks. Where a number :math:`y` and S draws :math:`y_1, \dots, y_S` come independently from one
distribution, the rank of y among them, with ties put in an order at random, is uniform on 0, …, S: for any S, and for
discrete distributions too (Czado, Gneiting & Held, *Predictive model assessment for count data*, 2009).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from scipy import stats
from torch import Tensor, nn

from pyro_vae._support.ranges import elementwise, inner_value
from pyro_vae.evaluation.criticism import as_described
from pyro_vae.inference.imputation import draw_imputations
from pyro_vae.inference.objectives import elbo_terms
from pyro_vae.inference.predictive import draw_prior_predictive, rows_of
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = [
    "LOG_LIKELIHOOD",
    "PredictiveCoverage",
    "SimulationBasedCalibration",
    "predictive_coverage",
    "simulation_based_calibration",
]

Quantity = Callable[..., Tensor]

LOG_LIKELIHOOD = "log p(x|z)"  # the name of the quantity that looks at all latents together
_ELEMENTS = 2**24  # of draws held at a time


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """What simulation-based calibration found.

    Args:
        table: One row for each quantity. ``mean_rank``: mean of the ranks, from 0 to 1, 0.5 where the guide is right;
            above it the guide's draws are too low. ``spread``: their standard deviation in units of that of uniform
            ranks; above 1 the guide is too narrow, below 1 too wide. ``chi_square``: of the ranks' histogram;
            ``p_value``: by it; ``adjusted_p_value``: times the number of quantities.
        ranks: By the names of the table's rows, ``(num_simulations,)`` each, from 0 to ``num_draws``.
        num_draws: Draws of the guide that each rank is among.
        num_bins: Bins of the histograms.
        p_value: Of all quantities together, the smallest adjusted one.
    """

    table: pd.DataFrame
    ranks: Mapping[str, np.ndarray]
    num_draws: int
    num_bins: int
    p_value: float


@dataclass(frozen=True)
class PredictiveCoverage:
    r"""How often central predictive intervals held what they were to hold.

    Args:
        kind: What the intervals were given, see :func:`predictive_coverage`.
        table: One row for each level: ``coverage``, the share of entries inside; ``standard_error``, that of a right
            model's coverage, :math:`\sqrt{l (1 - l) / N}`; ``p_value``, two-sided, of the binomial test.
        pit: The randomised probability integral transform of each entry, ``(N,)`` in (0, 1).
        p_value: Of the hypothesis that the PIT is uniform, by the chi-square of its histogram: all levels at once,
            and shifts as well.
        num_bins: Bins of that histogram.
    """

    kind: str
    table: pd.DataFrame
    pit: np.ndarray
    p_value: float
    num_bins: int


def simulation_based_calibration(
    pair: Pair,
    num_simulations: int = 1000,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    *,
    seed: int = 0,
    chunk_size: int = 1024,
    **context: Any,
) -> SimulationBasedCalibration:
    r"""Holds the guide's posterior against the model's, on data that the model draws.

    For each simulation

    .. math:: z^* \sim p(z),\quad x \sim p(x \mid z^*),\quad z_1, \dots, z_S \sim q(z \mid x)

    and then the rank of :math:`f(z^*, x)` among the :math:`f(z_s, x)`. Given x, :math:`z^*` is a draw from the
    model's posterior. So where q is that posterior the ranks of every quantity f are uniform. Ranks pushed to both ends
    say that q is too narrow, ranks in the middle that it is too wide, ranks to one side that it is shifted.

    The quantities are each coordinate of each latent and :math:`\log p(x \mid z)`, and those of the caller. The
    likelihood is there because functions of z alone cannot tell the posterior from the prior: a guide that ignores x
    and returns p(z) has uniform ranks in each (Modrák et al., 2023).

    Each histogram of ranks is held against the uniform one by Pearson's chi-square. To correct for the number K of
    quantities, however they hang together, each p-value is multiplied by K (Bonferroni), and the smallest is that of
    all: a right guide has ``p_value`` below α with probability α at most.

    This is about the guide on data of the model. It says nothing on whether the model's data are like yours.

    Args:
        pair: The programs.
        num_simulations: Rows drawn from the model.
        num_draws: Draws S of the guide for each.
        quantities: By name, more functions of the latents, which come by site name as keyword arguments, rows first:
            ``lambda z: z.norm(dim=-1)``. They return ``(N,)`` or ``(N, K)``.
        seed: Seeds everything; the caller's random state is left alone.
        chunk_size: Rows at a time.
        context: Keyword arguments of the programs, ``num_simulations`` rows each. With a ``mask`` the guide is held
            against the posterior given the entries where it is true.

    Returns:
        A :class:`SimulationBasedCalibration`.

    Raises:
        ValueError: if there are latents outside the plate ``"data"``, if the guide leaves out latents of the model, or
            if a count or a quantity does not suit.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, hidden_dims=(), likelihood=Normal(scale=0.1))  # not trained
        >>> simulation_based_calibration(vae, 200, 19).p_value < 1e-6
        True

    Source: Talts et al., *Validating Bayesian inference algorithms with simulation-based calibration*, 2018; Modrák
    et al., *Simulation-based calibration checking for Bayesian computation: the choice of test quantities shapes
    sensitivity*, 2023.
    """
    if num_simulations < 20:
        raise ValueError(f"num_simulations must be at least 20 for a histogram of ranks, found {num_simulations}")
    if num_draws < 1 or chunk_size < 1:
        raise ValueError(f"num_draws and chunk_size must be at least 1, found {num_draws} and {chunk_size}")
    given = {name: torch.as_tensor(value).to(pair.device) for name, value in context.items()}
    for name, value in given.items():
        if value.dim() == 0 or len(value) != num_simulations:
            raise ValueError(
                f"{name} has {len(value) if value.dim() else 'no'} rows: give one for each of the {num_simulations} "
                f"simulations"
            )
    parts: dict[str, list[Tensor]] = {}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        for start in range(0, num_simulations, chunk_size):
            stop = min(start + chunk_size, num_simulations)
            chunk = _ranks_of_simulations(pair, stop - start, num_draws, quantities or {}, rows_of(given, start, stop))
            for name, ranks in chunk.items():
                parts.setdefault(name, []).append(ranks)
    ranks = {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}
    num_bins = min(20, max(2, num_simulations // 10), num_draws + 1)
    records = {}
    for name, values in ranks.items():
        position = (values + 0.5) / (num_draws + 1)
        chi_square, p_value = _uniformity(values, num_draws + 1, num_bins)
        records[name] = {
            "mean_rank": position.mean(),
            "spread": position.std() / np.sqrt((1 - 1 / (num_draws + 1) ** 2) / 12),
            "chi_square": chi_square,
            "p_value": p_value,
            "adjusted_p_value": min(1.0, len(ranks) * p_value),
        }
    table = pd.DataFrame.from_dict(records, orient="index").rename_axis("quantity")
    p_value = min(record["adjusted_p_value"] for record in records.values())
    return SimulationBasedCalibration(table, ranks, num_draws, num_bins, p_value)


def _ranks_of_simulations(
    pair: Pair, num_rows: int, num_draws: int, quantities: Mapping[str, Quantity], context: dict[str, Any]
) -> dict[str, Tensor]:
    """The rank of every quantity for so many rows, ``(N,)`` each."""
    forward = {name: value for name, value in context.items() if name != "mask"}
    simulated: Any = poutine.trace(pair.model).get_trace(batch_size=num_rows, **forward)
    x = simulated.nodes["x"]["value"]
    mask = pair.observed(x, context)
    if mask is not None:
        context = {**context, "mask": mask}
        hidden = inner_value(elementwise(simulated.nodes["x"]["fn"].support))
        x = torch.where(mask, x, torch.as_tensor(hidden, dtype=x.dtype, device=x.device))
    event_dims = _local_latents(simulated, poutine.trace(pair.guide).get_trace(x, **context))

    def values(guide: Any) -> dict[str, Tensor]:
        terms = elbo_terms(pair.model, guide, x, context)
        latents = {
            name: terms.latents[name].movedim(terms.latents[name].dim() - 1 - event_dim, 0)
            for name, event_dim in event_dims.items()
        }
        named = {**latents, LOG_LIKELIHOOD: terms.reconstruction}
        for name, quantity in quantities.items():
            if name in named:
                raise ValueError(f"there is a quantity {name!r} already: give yours another name")
            named[name] = torch.as_tensor(quantity(**latents))
            if named[name].dim() == 0 or len(named[name]) != num_rows:
                raise ValueError(
                    f"the quantity {name!r} has shape {tuple(named[name].shape)} for {num_rows} rows; it must give one "
                    f"number, or a vector of them, for each row"
                )
        return named

    truth = values(poutine.replay(pair.guide, trace=simulated))
    below = {name: torch.zeros_like(value, dtype=torch.long) for name, value in truth.items()}
    ties = {name: count.clone() for name, count in below.items()}
    for _ in range(num_draws):
        drawn = values(pair.guide)
        for name, value in truth.items():
            below[name] += drawn[name] < value
            ties[name] += drawn[name] == value
    ranks: dict[str, Tensor] = {}
    for name, count in below.items():
        rank = _among_ties(count, ties[name])
        for index in np.ndindex(*rank.shape[1:]):
            ranks[f"{name}[{', '.join(map(str, index))}]" if index else name] = rank[:, *index]
    return ranks


def _local_latents(model: Any, guide: Any) -> dict[str, int]:
    """The latent sites of both programs and how many dimensions an event has at each.

    Args:
        model: A trace of the model.
        guide: A trace of the guide.
    """
    sites: dict[str, Any] = {
        name: site
        for trace in (model, guide)
        for name, site in prune_subsample_sites(trace).nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and name != "x"
    }
    for name, site in sites.items():
        if all(frame.name != "data" for frame in site["cond_indep_stack"]):
            raise ValueError(
                f"the latent {name!r} stands outside the plate 'data' and is shared by all rows, so that rows are not "
                f"independent; this calibration needs every latent in the plate 'data'"
            )
        if name not in guide.nodes:
            raise ValueError(f"the guide does not draw {name!r}, a latent of the model: give it a site of that name")
    return {name: sites[name]["fn"].event_dim for name in model.nodes if name in sites}


def _among_ties(below: Tensor, ties: Tensor) -> Tensor:
    """A rank, drawn from those that so many equal values leave open."""
    return below + (torch.rand(below.shape, dtype=torch.float64, device=below.device) * (ties + 1)).long()


def _uniformity(ranks: np.ndarray, num_ranks: int, num_bins: int) -> tuple[float, float]:
    """Pearson's chi-square of ranks against the uniform distribution on 0, …, num_ranks − 1, and its p-value."""
    share = np.bincount(np.arange(num_ranks) * num_bins // num_ranks, minlength=num_bins) / num_ranks
    found = np.bincount(ranks * num_bins // num_ranks, minlength=num_bins)
    test: Any = stats.chisquare(found, share * len(ranks))
    return float(test.statistic), float(test.pvalue)


def predictive_coverage(
    pair: Pair,
    x_test: Array,
    levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95),
    *,
    kind: Literal["posterior", "prior"] = "posterior",
    num_samples: int = 99,
    num_particles: int = 200,
    seed: int = 0,
    **context: Any,
) -> PredictiveCoverage:
    r"""How often central predictive intervals hold an entry that the model has not seen.

    Of each row one observed entry d is chosen at random, and predicted

    - with ``kind="posterior"`` from the others of its row, :math:`p(x_d \mid x_{-d})`: the entry is hidden by the mask
      that both programs take, and drawn by importance resampling, as in :meth:`~pyro_vae.Pair.impute`;
    - with ``kind="prior"`` from nothing of its row, :math:`p(x_d)`, but its keyword arguments: how right the model is
      about each entry alone. This needs no mask.

    With u the rank of :math:`x_d` among the draws, ties in random order, made continuous by :math:`v \sim
    \mathcal{U}(0, 1)`,

    .. math:: \mathrm{pit} = \frac{u + v}{S + 1}, \qquad x_d \text{ is inside at level } l
        \iff |\mathrm{pit} - \tfrac12| \le \tfrac{l}{2}

    With ``kind="prior"`` a right model has a uniform PIT and covers each level exactly, discrete data included. One
    entry of each row keeps them independent, so that the binomial error is right.

    With ``kind="posterior"`` that holds as ``num_particles`` grows. Particles of a rough guide are too few to fill the
    posterior, so that intervals come out too narrow, which the p-values do not allow for. For an untrained guide of
    four Poisson counts, intervals of 90% from the right model held 88.6% of the entries with 40 particles, 88.9% with
    200 and 89.5% with 800. Where coverage is a little low, see whether more particles mend it. Up to that error
    importance weights make up for the guide, and this is about the model.

    Draws of :math:`x'` given the whole row (:meth:`~pyro_vae.Pair.posterior_predictive`) are not used: z has then seen
    the very entry, its intervals lie around it, and a right model covers more than it says.

    Args:
        pair: The programs.
        x_test: Rows ``(N, *E)`` in the user's units that the model was not trained on.
        levels: Of the intervals, between 0 and 1.
        kind: ``"posterior"`` or ``"prior"``. Rows with a single observed entry have nothing to predict it from, and are
            left out of the former.
        num_samples: Draws S for each entry.
        num_particles: Draws of the guide to choose from, for ``kind="posterior"``.
        seed: Seeds everything; the caller's random state is left alone.
        context: Keyword arguments of the programs, rows first.

    Returns:
        A :class:`PredictiveCoverage`.

    Raises:
        ValueError: if the programs take no mask where one is needed, there are latents outside the plate ``"data"``,
            or an argument does not suit.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = mlp_vae((3,), latent_dim=1, likelihood=Poisson())
        >>> x = torch.full((200, 3), 30)  # what it was not made for
        >>> predictive_coverage(vae, x, levels=[0.9], kind="prior").table["coverage"].item()
        0.0

    Source: Dawid, *The prequential approach*, 1984, for the PIT; Czado, Gneiting & Held, *Predictive model assessment
    for count data*, 2009, for discrete data.
    """
    if kind not in ("prior", "posterior"):
        raise ValueError(f"kind must be 'prior' or 'posterior', found {kind!r}")
    if num_samples < 1 or num_particles < 1:
        raise ValueError(f"num_samples and num_particles must be at least 1, found {num_samples} and {num_particles}")
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be between 0 and 1, found {tuple(levels)}")
    if kind == "posterior" and (without := _without_mask(pair)):
        raise ValueError(
            f"kind='posterior' hides an entry of each row by a mask, and the {without} takes no keyword argument "
            f"'mask': give it one, or use kind='prior'"
        )
    x = pair.check(x_test, **context)
    pits = []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        size = min(1024, max(16, _ELEMENTS // (num_samples * max(1, x[:1].numel()))))
        for start in range(0, len(x), size):
            stop = start + size
            pits.append(_pit(pair, x[start:stop], rows_of(context, start, stop), kind, num_samples, num_particles))
    pit = torch.cat(pits).cpu().numpy()
    if len(pit) < 20:
        hint = ""
        if kind == "posterior" and len(x) >= 20:
            hint = "; a single observed entry has no others of its row to be predicted from: use kind='prior'"
        raise ValueError(f"coverage needs at least 20 rows with an entry to predict, found {len(pit)}{hint}")
    records = []
    for level in levels:
        inside = int((np.abs(pit - 0.5) <= level / 2).sum())
        records.append(
            {
                "level": level,
                "coverage": inside / len(pit),
                "standard_error": float(np.sqrt(level * (1 - level) / len(pit))),
                "p_value": float(stats.binomtest(inside, len(pit), level).pvalue),
            }
        )
    num_bins = min(20, max(2, len(pit) // 10))
    _, p_value = _uniformity((pit * num_bins).astype(int), num_bins, num_bins)
    return PredictiveCoverage(kind, pd.DataFrame(records).set_index("level"), pit, p_value, num_bins)


def _without_mask(pair: Pair) -> str | None:
    """The first program, by its name, that takes no keyword argument ``mask``; None where both do."""
    for name in ("model", "guide"):
        program = getattr(pair, name)
        parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
        if "mask" not in parameters and all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return name
    return None


def _pit(pair: Pair, x: Tensor, context: dict[str, Any], kind: str, num_samples: int, num_particles: int) -> Tensor:
    """The randomised PIT of one entry of each row, in float64."""
    rows, prepared, _ = pair.prepare(x, context)
    mask = prepared.pop("mask", None)
    truth = as_described(pair, x, rows).to(rows.device).reshape(len(x), -1)
    seen = torch.ones_like(truth, dtype=torch.bool) if mask is None else mask.reshape(len(x), -1)
    kept = seen.sum(1) > (kind == "posterior")
    if not bool(kept.any()):
        return truth.new_zeros(0, dtype=torch.float64)
    truth, seen, rows = truth[kept], seen[kept], rows[kept]
    prepared = {name: value[kept] for name, value in prepared.items()}
    index = torch.multinomial(seen.double(), 1)  # (N, 1)
    simulated = poutine.trace(pair.model).get_trace(batch_size=len(rows), **prepared)
    guided = {**prepared, "mask": mask[kept]} if mask is not None else prepared
    _local_latents(simulated, poutine.trace(pair.guide).get_trace(rows, **guided))

    def chosen(draws: Tensor) -> Tensor:
        """The entry of each row, ``(S, N)``, of draws in the model's units."""
        drawn = pair.transform.inverse(draws).reshape(len(draws), len(rows), -1)
        return drawn.gather(2, index.expand(len(draws), -1, -1))[..., 0].double()

    if kind == "prior":
        draws = torch.cat(
            [
                chosen(torch.as_tensor(draw_prior_predictive(pair.model, len(rows), context=prepared))[None])
                for _ in range(num_samples)
            ]
        )
    else:
        given = seen.scatter(1, index, value=False).reshape(rows.shape)
        hidden = inner_value(elementwise(pair.data_range))  # pyright: ignore[reportArgumentType]
        draws = chosen(
            draw_imputations(
                pair.model,
                pair.guide,
                torch.where(given, rows, torch.as_tensor(hidden, dtype=rows.dtype, device=rows.device)),
                num_samples,
                context={**prepared, "mask": given},
                num_particles=num_particles,
                chunk_size=len(rows),
            )
        )
    value = truth.gather(1, index)[:, 0].double()
    # The way to the user's units and back may change a number in its last digits, so that equal ones are not.
    ties = (draws - value).abs() <= 1e-5 * value.abs()
    rank = _among_ties(((draws < value) & ~ties).sum(0), ties.sum(0))
    return (rank + torch.rand(rank.shape, dtype=torch.float64, device=rank.device)) / (num_samples + 1)
