"""Predictive checks: p-values against closed forms, wrong models rejected, right ones not."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from exact_guides import EXACT, sequences, shared_mean, two_observed
from linear_gaussian import LinearGaussian
from pairs import function_pair, labelled_pair

from pyro_vae import Pair, fit, mlp_vae
from pyro_vae._support.ranges import constraints
from pyro_vae.evaluation import default_statistics, plot_predictive_check, predictive_check
from pyro_vae.likelihoods import Bernoulli, Mixed, NegativeBinomial, Normal
from pyro_vae.transforms import Binarize, Dequantize, Standardize


def test_the_prior_p_value_of_the_mean_is_its_closed_form():
    lg = LinearGaussian(data_dim=1, latent_dim=1)
    sd = float(lg.covariance.sqrt())
    x = lg.draw(100)
    x = x - x.mean() + lg.loc + 1.2 * sd / 10  # 1.2 standard errors above
    check = predictive_check(lg.vae, x, {"mean": lambda x: x.mean()}, kind="prior", num_replications=1000)
    row = check.table.loc["mean"]
    expected = 2 * scipy.stats.norm.sf(1.2)
    assert row["p_value"] == pytest.approx(expected, abs=5 * math.sqrt(expected / 1000))
    assert row["replicated_sd"] == pytest.approx(sd / 10, rel=0.08)
    assert check.joint_p_value == pytest.approx(expected, abs=5 * math.sqrt(expected / 1000))


def test_the_posterior_p_value_of_the_mean_is_its_closed_form():
    """x′ given x is normal in this model, with mean and covariance of the exact posterior carried through."""
    lg = LinearGaussian(data_dim=2, latent_dim=1)
    x = lg.draw(50) - 0.13  # not quite the data of the model, so that the p-value is not near 1
    q = lg.posterior(x)
    means = (lg.loc + q.mean @ lg.weight.T).mean()
    each = (lg.weight @ q.covariance_matrix[0] @ lg.weight.T + lg.scale**2 * torch.eye(2)).mean() / 50
    check = predictive_check(lg.exact_pair(), x, {"mean": lambda x: x.mean()}, num_replications=1000)
    expected = 2 * scipy.stats.norm.sf(abs(float((x.mean() - means) / each.sqrt())))
    assert check.table.loc["mean", "p_value"] == pytest.approx(expected, abs=5 * math.sqrt(expected / 1000) + 0.001)
    assert check.table.loc["mean", "replicated"] == pytest.approx(float(means), abs=5 * float(each.sqrt()) / 40)


def test_p_values_of_the_true_model_are_uniform():
    """Kolmogorov–Smirnov on 120 data sets; a p-value on one side, or twice too large, fails it."""
    lg = LinearGaussian(data_dim=3, latent_dim=1)
    statistics = {"sd": lambda x: x.std(0), "mean": lambda x: x.mean()}
    checks = [
        predictive_check(lg.vae, lg.draw(30), statistics, "prior", num_replications=19, seed=seed)
        for seed in range(120)
    ]
    noise = np.random.default_rng(0).uniform(size=120)
    for values, step in (
        ([check.table.loc["sd[1]", "p_value"] for check in checks], 1 / 10),
        ([check.joint_p_value for check in checks], 1 / 20),
    ):
        jittered = np.array(values) - step * noise  # they come in steps
        assert scipy.stats.kstest(jittered, "uniform").pvalue > 0.01


def counts_pair(likelihood):
    """Two kinds of rows, and p(x | z) of four columns for each; the guide is the exact posterior."""
    kinds = likelihood(torch.tensor([[1.0, 6.0, 3.0, 8.0], [9.0, 2.0, 3.0, 4.0]]))

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            return pyro.sample("x", likelihood(torch.where(z[:, None] > 0, *rates)).to_event(1), obs=x)

    rates = torch.tensor([[9.0, 2.0, 3.0, 4.0], [1.0, 6.0, 3.0, 8.0]])

    def guide(x):
        log_prob = kinds.log_prob(x[:, None]).sum(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=log_prob[:, 1] - log_prob[:, 0]))

    return Pair(model, guide)


def zero_inflated(rates):
    """35% of the entries are 0 whatever their rate."""
    return dist.ZeroInflatedPoisson(rates, gate=torch.tensor(0.35))


def with_its_moments(rates):
    """The normal distribution with the mean and variance of the right one."""
    right = zero_inflated(rates)
    return dist.Normal(right.mean, right.variance.sqrt())


@pytest.mark.parametrize(
    ("likelihood", "wrong"),
    [
        (with_its_moments, "share at one value[0]"),
        (lambda rates: dist.Poisson(0.65 * rates), "zeros[1]"),
        (zero_inflated, None),
    ],
    ids=["normal", "poisson", "zero-inflated poisson"],
)
@pytest.mark.parametrize("kind", ["prior", "posterior"])
def test_zero_inflated_counts_reject_every_likelihood_but_the_right_one(likelihood, wrong, kind):
    x = counts_pair(zero_inflated).sample(400)
    check = predictive_check(counts_pair(likelihood), x, kind=kind)
    if wrong is None:
        assert check.joint_p_value > 0.05
        return
    assert check.joint_p_value == pytest.approx(1 / 201)
    assert check.table.loc[wrong, "p_value"] == pytest.approx(2 / 201)
    if kind == "prior":
        assert check.table.loc["mean[1]", "p_value"] > 0.02  # what it was given, it gets right


def test_bits_from_grey_levels_are_compared_with_bits():
    """Each grey level is a pixel's probability, so a model of those very probabilities is right."""
    levels = torch.tensor([1.0, 4.0, 8.0, 12.0, 15.0])
    vae = mlp_vae((5,), 1, hidden_dims=(), likelihood=Bernoulli(), transform=Binarize(0, 16))
    with torch.no_grad():
        vae.decoder.network.layers[0].weight.zero_()
        vae.decoder.network.layers[0].bias.copy_(torch.logit(levels / 16))
    checks = [predictive_check(vae, levels.expand(400, 5), kind="prior", seed=seed) for seed in range(5)]
    assert sorted(check.joint_p_value for check in checks)[2] > 0.1  # of uniform ones below it once in a hundred times
    check = checks[0]
    assert check.table.loc["mean[2]", "replicated"] == pytest.approx(8, abs=0.2)
    assert check.table.loc["sd[2]", "observed"] == pytest.approx(8, abs=0.2)  # that of bits at 0 and 16


