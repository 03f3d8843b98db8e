r"""Is the guide the posterior at rows of the data, and not only at rows drawn from the model?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.annealing import posterior_kernel
from pyro_vae.evaluation.latent_density import LatentDensity, Point, latent_layout
from pyro_vae.evaluation.ranks import among_ties, uniformity
from pyro_vae.inference.structure import ContractError
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["CalibrationAtRows", "calibration_at_rows"]

LOG_JOINT, LOG_WEIGHT = "log p(x, z)", "log p(x, z) − log q(z|x)"
_FEWEST = 20  # ranks, for a histogram
_NATS = 1e-3  # log-probabilities closer than this are ties


@dataclass(frozen=True)
class CalibrationAtRows:
    """The ranks of the guide's draws among draws near the posterior.

    Args:
        table: One row for each quantity. ``mean_rank``: of the guide's draw, from 0 to 1, 0.5 if the guide is right;
            above it the guide's draws are too high. ``spread``: the ranks' standard deviation in units of that of
            uniform ones; below 1 the guide is too narrow, above 1 too wide. ``p_value``: of Pearson's chi-square for
            the ranks; ``adjusted_p_value``: times the number of quantities.
        ranks: By quantity, from 0 to ``num_chains``, a number for each row.
        p_value: For all quantities together: the smallest adjusted p-value.
        num_chains: Number of chains for each rank.
    """

    table: "pd.DataFrame"
    ranks: dict[str, np.ndarray]
    p_value: float
    num_chains: int


def calibration_at_rows(
    pair: Pair,
    x: Inputs,
    *,
    num_chains: int = 19,
    num_transitions: int = 20,
    num_leapfrog: int = 5,
    seed: int = 0,
    memory_mib: float = 256,
) -> CalibrationAtRows:
    r"""Tests the guide at given rows, such as the data, with p-values that do not need the chains to mix.

    For each row, T transitions of Hamiltonian Monte Carlo, which leave :math:`p(z \mid x_n)` invariant, start from
    :math:`z^* \sim q(z \mid x_n)`. From their end, S chains make T transitions each. Transitions are reversible, so if
    :math:`z^*` is a draw from the posterior, it and the S ends are exchangeable. Its rank among them is then uniform on
    0, …, S for every function f of latents and data, and for any T. More transitions raise the power of the test, and
    leave its level unchanged.

    The functions are each entry of each latent, mapped to the real numbers; :math:`\log p(x, z)`; and
    :math:`\log p(x, z) - \log q(z \mid x)`, the log-ratio of posterior and guide up to a constant. p-values come from
    Pearson's chi-square for the ranks of all rows, times the number of functions (Bonferroni).

    Simulation-based calibration uses rows drawn from the model, which may be unlike the data. Posterior SBC checks
    posteriors near the data: it draws latents from the posterior of the data, and new data from those. But it needs the
    posterior given both, which a guide for single rows does not provide: the ranks of such latents among draws for the
    new row alone are not uniform, even with an exact guide. To test rows around the data as well, pass this function
    rows of ``pair.posterior_predictive(x)``.

    Args:
        pair: The programs; their latents must be continuous or enumerated by the model, and lie in the plate
            ``"data"``.
        x: At least 20 rows, with the programs' keyword arguments, as :func:`~pyro_vae.fit` takes them.
        num_chains: Chains S.
        num_transitions: Transitions T of each.
        num_leapfrog: Leapfrog steps of a transition; each computes the gradient of both programs.
        seed: Seeds everything; the caller's random state is unchanged.
        memory_mib: Rough bound on the memory for chains, in MiB.

    Returns:
        A :class:`CalibrationAtRows`.

    Raises:
        ContractError: if the programs break the contract, a latent lies outside the plate, or none can be moved.
        ValueError: if rows or counts do not fit, or a latent is discrete and not enumerated by the model.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, hidden_dims=(), likelihood=Normal(scale=0.1))  # not trained
        >>> calibration_at_rows(vae, vae.sample(100)).p_value < 1e-6
        True

    Source: Besag & Clifford, *Generalized Monte Carlo significance tests*, 1989; Säilynoja et al., *Posterior SBC:
    Simulation-based calibration checking conditional on data*, 2025, for the choice of rows.
    """
    for name, count in (("num_chains", num_chains), ("num_transitions", num_transitions)):
        if count < 1:
            raise ValueError(f"{name} must be at least 1, found {count}")
    rows = pair.check(x)
    if rows.num_rows < _FEWEST:
        raise ValueError(f"pass at least {_FEWEST} rows, for a histogram of their ranks; found {rows.num_rows}")
    parts: dict[str, list[Tensor]] = {}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        batch = pair.prepare(next(rows.chunks(2**62)))
        structure = pair.structure(batch, count_bytes=True)
        structure.require_local()
        structure.require_weights()
        if not latent_layout(pair, structure, batch, "guide"):
            raise ContractError("the model has no continuous latent that chains could move")
        at_once = max(1, int(memory_mib * 2**20) // (2 * structure.bytes_per_draw * max(num_chains, 16)))
        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            for part in batch.chunks(at_once):
                density = LatentDensity(pair, structure, part, latent_layout(pair, structure, part, "guide"))
                moved = posterior_kernel(density, num_leapfrog)
                drawn = density.at(density.draw(1))
                hub = moved(drawn, num_transitions).u.expand(num_chains, -1, -1)
                among = moved(density.at(hub), num_transitions)
                for (name, mine), (_, others) in zip(
                    _quantities(density, drawn), _quantities(density, among), strict=True
                ):
                    ranks = among_ties((others < mine).sum(0), (others == mine).sum(0))
                    parts.setdefault(name, []).append(ranks)
    return _summarised({name: torch.cat(values).cpu().numpy() for name, values in parts.items()}, num_chains)


def _quantities(density: LatentDensity, point: Point) -> list[tuple[str, Tensor]]:
    """The quantities to rank, ``(C, N)`` each."""
    found = []
    for name, place in density.layout.items():
        coordinates = point.u[..., place].unbind(-1)
        alone = len(coordinates) == 1
        found += [(name if alone else f"{name}[{i}]", value) for i, value in enumerate(coordinates)]
    log_joint = (point.log_joint.double() / _NATS).round()
    return [*found, (LOG_JOINT, log_joint), (LOG_WEIGHT, (point.log_ratio() / _NATS).round())]


def _summarised(ranks: dict[str, np.ndarray], num_chains: int) -> CalibrationAtRows:
    import pandas as pd

    records = {}
    for name, values in ranks.items():
        position = (values + 0.5) / (num_chains + 1)
        _, p_value = uniformity(values, num_chains + 1, min(20, max(2, len(values) // 10), num_chains + 1))
        records[name] = {
            "mean_rank": position.mean(),
            "spread": position.std() / np.sqrt((1 - 1 / (num_chains + 1) ** 2) / 12),
            "p_value": p_value,
            "adjusted_p_value": min(1.0, len(ranks) * p_value),
        }
    table = pd.DataFrame.from_dict(records, orient="index").rename_axis("quantity")
    p_value = min(record["adjusted_p_value"] for record in records.values())
    return CalibrationAtRows(table, ranks, p_value, num_chains)
