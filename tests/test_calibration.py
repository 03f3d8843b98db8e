"""Simulation-based calibration: uniform ranks where the closed form says so, and flags where it does not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from exact_guides import (
    LOCAL,
    conditional,
    half_observed,
    other_names,
    sequences,
    two_levels,
    two_observed,
    words,
    wrong,
)
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import plot_simulation_based_calibration, simulation_based_calibration
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Normal


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
    found = simulation_based_calibration(LinearGaussian().partial_pair(shrink=shrink), 2000, 19)
    of_share = np.arcsin(1 / (1 + shrink**2)) / (2 * np.pi)
    of_rank = 19**2 * of_share + 19 * (0.25 - of_share)
    for name in ("z[0]", "z[1]"):
        assert found.table.loc[name, "adjusted_p_value"] < 1e-6
        assert found.table.loc[name, "spread"] == pytest.approx(np.sqrt(of_rank / ((20**2 - 1) / 12)), rel=0.04)


def test_a_shifted_guide_is_flagged_by_the_mean_rank_it_must_have():
    lg = LinearGaussian()
    sd = float(lg.posterior(lg.draw(1)).covariance_matrix[0, 0, 0].sqrt())
    table = simulation_based_calibration(lg.partial_pair(shift=-0.3), 2000, 19).table
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
    pair = LinearGaussian().partial_pair(shrink=0.5)
    quantities = {"first": lambda z: z[:, 0], "both": lambda z: -z, "square": lambda z: z.square().sum(-1)}
    found = simulation_based_calibration(pair, 300, 19, quantities)
    assert (found.ranks["first"] == found.ranks["z[0]"]).all()
    assert (found.ranks["both[1]"] == 19 - found.ranks["z[1]"]).all()
    assert len(found.table) == 7
    with pytest.raises(ValueError, match=r"'one' has shape \(\) for 300 rows; it must return one number"):
        simulation_based_calibration(pair, 300, 19, {"one": lambda z: z.sum()})
    with pytest.raises(ValueError, match="a quantity 'z' exists already"):
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
    given = {"labels": labels}
    found = simulation_based_calibration(Pair(pair.model, guide), 600, 19, given=given, chunk_size=250)
    assert found.p_value > 0.02
    assert torch.equal(state, torch.get_rng_state())
    swapped = simulation_based_calibration(Pair(pair.model, lambda x, labels: guide(x, 1 - labels)), 600, given=given)
    assert swapped.p_value < 1e-6
    with pytest.raises(ValueError, match=r"given\['labels'\] has 600 rows: give one for each of the 500"):
        simulation_based_calibration(pair, 500, given=given)
    with pytest.raises(TypeError, match="neither program takes 'label': did you mean 'labels'"):
        simulation_based_calibration(pair, 600, given={"label": labels})


def test_with_a_mask_the_posterior_is_that_given_the_observed_entries():
    lg = LinearGaussian()
    mask = torch.rand(1000, 5) < 0.5
    assert simulation_based_calibration(lg.partial_pair(), 1000, 19, given={"mask": mask}).p_value > 0.02
    careless = Pair(lg.vae.model, lambda x, mask: lg.partial_pair().guide(x))
    assert simulation_based_calibration(careless, 1000, 19, given={"mask": mask}).p_value < 1e-6


def test_global_latents_and_broken_contracts_are_refused_in_a_sentence():
    with pytest.raises(ContractError, match=r"'mean' lies outside .* rows drawn from the model are not"):
        simulation_based_calibration(function_pair())
    with pytest.raises(ContractError, match="does not sample the model's latent 'z'"):
        simulation_based_calibration(Pair(discrete_pair().model, lambda x: None))


def test_a_model_whose_draws_are_not_what_it_describes_is_refused():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.factor("positive", -((z < 0) * 100.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ContractError, match="site 'positive' is a factor even when it runs without data"):
        simulation_based_calibration(Pair(model, guide))


@pytest.mark.parametrize("make", LOCAL, ids=lambda make: make.__name__)
def test_exact_guides_of_programs_that_are_not_ours_have_uniform_ranks(make):
    """Over ten runs together, for one alone fails at its level."""
    exact = make()
    found = [
        simulation_based_calibration(exact.pair, 120, 9, given=exact.simulate(120), seed=seed) for seed in range(10)
    ]
    names = {name.split("[")[0] for name in found[0].table.index} - {"log p(x|z)"}
    assert names == set(exact.posterior)
    for name in found[0].ranks:
        ranks = np.concatenate([f.ranks[name] for f in found])
        assert scipy.stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-3, name


@pytest.mark.parametrize("make", [two_observed, other_names, two_levels, words, sequences, conditional])
def test_guides_of_half_the_width_are_told(make):
    exact = make()
    found = simulation_based_calibration(wrong(exact), 600, 19, given=exact.simulate(600))
    assert found.p_value < 1e-4
    assert found.table["spread"].drop("log p(x|z)").max() > 1.2


@pytest.mark.parametrize("make", [two_observed, other_names])
def test_values_given_for_an_observed_site_are_not_used(make):
    """They come from elsewhere than the model's draws, so that with them an exact guide would look wrong."""
    pair = make().pair
    argument = {"two_observed": "y", "other_names": "targets"}[make.__name__]
    found = simulation_based_calibration(pair, 300, 19, given={argument: 5 + torch.randn(300)})
    without = simulation_based_calibration(pair, 300, 19)
    assert found.p_value > 0.01
    assert (found.ranks["log p(x|z)"] == without.ranks["log p(x|z)"]).all()