def test_whole_levels_come_back_whole_and_standardised_zeros_are_zeros():
    seen = []
    x = torch.randint(0, 4, (60, 2)).float() * 3
    for transform in (Dequantize(16), Standardize((2,)).fit(x)):
        vae = mlp_vae((2,), 1, likelihood=Normal(), transform=transform)
        predictive_check(vae, x, {"first": lambda x: seen.append(x) or x.sum()}, num_replications=1)
        assert torch.equal(seen[-2], x)
        assert seen[-1].shape == x.shape


def test_missing_entries_are_missing_in_every_data_set():
    x = torch.randn(200, 3)
    x[torch.rand(200, 3) < 0.3] = math.nan
    x[:, 0] = x[:, 0].nan_to_num()
    vae = mlp_vae((3,), 1, likelihood=Normal(), missing="nan")
    fit(vae, x, epochs=30, learning_rate=1e-2, progress=False)
    masks = []
    statistics = {"first": lambda x: masks.append(x.isnan()) or x.nansum()}
    predictive_check(vae, x, statistics, num_replications=3)
    assert len(masks) == 4
    assert all(torch.equal(mask, x.isnan()) for mask in masks)
    assert np.isfinite(predictive_check(vae, x, num_replications=20).table.to_numpy()).all()
    with pytest.raises(ValueError, match="'total' is NaN or infinite for the observed data; missing entries are NaN"):
        predictive_check(vae, x, {"total": lambda x: x.sum()})


def test_a_global_latent_is_drawn_once_for_each_data_set():
    """Chunks share it: the means of two halves move together, by the spread of the global mean."""
    pair = function_pair()
    statistics = {"a": lambda x: x[:100].mean(), "b": lambda x: x[100:].mean()}
    check = predictive_check(pair, torch.randn(200), statistics, "prior", num_replications=150, chunk_size=70)
    a, b = (check.replications[name] for name in "ab")
    assert np.corrcoef(a, b)[0, 1] > 0.99
    assert a.std() == pytest.approx(10, rel=0.25)
    check = predictive_check(pair, torch.randn(200), statistics, num_replications=150, chunk_size=70)
    a, b = (check.replications[name] for name in "ab")
    assert np.corrcoef(a, b)[0, 1] > 0.9
    # z ~ N(mean, 1) with mean ~ N(0, 1): 1 + (1 + 0.25) / 100
    assert a.std() == pytest.approx(math.sqrt(1 + 1.25 / 100), rel=0.25)


def test_globals_of_the_prior_predictive_are_from_the_prior_and_those_of_the_posterior_from_the_guide():
    """A mean with prior N(0, 2²): data sets' means vary by it, or by what is left of it given 60 rows."""
    exact = shared_mean(60)
    of_prior, of_posterior = (
        predictive_check(
            exact.pair, exact.data, {"mean": lambda x: x.mean()}, kind, num_replications=300, chunk_size=25
        )
        for kind in ("prior", "posterior")
    )
    assert of_prior.replications["mean"].std() == pytest.approx(math.sqrt(4 + 1.25 / 60), rel=0.15)
    assert of_prior.replications["mean"].mean() == pytest.approx(0, abs=4 * 2 / math.sqrt(300))
    mean, sd = exact.posterior["mean"]
    spread = math.sqrt((0.2 * sd) ** 2 + (0.2 + 0.25) / 60)
    assert of_posterior.replications["mean"].std() == pytest.approx(spread, rel=0.15)
    middle = float(0.8 * exact.data["x"].mean() + 0.2 * mean)
    assert of_posterior.replications["mean"].mean() == pytest.approx(middle, abs=4.5 * spread / math.sqrt(300))


