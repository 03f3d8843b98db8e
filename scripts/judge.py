"""Judges the verdicts of `evaluate_suite`: how often they are false of sound models, and which faults they name.

Sound models and wrong ones (`scripts/judged/`) are put through the quick suite, one JSON line each in RESULTS. A run
that was stopped goes on where it was. When all are done, the page is written.
"""

import json
import time
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cli
import pyro
import torch
import typer
from judged.faults import FAULTS, STRENGTHS
from judged.page import markdown
from judged.sound import SOUND
from judged.system import Case

from pyro_vae._support import files
from pyro_vae.evaluation import evaluate_suite
from pyro_vae.evaluation.report import PARTS
from pyro_vae.evaluation.report.job import SIZES

_LEFT_OUT = ("bounds", "nuts")  # an hour for all cases together; their findings are never "wrong" in the quick suite


_LESS: dict[str, Any] = {  # than the quick suite does: hundreds of them are run
    "evidence_rows": 50,
    "guide_rows": 50,
    "modes": (6, 12),
    "gaps": (6, 100),
    "simulations": (200, 49),
    "coverage_rows": 200,
    "replications": 100,
}


def tried(case: Case) -> dict[str, Any]:
    """What the suite says of a case."""
    started = time.perf_counter()
    parts = [part for part in PARTS if part not in _LEFT_OUT]
    report = evaluate_suite(case.pair, case.x, train=case.train, parts=parts)
    return {
        "findings": [
            {"part": part, "name": f.name, "level": f.level, "text": f.text, "numbers": f.numbers}
            for part, section in report.sections.items()
            for f in section.findings
        ],
        "not done": {part: s.about for part, s in report.sections.items() if s.about.startswith("Not done")},
        "seconds": round(time.perf_counter() - started, 2),
    }


def plan(copies: int, strengths: tuple[str, ...]) -> dict[str, tuple[str, str | int]]:
    """Every case by its key: the family and the copy, or the fault and its strength."""
    sound = {f"sound/{name}/{copy}": (name, copy) for copy in range(copies) for name in SOUND}
    wrong = {f"wrong/{name}/{strength}": (name, strength) for strength in strengths for name in FAULTS}
    return {**sound, **wrong}


def made(key: str, of: tuple[str, str | int]) -> Case:
    """The case of a key, the same at every call."""
    pyro.clear_param_store()
    pyro.set_rng_seed(zlib.crc32(key.encode()) % 2**31)
    name, which = of
    return SOUND[name]() if key.startswith("sound/") else FAULTS[name].make(STRENGTHS.index(str(which)))


def main(
    results: Annotated[Path, typer.Option(help="Results by case, one JSON line each; those there are kept.")] = Path(
        "judged.jsonl"
    ),
    page: Annotated[Path | None, typer.Option(help="The page to write when all are done.")] = None,
    copies: Annotated[int, typer.Option(help="Models of each sound family.")] = 6,
    strengths: Annotated[str, typer.Option(help="Of the faults, with commas between.")] = ",".join(STRENGTHS),
    only: Annotated[str, typer.Option(help="Cases whose key has one of these in it, with commas between.")] = "",
    show: Annotated[bool, typer.Option(help="Print every finding that is not fine.")] = False,
) -> None:
    """Runs the suite on every sound model and every fault, and writes the table."""
    torch.set_num_threads(1)
    SIZES["quick"] = replace(SIZES["quick"], **_LESS)
    warnings.simplefilter("ignore")
    done = {}
    if results.exists():
        done = {(record := json.loads(line))["key"]: record for line in results.read_text().splitlines()}
    every = plan(copies, tuple(strengths.split(",")))
    wanted = {key: of for key, of in every.items() if any(part in key for part in only.split(","))}
    for key, of in wanted.items():
        if key not in done:
            done[key] = {"key": key, **tried(made(key, of))}
            with results.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(done[key], ensure_ascii=False) + "\n")
        levels = [finding["level"] for finding in done[key]["findings"]]
        print(
            f"{key:<45}{done[key]['seconds']:>7.1f} s  wrong {levels.count('wrong')} look {levels.count('look')}",
            flush=True,
        )
        for f in done[key]["findings"] if show else ():
            if f["level"] != "fine":
                print(f"    {f['level']:<6}{f['part']}/{f['name']}: {f['text']}")
    if page is not None:
        with files.replacing(page) as temporary:
            temporary.write_text(markdown([done[key] for key in wanted]), encoding="utf-8")


if __name__ == "__main__":
    cli.run_command(main)
