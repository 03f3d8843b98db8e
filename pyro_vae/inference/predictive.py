"""Draws from the prior predictive and the posterior predictive of Pyro programs.

Every function takes programs, not classes of this library, and works in the model's units. Data are never passed to the
model as ``x``, so they cannot be returned as predictions. Results have rows first, whatever plates a site is in. Draws
are made in chunks; ``finish`` converts each to the user's units, and it goes to its place in an array or a file. So
memory beyond the array does not grow with the number of draws.

A draw is the same as in :class:`pyro.infer.Predictive`: the program conditioned on latents, run without data.
``Predictive`` itself is not used, because it first runs a program twice to find its sites, and needs the support of
each, which a flow does not have.
"""

import math
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae._support import files
from pyro_vae._support.devices import memory_for_draws
from pyro_vae._support.progress import bar
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.structure import (
    PROGRAM_ERRORS,
    ContractError,
    Structure,
    first_line,
    innermost,
    is_discrete,
    is_local,
    is_unobserved_part,
    sample_sites,
    some,
    vectorised_frames,
)
from pyro_vae.programs.running import evaluating

__all__ = [
    "Tempered",
    "centre",
    "check_sites",
    "chunk_shape",
    "draw_posterior_predictive",
    "draw_prior_predictive",
    "forward_trace",
    "interpolate_latents",
    "latent_grid",
    "most_rows",
    "posterior_latents",
    "predict_from_latents",
    "rows_first",
]

Program = Callable[..., Any]
Arguments = Mapping[str, Any]
Finish = Callable[[Tensor], Tensor]
Draws = dict[str, Tensor]
Chunks = Iterator[tuple[tuple[slice, ...], Draws]]  # where each goes, and the draws by site

_CPU = torch.device("cpu")
_CENTRE_DRAWS = 256  # from a distribution without a known mean


