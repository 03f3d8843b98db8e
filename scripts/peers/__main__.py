"""A contender's process: waits for calls on its standard input and answers each on its standard output, as JSON lines.

Started as ``python -m peers MODULE DATA TASK``. Whatever a library prints goes to standard error.
"""

import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from peers import Task


def peak_memory() -> float:
    """The peak memory of this process, in MiB."""
    status = Path("/proc/self/status")  # the resource module may report the parent process
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def look(rows: np.ndarray, looks: list[tuple[float, float]], elbo: Callable[[np.ndarray], float]) -> None:
    """Records the ELBO of rows and the end of an epoch, in wall-clock time, which processes share."""
    at = time.time()
    looks.append((at, elbo(rows)))


def answer(module: str, x: np.ndarray, settings: Task, call: dict[str, Any]) -> dict[str, Any]:
    """The result of a contender's function and its time, or the missing import."""
    try:
        contender = importlib.import_module(f"peers.{module}")
        started = time.perf_counter()
        task = Task(**{**settings.__dict__, **call["task"]})
        job, arguments = getattr(contender, call["function"]), dict(call["arguments"])
        looks: list[tuple[float, float]] = []
        if "held_out" in arguments:
            arguments["look"] = partial(look, np.load(arguments.pop("held_out")), looks)
        result = job(x[: call["num_rows"]], task, **arguments)
        seconds = time.perf_counter() - started
    except ImportError as error:
        return {"missing": str(error), "peak_memory": peak_memory()}
    return {"result": result, "looks": looks, "seconds": seconds, "peak_memory": peak_memory()}


def main(module: str, data: str, task: str) -> None:
    """Answers calls until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    x, settings = np.load(data), Task(**json.loads(task))
    rested = None
    for line in sys.stdin:
        # Processor time while waiting: spinning threads would take it from the running contender.
        idle = 0.0 if rested is None else time.process_time() - rested
        answers.write(json.dumps(answer(module, x, settings, json.loads(line)) | {"idle": idle}) + "\n")
        rested = time.process_time()


if __name__ == "__main__":
    main(*sys.argv[1:])