@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_programs_that_are_not_ours_fit_their_own_data_and_no_others(make):
    exact = make(200)
    for kind, count in (("prior", 99), ("posterior", 39)):
        check = predictive_check(exact.pair, exact.data, kind=kind, num_replications=count)
        assert check.joint_p_value > 0.011
    spread = float(exact.data["x"][~exact.data["x"].isnan()].std())
    wrong = {**exact.data, "x": 10 * spread + 0.1 * exact.data["x"]}
    assert predictive_check(exact.pair, wrong, kind="prior", num_replications=99).joint_p_value == 0.01


def test_what_is_observed_beside_x_is_drawn_with_it():
    """Far-off values of y move z, and with it x, in the posterior predictive, and nothing in the prior predictive."""
    exact = two_observed(400)
    far = {**exact.data, "y": exact.data["y"] + 9}
    prior = predictive_check(exact.pair, far, {"mean": lambda x: x.mean()}, "prior", num_replications=99).table
    posterior = predictive_check(exact.pair, far, {"mean": lambda x: x.mean()}, num_replications=99).table
    assert prior["replicated"].item() == pytest.approx(0, abs=0.05)
    expected = float((exact.data["x"] + far["y"]).mean() * 4 / 9)
    assert posterior["replicated"].item() == pytest.approx(expected, abs=0.05)


def test_a_model_that_wants_what_it_observes_is_told_to_draw_it():
    def model(x=None, *, y, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    exact = two_observed(30)
    with pytest.raises(ValueError, match=r"missing 1 required .*'y'\): .*give its observations the default None"):
        predictive_check(Pair(model, exact.pair.guide), exact.data)


def test_entries_that_the_model_masks_are_missing_in_every_data_set():
    """Steps after a sequence's end hold zeros in the data, and whatever the model draws in its data sets."""
    exact, seen = sequences(200), []
    predictive_check(
        exact.pair, exact.data, {"sum": lambda x: seen.append(x.isnan()) or x.nansum()}, num_replications=2
    )
    after = torch.arange(3) >= exact.data["lengths"][:, None]
    assert len(seen) == 3
    assert all(torch.equal(missing, after) for missing in seen)


def test_rows_keep_their_keyword_arguments():
    pair = labelled_pair()
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([-5.0, 5.0]))
    labels = torch.arange(300) % 2
    x = torch.randn(300) * 1.1 + pair.model.shift.detach()[labels]
    statistics = {"first": lambda x: x[labels == 0].mean(), "second": lambda x: x[labels == 1].mean()}
    data = {"x": x, "labels": labels}
    table = predictive_check(pair, data, statistics, "prior", chunk_size=77, num_replications=30).table
    assert table["replicated"].tolist() == pytest.approx([-5, 5], abs=0.1)


def test_the_default_statistics_are_what_their_names_say():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(600, 3)) * [1, 5, 2] + generator.exponential(size=(600, 1))
    values = {
        n: np.asarray(f(torch.tensor(x))) for n, f in default_statistics(torch.tensor(x), constraints.real).items()
    }
    correlation = np.abs(np.corrcoef(x.T)[np.triu_indices(3, 1)])
    expected = {
        "mean": x.mean(0),
        "sd": x.std(0),
        "lower tail": np.quantile(x, 0.01, axis=0, method="nearest"),
        "upper tail": np.quantile(x, 0.99, axis=0, method="nearest"),
        "skewness": scipy.stats.skew(x),
        "kurtosis": scipy.stats.kurtosis(x, fisher=False),
        "share at one value": [0.0, 0.0],
        "sd of row totals": x.sum(1).std(),
        "mean |correlation|": correlation.mean(),
        "max |correlation|": correlation.max(),
    }
    assert list(values) == list(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=0.05 if "tail" in name else 1e-9), name

    counts = generator.negative_binomial(2, 0.3, (500, 20))
    functions = default_statistics(torch.tensor(counts), constraints.nonnegative_integer)
    assert float(functions["zeros"](torch.tensor(counts))) == pytest.approx((counts == 0).mean())
    dispersion = (counts.var(0) / counts.mean(0)).mean()
    assert float(functions["dispersion"](torch.tensor(counts))) == pytest.approx(dispersion)
    assert float(functions["largest"](torch.tensor(counts))) == counts.max()


