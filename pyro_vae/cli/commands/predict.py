"""Reconstructs rows and draws from the posterior predictive of a trained model."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pyro_vae._support.arrays import as_tensor
from pyro_vae.cli import beside, options, reading, runs, writing

EXAMPLES = (
    "pyro-vae predict runs/digits-mlp --out predictions.npz",
    "pyro-vae predict runs/digits-mlp --out reconstructions.png",
)


def main(
    run: options.Run,
    out: Annotated[
        Path,
        typer.Option(
            help="Output file: .npz for the numbers, .png for a picture of ten rows, .csv, .tsv, .xlsx or .parquet "
            "for the draws as a table."
        ),
    ],
    data: options.HeldOutData = None,
    data_root: options.DataRoot = None,
    num_samples: Annotated[int, typer.Option(help="Draws for each row.")] = 10,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Draws new data like each row: z ~ q(z|x), then x' ~ p(x'|z), in the units of the data.

    An .npz holds x (N, ...), reconstructions (N, ...), the mean of x' at the mean of q(z|x), and
    posterior_predictive (S, N, ...), the draws; also the rows' labels and ids, if there are any, their row numbers in
    the file, counted from 0, and the labels, clusters, codes or topics that the model predicts. A table has the draws,
    with the number of the draw in the column draw, and predicted labels or clusters.
    """
    vae = runs.open_run(run, device)
    writing.only_pictures(run, out)
    held, kind = reading.data_for(run, data, data_root), runs.kind_of(run)
    rows = beside.first(reading.rows_of(run, held), 10 if out.suffix == ".png" else len(held.x_test))
    x = as_tensor(beside.rows_alone(rows))

    def write_draws(arrays: Mapping[str, Any], out: Path) -> None:
        schema = writing.table_schema(run, out)
        drawn = [writing.drawn_table(schema, draws) for draws in arrays["posterior_predictive"]]
        for name in ("predicted_labels", "clusters"):
            if name in arrays:
                drawn = [table.assign(**{writing.free_name(name, table): arrays[name]}) for table in drawn]
        writing.save_table(
            writing.draws_of_table([writing.with_index(schema, held, table) for table in drawn]), out, held.table
        )

    tables = dict.fromkeys(writing.TABLES, write_draws)
    pictures = {".png": functools.partial(writing.write_reconstructions, held.bounds)}
    write = writing.writer(out, {**pictures, ".npz": writing.write_arrays, **tables}, run=run, data=data)
    torch.manual_seed(seed)
    arrays = {
        "x": x,
        "reconstructions": vae.reconstruct(rows).cpu(),
        "posterior_predictive": vae.posterior_predictive(rows, num_samples).cpu(),
        **writing.named(run, kind.finds(vae, rows)),
    }
    write(arrays | writing.what_comes_along(held), out)
    print(f"{out}: reconstructions of {len(x):,} rows and {num_samples} draws for each")
