r"""The evidence of each row, by importance weighting from the guide."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyro
import torch
from torch import Tensor

from pyro_vae.data.rows import as_rows
from pyro_vae.inference.predictive import rows_of
from pyro_vae.inference.structure import RowPrograms, row_programs
from pyro_vae.pair import Array, Pair
from pyro_vae.programs import evaluating, forked_random_state
from pyro_vae.training.lowering import CannotStageError, compiled, compiler_missing

__all__ = ["Evidence", "log_evidence", "log_mean_exp", "reduce_log_weights"]

_CURVE = (1, 10, 100, 1000)
_DRAWS_THAT_REPAY = 5_000_000  # compiling the programs

_LogWeights = Callable[[Tensor, Any, int], Tensor]


@dataclass(frozen=True)
class Evidence:
    """Estimated evidence of N rows, in nats and in the user's units, on the CPU in float64.

    Args:
        log_evidence: The estimate for each row, ``(N,)``.
        standard_error: Its Monte Carlo standard error, ``(N,)``; NaN with one particle. Where it nears 1 it is no
            longer to be believed: few draws carry all the weight.
        ess: Effective sample size of the weights, between 1 and the number of particles, ``(N,)``.
        curve: A table with one row for each number of particles up to the one asked for: ``num_particles``, the mean
            over rows ``log_evidence``, and ``standard_error``, over rows. A flat end speaks for convergence.
        num_dims: Observed elements of a row, on average.
    """

    log_evidence: Tensor
    standard_error: Tensor
    ess: Tensor
    curve: pd.DataFrame
    num_dims: float

    @property
    def mean(self) -> float:
        """The mean over rows: minus the test NLL that papers report."""
        return float(self.log_evidence.mean())

    @property
    def mean_standard_error(self) -> float:
        """Standard error of the mean over rows, from rows being a sample of all there could be; NaN for one row."""
        return _standard_error(self.log_evidence)

    @property
    def bits_per_dim(self) -> float:
        r"""Minus the mean, divided by :math:`D \ln 2`."""
        return -self.mean / (self.num_dims * math.log(2))

    def __str__(self) -> str:
        return (
            f"log evidence {self.mean:.2f} ± {self.mean_standard_error:.2f} nats, {self.bits_per_dim:.4f} bits/dim, "
            f"over {len(self.log_evidence):,} rows with {self.curve['num_particles'].iloc[-1]:,} particles each"
        )


def log_evidence(
    pair: Pair,
    x: Array,
    *,
    num_particles: int = 5000,
    seed: int = 0,
    memory_mib: float = 64,
    **context: Any,
) -> Evidence:
    r"""Estimates the log evidence of each row by importance weighting from the guide.

    .. math:: \log p(x) \approx \log \frac{1}{K} \sum_{k=1}^K w_k, \qquad
        w_k = \frac{p(x, z_k)}{q(z_k \mid x)}, \quad z_k \sim q(z \mid x)

    The mean weight is an unbiased estimate of :math:`p(x)`, so its logarithm is a lower bound in expectation: the ELBO
    at K = 1, and tighter as K grows, by about half its squared standard error for large K. Log-ratios are sampled,
    never replaced by a KL in closed form, and averaged for each row by itself, in float64. Any scale that the programs
    put on their sites, by ``poutine.scale`` or by a plate's subsampling, is left out; masks are kept.

    On a CPU, where there are draws enough to repay it, what the programs do is compiled.

    The curve's value at k is the mean of the K/k estimates that disjoint blocks of k of the draws give. Draws are
    independent, so each block is a set of k fresh ones, and the mean estimates what k particles give without bias.

    Args:
        pair: A trained :class:`~pyro_vae.VAE` or any :class:`~pyro_vae.Pair` whose latents all lie in the plate
            ``"data"``. Sites outside it must be observed, and are conditioned on.
        x: Rows ``(N, *E)`` in the user's units. Of rows with missing entries, it is the evidence of the observed part.
        num_particles: Draws K of the guide for each row. 5000 is the custom for numbers in papers.
        seed: Seeds the draws of the guide and of the transform, which is applied once to each row. The numbers
            also depend, within their error, on ``memory_mib``.
        memory_mib: Bound on the memory for draws, in MiB, beside what data and parameters take. Little is faster
            than much on a CPU, whose caches are small; on a GPU give a few thousand.
        context: Keyword arguments of the programs, rows first.

    Returns:
        The estimates with their errors, see :class:`Evidence`.

    Raises:
        ValueError: if data or arguments do not suit; if a latent lies outside the plate ``"data"``, or the guide does
            not sample just the latents of the model.
        FloatingPointError: if a weight is NaN.

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
    if num_particles < 1:
        raise ValueError(f"num_particles must be at least 1, found {num_particles}")
    sizes = [k for k in _CURVE if k < num_particles] + [num_particles]

    def summarised(log_weights: Tensor) -> Tensor:
        return torch.stack([*log_mean_exp(log_weights), *(_block_estimate(log_weights, size) for size in sizes)])

    summaries, log_jacobian, num_dims = reduce_log_weights(
        pair, x, summarised, num_particles=num_particles, seed=seed, memory_mib=memory_mib, **context
    )
    log_mean, standard_error, ess = summaries[:3]
    log_mean, by_size = log_mean + log_jacobian, summaries[3:] + log_jacobian
    curve = pd.DataFrame(
        {
            "num_particles": sizes,
            "log_evidence": by_size.mean(1).numpy(),
            "standard_error": [_standard_error(values) for values in by_size],
        }
    )
    return Evidence(log_mean, standard_error, ess, curve, num_dims)


