"""Runs a command: a user's mistake prints one sentence, and a signal leaves no half-written files."""

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand


class _Grouped(TyperCommand):
    """A command whose help page groups its options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                title = "Arguments" if parameter.param_type_name == "argument" else "Options"
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or title, []).append(record)
        for title, records in groups.items():
            with formatter.section(title):
                formatter.write_dl(records)


def command_of(main: Callable[..., None]) -> Any:
    """Turns a function into a command, with its file's examples at the end of the help page."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)  # brackets are text
    examples = getattr(sys.modules[main.__module__], "EXAMPLES", ())
    lines = ["\b", "Examples:", *(f"  {example}" for example in examples)]  # \b: lines stay lines
    app.command(cls=_Grouped, epilog="\n".join(lines) if examples else None)(_within_64_bits(main))
    return typer.main.get_command(app)


def run_command(main: Callable[..., None]) -> None:
    """Runs a function as the command of a script."""
    ending_in_order(command_of(main))


def ending_in_order(command: Callable[[], Any]) -> None:
    """Runs a command; a user's mistake prints one sentence and exits with status 2.

    A signal to terminate is handled too, so half-written files are removed.
    """
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {end: signal.signal(end, lambda number, _: sys.exit(128 + number)) for end in ends}
    try:
        command()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except ImportError as error:
        if "pip install" not in str(error):  # messages about a missing extra say how to install it
            raise
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "allocate memory" not in str(error) and type(error).__name__ != "OutOfMemoryError":  # PyTorch's
            raise
        print(f"error: there is not enough memory: {first_line(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def _within_64_bits(main: Callable[..., None]) -> Callable[..., None]:
    """The same command, but it refuses whole numbers too large for a tensor."""

    @functools.wraps(main)
    def checked(*args: Any, **options: Any) -> None:
        for name, value in options.items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"--{name.replace('_', '-')} must be below 2^63 in magnitude, found {value}")
        main(*args, **options)

    return checked


def first_line(error: BaseException) -> str:
    """The first line of PyTorch's message."""
    return str(error).splitlines()[0].rpartition("] ")[2]


def sentence(error: BaseException) -> str:
    """An error's message on one line."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
