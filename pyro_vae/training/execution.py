"""Running training steps: as the programs themselves, as one compiled graph, or as one CUDA graph.

The programs define the result; a graph may replace them only while it computes the same.

1. The first steps run the programs, watched. A graph cannot include state outside of tensors that a run changes, or
   that changes between two steps: such programs are trained without a graph.
2. They are traced twice, on different rows with different noise. Both must give the same graph.
3. A *check* runs programs and graph on the same rows with the same noise and compares, up to rounding, the sums, the
   gradients, in-place changes and the random numbers used. It runs at the first step of a graph, at its 2nd, 4th, 8th
   and so on, at the last whole step of an epoch, and at the first step of a long epoch, except with a CUDA graph,
   whose steps are too short for that.
4. If a check fails, training goes back to the last point in the epoch where one passed and continues with the programs.
   Between epochs the user may change something: if the programs' state differs, they are traced again, and training
   keeps the graph if the new one is equal.
"""

import contextlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import pyro
import torch
from torch import Tensor

from pyro_vae._support import cuda_graphs, devices
from pyro_vae._support.cuda_graphs import CannotStageError, reason_of
from pyro_vae._support.rounding import agree
from pyro_vae.data.rows import Resident
from pyro_vae.programs.pictures import State
from pyro_vae.training import lowering
from pyro_vae.training.averaging import WeightAverage
from pyro_vae.training.checking import UNSEEN, Checker, Kept, Results
from pyro_vae.training.lowering import Trace, compiler_missing
from pyro_vae.training.parallel import add_up, broadcast, world_size
from pyro_vae.training.step import SUMS, Gradients
from pyro_vae.training.tape import Tape
from pyro_vae.training.updates import Updates

__all__ = ["CAPTURED_STEPS_THAT_REPAY", "STEPS_THAT_REPAY", "Compile", "Epoch", "Execution"]

Compile = Literal["auto"] | bool

STEPS_THAT_REPAY = 4000  # compiling costs about ten seconds and saves about three milliseconds per step
CAPTURED_STEPS_THAT_REPAY = 60_000  # on a GPU it costs twelve, and saves a sixth of a millisecond per captured step

_STEPS_BEFORE_CAPTURE = 3  # before a CUDA graph, to warm up libraries
_LONG_EPOCH = 256  # steps, which make a check at the start cheap
_SPACING, _CLOSE_CHECKS = 16, 64  # steps between checks of short epochs, after so many checks
_STEPS_OF_A_LAUNCH = 8  # in a CUDA graph of several, which needs no host and leaves no gaps between them


class _Mode(Enum):
    PROGRAMS = "the programs"
    WATCHED = "the programs, on their way to a graph"
    GRAPH = "a graph"


@dataclass
class _Plan:
    """The requested execution."""

    asked: bool  # by the user, not by "auto"
    compiles: bool
    captures: bool
    num_steps: int
    steps_done: int


@dataclass
class Epoch:
    """The steps of an epoch. The first ``whole_steps`` have the same number of rows; only the last may differ.

    Args:
        indices: The rows of each step, of all ranks.
        read: Yields a reference to this rank's rows, see :meth:`~pyro_vae.data.rows.Rows.references`, for each of the
            given steps; None if it has none.
        shares: Fractions of the training that are done before each step.
        rates: The step sizes of each step, one for each group of the optimiser's parameters.
    """

    indices: Sequence[Tensor]
    read: Callable[[Sequence[Tensor]], Iterator[Mapping[str, Tensor] | None]]
    shares: Sequence[float]
    rates: Sequence[Sequence[float]]
    whole_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole_steps = sum(len(index) == len(self.indices[0]) for index in self.indices)


@dataclass
class _Mark:
    """A point that training can return to, before the step at ``position``: all steps before it were correct."""

    position: int
    saved: Any
    kept: Kept
    sums: Tensor
    state: State


