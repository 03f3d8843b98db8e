"""A warmed process that runs scripts in forks of itself, each of which is ended, refused or held at a file boundary.

A boundary is a call that changes files in one folder: to open one for writing, write, truncate, fsync, rename, unlink,
mkdir, rmdir, chmod. The calls are Python's, counted below every library: a file's own write is the system's.

Tests use :class:`Commands`; run as a program, this file is the process.
"""

import builtins
import contextlib
import errno
import gc
import importlib
import io
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KILLED = 137  # what a shell says of a process that was killed
KILLS = ("before", "half", "after")
ERRORS = ("ENOSPC", "EIO", "EACCES")

_CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


# The tests' side


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit status, what it said, and the boundaries it passed."""

    status: int
    out: str
    err: str
    passed: list[str]
    escaped: list[str]  # what changed files besides
    megabytes: int  # of memory, above what the process had


class Commands:
    """Commands of scripts in forks of a warmed process. The working folder of each is ``root``, which is watched."""

    def __init__(self, root: Path) -> None:
        self.root = root
        alone = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "CUDA_VISIBLE_DEVICES": "", "MPLBACKEND": "agg"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | alone | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()

    def _ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def run(self, *command: str, at: int | None = None, how: str = "before") -> Result:
        """Runs a script to its end, or to boundary number ``at``, where it is killed, or gets an error."""
        return self.finish(self.start(*command, at=at, how=how))

    def start(self, *command: str, at: int | None = None, how: str = "hold") -> int:
        """Runs a script until it is held at boundary number ``at``, or has ended."""
        return self._ask(start=command, at=at, how=how)

    def finish(self, number: int) -> Result:
        """Lets it go on to its end."""
        return Result(**self._ask(finish=number))


def recorded(root: Path, number: int, how: str) -> Path:
    """Where a run with ``how="record"`` keeps a copy of the folder, as a kill at that boundary would leave it."""
    return root.with_name("recorded") / f"{number}-{how}"


# The process

Half = Callable[[], contextlib.AbstractContextManager[None]]  # of a write: the rest can follow


class Boundaries:
    """Counts boundaries in a folder, and does at one of them what it was told."""

    def __init__(self, root: Path, at: int | None, how: str, hold: Callable[[], None]) -> None:
        self.root, self.at, self.how, self.hold = str(root), at, how, hold
        self.passed: list[str] = []
        self.escaped: list[str] = []
        self.inside = threading.local()

    def where(self, path: Any, dir_fd: int | None = None) -> str | None:
        """A path in the folder, relative to it; None for others."""
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        elif dir_fd is not None and not os.path.isabs(path):
            path = os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), os.fspath(path))
        full = os.path.abspath(os.fspath(path))
        return os.path.relpath(full, self.root) if full == self.root or full.startswith(f"{self.root}/") else None

    def reach(self, call: str, path: Any, act: Callable[[], Any], half: Half | None = None, **at: Any) -> Any:
        """Passes a boundary, or does what is to be done at it."""
        where = self.where(path, **at)
        if where is None:
            return act()
        here, number = len(self.passed) == self.at, len(self.passed)
        self.passed.append(f"{call} {where}".replace(f".{os.getpid()}@", ".PID@"))
        if here and self.how == "hold":
            self.hold()
        elif here and self.how in KILLS:
            with contextlib.suppress(OSError), half() if half and self.how == "half" else contextlib.nullcontext():
                if self.how == "after":
                    act()
                os._exit(KILLED)
            os._exit(KILLED)
        elif here:
            if half is not None:
                half().__enter__()
            code = getattr(errno, self.how)
            raise OSError(code, os.strerror(code), None if isinstance(path, int) else os.fspath(path))
        self.record(number, "before")
        if half is not None:
            with half():
                self.record(number, "half")
        self.inside.call = True
        try:
            return act()
        finally:
            self.inside.call = False
            self.record(number, "after")

    def record(self, number: int, how: str) -> None:
        """Keeps what a kill would leave here."""
        if self.how == "record":
            shutil.copytree(self.root, recorded(Path(self.root), number, how))

    def audit(self, event: str, args: tuple[Any, ...]) -> None:
        """Notes the changes that Python sees and no boundary saw."""
        if event == "open":
            changes = isinstance(args[2], int) and bool(args[2] & _CHANGES)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
        if changes and not getattr(self.inside, "call", False) and not isinstance(args[0], int):
            where = self.where(args[0])
            if where is not None:
                self.escaped.append(f"{event} {where}")

    def install(self) -> None:
        """Puts itself between Python and the system."""
        plain_open, plain_os_open = io.open, os.open
        boundaries = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                view = memoryview(data).cast("B")
                write, seek = super().write, super().seek

                @contextlib.contextmanager
                def half() -> Iterator[None]:
                    written = write(view[: len(view) // 2])
                    yield
                    seek(-written, os.SEEK_CUR)

                return boundaries.reach("write", self.fileno(), lambda: write(view), half)

            def truncate(self, size: int | None = None) -> int:
                truncate = super().truncate
                return boundaries.reach("truncate", self.fileno(), lambda: truncate(size))

        def opened(
            file: Any,
            mode: str = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
            closefd: bool = True,
            opener: Any = None,
        ) -> Any:
            if not set(mode) & set("wax+") or self.where(file) is None:
                return plain_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
            plain = "".join(letter for letter in mode if letter not in "bt")

            def raw() -> Raw:
                return Raw(file, plain, closefd, opener)

            stream = raw() if isinstance(file, int) else self.reach("open", file, raw)
            if "b" in mode and buffering == 0:
                return stream
            buffered = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(stream)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

        def os_opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            def act() -> int:
                return plain_os_open(path, flags, mode, dir_fd=dir_fd)

            return self.reach("open", path, act, dir_fd=dir_fd) if flags & _CHANGES else act()

        def watched(name: str) -> Callable[..., Any]:
            plain = getattr(os, name)

            def call(path: Any, *args: Any, **kwargs: Any) -> Any:
                at = {"dir_fd": fd} if (fd := kwargs.get("dir_fd", kwargs.get("src_dir_fd"))) is not None else {}
                return self.reach(name, path, lambda: plain(path, *args, **kwargs), **at)

            return call

        builtins.open = io.open = opened  # type: ignore[assignment]
        names = (
            "fsync",
            "replace",
            "rename",
            "unlink",
            "remove",
            "mkdir",
            "rmdir",
            "chmod",
            "write",
            "ftruncate",
            "link",
        )
        patched = {name: watched(name) for name in names}
        patched["fsync"] = lambda file: self.reach("fsync", file, lambda: None)  # no power is lost here
        os.open = os_opened
        for name, call in patched.items():
            setattr(os, name, call)
        sys.addaudithook(self.audit)


class Child:
    """A fork that runs one command. It is held at a boundary until it is finished, or has ended."""

    def __init__(self, root: Path, command: Sequence[str], at: int | None, how: str) -> None:
        self.files = [tempfile.TemporaryFile("w+") for _ in range(3)]  # noqa: SIM115
        held, self.release = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            report = self.files[2]

            def hold() -> None:
                os.close(held[1])
                os.read(self.release[0], 1)

            for file, number in zip(self.files[:2], (1, 2), strict=True):
                os.dup2(file.fileno(), number)
            boundaries = Boundaries(root, at, how, hold)
            status, before = 1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            signal.alarm(60)
            resource.setrlimit(resource.RLIMIT_DATA, (2**33, 2**33))  # for the sake of the machine
            try:
                boundaries.install()
                status = run(command, root)
            except BaseException:
                traceback.print_exc()
            finally:
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
                json.dump({"passed": boundaries.passed, "escaped": boundaries.escaped, "megabytes": grown}, report)
                for file in (sys.stdout, sys.stderr, report):
                    file.flush()
                os._exit(status)
        os.close(held[1])
        os.read(held[0], 1)  # its end is the other's closing, or exit
        os.close(held[0])

    def finish(self) -> dict[str, Any]:
        """Waits for its end."""
        os.write(self.release[1], b".")
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for end in self.release:
            os.close(end)
        texts = []
        for file in self.files:
            file.seek(0)
            texts.append(file.read())
            file.close()
        report = json.loads(texts[2]) if texts[2] else {"passed": [], "escaped": [], "megabytes": 0}
        return {"status": status, "out": texts[0], "err": texts[1], **report}


def run(command: Sequence[str], folder: Path) -> int:
    """Runs a script's command in a folder; returns its exit status."""

    from pyro_vae.cli.running import run_command

    script, *arguments = command
    main = importlib.import_module(script).main
    os.chdir(folder)
    sys.argv = [f"{script}.py", *arguments]
    try:
        run_command(main)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(bool(end.code))
    return 0


