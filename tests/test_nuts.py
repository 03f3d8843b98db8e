"""NUTS on the same program against the closed-form posterior."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_guides import mixture, scaled, sequences, shared_mean, two_levels, words
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


def assert_agrees(draws, size, mean, sd, error=4.5):
    """Draws ``(C, S, *E)`` with a posterior's mean and standard deviation."""
    flat = draws.flatten(0, 1).double()
    assert flat.shape[1:] == mean.shape
    assert ((flat.mean(0) - mean).abs() < error * sd / size.sqrt() + 1e-3).all()
    np.testing.assert_allclose(flat.std(0), sd, rtol=0.3)


@pytest.mark.parametrize("make", [two_levels, mixture, words, scaled], ids=lambda make: make.__name__)
def test_latents_of_any_name_number_and_plates_are_drawn(make):
    """Components of the mixture are summed out; the plate that is a subsample of a thousand rows counts one row."""
    exact = make(3)
    row = {n: v[1:2] if isinstance(v, torch.Tensor) and v.dim() else v for n, v in exact.data.items()}
    found = nuts_posterior(exact.pair, row, 80, 60, 2)
    assert set(found.draws) == set(exact.posterior) - {"k"}
    for name, draws in found.draws.items():
        mean, sd = exact.posterior[name]
        assert_agrees(draws, found.effective_sample_size[name], mean[1:2], sd[1:2])


def test_latents_of_all_rows_are_drawn_with_those_of_each():
    exact = shared_mean(8)
    found = nuts_posterior(exact.pair, exact.data, 120, 80, 2)
    assert found.draws["mean"].shape == (2, 120)
    assert found.draws["level"].shape == (2, 120, 8)
    for name, (mean, sd) in exact.posterior.items():
        assert_agrees(found.draws[name], found.effective_sample_size[name], mean, sd)


def test_masks_are_kept():
    exact = sequences(40)
    index = int((exact.data["lengths"] == 3).nonzero()[0])
    row = {name: value[index : index + 1] for name, value in exact.data.items()}
    found = nuts_posterior(exact.pair, row, 80, 60, 2)
    for step in range(3):
        assert_agrees(
            found.draws[f"z_{step}"], found.effective_sample_size[f"z_{step}"], 0.8 * row["x"][:, step], 0.2**0.5
        )

    def model(x=None, *, mask=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            p_x = dist.Normal(z, 0.5)
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    found = nuts_posterior(Pair(model, model, missing="nan"), torch.tensor([[2.0, float("nan")]]), 80, 60, 2)
    assert_agrees(
        found.draws["z"], found.effective_sample_size["z"], torch.tensor([[1.6, 0.0]]), torch.tensor([[0.2**0.5, 1.0]])
    )


class Silent(dist.Normal):
    """A distribution that does not say its support, as a flow does not."""

    support = property(lambda self: (_ for _ in ()).throw(NotImplementedError))
    sample = property(lambda self: (_ for _ in ()).throw(NotImplementedError))

    def __call__(self, *args):
        return self.rsample(*args)


def test_a_prior_without_a_support_is_on_real_numbers():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", Silent(torch.zeros(()), 1.0, validate_args=False))
            scale = pyro.sample("scale", dist.LogNormal(torch.tensor(-0.7), 0.01))
            return pyro.sample("x", dist.Normal(z, scale), obs=x)

    found = nuts_posterior(Pair(model, model), torch.tensor([1.0]), 80, 60, 2, max_tree_depth=5)
    assert_agrees(found.draws["z"], found.effective_sample_size["z"], torch.tensor([0.8]), torch.tensor([0.2**0.5]))
    assert (found.draws["scale"] > 0).all()


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
    assert "Do not rely on these draws" in found.describe()


def test_what_nuts_cannot_do_is_said():
    with pytest.raises(ValueError, match="no continuous latent for NUTS to move, only z"):
        nuts_posterior(discrete_pair(), torch.zeros(1))

    def counts(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            count = pyro.sample("count", dist.Poisson(torch.tensor(3.0)))
            return pyro.sample("x", dist.Normal(count, 1.0), obs=x)

    with pytest.raises(ValueError, match="'count' is a Poisson, and cannot be enumerated"):
        nuts_posterior(Pair(counts, counts), torch.zeros(1))

    def some_words(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("words", 5, subsample_size=2, dim=-2) as index:
                return pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else x.T[index])

    with pytest.raises(ValueError, match="the plate 'words' subsamples its elements"):
        nuts_posterior(Pair(some_words, some_words, event_shape=(5,)), torch.zeros(1, 5))
    with pytest.raises(ValueError, match="num_chains must be at least 2"):
        nuts_posterior(discrete_pair(), torch.zeros(1), num_chains=1)
