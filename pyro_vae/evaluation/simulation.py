"""Rows drawn from a model, with all observed sites and the latents that made them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae._support.ranges import elementwise, inner_value
from pyro_vae.inference.batch import Batch
from pyro_vae.inference.inspection import LOOKED_AT
from pyro_vae.inference.predictive import check_sites, forward_trace, rows_first, without_sites
from pyro_vae.inference.structure import ContractError, Structure, is_local, sample_sites
from pyro_vae.pair import Pair
from pyro_vae.programs.arguments import accepted
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["Simulated", "Simulator", "check_forward", "given_rows", "prior_globals"]


@dataclass(frozen=True)
class Simulated:
    """Rows drawn from a model.

    Args:
        batch: The rows for the guide: each observed site's draw is in the keyword argument that holds its value.
        latents: Values of every latent that made them, in the sites' own shapes.
        masks: For latents that a mask excludes in some rows, ``(N, *plates)``, true where they count.
    """

    batch: Batch
    latents: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]


class Simulator:
    """Draws rows from a model, with all its observed sites.

    The programs determine which other sites are observed, and by which keyword arguments: a site whose argument is
    among ``given``, or whose value the guide needs because it does not sample it.

    Args:
        pair: The programs.
        given: Keyword arguments to draw rows with; those of observed sites are drawn, and their values ignored.

    Raises:
        ContractError: if the programs break the contract, or the model cannot be simulated.

    Example:
        >>> import pyro
        >>> def model(x=None, *, y=None, batch_size=None):
        ...     with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        ...         pyro.sample("y", dist.Normal(z, 0.5), obs=y)
        ...         return pyro.sample("x", dist.Normal(z, 0.5), obs=x)
        >>> def guide(x, *, y):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(x + y, 1.0))
        >>> simulator = Simulator(Pair(model, guide), given_rows(Pair(model, guide), {}, 3))
        >>> simulator.structure.observed, list(simulator.draw(given_rows(simulator.pair, {}, 3)).latents)
        ({'y': 'y', 'x': 'x'}, ['z'])
    """

    def __init__(self, pair: Pair, given: Batch) -> None:
        self.pair = pair
        few = given[torch.arange(max(3, min(len(given), LOOKED_AT)), device=given.x.device) % len(given)]
        with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
            self.held = self._given_observations(few)  # keyword argument: the observed site that it holds
            self.structure = self._structure(few)

    def draw(self, given: Batch) -> Simulated:
        """As many rows as ``given`` has, from the model alone; gradients and modes are left to the caller."""
        found = self._simulated(self._forward(given), given)
        # A mask among the arguments acts only where there are data.
        program = poutine.condition(self.pair.programs[0], dict(found.latents))
        sites = sample_sites(poutine.trace(program).get_trace(found.batch.x, **found.batch.arguments))
        masks = {name: _mask(sites[name]) for name in found.latents if name in sites}
        return replace(found, masks={name: mask for name, mask in masks.items() if mask is not None})

    def _forward(self, given: Batch) -> dict[str, Any]:
        """The sites of a run without data."""
        arguments = {name: value for name, value in given.forward.items() if name not in self.held}
        sites = _run_forward(self.pair, arguments, len(given))
        for name, site in sites.items():
            if site["is_observed"]:
                what = "a factor" if isinstance(site["fn"], dist.Unit) else "observed"
                raise ContractError(
                    f"the model's site {name!r} is {what} even when it runs without data, so its draws are not from "
                    f"the model that it describes, and nothing can be simulated"
                )
        for argument, name in self.held.items():
            if name not in sites:
                raise ContractError(
                    f"the model has no site {name!r} without the argument {argument!r}, so it cannot be simulated: let "
                    f"it draw {name!r} then, by pyro.sample with obs=None"
                )
        return sites

    def _simulated(self, sites: Mapping[str, Any], given: Batch) -> Simulated:
        drawn = {argument: rows_first(sites[name], sites[name]["value"]) for argument, name in self.held.items()}
        x = rows_first(sites["x"], sites["x"]["value"]).to(self.pair.dtype)
        batch = _with_gaps(self.pair, x, {**given.arguments, **drawn}, sites["x"])
        latents = {name: site["value"] for name, site in sites.items() if name not in ("x", *self.held.values())}
        return Simulated(batch, latents, {})

    def _given_observations(self, few: Batch) -> dict[str, str]:
        """The keyword arguments that hold an observed site's values."""
        found = {}
        for name, site in _run_forward(self.pair, few.forward, len(few)).items():
            if site["is_observed"] and not isinstance(site["fn"], dist.Unit):
                free = {key: value for key, value in few.arguments.items() if key not in found}
                same = [key for key, value in free.items() if value is site["value"]]
                alike = [key for key in (name, name.removesuffix("_observed")) if key in free]
                holds = [key for key in (*same, *alike, *free) if _holds(key, free[key], name, site["value"])]
                found |= dict.fromkeys(holds[:1], name)
        return found

    def _structure(self, few: Batch) -> Structure:
        """The sites of the programs, run on the model's draws."""
        sites = self._forward(few)
        check_sites(sites, ("x",))
        try:
            return self.pair.structure(self._simulated(sites, few).batch)
        except Exception:  # perhaps the guide needs more arguments
            more = self._further_observations(sites, few)
            if not more:
                raise
        self.held |= more
        return self.pair.structure(self._simulated(sites, few).batch)

    def _further_observations(self, sites: Mapping[str, Any], few: Batch) -> dict[str, str]:
        """Further keyword arguments by which the model observes one of the sites that it draws."""
        batch = self._simulated(sites, few).batch
        names = [name for name in sites if name not in ("x", *self.held.values()) and is_local(sites[name])]
        taken = accepted(self.pair.model)
        possible = sorted(set(names) if taken is None else taken - batch.arguments.keys())
        found: dict[str, str] = {}
        for argument in possible:
            near = sorted(names, key=lambda name: name.removesuffix("_observed") != argument)
            for name in near:
                value = rows_first(sites[name], sites[name]["value"])
                if name not in found.values() and self._observes(batch, argument, value, name):
                    found[argument] = name
                    break
        return found

    def _observes(self, batch: Batch, argument: str, value: Tensor, name: str) -> bool:
        """Whether the model observes a site at the value of this argument."""
        with_it = {**batch.arguments, argument: value}
        try:
            sites = sample_sites(poutine.trace(self.pair.programs[0]).get_trace(batch.x, **with_it))
        except Exception:  # the programs reject this argument in their own way
            return False
        site = sites.get(name)
        return site is not None and site["is_observed"] and _holds(argument, value, name, site["value"])


