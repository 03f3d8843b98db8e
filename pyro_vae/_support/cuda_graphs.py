"""CUDA graphs: what a function does on the device, recorded once without running it, and then launched as a unit.

A launch costs the host a few microseconds, whatever the function does.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "CannotStageError",
    "captured",
    "new_pool",
    "on_side_stream",
    "reason_of",
    "recorded",
    "refusing_to_wait",
]


class CannotStageError(Exception):
    """A function that cannot be lowered or captured, with the reason."""


def reason_of(error: BaseException) -> str:
    """The first line of an error that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
