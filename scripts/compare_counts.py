"""Trains VAEs with likelihoods for counts on single cells, and compares the evidence of held-out cells."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyro
import torch
import typer
from torch import Tensor

from pyro_vae import Pair, fit, likelihoods, mlp_vae, pooled_vae
from pyro_vae._support import files, markdown
from pyro_vae.cli import running, writing
from pyro_vae.data.sources import split
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Likelihood

LATENTS, WIDTH = 10, 64
EFFECTS = 4  # draws from the posterior of the batches' effects
LIKELIHOODS: Mapping[str, Callable[[], Likelihood]] = {
    "Poisson": likelihoods.Poisson,
    "zero-inflated Poisson": likelihoods.ZeroInflatedPoisson,
    "negative binomial": likelihoods.NegativeBinomial,
    "zero-inflated negative binomial": likelihoods.ZeroInflatedNegativeBinomial,
}


def main(
    data: Annotated[
        Path,
        typer.Argument(
            help="An AnnData file of single cells, log-normalised in its raw part, such as the "
            "10x_pbmc68k_reduced.h5ad that comes with scanpy (BSD-3)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The JSON file to write; a table in Markdown goes next to it.")] = Path(
        "counts.json"
    ),
    epochs: Annotated[int, typer.Option(help="Maximum number of passes over all cells.")] = 400,
    seeds: Annotated[int, typer.Option(help="Number of repetitions, each with other cells held out.")] = 5,
    num_particles: Annotated[int, typer.Option(help="Draws from the guide for the evidence of a cell.")] = 1000,
) -> None:
    """Compares likelihoods for counts by the evidence of held-out cells, with and without pooled batches.

    The mean of a gene is multiplied by the cell's total, relative to the median. With pooled batches, each batch has an
    effect on every gene, partially pooled, and the evidence is averaged over draws from the effects' posterior.
    Differences to the first model are paired by cell.
    """
    write = writing.writer(out, {".json": files.write_json})
    rows = read_cells(data)
    names = [f"{name}{pooled}" for pooled in ("", ", batches pooled") for name in LIKELIHOODS]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            found[name].append(held_out_evidence(rows, name, epochs, num_particles, seed))
            print(f"seed {seed} {name:48} {float(found[name][-1].mean()):9.2f} nats a cell", flush=True)
        results = compared(found)
        cells, genes = rows["x"].shape
        write({"data": data.name, "cells": cells, "genes": genes, "seeds": seed + 1, "models": results}, out)
        with files.replacing(out.with_suffix(".md")) as temporary:
            temporary.write_text(table(results) + "\n", encoding="utf-8")
    print(table(compared(found)))


def read_cells(path: Path) -> dict[str, Tensor]:
    """The counts of each cell, its total relative to the median, and its batch.

    Log-normalised values are logarithms of 1 + c·(count), with a factor c for each cell; its smallest count is 1.
    Batches are the numbers at the end of the cells' names, as 10x Genomics writes them.
    """
    try:
        import anndata  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        raise ModuleNotFoundError("reading .h5ad files needs anndata: pip install 'pyro-vae[anndata]'") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about parts of older files that are not read here
        cells: Any = anndata.read_h5ad(path)
    if cells.raw is None:
        raise ValueError(f"{path} has no raw part; expected log-normalised counts there")
    values = cells.raw.X
    scaled = np.expm1((values.toarray() if hasattr(values, "toarray") else np.asarray(values)).astype(np.float64))
    counts = scaled / np.where(scaled > 0, scaled, np.inf).min(1, keepdims=True)
    if not np.isfinite(counts).all() or np.abs(counts - counts.round()).max() > 0.2:
        raise ValueError(f"the values of {path} are not log-normalised counts: they are not multiples of their minimum")
    totals = torch.as_tensor(counts.round().sum(1))
    batches = np.unique([name.rpartition("-")[2] for name in cells.obs_names], return_inverse=True)[1]
    return {
        "x": torch.as_tensor(counts.round(), dtype=torch.float32),
        "size_factor": (totals / totals.median()).float(),
        "groups": torch.as_tensor(batches).reshape(-1),
    }


def held_out_evidence(rows: Mapping[str, Tensor], name: str, epochs: int, num_particles: int, seed: int) -> Tensor:
    """The evidence of each cell in a fifth of them, of a model trained on the others."""
    likelihood, pooled, _ = name.partition(", batches pooled")
    kept, held_out = split(len(rows["x"]), 0.2, seed)
    learned, watched = (kept[part] for part in split(len(kept), 0.1, seed))
    shape, arguments = tuple(rows["x"].shape[1:]), {"likelihood": LIKELIHOODS[likelihood](), "hidden_dims": (WIDTH,)}
    torch.manual_seed(seed)
    if pooled:
        vae: Any = pooled_vae(shape, LATENTS, int(rows["groups"].max()) + 1, **arguments)
    else:
        vae = mlp_vae(shape, LATENTS, **arguments)
    given = {name: value for name, value in rows.items() if pooled or name != "groups"}

    def part(index: Tensor) -> dict[str, Tensor]:
        return {name: value[index] for name, value in given.items()}

    fit(
        vae,
        part(learned),
        validation_data=part(watched),
        epochs=epochs,
        patience=40,
        batch_size=64,
        learning_rate=2e-3,
        seed=seed,
        progress=False,
    )
    if not pooled:
        return log_evidence(vae, part(held_out), num_particles=num_particles).log_evidence
    draws = []
    for _ in range(EFFECTS):
        effects = torch.cat([vae.effects().sample(), torch.zeros(1, vae.effects().event_shape[0])])
        programs = [pyro.condition(program, {"effects": effects}) for program in (vae.model, vae.guide)]
        conditioned = Pair(*programs, transform=vae.transform)
        draws.append(log_evidence(conditioned, part(held_out), num_particles=num_particles).log_evidence)
    return torch.stack(draws).logsumexp(0) - math.log(len(draws))


def compared(found: Mapping[str, list[Tensor]]) -> list[dict[str, Any]]:
    """Means over all cells held out, of each seed and of all, and paired differences to the first model."""
    first = torch.cat(next(iter(found.values())))
    results = []
    for name, seeds in found.items():
        difference = torch.cat(seeds) - first
        results.append(
            {
                "model": name,
                "evidence": float(torch.cat(seeds).mean()),
                "of_seeds": [float(seed.mean()) for seed in seeds],
                "difference": float(difference.mean()),
                "error": float(difference.std()) / math.sqrt(len(difference)),
            }
        )
    return results


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    rows = [
        [
            row["model"],
            f"{row['evidence']:.1f}".replace("-", "−"),
            f"{row['difference']:+.1f} ± {row['error']:.1f}".replace("-", "−"),
            " to ".join(f"{value:.1f}" for value in (min(row["of_seeds"]), max(row["of_seeds"]))).replace("-", "−"),
        ]
        for row in results
    ]
    return markdown.table(["", "evidence per cell, nats", "difference from the first", "range over seeds"], rows)


if __name__ == "__main__":
    running.run_command(main)
