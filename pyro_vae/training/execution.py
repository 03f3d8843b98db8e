"""How training steps are run: as the programs stand, as one compiled graph, or as one CUDA graph."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_vae.programs import forked_random_state
from pyro_vae.training.lowering import CannotStageError, captured, compiled, compiler_missing
from pyro_vae.training.parallel import add_up, world_size
from pyro_vae.training.step import Gradients

__all__ = ["STEPS_THAT_REPAY", "Compile", "Execution"]

Compile = Literal["auto"] | bool

STEPS_THAT_REPAY = 4000  # compiling costs about ten seconds and saves some three milliseconds a step

_STEPS_BEFORE_CAPTURE = 3  # of a CUDA graph, for libraries to settle


class Execution:
    """Takes steps of the optimiser up the ELBO's gradient.

    Args:
        gradients: What a step computes.
        optimizer: Adam over the gradients' parameters.
        max_grad_norm: Bound on the norm of the whole gradient.

    With several ranks, each takes its part of the step's rows, and all go up the gradient of the whole. ``how`` says
    how steps are run, and why.
    """

    def __init__(self, gradients: Gradients, optimizer: torch.optim.Adam, max_grad_norm: float | None = None) -> None:
        self.eager = self.gradients = gradients
        self.optimizer, self.max_grad_norm = optimizer, max_grad_norm
        self.how = "eager"
        self._shapes: list[torch.Size] = []
        self._kl_weight, self._weight = math.nan, torch.ones(())
        self._capture_in = 0
        self._whole: Any = None
        self._adam_state: _AdamState | None = None

    def stage(self, reference: Mapping[str, Tensor], *, compile: Compile, num_steps: int) -> None:
        """Prepares for steps of this size, if that is asked for or will repay.

        Args:
            reference: An example. Nothing is learned from it, and random states are put back.
            compile: ``True`` compiles, and on a GPU captures too; ``"auto"`` captures on a GPU, and compiles on a CPU
                if there are steps enough; ``False`` runs the programs at every step.
            num_steps: Steps of the whole run.
        """
        device = next(iter(reference.values())).device
        if compile is False:
            self.how = "eager, as asked"
            return
        if device.type == "cuda":
            what = "captured" if world_size() == 1 else "gradients captured"
            self._capture_in, self.how = _STEPS_BEFORE_CAPTURE, f"{what} in a CUDA graph"
            if compile == "auto":
                self._shapes = [tensor.shape for tensor in self._tensors(reference)]
                return
        elif compile == "auto" and num_steps < STEPS_THAT_REPAY:
            self.how = f"eager: fewer than {STEPS_THAT_REPAY:,} steps do not repay compiling"
            return
        elif reason := compiler_missing():
            self._stay_eager(reason, warn=compile is True)
            return
        try:
            self.gradients = self._compiled(self._tensors(reference), device)
        except CannotStageError as error:
            self._stay_eager(str(error), warn=True)
            return
        self._shapes = [tensor.shape for tensor in self._tensors(reference)]
        self.how = "compiled" if device.type == "cpu" else f"compiled and {self.how}"

    def _stay_eager(self, reason: str, *, warn: bool) -> None:
        self.how = f"eager: {reason}"
        if warn:
            warnings.warn(f"training runs the programs at every step, uncompiled: {reason}", stacklevel=4)

    def _tensors(self, reference: Mapping[str, Tensor]) -> list[Tensor]:
        return [reference[name] for name in self.eager.names]

    def _compiled(self, tensors: list[Tensor], device: torch.device) -> Any:
        weight = torch.full((), 0.7, device=device)  # none that a program could have for a constant
        with pyro.validation_enabled(is_validate=False), _put_back(self.eager, device):
            pyro.set_rng_seed(0)
            gradients = compiled(self.eager, [weight, *tensors])
            # The graph must come to the programs' numbers from another random state than it was traced in.
            with _put_back(self.eager, device):
                pyro.set_rng_seed(1)
                expected = self.eager(weight, *tensors)
            pyro.set_rng_seed(1)
            found = gradients(weight, *tensors)
        rounding = 0.05 if self.eager.precision == "bfloat16" else 1e-3
        for part in (slice(0, 1), slice(1, None)):  # the sums; the gradient
            graphs, programs = (torch.cat([t.double().reshape(-1) for t in group[part]]) for group in (found, expected))
            if not (graphs - programs).norm() <= rounding * programs.norm() + 1e-9:
                raise CannotStageError("what the programs do depends on more than their tensors")
        return gradients

    def step(self, reference: Mapping[str, Tensor] | None, kl_weight: float, *, checked: bool = False) -> Tensor:
        """One step; returns the sums of reconstruction and KL over its rows, of all ranks, ``(2,)``.

        Args:
            reference: To the rows of this rank, see :meth:`~pyro_vae.data.rows.Rows.references`; None if it has none.
            kl_weight: Weight of the KL.
            checked: Run the programs themselves, with Pyro's checks of shapes and supports.
        """
        if reference is None:
            nothing = [torch.zeros_like(parameter) for parameter in self.eager.parameters]
            return self._update(nothing[0].new_zeros(2), nothing, 0, staged=self.gradients is not self.eager)
        tensors = self._tensors(reference)
        staged = not checked and [tensor.shape for tensor in tensors] == self._shapes
        if kl_weight != self._kl_weight:
            self._kl_weight, self._weight = kl_weight, torch.full((), kl_weight, device=tensors[0].device)
        if staged and self._whole is not None:
            return self._whole(self._weight, *tensors)[0].clone()
        gradients = self.gradients if staged else self.eager
        # Pyro's checks cost as much as the arithmetic; one checked step finds the mistakes. A graph runs no programs.
        checks = pyro.validation_enabled(is_validate=checked) if gradients is self.eager else nullcontext()
        with checks:
            if staged and self._capture_in:
                return self._step_on_the_way_to_capture(tensors)
            return self._step(gradients, tensors)

    def _step(self, gradients: Any, tensors: list[Tensor]) -> Tensor:
        sums, *found = gradients(self._weight, *tensors)
        return self._update(sums, found, len(tensors[0]), staged=gradients is not self.eager)

    def _update(self, sums: Tensor, found: list[Tensor], num_rows: int, *, staged: bool) -> Tensor:
        """Adam's step, from this rank's mean gradient over so many rows."""
        if world_size() > 1:
            rows = torch.full((), float(num_rows), device=sums.device)
            sums, rows, *found = add_up([sums, rows, *(gradient * num_rows for gradient in found)])
            found = [(gradient / rows).to(gradient.dtype) for gradient in found]
        for parameter, gradient in zip(self.eager.parameters, found, strict=True):
            parameter.grad = gradient
        if self.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.eager.parameters, self.max_grad_norm)
        if staged:
            self._adam_step()
        else:
            self.optimizer.step()
        return sums

    @torch.no_grad()
    def _adam_step(self) -> None:
        """What ``Adam.step`` does, without the bookkeeping that costs half as much as its arithmetic."""
        (group,) = self.optimizer.param_groups
        if self._adam_state is None:
            self._adam_state = _AdamState(self.optimizer)
        state = self._adam_state
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

    def _step_on_the_way_to_capture(self, tensors: list[Tensor]) -> Tensor:
        """Real steps on a side stream, as capturing needs; after the last of them the whole step is recorded."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            sums = self._step(self.gradients, tensors)
        torch.cuda.current_stream().wait_stream(stream)
        self._capture_in -= 1
        if self._capture_in == 0:
            try:
                if world_size() > 1:  # what ranks say to each other stays outside of the graph
                    self.gradients = captured(self.gradients, [self._weight, *tensors])
                    return sums
                self._whole = captured(
                    lambda weight, *rest: (self._recorded(weight, list(rest)),), [self._weight, *tensors]
                )
            except CannotStageError as error:
                self._stay_eager(str(error), warn=True)
        return sums

    def _recorded(self, weight: Tensor, tensors: list[Tensor]) -> Tensor:
        self._weight, before = weight, self._weight
        try:
            return self._step(self.gradients, tensors)
        finally:
            self._weight = before


class _AdamState:
    """Adam's state as lists in the order of its parameters, with their counts of steps as views of one tensor."""

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        states = [optimizer.state[parameter] for parameter in optimizer.param_groups[0]["params"]]
        self.exp_avgs = [state["exp_avg"] for state in states]
        self.exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        self.all_steps = torch.stack([state["step"] for state in states])
        self.steps = list(self.all_steps.unbind())
        for state, step in zip(states, self.steps, strict=True):
            state["step"] = step


@contextmanager
def _put_back(gradients: Gradients, device: torch.device) -> Iterator[None]:
    """Puts random states and buffers back to what they were."""
    state = get_rng_state()
    buffers = [(buffer, buffer.clone()) for buffer in gradients.pair.buffers()]
    with forked_random_state(device):
        try:
            yield
        finally:
            set_rng_state(state)
            for buffer, before in buffers:
                buffer.copy_(before)
