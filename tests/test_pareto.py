"""The tail of importance weights, beside ArviZ and where the evidence is known."""

import importlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae import Pair
from pyro_vae.evaluation import log_evidence
from pyro_vae.evaluation.arviz_versions import import_arviz
from pyro_vae.evaluation.pareto import tail_shape, widened


def arviz_shape(log_weights):
    arviz = import_arviz()
    if arviz.__version__.startswith("0."):
        return arviz.psislw(log_weights)[1]
    # From version 1 on it takes log-likelihoods, as leaving rows out needs them, and weighs by their inverse.
    return importlib.import_module("arviz_stats.base").array_stats.psislw(-log_weights, axis=-1)[1]


@pytest.mark.parametrize("num", [25, 100, 1000])
def test_the_shape_is_that_of_arviz(num):
    scales = torch.linspace(0.1, 3, 40, dtype=torch.float64)
    weights = dist.StudentT(3.0).sample((num, 40)).double() * scales
    expected = arviz_shape(weights.T.numpy())
    np.testing.assert_allclose(tail_shape(weights).numpy(), expected, rtol=1e-9)


def test_draws_of_a_pareto_distribution_have_its_shape():
    for shape in (0.3, 0.7, 1.2):
        uniform = torch.rand(50_000, 5, dtype=torch.float64)
        found = tail_shape(-shape * uniform.log())
        assert found.mean() == pytest.approx(shape, abs=0.08)


def test_no_tail_and_too_few_draws():
    assert tail_shape(torch.full((100, 2), -3.0, dtype=torch.float64)).tolist() == [0.0, 0.0]
    assert tail_shape(torch.full((100, 1), -math.inf, dtype=torch.float64)).tolist() == [0.0]
    assert tail_shape(torch.zeros(24, 1, dtype=torch.float64)).isnan().all()
    shape = torch.tensor([-1.0, 0.0, 2.0, math.nan])
    expected = [1, (1 - 2 / 95**0.5) ** -0.5, 0.03**-0.5, 1]  # a tail of 95 draws
    assert widened(torch.ones(4), shape, 1000).tolist() == pytest.approx(expected)


def correlated(width):
    """Two latents that are correlated in the posterior, and a guide of independent ones."""
    slopes, noise = torch.tensor([[1.0, 1.0], [1.0, 0.6], [0.0, 0.5]]), 0.5
    precision = torch.eye(2) + slopes.T @ slopes / noise**2
    covariance = torch.linalg.inv(precision)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z @ slopes.T, noise).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            loc = x @ slopes @ covariance / noise**2
            pyro.sample("z", dist.Normal(loc, width * precision.diagonal().rsqrt()).to_event(1))

    marginal = dist.MultivariateNormal(torch.zeros(3), slopes @ slopes.T + noise**2 * torch.eye(3))
    return Pair(model, guide), marginal


@pytest.mark.parametrize("width", [0.7, 1.0, 1.3])
def test_errors_of_the_evidence_are_to_be_believed_under_a_guide_of_independent_entries(width):
    pair, marginal = correlated(width)
    x = marginal.sample((400,))
    found = log_evidence(pair, x, num_particles=1000, seed=3)
    off = found.log_evidence - marginal.log_prob(x).double()
    z = (off / found.standard_error)[found.reliable]
    assert len(z) > 20
    assert float(z.square().mean().sqrt()) < 1.2
    assert float((z.abs() > 3).double().mean()) < 0.02
    assert found.mean_monte_carlo_error == pytest.approx(
        float(found.standard_error.square().sum().sqrt() / 400), rel=1e-9
    )
    assert found.mean_monte_carlo_error < found.mean_standard_error


def test_few_particles_have_no_reliable_error():
    pair, marginal = correlated(1.0)
    found = log_evidence(pair, marginal.sample((5,)), num_particles=10)
    assert found.k_hat.isnan().all()
    assert not found.reliable.any()
