"""Draws from Pyro programs: all contact with :class:`pyro.infer.Predictive`.

Every function takes programs, not our classes, and works in the model's units. Data are never passed to the model as
``x``, so they cannot come back as predictions. Draws are made in chunks, each brought to the user's units by ``finish``
and put where it belongs, in the array that is returned or in a file: memory beyond the array does not grow with their
number.

``Predictive`` runs a program twice to learn its sites and shapes before it runs it for draws, so a chunk is drawn in
several runs of fewer rows: :func:`chunk_shape` says how many of each.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from tqdm.auto import tqdm

from pyro_vae._support import files
from pyro_vae.programs import evaluating

__all__ = [
    "chunk_shape",
    "draw_posterior_predictive",
    "draw_prior_predictive",
    "interpolate_latents",
    "latent_grid",
    "predict_from_latents",
    "rows_of",
]

Program = Callable[..., Any]
Context = Mapping[str, Any]
Finish = Callable[[Tensor], Tensor]
Chunks = Iterator[tuple[tuple[slice, ...], Tensor]]  # where each goes, and the draws


def chunk_shape(elements: int) -> tuple[int, int]:
    """How many runs of how many rows make a chunk of rows with this many elements each.

    A run has at most 2**19 elements and 1,024 rows, a chunk 8 runs and 2**22 elements, but both have a row.

    Example:
        >>> chunk_shape(28 * 28), chunk_shape(5), chunk_shape(3 * 512 * 512)
        ((8, 668), (8, 1024), (5, 1))
    """
    rows = max(1, min(1024, 2**19 // max(1, elements)))
    return max(1, min(8, 2**22 // (rows * max(1, elements)))), rows


class _MeanOf(Messenger):
    """Lets one sample site return its distribution's mean instead of a draw."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["is_observed"]:
            msg["value"] = msg["fn"].mean
            msg["done"] = True


def _forward_program(model: Program, *, mean: bool) -> Program:
    return _MeanOf("x")(model) if mean else model


def rows_of(context: Context, start: int, stop: int) -> dict[str, Any]:
    """The rows from ``start`` to ``stop`` of every keyword argument."""
    return {name: value[start:stop] for name, value in context.items()}


def predict_from_latents(
    model: Program,
    latents: Mapping[str, Tensor],
    batch_size: int,
    *,
    mean: bool = False,
    context: Context | None = None,
) -> Tensor:
    """Draws x given latents: one draw of N rows for each of S values of them.

    Args:
        model: The generative program.
        latents: For each latent site its values, ``(S, N, *event)``, or ``(S, *event)`` where the site is global;
            sites left out are drawn by the model.
        batch_size: Number of rows N.
        mean: Return E[x | z] instead of draws.
        context: Keyword arguments of the program, rows first.

    Returns:
        ``(S, N, *E)`` in the model's units.
    """
    predictive = Predictive(_forward_program(model, mean=mean), posterior_samples=dict(latents), return_sites=("x",))
    with evaluating(model):
        return predictive(batch_size=batch_size, **(context or {}))["x"]


