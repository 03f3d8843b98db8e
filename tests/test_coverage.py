"""Coverage of predictive intervals: nominal where the closed form says so, and flagged where it does not."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from exact_guides import LOCAL, half_observed, two_observed
from linear_gaussian import LinearGaussian
from pairs import function_pair, labelled_pair

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import plot_coverage, predictive_coverage
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Standardize


def test_global_latents_are_refused_in_a_sentence():
    with pytest.raises(ContractError, match=r"'mean' lies outside .* so rows are not independent"):
        predictive_coverage(function_pair(), torch.randn(50), kind="prior")


@pytest.mark.parametrize("make", LOCAL, ids=lambda make: make.__name__)
def test_the_prior_predictive_of_programs_that_are_not_ours_is_uniform(make):
    exact = make(800)  # of 600 rows of two_observed the own p-value is 5e-6, by bad luck
    found = predictive_coverage(exact.pair, exact.data, kind="prior", num_samples=19)
    assert scipy.stats.kstest(found.pit, "uniform").pvalue > 1e-3


def test_what_the_model_observes_beside_x_is_drawn_with_it_and_conditioned_on():
    """From nothing of its row x has variance 1.25, whatever y is; with kind="posterior" y says of it what it can."""
    exact = two_observed(2000)
    pit = predictive_coverage(exact.pair, exact.data, kind="prior", num_samples=199).pit
    share = scipy.stats.norm.cdf(exact.data["x"] / 1.25**0.5)
    assert np.abs(pit - share).max() < 6 * 0.5 / 199**0.5 + 0.01
    half = half_observed(1500)
    assert predictive_coverage(half.pair, half.data, num_samples=39).p_value > 0.01
    assert predictive_coverage(half.pair, half.data, kind="prior", num_samples=39).p_value > 0.01
    shifted = {**half.data, "y": half.data["y"] + 3}
    assert predictive_coverage(half.pair, shifted, num_samples=39).p_value < 1e-6
    assert predictive_coverage(half.pair, shifted, kind="prior", num_samples=39).p_value > 0.01


@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_coverage_of_the_right_model_is_nominal(kind):
    lg = LinearGaussian()
    found = predictive_coverage(lg.partial_pair(), lg.draw(2000), kind=kind, num_samples=39, num_particles=100)
    assert (found.table["p_value"] > 0.01).all()
    assert found.table.loc[0.8, "coverage"] == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / 2000))
    assert found.table.loc[0.8, "standard_error"] == pytest.approx(np.sqrt(0.8 * 0.2 / 2000))
    assert scipy.stats.kstest(found.pit, "uniform").pvalue > 0.01
    assert found.p_value > 0.01


def test_a_rough_guide_does_not_spoil_the_coverage_of_a_right_model():
    lg = LinearGaussian()
    found = predictive_coverage(lg.partial_pair(shrink=1.4, shift=0.2), lg.draw(800), num_samples=39)
    assert found.p_value > 0.01


def test_coverage_is_the_closed_form_where_the_data_are_wider_than_the_model():
    lg = LinearGaussian()
    x = lg.loc + 2 * (lg.draw(3000) - lg.loc)
    found = predictive_coverage(lg.partial_pair(), x, [0.5, 0.9], kind="prior", num_samples=199)
    for level in (0.5, 0.9):
        expected = 1 - 2 * scipy.stats.norm.sf(scipy.stats.norm.ppf(0.5 + level / 2) / 2)
        assert found.table.loc[level, "coverage"] == pytest.approx(expected, abs=0.03)
    assert (found.table["p_value"] < 1e-6).all()
    assert found.p_value < 1e-6


def test_intervals_given_the_entry_itself_cover_more_than_they_say():
    """Why the entry is hidden: by the exact posterior of the whole row, the PIT crowds in the middle."""
    lg = LinearGaussian()
    x = lg.draw(600)
    draws = lg.exact_pair().posterior_predictive(x, 39)[..., 0]
    pit = ((draws < x[:, 0]).sum(0) + torch.rand(600)) / 40
    assert float(((pit - 0.5).abs() < 0.25).double().mean()) > 0.6
    assert (
        predictive_coverage(lg.partial_pair(), x, [0.5], num_samples=39, num_particles=100).table["coverage"].item()
        < 0.55
    )


def counts_pair():
    """Two kinds of rows of four counts, and the exact posterior of the kind given any of the entries."""
    rates = torch.tensor([[0.3, 6.0, 1.0, 0.5], [2.0, 1.0, 1.5, 4.0]])

    def model(x=None, *, batch_size=None, mask=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            p_x = dist.Poisson(rates[z.long()])
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    def guide(x, mask=None):
        seen = torch.ones_like(x) if mask is None else mask.to(x)
        log_prob = (dist.Poisson(rates).log_prob(x[:, None]) * seen[:, None]).sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=log_prob[:, 1] - log_prob[:, 0]))

    return Pair(model, guide)


@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_the_pit_of_counts_is_uniform(kind):
    """Over 20 data sets: one alone fails at its level for one seed in a hundred."""
    pair, pits = counts_pair(), []
    for seed in range(20):
        torch.manual_seed(1000 + seed)
        x = pair.sample(200).long()
        assert float((x == 0).double().mean()) > 0.15  # ties in plenty
        pits.append(predictive_coverage(pair, x, kind=kind, num_samples=19, num_particles=200, seed=seed).pit)
    assert scipy.stats.kstest(np.concatenate(pits), "uniform").pvalue > 0.01
    assert predictive_coverage(pair, 2 * x, kind=kind, num_samples=19).p_value < 1e-4


def test_too_few_particles_of_a_rough_guide_cover_too_little_and_more_mend_it():
    lg = LinearGaussian()
    pair, x = lg.partial_pair(shrink=2.0, shift=0.5), lg.draw(3000)
    few, many = (
        predictive_coverage(pair, x, [0.9], num_samples=39, num_particles=count).table["coverage"].item()
        for count in (2, 200)
    )
    assert few < 0.9 - 6 * np.sqrt(0.9 * 0.1 / 3000)
    assert many == pytest.approx(0.9, abs=4 * np.sqrt(0.9 * 0.1 / 3000))


def test_units_and_missing_entries_are_the_users():
    """Rows a thousand times as large, a third of them missing, in units that the transform knows."""
    lg = LinearGaussian()
    standardize = Standardize((5,)).fit(torch.randn(50, 5) * 1000 + 5000)
    x = standardize.inverse(lg.draw(1500))
    x[torch.rand(1500, 5) < 0.3] = torch.nan
    x = x[(~x.isnan()).sum(1) > 0]
    pair = lg.partial_pair()
    held = Pair(pair.model, pair.guide, transform=standardize, missing="nan")
    found = predictive_coverage(held, x, num_samples=39)
    assert len(found.pit) == int(((~x.isnan()).sum(1) > 1).sum())
    assert found.p_value > 0.01
    assert predictive_coverage(held, x, kind="prior", num_samples=39).p_value > 0.01


def test_what_does_not_fit_is_said_in_a_sentence():
    pair = labelled_pair()
    with pytest.raises(
        ValueError, match="the model takes no keyword argument 'mask': give it one, or use kind='prior'"
    ):
        predictive_coverage(pair, {"x": torch.randn(50), "labels": torch.zeros(50, dtype=torch.long)})
    vae = mlp_vae((3,), 1, likelihood=Normal())
    for arguments, message in (
        ({"levels": [1.0]}, "levels must be between 0 and 1"),
        ({"kind": "other"}, "kind must be 'prior' or 'posterior'"),
        ({"num_samples": 0}, "num_samples and num_particles"),
    ):
        with pytest.raises(ValueError, match=message):
            predictive_coverage(vae, torch.randn(50, 3), **arguments)
    with pytest.raises(ValueError, match="at least 20 rows"):
        predictive_coverage(vae, torch.randn(5, 3))
    with pytest.raises(ValueError, match=r"found 0; a row with a single observed entry .* use kind='prior'"):
        predictive_coverage(mlp_vae((1,), 1, likelihood=Normal()), torch.randn(50, 1))


def test_the_figure_shows_the_histogram_of_all_entries():
    lg = LinearGaussian()
    _, right = plot_coverage(predictive_coverage(lg.partial_pair(), lg.draw(200), num_samples=19)).axes
    assert right.patches[0].get_data().values.sum() == 200


def test_a_guide_that_has_met_no_gaps_is_said_to_be_doubtful_about_them():
    x = torch.randn(50, 3)
    with pytest.warns(UserWarning, match="built for complete rows"):
        predictive_coverage(mlp_vae((3,), 1, likelihood=Normal()), x, num_samples=9, num_particles=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        predictive_coverage(mlp_vae((3,), 1, likelihood=Normal()), x, kind="prior", num_samples=9)
        predictive_coverage(mlp_vae((3,), 1, likelihood=Normal(), missing="nan"), x, num_samples=9, num_particles=5)