TABLE = """height,visits,ward
171.5,3,north
163.0,1,south
180.2,0,north
,2,north
168.4,5,south
175.9,2,
159.3,4,south
182.6,1,north
"""


def write_table(path: Path) -> None:
    """Twenty-four rows of three columns, with gaps."""
    header, *rows = TABLE.splitlines()
    more = [f"{150 + 1.7 * n:.1f},{n * 7 % 5},{('north', 'south')[n % 2]}" for n in range(24 - len(rows))]
    path.write_text("\n".join([header, *rows, *more]) + "\n")


SMALL = ("--epochs", "2", "--compile", "no", "--hidden-dims", "4", "--latent-dim", "2", "--device", "cpu")
TRAIN = ("train", "--data", "table.csv", "--missing", "nan", *SMALL)
USES = {
    "sample .npy": ("sample", "run", "--num-samples", "5", "--out", "x.npy"),
    "sample .csv": ("sample", "run", "--num-samples", "5", "--out", "x.csv"),
    "impute": ("impute", "run", "--num-samples", "2", "--num-particles", "3", "--out", "filled.csv"),
    "predict": ("predict", "run", "--num-samples", "2", "--out", "predicted.npz"),
    "evaluate": ("evaluate", "run", "--out", "metrics.json"),
}


class Figure:
    """What stands for a figure, whose drawing takes seconds."""

    def savefig(self, path: Path, **_: Any) -> None:
        """Writes a few bytes."""
        with open(path, "wb") as file:
            file.write(b"a figure")


