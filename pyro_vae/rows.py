"""Rows on their way to the model: resident on its device, or streamed from disk by worker processes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

__all__ = ["Data", "Resident", "Rows", "Streamed", "as_rows"]

Data = Tensor | np.ndarray | Mapping[str, Any] | Dataset


class Rows:
    """Base class: rows and the keyword arguments that come with them, by index."""

    num_rows: int

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """For each tensor of indices its rows as ``"x"``, with the keyword arguments, in the type they came in."""
        raise NotImplementedError

    def rows_at_once(self, elements: int = 2**20) -> int:
        """How many rows have about this many elements together: 4 MiB in float32 unless told."""
        row = next(self.batches([torch.zeros(1, dtype=torch.long)]))["x"]
        return max(1, elements // max(1, row.numel()))

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in their order, ``size`` at a time."""
        return self.batches(torch.arange(self.num_rows).split(size))


class Resident(Rows):
    """Rows that live on a device, where batches are gathered."""

    def __init__(self, data: Mapping[str, Tensor], device: torch.device) -> None:
        self.data = {name: value.to(device) for name, value in data.items()}
        self.device, self.num_rows = device, len(data["x"])

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:  # noqa: D102
        if not indices:
            return
        here = torch.cat(list(indices)).to(self.device)  # all at once: a GPU would wait for each
        for index in here.split([len(index) for index in indices]):
            yield {name: value[index] for name, value in self.data.items()}


class Streamed(Rows):
    """Rows that are read when they are needed, a few batches ahead, by worker processes.

    Args:
        dataset: Items are rows, or mappings of ``"x"`` and keyword arguments. With ``__getitems__`` it gives a whole
            batch, already collated.
        device: Where batches go.
        num_workers: Processes that read; 0 reads in this one.
    """

    def __init__(self, dataset: Any, device: torch.device, num_workers: int = 2) -> None:
        self.dataset, self.device, self.num_rows = dataset, device, len(dataset)
        self.num_workers = num_workers

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:  # noqa: D102
        loader = DataLoader(
            self.dataset,
            batch_sampler=[index.tolist() for index in indices],
            num_workers=min(self.num_workers, len(indices)),
            collate_fn=_as_it_is if hasattr(self.dataset, "__getitems__") else default_collate,
            generator=torch.Generator(),  # its own, or it would take numbers from the noise of the training
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            named = batch if isinstance(batch, Mapping) else {"x": batch}
            yield {name: torch.as_tensor(value).to(self.device, non_blocking=True) for name, value in named.items()}


def _as_it_is(batch: Any) -> Any:
    return batch


class _FileRows(Dataset):
    """Rows of a memory-mapped array, read from its file: mapped pages would count as this process's memory."""

    def __init__(self, array: np.memmap) -> None:
        if not array.flags.c_contiguous:
            raise ValueError("a memory-mapped array must lie row by row in its file: save it anew with np.save")
        root: Any = array
        while isinstance(root.base, np.memmap):
            root = root.base
        # A slice keeps the offset of the whole array, so where it begins is read off the addresses.
        self.offset = root.offset + array.ctypes.data - root.ctypes.data
        self.path, self.dtype, self.shape = str(root.filename), array.dtype, array.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitems__(self, indices: Sequence[int]) -> Tensor:
        out = np.empty((len(indices), *self.shape[1:]), self.dtype)
        with open(self.path, "rb") as file:
            for place in np.argsort(indices):
                file.seek(self.offset + int(indices[place]) * out[0].nbytes)
                file.readinto(out[place].data.cast("B"))
        return torch.from_numpy(out)


def as_rows(data: Data, device: torch.device, *, num_workers: int = 2, name: str = "x") -> Rows:
    """Rows from whatever a user has.

    Args:
        data: A tensor or array of rows; a mapping of ``"x"`` and keyword arguments, rows first; a memory-mapped
            array (``np.load(path, mmap_mode="r")``) or a ``torch.utils.data.Dataset``, which are streamed.
        device: The model's device.
        num_workers: Processes that read what is streamed.
        name: What the data are called in messages.

    Raises:
        ValueError: if a mapping has no rows, or not as many of each.
    """
    if isinstance(data, np.memmap) and getattr(data, "_mmap", None) is not None:
        return Streamed(_FileRows(data), device, num_workers)
    if isinstance(data, Dataset):
        return Streamed(data, device, num_workers)
    named = dict(data) if isinstance(data, Mapping) else {"x": data}
    if "x" not in named:
        raise ValueError(f"{name} has no entry 'x', only {', '.join(named) or 'none'}")
    tensors = {key: torch.as_tensor(value) for key, value in named.items()}
    for key, value in tensors.items():
        if value.dim() == 0 or len(value) != len(tensors["x"]):
            raise ValueError(
                f"{name} has {len(tensors['x'])} rows in 'x' and {len(value) if value.dim() else 'no'} in {key!r}: "
                f"give as many in each"
            )
    return Resident(tensors, device)