def draw_prior_predictive(
    model: Program,
    num_samples: int,
    *,
    mean: bool = False,
    context: Context | None = None,
    finish: Finish | None = None,
    shape: tuple[int, int] = (8, 128),
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Tensor | np.memmap:
    """Draws rows x ~ p(x).

    Args:
        model: The generative program.
        num_samples: Number of rows N.
        mean: Return E[x | z] with z ~ p(z) instead of draws.
        context: Keyword arguments of the program, ``num_samples`` rows each.
        finish: Applied to each chunk of rows.
        shape: Runs of the program in a chunk and rows in a run. Latents outside the plate ``"data"`` are drawn once
            in each run.
        out: A ``.npy`` file to write the rows to instead; it is there once it is whole.
        progress: Show a progress bar.

    Returns:
        ``(N, *E)``, or the file memory-mapped to be read only.
    """
    _check_count(num_samples)
    with evaluating(model):
        chunks = _prior_chunks(_forward_program(model, mean=mean), num_samples, context or {}, finish, shape)
        return _collect(chunks, (num_samples,), out, progress=progress)


def _prior_chunks(
    program: Program, num_samples: int, context: Context, finish: Finish | None, shape: tuple[int, int]
) -> Chunks:
    most_runs, rows = shape
    start = 0
    while start < num_samples:
        rows = min(rows, num_samples - start)
        runs = min(most_runs, (num_samples - start) // rows)
        stop = start + runs * rows
        draws = Predictive(
            _in_parts(program, rows_of(context, start, stop), rows),
            posterior_samples={"_part": torch.arange(runs)},
            return_sites=("x",),
        )(batch_size=rows)["x"].flatten(0, 1)
        draws = finish(draws) if finish else draws
        yield (slice(start, stop),), draws
        del draws  # before the next chunk is drawn
        start = stop


def _in_parts(program: Program, context: Context, rows: int) -> Program:
    """The program on one part of the rows, which ``Predictive`` numbers from run to run."""

    def part_of_program(*, batch_size: int) -> Any:
        part = int(pyro.sample("_part", dist.Delta(torch.tensor(0))))
        return program(batch_size=batch_size, **rows_of(context, part * rows, (part + 1) * rows))

    return part_of_program


def _collect(
    chunks: Chunks, leading: tuple[int, ...], out: str | os.PathLike[str] | None, *, progress: bool
) -> Tensor | np.memmap:
    """Puts chunks where they belong, in one tensor or in a file."""
    bar = tqdm(total=int(np.prod(leading)), disable=not progress, unit="draw", unit_scale=True, dynamic_ncols=True)
    with bar:
        if out is not None:
            return files.write_blocks(_counted(chunks, bar), leading, Path(out))
        array: Any = None
        for place, chunk in _counted(chunks, bar):
            if array is None:
                array = chunk.new_empty(*leading, *chunk.shape[len(leading) :])
            array[place] = chunk
            del chunk
        return array


def _counted(chunks: Chunks, bar: Any) -> Chunks:
    for place, chunk in chunks:
        yield place, chunk
        del chunk
        bar.update(int(np.prod([where.stop - where.start for where in place])))


def draw_posterior_predictive(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    *,
    mean: bool = False,
    context: Context | None = None,
    finish: Finish | None = None,
    chunk_size: int = 1024,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Tensor | np.memmap:
    """Draws new data like each row: z ~ q(z | x), then x' ~ p(x | z).

    Args:
        model: The generative program.
        guide: The inference program.
        x: Rows ``(N, *E)`` in the model's units.
        num_samples: Draws S for each row.
        mean: Return E[x | z] for each draw of z instead.
        context: Keyword arguments of both programs, rows first.
        finish: Applied to each chunk of draws.
        chunk_size: Rows times draws at a time.
        out: A ``.npy`` file to write the draws to instead; it is there once it is whole.
        progress: Show a progress bar.

    Returns:
        ``(S, N, *E)``, or the file memory-mapped to be read only.
    """
    _check_count(num_samples)
    with evaluating(model, guide):
        chunks = _posterior_chunks(model, guide, x, num_samples, context or {}, finish, chunk_size, mean=mean)
        return _collect(chunks, (num_samples, len(x)), out, progress=progress)


def _posterior_chunks(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    context: Context,
    finish: Finish | None,
    chunk_size: int,
    *,
    mean: bool,
) -> Chunks:
    draws_at_once = min(num_samples, 16, chunk_size)
    rows_at_once = max(1, chunk_size // draws_at_once)
    for start in range(0, len(x), rows_at_once):
        stop = min(start + rows_at_once, len(x))
        here = rows_of(context, start, stop)
        for first in range(0, num_samples, draws_at_once):
            last = min(first + draws_at_once, num_samples)
            latents = _draw_latents(guide, x[start:stop], last - first, here)
            draws = predict_from_latents(model, latents, stop - start, mean=mean, context=here)
            yield (slice(first, last), slice(start, stop)), finish(draws) if finish else draws


def _check_count(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, found {num_samples}")


def _draw_latents(guide: Program, x: Tensor, num_samples: int, context: Context) -> dict[str, Tensor]:
    # Not by Predictive, which gives global sites an extra dimension that a user's model need not broadcast over.
    traces: list[Any] = [
        prune_subsample_sites(poutine.trace(guide).get_trace(x, **context)) for _ in range(num_samples)
    ]
    return {name: torch.stack([t.nodes[name]["value"] for t in traces]) for name in traces[0].stochastic_nodes}


def interpolate_latents(a: Tensor, b: Tensor, steps: int, *, path: Literal["linear", "spherical"] = "linear") -> Tensor:
    r"""Points on the way from latents ``a`` to latents ``b``, both ends included.

    .. math:: \text{linear: } (1 - t)\,a + t\,b, \qquad
        \text{spherical: } \frac{\sin((1 - t)\,\omega)}{\sin \omega}\,a + \frac{\sin(t\,\omega)}{\sin \omega}\,b

    with :math:`\omega` the angle between them (White, *Sampling Generative Networks*, 2016).

    Shape:
        a, b: ``(N, L)``. Returns ``(steps, N, L)``.
    """
    if steps < 2:
        raise ValueError(f"an interpolation needs at least its two ends, steps >= 2; found {steps}")
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).reshape(steps, *([1] * a.dim()))
    linear = (1 - t) * a + t * b
    if path == "linear":
        return linear
    if path != "spherical":
        raise ValueError(f"unknown path {path!r}: linear or spherical")
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1)
    omega = torch.arccos(cosine)[..., None]
    sine = omega.sin()
    straight = sine < 1e-6  # parallel ends: the arc is the line
    sine = torch.where(straight, 1.0, sine)
    return torch.where(straight, linear, (((1 - t) * omega).sin() * a + (t * omega).sin() * b) / sine)


def latent_grid(side: int) -> Tensor:
    """Two latents at evenly spaced quantiles of the standard normal, from 2.5% to 97.5%: ``(side, side, 2)``.

    The first latent rises along the second dimension, the second along the first.
    """
    quantiles = torch.special.ndtri(torch.linspace(0.025, 0.975, side))
    second, first = torch.meshgrid(quantiles, quantiles, indexing="ij")
    return torch.stack([first, second], dim=-1)
