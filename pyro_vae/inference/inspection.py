"""The inspection of a pair of programs that every tool makes before it runs them.

:func:`inspect_pair` runs the programs on a few rows, checks the contract clause by clause, and returns their
:class:`~pyro_vae.inference.structure.Structure`.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_vae._support.indices import checked_indices
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import (
    PROGRAM_ERRORS,
    ContractError,
    Fixed,
    Latent,
    Structure,
    first_line,
    is_discrete,
    is_local,
    is_point,
    is_unobserved_part,
    sample_sites,
    some,
    vectorised_frames,
)
from pyro_vae.programs.arguments import accepted
from pyro_vae.programs.running import evaluating

__all__ = ["LOOKED_AT", "inspect_pair"]

LOOKED_AT = 256  # rows to inspect first: the number of steps may depend on the rows
_IN_PLATE = "Shape mismatch inside plate"  # in Pyro's words

Program = Callable[..., Any]


def inspect_pair(model: Program, guide: Program, batch: Batch, *, count_bytes: bool = False) -> Structure:
    """Inspects a pair of programs on a few rows.

    Args:
        model: The generative program.
        guide: The inference program.
        batch: Rows. All are run once, a few of them several times.
        count_bytes: Measure how much memory a draw takes.

    Returns:
        Their structure. The random state is left to the caller; modes and parameters are unchanged.

    Raises:
        ContractError: if the programs break the contract; the message names the clause in one sentence.
    """
    few = batch[torch.arange(3, device=batch.x.device) % len(batch)]
    # Programs need not support everything that is tried here.
    with evaluating(model, guide), _passing_parameters(), checked_indices(batch.x.device):
        # All rows, if there are more: the number of steps in a sequence may depend on them.
        whole = batch if len(batch) > len(few) else few
        with _passing_parameters():
            guide_trace, model_trace = _traces(model, guide, whole)
        structure = _structure(model_trace, guide_trace, model, guide, whole)
        _check_parameters(model, guide, few)
        _check_enumeration(structure, model, guide, few)
        structure = _vectorisation(structure, model, guide, few)
        if count_bytes:
            structure = replace(structure, bytes_per_draw=_bytes_per_draw(structure, model, guide, few))
    return structure


@contextmanager
def _passing_parameters() -> Iterator[None]:
    """Discards what programs put into Pyro's parameter store, so that an inspection leaves nothing behind."""
    store = pyro.get_param_store()
    with store.scope(store.get_state()):
        yield


def _traces(model: Program, guide: Program, batch: Batch) -> tuple[Any, Any]:
    guide_trace = _traced(guide, "guide", batch)
    sites = sample_sites(guide_trace)
    _check_autoguide(guide, [name for name, s in sites.items() if is_local(s) and not s["infer"].get("is_auxiliary")])
    return guide_trace, _traced(poutine.replay(model, trace=guide_trace), "model", batch)


def _traced(program: Program, which: str, batch: Batch) -> Any:
    try:
        return poutine.trace(program).get_trace(batch.x, **batch.arguments)
    except TypeError as error:
        if "argument" not in str(error):
            raise _failed(which, batch, error) from error
        raise ContractError(
            f"the {which} does not take the contract's arguments, rows and {_listed(batch.arguments)}: {error}"
        ) from error
    except PROGRAM_ERRORS as error:
        raise _failed(which, batch, error) from error


def _failed(which: str, batch: Batch, error: Exception) -> ContractError:
    if isinstance(error, ContractError):
        return ContractError(first_line(error))
    why = first_line(error)
    hint = "; dimensions that belong to one row are declared by .to_event()" if _IN_PLATE in why else ""
    return ContractError(
        f"the {which} fails on {len(batch)} rows of {batch.x.dtype}, and must run on any number of them: {why}{hint}"
    )


def _check_parameters(model: Program, guide: Program, few: Batch) -> None:
    """Raises an error for parameters with an entry for each row, which would belong to other rows in every batch.

    A parameter that was already in Pyro's store has the shape it was created with; then the program itself fails.
    """
    shapes = []
    for rows in (len(few), len(few) - 1):
        with _passing_parameters():
            traces = _traces(model, guide, few[:rows])
        for which, trace in zip(("guide", "model"), traces, strict=True):
            _check_plates(which, sample_sites(trace), rows)
        nodes = {name: node for trace in traces for name, node in trace.nodes.items() if node["type"] == "param"}
        shapes.append({name: tuple(node["value"].shape) for name, node in nodes.items()})
    for name, shape in shapes[0].items():
        if shapes[1].get(name, shape) != shape:
            raise ContractError(
                f"the parameter {name!r} has an entry for each row, shape {shape} for {len(few)} of them, and so fits "
                f"the rows of one batch only: compute it from x, for example with a network"
            )


