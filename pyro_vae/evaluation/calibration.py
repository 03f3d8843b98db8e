r"""Are the guide's uncertainties about the latents right?

:func:`simulation_based_calibration` tests whether the guide's posterior is the model's, without data. It uses ranks: if
a number :math:`y` and S draws :math:`y_1, \dots, y_S` come independently from one distribution, the rank of y among
them, with ties ordered at random, is uniform on 0, …, S, for any S and for discrete distributions too (Czado, Gneiting
& Held, *Predictive model assessment for count data*, 2009).
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluation.ranks import among_ties, uniformity
from pyro_vae.evaluation.simulation import Simulated, Simulator, given_rows
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.predictive import enumerated_latents
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Fixed, Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LOG_LIKELIHOOD", "SimulationBasedCalibration", "simulation_based_calibration"]

Quantity = Callable[..., Tensor]

LOG_LIKELIHOOD = "log p(x|z)"  # the quantity that depends on all latents together
_FEWEST = 20  # ranks, for a histogram


@dataclass(frozen=True)
class SimulationBasedCalibration:
    """The result of simulation-based calibration.

    Args:
        table: One row for each quantity. ``mean_rank``: mean of the ranks, from 0 to 1, 0.5 if the guide is right;
            above it the guide's draws are too low. ``spread``: their standard deviation in units of that of uniform
            ranks; above 1 the guide is too narrow, below 1 too wide. ``chi_square``: of the ranks' histogram;
            ``p_value``: of that chi-square; ``adjusted_p_value``: times the number of quantities.
        ranks: By the names of the table's rows, from 0 to ``num_draws``: ``(num_simulations,)`` each, fewer for a
            latent that a mask excludes for some of the rows.
        num_draws: Draws from the guide for each rank.
        num_bins: Bins of the histograms, fewer if there are few ranks.
        p_value: For all quantities together: the smallest adjusted p-value.
    """

    table: "pd.DataFrame"
    ranks: Mapping[str, np.ndarray]
    num_draws: int
    num_bins: int
    p_value: float


def simulation_based_calibration(
    pair: Pair,
    num_simulations: int = 1000,
    num_draws: int = 99,
    quantities: Mapping[str, Quantity] | None = None,
    *,
    given: Mapping[str, Any] | None = None,
    seed: int = 0,
    chunk_size: int = 1024,
) -> SimulationBasedCalibration:
    r"""Compares the guide's posterior with the model's, on data drawn from the model.

    Each simulation draws

    .. math:: z^* \sim p(z),\quad x \sim p(x \mid z^*),\quad z_1, \dots, z_S \sim q(z \mid x)

    and ranks :math:`f(z^*, x)` among the :math:`f(z_s, x)`. Given x, :math:`z^*` is a draw from the model's posterior.
    So if q is that posterior, the ranks of every quantity f are uniform. Ranks at both ends mean that q is too narrow,
    ranks in the middle that it is too wide, ranks at one side that it is shifted.

    Here x stands for everything that the model observes. A site observed by a keyword argument, such as ``y``, is drawn
    as well and passed to the guide. Latents that the model enumerates are drawn from their posterior
    :math:`p(k \mid x, z_s)` at the guide's draws, and are ranked like all others. If a mask excludes a latent for some
    rows, such as the steps after a sequence's end, those rows have no rank for it.

    The quantities are each coordinate of each latent, :math:`\log p(x \mid z)`, and the caller's. The likelihood is
    needed because functions of z alone cannot tell the posterior from the prior: a guide that ignores x and returns
    p(z) has uniform ranks in each of them (Modrák et al., 2023).

    Each histogram of ranks is compared with the uniform one by Pearson's chi-square. To correct for the number K of
    quantities, however they depend on one another, each p-value is multiplied by K (Bonferroni). The smallest is the
    overall ``p_value``: for a right guide it is below α with probability at most α.

    This tests the guide on data from the model. It does not say whether the model's data are like yours.

    Args:
        pair: The programs.
        num_simulations: Rows drawn from the model.
        num_draws: Draws S from the guide for each row.
        quantities: More functions of the latents, by name. They take the latents by site name as keyword arguments,
            rows first: ``lambda z: z.norm(dim=-1)``. A function with an argument ``x``, or another keyword argument of
            the programs, gets that too, in the model's units: ``lambda z, x: (z * x[:, :2]).sum(-1)``. They return
            ``(N,)`` or ``(N, K)``.
        given: The programs' keyword arguments, ``num_simulations`` rows each if they have rows:
            ``given={"labels": labels}``. With a ``mask``, the guide is compared with the posterior given the entries
            where it is true. The argument of an observed site may be included; its values are ignored, because the
            model draws them.
        seed: Seeds everything; the caller's random state is unchanged.
        chunk_size: Rows at a time.

    Returns:
        A :class:`SimulationBasedCalibration`.

    Raises:
        ContractError: if the programs break the contract, there are latents outside the plate ``"data"``, or the model
            cannot be simulated because of a factor in it.
        ValueError: if a count, a quantity or an argument does not fit.
        TypeError: if a keyword argument is one that neither program takes.

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
    if num_simulations < _FEWEST:
        raise ValueError(
            f"num_simulations must be at least {_FEWEST} for a histogram of ranks, found {num_simulations}"
        )
    if num_draws < 1 or chunk_size < 1:
        raise ValueError(f"num_draws and chunk_size must be at least 1, found {num_draws} and {chunk_size}")
    rows = given_rows(pair, given, num_simulations)
    parts: dict[str, list[Tensor]] = {}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        simulator = Simulator(pair, rows)
        simulator.structure.require_local("rows drawn from the model are not independent")
        for chunk in rows.chunks(chunk_size):
            simulated = simulator.draw(chunk)
            for name, ranks in _ranks(pair, simulated, simulator.structure, num_draws, quantities or {}):
                parts.setdefault(name, []).append(ranks)
    ranks = {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}
    ranks = {name: values for name, values in ranks.items() if len(values) >= _FEWEST}
    return _summarised(ranks, num_draws, min(20, max(2, num_simulations // 10), num_draws + 1))


def _summarised(ranks: Mapping[str, np.ndarray], num_draws: int, num_bins: int) -> SimulationBasedCalibration:
    import pandas as pd

    records = {}
    for name, values in ranks.items():
        position = (values + 0.5) / (num_draws + 1)
        chi_square, p_value = uniformity(values, num_draws + 1, min(num_bins, max(2, len(values) // 10)))
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


def _ranks(
    pair: Pair, simulated: Simulated, structure: Structure, num_draws: int, quantities: Mapping[str, Quantity]
) -> Iterator[tuple[str, Tensor]]:
    """The name of each quantity and its ranks, without the rows that a mask excludes."""
    truth = _quantities(pair, simulated.batch, structure, quantities, simulated.latents)
    below = {name: torch.zeros_like(value, dtype=torch.long) for name, value in truth.items()}
    ties = {name: count.clone() for name, count in below.items()}
    for _ in range(num_draws):
        drawn = _quantities(pair, simulated.batch, structure, quantities)
        for name, value in truth.items():
            below[name] += drawn[name] < value
            ties[name] += drawn[name] == value
    for name, count in below.items():
        rank = among_ties(count, ties[name])
        mask = simulated.masks.get(name)
        for index in np.ndindex(*rank.shape[1:]):
            values = rank[:, *index]
            if mask is not None:
                values = values[mask[:, *index[: mask.dim() - 1]].bool()]
            yield f"{name}[{', '.join(map(str, index))}]" if index else name, values


def _quantities(
    pair: Pair,
    batch: Batch,
    structure: Structure,
    quantities: Mapping[str, Quantity],
    truth: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Every quantity at the latents that made the rows, or at one draw from the guide: ``(N, …)``."""
    summed = structure.enumerated("model")
    with Fixed({name: value for name, value in (truth or {}).items() if name not in summed}):
        draws = run_pair(*pair.programs, batch, structure, enumerate_guide=False)
    latents = {name: draws.latents[name] for name in structure.guided}
    if truth is None:
        latents |= enumerated_latents(pair.programs[0], latents, batch, structure)
    else:
        latents |= {name: truth[name] for name in summed}
    latents = {
        name: latents[name].movedim(latents[name].dim() - 1 - latent.event_dim, 0)
        for name, latent in structure.latents.items()
    }
    named = {**latents, LOG_LIKELIHOOD: draws.reconstruction[0]}
    for name, quantity in quantities.items():
        if name in named:
            raise ValueError(f"a quantity {name!r} exists already: give yours another name")
        named[name] = torch.as_tensor(quantity(**_named_by(quantity, batch), **latents))
        if named[name].dim() == 0 or len(named[name]) != len(batch):
            raise ValueError(
                f"the quantity {name!r} has shape {tuple(named[name].shape)} for {len(batch)} rows; it must return one "
                f"number, or a vector, for each row"
            )
    return named


def _named_by(quantity: Quantity, batch: Batch) -> dict[str, Any]:
    """The data that a function names among its arguments."""
    try:
        wanted = inspect.signature(quantity).parameters
    except (TypeError, ValueError):  # written in C
        return {}
    return {name: value for name, value in {**batch.arguments, "x": batch.x}.items() if name in wanted}
