"""Exports a model to files that run without this library."""

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
        bool,
        typer.Option("--onnx/--no-onnx", help="Also write ONNX files, which needs pip install 'pyro-vae[export]'."),
    ] = True,
    data: Annotated[
        str | None,
        typer.Option(help="Rows to check the files on, as for train. [default: the run's held-out rows]"),
    ] = None,
    data_root: options.DataRoot = None,
) -> None:
    """Exports the encoder and the decoder as torch.export programs and as ONNX, with an example that runs them.

    The encoder maps rows, in the units of the data, to the mean and the scale of q(z|x); the decoder maps latents to
    E[x|z], in the units of the data. Each file is loaded again and its output compared with the model's.
    """
    vae = runs.open_run(run, "cpu")
    rows = reading.rows_of(run, reading.data_for(run, data, data_root))
    for path in export(vae, out, rows, onnx=onnx):
        print(path)
