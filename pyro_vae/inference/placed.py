"""Programs on the device of their pair: what they make is made there, and what they have elsewhere is named."""

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
    """The program as it runs on a device: the tensors and parameters that it makes are made there.

    Where Pyro's checks are on, its indices are looked at as well.

    Args:
        program: Model or guide.
        which: Which of them, for messages.
        device: That of the pair. On the CPU the program is left as it is.

    Raises:
        ContractError: when it runs and uses a tensor that was made elsewhere.
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
                    f"a module, which moves with the pair, or make it where the program runs"
                ) from error

    called.__wrapped__ = program  # pyright: ignore[reportFunctionMemberAccess]
    return called


class _ParametersOn(Messenger):
    """Gives ``pyro.param`` values on a device, whatever the program says they start from."""

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
