"""Calibration: uniform ranks and nominal coverage where the closed form says so, and flags where it does not."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from linear_gaussian import LinearGaussian

from pyro_vae import Pair
from pyro_vae.evaluation import (
    simulation_based_calibration,
)


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
    found = [simulation_based_calibration(pair, 200, 9, seed=seed) for seed in range(100)]
    each = [p for f in found for p in f.table.loc[["z[0]"], "p_value"]]
    assert scipy.stats.kstest(each, "uniform").pvalue > 0.01
    assert np.mean([f.p_value < 0.1 for f in found]) < 0.1 + 3 * 0.03


@pytest.mark.parametrize(
    ("wrong", "column", "expected"),
    [({"shrink": 0.5}, "spread", 1.3), ({"shrink": 2.0}, "spread", 0.65), ({"shift": -0.3}, "mean_rank", 0.6)],
    ids=["half the scale", "twice the scale", "shifted down"],
)
def test_a_wrong_guide_is_flagged_and_the_table_says_how(wrong, column, expected):
    found = simulation_based_calibration(linear_pair(LinearGaussian(), **wrong), 600, 19)
    assert found.table.loc["z[0]", "adjusted_p_value"] < 1e-4
    assert (found.table.loc["z[0]", column] - expected) * (1 if expected > 1 or column == "mean_rank" else -1) > 0


def test_a_guide_that_returns_the_prior_is_told_by_the_likelihood_alone():
    lg = LinearGaussian()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    table = simulation_based_calibration(Pair(lg.vae.model, guide), 500, 19).table
    assert table.loc[["z[0]", "z[1]"], "p_value"].min() > 0.01
    assert table.loc["log p(x|z)", "adjusted_p_value"] < 1e-6
