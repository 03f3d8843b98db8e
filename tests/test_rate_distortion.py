"""The curve over β against the rate–distortion function of a normal source, and fit's weight of the KL."""

import math

import pytest
import torch

from pyro_vae import Elbo, fit, mlp_vae
from pyro_vae.evaluation import plot_rate_distortion, rate_distortion_curve
from pyro_vae.likelihoods import Normal


def reverse_water_filling(eigenvalues, scale, beta):
    r"""Rate and distortion of the best linear-Gaussian model with this fixed scale and one latent.

    D + βR over β is −ELBO of a model with noise variance βσ², so the best weight is that of probabilistic PCA with
    that noise. What is left of the first direction is min(λ, βσ²): Shannon's reverse water-filling (Cover & Thomas,
    10.3); the others are left whole.
    """
    first, water = max(eigenvalues), beta * scale**2
    squared = sum(eigenvalues) - first + min(first, water)
    constant = len(eigenvalues) * math.log(scale * math.sqrt(2 * math.pi))
    return max(0.0, 0.5 * math.log(first / water)), squared / (2 * scale**2) + constant


def test_linear_models_reach_the_rate_distortion_function_of_a_normal_source():
    x = torch.randn(1000, 3) * torch.tensor([2.0, 0.5, 0.5])
    x = x - x.mean(0)
    scale, betas = 0.5, (0.25, 1.0, 8.0, 32.0)  # water at 0.0625, 0.25, 2 and 8, where a variance of 4 drowns
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).tolist()
    state = torch.get_rng_state()
    curve = rate_distortion_curve(
        lambda: mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal(scale=scale)),
        x,
        x,
        betas,
        {"epochs": 15, "batch_size": 50, "learning_rate": 5e-2, "progress": False},
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert curve["beta"].tolist() == list(betas)
    for _, row in curve.iterrows():
        rate, distortion = reverse_water_filling(eigenvalues, scale, row["beta"])
        assert row["rate"] == pytest.approx(rate, abs=0.08)
        assert row["distortion"] == pytest.approx(distortion, rel=0.04)
    assert curve["elbo"].idxmax() == 1
    assert curve["active_units"].tolist() == [1, 1, 1, 0]
    (axes,) = plot_rate_distortion(curve).axes
    assert sorted(axes.lines[0].get_xdata()) == sorted(curve["rate"])


def test_warm_up_rises_to_the_weight():
    vae = mlp_vae((2,), 1, hidden_dims=(), likelihood=Normal())
    objective = Elbo(kl_weight=4.0, kl_warmup=2 / 3)
    history = fit(vae, torch.randn(64, 2), objective=objective, epochs=3, batch_size=32, progress=False)
    assert history["kl_weight"].tolist() == pytest.approx([1.0, 3.0, 4.0])
    with pytest.raises(ValueError, match="kl_weight must be a finite number from 0, found -1"):
        Elbo(kl_weight=-1.0)


def test_no_weights_or_negative_ones_are_refused():
    for betas in ((), (1.0, -0.5)):
        with pytest.raises(ValueError, match="betas must be one or more numbers, at least 0"):
            rate_distortion_curve(
                lambda: mlp_vae((2,), 1, likelihood=Normal()), torch.zeros(4, 2), torch.zeros(4, 2), betas
            )
