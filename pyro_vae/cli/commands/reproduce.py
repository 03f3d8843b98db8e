"""Computes the tables of docs/results.md, each with one command, and checks whether they come out as before."""

import time
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from pyro_vae._support import files
from pyro_vae._support.devices import resolve_device
from pyro_vae._support.machine import machine, versions
from pyro_vae._support.names import lookup
from pyro_vae.data.sources import default_root
from pyro_vae.plotting import save_figure
from pyro_vae.results import TABLES
from pyro_vae.results.page import forms, page, picture, table
from pyro_vae.results.stored import DOCS, STORED, differences, read

EXAMPLES = (
    "pyro-vae reproduce linear",
    "pyro-vae reproduce linear --check",
    "pyro-vae reproduce priors --full --results mine.json",
)


def main(
    name: Annotated[str, typer.Argument(help=f"all, page, or one of {', '.join(TABLES)}.", metavar="NAME")],
    short: Annotated[
        bool, typer.Option("--short/--full", help="At most half an hour on two cores, or as published.")
    ] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the stored results, write nothing, and fail if they differ.")
    ] = False,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder for downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            help="JSON file to store results in, with a page in Markdown and its pictures next to it, or to compare "
            "with. [default: the results that come with the package; they are only written in a checkout of the "
            "project]"
        ),
    ] = None,
) -> None:
    """Computes a table of results again, and prints it.

    In a checkout of the project it is stored, and docs/results.md is rewritten, which page does without computing
    anything. Elsewhere it is stored if --results names a file. counts needs pip install 'pyro-vae[results]', and cells
    'pyro-vae[cells]'.
    calibration and time-to-quality are counted from records that only a checkout has.
    """
    if results is not None and (results.suffix != ".json" or results.is_dir()):
        raise ValueError(f"--results must name a .json file, found {results}")
    file, out = results or STORED, page_of(results)
    if name == "page":
        if out is None:
            raise ValueError(
                "page rewrites docs/results.md of a checkout, and this is not one: name a file by --results"
            )
        write_page(file, out)
        return
    faults, form = [], "short" if short else "full"
    for one in TABLES if name == "all" else [lookup(name, TABLES, "table")]:
        if form not in forms(TABLES[one]):
            if name != "all":
                raise ValueError(f"{one} is counted from records and has one form: leave out --{form}")
            continue
        try:
            reproduce(one, form, data_root or default_root(), file, out, check=check)
        except (ImportError, OSError, ValueError) as error:
            if name != "all":
                raise
            faults.append(f"{one}: {error}")  # the other tables do not depend on it
    if faults:
        raise ValueError("; ".join(faults))


def reproduce(one: str, form: str, root: Path, file: Path, out: Path | None, *, check: bool) -> None:
    """Computes a table, prints it, and compares it with the stored one or stores it.

    Raises:
        ValueError: if numbers differ from the stored ones, or if there are none.
    """
    module, before = TABLES[one], read(file).get(one, {}).get(form)
    if check and before is None:
        raise ValueError(f"{file.name} has no {form} form of {one} to compare with")
    if out is not None and not check:
        files.check_writable(out.parent)
    started = time.perf_counter()
    rows = module.rows(short=form == "short", root=root)
    seconds = round(time.perf_counter() - started)
    print(f"\n{module.TITLE}, {form}, in {seconds:,} s\n\n{table(rows, module.DIGITS)}\n", flush=True)
    if check:
        if found := differences(before["rows"], rows):
            raise ValueError(f"numbers differ from those of {before['date']}: {'; '.join(found)}")
        print(f"The numbers agree with those of {before['date']}.")
    elif out is not None:
        made = {
            "date": date.today().isoformat(),
            "seconds": seconds,
            "machine": machine(resolve_device("auto").type),
            "versions": versions(),
        }
        kept = read(file)  # another process may have written it meanwhile
        kept.setdefault(one, {})[form] = {**made, "rows": rows}
        files.write_json(kept, file)
        write_page(file, out)


def page_of(results: Path | None) -> Path | None:
    """Where the page of these results is; without a file or a checkout there is none."""
    if results is not None:
        return results.with_suffix(".md")
    return None if DOCS is None else DOCS / "results.md"


def write_page(file: Path, out: Path) -> None:
    """Writes the page of the stored results and its pictures."""
    kept = read(file)
    for name, module in TABLES.items():
        for form, found in kept.get(name, {}).items():
            if hasattr(module, "PICTURE"):
                path = out.parent / picture(name, form)
                path.parent.mkdir(parents=True, exist_ok=True)
                save_figure(module.PICTURE(found["rows"]), path)
    with files.replacing(out) as temporary:
        temporary.write_text(page(kept), encoding="utf-8")