def reduce_log_weights(
    pair: Pair,
    x: Array,
    reduce: Callable[[Tensor], Tensor],
    *,
    num_particles: int,
    seed: int = 0,
    memory_mib: float = 64,
    **context: Any,
) -> tuple[Tensor, Tensor, float]:
    r"""Draws the log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` of every row, and keeps what is asked of them.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the user's units.
        reduce: Maps the log-weights of some rows, ``(K, n)`` in float64 and in the model's units, to ``(m, n)``.
        num_particles: Draws K for each row.
        seed: Seeds the draws of the guide and of the transform.
        memory_mib: Bound on the memory for draws, in MiB.
        context: Keyword arguments of the programs, rows first.

    Returns:
        What ``reduce`` gave for all rows, ``(m, N)``, and the logarithm of the transform's Jacobian, ``(N,)``, which
        brings log-weights to the user's units: both on the CPU and in float64. And how many observed elements a row
        has, on average.

    Raises:
        ValueError: if data or programs do not suit, see :func:`log_evidence`.
        FloatingPointError: if a weight is NaN.
    """
    if not memory_mib > 0:
        raise ValueError(f"memory_mib must be positive, found {memory_mib}")
    data = as_rows({"x": x, **context}, pair.device)
    num_dims = data.check(pair, "x") / data.num_rows
    kept: Tensor | None = None  # in one piece: small results among large draws would break up the memory
    done, jacobians = 0, []
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        torch.manual_seed(seed)
        programs: RowPrograms | None = None
        log_weights: _LogWeights | None = None
        for batch in data.chunks(1024):
            rows, prepared, log_jacobian = pair.prepare(batch.pop("x"), batch)
            jacobians.append(log_jacobian.double().cpu())
            programs = row_programs(pair, rows, prepared) if programs is None else programs
            draws = max(1, int(memory_mib * 2**20) // programs.bytes_per_draw)
            parts = math.ceil(num_particles / draws) if programs.vectorised else num_particles
            particles_at_once = math.ceil(num_particles / parts)
            rows_at_once = max(1, draws // particles_at_once)
            if log_weights is None:
                repays = pair.device.type == "cpu" and data.num_rows * num_particles >= _DRAWS_THAT_REPAY
                first = rows_of(prepared, 0, rows_at_once)
                log_weights = _log_weights(programs, rows[:rows_at_once], first, particles_at_once, compile=repays)
            for start in range(0, len(rows), rows_at_once):
                here = rows_of(prepared, start, start + rows_at_once)
                weights = _draw(log_weights, rows[start : start + rows_at_once], here, num_particles, particles_at_once)
                reduced = reduce(weights)
                if kept is None:
                    kept = torch.empty(len(reduced), data.num_rows, dtype=reduced.dtype)
                kept[:, done : done + reduced.shape[1]] = reduced
                done += reduced.shape[1]
    assert kept is not None
    return kept, torch.cat(jacobians), num_dims


def _log_weights(
    programs: RowPrograms, x: Tensor, context: dict[str, Any], num_particles: int, *, compile: bool
) -> _LogWeights:
    """The programs' log-weights, by a compiled graph where rows and particles are as many as here."""
    if not compile or not programs.vectorised or compiler_missing():
        return programs.log_weights
    names = list(context)

    def function(x: Tensor, *values: Tensor) -> tuple[Tensor]:
        return (programs.log_weights(x, dict(zip(names, values, strict=True)), num_particles),)

    inputs = [x, *context.values()]
    try:
        with pyro.validation_enabled(is_validate=False), forked_random_state(x.device):
            graph = compiled(function, inputs)
            torch.manual_seed(1)
            expected = function(*inputs)[0]
            torch.manual_seed(1)
            if not torch.allclose(graph(*inputs)[0], expected, rtol=1e-4, atol=1e-3, equal_nan=True):
                return programs.log_weights
    except CannotStageError:
        return programs.log_weights

    def either(x: Tensor, context: Any, num: int) -> Tensor:
        if num == num_particles and len(x) == len(inputs[0]):
            return graph(x, *(context[name] for name in names))[0]
        return programs.log_weights(x, context, num)

    return either


def _draw(
    log_weights: _LogWeights, x: Tensor, context: dict[str, Any], num_particles: int, particles_at_once: int
) -> Tensor:
    """Log-weights ``(K, n)`` in float64, which take 8 bytes each: next to nothing beside the draws themselves."""
    with pyro.validation_enabled(is_validate=False):  # the programs were looked at with it
        parts = math.ceil(num_particles / particles_at_once)
        weights = torch.cat([log_weights(x, context, particles_at_once).double() for _ in range(parts)])
    weights = weights[:num_particles]  # all parts are of one size, for which the programs may be compiled
    if bool(weights.isnan().any()):
        raise FloatingPointError(
            f"{int(weights.isnan().any(0).sum())} of {len(x)} rows have NaN among their log-weights: the programs gave "
            f"a distribution with NaN in it, or log-probabilities of opposite infinities"
        )
    return weights


def log_mean_exp(log_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""The logarithm of the mean weight of each column, its standard error and the effective sample size.

    With :math:`\bar w` the mean of K weights, the error is the delta method's,
    :math:`\mathrm{sd}(w) / (\sqrt{K}\, \bar w)`, and the effective sample size is
    :math:`(\sum_k w_k)^2 / \sum_k w_k^2` (Kong, 1992).

    Shape:
        log_weights: ``(K, N)``. Returns three tensors ``(N,)``; where all weights are 0, −∞ and two NaN.
    """
    num = len(log_weights)
    log_mean = log_weights.logsumexp(0) - math.log(num)
    ratios = (log_weights - log_mean).exp()  # their mean is 1
    standard_error = (ratios - 1).square().sum(0).div(num - 1).div(num).sqrt() if num > 1 else ratios[0] * math.nan
    return log_mean, standard_error, num / ratios.square().mean(0)


def _block_estimate(log_weights: Tensor, size: int) -> Tensor:
    """The mean over disjoint blocks of their log mean weight, ``(N,)``; draws that fill no block are left out."""
    blocks = log_weights[: len(log_weights) // size * size].unflatten(0, (-1, size))
    return (blocks.logsumexp(1) - math.log(size)).mean(0)


def _standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
