"""What any pair can be asked: rows of every kind, latents of every kind, and the numbers against closed forms."""

import functools
import itertools
import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from datasets import Items
from known_pairs import PARALLEL, Ladder, Mixture, Regression, TwoViews, Words, rows_of
from pairs import labelled_pair
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from pyro_vae import Pair
from pyro_vae.inference.structure import ContractError


def assert_moments(draws, mean, covariance):
    """Mean and covariance of ``(S, D)`` draws within five standard errors of a normal's."""
    variance = covariance.diagonal()
    assert ((draws.mean(0) - mean).abs() < 5 * (variance / len(draws)).sqrt()).all()
    error = ((covariance**2 + variance[:, None] * variance) / len(draws)).sqrt()
    assert ((torch.cov(draws.T) - covariance).abs() < 5 * error).all()


# Rows of every kind


def forms(x, folder):
    sparse = pytest.importorskip("scipy.sparse")
    array = x.numpy()
    np.save(folder / "x.npy", array)
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    return {
        "array": array,
        "DataFrame": pd.DataFrame(array),
        "sparse": sparse.csr_matrix(array),
        "memory map": mapped,
        "TensorDataset": TensorDataset(x),
        "Subset": Subset(TensorDataset(x), range(len(x))),
        "data set of mappings": Items(x=x),
        "mapping": {"x": x},
        "mapping of a memory map": {"x": mapped},
    }


METHODS = {
    "check": lambda pair, rows: torch.cat([chunk["x"] for chunk in pair.check(rows).chunks(7)]),
    "prepare": lambda pair, rows: pair.prepare(rows).x,
    "batch": lambda pair, rows: pair.batch(rows).x,
    "batches": lambda pair, rows: torch.cat([batch.x for batch in pair.batches(rows, 7)]),
    "encode": lambda pair, rows: pair.encode(rows, site="top").mean,
    "posterior_predictive": lambda pair, rows: pair.posterior_predictive(rows, 2),
    "reconstruct": lambda pair, rows: pair.reconstruct(rows),
    "interpolate": lambda pair, rows: pair.interpolate(rows, rows, 3),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_takes_rows_of_every_kind(tmp_path, method):
    pair, x = Ladder().pair, torch.randn(20, 3)
    torch.manual_seed(0)
    expected = METHODS[method](pair, x)
    for name, form in forms(x, tmp_path).items():
        torch.manual_seed(0)
        torch.testing.assert_close(METHODS[method](pair, form), expected, msg=name)


def test_gaps_are_filled_in_rows_of_every_kind(tmp_path):
    pair, x = Mixture().pair, torch.randn(20, 2)
    x[::3, 1] = torch.nan
    torch.manual_seed(0)
    expected = pair.impute(x, 2, num_particles=3)
    for name, form in forms(x, tmp_path).items():
        torch.manual_seed(0)
        torch.testing.assert_close(pair.impute(form, 2, num_particles=3), expected, msg=name)


LABELLED = {
    "encode": lambda pair, rows: pair.encode(rows).mean,
    "batch": lambda pair, rows: pair.batch(rows).context["labels"],
    "posterior_predictive": lambda pair, rows: pair.posterior_predictive(rows, 2),
    "reconstruct": lambda pair, rows: pair.reconstruct(rows),
    "interpolate": lambda pair, rows: pair.interpolate(rows, rows, 2),
}


@pytest.mark.parametrize("method", LABELLED)
def test_arguments_come_with_their_rows_in_every_kind(method):
    pair, x, labels = labelled_pair(), torch.randn(20), torch.arange(20) % 2
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([-3.0, 3.0]))
        pair.guide.weight.copy_(torch.tensor([0.5, 2.0]))
    kinds = {
        "tensors": {"x": x, "labels": labels},
        "arrays": {"x": x.numpy(), "labels": labels.numpy()},
        "columns": {"x": pd.Series(x.numpy()), "labels": pd.Series(labels.numpy())},
        "lists": {"x": x.tolist(), "labels": labels.tolist()},
        "data set": Items(x=x, labels=labels),
    }
    found = []
    for rows in kinds.values():
        torch.manual_seed(0)
        found.append(LABELLED[method](pair, rows))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    swapped = LABELLED[method](pair, {"x": x, "labels": 1 - labels})
    assert (swapped - found[0]).abs().max() > 0.5