@dataclass
class _Graph:
    """The graph in use and the state of its checks."""

    trace: Trace
    state: State  # of the programs when they were traced
    held: dict[int, Tensor]
    steps: int = 0
    due: int = 1  # the step of the next check
    checks: int = 0
    checked_at: int = 0
    checked_in: State | None = None  # of the programs after the last check, if known
    retraces: int = 0
    suspect: bool = False  # the programs' state was changed before this epoch, so far without effect

    def is_due(self, *, is_last: bool) -> bool:
        """Whether the graph is checked at this step."""
        close = self.suspect or self.checks < _CLOSE_CHECKS or self.steps - self.checked_at >= _SPACING
        return self.steps >= self.due or (is_last and close)

    def was_checked(self) -> None:
        """Sets the next check."""
        self.checks, self.checked_at = self.checks + 1, self.steps
        self.due = 2 ** (self.steps.bit_length())

    def doubt(self, state: State) -> str | None:
        """Why the graph may be invalid, judged by the programs' state."""
        if changes := self.state.changes(state, held=self.held):
            return changes[0].by_others
        if (shape := self.trace.outdated()) is not None:
            return f"a tensor of shape {shape}, whose value the programs read when they were traced, has changed"
        return None

    def stands(self, trace: Trace, state: State) -> bool:
        """Whether a later trace, with the programs in this state, gives the same graph with the same tensors."""
        if any(change.tensor is not None and id(change.tensor) in self.held for change in self.state.changes(state)):
            return False
        return self.trace.difference(trace) is None


