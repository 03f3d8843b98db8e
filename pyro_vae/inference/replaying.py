"""A function that tools call many times, such as a run of the programs: on a GPU it is replayed as a CUDA graph."""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae._support import cuda_graphs, devices
from pyro_vae._support.cuda_graphs import CannotStageError, reason_of
from pyro_vae._support.rounding import RoundingErrors, agree
from pyro_vae.inference.structure import ContractError
from pyro_vae.programs.hidden_state import HINT, Watch

__all__ = ["Replayed"]

Results = tuple[Tensor, ...]

_CALLS_BEFORE = 3  # the capture; they warm up libraries, and the last two are forbidden to wait
_CALLS_THAT_REPAY = 16  # the capture and its checks, which take as long as about eight


class Replayed:
    """A function of tensors. On a GPU it is captured in a CUDA graph at its fourth call, and then replayed.

    A Pyro program's Python takes the host some milliseconds, in which a GPU has little to do; a replay does without it.
    A replay draws the random numbers that the function would have drawn. Replays 1, 2, 4, 8, … are compared with the
    function itself, from the same random state, up to rounding. If the first one differs, the function waits for the
    device, or changes state of Python when it runs, it is called each time instead, and a warning says why. It is also
    called elsewhere than on a GPU, and for tensors of other shapes than those of the first call.

    Args:
        function: Takes and returns tensors. Its other tensors, such as parameters, may change in place; what else it
            depends on must not change.
        programs: The programs that it runs, by their name in messages.
        device: Where its tensors are.
        num_calls: How often it will be called at least, if known. For few calls nothing is captured.

    Raises:
        ContractError: if a later replay differs: something has changed the programs meanwhile.

    Example:
        >>> double = Replayed(lambda x: (2 * x,), {}, torch.device("cpu"))
        >>> double(torch.ones(2))
        (tensor([2., 2.]),)
    """

    def __init__(
        self,
        function: Callable[..., Results],
        programs: Mapping[str, Any],
        device: torch.device,
        num_calls: int = _CALLS_THAT_REPAY,
    ) -> None:
        self.function, self.device = function, device
        self.can_capture = devices.captures(device) and num_calls >= _CALLS_THAT_REPAY
        self._watch = Watch(programs)
        self._graph: Callable[..., Results] | None = None
        self._shapes: list[torch.Size] | None = None
        self._calls = self._replays = 0

    def __call__(self, *tensors: Tensor) -> Results:
        """The function's results, in tensors of their own."""
        shapes = [tensor.shape for tensor in tensors]
        self._shapes = self._shapes or shapes
        if not self.can_capture or shapes != self._shapes:
            return self.function(*tensors)
        self._calls += 1
        with devices.current(self.device):
            if self._calls <= _CALLS_BEFORE:
                return self._watched(tensors)
            return self._replayed(tensors)

    def _watched(self, tensors: Sequence[Tensor]) -> Results:
        """A run of the function, watched; the first one may create state that later ones reuse, such as a cache."""
        if self._calls == 1:
            results = self._watch.run(self.function, *tensors)
            self._watch.forget()
            return results
        before = self._watch.state()
        results = self._without_waiting(tensors)
        if self.can_capture and (reason := self._watch.reason(before, self._watch.state())) is not None:
            self._give_up(f"{reason}; {HINT}")
        return results

    def _replayed(self, tensors: Sequence[Tensor]) -> Results:
        if self._graph is None:
            try:
                self._graph = cuda_graphs.captured(self.function, tensors)
            except CannotStageError as error:
                self._give_up(str(error))
                return self.function(*tensors)
        self._replays += 1
        if self._replays & (self._replays - 1) == 0:
            return self._checked(self._graph, tensors)
        return tuple(result.clone() for result in self._graph(*tensors))

    def _without_waiting(self, tensors: Sequence[Tensor]) -> Results:
        random = devices.get_random_state(self.device)
        with cuda_graphs.on_side_stream():
            try:
                with cuda_graphs.refusing_to_wait():
                    return self._watch.run(self.function, *tensors)
            except Exception as error:
                reason = reason_of(error)
        devices.set_random_state(random, self.device)
        self._give_up(reason)
        return self.function(*tensors)

    def _checked(self, graph: Callable[..., Results], tensors: Sequence[Tensor]) -> Results:
        """A replay, if it gives what the function gives."""
        random = devices.get_random_state(self.device)
        found = tuple(result.clone() for result in graph(*tensors))
        after = devices.get_random_state(self.device)

        def again(mode: RoundingErrors | contextlib.nullcontext[None]) -> Results:
            devices.set_random_state(random, self.device)
            with mode:
                return self.function(*tensors)

        if agree(found, again(contextlib.nullcontext()), again):
            devices.set_random_state(after, self.device)
            return found
        devices.set_random_state(random, self.device)
        what = "the programs depend on more than their tensors, and their graph gives other numbers"
        if self._replays > 1:
            raise ContractError(
                f"{what}, after {self._replays - 1:,} replays: let what they compute depend on tensors alone, or run "
                f"this on a CPU"
            )
        self._give_up(what)
        return self.function(*tensors)

    def _give_up(self, reason: str) -> None:
        self.can_capture, self._graph = False, None
        warnings.warn(
            f"the programs run step by step, which is slower: they cannot be captured in a CUDA graph ({reason})",
            stacklevel=4,
        )
