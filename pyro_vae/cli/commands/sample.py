"""Draws new data from a trained model."""

import functools
from pathlib import Path
from typing import Annotated

import torch
import typer

from pyro_vae.cli import options, runs, writing

EXAMPLES = (
    "pyro-vae sample runs/digits-mlp --out samples.png",
    "pyro-vae sample runs/digits-mlp --num-samples 1000 --out samples.npy",
    "pyro-vae sample runs/digits-conditional --given labels=7 --out sevens.png",
)


def main(
    run: options.Run,
    out: Annotated[
        Path,
        typer.Option(
            help="Output file: .png for a picture, .npy for numbers, .csv, .tsv, .xlsx or .parquet for a table."
        ),
    ],
    given: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition on labels, a pooled model's groups, or the total_count of words in a document: labels=7, "
            "or labels=cat,owl to take them in turn."
        ),
    ] = None,
    num_samples: Annotated[int, typer.Option(help="Number of rows to draw.")] = 64,
    mean: Annotated[
        bool | None,
        typer.Option(
            "--mean/--draws",
            help="Means E[x|z] at z ~ p(z), or draws x ~ p(x), with noise in every pixel. "
            "[default: means for a picture, otherwise draws]",
        ),
    ] = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Draws new rows x ~ p(x) from a trained model, in the units of its data.

    An .npy is written as rows are drawn, so they need not fit in memory.
    """
    vae = runs.open_run(run, device)
    writing.only_pictures(run, out)
    kind, mean = runs.kind_of(run), out.suffix == ".png" if mean is None else mean
    told = runs.given_of(run, given or (), num_samples)
    pictures = {".png": functools.partial(writing.write_tiles, runs.bounds_of(run))}
    write = writing.writer(out, {**pictures, ".npy": writing.write_array, **writing.table_writers(run, told)}, run=run)
    torch.manual_seed(seed)
    if told and kind.draw_given is not None:
        x = kind.draw_given(vae, told, mean).cpu()
        write(x, out)
    elif out.suffix == ".npy":  # straight to the file, however many
        x = vae.sample(num_samples, given=told, mean=mean, out=out, progress=True)
    else:
        x = vae.sample(num_samples, given=told, mean=mean).cpu()
        write(x, out)
    beside = f", given {', '.join(given)}" if given else ""
    print(f"{out}: {num_samples:,} rows of shape {tuple(x.shape[1:])}, {'means' if mean else 'draws'}{beside}")