def given_rows(pair: Pair, given: Mapping[str, Any] | None, num_rows: int) -> Batch:
    """Keyword arguments to draw ``num_rows`` rows with, checked.

    Raises:
        TypeError: if one is taken by neither program.
        ValueError: if one has another number of rows.
    """
    return pair._given(given, num_rows)


def check_forward(pair: Pair, batch: Batch, structure: Structure) -> None:
    """Checks that the model runs without data, drawing all observed sites.

    Raises:
        ContractError: if it does not, or has no site ``"x"``.
    """
    one = Batch.of(batch.x[:1], without_sites(batch[:1], structure, tuple(structure.observed)))
    with forked_random_state(pair.device), evaluating(pair.model):
        sites = _run_forward(pair, one.forward, 1)
    check_sites(sites, ("x",))


def prior_globals(
    model: Callable[..., Any], structure: Structure, num_rows: int, arguments: Mapping[str, Any]
) -> dict[str, Tensor]:
    """One draw from the prior of the latents that belong to all rows."""
    if not structure.global_latents:
        return {}
    sites = sample_sites(poutine.trace(model).get_trace(batch_size=num_rows, **arguments))
    return {name: sites[name]["value"] for name in structure.global_latents}


def _run_forward(pair: Pair, arguments: Mapping[str, Any], num_rows: int) -> dict[str, Any]:
    return sample_sites(forward_trace(pair.programs[0], num_rows, arguments))


def _holds(argument: str, value: Any, name: str, observed: Tensor) -> bool:
    """Whether a keyword argument's value is that of an observed site."""
    if value is observed:
        return True
    if not isinstance(value, Tensor) or value.numel() != observed.numel():
        return False
    named_alike = argument in (name, name.removesuffix("_observed"))
    return named_alike or (value.shape == observed.shape and torch.equal(value.to(observed.dtype), observed))


def _mask(site: Any) -> Tensor | None:
    """Where a latent counts, rows first; None if it does everywhere."""
    mask = site["mask"]
    if not isinstance(mask, Tensor) or bool(mask.all()) or not is_local(site):
        return None
    return mask.expand(site["fn"].batch_shape).movedim(-1, 0)


def _with_gaps(pair: Pair, x: Tensor, arguments: Mapping[str, Any], site: Any) -> Batch:
    """Rows in the model's units, with gaps by the arguments' masks, as ``Pair.prepare`` makes from data."""
    arguments = dict(arguments)
    for name, value in arguments.items():
        seen = arguments.get(f"{name}_mask")
        if isinstance(seen, Tensor) and isinstance(value, Tensor) and seen.shape == value.shape:
            arguments[name] = torch.where(seen.bool(), value, value.reshape(-1)[0])
    arguments = pair._with_gaps(arguments)
    mask = pair._seen(x, arguments)
    if mask is not None:
        arguments["mask"] = mask
        x = torch.where(mask, x, torch.as_tensor(_inner(site), dtype=x.dtype, device=x.device))
    return Batch.of(x, arguments)


def _inner(site: Any) -> Any:
    """A value in the site's support, to fill gaps with."""
    try:
        return inner_value(elementwise(site["fn"].support))
    except (NotImplementedError, AttributeError):
        return 0.0
