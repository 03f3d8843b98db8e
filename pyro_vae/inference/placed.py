"""Programs on their pair's device: new tensors are created there, and tensors elsewhere are reported."""

import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae._support.constructors import tensors_on
from pyro_vae._support.indices import checked_indices
from pyro_vae._support.libraries import is_library
from pyro_vae.inference.structure import ContractError
from pyro_vae.programs.running import move_stored

__all__ = ["placed"]


def placed(program: Callable[..., Any], which: str, device: torch.device) -> Callable[..., Any]:
    """The program, creating its tensors and parameters on a device.

    If Pyro's validation is on, indices are checked as well.

    Args:
        program: Model or guide.
        which: Its name in messages.
        device: The pair's device. On the CPU the program is returned unchanged.

    Raises:
        ContractError: when it runs, if it uses a tensor on another device.
    """
    if device.type == "cpu":
        return program

    def called(*rows: Tensor, **arguments: Any) -> Any:
        looking = checked_indices(device) if poutine.is_validation_enabled() else nullcontext()
        with tensors_on(device), _ParametersOn(device), looking:
            try:
                return program(*rows, **arguments)
            except RuntimeError as error:
                if "same device" not in str(error):
                    raise
                raise ContractError(
                    f"the {which} uses a tensor that is not on {device} ({_place(error)}): register it as a buffer of "
                    f"a module, which moves with the pair, or create it inside the program"
                ) from error

    called.__wrapped__ = program  # pyright: ignore[reportFunctionMemberAccess]
    return called


class _ParametersOn(Messenger):
    """Puts the values of ``pyro.param`` on a device, wherever the program's initial values are."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def _pyro_param(self, msg: Any) -> None:
        name, *given = msg["args"]
        if name in pyro.get_param_store():
            move_stored([name], self.device)
        elif given and isinstance(given[0], Tensor):
            msg["args"] = (name, given[0].to(self.device), *given[1:])


def _place(error: Exception) -> str:
    """The user's line that an error comes from, or the innermost one."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_library(frame.filename)]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}"
