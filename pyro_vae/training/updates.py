"""Applying a step's gradient: sum over ranks, clip, take the optimiser's step, average the weights."""

import copy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.training.averaging import WeightAverage
from pyro_vae.training.parallel import add_up, world_size

__all__ = ["Updates"]


@dataclass
class _Saved:
    weights: list[Tensor]
    moments: list[dict[str, Any]]
    average: list[Tensor]


class Updates:
    """Steps of an optimiser.

    Args:
        parameters: The trained parameters.
        optimizer: Over these parameters.
        max_grad_norm: Bound on the norm of the whole gradient.
        average: Average of the parameters, if there is one.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None,
        average: WeightAverage | None = None,
    ) -> None:
        self.parameters, self.optimizer, self.max_grad_norm = list(parameters), optimizer, max_grad_norm
        self.average = average
        self._adam: _AdamState | None = None

    def apply(self, sums: Tensor, gradients: Sequence[Tensor], num_rows: int, *, short: bool) -> Tensor:
        """Takes a step with this rank's sums and mean gradient over ``num_rows`` rows. Returns the sums of all ranks.

        Args:
            sums: Sums over this rank's rows.
            gradients: One for each parameter.
            num_rows: Number of this rank's rows.
            short: Call Adam's kernel directly, if the optimiser is Adam.
        """
        if world_size() > 1:
            rows = torch.full((), float(num_rows), device=sums.device)
            sums, rows, *gradients = add_up([sums, rows, *(gradient * num_rows for gradient in gradients)])
            gradients = [(gradient / rows).to(gradient.dtype) for gradient in gradients]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.clip()
        if short and self._is_plain_adam():
            self._step_of_adam()
        else:
            self.optimizer.step()
        if self.average is not None:
            self.average.add_step()
        return sums

    def clip(self) -> None:
        """Scales the parameters' gradients down to the bound on their norm."""
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)

    def clipped(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Clipped copies of gradients, for comparison only."""
        if self.max_grad_norm is None:
            return list(gradients)
        norm = torch.nn.utils.get_total_norm(gradients)
        return [gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0) for gradient in gradients]

    @property
    def rates(self) -> list[Any]:
        """The current step size of each group of parameters."""
        groups = self.optimizer.param_groups
        return [group["lr"].clone() if isinstance(group["lr"], Tensor) else group["lr"] for group in groups]

    @rates.setter
    def rates(self, rates: Sequence[Any]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @property
    def can_be_captured(self) -> bool:
        """Whether the optimiser's step can be part of a CUDA graph."""
        return self._is_plain_adam() and bool(self.optimizer.param_groups[0]["capturable"])

    def save(self) -> _Saved:
        """Copies of the weights, of their average and of the optimiser's state."""
        weights = [parameter.detach().clone() for parameter in self.parameters]
        moments = [_copy(self.optimizer.state.get(parameter, {})) for parameter in self.parameters]
        return _Saved(weights, moments, [] if self.average is None else [t.clone() for t in self.average.state])

    @torch.no_grad()
    def restore(self, saved: _Saved) -> None:
        """Restores what was saved, into the same tensors."""
        if self.average is not None:
            self.average.set_state(saved.average)
        for parameter, weight, moments in zip(self.parameters, saved.weights, saved.moments, strict=True):
            parameter.copy_(weight)
            state = self.optimizer.state[parameter]
            for name in [name for name in state if name not in moments]:
                del state[name]
            for name, value in _copy(moments).items():
                if isinstance(value, Tensor) and isinstance(state.get(name), Tensor):
                    state[name].copy_(value)
                else:
                    state[name] = value

    def _is_plain_adam(self) -> bool:
        """Whether the optimiser's step is just Adam's fused kernel."""
        optimizer = self.optimizer
        if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
            return False
        if _hooks_of_all():
            return False
        if self._adam is not None:
            return True
        if type(optimizer) is not torch.optim.Adam or len(optimizer.param_groups) != 1:
            return False
        (group,) = optimizer.param_groups
        if not group["fused"] or group["weight_decay"] or group["amsgrad"] or group["maximize"]:
            return False
        if not all("exp_avg" in optimizer.state.get(parameter, {}) for parameter in group["params"]):
            return False  # no state before the first step
        self._adam = _AdamState(optimizer)
        return True

    @torch.no_grad()
    def _step_of_adam(self) -> None:
        """``Adam.step`` without its bookkeeping, which costs half as much as the arithmetic."""
        (group,) = self.optimizer.param_groups
        state = self._adam
        assert state is not None
        state.all_steps += 1
        torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
            group["params"],
            [parameter.grad for parameter in group["params"]],
            state.exp_avgs,
            state.exp_avg_sqs,
            [],
            state.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


def _hooks_of_all() -> bool:
    """Whether there are hooks on the steps of every optimiser."""
    shared: Any = sys.modules[torch.optim.Optimizer.__module__]
    return bool(shared._global_optimizer_pre_hooks or shared._global_optimizer_post_hooks)


def _copy(state: Any) -> dict[str, Any]:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


class _AdamState:
    """Adam's state as lists in the order of its parameters, with their counts of steps as views of one tensor."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        states = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
        self.exp_avgs = [state["exp_avg"] for state in states]
        self.exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        self.all_steps = torch.stack([state["step"] for state in states])
        self.steps = list(self.all_steps.unbind())
        for state, step in zip(states, self.steps, strict=True):
            state["step"] = step
