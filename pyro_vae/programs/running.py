"""Running any Pyro program: the modules' mode, the random state, and the parameters in Pyro's store."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae._support.devices import forked_random_state
from pyro_vae.programs.ownership import modules_of

__all__ = ["evaluating", "forked_random_state", "in_mode", "local_parameters", "move_stored", "site_distribution"]


@contextmanager
def local_parameters() -> Iterator[None]:
    """Keeps the parameters of modules out of Pyro's global store while programs run.

    Modules hold their own parameters. In the global store they would be found by name, so two modules with the same
    name would share them, and they would outlive their module. Parameters from a bare ``pyro.param`` exist only in the
    store: they are visible inside, and remain.

    If the store holds a parameter of another module under a name that was used inside, it is deleted: Pyro would
    silently use it in place of this module's own the next time the program is run directly.
    """
    store = pyro.get_param_store()
    before = store.get_state()
    with store.scope(_bare(before)) as state:
        yield
    store.set_state(_bare(state))
    for name, value in state["params"].items():
        other = before["params"].get(name)
        if isinstance(other, nn.Parameter) and other is not value:
            del store[name]


def _bare(state: Any) -> Any:
    params = {name: value for name, value in state["params"].items() if not isinstance(value, nn.Parameter)}
    return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}


def move_stored(names: Iterable[str], device: torch.device) -> None:
    """Moves entries of Pyro's parameter store to a device, except modules' parameters, which move with them."""
    store = pyro.get_param_store()
    values = dict(store.named_parameters())
    bare = {name: values[name] for name in names if name in values and not isinstance(values[name], nn.Parameter)}
    if away := {name: value for name, value in bare.items() if value.device != device}:
        here = {name: value.detach().to(device).requires_grad_() for name, value in away.items()}
        state = store.get_state()
        store.set_state({**state, "params": {**state["params"], **here}})
        for name in store:
            store[name]  # restores the attribute that get_state removes from values


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """Runs programs without gradients and in evaluation mode, and restores each module's mode."""
    found = modules_of(dict(zip(map(str, range(len(programs))), programs, strict=True))).values()
    modules = [module for part in found for module in part.modules()]
    with in_mode(modules, training=False), torch.no_grad(), local_parameters():
        yield


@contextmanager
def in_mode(modules: Sequence[nn.Module], *, training: bool) -> Iterator[None]:
    """Puts modules into training or evaluation mode, and restores each one's mode."""
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def site_distribution(program: Any, site: str, *args: Any, **kwargs: Any) -> TorchDistribution:
    """Runs a program once and returns the distribution at one of its sample sites.

    Raises:
        ValueError: if the program has no such site; the message lists its sites.
    """
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    if site not in trace.nodes or trace.nodes[site]["type"] != "sample":
        sites = [*trace.stochastic_nodes, *trace.observation_nodes]
        raise ValueError(f"the program has no sample site {site!r}; its sites are {', '.join(sites) or 'none'}")
    return trace.nodes[site]["fn"]
