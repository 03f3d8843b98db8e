"""Calibration: uniform ranks and nominal coverage where the closed form says so, and flags where it does not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import (
    plot_coverage,
    plot_simulation_based_calibration,
    predictive_coverage,
    simulation_based_calibration,
)
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Standardize


def linear_pair(lg, *, shrink=1.0, shift=0.0):
    """The guide that is right given any subset of the entries, or one whose scale or mean is off."""

    def guide(x, mask=None):
        seen = torch.ones_like(x) if mask is None else mask.to(x)
        precision = torch.eye(lg.weight.shape[1]) + (lg.weight.T * seen[:, None]) @ lg.weight / lg.scale**2
        covariance = torch.linalg.inv(precision)
        loc = (covariance @ ((seen * (x - lg.loc)) @ lg.weight)[..., None])[..., 0] / lg.scale**2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc + shift, shrink**2 * covariance))

    return Pair(lg.vae.model, guide)


def test_the_exact_guide_has_uniform_ranks():
    found = simulation_based_calibration(LinearGaussian().exact_pair(), 1500, 19)
    assert list(found.table.index) == ["z[0]", "z[1]", "log p(x|z)"]
    assert found.p_value > 0.05
    for name, ranks in found.ranks.items():
        assert ranks.min() == 0
        assert ranks.max() == 19
        expected = scipy.stats.chisquare(np.bincount(ranks, minlength=20))
        assert expected.pvalue > 0.01
        assert found.table.loc[name, "chi_square"] == pytest.approx(expected.statistic)
        assert found.table.loc[name, "p_value"] == pytest.approx(expected.pvalue)
        assert found.table.loc[name, "mean_rank"] == pytest.approx(0.5, abs=4 / np.sqrt(12 * 1500))
        assert found.table.loc[name, "spread"] == pytest.approx(1, abs=0.06)
    assert found.p_value == pytest.approx(min(1, 3 * found.table["p_value"].min()))


def test_p_values_of_the_exact_guide_hold_their_level():
    pair = LinearGaussian(data_dim=2, latent_dim=1).exact_pair()
    found = [simulation_based_calibration(pair, 200, 9, seed=seed) for seed in range(60)]
    each = [p for f in found for p in f.table.loc[["z[0]"], "p_value"]]
    assert scipy.stats.kstest(each, "uniform").pvalue > 0.01
    assert np.mean([f.p_value < 0.1 for f in found]) < 0.1 + 3 * 0.039


@pytest.mark.parametrize("shrink", [0.5, 2.0])
def test_a_guide_with_a_wrong_scale_is_flagged_by_the_spread_it_must_have(shrink):
    """With u the share of q below z*, Var u = asin(1 / (1 + s²)) / 2π, and the rank is binomial given u."""
    found = simulation_based_calibration(linear_pair(LinearGaussian(), shrink=shrink), 2000, 19)
    of_share = np.arcsin(1 / (1 + shrink**2)) / (2 * np.pi)
    of_rank = 19**2 * of_share + 19 * (0.25 - of_share)
    for name in ("z[0]", "z[1]"):
        assert found.table.loc[name, "adjusted_p_value"] < 1e-6
        assert found.table.loc[name, "spread"] == pytest.approx(np.sqrt(of_rank / ((20**2 - 1) / 12)), rel=0.04)


def test_a_shifted_guide_is_flagged_by_the_mean_rank_it_must_have():
    lg = LinearGaussian()
    sd = float(lg.posterior(lg.draw(1)).covariance_matrix[0, 0, 0].sqrt())
    table = simulation_based_calibration(linear_pair(lg, shift=-0.3), 2000, 19).table
    share = scipy.stats.norm.cdf(0.3 / (np.sqrt(2) * sd))
    assert table.loc["z[0]", "mean_rank"] == pytest.approx((19 * share + 0.5) / 20, abs=0.025)
    assert table.loc["z[0]", "adjusted_p_value"] < 1e-6


def test_a_guide_that_returns_the_prior_is_told_by_the_likelihood_alone():
    lg = LinearGaussian()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    table = simulation_based_calibration(Pair(lg.vae.model, guide), 500, 19).table
    assert table.loc[["z[0]", "z[1]"], "p_value"].min() > 0.01
    assert table.loc["log p(x|z)", "adjusted_p_value"] < 1e-6


def exact_discrete_pair(loc=(-1.0, 1.5)):
    """A binary latent with its exact posterior; its ranks are ties for the most part."""
    model = discrete_pair().model

    def guide(x):
        log_odds = dist.Normal(loc[1], 1.0).log_prob(x) - dist.Normal(loc[0], 1.0).log_prob(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=log_odds + np.log(0.4 / 0.6)))

    return Pair(model, guide)


def test_ties_of_a_discrete_latent_are_broken_at_random():
    assert simulation_based_calibration(exact_discrete_pair(), 2000, 19).p_value > 0.05
    wrong = simulation_based_calibration(exact_discrete_pair(loc=(0.0, 0.5)), 2000, 19)
    assert wrong.p_value < 1e-6


def test_quantities_of_the_user_are_ranked_by_their_definition():
    pair = linear_pair(LinearGaussian(), shrink=0.5)
    quantities = {"first": lambda z: z[:, 0], "both": lambda z: -z, "square": lambda z: z.square().sum(-1)}
    found = simulation_based_calibration(pair, 300, 19, quantities)
    assert (found.ranks["first"] == found.ranks["z[0]"]).all()
    assert (found.ranks["both[1]"] == 19 - found.ranks["z[1]"]).all()
    assert len(found.table) == 7
    with pytest.raises(ValueError, match=r"'one' has shape \(\) for 300 rows; it must give one number"):
        simulation_based_calibration(pair, 300, 19, {"one": lambda z: z.sum()})
    with pytest.raises(ValueError, match="quantity 'z' already"):
        simulation_based_calibration(pair, 300, 19, {"z": lambda z: z})


def test_calibration_runs_in_chunks_with_context_and_leaves_the_caller_alone():
    pair = labelled_pair()
    pair.model.shift.data = torch.tensor([-3.0, 3.0])
    pair.guide.weight.data, pair.guide.offset.data = torch.tensor([0.8, 0.8]), torch.tensor([2.4, -2.4])
    labels = torch.arange(600) % 2

    def guide(x, labels):
        with pyro.plate("data", len(x), dim=-1):
            loc = pair.guide.weight[labels] * x + pair.guide.offset[labels]
            pyro.sample("z", dist.Normal(loc, np.sqrt(0.2)))  # the posterior's variance

    state = torch.get_rng_state()
    found = simulation_based_calibration(Pair(pair.model, guide), 600, 19, labels=labels, chunk_size=250)
    assert found.p_value > 0.02
    assert torch.equal(state, torch.get_rng_state())
    swapped = simulation_based_calibration(Pair(pair.model, lambda x, labels: guide(x, 1 - labels)), 600, labels=labels)
    assert swapped.p_value < 1e-6
    with pytest.raises(ValueError, match="labels has 600 rows: give one for each of the 500"):
        simulation_based_calibration(pair, 500, labels=labels)


def test_with_a_mask_the_posterior_is_that_given_the_observed_entries():
    lg = LinearGaussian()
    mask = torch.rand(1000, 5) < 0.5
    assert simulation_based_calibration(linear_pair(lg), 1000, 19, mask=mask).p_value > 0.02
    careless = Pair(lg.vae.model, lambda x, mask: linear_pair(lg).guide(x))
    assert simulation_based_calibration(careless, 1000, 19, mask=mask).p_value < 1e-6


def test_global_latents_are_refused_in_a_sentence():
    pair = function_pair()
    for job in (simulation_based_calibration, lambda p: predictive_coverage(p, torch.randn(50), kind="prior")):
        with pytest.raises(ValueError, match="'mean' stands outside the plate 'data'"):
            job(pair)
    with pytest.raises(ValueError, match="does not draw 'z'"):
        simulation_based_calibration(Pair(discrete_pair().model, lambda x: None))


@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_coverage_of_the_right_model_is_nominal(kind):
    lg = LinearGaussian()
    found = predictive_coverage(linear_pair(lg), lg.draw(2000), kind=kind, num_samples=39, num_particles=100)
    assert (found.table["p_value"] > 0.01).all()
    assert found.table.loc[0.8, "coverage"] == pytest.approx(0.8, abs=4 * np.sqrt(0.8 * 0.2 / 2000))
    assert found.table.loc[0.8, "standard_error"] == pytest.approx(np.sqrt(0.8 * 0.2 / 2000))
    assert scipy.stats.kstest(found.pit, "uniform").pvalue > 0.01
    assert found.p_value > 0.01


def test_a_rough_guide_does_not_spoil_the_coverage_of_a_right_model():
    lg = LinearGaussian()
    found = predictive_coverage(linear_pair(lg, shrink=1.4, shift=0.2), lg.draw(800), num_samples=39)
    assert found.p_value > 0.01


def test_coverage_is_the_closed_form_where_the_data_are_wider_than_the_model():
    lg = LinearGaussian()
    x = lg.loc + 2 * (lg.draw(3000) - lg.loc)
    found = predictive_coverage(linear_pair(lg), x, [0.5, 0.9], kind="prior", num_samples=199)
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
        predictive_coverage(linear_pair(lg), x, [0.5], num_samples=39, num_particles=100).table["coverage"].item()
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
    pair, x = linear_pair(lg, shrink=2.0, shift=0.5), lg.draw(3000)
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
    pair = linear_pair(lg)
    held = Pair(pair.model, pair.guide, transform=standardize, missing="nan")
    found = predictive_coverage(held, x, num_samples=39)
    assert len(found.pit) == int(((~x.isnan()).sum(1) > 1).sum())
    assert found.p_value > 0.01
    assert predictive_coverage(held, x, kind="prior", num_samples=39).p_value > 0.01


def test_what_does_not_suit_is_said_in_a_sentence():
    pair = labelled_pair()
    with pytest.raises(
        ValueError, match="the model takes no keyword argument 'mask': give it one, or use kind='prior'"
    ):
        predictive_coverage(pair, torch.randn(50), labels=torch.zeros(50, dtype=torch.long))
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
    with pytest.raises(ValueError, match=r"found 0; a single observed entry .* use kind='prior'"):
        predictive_coverage(mlp_vae((1,), 1, likelihood=Normal()), torch.randn(50, 1))
    with pytest.raises(ValueError, match="num_simulations must be at least 20"):
        simulation_based_calibration(vae, 10)


def test_figures_show_each_histogram_with_its_band():
    lg = LinearGaussian()
    found = simulation_based_calibration(linear_pair(lg, shrink=0.5), 500, 19)
    figure = plot_simulation_based_calibration(found)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().split(",")[0] for axes in panels] == list(found.table.index)
    counts, band, _ = panels[0].patches
    assert (counts.get_data().values == np.bincount(found.ranks["z[0]"], minlength=20)).all()
    tail = 0.01 / 20 / 2
    assert band.get_data().values == pytest.approx(scipy.stats.binom.ppf(1 - tail, 500, 1 / 20))
    coverage = predictive_coverage(linear_pair(lg), lg.draw(200), num_samples=19)
    _, right = plot_coverage(coverage).axes
    assert right.patches[0].get_data().values.sum() == 200
