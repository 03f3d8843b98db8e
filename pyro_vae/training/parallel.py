"""Several processes that train one model, each on its own rows: splitting rows, summing and broadcasting tensors.

A process is a *rank*. Without a process group of ``torch.distributed`` there is one rank, and nothing here has an
effect.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyro
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

__all__ = [
    "Interrupts",
    "add_up",
    "broadcast",
    "first_rank_first",
    "from_first_rank",
    "process_group",
    "rank",
    "seed_other_ranks",
    "share",
    "world_size",
]


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _together() else 0


def world_size() -> int:
    """The number of processes that train together; 1 without a process group.

    Example:
        >>> rank(), world_size()
        (0, 1)
    """
    return dist.get_world_size() if _together() else 1


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def share(index: Tensor) -> Tensor:
    """This rank's part of the rows of a step: parts do not overlap, and their sizes differ by one at most."""
    return index.tensor_split(world_size())[rank()]


def add_up(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum over ranks of each floating-point tensor, the same to the last bit on every rank.

    They are sent as one tensor, in the most precise of their types.
    """
    if world_size() == 1:
        return list(tensors)
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape).to(tensor.dtype) for part, tensor in zip(parts, tensors, strict=True)]


def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrites each tensor with that of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            dist.broadcast(whole, src=0)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(whole)


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, such as a path or a few numbers."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def seed_other_ranks(seed: int, epoch: int) -> None:
    """Gives every rank except the first separate noise for an epoch.

    Rank 0 continues as it would alone, so a checkpoint needs only its random state.
    """
    if rank() > 0:
        pyro.set_rng_seed(int(np.random.SeedSequence([seed % 2**64, rank(), epoch]).generate_state(1)[0]))


class Interrupts:
    """Ctrl-C for all ranks at the same step: if one rank stopped alone, the others would wait for it.

    Inside ``with``, a signal is only noted; :meth:`agree` then raises on every rank. With one rank nothing changes.
    """

    def __init__(self) -> None:
        self._noted, self._before = False, None

    def __enter__(self) -> Self:
        if world_size() > 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: Any) -> None:
        self._noted = True

    def agree(self, device: torch.device) -> None:
        """Raises KeyboardInterrupt if any rank got the signal. All ranks must call it at the same step."""
        if world_size() > 1 and float(add_up([torch.full((1,), float(self._noted), device=device)])[0]) > 0:
            raise KeyboardInterrupt


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Lets rank 0 run first, so that it downloads a file and the others find it."""
    if world_size() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world_size() > 1 and rank() == 0:
        dist.barrier()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, each on its own GPU or on the CPU; does nothing for one process.

    Args:
        device: The model's device: GPUs communicate by NCCL, CPUs by gloo.

    Raises:
        ValueError: if there are fewer GPUs than processes on this machine.
        SystemExit: instead of an exception if another rank failed first, as that rank reports the reason.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    store, number, size = next(rendezvous("env://", timeout=timedelta(minutes=10)))
    try:
        backend, own = "gloo", None
        if device.type == "cuda":
            local, found = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
            if local >= found:
                raise ValueError(
                    f"torchrun started more processes than this machine has GPUs ({found}): "
                    f"start {found}, or train on the CPU"
                )
            torch.cuda.set_device(local)
            backend, own = "nccl", torch.device("cuda", local)  # NCCL hangs if it guesses wrong
        dist.init_process_group(backend, store=store, rank=number, world_size=size, device_id=own)
        yield
    except Exception as error:
        if store.add("failed", 1) > 1:
            raise SystemExit(2) from error
        raise
    dist.destroy_process_group()
