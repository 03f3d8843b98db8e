"""The linear-Gaussian VAE against its closed forms: the oracle that everything else is held to."""

import pytest
import torch
from linear_gaussian import LinearGaussian, maximum_log_evidence, resident

from pyro_vae import evaluate, fit, mlp_vae
from pyro_vae.likelihoods import Normal
from pyro_vae.training.elbo import elbo_per_row

pytestmark = pytest.mark.usefixtures("float64")


def test_with_the_exact_posterior_the_elbo_is_the_evidence_with_zero_variance():
    lg = LinearGaussian()
    x = lg.draw(50)
    for seed in range(3):
        reconstruction, kl = elbo_per_row(lg.exact_pair(), resident(x), seed=seed)
        torch.testing.assert_close(reconstruction - kl, lg.log_evidence(x), rtol=0, atol=1e-8)


def test_an_untrained_encoder_loses_exactly_its_kl_to_the_posterior():
    lg = LinearGaussian()
    x = lg.draw(400)
    q_z = lg.vae.encode(x)
    gap = torch.distributions.kl_divergence(
        torch.distributions.MultivariateNormal(q_z.mean, torch.diag_embed(q_z.variance)), lg.posterior(x)
    )
    elbos = torch.stack([torch.sub(*elbo_per_row(lg.vae, resident(x), seed=seed)) for seed in range(50)])
    z_scores = (elbos.mean(0) - lg.log_evidence(x) + gap).mean() / (elbos.mean(1).std() / 50**0.5)
    assert abs(z_scores) < 4


def test_training_comes_within_one_percent_of_the_maximum_likelihood_evidence():
    truth = LinearGaussian(data_dim=6, latent_dim=2, scale=0.5)
    x = truth.draw(2000)
    vae = mlp_vae((6,), 2, hidden_dims=(), likelihood=Normal(scale="shared")).double()
    fit(vae, x, epochs=40, batch_size=100, learning_rate=2e-2, progress=False)
    best = maximum_log_evidence(x, 2)

    model = LinearGaussian(data_dim=6, latent_dim=2, scale=float(vae.decode(torch.zeros(1, 2)).stddev[0, 0]))
    affine = vae.decoder.network.layers[0]
    covariance = affine.weight @ affine.weight.T + model.scale**2 * torch.eye(6)
    evidence = torch.distributions.MultivariateNormal(affine.bias, covariance).log_prob(x).mean().item()
    elbo = evaluate(vae, x)["elbo"]
    assert best - 0.01 * abs(best) <= evidence <= best
    assert best - 0.01 * abs(best) <= elbo
