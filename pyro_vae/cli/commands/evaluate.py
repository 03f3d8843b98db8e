"""Evaluates a trained model on data it was not trained on."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from pyro_vae import evaluate
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli import models, options, reading, runs, writing
from pyro_vae.cli.commands.compare import main as compare_runs
from pyro_vae.evaluation import evaluate_suite, render_html
from pyro_vae.evaluation.report import PARTS

EXAMPLES = (
    "pyro-vae evaluate runs/digits-mlp",
    "pyro-vae evaluate runs/digits-mlp --suite quick",
    "pyro-vae evaluate runs/digits-mlp --data others.npy",
)


def main(
    run: options.Run,
    other: Annotated[
        Path | None,
        typer.Argument(help="A second run, to compare with the first by evidence on the same rows.", metavar="OTHER"),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file to write, JSON.")] = Path("metrics.json"),
    suite: Annotated[
        str | None,
        typer.Option(
            help="Also run all checks and write report.html next to --out: quick (some of the rows, one to a few "
            "minutes) or full (all rows; for MNIST most of an hour on two cores). "
            "[default: only the ELBO and its terms]"
        ),
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(help=f"Only these parts of the suite, separated by commas: {', '.join(PARTS)}. [default: all]"),
    ] = None,
    data: options.HeldOutData = None,
    data_root: options.DataRoot = None,
    device: options.Device = "auto",
    seed: options.Seed = 0,
) -> None:
    """Evaluates a trained model: ELBO, rate (KL) and distortion in nats per datum, bits per dimension, active units.

    With a second run: by how many nats per row one is more probable than the other, and in which rows they differ most.
    Names that end in _se hold the standard error over rows. Units are those of the data. With --suite, the report opens
    with a list of what is wrong, what is worth a look and what is fine, with the thresholds used.
    """
    if suite is not None:
        lookup(suite, ("quick", "full"), "suite")
    elif parts is not None:
        raise ValueError("--parts selects parts of a suite: add --suite quick or --suite full")
    chosen = None if parts is None else [lookup(name.strip(), PARTS, "part") for name in parts.split(",")]
    if other is not None and suite is not None:
        raise ValueError("two runs are compared only by their evidence: give either OTHER or --suite")
    if other is not None:
        compare_runs(run, other, out, data, data_root, device, seed)
        return
    vae = runs.open_run(run, device)
    write = writing.writer(out, {".json": files.write_json})
    held = reading.data_for(run, data, data_root)
    rows, kind = reading.rows_of(run, held), runs.kind_of(run)
    metrics = evaluate(vae, rows, seed=seed)
    metrics |= models.scores(kind, vae, rows, reading.labels_of(run, held))
    for name in ("elbo", "rate", "distortion", "bits_per_dim", "auxiliary"):
        if name in metrics:
            error = metrics.get(f"{name}_se", math.nan)  # of one row there is none
            print(f"{name:<13}{metrics[name]:>12.4f}{'' if math.isnan(error) else f' ± {error:.4f}'}")
    if "active_units" in metrics:
        print(f"active units {metrics['active_units']:>12} of {metrics['num_latents']}")
    print(f"rows         {metrics['num_rows']:>12,}")
    for name, what in {"accuracy": "labels that are right", "cluster_accuracy": "in the right cluster"}.items():
        if name in metrics:
            print(f"{what}: {metrics[name]:.1%} ± {metrics[name + '_se']:.1%} of {metrics['num_labelled']:,}")
    if suite is None:
        write(metrics, out)
        print(f"written to {out}")
        return

    train = held.x_train if held.y_train is None else (held.x_train, held.y_train)
    report = evaluate_suite(
        vae,
        rows,
        suite=suite,
        parts=chosen,
        train=train,
        history=runs.history_of(run),
        settings=runs.settings_of(run),
        seed=seed,
        progress=lambda title: print(f"… {title}", file=sys.stderr),
    )
    page = out.with_name("report.html")
    write({**metrics, **report.to_json()}, out)
    with files.replacing(page) as temporary:
        temporary.write_text(render_html(report, f"{run} on {held.name}"), encoding="utf-8")
    print(f"\n{report}\n\nwritten to {out} and {page}")
