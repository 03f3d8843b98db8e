"""Fills in missing entries with draws from a trained model."""

from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_vae._support.arrays import as_tensor
from pyro_vae.cli import options, reading, runs, writing

EXAMPLES = (
    "pyro-vae impute runs/patients-mlp --out filled.csv",
    "pyro-vae impute runs/patients-mlp --data new.csv --num-samples 20 --out filled.csv",
)


def main(
    run: Annotated[
        Path, typer.Argument(help="A run folder written by pyro-vae train with --missing nan.", metavar="RUN")
    ],
    out: Annotated[
        Path, typer.Option(help="Output file: .npy for the numbers, .csv, .tsv, .xlsx or .parquet for a table.")
    ],
    data: options.AllData = None,
    held_out: options.HeldOut = False,
    data_root: options.DataRoot = None,
    num_samples: Annotated[int, typer.Option(help="Number of draws for each missing entry.")] = 5,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide to resample by importance weights.")] = 100,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Draws missing entries given the observed ones of their row, several times, for multiple imputation.

    All rows are written, in their original order, with all their columns. Observed entries are kept to the last digit.
    Draws are importance-weighted, which corrects for an encoder that is off. A table has a column draw with the number
    of the draw; an .npy has shape (draws, rows, columns).
    """
    vae = runs.open_run(run, device)
    if vae.missing is None:
        raise ValueError(f"{run} was trained on complete rows: train with --missing nan, then impute with that run")
    rows = reading.all_rows(run, data, data_root, held_out=held_out)
    known = reading.rows_of(run, rows)
    x = as_tensor(rows.x_test)

    def write_filled(draws: torch.Tensor, out: Path) -> None:
        schema = writing.table_schema(run, out)
        tables = [schema.fill(writing.held_table(rows), draw) for draw in draws]
        writing.save_table(writing.draws_of_table(tables), out, rows.table)

    write = writing.writer(
        out, {".npy": writing.write_array, **dict.fromkeys(writing.TABLES, write_filled)}, run=run, data=data
    )
    torch.manual_seed(seed)
    draws = vae.impute(known, num_samples, num_particles=num_particles).cpu()
    write(draws, out)
    print(f"{out}: {int(x.isnan().sum()):,} missing entries of {len(x):,} rows, drawn {num_samples} times")
