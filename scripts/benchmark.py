"""Times training, draws and evidence against Pyro, PyTorch and NumPyro, in turns and separate processes."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import benchmark_report as report
import numpy as np
import torch
import typer

from pyro_vae import plotting
from pyro_vae._support import files
from pyro_vae._support.machine import machine, versions
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import default_root, load_data
from pyro_vae.training import resolve_device
from pyro_vae.training.arithmetic import has_bfloat16

Numbers = dict[str, Any]
SCRIPTS = Path(__file__).parent


@dataclass(frozen=True)
class Contender:
    """One way of doing the work: a module of ``peers`` and its arguments in addition to the task."""

    label: str
    module: str
    arguments: Numbers = field(default_factory=dict)
    only_on: str | None = None  # a kind of device, if it needs one
    cache: str | None = None  # name of a lasting folder for compiled code; else each process compiles


FLOOR = [
    Contender("products float32", "products", {"dtype": "float32"}),
    Contender("products bfloat16", "products", {"dtype": "bfloat16"}),
]
PYRO = Contender("Pyro example", "pyro_example")
NUMPYRO = Contender("NumPyro", "numpyro_epoch")
EAGER = Contender("PyTorch eager", "pytorch")
PYTORCH = [
    EAGER,
    Contender("PyTorch compiled", "pytorch", {"compile": True}),
    Contender("PyTorch CUDA graph", "pytorch", {"cuda_graph": True}, only_on="cuda"),
]
OURS = [
    Contender("pyro_vae eager", "pyro_vae_fit", {"compile": False}),
    Contender("pyro_vae compiled", "pyro_vae_fit", {"compile": True}),
    Contender("pyro_vae bfloat16", "pyro_vae_fit", {"compile": True, "precision": "bfloat16"}),
    Contender("pyro_vae captured", "pyro_vae_fit", {"compile": "auto"}, only_on="cuda"),  # too few steps to compile
]
LIBRARY = Contender("pyro_vae", "pyro_vae_fit")  # compiles if that repays
WHOLE = [
    NUMPYRO,
    PYRO,
    EAGER,
    Contender("pyro_vae cold", "pyro_vae_fit"),
    Contender("pyro_vae warm", "pyro_vae_fit", cache="warm"),
]
SECTIONS = ("whole", "mlp", "conv", "samples", "evidence", "growth")
GROWTH: dict[str, tuple[int, ...]] = {
    "batch_size": (32, 128, 512, 2048),
    "latent_dim": (10, 50, 200),
    "num_particles": (1, 4, 16),
}

Data = Annotated[str, typer.Option(help="mnist, or a .npy file of grey images.")]
DataRoot = Annotated[
    Path | None, typer.Option(help="Folder of downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
]


def main(
    data: Data = "mnist",
    data_root: DataRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Writes OUT.json and OUT.png, and README.md beside them. [default: only print]", metavar="OUT"
        ),
    ] = None,
    only: Annotated[
        str, typer.Option(help="Sections to run, separated by commas; a turn of whole takes minutes.")
    ] = ",".join(SECTIONS),
    contenders: Annotated[
        str | None, typer.Option(help="Only these, by their names in the tables, separated by commas. [default: all]")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Rounds; in each, every contender has its turn.")] = 5,
    epochs: Annotated[int, typer.Option(help="Epochs in a turn; the last one counts.")] = 2,
    num_rows: Annotated[int | None, typer.Option(help="Rows to train the MLP on. [default: all]")] = None,
    conv_rows: Annotated[int, typer.Option(help="Rows to train the convolutional VAE on.")] = 12_800,
    num_samples: Annotated[int, typer.Option(help="Draws from the prior in a turn.")] = 20_000,
    evidence_rows: Annotated[int, typer.Option(help="Rows whose evidence is estimated in a turn.")] = 64,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide for the evidence of a row.")] = 1000,
    whole_epochs: Annotated[int, typer.Option(help="Epochs of a whole training, from the start of its process.")] = 20,
    goal: Annotated[float, typer.Option(help="The ELBO of test rows to reach, in nats.")] = -100.0,
    device: Annotated[str, typer.Option(help="auto (CUDA if available), cpu or cuda.")] = "auto",
) -> None:
    """Times training, draws and evidence against Pyro, PyTorch and NumPyro.

    Every contender is a separate process, which is idle while another has its turn. Every turn trains fresh weights,
    and its last epoch counts. Ratios are taken round by round.
    """
    sections = chosen(only, SECTIONS, "--only")
    names = list(dict.fromkeys(c.label for c in (PYRO, *PYTORCH, NUMPYRO, *OURS, *FLOOR, LIBRARY, *WHOLE)))
    wanted = names if contenders is None else chosen(contenders, names, "--contenders")
    if rounds < 1 or epochs < 1:
        raise ValueError(f"--rounds and --epochs must be at least 1, found {rounds} and {epochs}")
    if out is not None:
        files.check_writable(out.parent)
    loaded = load_data(data, data_root or default_root())
    x = loaded.x_train
    if x.dim() != 3 or x.dtype != torch.uint8 or loaded.bounds is None:
        raise ValueError(f"{data} must hold grey images (N, H, W) of type uint8, found {tuple(x.shape)} of {x.dtype}")
    where = resolve_device(device).type
    task = {"high": int(loaded.bounds[1]), "device": where}

    def usable(among: Sequence[Contender]) -> list[Contender]:
        return [c for c in among if c.label in wanted and c.only_on in (None, where)]

    batch_size = 128
    whole = min(num_rows or len(x), len(x)) // batch_size * batch_size
    if whole < batch_size:
        raise ValueError(f"{len(x) if num_rows is None else num_rows} rows are fewer than a batch of {batch_size}")
    measured: Numbers = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), x.numpy(), task, rounds)
        if "whole" in sections:
            measured["whole"] = bench.whole(usable(WHOLE), whole, whole_epochs, goal, loaded.x_test.numpy())
        if "mlp" in sections:
            among = usable([PYRO, *PYTORCH, NUMPYRO, *OURS, *FLOOR])
            measured["mlp"] = bench.training(among, {}, whole, epochs, [NUMPYRO.label, PYRO.label])
        if "conv" in sections:
            among = usable([*PYTORCH, *OURS])
            rows = min(conv_rows, whole) // batch_size * batch_size
            measured["conv"] = bench.training(among, {"network": "conv"}, rows, epochs, [EAGER.label])
        if "samples" in sections:
            among, arguments = usable([EAGER, LIBRARY]), {"num_samples": num_samples}
            measured["samples"] = bench.rates(among, "sample", arguments, len(x), num_samples)
        if "evidence" in sections:
            among, arguments = usable([EAGER, LIBRARY]), {"num_particles": num_particles}
            rows = min(evidence_rows, len(x))
            measured["evidence"] = bench.rates(among, "evidence", arguments, rows, rows)
        if "growth" in sections:
            measured["growth"] = bench.growth(usable(OURS[:2]), whole)
    results = {
        "date": date.today().isoformat(),
        "machine": machine(where),
        "versions": versions(),
        "settings": {"data": loaded.name, "rounds": rounds, "epochs": epochs, "batch_size": batch_size, **task},
        "sections": measured,
    }
    print(report.document([results]))
    if out is not None:
        path = out.with_name(f"{out.name}.json")
        results = report.joined(files.read_json(path), results) if path.exists() else results
        files.write_json(results, path)
        plotting.save_figure(report.figure(results), out.with_name(f"{out.name}.png"))
        report.write_document(out.parent)


def chosen(text: str, known: Sequence[str], option: str) -> list[str]:
    """Reads names separated by commas."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or (unknown := [name for name in names if name not in known]):
        raise ValueError(f"{option} knows {', '.join(known)}; found {', '.join(unknown) if names else 'nothing'}")
    return names


