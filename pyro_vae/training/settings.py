"""The settings of a training run: its arguments, checked, and the optimiser and schedule that they name."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import lr_scheduler

from pyro_vae._support import devices
from pyro_vae._support.names import lookup
from pyro_vae.inference.objectives import Elbo, as_objective
from pyro_vae.training.arithmetic import Precision
from pyro_vae.training.execution import Compile

__all__ = ["OptimizerFactory", "Schedule", "Settings"]

Schedule = Literal["cosine", "constant", "plateau"]
OptimizerFactory = Callable[..., torch.optim.Optimizer]

_EXPECTED_OPTIMIZER = "expected a class of torch.optim, or a function with the same call, optimizer(parameters, lr=...)"


def _late_cosine(done: float) -> float:
    """One for half of the run, then down to zero: a decay from the start leaves short runs undertrained."""
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, max(0.0, 2 * done - 1)))


_SCHEDULES: dict[str, Callable[[float], float] | None] = {  # relative step size by the fraction of the run that is done
    "cosine": _late_cosine,
    "constant": lambda done: 1.0,
    "plateau": None,  # depends on the ELBO, between epochs
}


@dataclass(frozen=True)
class Settings:
    """The settings of a run, checked. The arguments are those of :func:`~pyro_vae.fit`."""

    objective: Any
    optimizer: OptimizerFactory
    epochs: int
    batch_size: int | None
    learning_rate: float
    schedule: Schedule
    max_grad_norm: float | None
    average_weights: float | None
    patience: int | None
    seed: int
    precision: Precision
    compile: Compile

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience"):
            if (value := self._number(name, Integral, int, "a whole number")) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        for name in ("learning_rate", "max_grad_norm"):
            if (value := self._number(name, Real, float, "a number")) is not None and not value > 0:
                raise ValueError(f"{name} must be positive, found {value}")
        if self.average_weights is not None and not 0 < self.average_weights < 1:
            raise ValueError(
                f"average_weights must be between 0 and 1, such as 0.999, or None; found {self.average_weights}"
            )
        object.__setattr__(self, "objective", Elbo() if self.objective is None else as_objective(self.objective))
        lookup(self.schedule, _SCHEDULES, "schedule")
        lookup(self.precision, ("full", "tf32", "bfloat16"), "precision")
        if self.compile not in ("auto", True, False):
            raise ValueError(f"compile must be 'auto', True or False, found {self.compile!r}")
        if not callable(self.optimizer):
            raise TypeError(f"optimizer is of type {type(self.optimizer).__name__}: {_EXPECTED_OPTIMIZER}")

    def _number(self, name: str, kind: type, plain: Callable[[Any], Any], what: str) -> Any:
        """A setting as Python's own number, which it is from now on; None if it is not set."""
        value = getattr(self, name)
        if value is None:
            return None
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {what}, found {value!r}")
        object.__setattr__(self, name, plain(value))
        return plain(value)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as JSON data."""
        named = {name: getattr(self, name) for name in self.__dataclass_fields__}
        pyros = type(self.objective).__qualname__  # their objects print with an address
        plain = repr(self.objective)
        return named | {
            "objective": plain if " at 0x" not in plain else pyros,
            "optimizer": getattr(self.optimizer, "__qualname__", type(self.optimizer).__qualname__),
        }

    def make_optimizer(self, parameters: Sequence[Tensor], device: torch.device) -> torch.optim.Optimizer:
        """The optimiser; Adam is fused, with one kernel call per step.

        Raises:
            TypeError: if ``optimizer`` does not return one.
        """
        made = self._adam(parameters, device) if self.optimizer is torch.optim.Adam else self._made_by_user(parameters)
        for group in made.param_groups:
            group.setdefault("initial_lr", float(group["lr"]))
        return made

    def _adam(self, parameters: Sequence[Tensor], device: torch.device) -> torch.optim.Optimizer:
        captured = devices.captures(device)
        return torch.optim.Adam(
            [{"params": parameters, "initial_lr": self.learning_rate}],
            # A captured graph sees changes of a tensor, but not of a number.
            lr=torch.full((), self.learning_rate, device=device) if captured else self.learning_rate,
            fused=device.type in ("cpu", "cuda", "xpu"),
            capturable=captured,
        )

    def _made_by_user(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        made, why = None, ""
        try:
            made = self.optimizer(parameters, lr=self.learning_rate)
        except (TypeError, KeyError) as error:
            why = f" ({' '.join(str(error).split())})"
        if not isinstance(made, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer is {self.optimizer!r}, which does not return an optimiser{why}: {_EXPECTED_OPTIMIZER}"
            )
        if inspect.signature(made.step).parameters["closure"].default is inspect.Parameter.empty:
            raise TypeError(
                f"{type(made).__name__} evaluates the objective several times per step, but its noise differs each "
                f"time: use an optimiser with one gradient per step, such as Adam or SGD"
            )
        return made

    def make_scheduler(self, optimizer: torch.optim.Optimizer) -> lr_scheduler.ReduceLROnPlateau | None:
        """The scheduler that changes the step size between epochs, if there is one."""
        if self.schedule != "plateau":
            return None
        return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=5)

    def rates(self, optimizer: torch.optim.Optimizer, done: Sequence[float]) -> list[list[float]]:
        """The step sizes for each group of parameters, of steps that start at these fractions of the run."""
        factor = _SCHEDULES[self.schedule]
        if factor is None:
            return [[float(group["lr"]) for group in optimizer.param_groups]] * len(done)
        return [[group["initial_lr"] * factor(share) for group in optimizer.param_groups] for share in done]
