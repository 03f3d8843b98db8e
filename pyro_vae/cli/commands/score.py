"""Writes each row's log evidence under a trained model, and its least expected entries."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from pyro_vae import plotting
from pyro_vae._support.arrays import as_tensor
from pyro_vae.cli import options, reading, runs, writing
from pyro_vae.evaluation import log_evidence, unexpectedness

SHOWN = 12  # rows of a picture
USUAL_ENTRIES = 3

EXAMPLES = (
    "pyro-vae score runs/digits-mlp --out scores.csv",
    "pyro-vae score runs/digits-mlp --whole --out strangest.png",
)


def main(
    run: options.Run,
    out: Annotated[
        Path,
        typer.Option(
            help="Output file: .npz, or .csv, .tsv, .xlsx or .parquet for a table; .png draws the least probable rows."
        ),
    ],
    data: options.HeldOutData = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="All rows of the run's data, not only the held-out ones.")
    ] = False,
    data_root: options.DataRoot = None,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide for each row.")] = 500,
    entries: Annotated[
        int | None,
        typer.Option(
            help="Number of least expected entries to name per row; 0 for none. [default: 3, or all if a row has fewer]"
        ),
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Writes the log evidence log p(x) of each row, in nats: the lower, the stranger.

    Also writes its standard error and the entries that are least expected given the rest of the row. For each: by how
    many nats it is less probable than a draw from the model in its place. An .npz holds that number for all entries, as
    unexpected (N, ...). The rows' labels, ids and row numbers in the file are written too.
    """
    vae = runs.open_run(run, device)
    writing.only_pictures(run, out)
    rows = reading.all_rows(run, data, data_root, held_out=not whole and runs.is_own(run, data))
    known = reading.rows_of(run, rows)
    names = columns_of(run, as_tensor(rows.x_test[:1]).shape[1:])
    if entries is None:
        entries = min(USUAL_ENTRIES, len(names))
    if not 0 <= entries <= len(names):
        raise ValueError(f"--entries must be from 0 to {len(names)}, the number of entries of a row; found {entries}")
    pictures = {".png": lambda found, path: draw(rows.x_test, found, rows.bounds, path)}
    write = writing.writer(out, {**writing.result_writers(run, rows), **pictures}, run=run, data=data)
    evidence = log_evidence(vae, known, num_particles=num_particles, seed=seed)
    found: dict[str, Any] = {
        "log_evidence": evidence.log_evidence.numpy(),
        "standard_error": evidence.standard_error.numpy(),
    }
    if entries:
        nats = unexpectedness(vae, known, num_particles=num_particles, seed=seed, progress=True).numpy()
        if out.suffix in (".npz", ".png"):
            found["unexpected"] = nats.astype(np.float32)
        else:
            found |= least_expected(nats.reshape(len(nats), -1), names, entries)
    write(found, out)
    place = evidence.log_evidence.argmin()
    place = place if rows.rows_test is None else rows.rows_test[place]
    which = "rows" if whole or not runs.is_own(run, data) else "held-out rows (--whole scores all)"
    print(
        f"{out}: the log evidence of {len(evidence.log_evidence):,} {which}, {evidence.mean:.2f} nats on average, "
        f"lowest in row {int(place)}"
    )


def columns_of(run: Path, shape: torch.Size) -> list[str]:
    """The names of a row's entries: a table's columns, or places counted from 0."""
    schema = runs.schema_of(run)
    if schema is not None:
        return [column.name for column in schema.columns]
    return [",".join(map(str, place)) for place in np.ndindex(*shape)]


def least_expected(nats: np.ndarray, names: list[str], count: int) -> dict[str, np.ndarray]:
    """The least expected entries of each row, by name and in nats. Missing entries are left out."""
    order = np.argsort(-np.nan_to_num(nats, nan=-np.inf), axis=1, kind="stable")[:, :count]
    found: dict[str, np.ndarray] = {}
    for place in range(count):
        entry = order[:, place]
        value = np.take_along_axis(nats, entry[:, None], 1)[:, 0]
        found[f"entry_{place + 1}"] = np.where(np.isnan(value), "", np.array(names, dtype=object)[entry])
        found[f"nats_{place + 1}"] = value
    return found


def draw(x: Any, found: dict[str, Any], bounds: plotting.Bounds, out: Path) -> None:
    """Draws the least probable rows, and below each how unexpected its entries are."""
    order = np.argsort(found["log_evidence"], kind="stable")[:SHOWN]
    rows = [as_tensor(x[torch.as_tensor(order)]).float()]
    if "unexpected" in found:
        nats = torch.as_tensor(found["unexpected"][order]).clamp(min=0)
        share = nats / nats.flatten(1).amax(1).reshape(-1, *(1,) * (nats.dim() - 1))
        low, high = bounds or (float(rows[0].min()), float(rows[0].max()))
        rows.append(low + (high - low) * share)
    labels = ("least probable", "unexpected")[: len(rows)]
    least, most = (f"{found['log_evidence'][row]:.1f}".replace("-", "−") for row in (order[0], order[-1]))
    title = f"log evidence from {least} to {most} nats"
    plotting.save_figure(plotting.plot_grid(torch.stack(rows), bounds=bounds, row_labels=labels, title=title), out)
