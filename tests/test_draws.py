"""Draws with some of their terms, and programs without their scales, against densities written by hand."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae import Pair
from pyro_vae.inference.sites import run_pair, unscaled
from pyro_vae.inference.structure import Fixed

pytestmark = pytest.mark.usefixtures("float64")


def model(x=None, *, batch_size=None):
    pyro.sample("level", dist.Normal(0.0, 2.0), obs=torch.tensor(0.5))
    with pyro.plate("data", 50, subsample_size=batch_size if x is None else len(x), dim=-1):
        with poutine.scale(scale=0.3):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        return pyro.sample("x", dist.Normal(z + 0.5, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", 50, subsample_size=len(x), dim=-1), poutine.scale(scale=0.3):
        pyro.sample("z", dist.Normal(x / 2, 0.7))


def test_terms_of_rows_alone_leave_out_what_belongs_to_all():
    x, pair = torch.randn(4), Pair(model, guide)
    batch = pair.batch(x)
    draws = run_pair(model, guide, batch, pair.structure(batch), num_particles=3, num_rows=50)
    z = draws.latents["z"]
    by_hand = (
        dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z + 0.5, 1.0).log_prob(x) - dist.Normal(x / 2, 0.7).log_prob(z)
    )
    torch.testing.assert_close(draws.where(lambda term: term.is_local).log_weights, by_hand)
    shared = dist.Normal(0.0, 2.0).log_prob(torch.tensor(0.5)) / 50
    torch.testing.assert_close(draws.log_weights, by_hand + shared)
    assert draws.where(lambda term: False).elbo.abs().max() == 0


def test_programs_without_their_scales_are_maximised_as_they_are_reported():
    x, pair = torch.randn(4), Pair(model, guide)
    batch = pair.batch(x)
    structure = pair.structure(batch)
    values = {"z": torch.randn(4)}
    with Fixed(values):
        scaled = run_pair(model, guide, batch, structure)
        plain = run_pair(unscaled(model), unscaled(guide), batch, structure)
    torch.testing.assert_close(plain.scaled.elbo, scaled.elbo)
    torch.testing.assert_close(plain.elbo, scaled.elbo)
    assert (scaled.scaled.elbo - scaled.elbo).abs().max() > 0.1


def test_what_the_model_draws_for_gaps_counts_where_the_guide_draws_it():
    """A model with ``obs_mask``, evaluated at its latents without a guide: their prior counts all the same."""

    def gappy(x=None, *, seen=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guided(x, *, seen):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            with poutine.mask(mask=~seen):
                pyro.sample("x_unobserved", dist.Normal(torch.zeros(len(x)), 2.0))

    def alone(x, *, seen):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    x, seen = torch.randn(4), torch.tensor([True, False, True, False])
    values = {"z": torch.randn(4), "x_unobserved": torch.randn(4)}
    prior, likelihood = dist.Normal(0.0, 1.0).log_prob(values["z"]), dist.Normal(values["z"], 1.0)
    observed = prior + torch.where(seen, likelihood.log_prob(x), 0.0)
    for guide, expected in (
        (alone, observed),
        (guided, observed + torch.where(seen, 0.0, likelihood.log_prob(values["x_unobserved"]))),
    ):
        pair = Pair(gappy, guide)
        batch = pair.batch({"x": x, "seen": seen})
        structure = pair.structure(batch)
        with Fixed(values):
            draws = run_pair(gappy, lambda *rows, **arguments: None, batch, structure)
        torch.testing.assert_close(draws.elbo[0], expected)


def test_rows_beside_a_plate_of_words_come_without_its_dimension():
    """A row's own site leaves room for the words' plate; what is drawn has the shape of the data all the same."""

    def worded(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            with pyro.plate("words", 3, dim=-2):
                word = pyro.sample("word", dist.Normal(torch.zeros(()), 1.0))
            loc = word.unsqueeze(-1).transpose(-3, -1)  # (1, N, 3)
            return pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("words", 3, dim=-2):
            pyro.sample("word", dist.Normal(x.T, 0.1))

    pair, x = Pair(worded, guide), torch.randn(5, 3)
    assert pair.sample(4).shape == (4, 3)
    assert pair.posterior_predictive(x, 2).shape == (2, 5, 3)
    torch.testing.assert_close(pair.reconstruct(x), x)
    assert pair.event_shape == (3,)
