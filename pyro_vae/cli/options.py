"""Options that several commands share, and parsers for their values."""

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_vae._support.names import lookup


def read_toml(path: Path) -> dict[str, Any]:
    """Options in a file.

    Raises:
        ValueError: if it is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not TOML with an option on each line, such as data = "digits": {error}') from error


def read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Takes default options from a file. Options on the command line override them.

    Raises:
        ValueError: naming an unknown option, or if the file is not TOML.
    """
    if path is None:
        return None
    table = read_toml(path)
    known = {str(option.name).replace("_", "-") for option in context.command.params} - {"config", "help"}
    names = {name: lookup(name.replace("_", "-"), known, f"option in {path}") for name in table}
    context.default_map = {names[name].replace("-", "_"): value for name, value in table.items()}
    return path


# Options that several commands share.
Run = Annotated[Path, typer.Argument(help="A run folder written by pyro-vae train.", metavar="RUN")]
DataRoot = Annotated[Path | None, typer.Option(help="Folder for downloaded data sets. [default: the run's]")]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Only the held-out rows of the data that the run was trained on.")
]
Config = Annotated[
    Path | None,
    typer.Option(
        help="A TOML file with options, such as a run's run.toml. Options on the command line override it.",
        callback=read_config,
        is_eager=True,
        rich_help_panel="The run",
    ),
]
HeldOutData = Annotated[
    str | None, typer.Option("--data", help="A name or path, as for train. [default: the run's held-out rows]")
]
AllData = Annotated[
    str | None, typer.Option("--data", help="A name or path, as for train. [default: the data the run was trained on]")
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
Device = Annotated[str, typer.Option(help="auto (CUDA or XPU if available), cpu, cuda or xpu.")]


def integers(text: str, option: str) -> tuple[int, ...]:
    """Reads ``"400,200"``."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or max(numbers) >= 2**63:
        raise ValueError(f"{option} takes positive whole numbers separated by commas, such as 400,200; found {text!r}")
    return numbers


def number_or_name(text: str) -> float | str:
    """Reads a number if the text is one."""
    try:
        return float(text)
    except ValueError:
        return text
