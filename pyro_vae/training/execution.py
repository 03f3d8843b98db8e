"""How training steps are run: as the programs stand, as one compiled graph, or as one CUDA graph.

Programs mean what they do; a graph stands for them only while it does the same.

1. The first steps run the programs, watched. State outside of tensors that a run changes, or that changes between two
   steps, is no part of a graph: such programs are trained as they are.
2. They are traced twice, on different rows with different noise. Both must give the same graph.
3. A *check* runs programs and graph on the same rows with the same noise and compares, to rounding, the sums, the
   gradients, what was changed in place and the random numbers taken. It is made at the first step of a graph, at its
   2nd, 4th, 8th, ... step, at the last whole step of an epoch, and at the first of a long one.
4. Where a check fails, training goes back to the last point in the epoch where it held, and on from there with the
   programs. Between epochs the user may have changed something: where the programs' state is another, they are traced
   again, and a graph that comes out the same goes on.
"""

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

from pyro_vae.training import lowering
from pyro_vae.training.checking import UNSEEN, Checker, Kept, Results
from pyro_vae.training.lowering import CannotStageError, Trace, captured, compiler_missing, reason_of
from pyro_vae.training.parallel import add_up, broadcast, world_size
from pyro_vae.training.pictures import State
from pyro_vae.training.rounding import agree
from pyro_vae.training.step import SUMS, Gradients
from pyro_vae.training.updates import Updates

__all__ = ["STEPS_THAT_REPAY", "Compile", "Execution"]

Compile = Literal["auto"] | bool

STEPS_THAT_REPAY = 4000  # compiling costs about ten seconds and saves some three milliseconds a step

_STEPS_BEFORE_CAPTURE = 3  # of a CUDA graph, for libraries to settle
_LONG_EPOCH = 256  # steps, so that a check at its start costs next to nothing
_SPACING, _CLOSE_CHECKS = 16, 64  # steps between checks of short epochs, after so many of them


class _Mode(Enum):
    PROGRAMS = "the programs"
    WATCHED = "the programs, on their way to a graph"
    GRAPH = "a graph"


@dataclass
class _Plan:
    """What is asked for."""

    device: torch.device
    compiles: bool
    captures: bool
    num_steps: int
    steps_done: int


@dataclass
class _Epoch:
    """The steps of an epoch. The first ``whole_steps`` have the same number of rows; only the last can have another."""

    indices: Sequence[Tensor]
    read: Callable[[Sequence[Tensor]], Iterator[Mapping[str, Tensor] | None]]
    sums: Tensor
    whole_steps: int = field(init=False)

    def __post_init__(self) -> None:
        self.whole_steps = sum(len(index) == len(self.indices[0]) for index in self.indices)


@dataclass
class _Mark:
    """A point that training can go back to, before the step at ``position``: all steps before it were right."""

    position: int
    saved: Any
    kept: Kept
    sums: Tensor
    state: State


@dataclass
class _Graph:
    """What is known of the graph that is trained."""

    trace: Trace
    state: State  # of the programs, as it was when they were traced
    held: dict[int, Tensor]
    steps: int = 0
    due: int = 1  # the step of the next check
    checks: int = 0
    checked_at: int = 0
    retraces: int = 0
    suspect: bool = False  # the programs' state was changed before this epoch, though without effect as yet

    def is_due(self, *, is_last: bool) -> bool:
        """Whether the graph is checked at this step."""
        close = self.suspect or self.checks < _CLOSE_CHECKS or self.steps - self.checked_at >= _SPACING
        return self.steps >= self.due or (is_last and close)

    def was_checked(self) -> None:
        """Sets the next check."""
        self.checks, self.checked_at = self.checks + 1, self.steps
        self.due = 2 ** (self.steps.bit_length())

    def doubt(self, state: State) -> str | None:
        """What speaks against the graph, as far as the programs' state can tell."""
        if changes := self.state.changes(state, held=self.held):
            return changes[0].by_others
        if (shape := self.trace.outdated()) is not None:
            return f"a tensor of shape {shape}, whose value the programs read when they were traced, has changed"
        return None

    def stands(self, trace: Trace, state: State) -> bool:
        """Whether a later trace, with the programs in this state, is the same graph of the same tensors."""
        if any(change.tensor is not None and id(change.tensor) in self.held for change in self.state.changes(state)):
            return False
        return self.trace.difference(trace) is None


