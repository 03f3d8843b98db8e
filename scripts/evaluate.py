"""Evaluates a trained model on data it was not trained on."""

from pathlib import Path
from typing import Annotated

import cli
import typer

from pyro_vae import evaluate, files, load


def main(
    run: Annotated[Path, typer.Argument(help="A run folder that train.py left.", metavar="RUN")],
    out: Annotated[Path, typer.Option(help="The file to write, JSON.")] = Path("metrics.json"),
    data: Annotated[
        str | None, typer.Option(help="A name or path as for train.py. [default: the run's held-out rows]")
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Where downloaded data sets live. [default: the run's]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the draws.")] = 0,
) -> None:
    """Evaluates a trained model: ELBO, rate (KL) and distortion in nats per datum, bits per dimension, active units.

    Names that end in _se hold the standard error over rows. Units are those of the data.
    """
    write = cli.writer(out, {".json": files.write_json})
    vae = load(run).to(cli.resolve_device(device))
    metrics = evaluate(vae, cli.rows_for(run, data, data_root), seed=seed)
    write(metrics, out)
    for name in ("elbo", "rate", "distortion", "bits_per_dim"):
        print(f"{name:<13}{metrics[name]:>12.4f} ± {metrics.get(name + '_se', float('nan')):.4f}")
    print(f"active units {metrics['active_units']:>12} of {vae.latent_dim}")
    print(f"rows         {metrics['num_rows']:>12,}\nwritten to {out}")


if __name__ == "__main__":
    cli.run_command(main)
