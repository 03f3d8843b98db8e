"""The numbers of evaluate against closed forms."""

import math

import pytest
import torch
from linear_gaussian import LinearGaussian, resident
from pairs import function_pair

from pyro_vae import evaluate, fit, mlp_vae
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.transforms import Binarize, Scale, Standardize


def test_rate_and_distortion_estimate_their_closed_forms():
    lg = LinearGaussian()
    x = lg.draw(20_000)
    metrics = evaluate(lg.vae, x)
    q_z = lg.vae.encode(x)
    p_z = torch.distributions.Normal(0.0, 1.0)
    rate = torch.distributions.kl_divergence(torch.distributions.Normal(q_z.mean, q_z.stddev), p_z).sum(-1).mean()
    squared = (x - lg.loc - q_z.mean @ lg.weight.T).square().sum(-1) + (q_z.variance @ lg.weight.square().T).sum(-1)
    distortion = (0.5 * squared / lg.scale**2).mean() + 5 * math.log(lg.scale * math.sqrt(2 * math.pi))
    assert abs(metrics["rate"] - rate) < 5 * metrics["rate_se"]
    assert abs(metrics["distortion"] - distortion) < 5 * metrics["distortion_se"]
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])
    assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / (5 * math.log(2)))
    assert metrics["bits_per_dim_se"] == pytest.approx(metrics["elbo_se"] / (5 * math.log(2)))
    assert metrics["num_rows"] == 20_000


def test_standard_errors_are_the_spread_of_the_mean():
    lg = LinearGaussian()
    means = [evaluate(lg.vae, lg.draw(500), seed=seed)["elbo"] for seed in range(200)]
    claimed = evaluate(lg.vae, lg.draw(500))["elbo_se"]
    assert claimed == pytest.approx(float(torch.tensor(means).std()), rel=0.3)


def test_active_units_counts_the_latents_that_vary_with_the_data():
    lg = LinearGaussian(latent_dim=4)
    layer = lg.vae.encoder.network.layers[0]
    x = torch.randn(3000, 5)
    with torch.no_grad():
        layer.weight.zero_()
        for latent, sd in enumerate((1.0, 0.15, 0.05, 0.0)):  # variances 1, 0.0225, 0.0025 and 0
            layer.weight[latent, latent] = sd
    assert evaluate(lg.vae, x)["active_units"] == 2


@pytest.mark.parametrize("factor", [255.0, 0.01])
def test_scaling_the_data_by_a_changes_the_evidence_by_d_log_a(float64, factor):
    x = torch.rand(40, 6)
    vaes = []
    for high in (1.0, factor):
        torch.manual_seed(0)
        vaes.append(mlp_vae((6,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, high)).double())
    elbos = [evaluate(vae, x * high)["elbo"] for vae, high in zip(vaes, (1.0, factor), strict=True)]
    assert elbos[1] == pytest.approx(elbos[0] - 6 * math.log(factor), rel=1e-10)


def test_standardising_is_undone_in_the_evidence(float64):
    """A model of standardised data is a model of the data: its density integrates to one there."""
    x = torch.randn(500, 1) * 30 + 7
    vae = mlp_vae((1,), 1, hidden_dims=(), likelihood=Normal(scale=1.0), transform=Standardize((1,)).fit(x)).double()
    affine = vae.decoder.network.layers[0]
    for p in affine.parameters():
        torch.nn.init.zeros_(p)
    reconstruction, _ = elbo_per_row(vae, resident(x))
    truth = torch.distributions.Normal(x.mean(), x.std(correction=0)).log_prob(x[:, 0])
    torch.testing.assert_close(reconstruction, truth, rtol=1e-9, atol=1e-9)


def test_history_and_evaluate_speak_of_the_same_units():
    x = torch.randint(0, 256, (64, 6), dtype=torch.uint8)
    vae = mlp_vae((6,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, 255))
    history = fit(vae, x, validation_data=x, epochs=2, batch_size=16, progress=False)
    assert evaluate(vae, x)["elbo"] == pytest.approx(history["validation_elbo"].max(), rel=1e-6)
    assert history["elbo"].iloc[-1] == pytest.approx(history["validation_elbo"].iloc[-1], abs=1.5)


def test_binary_evidence_is_a_probability_and_has_no_jacobian():
    x = torch.randint(0, 2, (30, 4)) * 255
    vae = mlp_vae((4,), 2, likelihood=Bernoulli(), transform=Binarize(0, 255))
    plain = mlp_vae((4,), 2, likelihood=Bernoulli())
    plain.load_state_dict(vae.state_dict())
    assert evaluate(vae, x)["elbo"] < 0
    assert evaluate(vae, x)["elbo"] == pytest.approx(evaluate(plain, x // 255)["elbo"], abs=0.5)


def test_the_result_does_not_depend_on_the_callers_random_state_nor_change_it():
    lg = LinearGaussian()
    x = lg.draw(50)
    first = evaluate(lg.vae, x)
    torch.rand(3)
    state = torch.get_rng_state()
    assert evaluate(lg.vae, x) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(lg.vae, x, seed=1)["elbo"] != first["elbo"]


def test_any_pair_is_evaluated():
    pair = function_pair()
    metrics = evaluate(pair, torch.randn(200))
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])


def test_one_row_has_no_standard_error():
    lg = LinearGaussian()
    assert "elbo_se" not in evaluate(lg.vae, lg.draw(1))