def warm() -> None:
    """Runs everything once, so that forks find it imported; figures are stood for."""
    from tqdm import tqdm

    from pyro_vae import plotting
    from pyro_vae.cli import provenance
    from pyro_vae.cli import training as of_command
    from pyro_vae.training import run as training

    ticks = itertools.count()
    # An epoch takes a second, and no bar is drawn again: a run is the same every time.
    training.time = SimpleNamespace(time=lambda: 0.0, perf_counter=lambda: float(next(ticks)))  # type: ignore

    def draw(*arguments: Any) -> None:
        plotting.save_figure(Figure(), arguments[-1] / "curves.png")  # type: ignore[arg-type]

    of_command.draw_figures = draw
    provenance.made = lambda fingerprint: {"rows": fingerprint}  # at any date, of any commit
    tqdm.monitor_interval = 0  # no thread
    tqdm.set_lock(threading.RLock())  # nothing that forks would share
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.csv")
        for command in ((*TRAIN, "--out", "run"), *USES.values()):
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
                status = run(command, Path(folder))
            assert status == 0, f"{command[0]}: {err.getvalue()}"


def serve(root: Path) -> None:
    """Answers requests until there are no more."""
    warm()
    gc.collect()
    gc.freeze()  # pages that forks share stay shared
    children: dict[int, Child] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "finish" in request:
            answer: Any = children.pop(request["finish"]).finish()
        else:
            child = Child(root, request["start"], request["at"], request["how"])
            answer = child.pid
            children[child.pid] = child
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
