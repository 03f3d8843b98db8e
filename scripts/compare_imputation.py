"""Imputes tables from scikit-learn with a fifth of their entries removed, and compares with other methods."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer
from sklearn.datasets import load_diabetes, load_iris, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, SimpleImputer

from pyro_vae import fit, mlp_vae
from pyro_vae._support import files
from pyro_vae.cli import choices, running, writing
from pyro_vae.data.sources import DataSet
from pyro_vae.data.tables import Schema


def diabetes() -> pd.DataFrame:
    """Ten measurements of 442 patients and the progression of their diabetes (Efron et al., 2004)."""
    bunch: Any = load_diabetes(as_frame=True, scaled=False)
    frame = bunch.frame
    return frame.assign(sex=frame["sex"].map({1: "a", 2: "b"}), age=frame["age"].astype(int))


def wine() -> pd.DataFrame:
    """Thirteen measurements of 178 wines and their cultivar (Forina et al., 1988)."""
    bunch: Any = load_wine(as_frame=True)
    return bunch.frame.assign(target=bunch.frame["target"].map(dict(enumerate(bunch.target_names))))


def iris() -> pd.DataFrame:
    """Four measurements of 150 flowers and their species (Fisher, 1936)."""
    bunch: Any = load_iris(as_frame=True)
    return bunch.frame.assign(target=bunch.frame["target"].map(dict(enumerate(bunch.target_names))))


TABLES: dict[str, Callable[[], pd.DataFrame]] = {"diabetes": diabetes, "wine": wine, "iris": iris}


def main(
    out: Annotated[Path, typer.Option(help="The file to write, JSON.")] = Path("imputation.json"),
    share: Annotated[float, typer.Option(help="Share of removed entries.")] = 0.2,
    epochs: Annotated[int, typer.Option(help="Number of passes over all rows.")] = 600,
    seeds: Annotated[int, typer.Option(help="Number of repetitions, each with other gaps and weights.")] = 3,
) -> None:
    """Compares a VAE with mean imputation and scikit-learn's IterativeImputer on tables with gaps.

    Errors of numbers are root mean squares over the gaps, in standard deviations of the column; errors of categories
    are shares of gaps filled with a wrong one; coverage is the share of removed numbers inside the VAE's 90% intervals.
    """
    write = writing.writer(out, {".json": files.write_json})
    results = []
    for name, load in TABLES.items():
        for seed in range(seeds):
            results.append({"table": name, "seed": seed, **compare(load(), share, epochs, seed)})
    table: Any = pd.DataFrame(results).drop(columns="seed").groupby("table", sort=False)
    print("means over seeds\n" + table.mean().T.round(3).to_string())
    if seeds > 1:
        print("standard deviations\n" + table.std().T.round(3).to_string())
    write(results, out)
    print(f"written to {out}")


def compare(frame: pd.DataFrame, share: float, epochs: int, seed: int) -> dict[str, float]:
    """Errors of each method on one table with one set of gaps."""
    schema = Schema.infer(frame)
    whole = schema.encode(frame)
    gaps = torch.rand(whole.shape, generator=torch.Generator().manual_seed(seed)) < share
    gaps[gaps.all(1), 0] = False
    x = torch.where(gaps, torch.nan, whole)
    is_number = np.array([column.is_number for column in schema.columns])

    draws = impute(DataSet("table", x, x[:0], None, schema=schema), epochs, seed)
    middle = torch.where(torch.as_tensor(is_number), draws.mean(0), draws.mode(0).values)
    ways = {
        "vae": middle.numpy(),
        "mean": np.where(
            is_number,
            SimpleImputer(strategy="mean").fit_transform(x),
            SimpleImputer(strategy="most_frequent").fit_transform(x),
        ),
        "iterative": IterativeImputer(random_state=seed, max_iter=30, tol=1e-2).fit_transform(x),
    }
    truth, hidden = whole.numpy(), gaps.numpy()
    spread = truth.std(0)
    scores: dict[str, float] = {}
    for way, filled in ways.items():
        squares = ((filled - truth) / spread)[:, is_number][hidden[:, is_number]] ** 2
        scores[f"rmse, {way}"] = float(np.sqrt(squares.mean()))
    for way, filled in ways.items():
        wrong = (np.round(filled) != truth)[:, ~is_number][hidden[:, ~is_number]]
        scores[f"wrong kinds, {way}"] = float(wrong.mean())
    low, high = torch.quantile(draws, torch.tensor([0.05, 0.95]), dim=0).numpy()
    inside = ((truth >= low) & (truth <= high))[:, is_number][hidden[:, is_number]]
    scores["coverage of 90% intervals, vae"] = float(inside.mean())
    return scores


def impute(data: DataSet, epochs: int, seed: int) -> torch.Tensor:
    """Two hundred draws of each missing entry, from a VAE trained on the same rows."""
    likelihood, transform, _ = choices.likelihood_and_transform(data, "mixed", "shared", dequantize=False)
    torch.manual_seed(seed)
    vae: Any = mlp_vae(
        tuple(data.x_train.shape[1:]),
        4,
        likelihood=likelihood,
        transform=transform,
        hidden_dims=(64,),
        activation="Tanh",
        missing="nan",
    )
    fit(vae, data.x_train, epochs=epochs, batch_size=32, learning_rate=3e-3, seed=seed, progress=False)
    torch.manual_seed(seed)
    return vae.impute(data.x_train, 200, num_particles=200)


if __name__ == "__main__":
    running.run_command(main)
