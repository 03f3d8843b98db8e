"""Second ways of computing what the tools compute: by Pyro alone, with no use of pyro_vae.

Many draws for one row are made by giving the programs that row many times, which needs nothing of them but the plate
``"data"``. Programs are run as they stand: put modules into evaluation mode first (:func:`evaluation_mode`).
"""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from zoo.program import Data

__all__ = [
    "Importance",
    "Sites",
    "elbo_draws",
    "evaluation_mode",
    "gradients",
    "importance",
    "is_discrete",
    "modules_of",
    "plate_scale",
    "repeated",
    "sites_of",
    "taken",
    "trace",
    "unscaled",
]


class _Unscaled(Messenger):
    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def unscaled(program: Callable[..., Any]) -> Callable[..., Any]:
    """The program with each log-probability counted once, whatever scale it puts on its sites."""
    return _Unscaled()(program)


def modules_of(program: Any) -> list[nn.Module]:
    """The modules that a program is, is bound to, or closes over."""
    found: list[nn.Module] = []
    seen: set[int] = set()

    def look(thing: Any) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, nn.Module):
            found.append(thing)
        for name in ("__self__", "func", "__wrapped__"):
            if hasattr(thing, name) and not isinstance(thing, nn.Module):
                look(getattr(thing, name))
        for cell in getattr(thing, "__closure__", None) or ():
            look(cell.cell_contents)
        for value in getattr(thing, "args", None) or () if callable(thing) else ():
            look(value)
        if type(thing).__module__.startswith("zoo.") or isinstance(thing, nn.Module):
            for value in vars(thing).values():
                look(value)

    look(program)
    return found


