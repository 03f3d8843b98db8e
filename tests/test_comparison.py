"""Two models compared on the same rows: against closed forms, in units of their own, and refused where they differ."""

import numpy as np
import pytest
import torch
from exact_guides import two_observed
from linear_gaussian import LinearGaussian

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import compare
from pyro_vae.likelihoods import Bernoulli, Categorical, LogNormal, Normal, Poisson
from pyro_vae.transforms import Binarize, Standardize


def test_differences_are_those_of_the_closed_forms_with_the_error_of_pairs():
    a, b = LinearGaussian(), LinearGaussian(scale=0.9)
    x = a.draw(200)
    found = compare(a.exact_pair(), b.exact_pair(), x, num_particles=5)
    expected = (a.log_evidence(x) - b.log_evidence(x)).double().numpy()
    assert found.difference.numpy() == pytest.approx(expected, abs=1e-3)
    assert found.standard_error == pytest.approx(expected.std(ddof=1) / 200**0.5, rel=1e-3)
    assert "the first makes the rows more probable" in str(found)
    assert found.table(3).index.to_list() == np.argsort(-np.abs(expected))[:3].tolist()
    same = compare(a.exact_pair(), a.exact_pair(), x, num_particles=5)
    assert same.mean == 0
    assert "do not tell" in str(same)


def test_models_in_other_units_compare_in_the_users():
    lg = LinearGaussian()
    x = 1000 * lg.draw(50) + 5000
    transform = Standardize((5,)).fit(x)
    direct = _rescaled(lg, transform)
    found = compare(Pair(lg.vae.model, lg.exact_pair().guide, transform=transform), direct, x, num_particles=5)
    assert float(found.difference.abs().max()) < 0.02


def _rescaled(lg, transform):
    """The same model written in the user's units."""
    import pyro
    import pyro.distributions as dist

    zero = transform.inverse(torch.zeros(5))
    scale = transform.inverse(torch.ones(5)) - zero

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = zero + scale * (lg.loc + z @ lg.weight.T)
            return pyro.sample("x", dist.Normal(loc, lg.scale * scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", lg.posterior((x - zero) / scale))

    return Pair(model, guide)


def test_keyword_arguments_come_with_the_rows():
    exact = two_observed(40)
    assert compare(exact.pair, exact.pair, exact.data, num_particles=5).mean == 0


def test_what_does_not_compare_is_refused():
    counts = torch.randint(0, 5, (30, 3)).float()
    with pytest.raises(ValueError, match="the first model gives rows probabilities and the second densities"):
        compare(mlp_vae((3,), 1, likelihood=Poisson()), mlp_vae((3,), 1, likelihood=Normal()), counts)
    grey = torch.rand(30, 8) * 0.5 + 0.25
    bits = mlp_vae((8,), 1, likelihood=Bernoulli(), transform=Binarize())
    others = mlp_vae((8,), 1, likelihood=Bernoulli(), transform=Binarize(0.0, 2.0))
    with pytest.raises(ValueError, match="describe different data"):
        compare(bits, others, grey)


def test_bits_do_not_compare_with_the_grey_levels_they_are_drawn_from_where_most_are_black():
    grey = torch.randint(0, 17, (30, 8)) * (torch.rand(30, 8) < 0.2)
    bits = mlp_vae((8,), 1, likelihood=Bernoulli(), transform=Binarize(0, 16))
    with pytest.raises(ValueError, match="describe different data"):
        compare(bits, mlp_vae((8,), 1, likelihood=Categorical(17)), grey.float())


def test_what_stands_in_gaps_does_not_keep_models_from_being_compared():
    x = torch.rand(30, 8) + 5
    x[:, :6][torch.rand(30, 6) < 0.5] = torch.nan
    positive = mlp_vae((8,), 1, likelihood=LogNormal(), missing="nan")
    real = mlp_vae((8,), 1, likelihood=Normal(), transform=Standardize((8,)).fit(x), missing="nan")
    assert compare(positive, real, x, num_particles=5).difference.isfinite().all()