class Execution:
    """Takes optimiser steps up the objective's gradient.

    Args:
        gradients: Computes a step's sums and gradient.    optimizer: Over the gradients' parameters.
        max_grad_norm: Bound on the norm of the whole gradient.
        average: Average of the parameters, if there is one; each step is added to it.

    With several ranks, each takes its part of the step's rows, and all follow the gradient over all rows. ``how`` says
    how steps are run, and why; ``sums`` are over the epoch's steps so far and the rows of all ranks. Repeated steps
    count once.
    """

    _epoch: Epoch

    def __init__(
        self,
        gradients: Gradients,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float | None = None,
        average: WeightAverage | None = None,
    ) -> None:
        self.eager = self.gradients = gradients
        self.updates = Updates(gradients.parameters, optimizer, max_grad_norm, average)
        self.how = "eager"
        self._mode = _Mode.PROGRAMS
        device = self.updates.parameters[0].device
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self._share = torch.full((), math.nan, device=device)
        self._share_is = math.nan
        self._position = 0
        self._reason: str | None = None  # why there can be no graph; all ranks must agree on it
        self._warned, self._taken = False, 0

    def stage(self, reference: Mapping[str, Tensor], *, compile: Compile, num_steps: int, steps_done: int = 0) -> None:
        """Plans how to run steps. Nothing is run here; programs are watched when they run.

        Args:
            reference: An example, for its device.
            compile: ``True`` compiles; ``"auto"`` does if there are enough steps to repay it. On a GPU both capture,
                compiled or not. ``False`` runs the programs at every step.
            num_steps: Number of steps in the whole run.
            steps_done: Number of steps taken before, in a resumed run.
        """
        device = next(iter(reference.values())).device
        if compile is False:
            self.how = "eager, as asked"
            return
        asked, captures = compile is True, devices.captures(device)
        repays = num_steps >= (CAPTURED_STEPS_THAT_REPAY if captures else STEPS_THAT_REPAY)
        if not (asked or repays or captures):
            self.how = f"eager: fewer than {STEPS_THAT_REPAY:,} steps do not repay compiling"
            return
        if self._disagree(compiler_missing() if device.type == "cpu" and not captures else None):
            self._stay_eager(warn=asked)
            return
        self.how = "eager: the run ended before its programs had been watched for two steps"
        self._mode = _Mode.WATCHED
        self._plan = _Plan(asked, asked or repays, captures, num_steps, steps_done)
        self._checker = Checker(self.eager, self.updates.optimizer)
        self._seen: dict[tuple[torch.Size, ...], int] = {}  # how often programs were watched with rows of these shapes
        self._whole_before = -1  # whole steps taken before; unknown
        self._after: State | None = None  # the programs' state after the step before
        self._example: list[Tensor] = []
        self._capture_in, self._recording = 0, None

    def begin_epoch(self, epoch: Epoch) -> None:
        """Called before the first step of each epoch, after its random states are set."""
        self._epoch, self._position = epoch, 0
        self.sums.zero_()
        if self._mode is _Mode.WATCHED:
            self._after = None
            if self._whole_before < 0:
                self._whole_before = self._plan.steps_done // len(epoch.indices) * epoch.whole_steps
        elif self._mode is _Mode.GRAPH:
            state = self._checker.watch.state()
            if self._disagree(self._reason or self._reconsidered(state)):
                self._fall_back()
                return
            if len(epoch.indices) >= _LONG_EPOCH and self._recording is None:
                self._graph.due = 0
            self._mark = self._marked(state)
            if self._recording is not None:
                self._recording.begin(epoch)

    def step(self, reference: Mapping[str, Tensor] | None, *, checked: bool = False) -> None:
        """Takes the next step of the epoch.

        Args:
            reference: Reference to this rank's rows, as read by the epoch; None if it has none.
            checked: Run the programs themselves, with Pyro's checks of shapes and supports.
        """
        tensors = None if reference is None else [reference[name] for name in self.eager.names]
        if self._mode is _Mode.GRAPH:
            self._step_of_graph(tensors)
        elif self._mode is _Mode.WATCHED:
            self._step_watched(tensors, checked=checked)
        else:
            self._step_of_programs(tensors, checked=checked)
        self._position, self._taken = self._position + 1, self._taken + 1
        if self._mode is _Mode.GRAPH and self._graph.checked_at == self._graph.steps:
            self._mark = self._marked(self._graph.checked_in or self._checker.watch.state())

    def _inputs(self, tensors: list[Tensor]) -> list[Tensor]:
        """The inputs of a step's objective and gradient."""
        if (share := self._epoch.shares[self._position]) != self._share_is:
            self._share_is, self._share = share, torch.full_like(self._share, share)
        return [self._share, *tensors]

    @property
    def is_to_compile(self) -> bool:
        """Whether one of the next steps compiles the programs, which takes seconds."""
        return self._mode is _Mode.WATCHED and self._plan.compiles

    @property
    def _is_whole(self) -> bool:
        """Whether the step has the usual number of rows. A rank's share of a smaller step may still be as large."""
        return self._position < self._epoch.whole_steps

    # Steps of the programs

    def _step_of_programs(self, tensors: list[Tensor] | None, *, checked: bool = False) -> None:
        if tensors is None:
            self._take_nothing()
            return
        # Pyro's checks cost as much as the arithmetic; one checked step finds mistakes.
        with pyro.validation_enabled(is_validate=checked):
            results = self.eager(*self._inputs(tensors))
        self._take(results, tensors)

    def _take_nothing(self) -> None:
        """The step of a rank that has no rows in it."""
        nothing = [torch.zeros_like(parameter) for parameter in self.updates.parameters]
        self.updates.rates = self._epoch.rates[self._position]
        self._apply((nothing[0].new_zeros(len(SUMS)), *nothing), 0)

    def _take(self, results: Results, tensors: list[Tensor]) -> None:
        """Takes the step with these sums and gradients."""
        self.updates.rates = self._epoch.rates[self._position]
        self._apply(results, len(tensors[0]))

    def _apply(self, results: Results, num_rows: int) -> Tensor:
        sums, *found = results
        sums = self.updates.apply(sums, found, num_rows, short=self._mode is _Mode.GRAPH)
        self.sums += sums
        return sums

    # Steps of the programs, on their way to a graph

    def _step_watched(self, tensors: list[Tensor] | None, *, checked: bool) -> None:
        if tensors is None:
            self._take_nothing()
            return
        inputs, shapes = self._inputs(tensors), [tensor.shape for tensor in tensors]
        if self._is_whole:
            self._repeat_before(inputs)
            if self._seen.get(tuple(shapes), 0) >= 2 and not checked:
                if self._disagree(self._reason or self._make_graph(inputs)):
                    self._stay_eager()
                    self._step_of_programs(tensors)
                    return
                self._mode = _Mode.GRAPH
                self._step_of_graph(tensors)
                return
        results = self._watched(inputs, checked=checked)
        if self._is_whole:
            self._example = inputs
            if self._disagree(self._reason):
                self._stay_eager()
        self._take(results, tensors)

    def _repeat_before(self, inputs: list[Tensor]) -> None:
        """Watches the programs as often as in the steps that an earlier process took."""
        for _ in range(min(2, self._whole_before)):
            with self._checker.putting_back():
                self._watched(inputs, checked=False)
            self._example, self._after = inputs, None
        self._whole_before = 0

    def _watched(self, inputs: list[Tensor], *, checked: bool) -> Results:
        shapes = tuple(tensor.shape for tensor in inputs[1:])
        times = self._seen[shapes] = self._seen.get(shapes, 0) + 1
        seen = self._checker.observe(inputs, judged=times > 1, checked=checked)
        if self._reason is None and self._after is not None and (moved := self._after.changes(seen.before)):
            self._reason = moved[0].by_others
        self._reason, self._after = self._reason or seen.reason, seen.after
        return seen.results

    def _make_graph(self, inputs: list[Tensor]) -> str | None:
        """Traces and compiles; returns the reason if there can be no graph."""
        checker, plan = self._checker, self._plan
        before = checker.watch.state()
        if self._after is not None and (moved := self._after.changes(before)):
            return moved[0].by_others
        uncompiled = None
        if plan.compiles:
            lowering.prepare_compiler()
        try:
            trace = self._traced(self._example, 0.7, seed=0)
            if (difference := trace.difference(self._traced(inputs, 0.3, seed=1))) is not None:
                return f"the programs' graph depends on rows and noise ({difference})"
            if (reason := checker.watch.reason(before, checker.watch.state())) is not None:
                before.put_back()
                return reason
            self.gradients = _as_traced(trace)
            if plan.compiles:
                try:
                    self.gradients = lowering.compile_trace(trace, inputs)
                except CannotStageError as error:
                    if not plan.captures:
                        raise
                    uncompiled = str(error)
        except CannotStageError as error:
            before.put_back()
            return str(error)
        self._graph, self._mark = _Graph(trace, before, _held(trace, before)), None
        self.how = "compiled" if plan.compiles and uncompiled is None else "uncompiled"
        if plan.captures:
            self._capture_in, self._recording = _STEPS_BEFORE_CAPTURE, None
        if uncompiled is not None and plan.asked:
            self._warn(f"training captures the programs in a CUDA graph, uncompiled: {uncompiled}")
        return None

    def _traced(self, inputs: list[Tensor], share: float, *, seed: int) -> Trace:
        """A trace of the programs that leaves everything unchanged."""
        with pyro.validation_enabled(is_validate=False), self._checker.putting_back():
            pyro.set_rng_seed(seed)
            return lowering.trace(
                self.eager, [torch.full_like(inputs[0], share), *inputs[1:]], changing=self._checker.changing
            )

    def _disagree(self, reason: str | None) -> bool:
        """Whether any rank has a reason, which is stored. All ranks must call this at the same step."""
        self._reason = reason
        if world_size() > 1:
            device = self.updates.parameters[0].device
            (found,) = add_up([torch.full((1,), float(reason is not None), device=device)])
            if reason is None and float(found) > 0:
                self._reason = "another rank cannot use a graph"
        return self._reason is not None

    def _warn(self, message: str) -> None:
        """Warns once, pointing to the line that called the library."""
        if self._warned:
            return
        self._warned = True
        level, frame = 1, sys._getframe()
        while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "pyro_vae":
            level, frame = level + 1, frame.f_back
        warnings.warn(message, stacklevel=level)

    def _stay_eager(self, *, warn: bool = True) -> None:
        self._mode, self.gradients = _Mode.PROGRAMS, self.eager
        self.how = f"eager: {self._reason}"
        if warn:
            self._warn(f"training runs the programs at every step, uncompiled: {self._reason}")

    # Steps of the graph

    def _step_of_graph(self, tensors: list[Tensor] | None) -> None:
        if tensors is None:
            self._take_nothing()
            return
        if not self._is_whole:
            self._step_of_other_rows(tensors)
            return
        self._graph.steps += 1
        is_last = self._position + 1 == self._epoch.whole_steps
        if self._graph.is_due(is_last=is_last):
            if self._recording is not None:
                self._recording.catch_up(self._position)
            self._checked_step(tensors)
        elif self._recording is not None:
            self._replay(self._recording, tensors, is_last=is_last)
        elif self._capture_in:
            self._step_on_the_way_to_capture(tensors)
        else:
            self._step_uncaptured(tensors)

    def _step_uncaptured(self, tensors: list[Tensor]) -> None:
        try:
            results = self.gradients(*self._inputs(tensors))
        except Exception as error:  # if the rows are the cause, the programs will raise it
            if world_size() > 1:
                raise
            self._reason = f"their graph failed ({reason_of(error)})"
            self._go_back()
            return
        self._take(results, tensors)

    def _step_of_other_rows(self, tensors: list[Tensor]) -> None:
        """A step of the programs on a number of rows that differs from the graph's; the first ones are watched."""
        if self._seen.get(tuple(tensor.shape for tensor in tensors), 0) >= 2:
            self._step_of_programs(tensors)
            return
        self._after = None
        self._take(self._watched(self._inputs(tensors), checked=False), tensors)

    def _checked_step(self, tensors: list[Tensor]) -> None:
        """A step of the graph if it matches the programs; else the same step after going back."""
        state, self._graph.checked_in = self._checker.watch.state(), None
        reason = self._reason or self._graph.doubt(state)
        if self._recording is not None:
            self._checked_replay(self._recording, tensors, state, reason)
            return
        results: Results | None = None
        if reason is None:
            results, reason = self._checker.compare(self.gradients, self._inputs(tensors))
        if self._disagree(reason):
            self._go_back()
            return
        assert results is not None
        self._graph.was_checked()
        self._take(results, tensors)

    def _go_back(self) -> None:
        """Repeats the steps since the mark, and the current one, with the programs."""
        mark, epoch, last = self._mark, self._epoch, self._position
        if mark is None:  # before the first check of a graph, all steps ran the programs
            mark = self._marked(self._checker.watch.state())
        failed = self._checker.watch.state()
        self._fall_back()
        self.updates.restore(mark.saved)
        mark.kept.put_back()
        mark.state.put_back()
        self.sums.copy_(mark.sums)
        again = epoch.read(epoch.indices[mark.position : last + 1])
        for self._position, reference in enumerate(again, start=mark.position):
            self._step_of_programs(None if reference is None else [reference[name] for name in self.eager.names])
            if self._position == 0 < last:
                broadcast(self.eager.pair.buffers())
        failed.put_back(unless_moved_in=mark.state)

    def _fall_back(self) -> None:
        """Uses the programs from here on."""
        self._mode, self.gradients, self._recording = _Mode.PROGRAMS, self.eager, None
        taken = self._graph.steps - 1
        if taken < 1:
            self._stay_eager()
            return
        self.how = f"{self.how} for {taken:,} steps, then eager: {self._reason}"
        self._warn(f"training continues with the programs, after {taken:,} steps of their graph: {self._reason}")

    def _marked(self, state: State) -> _Mark:
        return _Mark(self._position, self.updates.save(), self._checker.keep(), self.sums.clone(), state)

    def _reconsidered(self, state: State) -> str | None:
        """Why the graph no longer matches the programs, whose state may have changed between epochs."""
        graph = self._graph
        doubt, graph.suspect = graph.doubt(state), False
        if doubt is None:
            return None
        graph.due, graph.suspect = 0, True
        if graph.retraces > 4 + graph.steps // 256:  # each takes as long as many steps, and the check will find out
            graph.state = state
            return None
        graph.retraces += 1
        try:
            again = self._traced(self._example, 0.7, seed=0)
        except CannotStageError:
            return doubt
        if graph.stands(again, state):
            graph.trace.read, graph.state = again.read, state
            return None
        left = self._plan.num_steps - self._plan.steps_done - self._taken
        if min(graph.steps, left) < STEPS_THAT_REPAY:
            return doubt
        self._after = None
        if (reason := self._make_graph(self._example)) is not None:
            return reason
        self._warn(f"training continues with a new graph of the programs: {doubt}")
        return None

    # CUDA graphs

    def _step_on_the_way_to_capture(self, tensors: list[Tensor]) -> None:
        """A step on a side stream without synchronisation, as capturing needs; records the graph after the last one."""
        self._capture_in -= 1
        results, reason = (), None
        with pyro.validation_enabled(is_validate=False), cuda_graphs.on_side_stream():
            try:
                with cuda_graphs.refusing_to_wait():
                    results = self.gradients(*self._inputs(tensors))
            except Exception as error:
                reason = f"their graph cannot be captured ({reason_of(error)})"
            if not self._disagree(reason):
                self._take(results, tensors)
        if self._reason is not None:
            self._go_back()
        elif self._capture_in == 0:
            try:
                with pyro.validation_enabled(is_validate=False):
                    self._recording = self._recorded(tensors)
            except CannotStageError as error:
                reason = f"their graph cannot be captured ({error})"
            if self._disagree(reason):
                self._fall_back()
                return
            what = "captured" if self._captures_whole_steps() else "gradients captured"
            self.how = f"{self.how}, {what} in a CUDA graph"
            self._graph.due = 0

    def _captures_whole_steps(self) -> bool:
        return world_size() == 1 and self.updates.can_be_captured

    def _recorded(self, tensors: list[Tensor]) -> "_Recording":
        if not self._captures_whole_steps():  # communication between ranks stays outside the graph
            return _Recording(cuda_graphs.captured(self.gradients, self._inputs(tensors)))
        groups, by_index = self.updates.optimizer.param_groups, isinstance(self.eager.rows, Resident)
        tape = Tape(self._epoch.whole_steps, len(groups), tensors, by_index=by_index)

        def step() -> list[Tensor]:
            share, rates, rows = tape.read()
            for group, rate in zip(groups, rates.unbind(), strict=True):
                group["lr"].copy_(rate)
            sums = self._apply(self.gradients(share, *rows), len(tensors[0]))
            tape.wind_on()
            return [sums, *(parameter.grad for parameter in self.updates.parameters if parameter.grad is not None)]

        def steps() -> None:
            for _ in range(_STEPS_OF_A_LAUNCH):
                step()

        pool = cuda_graphs.new_pool()
        results, launch = cuda_graphs.recorded(step, pool)

        def run() -> Results:
            launch()
            return tuple(results)

        recording = _Recording(run, tape)
        if by_index and self._epoch.whole_steps >= 2 * _STEPS_OF_A_LAUNCH:
            with contextlib.suppress(CannotStageError):  # steps can still be launched one by one
                _, recording.run_several = cuda_graphs.recorded(steps, pool)
        recording.begin(self._epoch)
        return recording

    def _replay(self, recording: "_Recording", tensors: list[Tensor], *, is_last: bool) -> None:
        if recording.run_several is not None:
            recording.ask(self._position, is_last=is_last)
            return
        results = self._launch(recording, tensors)
        if recording.tape is None:
            self._take(results, tensors)

    def _launch(self, recording: "_Recording", tensors: list[Tensor]) -> Results:
        if recording.tape is None:
            return recording.run(*self._inputs(tensors))
        recording.tape.wind(self._position, tensors)
        results = recording.run()
        recording.tape.at += 1
        return results

    def _checked_replay(self, recording: "_Recording", tensors: list[Tensor], state: State, reason: str | None) -> None:
        """A step of the recording if it matches the programs; else the same step after going back."""
        expected, results = None, ()
        if reason is None and recording.has_the_noise is not False:
            seen = self._checker.expected(self._inputs(tensors), state)
            expected, self._graph.checked_in, reason = seen.results, seen.after, seen.reason
        if reason is None:
            results = self._launch(recording, tensors)
            if expected is not None and not self._are_the_same(recording, results, expected):
                if recording.has_the_noise is None:  # a new recording may differ by its noise alone
                    recording.has_the_noise = False
                else:
                    reason = UNSEEN
            elif expected is not None:
                recording.has_the_noise = True
        if self._disagree(reason):
            self._go_back()
            return
        self._graph.was_checked()
        if recording.tape is None:
            self._take(results, tensors)

    def _are_the_same(self, recording: "_Recording", results: Results, expected: Results) -> bool:
        """Whether the replay has the programs' sums and gradients, up to the last digits."""
        sums, *gradients = expected
        wanted = [sums, *(gradients if recording.tape is None else self.updates.clipped(gradients))]
        return agree(list(results), wanted, lambda errors: wanted, tolerance=1e-3)


