"""Draws from the posterior predictive of a trained model, and reconstructs."""

from pathlib import Path
from typing import Annotated

import cli
import torch
import typer

from pyro_vae._support.arrays import as_tensor


def main(
    run: Annotated[Path, typer.Argument(help="A run folder that train.py left.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="What to write: .npz for the numbers, .png for a picture of ten rows.")],
    data: Annotated[
        str | None, typer.Option(help="A name or path as for train.py. [default: the run's held-out rows]")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where downloaded data sets live. [default: the run's]")
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Draws for each row.")] = 10,
    device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
) -> None:
    """Draws new data like each row: z ~ q(z|x), then x' ~ p(x'|z), in the units of the data.

    An .npz holds x (N, ...), reconstructions (N, ...), the mean of x' at the mean of q(z|x), and
    posterior_predictive (S, N, ...), the draws.
    """
    write = cli.writer(out, {".png": cli.write_reconstructions, ".npz": cli.write_arrays})
    vae = cli.open_run(run, device)
    rows = cli.rows_for(run, data, data_root)
    x = as_tensor(rows[:10] if out.suffix == ".png" else rows)
    torch.manual_seed(seed)
    arrays = {
        "x": x,
        "reconstructions": vae.reconstruct(x).cpu(),
        "posterior_predictive": vae.posterior_predictive(x, num_samples).cpu(),
    }
    write(arrays, out)
    print(f"{out}: reconstructions of {len(x):,} rows and {num_samples} draws for each")


if __name__ == "__main__":
    cli.run_command(main)
