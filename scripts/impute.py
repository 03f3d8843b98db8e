"""Fills in what is missing, by draws from a trained model."""

from pathlib import Path
from typing import Annotated

import cli
import torch
import typer

from pyro_vae._support.arrays import as_tensor


def main(
    run: Annotated[Path, typer.Argument(help="A run folder that train.py left, with --missing nan.", metavar="RUN")],
    out: Annotated[
        Path, typer.Option(help="What to write: .npy for the numbers, .csv, .tsv, .xlsx or .parquet for a table.")
    ],
    data: Annotated[
        str | None, typer.Option(help="A name or path as for train.py. [default: what the run was trained on]")
    ] = None,
    held_out: cli.HeldOut = False,
    data_root: cli.DataRoot = None,
    num_samples: Annotated[int, typer.Option(help="Times that each missing entry is drawn.")] = 5,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide that importance weights choose from.")] = 100,
    device: cli.Device = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
) -> None:
    """Draws missing entries given the observed ones of their row, several times, for multiple imputation.

    All rows are written, in their order, with all the columns they came with. Observed entries stay as they are, to the
    last digit. Draws are weighted by importance, so that they are right for the model even where its encoder is not.
    A table has a column draw with the number of the draw; an .npy is (draws, rows, columns).
    """
    vae = cli.open_run(run, device)
    if vae.missing is None:
        raise ValueError(f"{run} was trained on whole rows: train with --missing nan, then impute by that run")
    rows = cli.all_rows(run, data, data_root, held_out=held_out)
    known = cli.rows_of(run, rows)
    x = as_tensor(rows.x_test)

    def write_filled(draws: torch.Tensor, out: Path) -> None:
        schema = cli.table_schema(run, out)
        tables = [schema.fill(cli.held_table(rows), draw) for draw in draws]
        cli.save_table(cli.draws_of_table(tables), out, rows.table)

    write = cli.writer(out, {".npy": cli.write_array, **dict.fromkeys(cli.TABLES, write_filled)})
    torch.manual_seed(seed)
    draws = vae.impute(known, num_samples, num_particles=num_particles).cpu()
    write(draws, out)
    print(f"{out}: {int(x.isnan().sum()):,} missing entries of {len(x):,} rows, drawn {num_samples} times")


if __name__ == "__main__":
    cli.run_command(main)
