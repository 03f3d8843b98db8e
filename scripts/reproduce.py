"""Computes the tables of docs/results.md, each with one command, and checks whether they come out as before."""

import math
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import benchmark_report as report
import typer
from machines import machine, versions
from tables import TABLES
from tables.row import Row, text

from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import default_root

RESULTS = Path(__file__).parents[1] / "docs" / "results.json"
FORMS = ("short", "full")
INTRODUCTION = """# Results

`python scripts/reproduce.py NAME` computes a table: in a short form, which takes two cores at most half an hour, or
with `--full` as published. `--check` computes it again and compares it with `results.json`. A number after ± is a
standard error over rows, or, if a range follows, the standard deviation over seeds. Forms that were not run are marked.
"""
MOST = 4.0  # standard errors that a repeated number may be off


def main(
    name: Annotated[str, typer.Argument(help=f"all, page, or one of {', '.join(TABLES)}.")],
    short: Annotated[
        bool, typer.Option("--short/--full", help="At most half an hour on two cores, or in full.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the stored results, and fail if they differ.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    results: Annotated[Path, typer.Option(help="JSON file of results; the page in Markdown is next to it.")] = RESULTS,
) -> None:
    """Computes a table and stores it, or compares it with the stored one; page rewrites the page."""
    kept = read(results)
    names = list(TABLES) if name == "all" else [] if name == "page" else [lookup(name, TABLES, "table")]
    form, faults = "short" if short else "full", []
    for one in names:
        started = time.perf_counter()
        rows = TABLES[one].rows(short=short, root=data_root or default_root())
        seconds = round(time.perf_counter() - started)
        print(f"\n{TABLES[one].TITLE}, {form}, in {seconds:,} s\n\n{table(rows, TABLES[one].DIGITS)}\n", flush=True)
        if check and form not in kept.get(one, {}):
            raise ValueError(f"{results} has no {form} form of {one} to compare with: run without --check first")
        if check:
            faults += [f"{one}: {fault}" for fault in differences(kept[one][form]["rows"], rows)]
            continue
        made = {"date": date.today().isoformat(), "seconds": seconds, "machine": machine("cpu"), "versions": versions()}
        kept = read(results)  # another process may have written it meanwhile
        kept.setdefault(one, {})[form] = {**made, "rows": rows}
        files.write_json(kept, results)
    if faults:
        raise ValueError(f"results differ: {'; '.join(faults)}")
    if not check:
        with files.replacing(results.with_suffix(".md")) as temporary:
            temporary.write_text(page(kept), encoding="utf-8")


def read(results: Path) -> dict[str, Any]:
    """The stored results, by table and form."""
    return files.read_json(results) if results.exists() else {}


def table(rows: list[Row], digits: int) -> str:
    """Rows in Markdown, with the columns of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return report.markdown(columns, [[text(row.get(column), digits) for column in columns] for row in rows])


def differences(before: list[Row], now: list[Row]) -> list[str]:
    """Descriptions of numbers that differ by more than their errors allow."""
    found = []
    for old, new in zip(before, now, strict=True):
        for column, cell in old.items():
            if isinstance(cell, Mapping) and column in new:
                errors = [error_of(one) for one in (cell, new[column])]
                allowed = MOST * math.hypot(*errors)
                off = abs(cell["value"] - new[column]["value"])
                if off > allowed:
                    found.append(f"{old['']}, {column}: {new[column]['value']:.4g}, was {cell['value']:.4g}")
    return found


def error_of(cell: Mapping[str, float]) -> float:
    """The standard error of a number, or 0."""
    error = cell["error"] if "error" in cell else cell["sd"] / math.sqrt(cell["count"])
    return 0.0 if math.isnan(error) else error


def page(kept: Mapping[str, Any]) -> str:
    """The page: every table, with a note on what was not run."""
    lines = [INTRODUCTION]
    for name, module in TABLES.items():
        lines += [f"## {module.TITLE}", "", module.ABOUT, ""]
        for form in FORMS:
            found = kept.get(name, {}).get(form)
            if found is None:
                lines += [f"*{form.capitalize()}: not run.*", ""]
                continue
            where = found["machine"]
            said = f"{where['cpu']}, {where['cores']} cores with {where['vectors']}; torch {found['versions']['torch']}"
            lines += [table(found["rows"], module.DIGITS), ""]
            lines += [f"*{form.capitalize()}: {found['date']}, {found['seconds']:,} s; {said}.*", ""]
        if notes := getattr(module, "NOTES", ""):
            lines += [notes, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)
