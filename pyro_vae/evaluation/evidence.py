r"""The evidence of each row, by importance weighting from the guide."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyro
import torch
from torch import Tensor

from pyro_vae._support.cuda_graphs import CannotStageError
from pyro_vae._support.devices import memory_for_draws
from pyro_vae._support.notebooks import Sentence
from pyro_vae.data.rows import Inputs
from pyro_vae.evaluation.pareto import FEWEST, reliable_shape, tail_shape, widened
from pyro_vae.inference.batch import Batch, rows_that_fit
from pyro_vae.inference.replaying import Replayed
from pyro_vae.inference.sites import check_log_weights, run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Evidence", "draw_log_weights", "log_evidence", "log_mean_exp", "reduce_log_weights", "warn_if_in_turn"]

_CURVE = (1, 10, 100, 1000)
_DRAWS_THAT_REPAY = 5_000_000  # from here on compiling the programs pays off
_MIB = 2**20
_BYTES_PER_WEIGHT = 64  # eight numbers, with those between the weights and their summary


@dataclass(frozen=True)
class Evidence(Sentence):
    """Estimated evidence of N rows, in nats and in the user's units, on the CPU in float64.

    Args:
        log_evidence: The estimate for each row, ``(N,)``.
        standard_error: Its Monte Carlo standard error, ``(N,)``; NaN with one particle. It is widened to allow for
            draws in the tail of the weights that have not occurred (:func:`~pyro_vae.evaluation.pareto.widened`). If
            ``reliable`` is false, do not trust estimate or error: few draws carry all the weight, and the estimate is
            too low.
        ess: Effective sample size of the weights, between 1 and the number of particles, ``(N,)``.
        curve: A table with one row for each number of particles up to ``num_particles``: ``num_particles``, the mean
            over rows ``log_evidence``, and ``standard_error``, over rows. A flat end suggests convergence.
        num_dims: Observed elements of a row, on average; NaN if the model observes more of a row than ``x``.
        k_hat: Pareto shape of each row's weights, ``(N,)``, see :func:`~pyro_vae.evaluation.diagnose_guide`; NaN with
            fewer than 25 particles.
    """

    log_evidence: Tensor
    standard_error: Tensor
    ess: Tensor
    curve: "pd.DataFrame"
    num_dims: float
    k_hat: Tensor

    @property
    def reliable(self) -> Tensor:
        r"""True for rows whose error can be trusted, ``(N,)``: :math:`\hat k` is known and not too large."""
        num_particles = int(self.curve["num_particles"].iloc[-1])
        if num_particles < FEWEST:
            return torch.zeros_like(self.k_hat, dtype=torch.bool)
        return self.k_hat <= reliable_shape(num_particles)

    @property
    def mean(self) -> float:
        """The mean over rows: minus the test NLL that papers report."""
        return float(self.log_evidence.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of the mean over rows, with the rows as a sample of all possible ones; NaN for one row.

        It includes the estimates' own errors, because they make the rows differ as well, but not their bias.
        """
        return _standard_error(self.log_evidence)

    @property
    def mean_monte_carlo_error(self) -> float:
        """The part of that error that more particles would remove: the error of the mean over these rows alone."""
        return float(self.standard_error.square().sum().sqrt() / len(self.standard_error))

    @property
    def bits_per_dim(self) -> float:
        r"""Minus the mean, divided by :math:`D \ln 2`; NaN if the model observes more of a row than ``x``."""
        return -self.mean / (self.num_dims * math.log(2))

    def __str__(self) -> str:
        bits = "" if math.isnan(self.num_dims) else f"{self.bits_per_dim:.4f} bits/dim, "
        error = "" if len(self.log_evidence) < 2 else f" ± {self.mean_standard_error:.2f}"
        return (
            f"log evidence {self.mean:.2f}{error} nats, {bits}"
            f"over {len(self.log_evidence):,} rows with {self.curve['num_particles'].iloc[-1]:,} particles each"
        )


