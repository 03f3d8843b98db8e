"""Trains VAEs with richer priors, posteriors and objectives, and compares their evidence on the same test rows."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import benchmark_report as report
import torch
import typer

from pyro_vae import Elbo, ImportanceWeighted, InfoVae, TotalCorrelation, evaluate, fit, make_vae, mlp_vae
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli import choices, running, writing
from pyro_vae.data.sources import DataSet, default_root, load_data
from pyro_vae.evaluation import log_evidence
from pyro_vae.networks import GatedMLP

# Differences to the first: the command line's options, the objective, the network.
PARTS: Mapping[str, dict[str, Any]] = {
    "standard": {},
    "standard, KL of draws": {"objective": Elbo()},  # as for parts without a KL in closed form
    "normal mixture prior": {"prior": "normal-mixture"},
    "VampPrior": {"prior": "vamp"},
    "flow prior": {"prior": "flow"},
    "full covariance": {"posterior": "full"},
    "low rank": {"posterior": "low-rank"},
    "mixture posterior": {"posterior": "mixture"},
    "Householder": {"posterior": "householder"},
    "flow posterior": {"posterior": "flow"},
    "flow prior and posterior": {"prior": "flow", "posterior": "flow"},
    "IWAE 5": {"objective": ImportanceWeighted(5)},
    "IWAE 5 doubly": {"objective": ImportanceWeighted(5, doubly_reparameterized=True)},
    "IWAE 50": {"objective": ImportanceWeighted(50)},
    "IWAE 50 doubly": {"objective": ImportanceWeighted(50, doubly_reparameterized=True)},
    "total correlation": {"objective": TotalCorrelation(6.0)},
    "MMD": {"objective": InfoVae(100.0)},
    "gated networks": {"gated": True},
    "gated VampPrior": {"gated": True, "prior": "vamp"},
}


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
        row, evidence = trained(
            loaded, PARTS[name], epochs, num_rows, latent_dim, device, test_rows=test_rows, num_particles=num_particles
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


def trained(
    data: DataSet,
    parts: Mapping[str, Any],
    epochs: int,
    num_rows: int | None,
    latent_dim: int,
    device: str,
    *,
    test_rows: int,
    num_particles: int,
) -> tuple[dict[str, Any], torch.Tensor]:
    """A model's metrics, and the evidence of each test row."""
    likelihood, transform, _ = choices.likelihood_and_transform(data, "bernoulli", "shared", dequantize=False)
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "likelihood": likelihood,
        "transform": transform,
        "prior": choices.PRIORS[parts.get("prior", "standard-normal")](latent_dim),
        "posterior": choices.POSTERIORS[parts.get("posterior", "diagonal")](),
    }
    shape, x_test = tuple(data.x_train.shape[1:]), data.x_test[:test_rows]
    if parts.get("gated"):
        vae = make_vae(shape, latent_dim, encoder_network=GatedMLP, decoder_network=GatedMLP, **common)
    else:
        vae = mlp_vae(shape, latent_dim, hidden_dims=(300, 300), **common)
    started = time.perf_counter()
    objective = parts.get("objective", Elbo(kl="auto"))
    fit(vae, data.x_train[:num_rows], objective=objective, epochs=epochs, device=device, progress=False)
    seconds = time.perf_counter() - started
    metrics = evaluate(vae, x_test)
    found = log_evidence(vae, x_test, num_particles=num_particles)
    return {
        "evidence": float(found.log_evidence.mean()),
        "elbo": metrics["elbo"],
        "rate": metrics["rate"],
        "active_units": metrics.get("active_units"),
        "seconds": seconds,
    }, found.log_evidence


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
    return report.markdown(head, rows)


if __name__ == "__main__":
    running.run_command(main)