def test_constants_reach_the_programs_as_they_are():
    seen = {}

    def note(which, **arguments):
        seen.setdefault(which, []).append(arguments)

    def model(x=None, *, nothing=1, flag, temperature, kind, weight, batch_size=None):
        note("model", nothing=nothing, flag=flag, temperature=temperature, kind=kind, weight=weight)
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(temperature * z + weight, 0.1), obs=x)

    def guide(x, *, temperature):
        note("guide", temperature=temperature)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.1))

    constants = {"nothing": None, "flag": True, "temperature": 0.5, "kind": "a", "weight": torch.tensor(2.0)}
    pair, x = Pair(model, guide), torch.randn(10)
    rows = {"x": x, **constants}
    torch.testing.assert_close(pair.reconstruct(rows), 0.5 * x + 2)
    for method in METHODS.values():
        if method not in (METHODS["encode"],):
            method(pair, rows)
    pair.sample(3, given=constants)
    pair.decode(torch.zeros(3), given=constants)
    torch.testing.assert_close(pair.mean_at(torch.ones(3), given=constants), torch.full((3,), 2.5))
    assert all(arguments == constants for arguments in seen["model"])
    assert all(arguments == {"temperature": 0.5} for arguments in seen["guide"])


TAKES_ROWS = {
    "check": Pair.check,
    "batch": Pair.batch,
    "batches": lambda pair, x: next(pair.batches(x)),
    "encode": Pair.encode,
    "posterior_predictive": Pair.posterior_predictive,
    "reconstruct": Pair.reconstruct,
    "interpolate": lambda pair, x: pair.interpolate(x, x),
    "impute": Pair.impute,
}


@pytest.mark.parametrize("method", TAKES_ROWS)
def test_what_are_no_rows_is_refused_in_one_sentence(method):
    x = torch.randn(6, 2)
    for wrong, sentence in (
        (DataLoader(TensorDataset(x)), "is a DataLoader, but every tool makes its own batches: give its data set"),
        (TensorDataset(x, x), "items are tuples of 2, which does not say what each part is"),
        (x[:0], "has no rows; expected at least one"),
        (x[:, :1], r"has rows of shape \(1,\), but the model describes rows of shape \(2,\)"),
        ({"y": x}, "has no entry 'x', only y"),
    ):
        with pytest.raises(ValueError, match=sentence) as refused:
            TAKES_ROWS[method](Mixture().pair, wrong)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", TAKES_ROWS)
def test_a_misspelt_argument_of_the_programs_is_a_type_error(method):
    rows = {"x": torch.randn(6), "lables": torch.arange(6) % 2}
    with pytest.raises(TypeError, match="neither program takes 'lables': did you mean 'labels'"):
        TAKES_ROWS[method](labelled_pair(), rows)


@pytest.mark.parametrize(
    "call",
    [
        lambda pair, given: pair.sample(6, given=given),
        lambda pair, given: pair.decode(torch.zeros(6), given=given),
        lambda pair, given: pair.mean_at(torch.zeros(6), given=given),
    ],
)
def test_what_is_given_is_checked_too(call):
    pair = labelled_pair()
    with pytest.raises(TypeError, match="neither program takes 'lables': did you mean 'labels'"):
        call(pair, {"lables": torch.arange(6) % 2})
    with pytest.raises(ValueError, match=r"given\['labels'\] has 3 rows: give one for each of the 6"):
        call(pair, {"labels": torch.arange(3) % 2})


@pytest.mark.parametrize("method", [*TAKES_ROWS, "sample", "decode", "mean_at", "prepare"])
def test_a_misspelt_argument_of_a_method_is_a_type_error(method):
    call = getattr(labelled_pair(), method)
    with pytest.raises(TypeError, match="unexpected keyword argument 'labels'"):
        call(torch.zeros(3), labels=torch.zeros(3))


# Posteriors of latents


