"""Rows on their way to the model: resident on its device, or streamed from disk by worker processes."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pyro_vae._support.arrays import FileRows, as_tensor, is_mapped, rows_at_once
from pyro_vae.data.checks import check_columns
from pyro_vae.pair import Pair

__all__ = ["Data", "Resident", "Rows", "Streamed", "as_rows"]

Data = Tensor | np.ndarray | Mapping[str, Any] | Dataset


class Rows:
    """Base class: rows and the keyword arguments that come with them, by index."""

    num_rows: int

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """For each tensor of indices its rows as ``"x"``, with the keyword arguments, in the type they came in."""
        raise NotImplementedError

    def references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """For each tensor of indices what :meth:`resolve` turns into its batch: for a step that gathers rows itself."""
        return self.batches(indices)

    def resolve(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch that a reference stands for."""
        return dict(reference)

    def chunks(self, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in their order, ``size`` at a time."""
        return self.batches(torch.arange(self.num_rows).split(size))

    def parts(self) -> Iterator[Tensor]:
        """All rows in their order without what comes with them, a few megabytes at a time."""
        return (chunk["x"] for chunk in self.chunks(self._rows_at_once()))

    def _rows_at_once(self) -> int:
        return rows_at_once(next(self.batches([torch.zeros(1, dtype=torch.long)]))["x"].shape)

    def check(self, pair: Pair, name: str, *, columns: bool = False) -> int:
        """Looks at every row, a few at a time, and returns the number of observed entries.

        Args:
            pair: What they must suit.
            name: What to call them in messages.
            columns: Refuse elements of which no row has an observation, for a model cannot learn about them.

        Raises:
            ValueError: for the first thing that is wrong, with what was found, what was expected and what to do.
        """
        if self.num_rows == 0:
            raise ValueError(f"{name} has no rows; expected at least one")
        num_observed, somewhere = 0, None
        for chunk, called in self._to_check(name):
            x = pair.check(chunk.pop("x"), called, **chunk)
            seen = pair.observed(x, chunk)
            num_observed += x.numel() if seen is None else int(seen.sum())
            if seen is not None:
                somewhere = seen.any(0) if somewhere is None else somewhere | seen.any(0)
        if columns:
            check_columns(somewhere, pair.data_range, name)
        return num_observed

    def _to_check(self, name: str) -> Iterator[tuple[dict[str, Tensor], str]]:
        """Parts to look at, and what to call each."""
        size = self._rows_at_once()
        for number, chunk in enumerate(self.chunks(size)):
            yield chunk, f"{name}[{number * size}:{min((number + 1) * size, self.num_rows)}]"


class Resident(Rows):
    """Rows that live on a device, where batches are gathered."""

    def __init__(self, data: Mapping[str, Tensor], device: torch.device) -> None:
        self.data = {name: value.to(device) for name, value in data.items()}
        self.device, self.num_rows = device, len(data["x"])

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:  # noqa: D102
        return (self.resolve(reference) for reference in self.references(indices))

    def references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Indices on the device."""
        if indices:
            here = torch.cat(list(indices)).to(self.device)  # all at once: a GPU would wait for each
            yield from ({"index": index} for index in here.split([len(index) for index in indices]))

    def resolve(self, reference: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rows at those indices."""
        return {name: value[reference["index"]] for name, value in self.data.items()}

    def _to_check(self, name: str) -> Iterator[tuple[dict[str, Tensor], str]]:
        yield dict(self.data), name


class Streamed(Rows):
    """Rows that are read when they are needed, a few batches ahead, by worker processes.

    Args:
        dataset: Items are rows, or mappings of ``"x"`` and keyword arguments. With ``__getitems__`` it gives many at
            once: a list of items, or a whole batch.
        device: Where batches go.
        num_workers: Processes that read; 0 reads in this one.
    """

    def __init__(self, dataset: Any, device: torch.device, num_workers: int = 2) -> None:
        self.dataset, self.device, self.num_rows = dataset, device, len(dataset)
        self.num_workers = num_workers

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:  # noqa: D102
        loader = DataLoader(
            self.dataset,
            batch_sampler=_Lists(indices),
            num_workers=min(self.num_workers, len(indices)),
            collate_fn=_collate,
            generator=torch.Generator(),  # its own, or it would take numbers from the noise of the training
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            named = batch if isinstance(batch, Mapping) else {"x": batch}
            yield {name: torch.as_tensor(value).to(self.device, non_blocking=True) for name, value in named.items()}


class _Lists:
    """Indices as lists, each made when it is needed: all at once they would take as much memory as rows."""

    def __init__(self, indices: Sequence[Tensor]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.indices)


def _collate(batch: Any) -> Any:
    """A batch as it is where the data set made one, else put together from its items."""
    return batch if isinstance(batch, (Tensor, Mapping)) else default_collate(batch)


class _Together(Dataset):
    """Rows with what comes with them, each in memory or in a file of its own."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts["x"])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {
            name: part.__getitems__(indices) if isinstance(part, FileRows) else part[list(indices)]
            for name, part in self.parts.items()
        }


def as_rows(data: Data, device: torch.device, *, num_workers: int = 2, name: str = "x") -> Rows:
    """Rows from whatever a user has.

    Args:
        data: A tensor or array of rows; a mapping of ``"x"`` and keyword arguments, rows first; a memory-mapped
            array (``np.load(path, mmap_mode="r")``), alone or in a mapping, or a ``torch.utils.data.Dataset``, which
            are streamed.
        device: The model's device.
        num_workers: Processes that read what is streamed.
        name: What the data are called in messages.

    Raises:
        ValueError: if a mapping has no rows, or not as many of each.
    """
    if isinstance(data, Dataset):
        return Streamed(data, device, num_workers)
    if is_mapped(data):
        return Streamed(FileRows(data), device, num_workers)
    named = dict(data) if isinstance(data, Mapping) else {"x": data}
    if "x" not in named:
        raise ValueError(f"{name} has no entry 'x', only {', '.join(named) or 'none'}")
    parts = {key: FileRows(value) if is_mapped(value) else as_tensor(value) for key, value in named.items()}
    for key, value in parts.items():
        if len(value.shape) == 0 or len(value) != len(parts["x"]):
            raise ValueError(
                f"{name} has {len(parts['x'])} rows in 'x' and {len(value) if value.shape else 'no'} in {key!r}: "
                f"give as many in each"
            )
    if any(isinstance(part, FileRows) for part in parts.values()):
        return Streamed(_Together(parts), device, num_workers)
    return Resident({key: as_tensor(value) for key, value in parts.items()}, device)
