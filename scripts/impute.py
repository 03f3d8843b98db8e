"""Fills in what is missing, by draws from a trained model."""

from pathlib import Path
from typing import Annotated

import cli
import torch
import typer

from pyro_vae._support.arrays import as_tensor


def main(
    run: Annotated[Path, typer.Argument(help="A run folder that train.py left, with --missing nan.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="What to write: .npy for the numbers, .csv or .parquet for a table.")],
    data: Annotated[
        str | None, typer.Option(help="A name or path as for train.py. [default: the run's held-out rows]")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where downloaded data sets live. [default: the run's]")
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Times that each missing entry is drawn.")] = 5,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide that importance weights choose from.")] = 100,
    device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
) -> None:
    """Draws missing entries given the observed ones of their row, several times, for multiple imputation.

    Observed entries stay as they are. Draws are weighted by importance, so that they are right for the model even where
    its encoder is not. A table has a column draw with the number of the draw; an .npy is (draws, rows, columns).
    """
    write = cli.writer(out, {".npy": cli.write_array, **cli.table_writers(run)})
    vae = cli.open_run(run, device)
    if vae.missing is None:
        raise ValueError(f"{run} was trained on whole rows: train with --missing nan, then impute by that run")
    x = as_tensor(cli.rows_for(run, data, data_root, whole=True))
    torch.manual_seed(seed)
    draws = vae.impute(x, num_samples, num_particles=num_particles).cpu()
    write(draws, out)
    print(f"{out}: {int(x.isnan().sum()):,} missing entries of {len(x):,} rows, drawn {num_samples} times")


if __name__ == "__main__":
    cli.run_command(main)