def log_evidence(
    pair: Pair, x: Inputs, *, num_particles: int = 5000, seed: int = 0, memory_mib: float | None = None
) -> Evidence:
    r"""Estimates the log evidence of each row by importance weighting from the guide.

    .. math:: \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    The mean weight is an unbiased estimate of :math:`p(x)`, so its logarithm is a lower bound in expectation: the ELBO
    at K = 1, and tighter as K grows, by about half its squared standard error for large K. Log-ratios are sampled,
    never replaced by a KL in closed form, and averaged for each row separately, in float64.

    - Scales that the programs put on their sites, with ``poutine.scale`` or by subsampling the plate ``"data"``, are
      ignored; masks are kept.
    - Latents that the model enumerates are summed over. So are those that the guide enumerates: the weight is the sum
      over their values y of :math:`p(x, y, z_y) / q(z_y \mid x, y)`.
    - Everything that the model observes about a row counts, keyword arguments too: if ``y`` is observed as well as
      ``x``, the result is :math:`\log p(x, y)`. Sites observed outside the plate ``"data"`` are conditioned on.
    - Sites that the guide observes, and its factors, are ignored.

    On a CPU the programs are compiled if there are enough draws for that to pay off; on a GPU they are captured in a
    CUDA graph.

    The curve's value at k is the mean of the K/k estimates from disjoint blocks of k draws. Draws are independent, so
    each block is a fresh set of k, and the mean is an unbiased estimate of the value with k particles.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents all lie in the plate
            ``"data"``.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments, as
            :func:`~pyro_vae.fit` takes them; data in files are streamed. For rows with missing entries, the result is
            the evidence of the observed part.
        num_particles: Draws K from the guide for each row. 5000 is usual for numbers in papers.
        seed: Seeds the draws from the guide. The results also depend, within their error, on ``memory_mib``.
        memory_mib: Bound on the memory for draws, in MiB, on top of data and parameters; by default 64, and on a GPU
            a 64th of its memory. On a CPU, whose caches are small, less is faster.

    Returns:
        The estimates with their errors, see :class:`Evidence`.

    Raises:
        ValueError: if data or arguments do not fit; if a latent lies outside the plate ``"data"``, or the guide sets
            one to a point; if the programs break the contract in another way.
        FloatingPointError: if a weight is NaN.

    Warns:
        UserWarning: if the programs must be run once for each draw, with the reason.

    Example:
        >>> from pyro_vae import mlp_vae
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = mlp_vae((6,), latent_dim=2, likelihood=Bernoulli())
        >>> evidence = log_evidence(vae, torch.rand(8, 6).round(), num_particles=100)
        >>> evidence.log_evidence.shape, list(evidence.curve["num_particles"])
        (torch.Size([8]), [1, 10, 100])

    Source: Burda et al., *Importance Weighted Autoencoders*, 2016; for the errors' expansion, Domke & Sheldon,
    *Importance Weighting and Variational Inference*, 2018.
    """
    import pandas as pd

    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, found {num_particles}")
    sizes = [k for k in _CURVE if k < num_particles] + [num_particles]

    def summarised(log_weights: Tensor) -> Tensor:
        log_mean, error, ess = log_mean_exp(log_weights)
        shape = tail_shape(log_weights)
        return torch.stack(
            [
                log_mean,
                widened(error, shape, num_particles),
                ess,
                shape,
                *(_block_estimate(log_weights, size) for size in sizes),
            ]
        )

    summaries, log_jacobian, num_dims = reduce_log_weights(
        pair, x, summarised, num_particles=num_particles, seed=seed, memory_mib=memory_mib
    )
    log_mean, standard_error, ess, k_hat = summaries[:4]
    log_mean, by_size = log_mean + log_jacobian, summaries[4:] + log_jacobian
    curve = pd.DataFrame(
        {
            "num_particles": sizes,
            "log_evidence": by_size.mean(1).numpy(),
            "standard_error": [_standard_error(values) for values in by_size],
        }
    )
    return Evidence(log_mean, standard_error, ess, curve, num_dims, k_hat)


