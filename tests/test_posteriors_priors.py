"""Posterior families and priors against scipy, and the KL between them against its closed form."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import kl_divergence

from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal

FLOOR = 1e-4


def normal_oracle(raw, floor=FLOOR) -> Any:
    """The first raw parameter is the mean; softplus of the second, above the floor, the standard deviation."""
    return stats.norm(raw[..., 0, :], np.logaddexp(0, raw[..., 1, :]) + floor)


def z_scores(samples, mean, variance):
    """Of the sample mean and the sample variance of normal samples, rows first."""
    of_mean = (samples.mean(0) - mean) / np.sqrt(variance / len(samples))
    of_variance = (samples.var(0, ddof=1) / variance - 1) / np.sqrt(2 / (len(samples) - 1))
    return np.abs([of_mean, of_variance])


@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("latent_dim", [1, 4])
@pytest.mark.usefixtures("float64")
def test_diagonal_normal_log_prob_equals_scipy(batch_shape, latent_dim):
    raw = torch.randn(*batch_shape, 2, latent_dim)
    q_z = DiagonalNormal().for_event((latent_dim,))(raw)
    assert (q_z.batch_shape, q_z.event_shape) == (batch_shape, (latent_dim,))
    z = torch.randn(*batch_shape, latent_dim)
    expected = normal_oracle(raw.numpy()).logpdf(z.numpy()).sum(-1)
    np.testing.assert_allclose(q_z.log_prob(z).numpy(), expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_diagonal_normal_samples_have_its_mean_and_variance():
    raw = torch.randn(3, 2, 4)
    samples = DiagonalNormal()(raw).sample(torch.Size([20_000])).numpy()
    oracle = normal_oracle(raw.numpy())
    assert z_scores(samples, oracle.mean(), oracle.var()).max() < 5


def test_diagonal_normal_samples_carry_gradients_to_mean_and_scale():
    raw = torch.zeros(2, 3, requires_grad=True)
    z = DiagonalNormal()(raw).rsample()
    z.sum().backward()
    # z = loc + scale * noise, and the derivative of softplus at 0 is a half.
    noise = z.detach() / (math.log(2) + FLOOR)
    torch.testing.assert_close(raw.grad, torch.stack([torch.ones(3), noise / 2]))


@pytest.mark.parametrize("min_scale", [1e-4, 0.5])
@pytest.mark.usefixtures("float64")
def test_posterior_scale_never_falls_below_its_floor(min_scale):
    q_z = DiagonalNormal(min_scale)(torch.tensor([[0.0, 0.0], [-1e4, 0.0]]))
    expected = torch.tensor([min_scale, math.log(2) + min_scale])
    torch.testing.assert_close(q_z.variance.sqrt(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("min_scale", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_floor_is_refused(min_scale):
    with pytest.raises(ValueError, match=f"min_scale must be .*found {min_scale}"):
        DiagonalNormal(min_scale)


@pytest.mark.parametrize("loc", [-30.0, 30.0])
@pytest.mark.parametrize("raw_scale", [-30.0, 30.0])
def test_gradients_stay_finite_at_extreme_raw_outputs(loc, raw_scale):
    raw = torch.tensor([[loc], [raw_scale]], requires_grad=True)
    q_z, p_z = DiagonalNormal()(raw), StandardNormal(1)()
    z = q_z.rsample()
    (gradient,) = torch.autograd.grad(q_z.log_prob(z) - p_z.log_prob(z) + q_z.log_prob(torch.zeros(1)), raw)
    assert gradient.isfinite().all()


@pytest.mark.usefixtures("float64")
def test_standard_normal_log_prob_equals_scipy():
    p_z = StandardNormal(5)()
    assert (p_z.batch_shape, p_z.event_shape) == ((), (5,))
    z = 3 * torch.randn(7, 5)
    np.testing.assert_allclose(p_z.log_prob(z).numpy(), stats.norm.logpdf(z.numpy()).sum(-1), rtol=1e-12)


def test_standard_normal_samples_have_mean_zero_and_variance_one():
    samples = StandardNormal(5)().sample(torch.Size([20_000])).double().numpy()
    assert z_scores(samples, np.zeros(5), np.ones(5)).max() < 5


def test_standard_normal_has_nothing_to_learn_or_save_and_follows_the_type_of_its_module():
    prior = StandardNormal(5)
    assert (list(prior.parameters()), prior.state_dict()) == ([], {})
    assert prior.double()().sample().dtype == torch.float64


@pytest.mark.usefixtures("float64")
def test_kl_is_the_closed_form_and_the_mean_of_log_ratios():
    raw, num_samples = torch.randn(3, 2, 4), 20_000
    q_z, p_z = DiagonalNormal()(raw), StandardNormal(4)()
    kl = kl_divergence(q_z, p_z)
    oracle = normal_oracle(raw.numpy())
    by_hand = 0.5 * (oracle.var() + oracle.mean() ** 2 - 1 - np.log(oracle.var())).sum(-1)
    np.testing.assert_allclose(kl.numpy(), by_hand, rtol=1e-10)
    z = q_z.sample(torch.Size([num_samples]))
    log_ratios = q_z.log_prob(z) - p_z.log_prob(z)
    z_score = (log_ratios.mean(0) - kl) / (log_ratios.std(0) / math.sqrt(num_samples))
    assert z_score.abs().max() < 5
