"""NUTS on the same program against the closed-form posterior."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair
from pyro.ops.stats import split_gelman_rubin

from pyro_vae import Pair
from pyro_vae.evaluation import nuts_posterior


def test_moments_are_the_posteriors_within_monte_carlo_error():
    lg = LinearGaussian()
    lg.vae.train()
    x = lg.draw(1)
    state = torch.get_rng_state()
    found = nuts_posterior(lg.vae, x, 300, 150, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert lg.vae.training
    assert not list(pyro.get_param_store().keys())
    draws, size = found.draws["z"].reshape(600, 2).double(), found.effective_sample_size["z"][0]
    truth = lg.posterior(x)
    error = truth.stddev[0] / size.sqrt()
    assert ((draws.mean(0) - truth.mean[0]).abs() < 4 * error).all()
    np.testing.assert_allclose(
        torch.cov(draws.T), truth.covariance_matrix[0].detach(), rtol=0.4, atol=0.15 * float(truth.variance.min())
    )
    assert found.num_divergences == 0
    assert found.draws["z"].shape == (2, 300, 1, 2)
    torch.testing.assert_close(found.r_hat["z"], split_gelman_rubin(found.draws["z"]).double(), atol=0.02, rtol=0)


def test_a_scale_on_the_sites_does_not_temper_the_posterior():
    """Scaled by 100 without our taking it back, the posterior's standard deviation would be 0.07."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1), pyro.poutine.scale(scale=100.0):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    draws = nuts_posterior(Pair(model, model), torch.tensor([1.0]), 150, 100, 2).draws["z"]
    assert float(draws.std()) == pytest.approx(0.5**0.5, rel=0.25)


def test_chains_that_disagree_are_reported():
    """Two modes, thirty standard deviations apart, that no chain crosses between."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 3.0))
            return pyro.sample("x", dist.Normal(z.square(), 0.3), obs=x)

    pair = Pair(model, model)
    found = next(
        posterior
        for posterior in (nuts_posterior(pair, torch.tensor([9.0]), 50, 50, 2, seed=s) for s in range(20))
        if posterior.draws["z"][0].mean() * posterior.draws["z"][1].mean() < 0
    )
    assert float(found.r_hat["z"]) > 1.5
    assert "not to be relied on" in found.describe()


def test_what_nuts_cannot_do_is_said():
    with pytest.raises(ValueError, match="no continuous latent for NUTS to move, only z"):
        nuts_posterior(discrete_pair(), torch.zeros(1))
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        nuts_posterior(discrete_pair(), torch.zeros(1), num_chains=1)
