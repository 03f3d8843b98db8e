r"""Densities of a pair row by row: :math:`\log p(x, z)` and :math:`\log q(z \mid x)`, for many z of each row at once.

:class:`RowPrograms` runs the two programs for several draws of each row and adds up their log-probabilities as they
are, whatever scale the programs put on them.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae.inference.predictive import rows_of
from pyro_vae.pair import Pair
from pyro_vae.programs import evaluating

__all__ = [
    "Fixed",
    "RowPrograms",
    "latent_sites",
    "log_weights",
    "row_log_prob",
    "row_programs",
    "sum_to_rows",
    "unscaled",
]

_PARTICLES = "particles"  # the plate of the draws
_PROBE = (2, 3)  # draws and rows of the runs that look at the programs


@dataclass(frozen=True)
class RowPrograms:
    """A model and a guide whose latents belong to rows, run for K draws of each of N rows.

    Made by :func:`row_programs`, which looks at the programs first.

    Args:
        model: The generative program.
        guide: The inference program.
        particle_dim: Dimension of the plate of draws, left of all plates of the programs.
        vectorised: Whether the programs can run under that plate; else they are run once for each draw.
        bytes_per_draw: Memory that one draw for one row takes, from above: all that a run makes, as if nothing were
            freed before its end.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    particle_dim: int = -2
    vectorised: bool = True
    bytes_per_draw: int = 0

    def log_weights(self, x: Tensor, context: Mapping[str, Any], num_particles: int) -> Tensor:
        r"""Log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` at draws :math:`z_k` of the guide: ``(K, N)``.

        Args:
            x: Rows ``(N, *E)`` in the model's units.
            context: Keyword arguments of both programs, rows first.
            num_particles: Draws K for each row.
        """
        if not self.vectorised:
            return torch.cat([self._log_weights(x, context, None) for _ in range(num_particles)])
        return self._log_weights(x, context, num_particles)

    def _log_weights(self, x: Tensor, context: Mapping[str, Any], num_particles: int | None) -> Tensor:
        guide_trace = self.trace(self.guide, num_particles, x, context)
        model_trace = self.trace(poutine.replay(self.model, trace=guide_trace), num_particles, x, context)
        shape = (num_particles or 1, len(x))
        return row_log_prob(model_trace, shape, "model") - row_log_prob(guide_trace, shape, "guide")

    def trace(self, program: Any, num_particles: int | None, x: Tensor, context: Mapping[str, Any]) -> Any:
        """A program's trace under the plate of K draws, or without such a plate where K is None."""
        if num_particles is None:
            return poutine.trace(program).get_trace(x, **context)
        with pyro.plate(_PARTICLES, num_particles, dim=self.particle_dim):
            return poutine.trace(program).get_trace(x, **context)


