r"""Does the model fit? Data drawn from it, compared with the observed data.

A model that fits draws data sets like the observed one. So draw many, :math:`x^{(1)}, \dots, x^{(R)}`, compute a
statistic T of each, and see where that of the observed data lies among them (Rubin, 1984; Gelman, Meng & Stern, 1996).
A data set is drawn

- from the prior predictive: for each row :math:`z_n \sim p(z),\ x'_n \sim p(x \mid z_n)`. Is the data like these?
- from the posterior predictive: :math:`z_n \sim q(z \mid x_n),\ x'_n \sim p(x \mid z_n)`. Can the likelihood produce
  such data around *these* rows? As z follows the row, this tests the prior less, and mostly the likelihood.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from pyro_vae._support.ranges import constraints
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.described import as_described
from pyro_vae.evaluation.simulation import check_forward, prior_globals
from pyro_vae.evaluation.statistics import OfColumns, Statistic, default_statistics
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.predictive import (
    forward_trace,
    most_rows,
    posterior_latents,
    predict_from_latents,
    without_sites,
)
from pyro_vae.inference.structure import Fixed, Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["PredictiveCheck", "predictive_check"]

Kind = Literal["prior", "posterior"]


@dataclass(frozen=True)
class PredictiveCheck:
    r"""The result of a predictive check.

    Args:
        kind: Where the data sets were drawn from, ``"prior"`` or ``"posterior"``.
        table: One row for each component of each statistic: ``observed``, T(x); ``replicated`` and ``replicated_sd``,
            mean and standard deviation of :math:`T(x^{(r)})`; ``p_value``.
        replications: :math:`T(x^{(r)})` by the names of the table's rows, ``(R,)`` each.
        joint_p_value: For all statistics together.
        num_rows: Rows in each data set.
    """

    kind: Kind
    table: "pd.DataFrame"
    replications: Mapping[str, np.ndarray]
    joint_p_value: float
    num_rows: int


def predictive_check(
    pair: Pair,
    x: Inputs,
    statistics: Mapping[str, Statistic] | None = None,
    kind: Kind = "posterior",
    *,
    num_replications: int = 200,
    seed: int = 0,
    chunk_size: int = 8192,
) -> PredictiveCheck:
    r"""Compares statistics of the data with those of data sets of the same size drawn from the model.

    For each statistic there is a two-sided Bayesian p-value, and for all of them together one joint p-value. With
    :math:`m, s` the mean and standard deviation of a statistic over the R + 1 data sets, observed one included,

    .. math::
        p &= 2 \min\left( \frac{1 + \#\{r: T^{(r)} \ge T(x)\}}{R + 1},\ \frac{1 + \#\{r: T^{(r)} \le T(x)\}}{R + 1}
        \right) \wedge 1, \\
        p_\text{joint} &= \frac{1 + \#\{r: M^{(r)} \ge M(x)\}}{R + 1}, \qquad
        M = \max_k \left| T_k - m_k \right| / s_k

    The joint p-value keeps its level for any number of statistics, however they depend on one another. For the prior
    predictive, p-values are uniform if the model is right and the rows are ones that it was not trained on. For the
    posterior predictive, the draws have seen the data, so p-values lie closer to 1, and a small one means more.

    Args:
        pair: The programs.
        x: Rows, as :func:`~pyro_vae.fit` takes them. Keyword arguments are the same in every data set, except those of
            sites that the model observes as well as ``"x"``: these are drawn too, with the latents that they share
            with ``x``.
        statistics: Functions of a data set by name: they take a tensor ``(N, *E)`` in the user's units and return a
            number or a vector; by default :func:`~pyro_vae.evaluation.statistics.default_statistics` for the values
            that the likelihood describes. Entries that are missing in the data are NaN in every data set.
        kind: ``"posterior"`` or ``"prior"``.
        num_replications: Number of data sets R to draw. The smallest possible p-value is 2 / (R + 1), and 1 / (R + 1)
            for the joint one.
        seed: Seeds the draws; the caller's random state is unchanged.
        chunk_size: The most rows to draw at a time, from one data set or several. Latents outside the plate
            ``"data"`` are drawn once for each data set: from the guide, or from their prior for ``kind="prior"``.

    Returns:
        A :class:`PredictiveCheck`. The data are taken as the model describes them: if the transform is random (bits
        from grey levels), one draw of it is used.

    Raises:
        ContractError: if the programs break the contract, or the model does not run without data.
        ValueError: if rows do not fit, a statistic is not finite, or ``kind`` or a count is wrong.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = mlp_vae((3,), latent_dim=1, likelihood=Poisson())
        >>> x = torch.full((50, 3), 3000)
        >>> check = predictive_check(vae, x, {"largest": lambda x: x.max()}, kind="prior", num_replications=99)
        >>> check.table["p_value"].item()  # the smallest possible with 99 data sets
        0.02

    Source: Gelman, Meng & Stern, *Posterior predictive assessment of model fitness via realized discrepancies*, 1996;
    the joint p-value is that of a Monte Carlo test, Besag & Clifford, 1989.
    """
    if kind not in ("prior", "posterior"):
        raise ValueError(f"kind must be 'prior' or 'posterior', found {kind!r}")
    if num_replications < 1 or chunk_size < 1:
        raise ValueError(
            f"num_replications and chunk_size must be at least 1, found {num_replications} and {chunk_size}"
        )
    rows = next(pair.check(x).chunks(2**62))
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        batch = pair.prepare(rows, redraw=True)  # equal rows get different noise, as in the model
        structure = pair.structure(batch)
        check_forward(pair, batch, structure)
        observed = as_described(pair, rows["x"], batch)
        if statistics is None:
            statistics = default_statistics(observed, constraints.real if pair.data_range is None else pair.data_range)
        if not statistics:
            raise ValueError("statistics is empty: pass at least one function of a data set, or omit it")
        of_observed = _components(statistics, observed, "the observed data")
        drawn: dict[str, list[float]] = {name: [] for name in of_observed}
        missing = observed.isnan()
        for data in _data_sets(pair, batch, structure, kind, num_replications, chunk_size):
            data[missing] = math.nan
            for name, value in _components(statistics, data, "a drawn data set").items():
                drawn.setdefault(name, []).append(value)
    if len({*map(len, drawn.values())}) > 1:
        raise ValueError(
            "a statistic returns more numbers for one data set than for another: it must return as many for each"
        )
    replications = {name: np.array(values) for name, values in drawn.items()}
    joint = _joint(of_observed, replications)
    return PredictiveCheck(kind, _table(of_observed, replications), replications, joint, len(batch))


def _data_sets(
    pair: Pair, batch: Batch, structure: Structure, kind: Kind, num_sets: int, chunk_size: int
) -> Iterator[Tensor]:
    """Data sets, several in one run of the programs if rows are few and share no latents."""
    at_once = rows_that_fit(batch.x[0].numel(), most=chunk_size)
    together = 1 if structure.global_latents else max(1, min(num_sets, at_once // len(batch)))
    sites = forward_trace(pair.programs[0], 1, without_sites(batch[:1], structure, tuple(structure.observed)))
    if most_rows(sites) is not None:  # the plate of the rows has a fixed size
        together = 1
    tiled = batch[torch.arange(len(batch), device=batch.x.device).repeat(together)]
    for first in range(0, num_sets, together):
        data = _draw_data_set(pair, tiled, structure, kind, at_once)
        yield from data.split(len(batch))[: num_sets - first]


def _draw_data_set(pair: Pair, batch: Batch, structure: Structure, kind: Kind, chunk_size: int) -> Tensor:
    """One data set of as many rows; latents that belong to all rows are the same in every chunk."""
    model, guide = pair.programs
    shared: dict[str, Tensor] = {}
    parts = []
    for part in batch.chunks(chunk_size):
        arguments = without_sites(part, structure, tuple(structure.observed))
        if kind == "posterior":
            latents = posterior_latents(model, Fixed(shared)(guide), part, structure, 1)
            shared = shared or {name: latents[name][0] for name in structure.global_latents}
        else:
            shared = shared or prior_globals(model, structure, len(part), arguments)
            latents = {name: value[None] for name, value in shared.items()}
        drawn = predict_from_latents(model, latents, len(part), arguments=arguments)["x"][0]
        parts.append(pair.transform.inverse(drawn).cpu())
    data = torch.cat(parts)
    return data if data.is_floating_point() else data.to(pair.dtype)


def _components(statistics: Mapping[str, Statistic], data: Tensor, what: str) -> dict[str, float]:
    """Every number that the statistics return, by name; elements of a vector have their column or index after it."""
    out: dict[str, float] = {}
    for name, statistic in statistics.items():
        try:
            values = torch.as_tensor(statistic(data)).double().reshape(-1).tolist()
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"the statistic {name!r} fails on {what}, a tensor of shape {tuple(data.shape)}, with "
                f"{' '.join(str(error).split())}; it must return a number or a vector"
            ) from error
        if not all(map(math.isfinite, values)):
            hint = "; missing entries are NaN, so ignore them" if data.isnan().any() else ""
            raise ValueError(f"the statistic {name!r} is NaN or infinite for {what}{hint}")
        places = statistic.components(len(values)) if isinstance(statistic, OfColumns) else None
        if places is None and len(values) > 1:
            places = range(len(values))
        out |= {name if places is None else f"{name}[{places[i]}]": value for i, value in enumerate(values)}
    return out


def _table(observed: Mapping[str, float], replications: Mapping[str, np.ndarray]) -> "pd.DataFrame":
    import pandas as pd

    records = {}
    for name, value in observed.items():
        drawn = replications[name]
        above, below = (1 + int((drawn >= value).sum()), 1 + int((drawn <= value).sum()))
        records[name] = {
            "observed": value,
            "replicated": float(drawn.mean()),
            "replicated_sd": float(drawn.std(ddof=1)) if len(drawn) > 1 else math.nan,
            "p_value": min(1.0, 2 * min(above, below) / (len(drawn) + 1)),
        }
    return pd.DataFrame.from_dict(records, orient="index").rename_axis("statistic")


def _joint(observed: Mapping[str, float], replications: Mapping[str, np.ndarray]) -> float:
    """The share of data sets, the observed one included, that stand out at least as much as it does."""
    pool = np.stack([np.append(replications[name], value) for name, value in observed.items()])  # (K, R + 1)
    spread = pool.std(1, keepdims=True)
    distance = np.abs(pool - pool.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    largest = distance.max(0)
    return float((largest >= largest[-1] * (1 - 1e-12)).mean())
