"""Runs every tool on every program of the zoo, checks each number by a second computation, and writes a table.

A cell says that the tool works and agrees with the second computation, or gives the sentence by which the tool refuses.
All other outcomes are faults: they are printed, and the exit status is 1.
"""

import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import typer
from zoo import ZOO
from zoo.checks import Disagreement
from zoo.tools import TOOLS, Trial

from pyro_vae import evaluation
from pyro_vae._support.names import lookup
from pyro_vae.cli.running import run_command

_TRAINING = ("fit compiled", "fit as programs")
_PROMISES = {
    "fit as programs": "fit",
    "sample": "sample",
    "posterior predictive": "posterior_predictive",
    "reconstruct": "reconstruct",
    "encode": "encode",
    "evaluate": "evaluate",
    "evidence": "log_evidence",
    "annealing": "ais_bounds",
    "refinement": "refine",
    "calibration": "simulation_based_calibration",
    "NUTS": "nuts_posterior",
    "impute": "impute",
    "save and open": "save",
}
_CHECK = "check_pair"
_SLOW = ("fit compiled", "annealing", "NUTS")


@dataclass
class Cell:
    """The outcome of a tool on a program: ``"works"``, ``"refuses"`` or ``"fault"``, with a text."""

    kind: str
    text: str = ""
    seconds: float = 0.0
    warned: list[str] = field(default_factory=list)


def attempt(tool: str, trial: Trial, cells: Mapping[str, Cell]) -> Cell:
    """Runs one tool, after those in ``cells``."""
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            cell = as_promised(trial, cells) if tool == _CHECK else Cell("works", TOOLS[tool](trial))
        except Disagreement as error:
            cell = Cell("fault", str(error))
        except (ValueError, TypeError, NotImplementedError) as error:
            cell = Cell("refuses", str(error)) if clean(error) else Cell("fault", described(error))
        except Exception as error:  # the table reports all errors
            cell = Cell("fault", described(error))
    cell.seconds = time.perf_counter() - started
    cell.warned = sorted({str(w.message) for w in caught if issubclass(w.category, UserWarning)})
    return cell


def as_promised(trial: Trial, cells: Mapping[str, Cell]) -> Cell:
    """Whether ``check_pair`` predicts the outcome of each tool."""
    contract = evaluation.check_pair(trial.pair, trial.data)
    for tool, name in _PROMISES.items():
        promise = contract.tools.get(name) or contract.tools["every tool that runs the guide"]
        kind = "refuses" if promise.startswith("refused") else "works"
        if tool in cells and cells[tool].kind not in (kind, "fault"):
            return Cell("fault", f"check_pair says of {name}: {promise}; but it {cells[tool].kind} {cells[tool].text}")
    return Cell("works", "says what each tool does")


def clean(error: Exception) -> bool:
    """Whether an error is a sentence raised by the library itself."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = bool(frames) and "/pyro_vae/" in frames[-1].filename.replace("\\", "/")
    return ours and "\n" not in str(error) and 20 < len(str(error)) < 500


def described(error: Exception) -> str:
    """An error with the place where it was raised."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/pyro_vae/" in f.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name}" if frames else ""
    return f"{type(error).__name__}{place}: {' '.join(str(error).split())[:300]}"


def generic(sentence: str) -> str:
    """A refusal without names of sites and numbers, so that equal ones share a footnote."""
    return re.sub(r"\b\d[\d,.]*\b", "…", re.sub(r"'[^']*'", "'…'", sentence))


def markdown(cells: Mapping[str, Mapping[str, Cell]], tools: Sequence[str], trials: Mapping[str, Trial]) -> str:
    """The page: the meaning of the cells, the table, the footnotes, the numbers."""
    notes: dict[str, tuple[int, str]] = {}

    def shown(cell: Cell | None) -> str:
        if cell is None:
            return ""
        if cell.kind == "works":
            return "✓" if cell.text else "·"
        if cell.kind == "fault":
            return "**FAULT**"
        number, _ = notes.setdefault(generic(cell.text), (len(notes) + 1, cell.text))
        return str(number)

    rows = [
        f"| **{name}**: {ZOO[name].about} | " + " | ".join(shown(row.get(tool)) for tool in tools) + " |"
        for name, row in cells.items()
    ]
    counts = Counter(cell.kind for row in cells.values() for cell in row.values())
    lines = [
        "# Programs and tools",
        "",
        f"Every tool of the library on {len(cells)} Pyro programs like those in Pyro's examples and tutorials, from "
        f"`scripts/zoo/`. `python scripts/programs_table.py` writes this page, and fails if a cell is a traceback or a "
        f"number that a second computation contradicts.",
        "",
        f"✓: works, and a second computation agrees ({counts['works']} cells, with those marked ·). ·: works, with "
        f"nothing to compare it with. A number: refused, with the sentence below ({counts['refuses']} cells).",
        "",
        f"| program | {' | '.join(tools)} |",
        f"|---|{'---|' * len(tools)}",
        *rows,
        "",
        "## Refusals",
        "",
        *(f"{number}. {text[0].upper()}{text[1:]}." for number, text in notes.values()),
        "",
        *_numbers(trials),
    ]
    return "\n".join(lines) + "\n"