def test_a_guide_that_passes_over_an_observed_site_is_told():
    pair = two_observed().pair

    def careless(x, *, y):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.8 * x, 0.2**0.5))  # the posterior given x alone

    found = simulation_based_calibration(Pair(pair.model, careless), 600, 19)
    assert found.table.loc["z", "p_value"] > 1e-3  # which is the posterior of the wrong data, on average right
    assert found.table.loc["log p(x|z)", "adjusted_p_value"] < 1e-6


def test_without_masks_every_entry_is_observed():
    assert simulation_based_calibration(half_observed().pair, 300, 19).p_value > 0.01


def test_rows_at_which_a_latent_is_masked_have_no_rank_there():
    exact = sequences()
    found = simulation_based_calibration(exact.pair, 300, 19, given=exact.simulate(300))
    assert {name: len(ranks) for name, ranks in found.ranks.items()} == {
        "z_0": 300,
        "z_1": 200,
        "z_2": 100,
        "log p(x|z)": 300,
    }
    few = simulation_based_calibration(exact.pair, 60, 9, given={"lengths": 1 + (torch.arange(60) < 10).long()})
    assert list(few.ranks) == ["z_0", "log p(x|z)"]  # ten ranks make no histogram, and none is none


def test_masks_that_are_given_count_where_there_are_data():
    """A mask of steps, of another shape than x, masks latents and likelihood; a run without data knows none."""

    def parts(mask, num):
        return torch.ones(num, 2, dtype=torch.bool) if mask is None else mask

    def model(x=None, *, mask=None, batch_size=None):
        num = batch_size if x is None else len(x)
        there = parts(mask, num)
        with pyro.plate("data", num, dim=-1):
            steps = []
            for step in range(2):
                with pyro.poutine.mask(mask=there[:, step]):
                    steps.append(pyro.sample(f"z_{step}", dist.Normal(torch.zeros(()), 1.0)))
            p_x = dist.Normal(torch.stack(steps, -1)[..., None], 0.5).expand([num, 2, 3])
            return pyro.sample("x", p_x.mask(there[..., None]).to_event(2), obs=x)

    def guide(x, *, mask):
        loc = torch.where(mask, 4 * x.sum(-1) / 13, 50.0)
        with pyro.plate("data", len(x), dim=-1):
            for step in range(2):
                with pyro.poutine.mask(mask=mask[:, step]):
                    pyro.sample(f"z_{step}", dist.Normal(loc[:, step], 13**-0.5))

    mask = torch.tensor([[True, True], [True, False]]).repeat(150, 1)
    found = simulation_based_calibration(Pair(model, guide), 300, 19, given={"mask": mask})
    assert [len(ranks) for ranks in found.ranks.values()] == [300, 150, 300]
    assert found.p_value > 0.01


def test_a_site_that_is_there_only_when_it_is_given_cannot_be_simulated():
    def model(x=None, *, y=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            if y is not None:
                pyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    pair = Pair(model, two_observed().pair.guide)
    with pytest.raises(ContractError, match="the model has no site 'y' without the argument 'y'"):
        simulation_based_calibration(pair, 100, 9, given={"y": torch.randn(100)})


def test_a_latent_that_the_programs_can_be_given_is_a_latent_until_it_is():
    """The semi-supervised case: the guide samples the label unless it comes with the row."""
    locs = torch.tensor([-1.5, 1.5])

    def logits(x):
        return dist.Normal(locs, 1.0).log_prob(x[:, None])

    def model(x=None, *, label=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            label = pyro.sample("label", dist.Categorical(torch.tensor([0.5, 0.5])), obs=label)
            z = pyro.sample("z", dist.Normal(locs[label], 0.6))
            return pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x, *, label=None):
        with pyro.plate("data", len(x), dim=-1):
            if label is None:
                label = pyro.sample("label", dist.Categorical(logits=logits(x)))
            pyro.sample("z", dist.Normal(0.36 * x + 0.64 * locs[label], 0.48))

    pair = Pair(model, guide)
    unlabelled = simulation_based_calibration(pair, 600, 19)
    labelled = simulation_based_calibration(pair, 600, 19, given={"label": torch.zeros(600, dtype=torch.long)})
    assert list(unlabelled.ranks) == ["label", "z", "log p(x|z)"]
    assert list(labelled.ranks) == ["z", "log p(x|z)"]
    assert min(unlabelled.p_value, labelled.p_value) > 0.01


def test_an_argument_that_is_the_same_for_all_rows_is_given_to_every_chunk():
    exact = conditional()
    found = simulation_based_calibration(exact.pair, 250, 9, given=exact.simulate(250), chunk_size=60)
    assert found.p_value > 0.01
    with pytest.raises(ContractError, match="does not take the contract's arguments"):
        simulation_based_calibration(exact.pair, 100, 9, given={"labels": torch.zeros(100, dtype=torch.long)})


def test_what_does_not_fit_is_said_in_a_sentence():
    vae = mlp_vae((3,), 1, likelihood=Normal())
    with pytest.raises(ValueError, match="num_simulations must be at least 20"):
        simulation_based_calibration(vae, 10)
    with pytest.raises(ValueError, match="num_draws and chunk_size must be at least 1, found 0 and 1024"):
        simulation_based_calibration(vae, 100, 0)


def test_figures_show_each_histogram_with_its_band():
    lg = LinearGaussian()
    found = simulation_based_calibration(lg.partial_pair(shrink=0.5), 500, 19)
    figure = plot_simulation_based_calibration(found)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().split(",")[0] for axes in panels] == list(found.table.index)
    counts, band, _ = panels[0].patches
    assert (counts.get_data().values == np.bincount(found.ranks["z[0]"], minlength=20)).all()
    tail = 0.01 / 20 / 2
    assert band.get_data().values == pytest.approx(scipy.stats.binom.ppf(1 - tail, 500, 1 / 20))
