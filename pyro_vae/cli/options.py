"""Options that several commands have, and how what was typed is read."""

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from pyro_vae._support.names import lookup


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Takes options from a file, which those of the command line come before.

    Raises:
        ValueError: naming what is no option, or no TOML.
    """
    if path is None:
        return None
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is no TOML, such as data = "digits" on a line for each option: {error}') from error
    known = {str(option.name).replace("_", "-") for option in context.command.params} - {"config", "help"}
    names = {name: lookup(name.replace("_", "-"), known, f"option in {path}") for name in table}
    context.default_map = {names[name].replace("-", "_"): value for name, value in table.items()}
    return path


# Options that several commands have.
Run = Annotated[Path, typer.Argument(help="A run folder that pyro-vae train left.", metavar="RUN")]
DataRoot = Annotated[Path | None, typer.Option(help="Where downloaded data sets live. [default: the run's]")]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Only the rows that the run held out, of those that it was trained on.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with options, such as the run.toml of a run; what is said beside it comes first.",
        callback=read_config,
        is_eager=True,
        rich_help_panel="The run",
    ),
]
HeldOutData = Annotated[
    str | None, typer.Option("--data", help="A name or path as for train. [default: the run's held-out rows]")
]
AllData = Annotated[
    str | None, typer.Option("--data", help="A name or path as for train. [default: what the run was trained on]")
]
Seed = Annotated[int, typer.Option(help="Seeds the draws.")]
Device = Annotated[str, typer.Option(help="auto (CUDA or XPU where there is one), cpu, cuda or xpu.")]


def integers(text: str, option: str) -> tuple[int, ...]:
    """Reads ``"400,200"``."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or max(numbers) >= 2**63:
        raise ValueError(
            f"{option} takes positive whole numbers with commas between them, such as 400,200; found {text!r}"
        )
    return numbers


def number_or_name(text: str) -> float | str:
    """Reads a number where there is one."""
    try:
        return float(text)
    except ValueError:
        return text
