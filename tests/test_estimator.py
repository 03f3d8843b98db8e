"""The estimator keeps scikit-learn's rules, and its numbers are the library's."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from pyro_vae import VAETransformer
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Poisson


def short(**settings):
    return VAETransformer(**{"epochs": 3, "hidden_dims": (8,), "n_particles": 20, "random_state": 0, **settings})


@parametrize_with_checks([short(n_components=1), short(n_components=1, missing="nan")])
def test_the_rules_of_scikit_learn(estimator, check):
    check(estimator)


def test_scores_are_the_evidence_that_other_draws_give():
    x = load_iris().data
    vae = VAETransformer(2, hidden_dims=(16,), epochs=100, n_particles=5000, random_state=0).fit(x)
    found = vae.score_samples(x)
    expected = log_evidence(vae.vae_, x, num_particles=5000)
    z = (found - expected.log_evidence.numpy()) / expected.standard_error.numpy()
    assert np.abs(z).mean() < 2  # each of two estimates errs: sqrt(2) * 0.8 on average
    assert vae.score(x) == pytest.approx(found.mean(), abs=1e-4)
    np.testing.assert_allclose(found[[3]], vae.score_samples(x[[3]]), rtol=1e-5)


def test_latents_means_and_draws_are_those_of_the_vae():
    x = load_iris().data.astype(float)
    estimator = short(n_components=3).fit(x)
    z = estimator.transform(x)
    np.testing.assert_array_equal(z, estimator.vae_.encode(torch.as_tensor(x)).mean.numpy())
    np.testing.assert_array_equal(estimator.inverse_transform(z), estimator.vae_.mean_at(torch.as_tensor(z)).numpy())
    assert estimator.sample(7, random_state=1).shape == (7, 4)
    np.testing.assert_array_equal(estimator.sample(7, random_state=1), estimator.sample(7, random_state=1))
    assert not np.array_equal(estimator.sample(7, random_state=1), estimator.sample(7, random_state=2))
    with pytest.raises(ValueError, match=r"latents must have shape \(N, 3\), found \(150, 4\)"):
        estimator.inverse_transform(x)


def test_counts_bits_and_gaps():
    rng = np.random.default_rng(0)
    counts = rng.poisson(4.0, (60, 3)).astype(float)
    assert np.isfinite(short(likelihood=Poisson()).fit(counts).score_samples(counts)).all()
    bits = (rng.random((60, 3)) < 0.5).astype(float)
    assert (short(likelihood=Bernoulli()).fit(bits).score_samples(bits) < 0).all()
    gaps = np.where(rng.random((60, 3)) < 0.2, np.nan, counts)
    assert np.isfinite(short(missing="nan").fit(gaps).score_samples(gaps)).all()
    with pytest.raises(ValueError, match="contains NaN"):
        short().fit(gaps)


def test_a_search_in_a_pipeline_chooses_by_evidence():
    x = load_iris().data
    pipeline = make_pipeline(StandardScaler(), short(epochs=60))
    search = GridSearchCV(pipeline, {"vaetransformer__n_components": [1, 2]}, cv=2)
    scores = search.fit(x).cv_results_["mean_test_score"]
    assert search.best_score_ == max(scores)
    assert np.isfinite(scores).all()


def test_one_seed_is_one_model_and_what_was_given_stays_as_it_was():
    x, likelihood = load_iris().data.round(), Poisson()
    estimator = short(likelihood=likelihood)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = estimator.fit(x).transform(x)
    assert torch.equal(torch.rand(1), expected)  # the user's generator is where it was
    np.testing.assert_array_equal(first, clone(estimator).fit(x).transform(x))
    assert estimator.likelihood is likelihood
    assert estimator.vae_.decoder.likelihood is not likelihood