@contextmanager
def evaluation_mode(*programs: Any) -> Iterator[None]:
    """Runs programs in evaluation mode and without gradients, and puts their modules' modes back."""
    modules = [part for program in programs for module in modules_of(program) for part in module.modules()]
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def taken(program: Callable[..., Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments among the data that a program's signature takes."""
    parameters = inspect.signature(program.forward if isinstance(program, nn.Module) else program).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {name: value for name, value in data.items() if name != "x" and (anything or name in parameters)}


def repeated(data: Mapping[str, Any], row: int, num: int) -> Data:
    """The data with one row, ``num`` times."""
    return {
        name: value[row : row + 1].expand(num, *value.shape[1:]).contiguous()
        if isinstance(value, Tensor) and value.dim()
        else value
        for name, value in data.items()
    }


def trace(program: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A program's trace without the sites of plates."""
    return prune_subsample_sites(poutine.trace(program).get_trace(*args, **kwargs))


@dataclass(frozen=True)
class Sites:
    """What the two programs sample.

    Args:
        latent: Latent sites of the model, in their order.
        shared: Those of them outside of the plate ``"data"``.
        enumerated: Those of either program that are summed out.
        discrete: Latent sites that take countably many values.
        auxiliary: Sites that the guide observes, factors among them.
        point: Latent sites at which the guide sets a point.
        depth: Nested plates at most.
    """

    latent: tuple[str, ...]
    shared: tuple[str, ...]
    enumerated: tuple[str, ...]
    discrete: tuple[str, ...]
    auxiliary: tuple[str, ...]
    point: tuple[str, ...]
    depth: int


def sites_of(model: Callable[..., Any], guide: Callable[..., Any], data: Data) -> Sites:
    """Looks at the sites of two programs."""
    with evaluation_mode(model, guide):
        guide_trace = trace(guide, data["x"], **taken(guide, data))
        model_trace = trace(poutine.replay(model, trace=guide_trace), data["x"], **taken(model, data))
    latent = {
        name: site
        for name, site in model_trace.nodes.items()
        if site["type"] == "sample" and not site["is_observed"] and not isinstance(site["fn"], dist.Delta)
    }
    both = [*model_trace.nodes.items(), *guide_trace.nodes.items()]
    in_plate = {name for name, site in latent.items() if any(f.name == "data" for f in site["cond_indep_stack"])}
    return Sites(
        latent=tuple(latent),
        shared=tuple(name for name in latent if name not in in_plate),
        enumerated=tuple(
            {name: 0 for name, s in both if s["type"] == "sample" and s["infer"].get("enumerate") == "parallel"}
        ),
        discrete=tuple(name for name, site in latent.items() if is_discrete(site["fn"])),
        auxiliary=tuple(n for n, s in guide_trace.nodes.items() if s["type"] == "sample" and s["is_observed"]),
        point=_points(guide_trace),
        depth=max(-frame.dim for _, s in both if s["type"] == "sample" for frame in s["cond_indep_stack"]),
    )


def _points(guide_trace: Any) -> tuple[str, ...]:
    """Sites at which the guide sets a point; Pyro's autoguides do so too, but at the image of an auxiliary draw."""
    drawn = {n: s for n, s in guide_trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}
    if any(site["infer"].get("is_auxiliary") for site in drawn.values()):
        return ()
    return tuple(name for name, site in drawn.items() if isinstance(_inner(site["fn"]), dist.Delta))


def _inner(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.Delta):
        fn = fn.base_dist
    return fn


def is_discrete(fn: Any) -> bool:
    """Whether a distribution takes countably many values."""
    try:
        return fn.support.is_discrete
    except NotImplementedError:  # as of zuko's distributions
        return False


def elbo_draws(model: Any, guide: Any, data: Data, num: int) -> Tensor:
    """``num`` estimates of the ELBO of all rows together, in nats a row, by Pyro's own objective at unit scale.

    Sites that the guide observes are left out.
    """
    sites = sites_of(model, guide, data)
    kwargs = {name: value for name, value in data.items() if name != "x"}
    objective = TraceEnum_ELBO if sites.enumerated else Trace_ELBO
    elbo = objective(max_plate_nesting=sites.depth)
    hidden = poutine.block(guide, hide=list(sites.auxiliary)) if sites.auxiliary else guide

    def only(program: Any, signature: Any) -> Any:
        return lambda x, **every: program(x, **taken(signature, every))

    with evaluation_mode(model, guide):
        values = [
            -elbo.loss(unscaled(only(model, model)), unscaled(only(hidden, guide)), data["x"], **kwargs)
            for _ in range(num)
        ]
    return torch.tensor(values, dtype=torch.float64) / len(data["x"])


@dataclass(frozen=True)
class Importance:
    """What weighted draws say of one row.

    Args:
        log_evidence: log p(x), with its ``standard_error``.
        mean: Posterior mean of each latent site; with ``sd``, its standard deviation, and ``error``, that of the mean.
        ess: Effective number of draws.
    """

    log_evidence: float
    standard_error: float
    mean: dict[str, Tensor]
    sd: dict[str, Tensor]
    error: dict[str, Tensor]
    ess: float


def importance(model: Any, guide: Any | None, data: Data, row: int, num: int = 50_000) -> Importance:
    """Weights draws from the guide, or from the prior if there is no guide, for one row."""
    many = repeated(data, row, num)
    total = torch.zeros(num, dtype=torch.float64)
    with evaluation_mode(model, guide):
        program = unscaled(model)
        if guide is not None:
            guide_trace = trace(unscaled(guide), many["x"], **taken(guide, data=many))
            program = poutine.replay(program, trace=guide_trace)
            total = total - _summed(guide_trace, num, observed=False)
        model_trace = trace(program, many["x"], **taken(model, many))
        only_observed = guide is None
        total = total + _summed(model_trace, num, observed=True)
        if not only_observed:
            drawn = set(guide_trace.nodes)  # what the guide leaves to the model is drawn from it, and cancels
            total = total + _summed(model_trace, num, observed=False, only=drawn)
    log_evidence = total.logsumexp(0) - math.log(num)
    ratios = (total - log_evidence).exp()
    weights = ratios / ratios.sum()
    mean, sd, error = {}, {}, {}
    for name, site in model_trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and site["value"].shape[:1] == (num,):
            value = site["value"].double()
            wide = weights.reshape(-1, *[1] * (value.dim() - 1))
            mean[name] = (wide * value).sum(0)
            centred = value - mean[name]
            sd[name] = (wide * centred.square()).sum(0).sqrt()
            error[name] = (wide.square() * centred.square()).sum(0).sqrt()
    return Importance(
        float(log_evidence), float(ratios.std() / math.sqrt(num)), mean, sd, error, float(1 / weights.square().sum())
    )


def _summed(traced: Any, rows: int, *, observed: bool, only: set[str] | None = None) -> Tensor:
    """The log-probability of a trace's sites for each row."""
    traced.compute_log_prob()
    total = torch.zeros(rows, dtype=torch.float64)
    for name, site in traced.nodes.items():
        if site["type"] == "sample" and site["is_observed"] is observed and (only is None or name in only):
            value = site["log_prob"].double()
            if not any(frame.name == "data" for frame in site["cond_indep_stack"]):
                raise ValueError(f"{name} lies outside of the plate 'data'")
            total = total + value.reshape(-1, value.shape[-1]).sum(0)
    return total


def gradients(model: Any, guide: Any, data: Data, parameters: Sequence[Tensor], num: int) -> Tensor:
    """``num`` gradients of Pyro's own loss a row, ``(num, parameters)``, in training mode and scaled as it is.

    What the guide observes is maximised beside the ELBO, as the library does, and not subtracted from it; factors of
    the guide keep Pyro's sign.
    """
    sites = sites_of(model, guide, data)
    for program in (model, guide):
        for module in modules_of(program):
            module.train()
    objective = (TraceEnum_ELBO if sites.enumerated else Trace_ELBO)(max_plate_nesting=sites.depth)
    kwargs = {name: value for name, value in data.items() if name != "x"}
    hidden = poutine.block(guide, hide=list(sites.auxiliary)) if sites.auxiliary else guide
    found = []
    for _ in range(num):
        loss = objective.differentiable_loss(
            lambda x, **every: model(x, **taken(model, every)),
            lambda x, **every: hidden(x, **taken(guide, every)),
            data["x"],
            **kwargs,
        )
        if sites.auxiliary:
            traced = trace(guide, data["x"], **taken(guide, data))
            traced.compute_log_prob()
            for name in sites.auxiliary:
                site = traced.nodes[name]
                sign = -1.0 if isinstance(site["fn"], dist.Unit) else 1.0
                loss = loss - sign * site["log_prob"].sum()
        parts = torch.autograd.grad(loss / len(data["x"]), list(parameters), allow_unused=True)
        grads = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, parameters, strict=True)]
        found.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return torch.stack(found).detach()


def plate_scale(model: Any, data: Data) -> float:
    """By how much the plate ``"data"`` counts up the rows that it is given."""
    with evaluation_mode(model):
        site = trace(model, data["x"], **taken(model, data)).nodes["x"]
    (frame,) = (frame for frame in site["cond_indep_stack"] if frame.name == "data")
    return 1.0 if frame.full_size is None else frame.full_size / frame.size
