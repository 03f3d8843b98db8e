"""Joint calibration: its level on exact guides over many seeds, and its power where each latent's ranks see nothing."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from exact_guides import (
    closures,
    components_alone,
    conditional,
    guide_enumerates,
    half_observed,
    mixture,
    sequences,
    shared_mean,
    two_levels,
    two_observed,
    words,
)
from linear_gaussian import LinearGaussian

from pyro_vae import Pair
from pyro_vae.evaluation import calibration_at_rows, joint_calibration, simulation_based_calibration
from pyro_vae.evaluation.joint_ranks import DISTANCE, LOG_WEIGHT
from pyro_vae.inference.structure import ContractError


def correlated(*, guessed: float, scale: float = 1.0) -> Pair:
    """x is the sum of two standard normal latents and noise: given it, they are correlated by −0.8.

    With a scale of 1 the guide's marginals are exact, whatever it guesses of the correlation.
    """

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(x):
        variance = 1 - 1 / 2.25
        covariance = scale**2 * variance * torch.tensor([[1.0, guessed], [guessed, 1.0]])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(x[:, None].expand(-1, 2) / 2.25, covariance))

    return Pair(model, guide)


TRUE = -(1 / 2.25) / (1 - 1 / 2.25)


@pytest.mark.parametrize(
    "make",
    [two_observed, two_levels, mixture, guide_enumerates, words, closures, sequences, conditional, half_observed],
    ids=lambda make: make.__name__,
)
def test_ranks_of_exact_guides_are_uniform_over_seeds(make):
    exact = make()
    found = [joint_calibration(exact.pair, 120, 9, given=exact.simulate(120), seed=seed) for seed in range(8)]
    for name in (LOG_WEIGHT, DISTANCE):
        ranks = np.concatenate([f.ranks[name] for f in found])
        assert scipy.stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-3, name


def test_the_p_value_has_its_level():
    """Of 60 runs on an exact guide at most 3 are below 0.05 on average: not more than 8."""
    pair = correlated(guessed=TRUE)
    p_values = np.array([joint_calibration(pair, 60, 9, seed=seed).p_value for seed in range(60)])
    assert (p_values < 0.05).sum() <= 8
    assert (p_values < 0.5).sum() >= 12  # and it is not idle


def test_a_guide_wrong_in_correlation_alone_is_told_where_ranks_of_latents_see_nothing():
    pair = correlated(guessed=0.0)
    alone = simulation_based_calibration(pair, 400, 19).table.loc[["z[0]", "z[1]"], "p_value"]
    assert alone.min() > 0.01
    found = joint_calibration(pair, 400, 19)
    assert found.table.loc[LOG_WEIGHT, "p_value"] < 1e-12
    # The share of pairs in which the log-ratio tells them: by brute force, u along and v across the correlation.
    rng = np.random.default_rng(0)
    spread = np.sqrt([1 + TRUE, 1 - TRUE])
    ratio = lambda uv: (0.5 * uv**2 * (1 - 1 / spread**2)).sum(-1)  # noqa: E731
    real, guessed = ratio(rng.standard_normal((200_000, 2)) * spread), ratio(rng.standard_normal((200_000, 2)))
    assert found.table.loc[LOG_WEIGHT, "mean_rank"] == pytest.approx((real > guessed).mean(), abs=0.05)


def test_expected_coverage_is_that_of_random_points_by_its_definition():
    """TARP written again in NumPy for the linear-Gaussian model, with a guide of half the width."""
    lg = LinearGaussian()
    found = joint_calibration(lg.partial_pair(shrink=0.5), 3000, 19, seed=3)
    rng = np.random.default_rng(1)
    weight, num = lg.weight.double().numpy(), 20_000
    precision = np.eye(2) + weight.T @ weight / lg.scale**2
    covariance = np.linalg.inv(precision)
    z = rng.standard_normal((num, 2))
    noise = lg.scale * rng.standard_normal((num, len(weight)))
    centre = (z @ weight.T + noise) @ weight @ covariance / lg.scale**2
    draws = centre + 0.5 * rng.standard_normal((19, num, 2)) @ np.linalg.cholesky(covariance).T
    points = rng.standard_normal((num, 2))
    nearer = (np.linalg.norm(draws - points, axis=-1) < np.linalg.norm(z - points, axis=-1)).sum(0)
    expected = (nearer[:, None] < np.arange(1, 20)).mean(0)
    assert found.coverage.index.to_list() == pytest.approx(np.arange(1, 20) / 20)
    assert found.coverage["coverage"].to_numpy() == pytest.approx(expected, abs=4 * 0.0092)
    assert found.table.loc[DISTANCE, "p_value"] < 1e-6


def test_quantities_may_look_at_the_data_too():
    lg = LinearGaussian()
    quantities = {"with x": lambda z, x: (z * x[:, :2]).sum(-1), "of x": lambda x, **latents: x[:, 0]}
    right = simulation_based_calibration(lg.partial_pair(), 600, 19, quantities)
    assert right.p_value > 0.01
    assert scipy.stats.chisquare(np.bincount(right.ranks["of x"], minlength=20)).pvalue > 1e-3  # ties alone
    prior = Pair(lg.vae.model, lambda x: _prior(x))
    found = simulation_based_calibration(prior, 600, 19, quantities)
    assert found.table.loc[["z[0]", "z[1]"], "p_value"].min() > 0.01  # whose ranks in z alone are uniform
    assert found.table.loc["with x", "p_value"] < 1e-6


def _prior(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))


def test_what_cannot_be_is_said_in_a_sentence():
    with pytest.raises(ValueError, match="num_simulations must be at least 20"):
        joint_calibration(two_observed().pair, 5)
    with pytest.raises(ContractError, match="'mean' lies outside"):
        joint_calibration(shared_mean().pair, 50)
    with pytest.raises(ContractError, match="no continuous latent"):
        calibration_at_rows(components_alone().pair, components_alone().data)
    with pytest.raises(ValueError, match="at least 20 rows"):
        calibration_at_rows(two_observed().pair, {n: v[:5] for n, v in two_observed().data.items()})


@pytest.mark.parametrize("make", [two_levels, mixture, sequences], ids=lambda make: make.__name__)
def test_at_rows_the_ranks_of_exact_guides_are_uniform_with_chains_too_short_to_mix(make):
    exact = make(250)
    settings = {"num_chains": 9, "num_transitions": 1, "num_leapfrog": 2}
    found = [calibration_at_rows(exact.pair, exact.data, seed=seed, **settings) for seed in range(2)]
    for name in found[0].ranks:
        ranks = np.concatenate([f.ranks[name] for f in found])
        assert scipy.stats.chisquare(np.bincount(ranks, minlength=10)).pvalue > 1e-3, name


def test_at_rows_wrong_guides_are_told_and_how_they_are_wrong():
    x = 4.0 + torch.randn(150)  # where the model draws next to nothing
    right, narrow, wide, uncorrelated = (
        calibration_at_rows(correlated(guessed=guessed, scale=scale), x, num_transitions=8)
        for guessed, scale in ((TRUE, 1.0), (TRUE, 0.5), (TRUE, 2.0), (0.0, 1.0))
    )
    assert right.p_value > 0.01
    # Ranks of N(0, s²) among N(0, 1): the spread of the normal's distribution function there.
    for found, scale in ((narrow, 0.5), (wide, 2.0)):
        place = scipy.stats.norm.cdf(scale * scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000))
        assert found.table["spread"].iloc[0] == pytest.approx(place.std() * 12**0.5, abs=0.1)
        assert found.p_value < 1e-6
    assert uncorrelated.table.loc[["z[0]", "z[1]"], "p_value"].min() > 1e-3
    assert uncorrelated.p_value < 1e-6


def test_a_guide_right_on_the_models_rows_and_wrong_at_the_data_is_told_only_there():
    lg = LinearGaussian()
    far = 8.0  # units of the data, where the model draws none

    def guide(x):
        p_z = lg.posterior(x)
        shrink = torch.where((x - lg.loc).abs().amax(-1) > far, 0.4, 1.0)[:, None, None]
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(p_z.mean, scale_tril=shrink * p_z.scale_tril))

    pair = Pair(lg.vae.model, guide)
    x = lg.loc + torch.randn(150, 5) + 12.0
    assert joint_calibration(pair, 300, 19).p_value > 0.01
    assert calibration_at_rows(pair, x, num_transitions=10).p_value < 1e-6
