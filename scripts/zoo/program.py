"""What an entry of the zoo is: two programs, their data, and exact answers where there are any."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor

__all__ = ["Data", "Program", "Programs", "draws", "first", "stored", "without_nan"]

Data = dict[str, Any]  # "x" and the programs' keyword arguments


@dataclass(frozen=True)
class Programs:
    r"""A model and a guide, with exact answers at whatever values their parameters have now.

    The answers are closed forms, sums or quadrature. They use neither pyro_vae nor Pyro's handlers.

    Args:
        model: ``model(x=None, *, batch_size=None, ...)``.
        guide: ``guide(x, ...)``.
        log_evidence: Data to the log-probability of each row's observations, ``(N,)``.
        posterior: Data to the mean and standard deviation of each latent site given the row, ``(N, *event)``; without
            N where the site is global.
        moments: Data, of which x is ignored, to the mean and standard deviation of x, ``(N, *E)`` or ``(*E,)``.
        imputed: Data to the mean of each site with gaps given the row's observed entries, ``(N, *E)``.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    log_evidence: Callable[[Data], Tensor] | None = None
    posterior: Callable[[Data], dict[str, tuple[Tensor, Tensor]]] | None = None
    moments: Callable[[Data], tuple[Tensor, Tensor]] | None = None
    imputed: Callable[[Data], dict[str, Tensor]] | None = None


@dataclass(frozen=True)
class Program:
    """An entry of the zoo.

    Args:
        name: A word or two, as in the table.
        about: What kind of program it is, and the style it is written in.
        make: Makes the two programs with fresh parameters.
        data: Makes some 300 rows and the keyword arguments that go with them.
        fit: Arguments of ``fit`` that it needs to learn something in a second.
        pair: Arguments of ``Pair``.
        observed: Keyword arguments that are observations, beside x.
        gaps: The site that has missing entries, and the argument that says where they are not.
    """

    name: str
    about: str
    make: Callable[[], Programs]
    data: Callable[[], Data]
    fit: Mapping[str, Any] = field(default_factory=dict)
    pair: Mapping[str, Any] = field(default_factory=dict)
    observed: tuple[str, ...] = ()
    gaps: tuple[str, str] = ("x", "mask")

    def build(self, seed: int = 0) -> Programs:
        """The two programs with fresh parameters, Pyro's store emptied and all generators seeded."""
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        return self.make()

    def rows(self) -> Data:
        """The data, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.data()


def first(data: Data, num: int) -> Data:
    """The first ``num`` rows; what is the same for all rows stays."""
    return {name: value[:num] if isinstance(value, Tensor) and value.dim() else value for name, value in data.items()}


def stored(name: str, start: Tensor) -> Tensor:
    """What Pyro's parameter store holds under a name, or the value that a program would start from."""
    store = pyro.get_param_store()
    return store[name].detach() if name in list(store) else start


def without_nan(data: Data) -> Data:
    """The data with 0 in the place of NaN, and a mask that says where: of x as ``mask``, of y as ``y_mask``."""
    filled = dict(data)
    for name, value in data.items():
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            filled[name], filled["mask" if name == "x" else f"{name}_mask"] = value.nan_to_num(), ~value.isnan()
    return filled


def draws(*shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape)
