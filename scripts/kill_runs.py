"""Kills training runs at random times, resumes them, and compares them with an undisturbed run."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer

from pyro_vae import load
from pyro_vae.cli.running import run_command

TRAIN = Path(__file__).with_name("train.py")
OPTIONS = ("--epochs", "30", "--hidden-dims", "16", "--latent-dim", "3", "--compile", "no")
WAYS = {
    "SIGKILL": (signal.SIGKILL,),
    "SIGTERM": (signal.SIGTERM,),
    "SIGHUP": (signal.SIGHUP,),
    "SIGINT": (signal.SIGINT,),
    "SIGINT twice": (signal.SIGINT, signal.SIGINT),
}
FILES = {"config.json", "model.safetensors", "history.csv", "figures"}


def command(ranks: int, *arguments: str) -> list[str]:
    """The command that starts a training run on a number of processes."""
    if ranks == 1:
        return [sys.executable, str(TRAIN), *arguments]
    together = ["--standalone", f"--nproc-per-node={ranks}"]
    return [sys.executable, "-m", "torch.distributed.run", *together, str(TRAIN), *arguments]


def begin(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    """Starts a run in its own process group, where Ctrl-C works as in a terminal."""
    return subprocess.Popen(
        command(ranks, *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def left_alone(ranks: int, folder: Path) -> float:
    """Trains without disturbance; returns the seconds that it takes."""
    began = time.monotonic()
    process = begin(ranks, *OPTIONS, "--out", str(folder))
    err = process.communicate()[1]
    if process.returncode:
        raise ValueError(f"the undisturbed run ended with status {process.returncode}: {err[-500:]}")
    return time.monotonic() - began


def differences(folder: Path, whole: Path) -> list[str]:
    """The differences of a run to the undisturbed one."""
    found = [f"files {sorted(names)}" for names in [{path.name for path in folder.iterdir()}] if names != FILES]
    own, other = (pd.read_csv(place / "history.csv") for place in (folder, whole))
    times = ["seconds", "rows_per_second"]
    if not own.drop(columns=times).equals(other.drop(columns=times)):
        found.append("history")
    weights, expected = load(folder).state_dict(), load(whole).state_dict()
    found += [name for name in expected if not torch.equal(weights[name], expected[name])]
    return found


def main(
    kills: Annotated[int, typer.Option(help="Number of kills.", min=1)] = 15,
    ranks: Annotated[int, typer.Option(help="Processes of each run, by torchrun.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seeds times and signals.")] = 0,
) -> None:
    """Kills runs at random times, also during imports and drawing, and reports the result in one line.

    A killed run is resumed, or started again if it left no checkpoint, until it ends. Then its files must be exactly
    those of an undisturbed run.
    """
    draws = random.Random(seed)
    counts: Counter[str] = Counter()
    faults: list[str] = []
    runs = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        seconds = left_alone(ranks, root / "whole")
        while counts.total() < kills:
            runs, folder = runs + 1, root / "killed"
            while True:
                resumes = (folder / "config.json").exists()
                process = begin(ranks, *(("--resume",) if resumes else (*OPTIONS, "--out")), str(folder))
                disturbed = counts.total() < kills
                if disturbed:
                    time.sleep(draws.uniform(0, seconds))
                    name = draws.choice(list(WAYS))
                    for number in WAYS[name]:
                        if process.poll() is None:
                            os.killpg(process.pid, number)
                            time.sleep(0.05)
                err = process.communicate()[1]
                if process.returncode == 0:
                    break
                if disturbed:
                    counts[name] += 1
                # Python itself says where it was interrupted in its imports; a command does not.
                if not disturbed or (ranks == 1 and "Traceback" in err and "run_command" in err):
                    faults.append(f"status {process.returncode}: {err[-1500:]}")
                    break
            if process.returncode == 0:
                faults += differences(folder, root / "whole")
            shutil.rmtree(folder, ignore_errors=True)
    said = ", ".join(f"{number} {name}" for name, number in counts.most_common())
    print(f"{counts.total()} kills ({said}) of {runs} runs on {ranks} process(es): {len(faults)} faults")
    if faults:
        raise ValueError("; ".join(faults))


if __name__ == "__main__":
    run_command(main)