@dataclass
class _Recording:
    """A CUDA graph of gradients, or of whole steps, which read a tape.

    ``has_the_noise`` says whether a replay draws the same random numbers as the programs; None while unknown.
    ``run_several`` runs the next eight steps of the tape. Steps wait for it until there are as many, or until what they
    leave is needed.
    """

    run: Callable[..., Results]
    tape: Tape | None = None
    has_the_noise: bool | None = None
    run_several: Callable[[], None] | None = None
    waiting: int = 0

    def ask(self, position: int, *, is_last: bool) -> None:
        """Asks for the step at a position, after those that wait."""
        assert self.tape is not None
        assert self.run_several is not None
        self.waiting += 1
        if self.waiting == _STEPS_OF_A_LAUNCH:
            self.tape.wind(position + 1 - self.waiting, ())
            self.run_several()
            self.tape.at, self.waiting = position + 1, 0
        elif is_last:
            self.catch_up(position + 1)

    def catch_up(self, position: int) -> None:
        """Takes the steps that wait, the last of which is the one before a position."""
        for at in range(position - self.waiting, position):
            assert self.tape is not None
            self.tape.wind(at, ())
            self.run()
            self.tape.at = at + 1
        self.waiting = 0

    def begin(self, epoch: Epoch) -> None:
        """Puts an epoch's steps on the tape."""
        if self.tape is not None:
            whole = epoch.whole_steps
            self.tape.fill(epoch.shares[:whole], epoch.rates[:whole], epoch.indices[:whole])


def _as_traced(trace: Trace) -> Callable[..., Results]:
    """The traced graph, uncompiled: unlike the programs it reads no values and has no dead code."""
    graph = lowering.without_dead_code(trace.graph)

    def call(*tensors: Tensor) -> Results:
        with torch.no_grad():
            return tuple(graph(*tensors, *trace.held))

    return call


def _held(trace: Trace, state: State) -> dict[int, Tensor]:
    """The programs' tensors that a graph holds, by address."""

    def place(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)

    places = set(map(place, trace.held))
    return {id(tensor): tensor for tensor, _ in state.tensors.values() if place(tensor) in places}
