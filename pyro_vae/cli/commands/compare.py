"""Compares two models by their evidence on the same rows."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from pyro_vae._support import files
from pyro_vae.cli import options, reading, runs, writing
from pyro_vae.evaluation import compare

EXAMPLES = ("pyro-vae compare runs/digits-mlp runs/digits-conv --out comparison.json",)


def main(
    run: options.Run,
    other: Annotated[Path, typer.Argument(help="The run to compare it with.", metavar="OTHER")],
    out: Annotated[Path, typer.Option(help="The file to write, JSON.")] = Path("comparison.json"),
    data: options.HeldOutData = None,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Compares two models: by how many nats per row one is more probable, and in which rows they differ most.

    The difference in log evidence log p(x) is taken row by row, so its standard error is that of paired differences:
    much smaller than the errors of the two means.
    """
    write = writing.writer(out, {".json": files.write_json})
    a, b = (runs.open_run(one, device) for one in (run, other))
    held = reading.data_for(run, data, data_root)
    rows, of_other = (reading.rows_of(one, held) for one in (run, other))
    mine, theirs = what_comes_with(rows), what_comes_with(of_other)
    if mine != theirs:
        raise ValueError(
            f"runs can only be compared on the same rows, but {run} takes {mine} and {other} takes {theirs}: their "
            f"evidence is not comparable"
        )
    found = compare(a, b, rows, seed=seed)
    most = found.table()
    print(f"{run} and {other} on the {len(found.difference):,} rows of {held.name}\n{found}\n")
    print(f"The rows that differ most, a for {run} and b for {other}:\n{most.to_string(float_format='{:.3f}'.format)}")
    numbers = {"difference": found.mean, "difference_se": found.standard_error, "num_rows": len(found.difference)}
    write({**numbers, "rows": most.to_dict("index")}, out)
    print(f"written to {out}")


def what_comes_with(rows: Any) -> str:
    """What a model takes as input for each row, in words."""
    return ", ".join(rows) if isinstance(rows, Mapping) else "x"
