"""Runs the tests that need a GPU, times everything there, trains MNIST to a goal, and writes a report."""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import benchmark
import benchmark_report as report
import torch
import typer
from peers import Task
from peers.pyro_vae_fit import build

from pyro_vae import epochs as trained_epochs
from pyro_vae import evaluate
from pyro_vae._support import files, markdown
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import DataSet, default_root, load_data
from pyro_vae.training import resolve_device

Numbers = dict[str, Any]
ROOT = Path(__file__).parents[1]
SHORT = {"rounds": 1, "epochs": 1, "num_rows": 1280, "only": "mlp"}
WHOLE = {"rounds": 5, "epochs": 2, "num_rows": None, "only": ",".join(benchmark.SECTIONS)}
QUICK = [
    c.label for c in (benchmark.PYRO, *benchmark.PYTORCH, *benchmark.OURS) if c.arguments.get("compile") is not True
]


def main(
    data: benchmark.Data = "mnist",
    data_root: benchmark.DataRoot = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Writes OUT.json, OUT.png and OUT.md, and README.md beside them.",
            metavar="OUT",
            show_default="docs/benchmarks/gpu",
        ),
    ] = ROOT / "docs" / "benchmarks" / "gpu",
    device: Annotated[str, typer.Option(help="cuda, or cpu to check that this script works.")] = "cuda",
    goal: Annotated[float, typer.Option(help="The ELBO of test rows to train to, in nats.")] = -100.0,
    epochs: Annotated[int, typer.Option(help="Maximum number of epochs to reach it.")] = 20,
    *,
    short: Annotated[bool, typer.Option("--short", help="A little of everything, in about a minute.")] = False,
) -> None:
    """Runs the tests that need a GPU, times training, draws and evidence, and trains MNIST to a test ELBO.

    Without a GPU it fails with exit status 2 and writes nothing.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "there is no GPU here, so nothing was measured: --device cpu --short shows what this script does"
        )
    where, root = resolve_device(device), data_root or default_root()
    loaded = load_data(data, root)
    tests = run_tests(short=short)
    if tests["failed"]:
        raise ValueError(f"{tests['failed']} of the tests that need a GPU failed ({tests['words']}): nothing was timed")
    settings = SHORT if short else WHOLE
    benchmark.main(
        data=data,
        data_root=root,
        out=out,
        contenders=",".join(QUICK) if short else None,
        conv_rows=2560,
        num_samples=20_000,
        evidence_rows=64,
        num_particles=1000,
        device=where.type,
        **settings,
    )
    reached = train_to(goal, loaded, where, num_epochs=epochs, num_rows=settings["num_rows"])
    path = out.with_name(f"{out.name}.json")
    results = files.read_json(path) | {"tests": tests, "goal": reached}
    files.write_json(results, path)
    text = document(results)
    with files.replacing(out.with_name(f"{out.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


def run_tests(*, short: bool) -> Numbers:
    """Runs the tests marked ``gpu`` in a separate process: how many passed, failed and were skipped."""
    folder = ["tests/test_staging.py"] if short else ["tests"]
    workers = [] if short else ["-n", "auto", "--dist", "worksteal"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *workers, *folder]
    end = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    words = next((line for line in reversed(end.stdout.splitlines()) if line.strip()), end.stderr.strip())
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error|skipped)", words)}
    if end.returncode not in (0, 1, 5) or not counts:
        raise ValueError(f"the tests did not run: {words}")
    failed = counts.get("failed", 0) + counts.get("error", 0)
    return {"passed": counts.get("passed", 0), "failed": failed, "skipped": counts.get("skipped", 0), "words": words}


def train_to(goal: float, data: DataSet, device: torch.device, *, num_epochs: int, num_rows: int | None) -> Numbers:
    """Trains until the ELBO of the test rows reaches the goal, evaluated after each epoch.

    Returns:
        Whether it was reached, after which epoch, and the seconds until then, from the start of training and without
        those for evaluating the test rows.
    """
    x_train, x_test = data.x_train[:num_rows], data.x_test[:num_rows]
    assert data.bounds is not None
    vae = build(tuple(x_train.shape[1:]), Task(high=int(data.bounds[1]), device=device.type), seed=0)
    started, looking, elbo, epoch = time.perf_counter(), 0.0, -float("inf"), 0
    for row in trained_epochs(vae, x_train, epochs=num_epochs, device=device, progress=False):
        before = time.perf_counter()
        elbo, epoch = float(evaluate(vae, x_test)["elbo"]), int(row["epoch"])
        looking += time.perf_counter() - before
        print(f"epoch {epoch}: {before - started - looking:.1f} s, test ELBO {elbo:.2f} nats", flush=True)
        if elbo >= goal:
            break
    seconds = time.perf_counter() - started - looking
    return {"goal": goal, "reached": elbo >= goal, "elbo": elbo, "epoch": epoch, "of": num_epochs, "seconds": seconds}


def document(results: Numbers) -> str:
    """The report in Markdown."""
    tests, goal = results["tests"], results["goal"]
    end = "reached" if goal["reached"] else "not reached"
    rows = [
        [
            f"{goal['goal']:.0f} nats".replace("-", "−"),
            f"{end} at epoch {goal['epoch']} of {goal['of']}",
            f"{goal['elbo']:.2f}".replace("-", "−"),
            f"{goal['seconds']:.1f}",
        ]
    ]
    return "\n\n".join(
        [
            "# Measurements by `scripts/gpu_report.py`",
            f"Tests that need a GPU: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.",
            "An MLP, 784-400-50, trained until the ELBO of the test rows reached a goal. The seconds include\n"
            "compilation, but not evaluating the test rows:",
            markdown.table(["goal", "", "test ELBO, nats", "seconds"], rows),
            report.document([results]),
        ]
    )


if __name__ == "__main__":
    run_command(main)
