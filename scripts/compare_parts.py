"""Trains VAEs with richer priors, posteriors and objectives, and compares their evidence on the same test rows."""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from pyro_vae._support import files, markdown
from pyro_vae._support.names import lookup
from pyro_vae.cli import choices, running, writing
from pyro_vae.data.sources import default_root, load_data
from pyro_vae.results.parts import PARTS, trained


def main(
    data: Annotated[str, typer.Option(help="mnist, or another set of grey images.")] = "mnist",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of downloaded data sets. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    only: Annotated[
        str | None, typer.Option(help=f"Only these, separated by semicolons: {'; '.join(PARTS)}. [default: all]")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Number of passes over all rows.")] = 20,
    num_rows: Annotated[int | None, typer.Option(help="Rows to train on. [default: all]")] = None,
    test_rows: Annotated[int, typer.Option(help="Test rows whose evidence is estimated.")] = 1000,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide for the evidence of a row.")] = 1000,
    latent_dim: Annotated[int, typer.Option(help="Number of latents.")] = 40,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path, typer.Option(help="The JSON file to write; a table in Markdown goes next to it.")] = Path(
        "parts.json"
    ),
) -> None:
    """Compares priors, posteriors and objectives: one network, one budget, the same test rows.

    Differences are paired: each row's evidence minus that of the first model, with the standard error of the mean.
    """
    write = writing.writer(out, {".json": files.write_json})
    loaded = load_data(data, data_root or default_root())
    names = list(PARTS) if only is None else [lookup(name.strip(), PARTS, "model") for name in only.split(";")]
    results: list[dict[str, Any]] = []
    first: torch.Tensor | None = None
    for name in names:
        _, transform, _ = choices.likelihood_and_transform(loaded, "bernoulli", "shared", dequantize=False)
        row, evidence = trained(
            loaded,
            PARTS[name],
            transform=transform,
            latent_dim=latent_dim,
            epochs=epochs,
            num_rows=num_rows,
            test_rows=test_rows,
            num_particles=num_particles,
            device=device,
        )
        first = evidence if first is None else first
        difference = evidence - first
        error = float(difference.std()) / math.sqrt(len(difference))
        results.append({"model": name, **row, "difference": float(difference.mean()), "error": error})
        print(f"{name:32} {row['evidence']:8.2f} nats, {row['seconds']:6.1f} s", flush=True)
        write({"data": loaded.name, "epochs": epochs, "particles": num_particles, "models": results}, out)
    text = table(results)
    with files.replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    print(text)


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""

    def signed(value: float, form: str = ".2f") -> str:
        return f"{value:{form}}".replace("-", "−")

    rows = [
        [
            row["model"],
            signed(row["evidence"]),
            f"{signed(row['difference'], '+.2f')} ± {row['error']:.2f}",
            signed(row["elbo"]),
            f"{row['rate']:.1f}",
            "" if row["active_units"] is None else str(row["active_units"]),
            f"{row['seconds']:.0f}",
        ]
        for row in results
    ]
    head = ["", "evidence, nats", "difference from the first", "ELBO", "rate", "active latents", "seconds"]
    return markdown.table(head, rows)


if __name__ == "__main__":
    running.run_command(main)
