"""The command ``pyro-vae``. A command's file is imported only when it is called, so ``--help`` is fast."""

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import pyro_vae
from pyro_vae.cli.running import command_of, ending_in_order

COMMANDS = {
    "train": "Train a model on a data set and write a run folder.",
    "evaluate": "Evaluate a model and, with --suite, check whether its numbers can be trusted.",
    "compare": "Compare two models: which is more probable, by how much, and in which rows.",
    "sample": "Draw new rows.",
    "predict": "Reconstruct rows, draw others like them, predict labels and clusters.",
    "impute": "Fill in missing entries, several times.",
    "encode": "Write the latents of each row.",
    "score": "Write how probable each row is, and which of its entries are unexpected.",
    "explore": "Explore a model in your browser.",
    "export": "Export a model to files that run without this library.",
    "publish": "Upload a model to the Hugging Face hub, with a model card.",
    "reproduce": "Compute a table of this library's results again, or compare it with the stored one.",
}


class Commands(TyperGroup):
    """The commands, each imported only when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = dict.fromkeys(COMMANDS)  # pyright: ignore[reportAttributeAccessIssue] # names to suggest

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, if there is one."""
        if cmd_name not in COMMANDS:
            return None
        return command_of(importlib.import_module(f"pyro_vae.cli.commands.{cmd_name}").main)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Lists the commands for the help page."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


app = typer.Typer(
    cls=Commands, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, no_args_is_help=True
)


def _say_version(value: bool) -> None:
    if value:
        print(pyro_vae.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Variational autoencoders on Pyro and PyTorch: train, explore, sample, predict, and check the numbers.

    pyro-vae COMMAND --help describes a command, with examples.
    """


def main() -> None:
    """Runs ``pyro-vae``."""
    ending_in_order(lambda: app(prog_name="pyro-vae"))


if __name__ == "__main__":
    main()
