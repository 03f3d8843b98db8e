"""Whether a training step of a pair can be lowered, found before training."""

import pyro
import torch

from pyro_vae._support.cuda_graphs import CannotStageError
from pyro_vae.data.rows import Rows
from pyro_vae.inference.objectives import Elbo
from pyro_vae.inference.structure import Structure
from pyro_vae.pair import Pair
from pyro_vae.programs.running import forked_random_state, local_parameters
from pyro_vae.training import lowering
from pyro_vae.training.checking import Checker
from pyro_vae.training.parameters import trainable
from pyro_vae.training.step import Gradients

__all__ = ["why_not_lowered"]

_ROWS = 8


def why_not_lowered(pair: Pair, rows: Rows, structure: Structure) -> str | None:
    """Runs a training step on a few rows, watched, and traces it; nothing is compiled or changed.

    Args:
        pair: The programs.
        rows: Checked rows.
        structure: Structure of the programs.

    Returns:
        Why training would run the programs, in one sentence; None if it can use a graph.
    """
    example = next(iter(rows.references([torch.arange(min(_ROWS, rows.num_rows))])))
    training = [module for module in pair.modules() if module.training]
    try:
        with forked_random_state(pair.device), local_parameters(), pyro.validation_enabled(is_validate=False):
            batch = pair.prepare(rows.resolve(example))
            parameters = trainable(pair, batch, structure)
            gradients = Gradients(pair, parameters, rows, example, structure, Elbo())
            inputs = [torch.full((), 0.5, device=pair.device), *example.values()]
            pair.train()
            checker = Checker(gradients, torch.optim.Adam(parameters.values()))
            reason: str | None = None
            for judged in (False, True):
                with checker.putting_back():
                    reason = checker.observe(inputs, judged=judged).reason
            if reason is None:
                with checker.putting_back():
                    lowering.trace(gradients, inputs, changing=checker.changing)
            return reason
    except CannotStageError as error:
        return str(error)
    finally:
        pair.eval()
        for module in training:
            module.training = True