def test_each_latent_has_its_posterior():
    ladder = Ladder()
    x = torch.randn(5, 3)
    mean, covariance = ladder.posterior(x)
    for index, site in enumerate(("top", "low")):
        q = ladder.pair.encode(x, site=site)
        assert q.batch_shape == (5,)
        torch.testing.assert_close(q.mean, mean[:, index])
    torch.testing.assert_close(ladder.pair.encode(x, site="top").stddev, covariance[0, 0].sqrt().expand(5))
    state = torch.get_rng_state()
    again = ladder.pair.encode(x, site="low")
    assert torch.equal(again.mean, ladder.pair.encode(x, site="low").mean)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="the model has several latents, top, low: name one of them with site="):
        ladder.pair.encode(x)
    with pytest.raises(ValueError, match="the model has no latent 'z': its latents are top, low"):
        ladder.pair.encode(x, site="z")


@pytest.mark.parametrize("family", [dist.Categorical, dist.OneHotCategorical])
@pytest.mark.parametrize("by", ["model", "guide", "draws"])
def test_the_posterior_of_a_discrete_latent_is_that_of_bayes_rule(by, family):
    mixture, x = Mixture(by, family), torch.randn(7, 2)
    q = mixture.pair.encode(x)
    assert type(q) is family
    torch.testing.assert_close(q.probs, mixture.posterior(x))
    gappy = x.clone()
    gappy[::2, 1] = torch.nan
    torch.testing.assert_close(mixture.pair.encode(gappy).probs, mixture.posterior(gappy))


def test_enumerated_latents_in_a_plate_within_the_row_have_their_posteriors():
    topics = torch.tensor([0.2, 0.8])

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            kind = pyro.sample("kind", dist.Bernoulli(0.3), infer=PARALLEL)
            with pyro.plate("words", 3, dim=-2):
                k = pyro.sample("k", dist.Bernoulli(topics[kind.long()]), infer=PARALLEL)
                return pyro.sample("x", dist.Normal(2 * k, 1.0), obs=None if x is None else x.mT)

    x = torch.randn(4, 3)
    pair = Pair(model, lambda x: None)
    likelihood = dist.Normal(torch.tensor([0.0, 2.0]), 1.0).log_prob(x[..., None]).exp()  # (N, W, values of k)
    prior = torch.stack([1 - topics, topics], -1)  # (values of kind, values of k)
    words = likelihood[:, None] * prior[:, None]  # (N, kind, W, k)
    kinds = torch.tensor([0.7, 0.3]) * words.sum(-1).prod(-1)
    kinds = kinds / kinds.sum(-1, keepdim=True)
    within = words / words.sum(-1, keepdim=True)
    torch.testing.assert_close(pair.encode(x, site="kind").probs, kinds[:, 1])
    expected = (kinds[..., None] * within[..., 1]).sum(1).mT
    torch.testing.assert_close(pair.encode(x, site="k").probs, expected)


def test_the_posterior_of_an_enumerated_latent_is_averaged_over_the_others():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            k = pyro.sample("k", dist.Bernoulli(logits=2 * z), infer=PARALLEL)
            return pyro.sample("x", dist.Normal(z + k, 0.7), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.5 * x, 0.4))

    x = torch.tensor([-1.0, 0.3, 2.0])
    z = torch.linspace(-4, 4, 2001) * 0.4 + 0.5 * x[:, None]
    weight = dist.Normal(0.5 * x[:, None], 0.4).log_prob(z).softmax(-1)
    log_odds = 2 * z + dist.Normal(z + 1, 0.7).log_prob(x[:, None]) - dist.Normal(z, 0.7).log_prob(x[:, None])
    mean = (weight * log_odds.sigmoid()).sum(-1)
    spread = ((weight * log_odds.sigmoid() ** 2).sum(-1) - mean**2).sqrt()
    q = Pair(model, guide).encode(x, site="k")
    assert ((q.probs - mean).abs() < 4 * spread / 16).all()  # of 256 draws
    assert torch.equal(q.probs, Pair(model, guide).encode(x, site="k").probs)


def test_a_global_latent_has_the_guides_distribution():
    regression, rows = Regression(), {"x": torch.randn(5), "features": torch.randn(5, 2)}
    q = regression.pair.encode(rows)
    assert (q.batch_shape, q.event_shape) == ((), (2,))
    torch.testing.assert_close(q.mean, torch.tensor([2.0, -1.0]))


