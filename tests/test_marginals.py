"""Latents that depend on one that is summed over keep their prior, and so do rate, distortion and the KL's weight."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_guides import mixture

from pyro_vae import Elbo, Pair, evaluate
from pyro_vae.inference.sites import run_pair

LOCS, WEIGHTS = torch.tensor([-2.0, 0.5, 2.0]), torch.tensor([0.3, 0.2, 0.5])


def both(x, z, scale=0.5, shift=0.0):
    """Log p(z), and log p(x | z), each summed over the component, one row after another."""
    log_z = WEIGHTS.log() + dist.Normal(LOCS, 0.7).log_prob(z[:, None])
    log_x = dist.Normal(z[:, None] + shift * torch.arange(3.0), scale).log_prob(x[:, None])
    prior = log_z.logsumexp(-1)
    return prior, (log_z + log_x).logsumexp(-1) - prior


def pair_of(shift):
    """The component moves z, and x by so much for each."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(LOCS[k], 0.7))
            return pyro.sample("x", dist.Normal(z + shift * k, 0.5), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.6))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(slope * x, 0.5))

    return Pair(model, guide)


@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("num_particles", [None, 4])
def test_prior_and_likelihood_are_the_sums_by_hand(shift, num_particles):
    x = torch.randn(7) * 2
    pair = pair_of(shift)
    draws = pair.draws(pair.batch(x), num_particles=num_particles)
    z = draws.latents["z"].reshape(-1, 7)
    prior, likelihood = (torch.stack(part) for part in zip(*(both(x, row, shift=shift) for row in z), strict=True))
    torch.testing.assert_close(draws.log_prior["z"], prior)
    torch.testing.assert_close(draws.log_likelihood["x"], likelihood)
    torch.testing.assert_close(draws.rate, dist.Normal(0.6 * x, 0.5).log_prob(z) - prior)
    assert set(draws.log_likelihood) == {"x"}


def test_rate_and_distortion_add_up_to_the_elbo_in_their_own_places():
    exact = mixture(3000)
    metrics = evaluate(exact.pair, exact.data)
    loc, sd = exact.posterior["z"]
    # E log p(x | z) of a normal likelihood at the exact posterior's moments.
    x = exact.data["x"]
    distortion = (((x - loc).square() + sd.square()) / 0.5).mean() + torch.tensor(0.5 * (2 * torch.pi) ** 0.5).log()
    assert metrics["distortion"] == pytest.approx(float(distortion), abs=5 * metrics["distortion_se"])
    assert metrics["rate"] > 0


def test_the_weight_of_the_kl_acts_on_all_of_it():
    pair, x = pair_of(1.0), torch.randn(50) * 2
    batch = pair.batch(x)
    structure = pair.structure(batch)
    torch.manual_seed(0)
    draws = run_pair(*pair.programs, batch, structure, num_particles=3)
    prior, likelihood = (
        torch.stack(part) for part in zip(*(both(x, z, shift=1.0) for z in draws.latents["z"].detach()), strict=True)
    )
    log_q = dist.Normal(0.6 * x, 0.5).log_prob(draws.latents["z"].detach())
    for beta in (0.0, 1.0, 3.0):
        found = Elbo(num_particles=3, kl_weight=beta)(draws, torch.tensor(0.0))
        torch.testing.assert_close(found, (likelihood - beta * (log_q - prior)).mean(0))


def test_several_latents_that_are_joined_have_one_prior():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
            a = pyro.sample("a", dist.Normal(LOCS[k], 0.7))
            b = pyro.sample("b", dist.Normal(-LOCS[k], 0.7))
            return pyro.sample("x", dist.Normal(a + b, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(x, 0.5))
            pyro.sample("b", dist.Normal(torch.zeros(len(x)), 0.5))

    x = torch.randn(5)
    pair = Pair(model, guide)
    draws = pair.draws(pair.batch(x))
    a, b = draws.latents["a"], draws.latents["b"]
    expected = (
        WEIGHTS.log() + dist.Normal(LOCS, 0.7).log_prob(a[:, None]) + dist.Normal(-LOCS, 0.7).log_prob(b[:, None])
    )
    assert set(draws.log_prior) == {"a & b"}
    torch.testing.assert_close(draws.log_prior["a & b"][0], expected.logsumexp(-1))
    torch.testing.assert_close(draws.log_likelihood["x"][0], dist.Normal(a + b, 0.5).log_prob(x))