class Execution:
    """Takes steps of the optimiser up the objective's gradient.

    Args:
        gradients: What a step computes.
        optimizer: Over the gradients' parameters.
        max_grad_norm: Bound on the norm of the whole gradient.

    With several ranks, each takes its part of the step's rows, and all go up the gradient of the whole. ``how`` says
    how steps are run, and why.
    """

    def __init__(
        self, gradients: Gradients, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None
    ) -> None:
        self.eager = self.gradients = gradients
        self.updates = Updates(gradients.parameters, optimizer, max_grad_norm)
        self.how = "eager"
        self._mode = _Mode.PROGRAMS
        self._progress, self._share = math.nan, torch.zeros(())
        self._epoch: _Epoch | None = None
        self._position = 0
        self._log: list[tuple[float, list[Any]]] = []  # progress and step size of each step since the mark
        self._reason: str | None = None  # why there can be no graph, until all ranks agree on it
        self._warned, self._taken = False, 0

    def stage(self, reference: Mapping[str, Tensor], *, compile: Compile, num_steps: int, steps_done: int = 0) -> None:
        """Says how steps are to be run. Programs are watched when they run, and nothing is run here.

        Args:
            reference: An example, for its device.
            compile: ``True`` compiles, and on a GPU captures too; ``"auto"`` captures on a GPU, and compiles on a CPU
                if there are steps enough; ``False`` runs the programs at every step.
            num_steps: Steps of the whole run.
            steps_done: Those that were taken before, in a run that goes on from a file.
        """
        device = next(iter(reference.values())).device
        if compile is False:
            self.how = "eager, as asked"
            return
        on_gpu = device.type == "cuda"
        if not on_gpu and compile == "auto" and num_steps < STEPS_THAT_REPAY:
            self.how = f"eager: fewer than {STEPS_THAT_REPAY:,} steps do not repay compiling"
            return
        if self._disagree(None if on_gpu else compiler_missing()):
            self._stay_eager(warn=compile is True)
            return
        self.how = "eager: the run ended before its programs had been watched for two steps"
        self._mode = _Mode.WATCHED
        self._plan = _Plan(device, not on_gpu or compile is True, on_gpu, num_steps, steps_done)
        self._checker = Checker(self.eager, self.updates.optimizer)
        self._shapes: list[torch.Size] = []
        self._seen: dict[tuple[torch.Size, ...], int] = {}  # how often programs were watched at rows of these shapes
        self._whole_before = -1  # whole steps that were taken before; unknown
        self._after: State | None = None  # the programs' state after the step before
        self._example: list[Tensor] = []
        self._capture_in, self._recording = 0, None

    def begin_epoch(
        self,
        indices: Sequence[Tensor],
        read: Callable[[Sequence[Tensor]], Iterator[Mapping[str, Tensor] | None]],
        sums: Tensor,
    ) -> None:
        """To be called before the first step of each epoch, when its random states and step size are set.

        Args:
            indices: The rows of each step, of all ranks.
            read: Gives a reference to this rank's rows for each of some of these; None where it has none.
            sums: Each step adds its sums to this tensor. Steps that are taken again count once.
        """
        self._epoch, self._position, self._log = _Epoch(indices, read, sums), 0, []
        if self._mode is _Mode.WATCHED:
            self._after = None
            if self._whole_before < 0:
                self._whole_before = self._plan.steps_done // len(indices) * self._epoch.whole_steps
        elif self._mode is _Mode.GRAPH:
            state = self._checker.watch.state()
            if self._disagree(self._reason or self._reconsidered(state)):
                self._fall_back()
                return
            if len(indices) >= _LONG_EPOCH:
                self._graph.due = 0
            self._mark = self._marked(state)

    def step(self, reference: Mapping[str, Tensor] | None, progress: float, *, checked: bool = False) -> Tensor:
        """One step; returns the sums over its rows, of all ranks.

        Args:
            reference: To the rows of this rank, see :meth:`~pyro_vae.data.rows.Rows.references`; None if it has none.
            progress: Share of the training that is done.
            checked: Run the programs themselves, with Pyro's checks of shapes and supports.
        """
        tensors = None if reference is None else [reference[name] for name in self.eager.names]
        if progress != self._progress:
            device = self.updates.parameters[0].device
            self._progress, self._share = progress, torch.full((), progress, device=device)
        if self._mode is _Mode.GRAPH:
            self._log.append((progress, self.updates.rates))
            sums = self._step_of_graph(tensors)
        elif self._mode is _Mode.WATCHED:
            sums = self._step_watched(tensors, checked=checked)
        else:
            sums = self._step_of_programs(tensors, checked=checked)
        self._position, self._taken = self._position + 1, self._taken + 1
        if self._epoch is not None:
            self._epoch.sums += sums
        if self._mode is _Mode.GRAPH and self._graph.checked_at == self._graph.steps:
            self._mark, self._log = self._marked(self._checker.watch.state()), []
        return sums

    # Steps of the programs

    def _step_of_programs(self, tensors: list[Tensor] | None, *, checked: bool = False) -> Tensor:
        if tensors is None:
            return self._nothing()
        # Pyro's checks cost as much as the arithmetic; one checked step finds the mistakes.
        with pyro.validation_enabled(is_validate=checked):
            results = self.eager(self._share, *tensors)
        return self._update(results, tensors)

    def _nothing(self) -> Tensor:
        """The step of a rank that has no rows in it."""
        nothing = [torch.zeros_like(parameter) for parameter in self.updates.parameters]
        sums = nothing[0].new_zeros(len(SUMS))
        return self.updates.apply(sums, nothing, 0, short=self._mode is _Mode.GRAPH)

    def _update(self, results: Results, tensors: list[Tensor]) -> Tensor:
        sums, *found = results
        return self.updates.apply(sums, found, len(tensors[0]), short=self._mode is _Mode.GRAPH)

    # Steps of the programs, on their way to a graph

    def _step_watched(self, tensors: list[Tensor] | None, *, checked: bool) -> Tensor:
        if tensors is None:
            return self._nothing()
        inputs, shapes = [self._share, *tensors], [tensor.shape for tensor in tensors]
        if self._position == 0 and not self._shapes:
            self._shapes = shapes
        whole = shapes == self._shapes
        if whole:
            self._repeat_before(inputs)
            if self._seen.get(tuple(shapes), 0) >= 2 and not checked:
                if self._disagree(self._reason or self._make_graph(inputs)):
                    self._stay_eager()
                    return self._step_of_programs(tensors)
                self._mode = _Mode.GRAPH
                return self._step_of_graph(tensors)
        results = self._watched(inputs, checked=checked)
        if whole:
            self._example = inputs
            if self._disagree(self._reason):
                self._stay_eager()
        return self._update(results, tensors)

    def _repeat_before(self, inputs: list[Tensor]) -> None:
        """Watches the programs as often as they would have been in the steps that another process has taken."""
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
                return f"other rows and other noise make another graph of the programs ({difference})"
            if (reason := checker.watch.reason(before, checker.watch.state())) is not None:
                before.put_back()
                return reason
            self.gradients = self.eager
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
        self.how = "compiled"
        if plan.captures:
            compiled = "" if self.gradients is self.eager else "compiled and "
            what = "captured" if self._captures_whole_steps() else "gradients captured"
            self._capture_in, self._recording = _STEPS_BEFORE_CAPTURE, None
            self.how = f"{compiled}{what} in a CUDA graph"
            if uncompiled is not None:
                self.how = f"{self.how}, uncompiled: {uncompiled}"
                self._warn(f"training captures the programs in a CUDA graph, uncompiled: {uncompiled}")
        return None

    def _traced(self, inputs: list[Tensor], share: float, *, seed: int) -> Trace:
        """A trace of the programs, by which nothing is changed."""
        with pyro.validation_enabled(is_validate=False), self._checker.putting_back():
            pyro.set_rng_seed(seed)
            return lowering.trace(
                self.eager, [torch.full_like(inputs[0], share), *inputs[1:]], changing=self._checker.changing
            )

    def _disagree(self, reason: str | None) -> bool:
        """Whether there is a reason on any rank, which is kept. All ranks must ask at the same step."""
        self._reason = reason
        if world_size() > 1:
            device = self.updates.parameters[0].device
            (found,) = add_up([torch.full((1,), float(reason is not None), device=device)])
            if reason is None and float(found) > 0:
                self._reason = "another of the processes that train together cannot train a graph"
        return self._reason is not None

    def _warn(self, message: str) -> None:
        """Warns once, of the line that called the library."""
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

    def _step_of_graph(self, tensors: list[Tensor] | None) -> Tensor:
        if tensors is None:
            return self._nothing()
        if [tensor.shape for tensor in tensors] != self._shapes:
            return self._step_of_other_rows(tensors)
        self._graph.steps += 1
        inputs = [self._share, *tensors]
        if self._graph.is_due(is_last=self._position + 1 == self._last_whole):
            return self._checked_step(inputs)
        if self._recording is not None:
            return self._replayed(self._recording, inputs)
        if self._capture_in:
            return self._step_on_the_way_to_capture(inputs)
        try:
            results = self.gradients(*inputs)
        except Exception as error:  # if the rows are to blame, the programs will say so
            if world_size() > 1:
                raise
            self._reason = f"their graph failed ({reason_of(error)})"
            return self._go_back(inputs)
        return self._update(results, tensors)

    @property
    def _last_whole(self) -> int:
        return -1 if self._epoch is None else self._epoch.whole_steps

    def _step_of_other_rows(self, tensors: list[Tensor]) -> Tensor:
        """A step of the programs on another number of rows than the graph has; the first of them are watched."""
        if self._seen.get(tuple(tensor.shape for tensor in tensors), 0) >= 2:
            return self._step_of_programs(tensors)
        self._after = None
        return self._update(self._watched([self._share, *tensors], checked=False), tensors)

    def _checked_step(self, inputs: list[Tensor]) -> Tensor:
        """A step of the graph, if it is what the programs do; else the same step after going back."""
        reason = self._reason or self._graph.doubt(self._checker.watch.state())
        results: Results | None = None
        if self._recording is not None:
            return self._checked_replay(self._recording, inputs, reason)
        if reason is None:
            results, reason = self._checker.compare(self.gradients, inputs)
        if self._disagree(reason):
            return self._go_back(inputs)
        assert results is not None
        self._graph.was_checked()
        return self._update(results, inputs[1:])

    def _go_back(self, inputs: list[Tensor]) -> Tensor:
        """Takes the steps since the mark again, by the programs, with the one that was checked."""
        mark, epoch, last = self._mark, self._epoch, self._position
        if mark is None or epoch is None:
            self._fall_back()
            return self._step_of_programs(inputs[1:])
        failed, log = self._checker.watch.state(), self._log
        self._fall_back()
        self.updates.restore(mark.saved)
        mark.kept.put_back()
        mark.state.put_back()
        epoch.sums.copy_(mark.sums)
        sums = torch.zeros_like(epoch.sums)
        again = zip(log, epoch.read(epoch.indices[mark.position : last + 1]), strict=True)
        for position, ((progress, rates), reference) in enumerate(again, start=mark.position):
            epoch.sums += sums
            self.updates.rates, self._share = rates, torch.full_like(self._share, progress)
            tensors = None if reference is None else [reference[name] for name in self.eager.names]
            sums = self._step_of_programs(tensors)
            if position == 0 < last:
                broadcast(self.eager.pair.buffers())
        failed.put_back(unless_moved_in=mark.state)
        return sums

    def _fall_back(self) -> None:
        """From here on, the programs."""
        self._mode, self.gradients, self._recording = _Mode.PROGRAMS, self.eager, None
        taken = self._graph.steps - 1
        if taken < 1:
            self._stay_eager()
            return
        self.how = f"{self.how} for {taken:,} steps, then eager: {self._reason}"
        self._warn(f"training goes on with the programs, after {taken:,} steps of their graph: {self._reason}")

    def _marked(self, state: State) -> _Mark | None:
        if self._epoch is None:
            return None
        return _Mark(self._position, self.updates.save(), self._checker.keep(), self._epoch.sums.clone(), state)

    def _reconsidered(self, state: State) -> str | None:
        """Why the graph is no longer the programs', whose state may have been changed between epochs."""
        graph = self._graph
        doubt, graph.suspect = graph.doubt(state), False
        if doubt is None:
            return None
        graph.due, graph.suspect = 0, True
        if graph.retraces > 4 + graph.steps // 256:  # each takes as long as many steps, and the check will tell
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
        self._warn(f"training goes on with another graph of the programs: {doubt}")
        return None

    # CUDA graphs

    def _step_on_the_way_to_capture(self, inputs: list[Tensor]) -> Tensor:
        """Real steps on a side stream, as capturing needs; after the last of them the step is recorded."""
        with pyro.validation_enabled(is_validate=False):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                sums = self._update(self.gradients(*inputs), inputs[1:])
            torch.cuda.current_stream().wait_stream(stream)
            self._capture_in -= 1
            if self._capture_in == 0:
                try:
                    self._recording = self._recorded(inputs)
                    self._graph.due = 0
                except CannotStageError as error:
                    self._reason = str(error)
                    self._stay_eager()
        return sums

    def _recorded(self, inputs: list[Tensor]) -> "_Recording":
        if not self._captures_whole_steps():  # what ranks say to each other stays outside of the graph
            return _Recording(captured(self.gradients, inputs), None)

        def step(*inputs: Tensor) -> tuple[Tensor]:
            return (self._update(self.gradients(*inputs), list(inputs[1:])),)

        run = captured(step, inputs)
        return _Recording(run, [p.grad for p in self.updates.parameters if p.grad is not None])

    def _captures_whole_steps(self) -> bool:
        return world_size() == 1 and self.updates.can_be_captured

    def _replayed(self, recording: "_Recording", inputs: list[Tensor]) -> Tensor:
        results = recording.run(*inputs)
        return self._update(results, inputs[1:]) if recording.gradients is None else results[0].clone()

    def _checked_replay(self, recording: "_Recording", inputs: list[Tensor], reason: str | None) -> Tensor:
        """A step of the recording, if it is what the programs do; else the same step after going back."""
        expected: Results | None = None
        if reason is None and recording.has_the_noise is not False:
            expected, reason = self._checker.expected(inputs)
        sums = torch.zeros(())
        if reason is None:
            sums = self._replayed(recording, inputs)
            if expected is not None and not self._is_replay_of(recording, sums, expected):
                if recording.has_the_noise is None:  # what is new agrees but for its noise, which no check can see past
                    recording.has_the_noise = False
                else:
                    reason = UNSEEN
            elif expected is not None:
                recording.has_the_noise = True
        if self._disagree(reason):
            return self._go_back(inputs)
        self._graph.was_checked()
        return sums

    def _is_replay_of(self, recording: "_Recording", sums: Tensor, expected: Results) -> bool:
        """Whether a step that was replayed had the programs' sums and gradients, which only have their last digits."""
        if recording.gradients is None:
            found = [parameter.grad for parameter in self.updates.parameters if parameter.grad is not None]
        else:
            found = recording.gradients
        wanted = [expected[0], *self.updates.clipped(expected[1:])]
        return agree([sums, *found], wanted, lambda errors: wanted, tolerance=1e-3)


@dataclass
class _Recording:
    """A CUDA graph of the gradients, or of whole steps: then with the gradients that a step leaves.

    ``has_the_noise`` says whether a replay draws the numbers that the programs would; None until it has been seen.
    """

    run: Callable[..., Results]
    gradients: list[Tensor] | None
    has_the_noise: bool | None = None


def _held(trace: Trace, state: State) -> dict[int, Tensor]:
    """The tensors of the programs that a graph holds, by their address."""

    def place(tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else id(tensor)

    places = set(map(place, trace.held))
    return {id(tensor): tensor for tensor, _ in state.tensors.values() if place(tensor) in places}