def chunk_shape(elements: int, *, at_most: int | None = None, device: torch.device = _CPU) -> tuple[int, int]:
    """The number of runs in a chunk, and of rows in a run, for rows with this many elements.

    On a CPU a run has at most 2**19 elements and 1,024 rows, a chunk 8 runs and 2**22 elements. On a GPU these limits
    grow with its memory. A run has at most ``at_most`` rows, and at least one.

    Example:
        >>> chunk_shape(28 * 28), chunk_shape(5), chunk_shape(3 * 512 * 512)
        ((8, 668), (8, 1024), (5, 1))
    """
    memory = memory_for_draws(device)
    most_elements, most_rows = memory // 16, memory // 2**16
    rows = max(1, min(most_rows, most_rows if at_most is None else at_most, most_elements // 8 // max(1, elements)))
    return max(1, min(8, most_elements // (rows * max(1, elements)))), rows


def most_rows(trace: Any) -> int | None:
    """The size of the plate ``"data"`` if it is fixed and a run subsamples it; else None."""
    frames = [f for s in sample_sites(trace).values() for f in s["cond_indep_stack"] if f.name == "data"]
    return min((f.full_size for f in frames if f.full_size is not None and f.full_size > f.size), default=None)


def centre(fn: Any) -> Tensor:
    """The middle of a distribution: its mean, or for a discrete one its mode if known, as a mean need not be a value.

    For a distribution without a known mean, such as a flow, it is the mean of 256 draws.
    """
    if is_discrete(fn):
        try:
            return fn.mode
        except NotImplementedError:
            if fn.has_enumerate_support:
                values = fn.enumerate_support()
                best = fn.log_prob(values).argmax(0)
                index = best.reshape(1, *best.shape, *([1] * fn.event_dim)).expand(1, *fn.shape())
                return values.expand(len(values), *fn.shape()).gather(0, index)[0]
            return fn.mean.round()
    try:
        mean = fn.mean
        if bool(mean.isfinite().all()):
            return mean
    except NotImplementedError:
        pass
    draws = fn(torch.Size((_CENTRE_DRAWS,)))  # called as by Pyro; flows that it wraps have no sample method
    mean = draws.mean(0)
    return mean if bool(mean.isfinite().all()) else draws.median(0).values


class _AtCentre(Messenger):
    """Makes sample sites return the middle of their distribution instead of a draw."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not msg["done"] and type(msg["fn"]).__name__ != "_Subsample":
            msg["value"], msg["done"] = centre(msg["fn"]), True


def at_centre(program: Program) -> Program:
    """The program with every draw replaced by the middle of its distribution."""
    return _AtCentre()(program)


class _MeanOf(Messenger):
    """Makes some sample sites return their distribution's mean instead of a draw."""

    def __init__(self, sites: Sequence[str]) -> None:
        super().__init__()
        self.sites = frozenset(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.sites and not msg["is_observed"]:
            msg["value"], msg["done"] = _mean(msg["fn"], msg["name"]), True


class Tempered(Messenger):
    r"""Draws latents of rows from their normal distributions with the scale multiplied, :math:`N(\mu, T^2 \Sigma)`.

    Args:
        temperature: T.
        sites: Names of sites that are not latents, and are drawn as usual.

    Raises:
        ContractError: when it runs, if a latent is not normal.
    """

    def __init__(self, temperature: float, sites: Collection[str]) -> None:
        super().__init__()
        if not (temperature > 0 and math.isfinite(temperature)):
            raise ValueError(f"temperature must be positive, found {temperature}")
        self.temperature, self.sites = temperature, frozenset(sites)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or msg["name"] in self.sites or not is_local(msg):
            return
        if site_is_subsample(msg) or msg["infer"].get("_deterministic"):
            return
        fn = msg["fn"]
        if not isinstance(innermost(fn), (dist.Normal, dist.MultivariateNormal, dist.LowRankMultivariateNormal)):
            raise ContractError(
                f"a temperature multiplies the scale of normal latents, and the model draws {msg['name']!r} from a "
                f"{type(innermost(fn)).__name__}: draw without one"
            )
        msg["value"], msg["done"] = fn.mean + self.temperature * (fn() - fn.mean), True


def _mean(fn: Any, name: str) -> Tensor:
    """A distribution's mean.

    Raises:
        ContractError: if the mean is not known, as for a flow, or does not exist, as for names and heavy tails.
    """
    try:
        mean = fn.mean
    except NotImplementedError:
        mean = None
    if mean is None or bool(mean.isnan().any()):
        lacks = "does not know its mean" if mean is None else "has no mean"
        raise ContractError(
            f"the {type(innermost(fn)).__name__} at {name!r} {lacks}: draw instead, with posterior_predictive or "
            f"sample and mean=False"
        )
    return mean


def rows_first(site: Any, value: Tensor) -> Tensor:
    """A site's value with the plate ``"data"``, the last of its batch dimensions, before all others.

    Dimensions of size 1 that belong to none of its plates are removed: a program leaves them free for the plates of
    other sites, so a row of shape (3,) next to a plate of words has the shape ``(1, N, 3)``.
    """
    if not is_local(site):
        return value
    event_dim = site["fn"].event_dim
    plates = {frame.dim for frame in vectorised_frames(site)}
    spare = [
        dim - event_dim
        for dim in range(event_dim - value.dim(), 0)
        if dim not in plates and value.shape[dim - event_dim] == 1
    ]
    value = value.squeeze(spare)
    return value.movedim(value.dim() - 1 - event_dim, 0)


def posterior_latents(
    model: Program, guide: Program, batch: Batch, structure: Structure, num_samples: int, *, middle: bool = False
) -> Draws:
    """Draws of every latent given rows: from the guide, and those that the model enumerates from p(k | x, z).

    Args:
        model: The generative program.
        guide: The inference program.
        batch: N rows.
        structure: The sites of the programs.
        num_samples: Draws S.
        middle: Use the middle of each distribution instead of a draw, one site after another, and the most probable
            values of enumerated latents.

    Returns:
        By site ``(S, *plates, N, *event)``; ``(S, *event)`` if it is global.
    """
    # Not with Predictive: it adds a dimension to global sites, which a user's model need not broadcast over.
    program = at_centre(guide) if middle else guide
    drawn: list[Draws] = []
    for _ in range(num_samples):
        sites = sample_sites(poutine.trace(program).get_trace(batch.x, **batch.arguments))
        own = {*structure.auxiliary, *structure.extra}
        latents = {name: site["value"] for name, site in sites.items() if name not in own}
        drawn.append({**latents, **enumerated_latents(model, latents, batch, structure, middle=middle)})
    return {name: torch.stack([latents[name] for latents in drawn]) for name in drawn[0]}


def enumerated_latents(
    model: Program, latents: Draws, batch: Batch, structure: Structure, *, middle: bool = False
) -> Draws:
    """One draw of all latents that the model enumerates, from their posterior given the others."""
    if not structure.enumerated("model"):
        return {}
    gaps = [f"{n.removesuffix('_observed')}_unobserved" for n in structure.observed if n.endswith("_observed")]
    seen = _ForInferDiscrete([name for name in gaps if name not in latents])
    given = poutine.condition(seen(model), latents)  # inside: infer_discrete hides what is outside it
    program = infer_discrete(given, first_available_dim=structure.particle_dim, temperature=0 if middle else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sites = sample_sites(poutine.trace(program).get_trace(batch.x, **batch.arguments))
    drawn = [name for name, site in sites.items() if not site["is_observed"] and not is_unobserved_part(name, sites)]
    return {name: seen.one_hot.get(name, torch.as_tensor)(sites[name]["value"]) for name in drawn}


class _ForInferDiscrete(Messenger):
    """Changes a program so that ``infer_discrete`` handles it correctly.

    One-hot enumerated latents become numbers, because it does not support events. The values that ``obs_mask`` draws in
    place of missing ones, at the sites ``gaps``, must not inform the latents that they are drawn from.
    """

    def __init__(self, gaps: Sequence[str]) -> None:
        super().__init__()
        self.gaps = frozenset(gaps)
        self.one_hot: dict[str, Callable[[Tensor], Tensor]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.gaps:
            msg["mask"] = False
        fn = innermost(msg["fn"])
        if isinstance(fn, dist.OneHotCategorical) and msg["infer"].get("enumerate") == "parallel":
            numbers = torch.eye(fn.event_shape[0], dtype=fn.logits.dtype, device=fn.logits.device)
            self.one_hot[msg["name"]] = lambda value: numbers[value]
            msg["fn"] = dist.Categorical(logits=fn.logits)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.one_hot:  # last, so that only the program sees it
            msg["value"] = self.one_hot[msg["name"]](msg["value"])


def predict_from_latents(
    model: Program,
    latents: Draws,
    batch_size: int,
    *,
    num_samples: int | None = None,
    mean: bool = False,
    arguments: Arguments | None = None,
    sites: Sequence[str] = ("x",),
) -> Draws:
    """Draws observed sites given latents: N rows for each of S values of the latents.

    Args:
        model: The generative program.
        latents: For each latent site its values, ``(S, *plates, N, *event)``, or ``(S, *event)`` if the site is
            global; other sites are drawn by the model.
        batch_size: Number of rows N.
        num_samples: Draws S; by default the number of values, or one without latents.
        mean: Return E[x | z] instead of draws.
        arguments: Keyword arguments of the program.
        sites: Names of the sites to draw.

    Returns:
        By site ``(S, N, *E)`` in the model's units.
    """
    program = _forward_program(model, sites, mean=mean)
    num = num_samples or (len(next(iter(latents.values()))) if latents else 1)
    with evaluating(model):
        drawn = [
            _forward(program, {name: value[i] for name, value in latents.items()}, batch_size, arguments or {}, sites)
            for i in range(num)
        ]
    return {name: torch.stack([values[name] for values in drawn]) for name in sites}


def _forward_program(model: Program, sites: Sequence[str], *, mean: bool) -> Program:
    return _MeanOf(sites)(model) if mean else model


def _forward(program: Program, latents: Draws, batch_size: int, arguments: Arguments, sites: Sequence[str]) -> Draws:
    """One run without data, given some latents: the values of these sites, rows first."""
    trace = forward_trace(poutine.condition(program, latents) if latents else program, batch_size, arguments)
    check_sites(trace.nodes, sites)
    drawn = {name: rows_first(trace.nodes[name], trace.nodes[name]["value"]) for name in sites}
    for name, value in drawn.items():
        if len(value) != batch_size:
            raise ContractError(
                f"the model draws {len(value)} rows at {name!r} where batch_size={batch_size}: size the plate 'data' "
                f"by batch_size"
            )
    return drawn


def remedy(error: Exception) -> str:
    """How to make a model run without data, after it failed to.

    Example:
        >>> remedy(TypeError("model() missing 1 required keyword-only argument: 'cov'"))
        "pass 'cov' along with the rows, in one mapping with 'x'"
    """
    lacking = re.search(r"missing \d+ required keyword-only arguments?: (.+)", str(error))
    if lacking:
        return f"pass {lacking[1]} along with the rows, in one mapping with 'x'"
    return "write it as model(x=None, *, batch_size=None)"


def forward_trace(model: Program, batch_size: int, arguments: Arguments) -> Any:
    """The trace of a run without data.

    Raises:
        ContractError: if the model does not run without data.
    """
    try:
        return poutine.trace(model).get_trace(batch_size=batch_size, **arguments)
    except ContractError as error:
        raise ContractError(str(error).splitlines()[0]) from None  # Pyro adds the shapes of all sites
    except PROGRAM_ERRORS as error:
        raise ContractError(
            f"the model does not run without data, as model(batch_size={batch_size}) with the arguments passed "
            f"({first_line(error)}): {remedy(error)}, give its observations the default None, and pass its other "
            f"arguments with given="
        ) from error


def check_sites(nodes: Mapping[str, Any], sites: Sequence[str]) -> None:
    """Checks that a model has these sites when it runs without data, with a value for each row.

    Args:
        nodes: The nodes of a trace, all or the sample sites.
        sites: Names of sites.

    Raises:
        ValueError: if it does not; the message lists the model's sites.
    """
    found = {name: site for name, site in nodes.items() if site["type"] == "sample"}
    for name in sites:
        if name not in found:
            own = {n: s for n, s in found.items() if not s["infer"].get("_deterministic") and not site_is_subsample(s)}
            hint = "" if name != "x" else "; name those that you want with sites="
            raise ValueError(f"the model has no site {name!r}: its sites are {some(list(own))}{hint}")
        if not is_local(found[name]):
            raise ValueError(f"the site {name!r} is outside the plate 'data': it has no value for each row")


def draw_prior_predictive(
    model: Program,
    num_samples: int,
    *,
    mean: bool = False,
    arguments: Arguments | None = None,
    latents: Callable[[int], Draws] | None = None,
    finish: Finish | None = None,
    shape: tuple[int, int] = (8, 128),
    sites: Sequence[str] = ("x",),
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Any:
    """Draws rows x ~ p(x).

    Args:
        model: The generative program.
        num_samples: Number of rows N.
        mean: Return E[x | z] with z ~ p(z) instead of draws.
        arguments: Keyword arguments of the program, ``num_samples`` rows each if they have rows.
        latents: Returns values of global latents from a guide for a number of runs, ``(runs, *event)`` each.
        finish: Applied to each chunk of ``x``.
        shape: Runs of the program in a chunk and rows in a run. Latents outside the plate ``"data"`` are drawn once
            in each run.
        sites: Names of the sites to draw.
        out: A ``.npy`` file to write the rows to instead; it appears once it is complete.
        progress: Show a progress bar.

    Returns:
        By site ``(N, *E)``; or, with ``out``, the file, memory-mapped and read-only.
    """
    _check_count(num_samples)
    batch = Batch.of(torch.zeros(num_samples, 0), arguments or {})
    with evaluating(model):
        program = _forward_program(model, sites, mean=mean)
        chunks = _prior_chunks(program, num_samples, batch, latents, finish, shape, sites)
        return _collect(chunks, (num_samples,), out, progress=progress)


def _prior_chunks(
    program: Program,
    num_samples: int,
    batch: Batch,
    latents: Callable[[int], Draws] | None,
    finish: Finish | None,
    shape: tuple[int, int],
    sites: Sequence[str],
) -> Chunks:
    most_runs, rows = shape
    start = 0
    while start < num_samples:
        rows = min(rows, num_samples - start)
        runs = min(most_runs, (num_samples - start) // rows)
        shared = latents(runs) if latents else {}
        for i, part in enumerate(batch[start : start + runs * rows].chunks(rows)):
            drawn = _forward(program, {n: v[i] for n, v in shared.items()}, len(part), part.arguments, sites)
            if finish and "x" in drawn:
                drawn["x"] = finish(drawn["x"])  # while it is in the processor's cache
            yield (slice(start, start + len(part)),), drawn
            del drawn  # before the next one is drawn
            start += len(part)


def _collect(chunks: Chunks, leading: tuple[int, ...], out: str | os.PathLike[str] | None, *, progress: bool) -> Any:
    """Collects chunks in one tensor for each site, or in a file."""
    drawn = bar(total=int(np.prod(leading)), disable=not progress, unit="draw", unit_scale=True)
    with drawn:
        if out is not None:
            blocks = ((place, next(iter(chunk.values()))) for place, chunk in _counted(chunks, drawn))
            return files.write_blocks(blocks, leading, Path(out))
        arrays: dict[str, Tensor] = {}
        for place, chunk in _counted(chunks, drawn):
            for name, value in chunk.items():
                if name not in arrays:
                    arrays[name] = value.new_empty(*leading, *value.shape[len(leading) :])
                arrays[name][place] = value
            del chunk, value
        return arrays


def _counted(chunks: Chunks, bar: Any) -> Chunks:
    for place, chunk in chunks:
        yield place, chunk
        del chunk
        bar.update(int(np.prod([where.stop - where.start for where in place])))


def draw_posterior_predictive(
    model: Program,
    guide: Program,
    batches: Iterator[Batch],
    num_rows: int,
    num_samples: int,
    structure: Structure,
    *,
    mean: bool = False,
    finish: Finish | None = None,
    sites: Sequence[str] = ("x",),
    elements: int = 1,
    device: torch.device = _CPU,
    out: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Any:
    """Draws new data like each row: z ~ q(z | x), then x' ~ p(x | z).

    Args:
        model: The generative program.
        guide: The inference program.
        batches: N rows, in parts.
        num_rows: Number of rows N.
        num_samples: Draws S for each row.
        structure: The sites of the programs.
        mean: Return E[x | z] for each draw of z instead.
        finish: Applied to each chunk of draws of ``x``.
        sites: Names of the sites to draw. The keyword arguments that hold their values are not passed to the model.
        elements: Elements of a row, which limit how much is drawn at a time.
        device: The device, whose memory limits it as well.
        out: A ``.npy`` file to write the draws to instead; it appears once it is complete.
        progress: Show a progress bar.

    Returns:
        By site ``(S, N, *E)``; or, with ``out``, the file, memory-mapped and read-only.
    """
    _check_count(num_samples)
    runs, rows = chunk_shape(elements, device=device)
    draws_at_once = min(num_samples, 16, runs * rows)
    rows_at_once = max(1, min(runs * rows, max(rows, 1024)) // draws_at_once)

    def chunks() -> Chunks:
        start = 0
        for whole in batches:
            for part in whole.chunks(rows_at_once):
                stop = start + len(part)
                given = without_sites(part, structure, sites)
                for first in range(0, num_samples, draws_at_once):
                    last = min(first + draws_at_once, num_samples)
                    latents = posterior_latents(model, guide, part, structure, last - first)
                    drawn = predict_from_latents(
                        model, latents, len(part), num_samples=last - first, mean=mean, arguments=given, sites=sites
                    )
                    if finish and "x" in drawn:
                        drawn["x"] = finish(drawn["x"])
                    yield (slice(first, last), slice(start, stop)), drawn
                start = stop

    with evaluating(model, guide):
        return _collect(chunks(), (num_samples, num_rows), out, progress=progress)


def without_sites(batch: Batch, structure: Structure, sites: Sequence[str]) -> dict[str, Any]:
    """Keyword arguments of a run without data that draws these sites, without those that hold their values."""
    held = {structure.observed.get(name) or structure.observed.get(f"{name}_observed") for name in sites}
    left_out = held | {f"{name}_mask" for name in held if name}
    return {name: value for name, value in batch.forward.items() if name not in left_out}


def _check_count(num_samples: int) -> None:
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, found {num_samples}")


def interpolate_latents(a: Tensor, b: Tensor, steps: int, *, path: Literal["linear", "spherical"] = "linear") -> Tensor:
    r"""Points on a path from latents ``a`` to latents ``b``, both ends included.

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
