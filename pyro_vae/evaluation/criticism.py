r"""Does the model fit: data that it draws, held against the data that there are.

A model that fits draws data sets like the observed one. So draw many, :math:`x^{(1)}, \dots, x^{(R)}`, take a
statistic T of each, and see where that of the observed data lies among them (Rubin, 1984; Gelman, Meng & Stern, 1996).
A data set is drawn

- from the prior predictive: for each row :math:`z_n \sim p(z),\ x'_n \sim p(x \mid z_n)`. Are these the model's data?
- from the posterior predictive: :math:`z_n \sim q(z \mid x_n),\ x'_n \sim p(x \mid z_n)`. Can the likelihood make such
  data around *these* rows? As z follows the row, this asks less of the prior, and most of the likelihood.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.evaluation.statistics import Statistic, default_statistics
from pyro_vae.inference.predictive import rows_of
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state

__all__ = ["PredictiveCheck", "as_described", "predictive_check"]

Kind = Literal["prior", "posterior"]


@dataclass(frozen=True)
class PredictiveCheck:
    r"""What a predictive check found.

    Args:
        kind: Where the data sets were drawn from, ``"prior"`` or ``"posterior"``.
        table: One row for each component of each statistic: ``observed``, T(x); ``replicated`` and ``replicated_sd``,
            mean and standard deviation of :math:`T(x^{(r)})`; ``p_value``.
        replications: :math:`T(x^{(r)})` by the names of the table's rows, ``(R,)`` each.
        joint_p_value: Of all statistics together.
        num_rows: Rows in each data set.
    """

    kind: Kind
    table: pd.DataFrame
    replications: Mapping[str, np.ndarray]
    joint_p_value: float
    num_rows: int


def predictive_check(
    pair: Pair,
    x: Array,
    statistics: Mapping[str, Statistic] | None = None,
    kind: Kind = "posterior",
    *,
    num_replications: int = 200,
    seed: int = 0,
    chunk_size: int = 1024,
    **context: Any,
) -> PredictiveCheck:
    r"""Holds statistics of the data against those of data sets of the same size that the model draws.

    For each statistic the Bayesian p-value, on both sides, and for all of them together one p-value: with
    :math:`m, s` mean and standard deviation of a statistic over the R + 1 data sets, observed one included,

    .. math::
        p &= 2 \min\left( \frac{1 + \#\{r: T^{(r)} \ge T(x)\}}{R + 1},\ \frac{1 + \#\{r: T^{(r)} \le T(x)\}}{R + 1}
        \right) \wedge 1, \\
        p_\text{joint} &= \frac{1 + \#\{r: M^{(r)} \ge M(x)\}}{R + 1}, \qquad
        M = \max_k \left| T_k - m_k \right| / s_k

    The joint one holds its level for any number of statistics and however they hang together. Of the prior predictive,
    p-values are uniform where the model is right (but for its having been fitted, so give rows that it was not trained
    on). Those of the posterior predictive have seen the data and lie nearer to 1: a small one means more.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units.
        statistics: By name, functions of a data set, a tensor ``(N, *E)`` in the user's units, that return a number or
            a vector of them; by default :func:`~pyro_vae.evaluation.statistics.default_statistics` of the values
            that the likelihood describes. Where entries are missing, they are NaN in every data set alike.
        kind: ``"posterior"`` or ``"prior"``.
        num_replications: Data sets R that are drawn, one after another. The smallest p-value there can be is
            2 / (R + 1), and 1 / (R + 1) for all together.
        seed: Seeds the draws; the caller's random state is left alone.
        chunk_size: Rows drawn at a time. Latents outside the plate ``"data"`` are drawn once for each data set.
        context: Keyword arguments of the programs, rows first. They are the same in every data set.

    Returns:
        A :class:`PredictiveCheck`. The data are taken as the model describes them: where the transform draws (bits from
        grey levels), from one draw of it.

    Raises:
        ValueError: if a statistic gives what is not a finite number, or ``kind`` or a count does not suit.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = mlp_vae((3,), latent_dim=1, likelihood=Poisson())
        >>> x = torch.full((50, 3), 30)
        >>> check = predictive_check(vae, x, {"largest": lambda x: x.max()}, kind="prior", num_replications=99)
        >>> check.table["p_value"].item()  # as small as 99 data sets can say
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
    x = pair.check(x, **context)
    with forked_random_state(pair.device):
        torch.manual_seed(seed)
        rows, prepared, _ = pair.prepare(x, context)
        observed = as_described(pair, x, rows, prepared.get("mask"))
        if statistics is None:
            statistics = default_statistics(observed, pair.data_range)  # pyright: ignore[reportArgumentType]
        if not statistics:
            raise ValueError("statistics is empty: give at least one function of a data set, or leave it out")
        of_observed = _components(statistics, observed, "the observed data")
        drawn: dict[str, list[float]] = {name: [] for name in of_observed}
        missing = observed.isnan()
        for _ in range(num_replications):
            data = _draw_data_set(pair, rows, prepared, kind, chunk_size)
            data[missing] = math.nan
            for name, value in _components(statistics, data, "a drawn data set").items():
                drawn.setdefault(name, []).append(value)
    if len({*map(len, drawn.values())}) > 1:
        raise ValueError(
            "a statistic gives more numbers for one data set than for another: let it give as many for each"
        )
    replications = {name: np.array(values) for name, values in drawn.items()}
    return PredictiveCheck(
        kind, _table(of_observed, replications), replications, _joint(of_observed, replications), len(x)
    )


def as_described(pair: Pair, x: Tensor, rows: Tensor, mask: Tensor | None = None) -> Tensor:
    """Data as the model describes them, in the user's units: bits at their two levels where it describes bits.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units.
        rows: The same, as :meth:`~pyro_vae.Pair.prepare` returns them.
        mask: True where an entry is observed; the others come back as NaN.

    Returns:
        ``(N, *E)`` on the CPU. What the way there and back changes by rounding alone comes back as it was.
    """
    y = pair.transform.inverse(rows).detach().cpu()
    given = x.cpu().to(y.dtype)
    rounding = 1e-5 * given.nan_to_num().abs().max()
    y = torch.where((y - given).abs() <= rounding, given, y)
    return y if mask is None else torch.where(mask.cpu(), y, math.nan)


def _draw_data_set(pair: Pair, rows: Tensor, context: Mapping[str, Any], kind: Kind, chunk_size: int) -> Tensor:
    """One data set of as many rows; latents that belong to all rows are the same in every chunk."""
    out: Any = None
    shared = poutine.Trace()
    with evaluating(pair.model, pair.guide):
        for start in range(0, len(rows), chunk_size):
            stop = min(start + chunk_size, len(rows))
            here = rows_of(context, start, stop)
            latents = shared
            if kind == "posterior":
                latents = _run(pair.guide, shared, rows[start:stop], **here)
            trace = _run(pair.model, latents, batch_size=stop - start, **here)
            site: Any = trace.nodes["x"]
            data = pair.transform.inverse(site["value"]).cpu()
            if out is None:
                out = data.new_empty(len(rows), *data.shape[1:])
                out = out if out.is_floating_point() else out.to(pair.dtype)
                shared = _global_part(latents if kind == "posterior" else trace)
            out[start:stop] = data
    return out


def _run(program: Any, latents: poutine.Trace, *args: Any, **kwargs: Any) -> poutine.Trace:
    return prune_subsample_sites(poutine.trace(poutine.replay(program, trace=latents)).get_trace(*args, **kwargs))


def _global_part(trace: poutine.Trace) -> poutine.Trace:
    """The latent sites of a trace that stand outside the plate ``"data"``."""
    kept = poutine.Trace()
    for name in trace.stochastic_nodes:
        site: Any = trace.nodes[name]
        if all(frame.name != "data" for frame in site["cond_indep_stack"]):
            kept.add_node(name, **site)
    return kept


def _components(statistics: Mapping[str, Statistic], data: Tensor, what: str) -> dict[str, float]:
    """Every number that the statistics give, by name; those of a vector have their place behind the name."""
    out: dict[str, float] = {}
    for name, statistic in statistics.items():
        try:
            values = torch.as_tensor(statistic(data)).double().reshape(-1).tolist()
        except (TypeError, RuntimeError) as error:
            raise ValueError(
                f"the statistic {name!r} fails on {what}, a tensor of shape {tuple(data.shape)}, with "
                f"{' '.join(str(error).split())}; it must give a number or a vector of them"
            ) from error
        if not all(map(math.isfinite, values)):
            hint = (
                "; entries are NaN where they are missing, so leave them out of account" if data.isnan().any() else ""
            )
            raise ValueError(f"the statistic {name!r} gives NaN or infinity for {what}{hint}")
        out |= {name: values[0]} if len(values) == 1 else {f"{name}[{i}]": value for i, value in enumerate(values)}
    return out


def _table(observed: Mapping[str, float], replications: Mapping[str, np.ndarray]) -> pd.DataFrame:
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
    """The share of data sets, the observed one among them, that stand out as much as it does."""
    pool = np.stack([np.append(replications[name], value) for name, value in observed.items()])  # (K, R + 1)
    spread = pool.std(1, keepdims=True)
    distance = np.abs(pool - pool.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    largest = distance.max(0)
    return float((largest >= largest[-1] * (1 - 1e-12)).mean())