def reduce_log_weights(
    pair: Pair,
    x: Inputs,
    reduce: Callable[[Tensor], Tensor],
    *,
    num_particles: int,
    seed: int = 0,
    memory_mib: float | None = None,
    compile: bool = True,
) -> tuple[Tensor, Tensor, float]:
    r"""Draws the log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` of every row, and reduces them.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units, or a mapping of ``"x"`` and the programs' keyword arguments.
        reduce: Maps the log-weights of some rows, ``(K, n)`` in float64 and in the model's units, to ``(m, n)``.
        num_particles: Draws K for each row.
        seed: Seeds the draws from the guide.
        memory_mib: Bound on the memory for draws, in MiB, as in :func:`log_evidence`.
        compile: Compile the programs, on a CPU and with enough draws for that to pay off.

    Returns:
        The results of ``reduce`` for all rows, ``(m, N)``; the logarithm of the transform's Jacobian, ``(N,)``, which
        converts log-weights to the user's units (both on the CPU and in float64); and the average number of observed
        elements in a row, NaN if the model observes more of a row than ``x``.

    Raises:
        ValueError: if data or programs do not fit, see :func:`log_evidence`.
        FloatingPointError: if a weight is NaN.
    """
    memory_mib = memory_for_draws(pair.device) / _MIB if memory_mib is None else memory_mib
    if not memory_mib > 0:
        raise ValueError(f"memory_mib must be positive, found {memory_mib}")
    rows = pair.check(x)
    repays = pair.device.type == "cpu" and rows.num_rows * num_particles >= _DRAWS_THAT_REPAY
    kept: Tensor | None = None  # in one piece: small results among large draws would fragment the memory
    done, jacobians = 0, []
    drawn: list[Tensor] = []  # and not yet reduced, which takes as many calls for a few rows as for many
    most_columns = max(1, int(memory_mib * _MIB / _BYTES_PER_WEIGHT) // num_particles)
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        weigh: _Weigh | None = None
        for chunk in rows.chunks(rows_that_fit(rows.num_elements)):
            batch = pair.prepare(chunk)
            jacobians.append(batch.log_jacobian.double().cpu())
            if weigh is None:
                weigh = _Weigh(pair, batch, rows.num_rows, num_particles, memory_mib, compile=compile and repays)
            if not weigh.graph_agrees(batch):  # then none of its results can be trusted
                return reduce_log_weights(
                    pair,
                    rows,
                    reduce,
                    num_particles=num_particles,
                    seed=seed,
                    memory_mib=memory_mib,
                    compile=False,
                )
            for part in batch.chunks(weigh.rows_at_once):
                drawn.append(weigh(part))
                columns = sum(weights.shape[1] for weights in drawn)
                if columns < most_columns and done + columns < rows.num_rows:
                    continue
                reduced = reduce(torch.cat(drawn, 1))
                if kept is None:
                    kept = torch.empty(len(reduced), rows.num_rows, dtype=reduced.dtype)
                kept[:, done : done + columns] = reduced
                done += columns
                drawn.clear()
    assert kept is not None
    assert weigh is not None
    more = any(argument not in (None, "x") for argument in weigh.structure.observed.values())
    return kept, torch.cat(jacobians), math.nan if more else rows.num_observed / rows.num_rows


def warn_if_in_turn(structure: Structure) -> None:
    """Warns if the programs cannot run for several draws at once, and says why."""
    if not structure.vectorised:
        warnings.warn(
            f"the programs cannot run for several draws at once, so they run for one after another, which is "
            f"slower: their networks must take latents with further dimensions on the left ({structure.reason})",
            stacklevel=4,
        )


def draw_log_weights(pair: Pair, batch: Batch, structure: Structure, num_particles: int) -> Tensor:
    r"""Log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` at draws from the guide, ``(K, N)``.

    Sites observed outside the plate ``"data"`` are conditioned on, and are not in the weights.

    Args:
        pair: The programs; modes and gradients are left to the caller.
        batch: N rows.
        structure: The sites of the programs.
        num_particles: Draws K for each row.
    """
    draws = run_pair(*pair.programs, batch, structure, num_particles=num_particles)
    return draws.where(lambda term: term.is_local).log_weights


class _Weigh:
    """The log-weights of a few rows, ``(K, n)`` in float64, drawn in parts of equal size, which may thus be one graph.

    Args:
        pair: The programs.
        batch: Some of the rows.
        num_rows: Number of all rows.
        num_particles: Draws K for each row.
        memory_mib: Bound on the memory for draws.
        compile: Whether compiling would pay off.
    """

    def __init__(
        self, pair: Pair, batch: Batch, num_rows: int, num_particles: int, memory_mib: float, *, compile: bool
    ) -> None:
        self.pair, self.num_particles = pair, num_particles
        self.structure = pair.structure(batch, count_bytes=True)
        self.structure.require_local()
        self.structure.require_weights()
        warn_if_in_turn(self.structure)
        draws = max(1, int(memory_mib * _MIB) // self.structure.bytes_per_draw)
        most = min(draws, num_particles) if self.structure.vectorised else 1
        self.particles_at_once = math.ceil(num_particles / math.ceil(num_particles / most))
        self.parts = math.ceil(num_particles / self.particles_at_once)
        self.rows_at_once = max(1, draws // self.particles_at_once)
        names, constants = list(batch.context), batch.constants

        def function(x: Tensor, *values: Tensor) -> tuple[Tensor]:
            here = Batch.of(x, {**constants, **dict(zip(names, values, strict=True))})
            return (draw_log_weights(pair, here, self.structure, self.particles_at_once),)

        programs = {"the model": pair.model, "the guide": pair.guide}
        self._drawn = Replayed(function, programs, pair.device, num_rows // self.rows_at_once * self.parts)
        self.graph: Callable[..., tuple[Tensor, ...]] | None = None
        if compile and self.structure.vectorised:
            self._compile(function, batch[: self.rows_at_once])

    def __call__(self, batch: Batch) -> Tensor:
        """The weights take 8 bytes each, next to nothing compared with the draws themselves."""
        with pyro.validation_enabled(is_validate=False):  # they were validated when inspected
            weights = torch.cat([self._part(batch).double() for _ in range(self.parts)])
        weights = weights[: self.num_particles]
        check_log_weights(weights)
        return weights

    def _part(self, batch: Batch) -> Tensor:
        if len(batch) != self.rows_at_once:
            return draw_log_weights(self.pair, batch, self.structure, self.particles_at_once)
        return (self.graph or self._drawn)(batch.x, *batch.context.values())[0]

    def _compile(self, function: Callable[..., tuple[Tensor, ...]], batch: Batch) -> None:
        """Compiles the programs to a graph, for this number of rows and particles."""
        from pyro_vae.training.lowering import compiled, compiler_missing

        if compiler_missing():
            return
        try:
            with pyro.validation_enabled(is_validate=False), forked_random_state(batch.x.device):
                self.graph = compiled(function, [batch.x, *batch.context.values()])
        except CannotStageError:
            return

    def graph_agrees(self, batch: Batch) -> bool:
        """Whether the graph, if any, gives the same weights as the programs on the last of these rows."""
        graph, batch = self.graph, batch[-self.rows_at_once :]
        if graph is None or len(batch) < self.rows_at_once:
            return True
        with pyro.validation_enabled(is_validate=False), forked_random_state(batch.x.device):
            torch.manual_seed(1)
            expected = draw_log_weights(self.pair, batch, self.structure, self.particles_at_once)
            torch.manual_seed(1)
            found = graph(batch.x, *batch.context.values())[0]
        return torch.allclose(found, expected, rtol=1e-4, atol=1e-3, equal_nan=True)


def log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The logarithm of the mean weight of each column, its standard error and the effective sample size.

    With :math:`\bar w` the mean of K weights, the error is the delta method's,
    :math:`\mathrm{sd}(w) / (\sqrt{K}\, \bar w)`, and the effective sample size is
    :math:`(\sum_k w_k)^2 / \sum_k w_k^2` (Kong, 1992).

    Shape:
        log_weights: ``(K, N)``. Returns three tensors ``(N,)``; if all weights are 0, these are −∞ and twice NaN.
    """
    num = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(num)
    ratios = (log_weights - log_mean).exp()  # their mean is 1
    standard_error = (ratios - 1).square().sum(0).div(num - 1).div(num).sqrt() if num > 1 else ratios[0] * math.nan
    return log_mean, standard_error, num / ratios.square().mean(0)


def _block_estimate(log_weights: Tensor, size: int) -> Tensor:
    """The mean over disjoint blocks of their log mean weight, ``(N,)``; draws that fill no block are omitted."""
    blocks = log_weights[: len(log_weights) // size * size].unflatten(0, (-1, size))
    return (blocks.logsumexp(1) - math.log(size)).mean(0)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