def test_values_of_named_columns_have_their_names():
    likelihood = Mixed([Normal(), Bernoulli(), Normal()], ["weight", "smokes", "height"])
    x = torch.stack([torch.randn(30), (torch.rand(30) < 0.5).float(), torch.randn(30) + 9], 1)
    table = predictive_check(mlp_vae((3,), 1, likelihood=likelihood), x, num_replications=19).table
    for name, column in {"real: mean[weight]": 0, "real: mean[height]": 2, "bits: mean[smokes]": 1}.items():
        assert table.loc[name, "observed"] == pytest.approx(float(x[:, column].mean()), abs=1e-6)
    assert "real: sd of row totals" in table.index
    assert [name for name in table.index if "at one value" in name] == [
        f"real: share at one value[{i}]" for i in (0, 1)
    ]


@pytest.mark.parametrize("kind", [constraints.real, constraints.nonnegative_integer, constraints.boolean])
def test_what_a_statistic_chooses_it_chooses_in_each_data_set(kind):
    """So the observed data set is one among others: chosen by another one, every statistic is the same."""
    torch.manual_seed(0)
    first, second = ((torch.randn(50, 100) * torch.rand(100)).double() for _ in range(2))
    second[:, :3] = 0.0
    if kind is not constraints.real:
        first, second = ((x > 0).double() for x in (first, second))
    found, other = (default_statistics(x, kind) for x in (first, second))
    assert list(found) == list(other)
    for name in found:
        torch.testing.assert_close(found[name](second), other[name](second))


def test_the_columns_of_a_table_have_statistics_of_their_kind():
    x = torch.stack([torch.randint(0, 2, (90,)).float(), torch.poisson(torch.full((90,), 3.0)), torch.randn(90)], 1)
    x[5, 1] = math.nan
    vae = mlp_vae((3,), 1, likelihood=Mixed((Bernoulli(), NegativeBinomial(), Normal())), missing="nan")
    table = predictive_check(vae, x, num_replications=9).table
    assert table.loc["bits: mean", "observed"] == pytest.approx(float(x[:, 0].mean()))
    zeros = float((x[:, 1] == 0).sum() / 89)
    assert table.loc["counts: zeros", "observed"] == pytest.approx(zeros)
    assert table.loc["real: kurtosis", "observed"] == pytest.approx(
        scipy.stats.kurtosis(x[:, 2], fisher=False), rel=1e-4
    )


def test_programs_that_are_not_ours_are_checked():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.25)))
            return pyro.sample("x", dist.Poisson(1 + 9 * z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli((x > 4).float() * 0.98 + 0.01))

    z = torch.bernoulli(torch.full((500,), 0.25))
    pair = Pair(model, guide)
    assert predictive_check(pair, torch.poisson(1 + 9 * z), kind="prior").joint_p_value > 0.02
    wrong = predictive_check(pair, torch.poisson(torch.full((500,), 3.25)), kind="prior")
    assert wrong.table.loc["mean", "p_value"] > 0.02  # its mean is right
    assert wrong.table.loc["dispersion", "p_value"] < 0.01
    assert wrong.joint_p_value < 0.01


def test_the_same_seed_gives_the_same_and_the_caller_is_left_alone():
    lg = LinearGaussian()
    x = lg.draw(40)
    lg.vae.train()
    state = torch.get_rng_state()
    first = predictive_check(lg.vae, x, num_replications=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert lg.vae.training
    assert len(pyro.get_param_store()) == 0
    again, other = (predictive_check(lg.vae, x, num_replications=5, seed=seed) for seed in (0, 1))
    assert first.table.equals(again.table)
    assert not first.table.equals(other.table)


def test_mistakes_are_one_sentence():
    lg = LinearGaussian()
    x = lg.draw(10)
    with pytest.raises(ValueError, match="kind must be 'prior' or 'posterior', found 'both'"):
        predictive_check(lg.vae, x, kind="both")
    with pytest.raises(ValueError, match="at least 1, found 0"):
        predictive_check(lg.vae, x, num_replications=0)
    with pytest.raises(ValueError, match="statistics is empty"):
        predictive_check(lg.vae, x, {})
    with pytest.raises(ValueError, match=r"'words' fails on the observed data, a tensor of shape \(10, 5\)"):
        predictive_check(lg.vae, x, {"words": lambda x: "many"})


def test_the_figure_has_a_panel_for_each_statistic_that_stands_out_most():
    lg = LinearGaussian()
    check = predictive_check(lg.vae, lg.draw(100) * 3, kind="prior", num_replications=30)
    figure = plot_predictive_check(check, max_panels=6)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 6
    for axes in shown:
        name = axes.get_title().split(", p")[0]
        assert axes.lines[0].get_xdata()[0] == check.table.loc[name, "observed"]