def row_log_prob(trace: Any, shape: tuple[int, int], which: str = "model") -> Tensor:
    """The log-probability of a trace's sites in the plate ``"data"``, ``(K, N)``: masked, but never scaled.

    The guide's observed sites are no draws, and have no say.
    """
    total: Tensor | None = None
    for site in _local_sites(trace):
        if which == "guide" and site["is_observed"]:
            continue
        values = scale_and_mask(site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"]), 1.0, site["mask"])
        values = sum_to_rows(values, shape)
        total = values if total is None else total + values
    if total is None:
        raise ValueError(f"the {which} has no sites in the plate 'data'")
    return total.expand(shape)


def sum_to_rows(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Sums a site's ``(K, *plates, N)`` over its other plates; ``(*plates, N)`` where there is no plate of draws."""
    if shape[0] == 1 and values.dim() > 1:
        return values.sum(tuple(range(values.dim() - 1)))
    return values.sum(tuple(range(1, values.dim() - 1))) if values.dim() > 2 else values


def _local_sites(trace: Any) -> Iterator[Any]:
    for site in prune_subsample_sites(trace).nodes.values():
        if site["type"] == "sample" and _is_local(site):
            yield site


def _is_local(site: Any) -> bool:
    return any(frame.name == "data" for frame in site["cond_indep_stack"])


def latent_sites(trace: Any) -> dict[str, Any]:
    """The sites that a program draws, by name."""
    nodes = prune_subsample_sites(trace).nodes
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not site["is_observed"]}


def row_programs(pair: Pair, x: Tensor, context: Mapping[str, Any]) -> RowPrograms:
    """Looks at a pair's programs on a few rows: what they sample, whether they can run for many draws at once.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the model's units.
        context: Keyword arguments of both programs, rows first.

    Raises:
        ValueError: if a latent lies outside the plate ``"data"``, the guide and the model do not sample the same
            latents, or a plate takes only some of its elements.

    Warns:
        UserWarning: if the programs must be run once for each draw, with the reason.
    """
    draws, rows = _PROBE
    index = torch.arange(rows, device=x.device) % len(x)
    x, context = x[index], {name: value[index] for name, value in context.items()}
    model, guide = pair.model, pair.guide
    with evaluating(model, guide):
        guide_traces = [poutine.trace(guide).get_trace(x, **context) for _ in range(draws)]
        _check_latents(poutine.trace(model).get_trace(x, **context), guide_traces[0])
        model_traces = [poutine.trace(poutine.replay(model, trace=t)).get_trace(x, **context) for t in guide_traces]
        for trace in (model_traces[0], guide_traces[0]):
            _check_plates(trace, rows)
        depth = max(
            -frame.dim for t in (model_traces[0], guide_traces[0]) for s in _local_sites(t) for frame in _frames(s)
        )
        programs = RowPrograms(model, guide, -1 - depth)
        try:
            _check_vectorised(programs, model_traces, guide_traces, x, context)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            warnings.warn(
                f"the programs cannot run for several draws at once, so they are run for one after another, which is "
                f"slower: their networks must take latents with further dimensions on the left ({reason})",
                stacklevel=3,
            )
            programs = RowPrograms(model, guide, vectorised=False)
        with _CountBytes() as count:
            programs.log_weights(x, context, 16)
    return RowPrograms(model, guide, programs.particle_dim, programs.vectorised, max(1, count.total // (16 * rows)))


def log_weights(pair: Pair, x: Tensor, context: Mapping[str, Any], num_particles: int) -> Tensor:
    r"""Log-weights :math:`\log p(x, z_k) - \log q(z_k \mid x)` at draws of the guide, ``(K, N)`` in float64.

    Args:
        pair: The programs.
        x: Rows ``(N, *E)`` in the model's units.
        context: Keyword arguments of both programs, rows first.
        num_particles: Draws K for each row.
    """
    parts = []
    with evaluating(pair.model, pair.guide):
        programs = row_programs(pair, x, context)
        at_once = max(1, 2**26 // (programs.bytes_per_draw * num_particles))
        for start in range(0, len(x), at_once):
            here = rows_of(context, start, start + at_once)
            parts.append(programs.log_weights(x[start : start + at_once], here, num_particles).double())
    return torch.cat(parts, dim=1)


class _Unscaled(Messenger):
    """Takes back what ``poutine.scale`` and plates did to the scale of a program's sites."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def unscaled(program: Any) -> Any:
    """The program with every log-probability counted once, whatever scale it puts on its sites."""
    return _Unscaled()(program)


def _frames(site: Any) -> list[Any]:
    return [frame for frame in site["cond_indep_stack"] if frame.vectorized]


def _check_latents(model_trace: Any, guide_trace: Any) -> None:
    in_model, in_guide = latent_sites(model_trace), latent_sites(guide_trace)
    for name, site in {**in_model, **in_guide}.items():
        if not _is_local(site):
            raise ValueError(
                f"the latent {name!r} lies outside the plate 'data' and belongs to all rows, so that no row has an "
                f"evidence of its own: fix it in both programs with pyro.condition(program, {{{name!r}: value}})"
            )
    if missing := [name for name in in_model if name not in in_guide]:
        raise ValueError(f"the guide does not sample the model's latent {missing[0]!r}: it must sample every one")
    extra = [n for n, site in in_guide.items() if n not in in_model and not site["infer"].get("is_auxiliary")]
    if extra:
        raise ValueError(
            f"the guide samples {extra[0]!r}, which is no latent of the model: "
            f"its latents are {', '.join(in_model) or 'none'}"
        )


def _check_plates(trace: Any, rows: int) -> None:
    for site in _local_sites(trace):
        for frame in site["cond_indep_stack"]:
            if frame.name == "data":
                if frame.size != rows:
                    raise ValueError(
                        f"the plate 'data' has {frame.size} elements where there are {rows} rows: size it by len(x)"
                    )
            elif frame.full_size is not None and frame.size < frame.full_size:
                raise ValueError(
                    f"the plate {frame.name!r} takes {frame.size} of its {frame.full_size} elements: "
                    f"the evidence of a row needs them all, so run the programs without subsampling"
                )


def _check_vectorised(
    programs: RowPrograms, model_traces: list[Any], guide_traces: list[Any], x: Tensor, context: Mapping[str, Any]
) -> None:
    """Holds a run for several draws against runs one by one, at the same latents.

    Programs that mix up draws and rows need not fail: their numbers tell.
    """
    draws, rows = len(guide_traces), len(x)
    together: dict[str, Tensor] = {}
    for name, site in latent_sites(guide_traces[0]).items():
        values = torch.stack([trace.nodes[name]["value"] for trace in guide_traces])
        event_dim = site["fn"].event_dim
        batch_shape, event_shape = (
            site["value"].shape[: site["value"].dim() - event_dim],
            values.shape[values.dim() - event_dim :],
        )
        ones = (1,) * (-programs.particle_dim - 1 - len(batch_shape))
        together[name] = values.reshape(draws, *ones, *batch_shape, *event_shape)
    for which, program, traces in (("model", programs.model, model_traces), ("guide", programs.guide, guide_traces)):
        with Fixed(together):
            trace = programs.trace(program, draws, x, context)
        found = row_log_prob(trace, (draws, rows), which)
        expected = torch.cat([row_log_prob(trace, (1, rows), which) for trace in traces])
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ValueError(f"the {which}'s log-probabilities differ from those at one draw at a time")


class Fixed(Messenger):
    """Gives latent sites these values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class _CountBytes(TorchDispatchMode):
    """Adds up the memory of all that operations make, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs or {}))}
        self.total += sum(
            t.untyped_storage().nbytes() for t in _tensors(result) if t.untyped_storage().data_ptr() not in known
        )
        return result


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        yield from _tensors(tree.values())
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for branch in tree:
            yield from _tensors(branch)
