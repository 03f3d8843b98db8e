"""Draws from Pyro programs: all contact with :class:`pyro.infer.Predictive`.

Every function takes programs, not our classes, and works in the model's units. Data are never passed to the model as
``x``, so they cannot come back as predictions. Draws are made in chunks, each brought to the user's units by ``finish``
and written into the array that is returned: memory beyond it does not grow with their number.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from pyro import poutine
from pyro.infer import Predictive
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vae.programs import evaluating

__all__ = [
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
    chunk_size: int = 1024,
) -> Tensor:
    """Draws rows x ~ p(x).

    Args:
        model: The generative program.
        num_samples: Number of rows N.
        mean: Return E[x | z] with z ~ p(z) instead of draws.
        context: Keyword arguments of the program, ``num_samples`` rows each.
        finish: Applied to each chunk of rows.
        chunk_size: Rows drawn at a time.

    Returns:
        ``(N, *E)``.
    """
    predictive = Predictive(_forward_program(model, mean=mean), num_samples=1, return_sites=("x",))
    _check_count(num_samples)
    out: Any = None
    with evaluating(model):
        for start in range(0, num_samples, chunk_size):
            stop = min(start + chunk_size, num_samples)
            chunk = predictive(batch_size=stop - start, **rows_of(context or {}, start, stop))["x"][0]
            chunk = finish(chunk) if finish else chunk
            if out is None:
                out = chunk.new_empty(num_samples, *chunk.shape[1:])
            out[start:stop] = chunk
    return out


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
) -> Tensor:
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

    Returns:
        ``(S, N, *E)``.
    """
    _check_count(num_samples)
    out: Any = None
    draws_at_once = min(num_samples, 16)
    rows_at_once = max(1, chunk_size // draws_at_once)
    with evaluating(model, guide):
        for start in range(0, len(x), rows_at_once):
            stop = min(start + rows_at_once, len(x))
            here = rows_of(context or {}, start, stop)
            for first in range(0, num_samples, draws_at_once):
                last = min(first + draws_at_once, num_samples)
                latents = _draw_latents(guide, x[start:stop], last - first, here)
                chunk = predict_from_latents(model, latents, stop - start, mean=mean, context=here)
                chunk = finish(chunk) if finish else chunk
                if out is None:
                    out = chunk.new_empty(num_samples, len(x), *chunk.shape[2:])
                out[first:last, start:stop] = chunk
    return out


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
