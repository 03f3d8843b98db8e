r"""Is the guide the posterior of all latents together? Ranks of single latents do not see their correlations."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.evaluation.ranks import among_ties, uniformity
from pyro_vae.evaluation.simulation import Simulated, Simulator, given_rows
from pyro_vae.inference.predictive import enumerated_latents
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Fixed, Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["DISTANCE", "LOG_WEIGHT", "JointCalibration", "joint_calibration"]

LOG_WEIGHT = "log p(x, z) − log q(z|x)"
DISTANCE = "distance to a reference point"
_FEWEST = 20  # ranks, for a histogram
_NATS = 1e-3  # log-weights closer than this are ties: those of an exact guide differ by rounding alone


@dataclass(frozen=True)
class JointCalibration:
    """The ranks of functions of all latents and the data.

    Args:
        table: One row for each quantity. ``mean_rank``: from 0 to 1, 0.5 if the guide is right. For the
            log-weight it is the share of pairs in which the best possible classifier can tell the model's latents from
            the guide's. ``p_value``: by Pearson's chi-square of the ranks; ``adjusted_p_value``: times the number of
            quantities.
        coverage: Expected coverage by credibility level: how often the latents that made the row lie in the region
            around a reference point that holds this share of the guide's draws.
        ranks: By quantity, from 0 to ``num_draws``, ``(num_simulations,)`` each.
        num_draws: Draws from the guide for each rank.
        num_bins: Bins of the histograms.
        p_value: For both together: the smaller adjusted p-value.
    """

    table: "pd.DataFrame"
    coverage: "pd.DataFrame"
    ranks: Mapping[str, np.ndarray]
    num_draws: int
    num_bins: int
    p_value: float


def joint_calibration(
    pair: Pair,
    num_simulations: int = 1000,
    num_draws: int = 99,
    *,
    given: Mapping[str, Any] | None = None,
    seed: int = 0,
    chunk_size: int = 1024,
) -> JointCalibration:
    r"""Compares the guide's joint posterior with the model's, on data drawn from the model.

    As in :func:`~pyro_vae.evaluation.simulation_based_calibration`, :math:`z^*, x \sim p(z, x)` and
    :math:`z_1, \dots, z_S \sim q(z \mid x)`, and the rank of :math:`f(z^*, x)` among the :math:`f(z_s, x)` is uniform
    for any f if q is the posterior. Here f depends on all latents together:

    - The log-weight :math:`\log p(x, z) - \log q(z \mid x)`. Given x it is, up to a constant, the log-ratio of
      posterior and guide, which best tells draws from the one from draws from the other (Neyman & Pearson, 1933).
      Local classifier tests train a classifier to approximate it (Linhart, Gramfort & Rodrigues, 2023); for a pair it
      is known. It is omitted if the guide's draws have no density.
    - The distance :math:`\lVert z - r \rVert`, in units of the prior's standard deviations, to a reference point r that
      the model drew for another row; for discrete latents, the number of those that differ. It gives the expected
      coverage of TARP, *tests of accuracy with random points*: how often a ball around r that holds a share α of the
      guide's draws holds :math:`z^*`. That is α for all α if the guide is right (Lemos et al., 2023).

    The p-values keep their level for any number of draws: the ranks are uniform on 0, …, S and independent between
    rows. If a guide is wrong only in the correlation of two latents, the ranks of either latent show nothing, balls
    around random points show next to nothing at a few hundred rows, and the log-weight shows nearly everything.

    Args:
        pair: The programs.
        num_simulations: Rows drawn from the model.
        num_draws: Draws S from the guide for each row.
        given: The programs' keyword arguments, ``num_simulations`` rows each if they have rows.
        seed: Seeds everything; the caller's random state is unchanged.
        chunk_size: Rows at a time.

    Returns:
        A :class:`JointCalibration`.

    Raises:
        ContractError: if the programs break the contract, there are latents outside the plate ``"data"``, or the model
            cannot be simulated because of a factor in it.
        ValueError: if a count or an argument does not fit.
        TypeError: if a keyword argument is one that neither program takes.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Normal
        >>> vae = mlp_vae((3,), latent_dim=2, hidden_dims=(), likelihood=Normal(scale=0.1))  # not trained
        >>> joint_calibration(vae, 200, 19).p_value < 1e-6
        True

    Source: Lemos et al., *Sampling-based accuracy testing of posterior estimators for general inference*, 2023;
    Linhart, Gramfort & Rodrigues, *L-C2ST: local diagnostics for posterior approximations in simulation-based
    inference*, 2023; for ranks of functions of latents and data, Modrák et al., *Simulation-based calibration checking
    for Bayesian computation*, 2023.
    """
    if num_simulations < _FEWEST:
        raise ValueError(f"num_simulations must be at least {_FEWEST} for a histogram, found {num_simulations}")
    if num_draws < 1 or chunk_size < 1:
        raise ValueError(f"num_draws and chunk_size must be at least 1, found {num_draws} and {chunk_size}")
    rows = given_rows(pair, given, num_simulations)
    parts: dict[str, list[Tensor]] = {}
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        simulator = Simulator(pair, rows)
        simulator.structure.require_local("rows drawn from the model are not independent")
        for chunk in rows.chunks(chunk_size):
            # Twice: the reference points and the prior's widths must be independent of the latents that are ranked.
            simulated, reference = simulator.draw(chunk), simulator.draw(chunk)
            for name, ranks in _ranks(_Quantities(pair, simulator.structure, simulated, reference), num_draws):
                parts.setdefault(name, []).append(ranks)
    ranks = {name: torch.cat(values).cpu().numpy() for name, values in parts.items()}
    return _summarised(ranks, num_draws, min(20, max(2, num_simulations // 10), num_draws + 1))


def _summarised(ranks: Mapping[str, np.ndarray], num_draws: int, num_bins: int) -> JointCalibration:
    import pandas as pd

    records = {}
    for name, values in ranks.items():
        _, p_value = uniformity(values, num_draws + 1, num_bins)
        adjusted = min(1.0, len(ranks) * p_value)
        records[name] = {
            "mean_rank": (values + 0.5).mean() / (num_draws + 1),
            "p_value": p_value,
            "adjusted_p_value": adjusted,
        }
    table = pd.DataFrame.from_dict(records, orient="index").rename_axis("quantity")
    inside = ranks[DISTANCE][:, None] < (levels := np.arange(1, num_draws + 1))  # is it in a ball of this many draws
    share = inside.mean(0)
    coverage = pd.DataFrame(
        {"coverage": share, "standard_error": np.sqrt(share * (1 - share) / len(inside))},
        index=pd.Index(levels / (num_draws + 1), name="level"),
    )
    p_value = min(record["adjusted_p_value"] for record in records.values())
    return JointCalibration(table, coverage, ranks, num_draws, num_bins, p_value)


def _ranks(quantities: "_Quantities", num_draws: int) -> Iterator[tuple[str, Tensor]]:
    truth = quantities(quantities.simulated.latents)
    below = {name: torch.zeros_like(value, dtype=torch.long) for name, value in truth.items()}
    ties = {name: count.clone() for name, count in below.items()}
    for _ in range(num_draws):
        drawn = quantities()
        for name, value in truth.items():
            below[name] += drawn[name] < value
            ties[name] += drawn[name] == value
    for name, count in below.items():
        yield name, among_ties(count, ties[name])


class _Quantities:
    """The log-weight, and the distance to each row's reference point, of draws for some rows."""

    def __init__(self, pair: Pair, structure: Structure, simulated: Simulated, reference: Simulated) -> None:
        self.pair, self.structure, self.simulated = pair, structure, simulated
        self.points = {name: self._rows_first(name, value).double() for name, value in reference.latents.items()}
        self.widths = {name: _widths(value) for name, value in self.points.items()}
        self.weighs = not (structure.extra or structure.points)

    def __call__(self, truth: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The quantities at the latents that made the rows, or at one draw from the guide: ``(N,)`` each."""
        summed = self.structure.enumerated("model")
        batch = self.simulated.batch
        with Fixed({name: value for name, value in (truth or {}).items() if name not in summed}):
            draws = run_pair(*self.pair.programs, batch, self.structure, enumerate_guide=False)
        latents = {name: draws.latents[name] for name in self.structure.guided}
        if truth is None:
            latents |= enumerated_latents(self.pair.programs[0], latents, batch, self.structure)
        else:
            latents |= {name: truth[name] for name in summed}
        found = {DISTANCE: self._distance(latents)}
        return {LOG_WEIGHT: (draws.log_weights[0].double() / _NATS).round(), **found} if self.weighs else found

    def _rows_first(self, name: str, value: Tensor) -> Tensor:
        return value.movedim(value.dim() - 1 - self.structure.latents[name].event_dim, 0)

    def _distance(self, latents: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for name, latent in self.structure.latents.items():
            off = self._rows_first(name, latents[name]).double() - self.points[name]
            off = (off != 0).double() if latent.is_discrete else off / self.widths[name]
            mask = self.simulated.masks.get(name)
            if mask is not None:
                off = off * mask.reshape(*mask.shape, *[1] * (off.dim() - mask.dim()))
            total = total + off.square().flatten(1).sum(1) if off.dim() > 1 else total + off.square()
        return total


def _widths(values: Tensor) -> Tensor:
    """Standard deviations over rows; 1 where they are 0."""
    found = values.std(0, correction=0)
    return torch.where(found > 0, found, 1.0)
