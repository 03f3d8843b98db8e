"""Feeds rows to the model: resident on its device, or streamed from disk by worker processes.

Every tool takes rows as :data:`Inputs`, and :func:`as_rows` converts them to :class:`Rows`.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from pyro_vae._support.arrays import FileRows, LazyRows, rows_at_once
from pyro_vae.data.inputs import as_numbers
from pyro_vae.data.reading import Failure, Reader

__all__ = ["Inputs", "Resident", "Rows", "Streamed", "as_rows"]

Inputs = Any  # tensor, array, DataFrame, sparse matrix, memory map, Dataset, or a mapping of "x" and arguments


class Rows:
    """Base class: rows, and the programs' keyword arguments for them, by index.

    Args:
        constants: Arguments that are the same for all rows. They are part of every batch.
    """

    num_rows: int
    constants: Mapping[str, Any]
    num_observed: int = 0
    """Number of observed entries, once they have been counted."""
    _fingerprint: str | None = None

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
        """For each tensor of indices, its rows as ``"x"``, with the keyword arguments, in their original type."""
        raise NotImplementedError

    def references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """For each tensor of indices, a reference that :meth:`resolve` turns into the batch inside a training step."""
        for batch in self.batches(indices):
            yield {name: value for name, value in batch.items() if name not in self.constants}

    def resolve(self, reference: Mapping[str, Tensor]) -> dict[str, Any]:
        """The batch that a reference stands for."""
        return {**self.constants, **reference}

    def chunks(self, size: int) -> Iterator[dict[str, Any]]:
        """All rows in their order, ``size`` at a time."""
        return self.batches(torch.arange(self.num_rows).split(size))

    def parts(self) -> Iterator[Tensor]:
        """All rows in their order, without keyword arguments, a few megabytes at a time."""
        return (chunk["x"] for chunk in self.chunks(self.rows_at_once()))

    def rows_at_once(self) -> int:
        """How many rows make a few megabytes."""
        return rows_at_once((1, self.num_elements))

    @property
    def num_elements(self) -> int:
        """Elements of one row."""
        return next(self.batches([torch.zeros(1, dtype=torch.long)]))["x"][0].numel()

    def numbered(self, size: int, *, fingerprint: bool = False) -> Iterator[tuple[dict[str, Any], int]]:
        """All rows in their order, ``size`` at a time, each part with the index of its first row.

        Args:
            size: Rows in a part.
            fingerprint: Compute the fingerprint in the same pass, so rows in a file are not read twice.
        """
        digests: dict[str, Any] = {}
        described: dict[str, Any] = {name: _described(value) for name, value in self.constants.items()}
        for number, chunk in enumerate(self.chunks(size)):
            for name in chunk.keys() - self.constants.keys() if fingerprint else ():
                described[name] = (str(chunk[name].dtype), self.num_rows, *chunk[name].shape[1:])
                digests.setdefault(name, hashlib.blake2b(digest_size=16)).update(_content(chunk[name]))
            yield chunk, number * size
        if fingerprint:
            contents = {name: digest.hexdigest() for name, digest in digests.items()}
            whole = [(name, repr(described[name]), contents.get(name)) for name in sorted(described)]
            self._fingerprint = hashlib.blake2b(repr(whole).encode(), digest_size=16).hexdigest()

    def fingerprint(self) -> str:
        """A digest of types, shapes and content of all rows and arguments, in the rows' order, as 32 hex digits.

        It is the same for equal rows, resident or streamed, and does not depend on the order of the arguments.
        """
        if self._fingerprint is None:
            for _ in self.numbered(self.rows_at_once(), fingerprint=True):
                pass
        assert self._fingerprint is not None
        return self._fingerprint


def _content(value: Tensor) -> Any:
    """The bytes of a tensor."""
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() if value.numel() else b""


def _described(value: Any) -> Any:
    return (str(value.dtype), value.tolist()) if isinstance(value, Tensor) else (type(value).__name__, value)


class Resident(Rows):
    """Rows on a device, where batches are gathered."""

    def __init__(self, data: Mapping[str, Tensor], device: torch.device, constants: Mapping[str, Any]) -> None:
        self.data = {name: value.to(device) for name, value in data.items()}
        self.device, self.num_rows, self.constants = device, len(data["x"]), constants

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Any]]:  # noqa: D102
        return (self.resolve(reference) for reference in self.references(indices))

    def references(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Tensor]]:
        """Indices on the device."""
        if indices:
            here = torch.cat(list(indices)).to(self.device)  # in one transfer: a GPU would wait for each
            yield from ({"index": index} for index in here.split([len(index) for index in indices]))

    def resolve(self, reference: Mapping[str, Tensor]) -> dict[str, Any]:
        """The rows at those indices."""
        return {**self.constants, **{name: value[reference["index"]] for name, value in self.data.items()}}

    def chunks(self, size: int) -> Iterator[dict[str, Any]]:
        """Slices: nothing is copied."""
        for start in range(0, self.num_rows, size):
            parts = {name: value[start : start + size] for name, value in self.data.items()}
            yield {**self.constants, **parts}


class Streamed(Rows):
    """Rows that worker processes read when they are needed, a few batches ahead.

    Args:
        dataset: Its items are rows, or mappings of ``"x"`` and keyword arguments. ``__getitems__``, if it has that
            method, returns many at once: a list of items, or a whole batch.
        device: The device for batches.
        num_workers: Number of processes that read; 0 reads in this one.
    """

    def __init__(
        self, dataset: Any, device: torch.device, num_workers: int = 2, constants: Mapping[str, Any] | None = None
    ) -> None:
        self.dataset, self.device, self.num_rows = dataset, device, len(dataset)
        self.num_workers, self.constants = num_workers, constants or {}

    def fingerprint(self) -> str:
        """For rows that differ each time they are read, such as augmented ones, it gives only their number."""
        first, again = self.batches([torch.arange(min(8, self.num_rows))] * 2)
        named = first.keys() - self.constants.keys()
        same = all(bytes(_content(first[name])) == bytes(_content(again[name])) for name in named)
        return super().fingerprint() if same else f"{self.num_rows} rows that are not the same each time they are read"

    def batches(self, indices: Sequence[Tensor]) -> Iterator[dict[str, Any]]:  # noqa: D102
        loader = DataLoader(
            Reader(self.dataset),
            batch_sampler=_Lists(indices),
            num_workers=min(self.num_workers, len(indices)),
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # its own, so as not to change the random numbers of training
            pin_memory=self.device.type == "cuda",
        )
        for batch in _until_a_worker_dies(iter(loader)):
            if isinstance(batch, Failure):
                batch.reraise()
            rows = {name: torch.as_tensor(value).to(self.device, non_blocking=True) for name, value in _named(batch)}
            yield {**self.constants, **rows}


def _until_a_worker_dies(batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:  # the data set's own errors come as Failure
            raise ValueError(
                "a process that reads rows has died, perhaps for lack of memory: lower num_workers, for example to 0"
            ) from error
        yield batch


class _Lists:
    """Indices as lists, each made when needed: together they would take a lot of memory."""

    def __init__(self, indices: Sequence[Tensor]) -> None:
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[list[int]]:
        return (index.tolist() for index in self.indices)


def _as_it_is(batch: Any) -> Any:
    return batch


class _Together(Dataset):
    """Rows with their keyword arguments, each in memory or in its own file."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return len(self.parts["x"])

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        return {
            name: part.__getitems__(indices) if hasattr(part, "__getitems__") else part[list(indices)]
            for name, part in self.parts.items()
        }