def _numbers(trials: Mapping[str, Trial]) -> list[str]:
    columns = {
        "pyro": "Pyro's ELBO",
        "elbo": "`evaluate`",
        "exact": "exact evidence",
        "weighted": "`log_evidence` − exact",
        "annealed": "`ais_bounds` − exact",
        "compiled": "compiled − eager",
    }

    def shown(key: str, value: float | None) -> str:
        if value is None:
            return ""
        return f"{value:.1e}" if key == "compiled" else f"{value:+.3f}" if "−" in columns[key] else f"{value:.3f}"

    rows = [
        f"| {name} | " + " | ".join(shown(key, trial.numbers.get(key)) for key in columns) + f" | {trial.execution} |"
        for name, trial in trials.items()
    ]
    return [
        "## Numbers",
        "",
        "After a short training, in nats per row: the ELBO of all rows by Pyro's own objective at unit scale and by "
        "`evaluate`; the exact evidence, by a closed form, a sum or quadrature; the error of the tools on the first "
        "rows; the largest difference of an epoch's ELBO between compiled training and the programs; and how compiled "
        "training was run.",
        "",
        f"| program | {' | '.join(columns.values())} | execution |",
        f"|---|{'---:|' * len(columns)}---|",
        *rows,
    ]


def main(
    only: Annotated[str | None, typer.Option(help="Only these programs, separated by commas. [default: all]")] = None,
    tools: Annotated[str | None, typer.Option(help="Only these tools, separated by commas. [default: all]")] = None,
    short: Annotated[bool, typer.Option(help="Leave out the slow tools: compiling, annealing, NUTS.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The page to write. [default: docs/programs.md if everything runs, else none]")
    ] = None,
    verbose: Annotated[bool, typer.Option(help="Print what agreed in each cell, and the warnings.")] = False,
) -> None:
    """Runs every tool on every program of the zoo and writes the table of what works."""
    torch.set_num_threads(1)
    names = list(ZOO) if only is None else [lookup(n.strip(), list(ZOO), "program") for n in only.split(",")]
    every = [*TOOLS, _CHECK]
    chosen = every if tools is None else [lookup(t.strip(), every, "tool") for t in tools.split(",")]
    chosen = [tool for tool in chosen if not (short and tool in _SLOW)]
    whole = only is None and tools is None and not short
    cells: dict[str, dict[str, Cell]] = {}
    trials: dict[str, Trial] = {}
    faults = 0
    for name in names:
        started = time.perf_counter()
        trials[name] = trial = Trial(ZOO[name])
        cells[name] = {}
        needed = [t for t in every if t in chosen or t == "fit as programs"]  # the other tools need a trained pair
        for tool in needed:
            cell = attempt(tool, trial, cells[name])
            if tool in chosen:
                cells[name][tool] = cell
                faults += cell.kind == "fault"
            if cell.kind == "fault" or verbose:
                kind = "FAULT" if cell.kind == "fault" else cell.kind
                print(f"  {kind:<8}{tool:<22}{cell.seconds:6.1f}s  {cell.text}")
                for warned in cell.warned if verbose else ():
                    print(f"          warned: {warned[:300]}")
        counts = Counter(cell.kind for cell in cells[name].values())
        print(
            f"{name:<24}{counts['works']:>3} work,{counts['refuses']:>3} refused,{counts['fault']:>3} faults"
            f"{time.perf_counter() - started:>8.1f}s",
            flush=True,
        )
    if out is None and whole:
        out = Path(__file__).parents[1] / "docs" / "programs.md"
    if out is not None:
        out.write_text(markdown(cells, chosen, trials), encoding="utf-8")
        print(f"wrote {out}")
    if faults:
        print(f"{faults} FAULTS")
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