def _check_enumeration(structure: Structure, model: Program, guide: Program, batch: Batch) -> None:
    """Runs both programs with the guide's enumeration, as training does.

    Raises an error for a latent that comes before others in the guide, and after them in the model.
    """
    if not structure.enumerated("guide"):
        return
    try:
        run_pair(model, guide, batch, structure)
    except PROGRAM_ERRORS as error:
        names = ", ".join(structure.enumerated("guide"))
        if "Enumeration dim conflict" not in str(error):
            raise _failed("pair", batch, error) from error
        raise ContractError(
            f"the guide enumerates {names} and draws latents that depend on it, while in the model it depends on them: "
            f"let both programs sample latents in the same order, or draw it without "
            f"infer={{'enumerate': 'parallel'}}"
        ) from error


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return f"the keyword arguments {', '.join(names)}" if names else "no keyword arguments"


def _structure(model_trace: Any, guide_trace: Any, program: Program, guide: Program, batch: Batch) -> Structure:
    model, guided = sample_sites(model_trace), sample_sites(guide_trace)
    for which, sites in (("model", model), ("guide", guided)):
        _check_plates(which, sites, len(batch))
    if not any(site["is_observed"] for site in model.values()):
        raise ContractError("the model observes nothing when run on rows: pass obs=x at the site 'x'")
    latents: dict[str, Latent] = {}
    taken = accepted(getattr(program, "__wrapped__", program)) or set()
    for name, site in model.items():
        if site["is_observed"] or (name not in guided and is_unobserved_part(name, model)):
            continue
        latents[name] = _latent(name, site, guided.get(name), is_argument=name in taken)
    for name in guided.keys() & model.keys():
        if model[name]["is_observed"] and not guided[name]["is_observed"]:
            raise ContractError(f"the guide samples {name!r}, which the model observes: let the guide observe it too")
    auxiliary = [name for name, site in guided.items() if site["is_observed"]]
    extra = [name for name, site in guided.items() if name not in latents and not site["is_observed"]]
    for name in extra:
        if not guided[name]["infer"].get("is_auxiliary"):
            raise ContractError(
                f"the guide samples {name!r}, which is not a latent of the model: its latents are "
                f"{', '.join(latents) or 'none'}"
            )
    depths = [-(frame.dim or 0) for s in (*model.values(), *guided.values()) for frame in vectorised_frames(s)]
    observed = {name: _argument(site, name, batch) for name, site in model.items() if site["is_observed"]}
    subsampled = {
        frame.name: None
        for site in (*model.values(), *guided.values())
        for frame in site["cond_indep_stack"]
        if frame.name != "data" and frame.full_size is not None and frame.size < frame.full_size
    }
    points = tuple(name for name in latents if name in guided and is_point(guided[name]["fn"]))
    return Structure(
        latents, observed, tuple(auxiliary), tuple(extra), tuple(subsampled), max(depths, default=1), points=points
    )


def _check_autoguide(guide: Program, local: list[str]) -> None:
    unwrapped = getattr(guide, "__wrapped__", guide)
    if isinstance(unwrapped, AutoGuide) and local:
        raise ContractError(
            f"the guide is an {type(unwrapped).__name__}, which has separate parameters for each row of "
            f"{local[0]!r}, and so fits the rows of one batch only: write a guide that reads x, or use the autoguide "
            f"for global latents"
        )


def _latent(name: str, site: Any, in_guide: Any, *, is_argument: bool) -> Latent:
    by_model = in_guide is None and site["infer"].get("enumerate") == "parallel"
    if in_guide is None and not by_model:
        given = f"; or pass {name}, which the model takes, with the rows" if is_argument else ""
        raise ContractError(
            f"the guide does not sample the model's latent {name!r}: it must sample every one except those that "
            f"the model enumerates (infer={{'enumerate': 'parallel'}}){given}"
        )
    by_guide = in_guide is not None and in_guide["infer"].get("enumerate") == "parallel"
    if (by_model or by_guide) and site["infer"].get("num_samples"):
        raise ContractError(
            f"the latent {name!r} is enumerated by samples (num_samples), which only TraceTMC_ELBO supports: enumerate "
            f"all of its values, or draw it"
        )
    fn = site["fn"] if in_guide is None else in_guide["fn"]
    plates = tuple(frame.name for frame in vectorised_frames(site) if frame.name != "data")
    if by_model and not is_local(site):
        raise ContractError(
            f"the enumerated latent {name!r} lies outside the plate 'data' and belongs to all rows, which ties them "
            f"together: give it a site in the guide, or put it into the plate"
        )
    if by_guide and (plates or not is_local(site)):
        raise ContractError(
            f"the guide enumerates {name!r}, which is not in the plate 'data' alone: enumerate it in the model, or "
            f"draw it without infer={{'enumerate': 'parallel'}}"
        )
    enumerated: Any = "model" if by_model else "guide" if by_guide else None
    if in_guide is not None and is_local(site) != is_local(in_guide):
        raise ContractError(f"the latent {name!r} is in the plate 'data' in one program and outside of it in the other")
    discrete = is_discrete(fn) or is_discrete(site["fn"])  # a point in the guide does not tell the support
    return Latent(name, is_local(site), enumerated, discrete, bool(fn.has_rsample), fn.event_dim, plates)


