"""Draws as ArviZ takes them: held to the closed form, in the user's units, with summaries and loo on top."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_guides import EXACT, conditional, half_observed, mixture, two_observed, words
from linear_gaussian import LinearGaussian
from pairs import function_pair, labelled_pair

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import to_inference_data
from pyro_vae.evaluation.arviz_versions import import_arviz
from pyro_vae.likelihoods import Bernoulli, Poisson
from pyro_vae.transforms import Binarize, Standardize

arviz = import_arviz()  # bare, it gives notice of its next version once a day, which is an error here


VERSION_1 = not arviz.__version__.startswith("0.")


def groups(data):
    """Names of the groups, in their order, of an InferenceData or a DataTree."""
    return [path.strip("/") for path in data.groups if path != "/"] if VERSION_1 else list(data.groups())


def standardised(lg, **wanted):
    """The exact pair for rows in units a thousand times as small."""
    transform = Standardize((5,)).fit(torch.randn(200, 5) * 1000 + 5000)
    pair = lg.exact_pair()
    return Pair(pair.model, pair.guide, transform=transform, **wanted)


def test_every_group_has_the_moments_of_the_closed_form_in_the_users_units():
    lg = LinearGaussian()
    pair = standardised(lg)
    y = lg.draw(4)
    x = pair.transform.inverse(y)
    data = to_inference_data(pair, x, num_samples=400)
    assert set(groups(data)) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    q = lg.posterior(y)

    def agrees(drawn, mean, variance):
        drawn = drawn.to_numpy()[0]  # (draws, rows, elements)
        sd = np.sqrt(np.broadcast_to(variance, drawn.shape[1:]))
        assert np.abs(drawn.mean(0) - np.asarray(mean)).max() < 4.5 * sd.max() / 20
        assert drawn.std(0) == pytest.approx(sd, rel=0.18)

    agrees(data.posterior["z"], q.mean, q.variance)
    agrees(data.prior["z"], np.zeros(2), np.ones(2))
    scale = (pair.transform.inverse(torch.ones(5)) - pair.transform.inverse(torch.zeros(5))).numpy()
    agrees(
        data.prior_predictive["x"],
        pair.transform.inverse(lg.loc),
        lg.covariance.diagonal().numpy() * scale**2,
    )
    around = (lg.weight @ q.covariance_matrix @ lg.weight.T).diagonal(dim1=-2, dim2=-1) + lg.scale**2
    agrees(
        data.posterior_predictive["x"],
        pair.transform.inverse(lg.loc + q.mean @ lg.weight.T),
        around.numpy() * scale**2,
    )
    assert data.observed_data["x"].to_numpy() == pytest.approx(x.numpy(), rel=1e-6)


def test_the_log_likelihood_is_that_of_the_draws_beside_it():
    lg = LinearGaussian()
    pair = standardised(lg)
    y = lg.draw(6)
    data = to_inference_data(pair, pair.transform.inverse(y), num_samples=20)
    z = torch.as_tensor(data.posterior["z"].to_numpy()[0])
    density = dist.Normal(lg.loc + z @ lg.weight.T, lg.scale).to_event(1).log_prob(y)
    scale = pair.transform.inverse(torch.ones(5)) - pair.transform.inverse(torch.zeros(5))
    expected = density - scale.log().sum()
    found = data.log_likelihood["x"]
    assert found.dims == ("chain", "draw", "row")
    assert found.to_numpy()[0] == pytest.approx(expected.numpy(), abs=1e-3)


@pytest.mark.filterwarnings("ignore:Estimated shape parameter")
def test_summary_and_loo_work_and_loo_estimates_the_log_evidence():
    """One latent and much noise, so that the harmonic mean is any good; the guide is the exact posterior."""
    lg = LinearGaussian(data_dim=3, latent_dim=1, scale=2.0)
    x = lg.draw(40)
    data = to_inference_data(lg.exact_pair(), x, num_samples=500)
    summary = arviz.summary(data, var_names=["z"], kind="stats", round_to="none")
    q = lg.posterior(x)
    assert summary["mean"].to_numpy() == pytest.approx(q.mean[:, 0].numpy(), abs=4.5 * float(q.stddev.max()) / 22)
    assert summary["sd"].to_numpy() == pytest.approx(q.stddev[:, 0].numpy(), rel=0.16)
    loo = arviz.loo(data, pointwise=True)
    evidence = lg.log_evidence(x)
    total, each = (loo.elpd, loo.elpd_i) if VERSION_1 else (loo.elpd_loo, loo.loo_i)
    assert float(total) == pytest.approx(float(evidence.sum()), abs=1.0)
    assert each.to_numpy() == pytest.approx(evidence.numpy(), abs=0.3)
    assert float(evidence.sum()) < float(data.log_likelihood["x"].mean("draw").sum()) - 2  # which is no evidence
    full = arviz.summary(data, var_names=["z"])
    assert full["ess_bulk"].median() == pytest.approx(500, rel=0.1)


@pytest.mark.filterwarnings("ignore:Passing a dict or None:DeprecationWarning")  # ArviZ's, of Matplotlib's interface
def test_plots_of_arviz_take_it():
    vae = mlp_vae((3,), 2, likelihood=Poisson())
    data = to_inference_data(vae, vae.sample(30).long(), num_samples=20)
    if VERSION_1:
        assert arviz.plot_ppc_dist(data, num_samples=5, backend="none") is not None
    else:
        assert arviz.plot_ppc(data, num_pp_samples=5) is not None
    assert data.observed_data["x"].dtype.kind in "if"
    assert (data.posterior_predictive["x"].to_numpy() % 1 == 0).all()


def test_missing_entries_and_bits_and_keyword_arguments_come_as_they_are():
    lg = LinearGaussian()
    x = lg.draw(10)
    x[3, 2] = torch.nan

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    data = to_inference_data(Pair(lg.vae.model, guide, missing="nan"), x, num_samples=5)
    assert np.isnan(data.observed_data["x"].to_numpy()).nonzero() == ([3], [2])
    assert not np.isnan(data.posterior_predictive["x"].to_numpy()).any()
    z = torch.as_tensor(data.posterior["z"].to_numpy()[0, :, 3])
    seen = torch.tensor([0, 1, 3, 4])
    expected = dist.Normal(lg.loc + z @ lg.weight.T, lg.scale).log_prob(x[3].nan_to_num())[:, seen].sum(-1)
    assert data.log_likelihood["x"].to_numpy()[0, :, 3] == pytest.approx(expected.numpy(), abs=1e-4)

    bits = mlp_vae((4,), 1, likelihood=Bernoulli(), transform=Binarize(0, 16))
    levels = torch.tensor([[0.0, 16.0, 8.0, 8.0]]).repeat(50, 1)
    observed = to_inference_data(bits, levels, num_samples=2).observed_data["x"].to_numpy()
    assert set(observed.ravel()) == {0.0, 16.0}
    assert (observed[:, 0] == 0).all()
    assert (observed[:, 1] == 16).all()

    labels = torch.arange(6) % 2
    labelled = to_inference_data(labelled_pair(), {"x": torch.randn(6), "labels": labels}, num_samples=3)
    assert labelled.constant_data["labels"].dims == ("row",)
    assert (labelled.constant_data["labels"].to_numpy() == labels.numpy()).all()
    assert labelled.posterior["z"].shape == (1, 3, 6)


def test_global_latents_have_no_rows_and_local_ones_follow_them():
    pair = function_pair()
    data = to_inference_data(pair, torch.randn(7) + 3, num_samples=400)
    assert data.posterior["mean"].dims == ("chain", "draw")
    assert data.posterior["z"].dims == ("chain", "draw", "row")
    between = data.prior["z"].to_numpy() - data.prior["mean"].to_numpy()[..., None]
    assert between.std() == pytest.approx(1, rel=0.06)  # around the very mean of their draw, whose scale is 10
    noise = data.posterior_predictive["x"].to_numpy() - data.posterior["z"].to_numpy()
    assert noise.std() == pytest.approx(0.5, rel=0.06)


@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_the_posterior_of_programs_that_are_not_ours_is_the_exact_one(make):
    exact = make(20)
    data = to_inference_data(exact.pair, exact.data, num_samples=300)
    assert set(data.posterior.data_vars) == set(data.prior.data_vars) == set(exact.posterior)
    for name, (mean, sd) in exact.posterior.items():
        drawn = data.posterior[name]
        assert ("row" in drawn.dims) == (name != "mean")
        draws, known = drawn.to_numpy()[0], ~mean.isnan().numpy()
        sd = sd.expand(mean.shape).numpy()
        assert draws.shape[1:] == mean.shape
        error = np.abs(draws.mean(0) - mean.numpy())
        assert (error[known] < 4.5 * sd[known] / 300**0.5 + 1e-4).all(), name
        assert draws.std(0)[known].mean() == pytest.approx(sd[known].mean(), rel=0.1), name


def test_every_observed_site_has_its_own_likelihood_and_draws():
    exact = two_observed(15)
    data = to_inference_data(exact.pair, exact.data, num_samples=200)
    z = data.posterior["z"].to_numpy()[0]
    for name in ("x", "y"):
        values = exact.data[name].numpy()
        expected = -0.5 * ((values - z) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
        assert data.log_likelihood[name].to_numpy()[0] == pytest.approx(expected, abs=1e-4)
        assert (data.observed_data[name].to_numpy() == values).all()
        noise = data.posterior_predictive[name].to_numpy()[0] - z
        assert noise.std() == pytest.approx(0.5, rel=0.06)
        assert data.prior_predictive[name].to_numpy().std() == pytest.approx(1.25**0.5, rel=0.06)
    x, y = (data.posterior_predictive[name].to_numpy()[0] - z for name in ("x", "y"))
    assert abs(np.corrcoef(x.ravel(), y.ravel())[0, 1]) < 0.08  # drawn by itself, given z
    assert "constant_data" not in groups(data)


def test_a_likelihood_is_summed_over_enumerated_values():
    exact = mixture(10)
    data = to_inference_data(exact.pair, exact.data, num_samples=20)
    z = data.posterior["z"].to_numpy()[0]
    expected = -0.5 * ((exact.data["x"].numpy() - z) / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))
    assert set(data.log_likelihood.data_vars) == {"x"}
    assert data.log_likelihood["x"].to_numpy()[0] == pytest.approx(expected, abs=1e-4)
    assert set(np.unique(data.posterior["k"])) <= {0, 1, 2}


def test_plates_within_a_row_come_after_it():
    exact = words(12)
    data = to_inference_data(exact.pair, exact.data, num_samples=30)
    assert data.posterior["meaning"].shape == data.posterior_predictive["x"].shape == (1, 30, 12, 3)
    noise = data.posterior_predictive["x"].to_numpy() - data.posterior["meaning"].to_numpy()
    assert noise.std() == pytest.approx(0.5, rel=0.1)
    assert (data.observed_data["x"].to_numpy() == exact.data["x"].numpy()).all()


def test_gaps_and_arguments_of_every_kind():
    half = half_observed(30)
    data = to_inference_data(half.pair, half.data, num_samples=3)
    for name in ("x", "y"):
        assert np.array_equal(data.observed_data[name].to_numpy(), half.data[name].numpy(), equal_nan=True)
        assert not np.isnan(data.posterior_predictive[name].to_numpy()).any()
    assert "constant_data" not in groups(data)
    labelled = conditional(8)
    constant = to_inference_data(labelled.pair, labelled.data, num_samples=3).constant_data
    assert set(constant.data_vars) == {"labels", "width"}
    assert constant["width"].item() == 0.5
    assert constant["labels"].dims == ("row",)


def test_it_is_seeded_and_leaves_the_caller_alone():
    vae = mlp_vae((3,), 1, likelihood=Poisson())
    x = vae.sample(5)
    state = torch.get_rng_state()
    one, same, other = (to_inference_data(vae, x, num_samples=3, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert one.posterior.equals(same.posterior)
    assert not one.posterior.equals(other.posterior)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        to_inference_data(vae, x, num_samples=0)
