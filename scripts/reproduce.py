"""Makes the tables of docs/results.md, each by one command, and says whether they come out as before."""

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
INTRODUCTION = """# What it reaches

Each table is made by `python scripts/reproduce.py NAME`: in a short form, for which two cores take at most half an
hour, or with `--full` as published. `--check` makes it again and compares it with what is kept in `results.json`.
Behind ± is a standard error over rows or, where a range stands behind it, the standard deviation over seeds. Forms that
were not run say so. How long it takes from the command to a test ELBO of −100 nats on MNIST is in
[benchmarks](benchmarks/README.md).
"""
MOST = 4.0  # standard errors that a number may be off where it is made again


def main(
    name: Annotated[str, typer.Argument(help=f"all, page, or one of {', '.join(TABLES)}.")],
    short: Annotated[bool, typer.Option("--short/--full", help="Within half an hour on two cores, or in full.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with what is kept, and fail where it is not the same.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Where downloaded data sets live. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    results: Annotated[Path, typer.Option(help="What is kept, JSON; a page in Markdown lies beside it.")] = RESULTS,
) -> None:
    """Makes a table and keeps it, or compares it with what is kept; page writes the page again."""
    kept = read(results)
    names = list(TABLES) if name == "all" else [] if name == "page" else [lookup(name, TABLES, "table")]
    form, faults = "short" if short else "full", []
    for one in names:
        started = time.perf_counter()
        rows = TABLES[one].rows(short=short, root=data_root or default_root())
        seconds = round(time.perf_counter() - started)
        print(f"\n{TABLES[one].TITLE}, {form}, in {seconds:,} s\n\n{table(rows, TABLES[one].DIGITS)}\n", flush=True)
        if check and form not in kept.get(one, {}):
            raise ValueError(f"{results} has no {form} form of {one} to compare with: make it without --check")
        if check:
            faults += [f"{one}: {fault}" for fault in differences(kept[one][form]["rows"], rows)]
            continue
        made = {"date": date.today().isoformat(), "seconds": seconds, "machine": machine("cpu"), "versions": versions()}
        kept = read(results)  # which another process may have written meanwhile
        kept.setdefault(one, {})[form] = {**made, "rows": rows}
        files.write_json(kept, results)
    if faults:
        raise ValueError(f"not as they were: {'; '.join(faults)}")
    if not check:
        with files.replacing(results.with_suffix(".md")) as temporary:
            temporary.write_text(page(kept), encoding="utf-8")


def read(results: Path) -> dict[str, Any]:
    """What is kept, by table and form."""
    return files.read_json(results) if results.exists() else {}


def table(rows: list[Row], digits: int) -> str:
    """Rows in Markdown, with all columns that any of them has."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return report.markdown(columns, [[text(row.get(column), digits) for column in columns] for row in rows])


def differences(before: list[Row], now: list[Row]) -> list[str]:
    """Numbers that have an error and are further off than that lets expect, in words."""
    found = []
    for old, new in zip(before, now, strict=True):
        for column, cell in old.items():
            if isinstance(cell, Mapping) and column in new:
                errors = [error_of(one) for one in (cell, new[column])]
                allowed = MOST * math.hypot(*errors)
                off = abs(cell["value"] - new[column]["value"])
                if off > allowed:
                    found.append(f"{old['']}, {column}: {new[column]['value']:.4g}, and it was {cell['value']:.4g}")
    return found


def error_of(cell: Mapping[str, float]) -> float:
    """The standard error of a number, where it has one."""
    error = cell["error"] if "error" in cell else cell["sd"] / math.sqrt(cell["count"])
    return 0.0 if math.isnan(error) else error


def page(kept: Mapping[str, Any]) -> str:
    """The document: every table, what is missing said."""
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
