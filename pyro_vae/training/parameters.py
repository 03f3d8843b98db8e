"""The trainable parameters of a pair of programs."""

from typing import Any

from pyro import poutine
from torch import Tensor

from pyro_vae.inference.batch import Batch
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import evaluating, forked_random_state

__all__ = ["STORE", "trainable"]

STORE = "param store: "  # prefix in checkpoints of weights from Pyro's parameter store


def trainable(pair: Pair, batch: Batch, structure: Structure) -> dict[str, Tensor]:
    """The modules' parameters, and those that the programs create in Pyro's store when they run, by name.

    Args:
        pair: The programs, which are run once.
        batch: Rows to run them on.
        structure: Structure of the programs.

    Raises:
        ValueError: if there is nothing to train.
    """
    with forked_random_state(pair.device), evaluating(pair.model, pair.guide):
        with poutine.trace(param_only=True) as capture:
            run_pair(*pair.programs, batch, structure)
        # Only now: an autoguide creates its parameters when it first runs.
        named: dict[str, Tensor] = {name: p for name, p in pair.named_parameters() if p.requires_grad}
        known = {id(p) for p in pair.parameters()}
        for name, site in capture.trace.nodes.items():
            constrained: Any = site["value"]
            value = constrained.unconstrained()
            if id(value) not in known:
                named[f"{STORE}{name}"] = value
                pair.store_names.add(name)
    if not named:
        raise ValueError("the programs have nothing to train: no pyro.param, pyro.module or nn.Parameter")
    return named