def _named(batch: Any) -> Iterator[tuple[str, Any]]:
    """A data set's batch as rows and arguments by name."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    elif not isinstance(batch, (tuple, list)):
        yield "x", batch
    elif len(batch) == 1:
        yield "x", batch[0]
    else:
        raise ValueError(
            f"the data set's items are tuples of {len(batch)}, which does not say what each part is: return mappings "
            f"such as {{'x': row, 'labels': label}}, with the names of the programs' arguments"
        )


def _is_constant(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str)) or getattr(value, "ndim", None) == 0


def as_rows(data: Inputs, device: torch.device, *, num_workers: int = 2, name: str = "x") -> Rows:
    """Converts data of any supported type to :class:`Rows`.

    Args:
        data: A tensor or array of rows, or a list of them; a table of numbers from pandas, polars or pyarrow; AnnData;
            a SciPy sparse matrix; a memory-mapped array (``np.load(path, mmap_mode="r")``) or a
            ``torch.utils.data.Dataset``, which are streamed; or a mapping of ``"x"``, in one of these forms, and the
            programs' keyword arguments. A keyword argument has one entry for each row, or is the same for all rows:
            None, a number, a string or a tensor without dimensions. Masked entries of an array of floats become NaN.
        device: The model's device.
        num_workers: Number of processes that read streamed data.
        name: The data's name in messages.

    Raises:
        ValueError: if the parts differ in their number of rows, or cannot be read as rows of numbers.

    Example:
        >>> rows = as_rows({"x": [[0.0], [1.0], [2.0]], "labels": [0, 1, 0]}, torch.device("cpu"))
        >>> next(rows.batches([torch.tensor([2, 1])]))
        {'x': tensor([[2.], [1.]]), 'labels': tensor([0, 1])}
    """
    if isinstance(data, Rows):
        return data
    if isinstance(data, DataLoader):
        raise ValueError(f"{name} is a DataLoader, but every tool makes its own batches: give its data set, x.dataset")
    if isinstance(data, TensorDataset) and len(data.tensors) == 1:
        data = data.tensors[0]
    if isinstance(data, Dataset) and not isinstance(data, LazyRows):
        _check_data_set(data, name)
        return Streamed(data, device, num_workers)
    named: dict[str, Any] = {"x": data}
    if isinstance(data, Mapping) and not hasattr(data, "tocsr"):  # some sparse matrices are mappings
        named = dict(data)
    if "x" not in named:
        raise ValueError(f"{name} has no entry 'x', only {', '.join(map(str, named)) or 'none'}")
    constants = {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in named.items()
        if key != "x" and _is_constant(value)
    }
    parts = {
        key: as_numbers(value, name if key == "x" else key) for key, value in named.items() if key not in constants
    }
    if len(parts["x"].shape) == 0:
        raise ValueError(f"{name} is a single number; expected rows of numbers, the first dimension counting the rows")
    for key, value in parts.items():
        if len(value.shape) == 0 or len(value) != len(parts["x"]):
            raise ValueError(
                f"{name} has {len(parts['x'])} rows in 'x' and {len(value) if value.shape else 'no'} in {key!r}: "
                f"give the same number in each"
            )
    resident = {key: part for key, part in parts.items() if isinstance(part, Tensor)}
    if len(resident) == len(parts):
        return Resident(resident, device, constants)
    whole = parts["x"] if len(parts) == 1 else _Together(parts)
    workers = num_workers if any(isinstance(part, FileRows) for part in parts.values()) else 0
    return Streamed(whole, device, workers, constants)


def _check_data_set(data: Dataset, name: str) -> None:
    try:
        len(data)  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(
            f"{name} is a {type(data).__name__} without a length, such as a stream: rows are drawn by index, so give a "
            f"data set with __len__ and __getitem__"
        ) from error