@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_a_latent_that_the_guide_computes_from_its_own_draws_keeps_its_spread(autoguide):
    def model(x=None, *, batch_size=None):
        scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    start = {"scale": torch.tensor(2.0), "loc": torch.ones(2)}
    guide = autoguide(model, init_scale=0.3, init_loc_fn=init_to_value(values=start))
    pair, x = Pair(model, guide), torch.randn(5, 2)
    scale, loc = pair.encode(x, site="scale"), pair.encode(x, site="loc")
    exact = dist.LogNormal(math.log(2), 0.3)
    assert (scale.batch_shape, scale.event_shape, loc.event_shape) == ((), (), (2,))
    assert abs(scale.mean - exact.mean) < 5 * exact.stddev / 1000**0.5
    assert abs(scale.variance / exact.variance - 1) < 0.3
    torch.testing.assert_close(loc.variance, torch.full((2,), 0.09), rtol=0.25, atol=0)


# Means


def test_a_reconstruction_takes_every_latent_from_the_guide():
    ladder, x = Ladder(), torch.randn(6, 3)
    mean, _ = ladder.predictive(x)
    torch.testing.assert_close(ladder.pair.reconstruct(x), mean)


@pytest.mark.parametrize("by", ["model", "guide", "draws"])
@pytest.mark.parametrize("family", [dist.Categorical, dist.OneHotCategorical])
def test_a_discrete_latent_is_reconstructed_at_its_most_probable_value(by, family):
    mixture, x = Mixture(by, family), 2 * torch.randn(20, 2)
    best = mixture.loc[mixture.posterior(x).argmax(-1)]
    assert len(best.unique(dim=0)) == 4
    torch.testing.assert_close(mixture.pair.reconstruct(x), best)


def test_global_latents_are_reconstructed_at_the_guides_mean():
    features = torch.randn(6, 2)
    expected = features @ torch.tensor([2.0, -1.0])
    for regression in (Regression(), Regression(looks_at_rows=True)):
        rows = {"x": torch.zeros(6), "features": features}
        torch.testing.assert_close(regression.pair.reconstruct(rows), expected)


def test_latents_of_words_are_reconstructed_rows_first():
    x, y = torch.randn(4, 3), torch.zeros(4)
    torch.testing.assert_close(Words().pair.reconstruct({"x": x, "y": y}), x)
    way = Words().pair.interpolate({"x": x[:2], "y": y[:2]}, {"x": x[2:], "y": y[2:]}, 3)
    torch.testing.assert_close(way[1], (x[:2] + x[2:]) / 2)


@pytest.mark.parametrize("path", ["linear", "spherical"])
def test_the_way_between_rows_is_one_of_all_latents(path):
    ladder, a, b = Ladder(), torch.randn(4, 3), torch.randn(4, 3)
    way = ladder.pair.interpolate(a, b, 5, path=path)
    torch.testing.assert_close(way[0], ladder.pair.reconstruct(a))
    torch.testing.assert_close(way[-1], ladder.pair.reconstruct(b))
    if path == "linear":
        torch.testing.assert_close(way[1], 0.75 * way[0] + 0.25 * way[-1])


def test_discrete_latents_and_arguments_change_at_half_of_the_way():
    mixture = Mixture()
    a, b = mixture.loc[:2], mixture.loc[2:].flip(0)
    way = mixture.pair.interpolate(a, b, 4)
    torch.testing.assert_close(way, torch.stack([a, a, b, b]))
    pair, x = labelled_pair(), torch.zeros(2)
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([-3.0, 3.0]))
    way = pair.interpolate({"x": x, "labels": torch.tensor([0, 1])}, {"x": x, "labels": torch.tensor([1, 1])}, 4)
    torch.testing.assert_close(way, torch.tensor([[-3.0, 3.0], [-3.0, 3.0], [3.0, 3.0], [3.0, 3.0]]))


def test_means_and_likelihoods_at_latents_by_name():
    ladder = Ladder()
    top, low = torch.randn(5), torch.randn(5)
    expected = torch.stack([top, low], -1) @ ladder.weight.T + ladder.loc
    for latents in ({"top": top, "low": low}, {"low": low, "top": top}):
        torch.testing.assert_close(ladder.pair.mean_at(latents), expected)
        p_x = ladder.pair.decode(latents)
        assert (p_x.batch_shape, p_x.event_shape) == ((5,), (3,))
        torch.testing.assert_close(p_x.mean, expected)
        assert not p_x.mean.requires_grad
    with pytest.raises(ValueError, match="2 latents of each row, top, low: give the value of each by name"):
        ladder.pair.mean_at(top)
    with pytest.raises(ValueError, match="the latent 'low' has no value: give one for each of top, low"):
        ladder.pair.decode({"top": top})
    with pytest.raises(ValueError, match="the model has no latent 'z': its latents are top, low"):
        ladder.pair.decode({"top": top, "low": low, "z": low})


