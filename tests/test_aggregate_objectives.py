"""Objectives of the aggregate posterior, against sums written out."""

import math

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import stats
from zoo import ZOO

from pyro_vae import Elbo, ImportanceWeighted, InfoVae, Pair, Renyi, TotalCorrelation, fit, mlp_vae
from pyro_vae.inference.aggregate import squared_discrepancy, total_correlation
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.posteriors import FullNormal


def vae_and_draws(num_rows=6, of=24):
    torch.manual_seed(0)
    vae = mlp_vae((4,), 3, hidden_dims=(5,), likelihood=Normal())
    x = torch.randn(num_rows, 4)
    batch = vae.prepare({"x": x})
    draws = run_pair(*vae.programs, batch, vae.structure(batch), num_particles=None, num_rows=of)
    return vae, x, draws


@pytest.mark.usefixtures("float64")
def test_the_total_correlation_is_the_papers_sum():
    vae, x, draws = vae_and_draws()
    with torch.no_grad():
        z, q = draws.latents["z"].numpy(), vae.encode(x)
        loc, scale = q.mean.numpy(), q.stddev.numpy()
        found = total_correlation(draws).numpy()
    for i in range(6):
        densities = stats.norm(loc, scale).pdf(z[i])  # of every row's posterior, at each latent
        joint = densities.prod(-1).sum() / (24 * 6)
        each = densities.sum(0) / (24 * 6)
        assert found[i] == pytest.approx(math.log(joint) - np.log(each).sum(), rel=1e-9)
    both = [objective(draws, torch.ones(())) for objective in (TotalCorrelation(1.0), Elbo())]
    torch.testing.assert_close(*both)
    torch.testing.assert_close(TotalCorrelation(3.0)(draws, torch.ones(())), both[0] - 2 * torch.as_tensor(found))


@pytest.mark.usefixtures("float64")
def test_the_discrepancy_is_the_sum_over_pairs_and_tells_distributions_apart():
    torch.manual_seed(0)
    a, b = torch.randn(7, 2), torch.randn(7, 2) + 1
    total = 0.0
    for i in range(7):
        for j in range(7):
            within = 0 if i == j else sum(float((-(v[i] - v[j]).square().sum() / 4).exp()) for v in (a, b)) / 42
            total += within - 2 * float((-(a[i] - b[j]).square().sum() / 4).exp()) / 49
    assert float(squared_discrepancy(a, b)) == pytest.approx(total, rel=1e-12)
    same = [float(squared_discrepancy(torch.randn(50, 2), torch.randn(50, 2))) for _ in range(200)]
    assert abs(np.mean(same)) < 5 * np.std(same) / math.sqrt(200)
    # Of N(0, I) and N(m, I) in closed form, by E exp(-|u|²/4) with u ~ N(m, 2 I): (1/2) exp(-|m|²/8) in two dimensions.
    apart = [float(squared_discrepancy(torch.randn(50, 2), torch.randn(50, 2) + 1)) for _ in range(400)]
    expected = 2 * 0.5 - 2 * 0.5 * math.exp(-2 / 8)
    assert np.mean(apart) == pytest.approx(expected, abs=5 * np.std(apart) / 20)


def test_info_vae_draws_the_prior_and_weighs_the_kl():
    _, _, draws = vae_and_draws()
    torch.manual_seed(1)
    without = InfoVae(10.0)(draws, torch.ones(()))
    torch.manual_seed(1)
    noise = torch.randn(6, 3)
    expected = draws.reconstruction[0] - 10 * squared_discrepancy(draws.latents["z"], noise)
    torch.testing.assert_close(without, expected)
    torch.manual_seed(1)
    torch.testing.assert_close(InfoVae(10.0, 0.5)(draws, torch.ones(())), expected - 0.5 * draws.rate[0])


@pytest.mark.parametrize(
    "objective",
    [
        TotalCorrelation(4.0),  # compiled by default, the others run as they are traced
        pytest.param(InfoVae(50.0), marks=pytest.mark.exhaustive),  # the same graph but for a factor
        InfoVae(50.0, 0.5),
    ],
    ids=str,
)
def test_training_goes_up_compiled_and_as_programs_alike(objective, request):
    if not isinstance(objective, TotalCorrelation):
        request.getfixturevalue("compiled_if_exhaustive")
    torch.manual_seed(1)
    x, histories = (torch.rand(150, 1) + 0.5 * torch.rand(150, 12) > 0.75).float(), []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        vae = mlp_vae((12,), 3, hidden_dims=(16,), activation="Softplus", likelihood=Bernoulli())
        options = {"epochs": 5, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
        histories.append(fit(vae, x, objective=objective, compile=compile, **options))
    eager, compiled = histories
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["objective"].tolist() == pytest.approx(eager["objective"].tolist(), rel=1e-4)
    assert eager["objective"].iloc[-1] > eager["objective"].iloc[0]


def test_what_has_no_such_latent_is_refused():
    x = torch.rand(40, 4)
    vae = mlp_vae((4,), 3, hidden_dims=(5,), likelihood=Normal(), posterior=FullNormal())
    with pytest.raises(ValueError, match="independent given the row, and 'z' is drawn from a MultivariateNormal"):
        fit(vae, x, objective=TotalCorrelation(), epochs=1, progress=False)
    for objective in (TotalCorrelation(), InfoVae()):
        programs = ZOO["ladder"].build()
        with pytest.raises(ValueError, match="one latent vector for each row"):
            fit(Pair(programs.model, programs.guide), ZOO["ladder"].rows(), objective=objective, progress=False)


@pytest.mark.parametrize(
    "objective", [TotalCorrelation(), InfoVae(), ImportanceWeighted(2, doubly_reparameterized=True)]
)
def test_a_scaled_latent_is_refused_and_one_row_too(objective):
    """Its density would be weighed once by the scale and once without."""
    vae = mlp_vae((4,), 3, hidden_dims=(5,), likelihood=Normal())
    pair = Pair(poutine.scale(vae.model, 2.0), poutine.scale(vae.guide, 2.0))
    with pytest.raises(ValueError, match="without a mask and a scale, and 'z' has one"):
        fit(pair, torch.randn(40, 4), objective=objective, epochs=1, progress=False)
    if isinstance(objective, InfoVae):
        with pytest.raises(ValueError, match="use larger batches"):
            fit(vae, torch.randn(4, 4), objective=objective, epochs=1, batch_size=1, progress=False)


@pytest.mark.parametrize("objective", [TotalCorrelation(1.0), Renyi(1, 1.0), Renyi(1, 0.0)], ids=str)
def test_what_the_guide_adds_counts_as_with_the_elbo(objective):
    """A factor in the guide, as that of a commitment."""
    vae = mlp_vae((4,), 3, hidden_dims=(5,), likelihood=Normal())

    def guide(x):
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", vae.encoder(x))
            pyro.factor("commitment", x.square().sum(-1), has_rsample=True)

    pair, x = Pair(vae.model, guide), torch.randn(6, 4)
    batch = pair.prepare({"x": x})
    draws = run_pair(*pair.programs, batch, pair.structure(batch), num_particles=None, num_rows=6)
    torch.testing.assert_close(objective(draws, torch.ones(())), Elbo()(draws, torch.ones(())))
    assert not torch.allclose(objective(draws, torch.ones(())), draws.elbo[0])


@pytest.mark.parametrize(
    "make", [lambda: TotalCorrelation(math.nan), lambda: InfoVae(-1.0), lambda: InfoVae(1.0, math.inf)]
)
def test_mistakes_are_sentences(make):
    with pytest.raises(ValueError, match="finite"):
        make()
