"""Checks that a graph matches the programs: both run on the same rows with the same noise and are compared."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.util import get_rng_state, set_rng_state
from torch import Tensor

from pyro_vae._support.cuda_graphs import CannotStageError, reason_of
from pyro_vae._support.devices import get_random_state, set_random_state
from pyro_vae._support.rounding import RoundingErrors, agree
from pyro_vae.data.rows import Streamed
from pyro_vae.programs.hidden_state import Watch
from pyro_vae.programs.pictures import State
from pyro_vae.training.step import Gradients

__all__ = ["UNSEEN", "Checker", "Kept", "Observation", "Results"]

UNSEEN = "the programs depend on more than their tensors, and their graph gives other numbers"

Results = tuple[Tensor, ...]  # the sums, then the gradients

_TOLERANCE = {"tf32": 5e-3, "bfloat16": 1e-2}  # relative, on norms; otherwise that of the dtype


@dataclass
class Observation:
    """One run of the programs, and a sentence on state that it should not have changed, if any."""

    results: Results
    before: State
    after: State
    reason: str | None


@dataclass
class Kept:
    """Saved random states and values of tensors."""

    device: torch.device
    random: dict[str, Any]  # of Python, NumPy and torch
    of_torch: dict[str, Tensor]
    tensors: list[tuple[Tensor, Tensor]]

    @property
    def values(self) -> list[Tensor]:
        """The tensors' values."""
        return [value for _, value in self.tensors]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restores them."""
        set_rng_state(self.random)
        set_random_state(self.of_torch, self.device)
        for tensor, before in self.tensors:
            tensor.copy_(before)


class Checker:
    """Compares programs with their graph.

    Args:
        gradients: Computes a step with the programs.
        optimizer: The optimiser that gets the results.
    """

    def __init__(self, gradients: Gradients, optimizer: torch.optim.Optimizer) -> None:
        self.eager, pair = gradients, gradients.pair
        rows: Any = gradients.rows
        reads_here = isinstance(rows, Streamed) and rows.num_workers == 0
        self.watch = Watch(
            {
                "the model": pair.model,
                "the guide": pair.guide,
                "the transform": pair.transform,
                "the objective": getattr(gradients, "objective", None),
                "the pair": pair,
                "the parameter store": pyro.get_param_store(),
            },
            beside=[optimizer, rows.dataset if reads_here else None],  # hooks and readers may have state, too
        )
        self._changing: dict[int, Tensor] = {}

    @property
    def changing(self) -> list[Tensor]:
        """Tensors that running the programs was seen to change in place."""
        return list(self._changing.values())

    def keep(self) -> Kept:
        """Everything that running the programs may change."""
        tensors = {id(tensor): tensor for tensor in (*self.eager.pair.buffers(), *self.changing)}
        device = self.eager.pair.device
        return Kept(
            device,
            get_rng_state(),
            get_random_state(device),
            [(tensor, tensor.detach().clone()) for tensor in tensors.values()],
        )

    @contextmanager
    def putting_back(self) -> Iterator[Kept]:
        """Restores all of that at the end."""
        kept = self.keep()
        try:
            yield kept
        finally:
            kept.put_back()

    def observe(self, inputs: Sequence[Tensor], *, judged: bool, checked: bool = False) -> Observation:
        """Runs the programs once, watched.

        Args:
            inputs: Inputs of the gradients.
            judged: Whether changes count; a first run may create state that later ones reuse, such as a cache.
            checked: Run with Pyro's checks of shapes and supports.
        """
        before = self.watch.state()
        with pyro.validation_enabled(is_validate=checked):
            results = self.watch.run(self.eager, *inputs)
        after = self.watch.state()
        self._changing |= {id(tensor): tensor for tensor in before.updated(after)}
        reason = self.watch.reason(before, after) if judged else None
        if not judged:
            self.watch.forget()
        return Observation(results, before, after, reason)

    def compare(self, graph: Callable[..., Results], inputs: Sequence[Tensor]) -> tuple[Results | None, str | None]:
        """Returns the graph's results if they match those of the programs.

        Returns:
            The results, with all state as the graph leaves it; or None and the reason, with all state restored.
        """
        kept = self.keep()
        before = self.watch.state()
        try:
            results, reason = self._compare(graph, inputs, kept)
        except CannotStageError as error:
            results, reason = None, str(error)
        if results is None:
            kept.put_back()
            after = self.watch.state()
            reason = self.watch.reason(before, after) or reason
            before.put_back()
            return None, reason
        if (changed := self.watch.reason(before, self.watch.state())) is not None:
            kept.put_back()
            before.put_back()
            return None, changed
        return results, None

    def expected(self, inputs: Sequence[Tensor], before: State) -> Observation:
        """The programs' results from their current state; tensors and random states are restored."""
        with self.putting_back(), pyro.validation_enabled(is_validate=False):
            results = self.eager(*inputs)
        after = self.watch.state()
        if (reason := self.watch.reason(before, after)) is not None:
            before.put_back()
        return Observation(results, before, after, reason)

    def _compare(
        self, graph: Callable[..., Results], inputs: Sequence[Tensor], kept: Kept
    ) -> tuple[Results | None, str | None]:
        found = self._same(graph, inputs, kept)
        if found is not None:
            return found, None
        # Rejection sampling may differ once because of a rounding error, but not twice.
        kept.put_back()
        torch.rand(1, device=self.eager.pair.device)
        if self._same(graph, inputs, self.keep()) is None:
            return None, UNSEEN
        kept.put_back()
        return graph(*inputs), None

    def _same(self, graph: Callable[..., Results], inputs: Sequence[Tensor], start: Kept) -> Results | None:
        expected = self._outcome(self.eager, inputs)
        random = torch.get_rng_state()
        start.put_back()
        try:
            results = graph(*inputs)
        except Exception as error:
            raise CannotStageError(f"their graph failed ({reason_of(error)})") from error
        after = self.keep()
        found = [*results[0].unbind(), *results[1:], *after.values]
        if not torch.equal(random, torch.get_rng_state()):
            return None

        def again(errors: RoundingErrors) -> list[Tensor]:
            start.put_back()
            return self._outcome(self.eager, inputs, errors)

        same = agree(found, expected, again, tolerance=_TOLERANCE.get(self.eager.precision))
        after.put_back()
        return results if same else None

    def _outcome(self, function: Callable[..., Results], inputs: Sequence[Tensor], mode: Any = None) -> list[Tensor]:
        """Sums, gradients, and tensors changed in place."""
        with pyro.validation_enabled(is_validate=False), mode or nullcontext():
            sums, *gradients = function(*inputs)
        return [*sums.unbind(), *gradients, *self.keep().values]
