"""Puts a trained model on the Hugging Face hub."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pyro_vae import hub
from pyro_vae.cli import options

EXAMPLES = (
    "pyro-vae publish runs/digits-mlp OWNER/NAME",
    "pyro-vae publish runs/digits-mlp OWNER/NAME --report metrics.json --private",
)


def main(
    run: options.Run,
    name: Annotated[str, typer.Argument(help="What it is called on the hub.", metavar="OWNER/NAME")],
    report: Annotated[
        Path | None,
        typer.Option(help="What pyro-vae evaluate --suite wrote, to be told on the card. [default: not told]"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Let nobody else see it, if it is new.")] = False,
) -> None:
    """Puts a model on the hub: its configuration, weights, history, curves, draws and a card.

    No row of the data goes with it, nor where they lie; the names of columns, labels and kinds do. A README.md that is
    in the run folder already is the card; else one is written there. It takes pip install 'pyro-vae[hub]', and who you
    are by hf auth login.
    """
    found = None if report is None else json.loads(report.read_text(encoding="utf-8"))
    if found is not None and "findings" not in found:
        raise ValueError(f"{report} has no findings: write one by pyro-vae evaluate {run} --suite quick --out {report}")
    print(hub.push_to_hub(run, name, report=found, private=private))
