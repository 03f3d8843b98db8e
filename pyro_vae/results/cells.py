"""Counts of single cells: which likelihood fits many genes with few latents."""

import math
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae import Pair, fit, mlp_vae, pooled_vae
from pyro_vae.data.sources import split
from pyro_vae.evaluation import log_evidence
from pyro_vae.results.counts import LIKELIHOODS, compared
from pyro_vae.results.pictures import differences_of
from pyro_vae.results.row import Row

TITLE = "Counts of single cells"
ABOUT = """700 of the blood cells of Zheng et al., *Massively Parallel Digital Transcriptional Profiling of Single
Cells*, 2017, with 765 genes, as shipped with scanpy (`10x_pbmc68k_reduced.h5ad`, BSD-3). Counts are recovered from
log-normalised values, each a multiple of the cell's smallest. Ten latents, networks of width 64, means multiplied by
the cell's total. Evidence of a held-out fifth by 500 draws, another fifth for each seed, with differences paired by
cell; and the share of zeros among draws with the totals of these cells. Pooled: with effects of the eight wells on
every gene, partially pooled. Short: two seeds, at most 100 epochs; full: five, at most 300."""
DIGITS = 1
PICTURE = differences_of("to the Poisson", "nats a cell to the Poisson, ± 2 standard errors")
NOTES = """A Poisson misses the variation that the latents do not explain. Adding it either way, with extra zeros or
with a dispersion, gains six to seven nats; both together gain nothing more from so few cells. Effects of the wells, 765
numbers each, cost nats: the wells were sorted on one day, so there is nothing to learn but noise."""
FILE = "10x_pbmc68k_reduced.h5ad"
LATENTS, WIDTH = 10, 64
EFFECTS = 4  # draws from the posterior of the batches' effects
POOLED = ", wells pooled"


def rows(*, short: bool, root: Path) -> list[Row]:
    """Evidence and zeros by likelihood, without and with pooled wells."""
    cells = read_cells(cells_file(root))
    names = [f"{name}{pooled}" for pooled in ("", POOLED) for name in LIKELIHOODS]
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    zeros: dict[str, list[float]] = {name: [] for name in names}
    for seed in range(2 if short else 5):
        for name in names:
            evidence, share = held_out(cells, name, epochs=100 if short else 300, num_particles=500, seed=seed)
            found[name].append(evidence)
            zeros[name].append(100 * share)
            print(f"seed {seed} {name}: {float(evidence.mean()):.1f}, {zeros[name][-1]:.1f}% zeros", flush=True)
    truth = 100 * float((cells["x"] == 0).double().mean())
    return [*compared(found, zeros), {"": "all cells", "zeros, %": truth}]


def cells_file(root: Path) -> Path:
    """The file of the data root, or that of the installed scanpy, which need not be imported for it.

    Raises:
        ImportError: if there is neither.
    """
    if (root / FILE).exists():
        return root / FILE
    try:
        return Path(str(distribution("scanpy").locate_file(f"scanpy/datasets/{FILE}")))
    except PackageNotFoundError:
        message = f"these cells come with scanpy: pip install 'pyro-vae[cells]', or put its {FILE} into {root}"
        raise ImportError(message) from None


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


def held_out(
    cells: Mapping[str, Tensor], name: str, *, epochs: int, num_particles: int, seed: int
) -> tuple[Tensor, float]:
    """The evidence of each cell in a fifth of them, of a model trained on the others, and the zeros that it draws."""
    likelihood, pooled, _ = name.partition(POOLED)
    kept, others = split(len(cells["x"]), 0.2, seed)
    learned, watched = (kept[part] for part in split(len(kept), 0.1, seed))
    shape, parts = tuple(cells["x"].shape[1:]), {"likelihood": LIKELIHOODS[likelihood](), "hidden_dims": (WIDTH,)}
    torch.manual_seed(seed)
    if pooled:
        vae: Any = pooled_vae(shape, LATENTS, int(cells["groups"].max()) + 1, **parts)
    else:
        vae = mlp_vae(shape, LATENTS, **parts)
    used = {name: value for name, value in cells.items() if pooled or name != "groups"}
    training, watching, held = (
        {name: value[part] for name, value in used.items()} for part in (learned, watched, others)
    )
    how: dict[str, Any] = {"epochs": epochs, "patience": 40, "batch_size": 64, "learning_rate": 2e-3, "seed": seed}
    fit(vae, training, validation_data=watching, progress=False, **how)
    given = {name: value.repeat(10) for name, value in held.items() if name != "x"}
    torch.manual_seed(seed)
    zeros = float((vae.sample(10 * len(others), given=given) == 0).double().mean())
    if not pooled:
        return log_evidence(vae, held, num_particles=num_particles).log_evidence, zeros
    draws = []
    for _ in range(EFFECTS):
        effects = torch.cat([vae.effects().sample(), torch.zeros(1, vae.effects().event_shape[0])])
        programs = [pyro.condition(program, {"effects": effects}) for program in (vae.model, vae.guide)]
        conditioned = Pair(*programs, transform=vae.transform)
        draws.append(log_evidence(conditioned, held, num_particles=num_particles).log_evidence)
    return torch.stack(draws).logsumexp(0) - math.log(len(draws)), zeros
