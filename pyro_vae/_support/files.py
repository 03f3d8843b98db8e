"""Files: JSON, safetensors and plain arrays, so that opening one runs no code; written whole or not at all."""

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "check_writable",
    "read_json",
    "read_tensors",
    "replacing",
    "replacing_all",
    "save_tensors",
    "write_blocks",
    "write_json",
    "write_tensors",
]


@contextlib.contextmanager
def replacing_all(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Yields a temporary path beside each of ``paths``; renames them once all are written and on disk.

    A full disk, an error or a kill leaves whatever was at the paths as it was.
    """
    targets = [Path(path) for path in paths]
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
    # The name keeps its suffix, which writers go by.
    temporaries = [target.with_name(f".{os.getpid()}-{target.name}") for target in targets]
    try:
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    finally:
        for temporary in temporaries:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path``, as :func:`replacing_all` does for several."""
    with replacing_all(path) as (temporary,):
        yield temporary


def check_writable(folder: Path) -> None:
    """Makes the folder and tries to write in it.

    Raises:
        ValueError: if that fails, with the system's reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"cannot write in {folder}: {error.strerror or error}; choose another folder") from error


def write_json(content: Any, path: Path) -> None:
    """Writes indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, whole or not at all."""
    with replacing(path) as temporary:
        save_tensors(tensors, temporary, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors to a path that is temporary."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata=dict(metadata or {}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors and metadata.

    Raises:
        ValueError: if the file is missing or is not whole.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or half-written ({error})") from error


def write_blocks(blocks: Iterable[tuple[Sequence[slice], Tensor]], leading: Sequence[int], path: Path) -> np.memmap:
    """Writes an array too large for memory block by block as a ``.npy`` file, whole or not at all.

    The blocks are written to the file, not through a memory map: mapped pages would count as this process's memory,
    and a disk that fills up would kill it.

    Args:
        blocks: Where each block goes along the leading dimensions, and the block. Together they fill the array.
        leading: Sizes of these leading dimensions; the first block tells the others, and the type.
        path: The file, which ends in ``.npy``.

    Returns:
        The array, memory-mapped to be read only.

    Raises:
        ValueError: if the name does not end in ``.npy``, or the disk has not the space.
    """
    if path.suffix != ".npy":
        raise ValueError(f"an array is written to a file whose name ends in .npy, found {path}")
    check_writable(path.parent)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        begin, shape = 0, ()
        for place, block in blocks:
            array = np.ascontiguousarray(block.detach().cpu().numpy())
            if not begin:
                shape = (*leading, *array.shape[len(leading) :])
                _check_space(path.parent, math.prod(shape) * array.itemsize)
                header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
                begin = file.tell()
                file.truncate(begin + math.prod(shape) * array.itemsize)
            # What lies together in the block lies together in the file from the last leading dimension on.
            for index in np.ndindex(array.shape[: len(leading) - 1]):
                first = [at + where.start for at, where in zip(index, place, strict=False)] + [place[-1].start]
                row = int(np.ravel_multi_index(first, tuple(leading)))
                file.seek(begin + row * math.prod(shape[len(leading) :]) * array.itemsize)
                file.write(array[index].data.cast("B"))
            del block, array  # before the next block is made
    return np.load(path, mmap_mode="r")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"the array takes {needed / 1e9:,.1f} GB and {folder} has {free / 1e9:,.1f} GB free: "
            f"make room, choose another folder, or draw fewer"
        )
