"""Files: JSON, safetensors and plain arrays. Opening one runs no code, and each is written completely or not at all."""

import contextlib
import json
import math
import os
import platform
import re
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

__all__ = [
    "Busy",
    "check_writable",
    "only_writer",
    "read_header",
    "read_json",
    "read_tensors",
    "replacing",
    "replacing_all",
    "save_tensors",
    "write_blocks",
    "write_json",
    "write_tensors",
]

_LOCK = ".lock"
_JSON_BYTES = 2**26  # larger files are not settings
_CHECKSUM = "crc32"
_DAY = 24 * 3600
# While a lock is being released, it can neither be opened nor created: the number of tries, and seconds between them.
# This counts tries rather than time, because a process may be suspended in one of them for longer than all take.
_TRIES, _PAUSE = 10, 0.02


def _temporary(target: Path) -> Path:
    """A name for this process alone. It keeps the suffix, which determines the format."""
    return target.with_name(f".{os.getpid()}@{_host()}-{target.name}")


def _host() -> str:
    return re.sub(r"[^\w.]", "_", platform.node()) or "localhost"


def _left_behind(folder: Path, *, by_anyone: bool = False) -> Iterator[Path]:
    """Temporary files in a folder whose process is gone; with ``by_anyone``, all of them."""
    for path in folder.glob(".*@*-*"):
        if match := re.fullmatch(r"\.(\d+)@([\w.]+)-.+", path.name):
            gone = match[2] == _host() and not psutil.pid_exists(int(match[1]))
            with contextlib.suppress(OSError):
                if by_anyone or gone or time.time() - path.stat().st_mtime > _DAY:
                    yield path


class Busy(ValueError):
    """Another process has locked a folder."""


@contextlib.contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes, and removes temporary files that killed ones have left in it.

    The lock is the operating system's, so it ends with its process. Reading needs no lock, because files are complete.

    Raises:
        Busy: if another process has locked the folder.
        ValueError: if the folder is not writable.
    """
    check_writable(folder)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        for left in reversed(range(_TRIES)):
            with contextlib.suppress(Timeout):
                lock.acquire()
                break
            if not left:
                raise Busy(f"another process is training in {folder}: wait until it ends, or name another folder")
            time.sleep(_PAUSE)
    except OSError as error:
        raise ValueError(f"cannot write in {folder}: {error.strerror or error}; choose another folder") from error
    try:
        for place in (folder, *(child for child in folder.iterdir() if child.is_dir())):
            for path in _left_behind(place, by_anyone=True):
                path.unlink(missing_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _LOCK).unlink(missing_ok=True)  # before releasing it, so a waiting process sees that it is gone
        lock.release()


@contextlib.contextmanager
def replacing_all(*paths: str | os.PathLike[str]) -> Iterator[list[Path]]:
    """Yields a temporary path next to each of ``paths``; renames them once all are written and on disk.

    A full disk, an error or a kill leaves existing files at the paths unchanged. Temporary files of killed processes
    are removed. The files have the mode that the user's umask gives.
    """
    targets = [Path(path) for path in paths]
    temporaries = [_temporary(target) for target in targets]
    try:
        for folder in {target.parent for target in targets}:
            folder.mkdir(parents=True, exist_ok=True)
            for path in _left_behind(folder):
                path.unlink(missing_ok=True)
        modes = []
        for temporary in temporaries:
            with open(temporary, "wb") as file:
                modes.append(stat.S_IMODE(os.fstat(file.fileno()).st_mode))
        yield temporaries
        for temporary, mode in zip(temporaries, modes, strict=True):
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())
            if stat.S_IMODE(temporary.stat().st_mode) != mode:  # a writer that replaced the file
                temporary.chmod(mode)
        for temporary, target in zip(temporaries, targets, strict=True):
            os.replace(temporary, target)
    except OSError as error:
        ours = error.filename is None or Path(error.filename) in temporaries
        if not ours or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(targets[0])) from error
    finally:
        for temporary in temporaries:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to ``path``, as :func:`replacing_all` does for several."""
    with replacing_all(path) as (temporary,):
        yield temporary


def check_writable(folder: Path) -> None:
    """Creates the folder and tries to write in it.

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
    """Writes indented JSON, completely or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ValueError: if the file is missing or is not JSON.
    """
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors, completely or not at all."""
    with replacing(path) as temporary:
        save_tensors(tensors, temporary, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes tensors as safetensors to a temporary path."""
    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = dict(metadata or {})
    metadata[_CHECKSUM] = _checksum(contiguous, metadata)
    content = memoryview(safetensors.torch.save(contiguous, metadata))
    begin = 8 + int.from_bytes(content[:8], "little")
    # The order of metadata changes from process to process. Sorting it gives the same state the same bytes.
    header = json.dumps(json.loads(bytes(content[8:begin])), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors begin at a multiple of eight bytes
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.write(content[begin:])


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads tensors and metadata.

    Raises:
        ValueError: if the file is missing, incomplete or damaged.
    """
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    written = metadata.pop(_CHECKSUM, None)
    if written not in (None, _checksum(tensors, metadata)):
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    return tensors, metadata


def read_header(path: Path) -> dict[str, Tensor]:
    """Reads names, shapes and types: tensors on the device ``"meta"``, which take no memory.

    Raises:
        ValueError: if the file is missing or incomplete.
    """
    with _opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {
            name: torch.empty(part.get_shape(), dtype=_TYPES[part.get_dtype()], device="meta")
            for name, part in slices.items()
        }


# Torch's types by their names in a safetensors file.
_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (SafetensorError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or half-written ({' '.join(str(error).split())})") from error


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A checksum of names, types, shapes and contents: against damage, not against tampering."""
    found = zlib.crc32(json.dumps(metadata, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name}: {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def write_blocks(blocks: Iterable[tuple[Sequence[slice], Tensor]], leading: Sequence[int], path: Path) -> np.memmap:
    """Writes an array too large for memory block by block as a ``.npy`` file, completely or not at all.

    The blocks are written to the file, not through a memory map: mapped pages would count as this process's memory,
    and a full disk would kill the process.

    Args:
        blocks: The position of each block along the leading dimensions, and the block. Together they fill the array.
        leading: Sizes of these leading dimensions; the other sizes and the type are those of the first block.
        path: The file, which ends in ``.npy``.

    Returns:
        The array, memory-mapped and read-only.

    Raises:
        ValueError: if the name does not end in ``.npy``, or the disk lacks the space.
    """
    if path.suffix != ".npy":
        raise ValueError(f"the file for an array must end in .npy, found {path}")
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
            # From the last leading dimension on, a block is contiguous in the file.
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
            f"the array takes {needed / 1e9:,.1f} GB, but {folder} has {free / 1e9:,.1f} GB free: "
            f"make room, choose another folder, or draw fewer"
        )
