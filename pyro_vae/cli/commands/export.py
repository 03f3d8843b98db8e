"""Writes a model as files that run without this library."""

from pathlib import Path
from typing import Annotated

import typer

from pyro_vae.cli import options, reading, runs
from pyro_vae.serving import export

EXAMPLES = (
    "pyro-vae export runs/digits-mlp --out exported",
    "pyro-vae export runs/digits-mlp --no-onnx --out exported",
)


def main(
    run: options.Run,
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    onnx: Annotated[
        bool, typer.Option("--onnx/--no-onnx", help="ONNX files too, which takes pip install 'pyro-vae[export]'.")
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to compare files and model by, as for train. [default: the run's held-out rows]"),
    ] = None,
    data_root: options.DataRoot = None,
) -> None:
    """Writes the encoder and the decoder as torch.export programs and as ONNX, with an example that runs them.

    The encoder maps rows, in the units of the data, to the mean and the scale of q(z|x); the decoder maps latents to
    E[x|z], in the units of the data. Each file is opened again and compared with the model before it is left there.
    """
    vae = runs.open_run(run, "cpu")
    rows = reading.rows_of(run, reading.data_for(run, data, data_root))
    for path in export(vae, out, rows, onnx=onnx):
        print(path)
