"""Rate against distortion, compared with Shannon's closed form."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pyro_vae import mlp_vae
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import rate_distortion_curve
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.results.pictures import rate_and_distortion
from pyro_vae.results.row import Row
from pyro_vae.transforms import Binarize

TITLE = "Rate and distortion"
ABOUT = """Models trained with the KL's weight β (Alemi et al., *Fixing a Broken ELBO*, 2018). Above: a linear model
with one latent and a fixed scale of 0.5, on a thousand rows of three independent normals; the closed form is
Shannon's reverse water-filling (Cover & Thomas, 10.3) of the rows' own covariance. Below: bits of scikit-learn's
digits; full: of MNIST beside, with 50 latents and a hidden layer of 400."""
DIGITS = 3
BITS: dict[str, Any] = {"likelihood": Bernoulli()}
PICTURE = rate_and_distortion


def rows(*, short: bool, root: Path) -> list[Row]:
    """Rate and distortion at several weights, with their theoretical values."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    x = torch.randn(1000, 3) * torch.tensor([2.0, 0.5, 0.5])
    x = x - x.mean(0)
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).tolist()
    how: dict[str, Any] = {"batch_size": 50, "learning_rate": 5e-2, "progress": False}
    curve = rate_distortion_curve(
        lambda: mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal(scale=0.5)),
        x,
        x,
        (0.25, 1.0, 4.0, 8.0, 32.0),
        {"epochs": 20 if short else 100, **how},
    )
    table: list[Row] = []
    for found in curve.to_dict("records"):
        rate, distortion = water_filling(values, 0.5, found["beta"])
        table.append(
            {
                "": f"linear, β = {found['beta']:g}",
                "rate": {"value": found["rate"], "error": found["rate_se"]},
                "rate in theory": rate,
                "distortion": {"value": found["distortion"], "error": found["distortion_se"]},
                "distortion in theory": distortion,
            }
        )
    digits: Any = load_digits()
    bits = (torch.tensor(digits.data, dtype=torch.float32) > 7).float()
    table += of_bits("digits", (bits[:1500], bits[1500:]), lambda: mlp_vae((64,), 8, hidden_dims=(128,), **BITS))
    if not short:
        data = load_data("mnist", root)
        binarized: Any = {"hidden_dims": (400,), "transform": Binarize(0, 255), **BITS}
        table += of_bits("MNIST", (data.x_train, data.x_test), lambda: mlp_vae((28, 28), 50, **binarized))
    return table


def of_bits(name: str, rows: tuple[Any, Any], make: Callable[[], Any]) -> list[Row]:
    """Rate and distortion of held-out rows, of models trained on others."""
    curve = rate_distortion_curve(make, *rows, (0.1, 0.5, 1.0, 2.0, 5.0), {"epochs": 100, "progress": False})
    return [
        {
            "": f"{name}, β = {found['beta']:g}",
            "rate": {"value": found["rate"], "error": found["rate_se"]},
            "distortion": {"value": found["distortion"], "error": found["distortion_se"]},
            "ELBO": {"value": found["elbo"], "error": found["elbo_se"]},
            "active latents": int(found["active_units"]),
        }
        for found in curve.to_dict("records")
    ]


def water_filling(eigenvalues: list[float], scale: float, beta: float) -> tuple[float, float]:
    """Rate and distortion of the best linear model with one latent and this fixed scale."""
    first, water = max(eigenvalues), beta * scale**2
    squared = sum(eigenvalues) - first + min(first, water)
    constant = len(eigenvalues) * math.log(scale * math.sqrt(2 * math.pi))
    return max(0.0, 0.5 * math.log(first / water)), squared / (2 * scale**2) + constant
