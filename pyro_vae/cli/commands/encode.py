"""Writes a trained model's approximate posterior of each row."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from pyro_vae.cli import beside, options, reading, runs, writing

ROWS = 1024  # in memory at a time

EXAMPLES = (
    "pyro-vae encode runs/digits-mlp --out latents.csv",
    "pyro-vae encode runs/patients-mlp --data new.csv --out latents.parquet",
)


def main(
    run: options.Run,
    out: Annotated[Path, typer.Option(help="Output file: .npz, or .csv, .tsv, .xlsx or .parquet for a table.")],
    data: options.AllData = None,
    held_out: options.HeldOut = False,
    data_root: options.DataRoot = None,
    site: Annotated[
        str | None, typer.Option(help="The latent, by its name in the programs. [default: the only one, or z]")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Writes the approximate posterior q(z|x) of each row, in the order of the file.

    An .npz holds mean and scale (N, L), or, for a categorical latent, probability (N, K). A table has a column for
    each: mean_1 and so on. The rows' labels, ids and row numbers in the file are written too, and a table's index
    columns.
    """
    vae = runs.open_run(run, device)
    rows = reading.all_rows(run, data, data_root, held_out=held_out)
    write = writing.writer(out, writing.result_writers(run, rows), run=run, data=data)
    known, count = reading.rows_of(run, rows), len(rows.x_test)
    parts = [beliefs(vae.encode(part, site=site)) for part in beside.in_parts(known, count, ROWS)]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    write(found, out)
    print(f"{out}: {' and '.join(found)} of {count:,} rows, {next(iter(found.values())).shape[1]} numbers each")


def beliefs(q: Any) -> dict[str, np.ndarray]:
    """The parameters of a posterior, one row for each row of data."""
    if q.support.is_discrete:
        return {"probability": q.probs.flatten(1).cpu().numpy()}
    return {"mean": q.mean.flatten(1).cpu().numpy(), "scale": q.stddev.flatten(1).cpu().numpy()}
