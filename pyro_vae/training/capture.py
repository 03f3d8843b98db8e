"""Steps in a CUDA graph: recorded once, without running, and then launched as a unit.

A launch costs the host a few microseconds, whatever the step does. So all inputs of a step are on the device before it:
its rows, its fraction of the training and its step sizes are lines of a :class:`Tape`, which the step itself advances.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.training.lowering import CannotStageError, reason_of

__all__ = ["Tape", "captured", "new_pool", "on_side_stream", "recorded", "refusing_to_wait"]


class Tape:
    """The inputs of an epoch's steps on the device, one line per step.

    Args:
        num_steps: Number of lines.
        num_rates: Number of step sizes in a line, one for each group of parameters.
        inputs: An example of a step's tensors other than its fraction of the training.
        by_index: Whether these are indices of rows, which become lines of the tape; other tensors are copied to the
            same place before every launch.

    Example:
        >>> tape = Tape(2, 1, [torch.tensor([0, 0, 0])], by_index=True)
        >>> tape.fill([0.0, 0.5], [[1e-3], [1e-4]], [torch.tensor([4, 1, 2]), torch.tensor([0, 3, 5])])
        >>> tape.wind(1, [])
        >>> tape.read()
        (tensor(0.5000), tensor([1.0000e-04]), [tensor([0, 3, 5])])
    """

    def __init__(self, num_steps: int, num_rates: int, inputs: Sequence[Tensor], *, by_index: bool) -> None:
        device = inputs[0].device
        self.by_index, self.at = by_index, 0  # the line that the next launch will read, on the host
        self._at = torch.zeros((1,), dtype=torch.long, device=device)
        self._shares = torch.zeros((num_steps,), device=device)
        self._rates = torch.zeros((num_steps, num_rates), device=device)
        self._rows = [tensor.new_zeros((num_steps, *tensor.shape)) if by_index else tensor.clone() for tensor in inputs]

    def fill(self, shares: Sequence[float], rates: Sequence[Sequence[float]], indices: Sequence[Tensor]) -> None:
        """Writes the lines of an epoch, with the indices if rows are given by them."""
        self._shares.copy_(torch.tensor(shares))
        self._rates.copy_(torch.tensor(rates))
        if self.by_index:
            self._rows[0].copy_(torch.stack(list(indices)))

    def wind(self, position: int, tensors: Sequence[Tensor]) -> None:
        """Goes to a line, if it is not there already, and copies the step's tensors if they are not on the tape."""
        if self.at != position:
            self._at.fill_(position)
            self.at = position
        if not self.by_index:
            for place, tensor in zip(self._rows, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)

    def read(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The line: the fraction of the training that is done, the step sizes, the tensors. Part of the recording."""
        share, rates = (table.index_select(0, self._at)[0] for table in (self._shares, self._rates))
        rows = [table.index_select(0, self._at)[0] for table in self._rows] if self.by_index else self._rows
        return share, rates, rows

    def wind_on(self) -> None:
        """Goes to the next line; part of the recording."""
        self._at += 1


def new_pool() -> Any:
    """A handle to memory that several recordings may share, if they are launched one after another."""
    return torch.cuda.graph_pool_handle()


def recorded(function: Callable[[], Any], pool: Any = None) -> tuple[Any, Callable[[], None]]:
    """Records a function that has run a few times on a side stream, without running it.

    Other threads may use the GPU meanwhile, such as one that pins rows.

    Args:
        function: Without arguments.
        pool: The memory of the function's tensors, by default its own. The result of an earlier recording in the same
            pool keeps its place as long as somebody holds it.

    Returns:
        The function's result, whose tensors get their values at each launch, and a function that launches it. Each
        launch draws new random numbers, the same that the function would have drawn.

    Raises:
        CannotStageError: if the function cannot be captured. Streams, random numbers and the allocator are then
        restored.
    """
    graph, pool, stream = torch.cuda.CUDAGraph(), pool or new_pool(), torch.cuda.Stream()
    random = torch.cuda.get_rng_state()
    try:
        # The outer statement restores the stream: if a capture fails, the inner one does not.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool, stream, "thread_local"):
            out = function()
    except Exception as error:
        _mend(pool, random)
        raise CannotStageError(f"it cannot be captured: {reason_of(error)}") from error
    return out, graph.replay


def _mend(pool: Any, random: Tensor) -> None:
    """Resets an allocator and a generator that, in some versions of torch, still wait for a failed capture to end.

    Otherwise later draws would fail, and later allocations would go to the pool of a graph that does not exist.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError):  # if torch has done it
        torch._C._cuda_endAllocateToPool(device, pool)
    fresh = torch.Generator(f"cuda:{device}")
    fresh.set_state(random)
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


def captured(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of tensors as one CUDA graph.

    Args:
        function: As in :func:`recorded`. The graph also uses the function's other tensors, such as parameters and
            buffers, with their values at the time of the launch.
        inputs: An example, on the device.

    Returns:
        A function whose results are overwritten by its next call.
    """
    places = [tensor.clone() for tensor in inputs]
    out, launch = recorded(lambda: function(*places))

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        for place, tensor in zip(places, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        launch()
        return out

    return call


@contextlib.contextmanager
def on_side_stream() -> Iterator[None]:
    """Runs on another stream, as required before recording."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Turns synchronisation of host and GPU into an error, which is harmless here but would break a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it does not detect all synchronisation; the rest breaks the capture
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
