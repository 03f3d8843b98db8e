"""The rows nearest to a row by brute force, and the effects of latents by a linear decoder."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import labelled_pair, mixture_pair
from torch.distributions import kl_divergence

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import active_latents, evaluate, latent_effects, nearest_rows
from pyro_vae.likelihoods import Normal
from pyro_vae.posteriors import FlowPosterior, FullNormal, LowRankNormal, MixturePosterior


def test_the_nearest_rows_are_those_of_least_divergence():
    torch.manual_seed(0)
    vae, x, others = mlp_vae((4,), 3, likelihood=Normal()), torch.randn(5, 4), torch.randn(30, 4)
    nearest, nats = nearest_rows(vae, x, others, 4)
    for row in range(5):
        q = vae.encode(x[row : row + 1])
        kl = torch.stack([kl_divergence(q, vae.encode(others[i : i + 1]))[0] for i in range(30)])
        expected = kl.argsort()[:4]
        assert nearest[row].tolist() == expected.tolist()
        torch.testing.assert_close(nats[row].float(), kl[expected], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_compared_is_refused():
    x = torch.randn(5, 4)
    with pytest.raises(ValueError, match="from 1 to 5, the number of rows; found 6"):
        nearest_rows(mlp_vae((4,), 3, likelihood=Normal()), x, x, 6)


@pytest.mark.parametrize("posterior", [FullNormal, LowRankNormal], ids=lambda kind: kind.__name__)
def test_nearest_rows_by_draws_are_those_of_the_closed_form(posterior):
    torch.manual_seed(0)
    vae, x, others = mlp_vae((4,), 3, likelihood=Normal(), posterior=posterior()), torch.randn(3, 4), torch.randn(12, 4)
    nearest, nats = nearest_rows(vae, x, others, 12, num_draws=20_000)
    for row in range(3):
        q = vae.encode(x[row : row + 1])
        kl = torch.stack([kl_divergence(q, vae.encode(others[i : i + 1]))[0] for i in range(12)])
        torch.testing.assert_close(nats[row].float(), kl[nearest[row]], rtol=0.03, atol=0.01)


@pytest.mark.parametrize("posterior", [MixturePosterior, FlowPosterior], ids=lambda kind: kind.__name__)
def test_a_row_is_its_own_nearest_under_any_density(posterior):
    torch.manual_seed(0)
    vae, x = mlp_vae((4,), 3, likelihood=Normal(), posterior=posterior()), 3 * torch.randn(8, 4)
    nearest, nats = nearest_rows(vae, x, x, 2)
    assert nearest[:, 0].tolist() == list(range(8))
    assert float(nats[:, 0].abs().max()) < 1e-5
    assert float(nats[:, 1].min()) > 1e-4


@pytest.mark.parametrize(("auxiliary", "kind"), [(True, "Empirical"), (False, "Delta")], ids=["draws", "point"])
def test_posteriors_without_a_density_have_no_nearest(auxiliary, kind):
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            if auxiliary:
                x = pyro.sample("u", dist.Normal(x, 1.0).to_event(1), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(x, event_dim=1))

    with pytest.raises(ValueError, match=f"nearest_rows compares densities of one latent of each row, .* a {kind}"):
        nearest_rows(Pair(model, guide), torch.randn(5, 4), torch.randn(5, 4), 1)


def test_effects_of_a_linear_decoder_are_its_weights():
    torch.manual_seed(0)
    lg = LinearGaussian()
    x = lg.draw(100)
    spread = lg.vae.encode(x).mean.std(0)
    expected = 2 * spread[:, None] * lg.weight.T
    torch.testing.assert_close(latent_effects(lg.vae, x), expected, rtol=1e-4, atol=1e-5)


def test_active_latents_are_those_that_vary_with_the_rows():
    torch.manual_seed(0)
    vae, x = mlp_vae((4,), 3, likelihood=Normal(), hidden_dims=()), torch.randn(200, 4)
    with torch.no_grad():
        vae.encoder.network.layers[0].weight[1] = 0  # the mean of the second latent
    active = active_latents(vae, x)
    means = vae.encode(x).mean
    assert active.tolist() == (means.var(0) > 0.01).tolist()
    assert active.tolist() == [True, False, True]
    assert evaluate(vae, x)["active_units"] == int(active.sum())


def test_effects_under_what_comes_with_the_rows():
    pair = labelled_pair()
    pair.guide.weight.data = torch.ones(2)
    x = torch.randn(50)
    rows = {"x": x, "labels": torch.arange(50) % 2}
    torch.testing.assert_close(latent_effects(pair, rows), (2 * x.std())[None])
    assert active_latents(pair, rows).tolist() == [True]
    mixture = mixture_pair()
    assert latent_effects(mixture, torch.randn(20, 4)).shape == (2, 4)
