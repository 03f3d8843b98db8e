"""Steps in a CUDA graph: recorded once, without being run, and from then on launched in one piece.

A launch costs the host a few microseconds, whatever the step does. So all that a step takes is on the device before:
its rows, its share of the training and its step sizes are lines of a :class:`Tape`, which the step winds on itself.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.training.lowering import CannotStageError, reason_of

__all__ = ["Tape", "captured", "on_side_stream", "recorded", "refusing_to_wait"]


class Tape:
    """What the steps of an epoch take, one line a step, on the device.

    Args:
        num_steps: Lines.
        num_rates: Step sizes in a line, one for each group of parameters.
        inputs: An example of a step's tensors besides its share of the training.
        by_index: Whether those are the indices of its rows, and lines of the tape; others are laid into the same
            places before every launch.

    Example:
        >>> tape = Tape(2, 1, [torch.tensor([0, 0, 0])], by_index=True)
        >>> tape.fill([0.0, 0.5], [[1e-3], [1e-4]], [torch.tensor([4, 1, 2]), torch.tensor([0, 3, 5])])
        >>> tape.wind(1, [])
        >>> tape.read()
        (tensor(0.5000), tensor([1.0000e-04]), [tensor([0, 3, 5])])
    """

    def __init__(self, num_steps: int, num_rates: int, inputs: Sequence[Tensor], *, by_index: bool) -> None:
        device = inputs[0].device
        self.by_index, self.at = by_index, 0  # where the next launch will read, as the host knows it
        self._at = torch.zeros((1,), dtype=torch.long, device=device)
        self._shares = torch.zeros((num_steps,), device=device)
        self._rates = torch.zeros((num_steps, num_rates), device=device)
        self._rows = [tensor.new_zeros((num_steps, *tensor.shape)) if by_index else tensor.clone() for tensor in inputs]

    def fill(self, shares: Sequence[float], rates: Sequence[Sequence[float]], indices: Sequence[Tensor]) -> None:
        """Writes the lines of an epoch; the indices too, where rows go by them."""
        self._shares.copy_(torch.tensor(shares))
        self._rates.copy_(torch.tensor(rates))
        if self.by_index:
            self._rows[0].copy_(torch.stack(list(indices)))

    def wind(self, position: int, tensors: Sequence[Tensor]) -> None:
        """Goes to a line, if it is not there already; lays the step's tensors beside it, if they are no part of it."""
        if self.at != position:
            self._at.fill_(position)
            self.at = position
        if not self.by_index:
            for place, tensor in zip(self._rows, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)

    def read(self) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The line: the share of the training that is done, the step sizes, the tensors. Part of what is recorded."""
        share, rates = (table.index_select(0, self._at)[0] for table in (self._shares, self._rates))
        rows = [table.index_select(0, self._at)[0] for table in self._rows] if self.by_index else self._rows
        return share, rates, rows

    def wind_on(self) -> None:
        """Goes to the next line; part of what is recorded."""
        self._at += 1


def recorded(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
    """Records a function that has been run a few times on a side stream. It is not run.

    Other threads may go on using the GPU meanwhile, as one that pins rows does.

    Returns:
        What the function returned, whose tensors get their values at each launch; and what launches it. Its random
        numbers are new at every launch, and those that it would have drawn.

    Raises:
        CannotStageError: if the function does what cannot be captured. Streams, random numbers and the allocator are
            as before then.
    """
    graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.Stream()
    random = torch.cuda.get_rng_state()
    try:
        # The outer statement puts the stream back: where a capture fails, the inner one does not.
        with torch.cuda.stream(stream), torch.cuda.graph(graph, pool, stream, "thread_local"):
            out = function()
    except Exception as error:
        _mend(pool, random)
        raise CannotStageError(f"it cannot be captured: {reason_of(error)}") from error
    return out, graph.replay


def _mend(pool: Any, random: Tensor) -> None:
    """Undoes what a failed capture leaves in some versions of torch: an allocator and a generator that await its end.

    Everything drawn later would be refused, and everything allocated would go to the pool of a graph that never is.
    """
    device = torch.cuda.current_device()
    with contextlib.suppress(RuntimeError):  # where torch has done it
        torch._C._cuda_endAllocateToPool(device, pool)
    fresh = torch.Generator(f"cuda:{device}")
    fresh.set_state(random)
    torch.cuda.default_generators[device].graphsafe_set_state(fresh.graphsafe_get_state())


def captured(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> Callable[..., tuple[Tensor, ...]]:
    """A function of tensors as one CUDA graph.

    Args:
        function: As in :func:`recorded`. Other tensors that it uses, such as parameters and buffers, are used by the
            graph too, with the values that they have when it runs.
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
    """Runs on another stream, as a function must before it is recorded."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def refusing_to_wait() -> Iterator[None]:
    """Makes an error of what makes the host wait for the GPU: harmless here, where it would spoil a capture."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not see all that waits; the rest spoils the capture
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
