"""Draws from the posterior predictive of a trained model, and reconstructs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import beside
import cli
import torch
import typer

from pyro_vae._support.arrays import as_tensor


def main(
    run: cli.Run,
    out: Annotated[
        Path,
        typer.Option(
            help="What to write: .npz for the numbers, .png for a picture of ten rows, .csv, .tsv, .xlsx or .parquet "
            "for the draws as a table."
        ),
    ],
    data: Annotated[
        str | None, typer.Option(help="A name or path as for train.py. [default: the run's held-out rows]")
    ] = None,
    data_root: cli.DataRoot = None,
    num_samples: Annotated[int, typer.Option(help="Draws for each row.")] = 10,
    device: cli.Device = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
) -> None:
    """Draws new data like each row: z ~ q(z|x), then x' ~ p(x'|z), in the units of the data.

    An .npz holds x (N, ...), reconstructions (N, ...), the mean of x' at the mean of q(z|x), and
    posterior_predictive (S, N, ...), the draws; and the rows' labels and ids, where they have them, and their numbers
    in the file, from 0. Of a model that finds labels, clusters, codes or topics it holds those too. A table has the
    draws, each with its number as draw, and labels or clusters that were found.
    """
    vae = cli.open_run(run, device)
    cli.only_pictures(run, out)
    held, kind = cli.data_for(run, data, data_root), cli.kind_of(run)
    rows = beside.first(cli.rows_of(run, held), 10 if out.suffix == ".png" else len(held.x_test))
    x = as_tensor(rows["x"] if isinstance(rows, Mapping) else rows)

    def write_draws(arrays: Mapping[str, Any], out: Path) -> None:
        schema = cli.table_schema(run, out)
        drawn = [cli.drawn_table(schema, draws) for draws in arrays["posterior_predictive"]]
        for name in ("predicted_labels", "clusters"):
            if name in arrays:
                drawn = [table.assign(**{cli.free_name(name, table): arrays[name]}) for table in drawn]
        cli.save_table(cli.draws_of_table([cli.with_index(schema, held, table) for table in drawn]), out, held.table)

    tables = dict.fromkeys(cli.TABLES, write_draws)
    write = cli.writer(out, {".png": cli.write_reconstructions, ".npz": cli.write_arrays, **tables})
    torch.manual_seed(seed)
    arrays = {
        "x": x,
        "reconstructions": vae.reconstruct(rows).cpu(),
        "posterior_predictive": vae.posterior_predictive(rows, num_samples).cpu(),
        **cli.named(run, kind.finds(vae, rows)),
    }
    write(arrays | cli.what_comes_along(held), out)
    print(f"{out}: reconstructions of {len(x):,} rows and {num_samples} draws for each")


if __name__ == "__main__":
    cli.run_command(main)
