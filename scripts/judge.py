"""Judges the verdicts of `evaluate_suite`: how often they are false for sound models, and which faults they find.

Sound models and wrong ones (`scripts/judged/`) go through the quick suite. The numbers that each finding compared with
its threshold are stored, one JSON line for each model. So an interrupted run continues where it stopped, and the page
uses the current thresholds.
"""

import json
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import pyro
import torch
import typer
from judged.faults import FAULTS, STRENGTHS
from judged.page import HELD_OUT, found, markdown
from judged.sound import SOUND
from judged.system import Case

from pyro_vae._support import files
from pyro_vae.cli.running import run_command
from pyro_vae.evaluation import evaluate_suite
from pyro_vae.evaluation.report import PARTS
from pyro_vae.evaluation.report.job import SIZES

_LEFT_OUT = ("bounds", "nuts")  # they take as long as all other parts together

_LESS: dict[str, Any] = {  # than the quick suite, as it runs hundreds of times
    "evidence_rows": 50,
    "guide_rows": 50,
    "modes": (6, 12),
    "gaps": (6, 100),
    "simulations": (200, 49),
    "coverage_rows": 200,
    "replications": 100,
}


def tried(case: Case, *, show: bool = False) -> dict[str, Any]:
    """The numbers that the findings of a suite compared with their thresholds."""
    started = time.perf_counter()
    report = evaluate_suite(
        case.pair, case.x, train=case.train, parts=[part for part in PARTS if part not in _LEFT_OUT]
    )
    for finding in report.findings if show else ():
        if finding.level != "fine":
            print(f"    {finding.level:<6}{finding.name}: {finding.text}")
    return {
        "findings": [
            {"name": f.name, "numbers": {name: float(f"{value:.4g}") for name, value in f.numbers.items()}}
            for f in report.findings
        ],
        "seconds": round(time.perf_counter() - started, 1),
    }


def plan(copies: int, strengths: tuple[str, ...], held_out: int) -> dict[str, tuple[str, str | int]]:
    """Every case by key: the family and the copy, or the fault and its strength."""
    sound = {f"sound/{name}/{copy}": (name, copy) for copy in range(copies) for name in SOUND}
    wrong = {f"wrong/{name}/{strength}": (name, strength) for strength in strengths for name in FAULTS}
    new_sound = {f"{HELD_OUT}sound/{name}/{copy}": (name, copy) for copy in range(held_out) for name in SOUND}
    new_wrong = {f"{HELD_OUT}wrong/{name}/gross": (name, "gross") for name in FAULTS if held_out}
    return {**sound, **wrong, **new_sound, **new_wrong}


def made(key: str, of: tuple[str, str | int]) -> Case:
    """The case for a key, the same in every call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(zlib.crc32(key.encode()) % 2**31)
    name, which = of
    return SOUND[name]() if "sound/" in key else FAULTS[name].make(STRENGTHS.index(str(which)))


def expected(key: str, of: tuple[str, str | int]) -> dict[str, list[str]]:
    """The findings that should detect a fault; nothing for a sound model."""
    return {} if "sound/" in key else {"named_by": sorted(FAULTS[of[0]].named_by)}


def main(
    results: Annotated[
        Path, typer.Option(help="File of results, one JSON line per case; results in it are kept.")
    ] = Path("docs/judge.jsonl"),
    page: Annotated[Path | None, typer.Option(help="The page to write when all cases are done.")] = None,
    copies: Annotated[int, typer.Option(help="Number of models in each sound family.")] = 6,
    held_out: Annotated[
        int,
        typer.Option(
            help="Number of models in each sound family, next to all gross faults, that thresholds were not set on."
        ),
    ] = 2,
    strengths: Annotated[str, typer.Option(help="Strengths of the faults, separated by commas.")] = ",".join(STRENGTHS),
    only: Annotated[str, typer.Option(help="Only cases whose key contains one of these, separated by commas.")] = "",
    show: Annotated[bool, typer.Option(help="Print every finding that is not fine.")] = False,
) -> None:
    """Runs the suite on every sound model and every fault, and writes the table."""
    torch.set_num_threads(1)
    SIZES["quick"] = replace(SIZES["quick"], **_LESS)
    warnings.simplefilter("ignore")
    done = {}
    if results.exists():
        done = {(record := json.loads(line))["key"]: record for line in results.read_text().splitlines()}
    every = plan(copies, tuple(strengths.split(",")), held_out)
    for key, of in every.items():
        if key in done or not any(part in key for part in only.split(",")):
            continue
        done[key] = {"key": key, **expected(key, of), **tried(made(key, of), show=show)}
        with results.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(done[key], separators=(",", ":")) + "\n")
        levels = list(found(done[key]).values())
        seconds = done[key]["seconds"]
        print(f"{key:<45}{seconds:>7.1f} s  wrong {levels.count('wrong')} look {levels.count('look')}", flush=True)
    if page is not None:
        with files.replacing(page) as temporary:
            temporary.write_text(markdown([done[key] for key in every if key in done]), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