def test_means_at_discrete_latents_and_latents_of_words():
    for family in (dist.Categorical, dist.OneHotCategorical):
        mixture, k = Mixture(family=family), torch.tensor([3, 0, 1])
        value = k if family is dist.Categorical else torch.eye(4)[k]
        torch.testing.assert_close(mixture.pair.mean_at(value), mixture.loc[k])
        torch.testing.assert_close(mixture.pair.decode({"k": value}).mean, mixture.loc[k])
    words, x = Words(), torch.randn(4, 3)
    rows = {"x": x, "y": torch.zeros(4)}
    latents = {site: words.pair.encode(rows, site=site).mean for site in ("theme", "word")}
    torch.testing.assert_close(words.pair.mean_at(latents), x)


def test_global_latents_are_the_guides_where_no_value_is_given():
    regression, features = Regression(), torch.randn(6, 2)
    given = {"features": features}
    torch.testing.assert_close(regression.pair.mean_at({}, given=given), features @ torch.tensor([2.0, -1.0]))
    weight = torch.tensor([0.5, 3.0])
    torch.testing.assert_close(regression.pair.mean_at({"weight": weight}, given=given), features @ weight)
    torch.testing.assert_close(regression.pair.decode({"weight": weight}, given=given).mean, features @ weight)

    def pooled(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(mean, 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z + mean, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(torch.full((2,), 4.0), 0.1).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    pair, z = Pair(pooled, guide), torch.randn(5, 2)
    torch.testing.assert_close(pair.mean_at(z), z + 4)
    for latents in ({"mean": weight, "z": z}, {"z": z, "mean": weight}):
        torch.testing.assert_close(pair.mean_at(latents), z + weight)


# Draws


def test_new_rows_like_each_have_the_moments_of_the_model():
    ladder, x = Ladder(), torch.randn(2, 3)
    draws = ladder.pair.posterior_predictive(x, 1000)
    mean, covariance = ladder.predictive(x)
    for row in range(2):
        assert_moments(draws[:, row], mean[row], covariance)


def moments(weights, loc, noise):
    """Mean, variance and fourth central moment of a mixture of normals."""
    mean = (weights * loc).sum(-1)
    off = loc - mean[..., None]
    variance = (weights * off**2).sum(-1) + noise**2
    return mean, variance, (weights * (off**4 + 6 * off**2 * noise**2 + 3 * noise**4)).sum(-1)


def assert_mixture(draws, weights, loc, noise, worth=None):
    """Mean and variance of ``(S,)`` draws within five standard errors; they are worth as many independent ones."""
    mean, variance, fourth = moments(weights, loc, noise)
    worth = worth or len(draws)
    assert abs(float(draws.mean() - mean)) < 5 * float(variance / worth) ** 0.5
    assert abs(float(draws.var() - variance)) < 5 * float((fourth - variance**2) / worth) ** 0.5


@pytest.mark.parametrize("family", [dist.Categorical, dist.OneHotCategorical])
@pytest.mark.parametrize("by", ["model", "guide", "draws"])
def test_new_rows_like_each_come_of_all_clusters_that_it_may_be_of(by, family):
    mixture, x = Mixture(by, family), torch.tensor([[0.5, 0.7], [0.2, -1.0]])
    draws = mixture.pair.posterior_predictive(x, 500)
    posterior = mixture.posterior(x)
    assert posterior.max() < 0.8
    for row, column in itertools.product((0, 1), (0, 1)):
        assert_mixture(draws[:, row, column], posterior[row], mixture.loc[:, column], 0.8)


def test_rows_are_drawn_from_what_was_learned_of_global_latents_or_from_their_prior():
    regression, num = Regression(), 200 * 1024
    features = torch.tensor([1.0, 0.0]).expand(num, 2)
    for prior, mean, spread in ((False, 2.0, 0.05), (True, 0.0, 1.0)):
        draws = regression.pair.sample(num, given={"features": features}, prior=prior).reshape(200, 1024)
        weights = draws.mean(1)  # each thousand rows share one
        assert abs(float(weights.mean()) - mean) < 5 * spread / 200**0.5
        assert abs(float(weights.std()) / spread - 1) < 5 / 400**0.5
        assert draws.std(1).mean() == pytest.approx(0.1, rel=0.01)


def test_a_guide_whose_global_latent_depends_on_rows_says_nothing_of_new_ones():
    pair = Regression(looks_at_rows=True).pair
    given = {"features": torch.ones(4, 2)}
    with pytest.raises(ValueError, match="the guide's 'weight' depends on the guide's rows"):
        pair.sample(4, given=given)
    assert pair.sample(4, given=given, prior=True).shape == (4,)


def test_several_observed_sites_are_drawn_together():
    views, num = TwoViews(), 20_000
    drawn = views.pair.sample(num, sites=("x", "y"))
    assert list(drawn) == ["x", "y"]
    covariance = views.slopes[:, None] * views.slopes + (views.noise**2).diag()
    assert_moments(torch.cat([drawn["x"], drawn["y"][:, None]], 1), torch.zeros(3), covariance)
    (only,) = views.pair.sample(3, sites=("y",)).values()
    assert only.shape == (3,)
    assert views.pair.sample(3).shape == (3, 2)


def test_a_site_that_is_drawn_is_not_given_to_the_model():
    views = TwoViews()
    x, y = torch.randn(2, 2), torch.tensor([30.0, -30.0])
    rows = {"x": x, "y": y}
    drawn = views.pair.posterior_predictive(rows, 1000, sites=("y", "x"))
    mean, spread = views.posterior(torch.cat([x, y[:, None]], 1))
    both = torch.cat([drawn["x"], drawn["y"][..., None]], -1)
    for row in range(2):
        covariance = spread[row] ** 2 * views.slopes[:, None] * views.slopes + (views.noise**2).diag()
        assert_moments(both[:, row], mean[row] * views.slopes, covariance)


def test_sites_of_words_come_rows_first():
    pair = Words().pair
    drawn = pair.sample(5, sites=("x", "word", "theme", "y"))
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "x": (5, 3),
        "word": (5, 3),
        "theme": (5,),
        "y": (5,),
    }
    torch.testing.assert_close(drawn["x"], drawn["word"] + 10.0 * torch.arange(3), atol=1.0, rtol=0)
    x = torch.tensor([[0.0, 10.0, 20.0], [3.0, 13.0, 23.0]])
    new = pair.posterior_predictive({"x": x, "y": torch.zeros(2)}, 500, sites=("x", "y"))
    assert (new["x"].shape, new["y"].shape) == ((500, 2, 3), (500, 2))
    torch.testing.assert_close(new["x"].mean(0), x, atol=5 * 0.15 / 500**0.5, rtol=0)


def test_sites_that_cannot_be_drawn_are_refused(tmp_path):
    pair = Words().pair
    with pytest.raises(TypeError, match=r"sites must be a sequence of names, such as \('x',\)"):
        pair.sample(3, sites="x")
    with pytest.raises(ValueError, match="the model has no site 'w': its sites are theme, y, word, x"):
        pair.sample(3, sites=("w",))
    with pytest.raises(ValueError, match="a file holds one site's draws; sites names 2"):
        pair.sample(3, sites=("x", "y"), out=tmp_path / "x.npy")
    assert pair.sample(3, sites=("y",), out=tmp_path / "y.npy").shape == (3,)
    regression = Regression().pair
    with pytest.raises(ValueError, match="the site 'weight' is outside the plate 'data'"):
        regression.sample(3, given={"features": torch.ones(3, 2)}, sites=("weight",))


# Gaps


def with_gaps(views, num=5):
    """Rows of x and y with every kind of gap; the first column of x stays where the second is missing."""
    x, y = torch.randn(num, 2), torch.randn(num)
    x[1, 0] = x[2, 1] = y[2] = y[3] = torch.nan
    return x, y


@pytest.mark.parametrize("by", ["mask", "obs_mask"])
def test_gaps_are_drawn_given_all_that_is_observed(by):
    views = TwoViews(by)
    x, y = with_gaps(views)
    drawn = views.pair.impute({"x": x, "y": y}, 1000, num_particles=200, sites=("x", "y"))
    values = torch.cat([x, y[:, None]], 1)
    both = torch.cat([drawn["x"], drawn["y"][..., None]], -1)
    mean, spread = views.posterior(values)
    covariance = spread[:, None, None] ** 2 * views.slopes[:, None] * views.slopes + (views.noise**2).diag()
    for row in range(5):
        gaps = values[row].isnan()
        assert torch.equal(both[:, row, ~gaps], values[row, ~gaps].expand(1000, -1))
        found = both[:, row, gaps]
        worth = 1 / (1 / 1000 + 1 / 200)  # the guide is exact, so that particles weigh the same; 200 stand for all
        variance = covariance[row].diagonal()[gaps]
        assert ((found.mean(0) - mean[row] * views.slopes[gaps]).abs() < 5 * (variance / worth).sqrt()).all()
        if gaps.any():
            assert ((found.var(0) - variance).abs() < 5 * variance * (2 / worth) ** 0.5).all()


def test_where_the_gaps_are_may_be_said_by_any_argument():
    def model(x=None, *, y=None, there=None, batch_size=None):
        data = pyro.plate("data", rows_of(x, batch_size), dim=-1)
        with data, pyro.plate("steps", 2, dim=-2):
            seen = None if there is None else there.mT
            pyro.sample(
                "y",
                dist.Normal(torch.zeros(3), 1.0).to_event(1),
                obs=None if y is None else y.transpose(0, 1),
                obs_mask=seen,
            )
        with data:
            return pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    y, there = torch.full((4, 2, 3), 7.0), torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    pair = Pair(model, lambda x: None)
    drawn = pair.impute({"x": torch.zeros(4), "y": y, "there": there}, 300, sites=("y",))["y"]
    assert drawn.shape == (300, 4, 2, 3)
    assert (drawn[:, there] == 7).all()
    assert (drawn[:, ~there].mean(0).abs() < 5 / 300**0.5).all()


def test_gaps_in_one_site_are_filled_alone():
    views = TwoViews()
    x, y = with_gaps(views)
    alone = views.pair.impute({"x": x, "y": y}, 3)
    assert alone.shape == (3, 5, 2)
    assert not alone.isnan().any()
    (of_y,) = views.pair.impute({"x": x, "y": y}, 3, sites=("y",)).values()
    assert of_y.shape == (3, 5)
    assert torch.equal(of_y[:, :2], y[:2].expand(3, 2))
    assert not of_y.isnan().any()


@pytest.mark.parametrize("with_obs_mask", [False, True])
@pytest.mark.parametrize(
    ("by", "family"),
    [
        ("model", dist.Categorical),
        ("model", dist.OneHotCategorical),
        ("guide", dist.Categorical),
        ("draws", dist.Categorical),
    ],
)
def test_gaps_are_drawn_from_the_clusters_that_a_row_may_be_of(by, family, with_obs_mask):
    mixture = Mixture(by, family, with_obs_mask)
    x = torch.tensor([[1.0, torch.nan], [torch.nan, -1.0], [-0.5, torch.nan]])
    draws = mixture.pair.impute(x, 500, num_particles=20 if by == "model" else 200)
    posterior = mixture.posterior(x)
    for row, column in ((0, 1), (1, 0), (2, 1)):
        # The guide is exact, so that particles weigh the same; 200 of them stand for all.
        worth = 500 if by == "model" else 1 / (1 / 500 + 1 / 200)
        assert_mixture(draws[:, row, column], posterior[row], mixture.loc[:, column], 0.8, worth)
        assert torch.equal(draws[:, row, 1 - column], x[row, 1 - column].expand(500))


def test_gaps_in_an_argument_are_a_mistake_unless_the_programs_take_its_mask():
    def model(x=None, *, y=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, y=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    rows = {"x": torch.zeros(2), "y": torch.tensor([0.0, torch.nan])}
    for missing in (None, "nan"):
        with pytest.raises(
            ValueError, match="y has 1 NaN: fill them, or set missing='nan' and let the programs take y_mask"
        ):
            Pair(model, guide, missing=missing).reconstruct(rows)
    with pytest.raises(ValueError, match="y has 1 NaN"):
        Pair(TwoViews().model, TwoViews().guide).reconstruct({**rows, "x": torch.zeros(2, 2)})


# Flows, which know neither mean nor support


def test_flows_on_either_side_draw_encode_and_reconstruct():
    zuko = pytest.importorskip("zuko")
    from pyro.contrib.zuko import ZukoToPyro

    class Flows(nn.Module):
        def __init__(self):
            super().__init__()
            self.prior = zuko.flows.MAF(2, transforms=1, hidden_features=(8,))
            self.posterior = zuko.flows.MAF(2, context=3, transforms=1, hidden_features=(8,))
            self.decoder = nn.Linear(2, 3)

        def model(self, x=None, *, batch_size=None):
            with pyro.plate("data", rows_of(x, batch_size), dim=-1):
                z = pyro.sample("z", ZukoToPyro(self.prior()))
                return pyro.sample("x", dist.Normal(self.decoder(z), 0.1).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", ZukoToPyro(self.posterior(x)))

    torch.manual_seed(1)
    flows = Flows()
    pair, x = Pair(flows.model, flows.guide), torch.randn(4, 3)
    with torch.no_grad():
        many = flows.posterior(x).sample((20_000,))
        prior = flows.decoder(flows.prior().sample((20_000,)))
    q = pair.encode(x)
    z = torch.randn(4, 2)
    torch.testing.assert_close(q.log_prob(z), flows.posterior(x).log_prob(z).detach())
    with pytest.raises(NotImplementedError):
        q.mean  # noqa: B018
    # The middle of a flow is the mean of 256 draws.
    error = 5 * many.std(0) / 16
    assert ((pair.reconstruct(x) - flows.decoder(many.mean(0))).abs() < error @ flows.decoder.weight.abs().T).all()
    assert torch.equal(pair.reconstruct(x), pair.reconstruct(x))
    drawn = pair.sample(20_000)
    covariance = torch.cov(prior.T) + 0.01 * torch.eye(3)
    assert ((drawn.mean(0) - prior.mean(0)).abs() < 7 * (covariance.diagonal() / 20_000).sqrt()).all()
    new = pair.posterior_predictive(x, 500)
    expected = flows.decoder(many)
    error = (expected.var(0) + 0.01).sqrt() / 500**0.5
    assert ((new.mean(0) - expected.mean(0)).abs() < 5 * error).all()
    torch.testing.assert_close(pair.mean_at(z), flows.decoder(z).detach())
    assert pair.interpolate(x, x, 3).shape == (3, 4, 3)


def test_a_site_without_a_mean_is_told_so():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", Nameless(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    pair = Pair(model, guide)
    for call in (lambda: pair.reconstruct(torch.zeros(3)), lambda: pair.sample(3, mean=True)):
        with pytest.raises(ContractError, match="the Nameless at 'x' does not know its mean: draw instead"):
            call()
    assert pair.sample(3).shape == (3,)


class Nameless(dist.Normal):
    """A normal that does not say what its mean is."""

    @property
    def mean(self):
        raise NotImplementedError


# What programs may be


class Bound(nn.Module):
    """Pyro's own way to write a VAE."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(0.5))

    def model(self, x=None, *, batch_size=None, scale=1.0):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(self.slope * z, scale), obs=x)

    def guide(self, x, scale=1.0):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, scale))


@pytest.mark.parametrize("kind", ["methods", "partials", "lambdas", "handlers"])
def test_programs_of_every_kind_give_the_same_numbers(kind):
    both = Bound()
    programs = {
        "methods": (both.model, both.guide),
        "partials": (functools.partial(both.model, scale=1.0), functools.partial(both.guide, scale=1.0)),
        "lambdas": (lambda x=None, **rest: both.model(x, **rest), lambda x: both.guide(x)),
        "handlers": (pyro.poutine.scale(both.model, scale=1.0), pyro.poutine.scale(both.guide, scale=1.0)),
    }
    pair, x = Pair(*programs[kind]), torch.randn(5)
    assert [tuple(p.shape) for p in pair.parameters()] == [()]
    torch.testing.assert_close(pair.encode(x).mean, 0.5 * x)
    torch.testing.assert_close(pair.reconstruct(x), 0.25 * x)
    assert pair.sample(3).shape == (3,)
