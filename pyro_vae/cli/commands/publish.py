"""Uploads a trained model to the Hugging Face hub."""

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
    name: Annotated[str, typer.Argument(help="The model's name on the hub.", metavar="OWNER/NAME")],
    report: Annotated[
        Path | None,
        typer.Option(help="A JSON file from pyro-vae evaluate --suite, to summarise on the card. [default: none]"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is new, make it private.")] = False,
) -> None:
    """Uploads a model to the hub: its configuration, weights, history, curves, draws and a model card.

    No data and no paths to data are uploaded; the names of columns, labels and levels are. If the run folder has a
    README.md, that is the card; otherwise one is written there. Needs pip install 'pyro-vae[hub]' and hf auth login.
    """
    found = None if report is None else json.loads(report.read_text(encoding="utf-8"))
    if found is not None and "findings" not in found:
        raise ValueError(
            f"{report} has no findings: write it with pyro-vae evaluate {run} --suite quick --out {report}"
        )
    print(hub.push_to_hub(run, name, report=found, private=private))