@dataclass(frozen=True)
class Bench:
    """The data, and the number of turns for every contender."""

    folder: Path
    x: np.ndarray
    task: Numbers
    rounds: int

    @contextlib.contextmanager
    def workers(self, contenders: Sequence[Contender]) -> Iterator[dict[str, "Worker"]]:
        """A process for each contender; they end with the block."""
        path = self.folder / "x.npy"
        if not path.exists():
            np.save(path, self.x)
        with contextlib.ExitStack() as stack:
            yield {c.label: stack.enter_context(Worker(c, path, self.task, self.folder)) for c in contenders}

    def whole(
        self, contenders: Sequence[Contender], num_rows: int, epochs: int, goal: float, held_out: np.ndarray
    ) -> Numbers:
        """Seconds from the start of a process to the end of its training, and to an ELBO of rows held out."""
        found: Numbers = {}
        left_out: dict[str, str] = {}
        path = self.folder / "bits.npy"
        bits = np.random.default_rng(0).random(held_out.shape) * self.task["high"] < held_out
        np.save(path, bits.astype(np.uint8) * np.uint8(self.task["high"]))
        arguments = {"epochs": epochs, "held_out": str(path)}
        for number in range(-1, self.rounds):  # the first is for what lasts
            for c in contenders:
                if c.label in left_out or (number < 0 and c.cache is None):
                    continue
                with self.workers([c]) as workers:
                    started = time.time()
                    answer = workers[c.label].call("train", num_rows, {}, seed=max(number, 0), **arguments)
                    seconds = time.time() - started
                if "missing" in answer:
                    left_out[c.label] = answer["missing"]
                    continue
                reached = next((i for i, (_, elbo) in enumerate(answer["looks"]) if elbo >= goal), None)
                if number < 0:
                    continue
                row = found.setdefault(
                    c.label, {"seconds": [], "to_goal": [], "goal_epoch": [], "elbo": [], "peak_memory": 0.0}
                )
                row["seconds"].append(seconds)
                row["to_goal"].append(None if reached is None else answer["looks"][reached][0] - started)
                row["goal_epoch"].append(None if reached is None else reached + 1)
                row["elbo"].append(answer["looks"][-1][1])
                row["peak_memory"] = max(row["peak_memory"], answer["peak_memory"])
                print(f"round {number + 1} {c.label:20} {seconds:8.1f} s, {row['elbo'][-1]:.2f} nats", flush=True)
        of = {"epochs": epochs, "goal": goal, "num_rows": num_rows}
        return report.section("seconds", found, left_out, [NUMPYRO.label]) | of

    def training(
        self, contenders: Sequence[Contender], task: Numbers, num_rows: int, epochs: int, references: Sequence[str]
    ) -> Numbers:
        """Seconds an epoch of every contender, and what one notices besides."""
        found: Numbers = {}
        left_out: dict[str, str] = {}
        if not has_bfloat16(torch.device(self.task["device"])):
            slow = [c.label for c in contenders if "bfloat16" in c.arguments.values()]
            left_out = dict.fromkeys(slow, "this CPU has no instructions for bfloat16")
        with self.workers([c for c in contenders if c.label not in left_out]) as workers:
            for label, worker in workers.items():  # the first step, from a cold start
                first = worker.call("train", 128, task, epochs=1, seed=0)
                if "missing" in first:
                    left_out[label] = first["missing"]
                    print(f"{label:20} is left out: {first['missing']}", flush=True)
                    continue
                started = {"from_start": first["wall"], "from_call": first["seconds"]}
                found[label] = {"seconds": [], "first_step": started, "idle": 0.0}
                print(f"{label:20} first step {started['from_start']:6.1f} s after the start", flush=True)
            for number in range(self.rounds):
                for label, row in found.items():
                    answer = workers[label].call("train", num_rows, task, epochs=epochs, seed=number)
                    last = answer["result"][-1]
                    row["seconds"].append(last["seconds"])
                    if "elbo" in last:
                        row.setdefault("elbo", []).append(last["elbo"])
                    row.setdefault("peak_memory", answer["peak_memory"])  # of one training, and not of several
                    row["idle"] = max(row["idle"], answer["idle"])
                    print(f"round {number + 1} {label:20} {last['seconds']:8.3f} s", flush=True)
        return report.section("seconds an epoch", found, left_out, references) | {"num_rows": num_rows, "task": task}

    def rates(
        self, contenders: Sequence[Contender], function: str, arguments: Numbers, num_rows: int, count: int
    ) -> Numbers:
        """Seconds that a job takes every contender; ``count`` things come out of it."""
        found: Numbers = {}
        left_out: dict[str, str] = {}
        with self.workers([Contender(c.label, c.module) for c in contenders]) as workers:
            for number in range(-1, self.rounds):  # the first turn warms up
                for label, worker in workers.items():
                    if label in left_out:
                        continue
                    answer = worker.call(function, num_rows, {}, seed=max(number, 0), **arguments)
                    if "missing" in answer:
                        left_out[label] = answer["missing"]
                    elif number >= 0:
                        row = found.setdefault(label, {"seconds": [], "peak_memory": 0.0})
                        row["seconds"].append(answer["result"])
                        row["peak_memory"] = answer["peak_memory"]
                        print(f"round {number + 1} {label:20} {count / answer['result']:12,.1f} /s", flush=True)
        references = [contenders[0].label] if contenders else []
        return report.section(f"seconds for {count:,}", found, left_out, references) | {"count": count, **arguments}

    def growth(self, contenders: Sequence[Contender], most_rows: int) -> Numbers:
        """Seconds a step of the MLP as one of its sizes grows and the others stay."""
        found: Numbers = {name: {} for name in GROWTH}
        with self.workers(contenders) as workers:
            for name, values in GROWTH.items():
                for value in values:
                    batch_size = value if name == "batch_size" else 128
                    steps = min(20, most_rows // batch_size)
                    if not steps:
                        continue
                    for label, worker in workers.items():
                        answer = worker.call("train", steps * batch_size, {name: value}, epochs=5, seed=0)
                        seconds = [epoch["seconds"] / steps for epoch in answer["result"][1:]]
                        found[name].setdefault(label, {})[str(value)] = seconds
                        print(f"{name} {value:5} {label:20} {1e3 * report.median(seconds):8.2f} ms a step", flush=True)
        return {"unit": "seconds a step", "sizes": found}


class Worker:
    """A contender's process, which starts when it is first called."""

    def __init__(self, contender: Contender, data: Path, task: Numbers, folder: Path) -> None:
        self.contender = contender
        cache = str(folder / contender.cache) if contender.cache else tempfile.mkdtemp(dir=folder)
        self.command = [sys.executable, "-P", "-m", "peers", contender.module, str(data), json.dumps(task)]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the others need room on the device
        }
        if task["device"] == "cpu":
            self.environment["JAX_PLATFORMS"] = "cpu"
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()

    def call(self, function: str, num_rows: int, task: Numbers, **arguments: Any) -> Numbers:
        """What a function of the contender gives, with ``wall``: the seconds until it answered.

        Raises:
            RuntimeError: if the process ended instead.
        """
        started = time.perf_counter()
        if self.process is None:
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(self.command, env=self.environment, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        arguments = {**self.contender.arguments, **arguments}
        call = {"function": function, "num_rows": num_rows, "task": task, "arguments": arguments}
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(call) + "\n")
            self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.contender.label} ended with status {self.process.wait()}; why stands above")
        return json.loads(answer) | {"wall": time.perf_counter() - started}


if __name__ == "__main__":
    run_command(main)
