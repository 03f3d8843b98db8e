"""An entry of the zoo: two programs, their data, and exact answers if there are any."""

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
    r"""A model and a guide, with exact answers for the current values of their parameters.

    The answers are closed forms, sums or quadrature. They use neither pyro_vae nor Pyro's handlers.

    Args:
        model: ``model(x=None, *, batch_size=None, ...)``.
        guide: ``guide(x, ...)``.
        log_evidence: Maps data to the log-probability of each row's observations, ``(N,)``.
        posterior: Maps data to the mean and standard deviation of each latent site given the row, ``(N, *event)``;
            without N for a global site.
        moments: Maps data, except x, to the mean and standard deviation of x, ``(N, *E)`` or ``(*E,)``.
        imputed: Maps data to the mean of each site with gaps given the row's observed entries, ``(N, *E)``.
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
        about: The kind and style of the program.
        make: Makes the two programs with fresh parameters.
        data: Makes about 300 rows and their keyword arguments.
        fit: Arguments of ``fit`` with which it learns within a second.
        pair: Arguments of ``Pair``.
        observed: Keyword arguments that are observations, in addition to x.
        gaps: The site with missing entries, and the argument with the mask of observed ones.
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
        """The data, the same in every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.data()


def first(data: Data, num: int) -> Data:
    """The first ``num`` rows; values shared by all rows are unchanged."""
    return {name: value[:num] if isinstance(value, Tensor) and value.dim() else value for name, value in data.items()}


def stored(name: str, start: Tensor) -> Tensor:
    """The value of a name in Pyro's parameter store, or a program's initial value."""
    store = pyro.get_param_store()
    return store[name].detach() if name in list(store) else start


def without_nan(data: Data) -> Data:
    """The data with 0 instead of NaN, and a mask of observed entries: of x as ``mask``, of y as ``y_mask``."""
    filled = dict(data)
    for name, value in data.items():
        if isinstance(value, Tensor) and value.is_floating_point() and bool(value.isnan().any()):
            filled[name], filled["mask" if name == "x" else f"{name}_mask"] = value.nan_to_num(), ~value.isnan()
    return filled


def draws(*shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape)