def _check_plates(which: str, sites: Mapping[str, Any], rows: int) -> None:
    for name, site in sites.items():
        for frame in site["cond_indep_stack"]:
            if frame.name != "data":
                continue
            if not frame.vectorized or frame.dim != -1:
                at = f"at dim {frame.dim}" if frame.vectorized else "a loop"
                raise ContractError(
                    f"the {which}'s plate 'data' is {at}, around {name!r}; it must be at dim -1, and other plates left "
                    f"of it: pyro.plate('data', len(x), dim=-1)"
                )
            if frame.size != rows:
                raise ContractError(
                    f"the {which}'s plate 'data' has {frame.size} elements where there are {rows} rows: size it by "
                    f"len(x)"
                )
    if which == "model" and not any(is_local(s) for s in sites.values() if s["is_observed"]):
        observed = [name for name, site in sites.items() if site["is_observed"]]
        if observed:
            raise ContractError(
                f"the model observes {some(observed)} outside of a plate named 'data': put every site of a row "
                f"into pyro.plate('data', len(x), dim=-1)"
            )


def _argument(site: Any, name: str, batch: Batch) -> str | None:
    """The keyword argument that holds an observed site's value; ``"x"`` for the rows."""
    named = {"x": batch.x, **batch.arguments}
    for key, value in named.items():
        if value is site["value"]:
            return key
    value = site["value"]
    stem = name.removesuffix("_observed")
    for key in (name, stem):
        other = named.get(key)
        if isinstance(other, Tensor) and (other.shape == value.shape or other.numel() == value.numel()):
            return key
    for key, other in named.items():
        if isinstance(other, Tensor) and other.shape == value.shape and torch.equal(other.to(value.dtype), value):
            return key
    return None


def _vectorisation(structure: Structure, model: Program, guide: Program, batch: Batch) -> Structure:
    """Compares a run for several draws with single runs at the same latents.

    Programs that mix up draws and rows need not fail, but their numbers differ.
    """
    draws = 2
    try:
        alone = [run_pair(model, guide, batch, structure, enumerate_guide=False) for _ in range(draws)]
    except PROGRAM_ERRORS as error:
        raise _failed("pair", batch, error) from error
    try:
        together = {
            name: _stacked([run.latents[name] for run in alone], structure, alone[0].event_dims[name])
            for name in alone[0].latents
        }
        with Fixed(together), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = run_pair(model, guide, batch, structure, num_particles=draws, enumerate_guide=False)
        for what in ("log_likelihood", "log_prior", "log_guide", "auxiliary"):
            for name, found in getattr(both, what).items():
                expected = torch.cat([getattr(run, what)[name] for run in alone])
                rtol, atol = (1e-6, 1e-6) if found.dtype == torch.float64 else (1e-4, 1e-3)
                if not torch.allclose(found, expected, rtol=rtol, atol=atol, equal_nan=True):
                    raise ContractError(f"log-probabilities at {name!r} differ from those at one draw at a time")
        if structure.enumerated("guide"):
            run_pair(model, guide, batch, structure, num_particles=draws)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError, AssertionError) as error:
        return replace(structure, vectorised=False, reason=first_line(error))
    return structure


def _stacked(values: list[Tensor], structure: Structure, event_dim: int) -> Tensor:
    """The draws stacked along the dimension of the plate of draws."""
    ones = (1,) * (structure.nesting - (values[0].dim() - event_dim))
    return torch.stack([value.reshape(*ones, *value.shape) for value in values])


def _bytes_per_draw(structure: Structure, model: Program, guide: Program, batch: Batch) -> int:
    draws = 16 if structure.vectorised else None
    with _CountBytes() as count:
        run_pair(model, guide, batch, structure, num_particles=draws)
    return max(1, math.ceil(count.total / ((draws or 1) * len(batch))))


class _CountBytes(TorchDispatchMode):
    """Adds up the memory of all results of operations, without views."""

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
