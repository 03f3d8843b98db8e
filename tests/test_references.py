"""Every estimator of the library at eight frozen pairs, whose evidence and posteriors are known without it."""

import json

import numpy as np
import pytest
import references
import torch
from coverings import some
from references import FOLDER, PAIRS, QUANTILES, load

from pyro_vae import evaluate
from pyro_vae.evaluation import ais_bounds, log_evidence, nuts_posterior, refine
from pyro_vae.inference.imputation import resampled

EVERY = pytest.mark.parametrize("name", list(PAIRS))


@EVERY
def test_numbers_are_those_of_their_hash_and_of_the_script(name):
    found = load(name)
    problem = PAIRS[name]
    rows = problem.rows(np.random.default_rng(2718))
    for key, values in rows.items():
        assert references._array(found.record["rows"][key]) == pytest.approx(values, nan_ok=True)
    evidence, posterior = problem.truth(rows)
    assert found.log_evidence == pytest.approx(evidence, rel=1e-8)
    for site, known in posterior.items():
        assert found.posterior[site]["mean"] == pytest.approx(known["mean"], rel=1e-6, abs=1e-8)
        assert found.posterior[site]["sd"] == pytest.approx(known["sd"], rel=1e-6)
        assert found.posterior[site]["quantiles"] == pytest.approx(known["quantiles"], rel=1e-5, abs=1e-6)


def test_a_number_that_was_changed_is_told(tmp_path, monkeypatch):
    record = json.loads((FOLDER / "counts.json").read_text())
    record["log_evidence"][0] += 1e-3
    (tmp_path / "counts.json").write_text(json.dumps(record))
    monkeypatch.setattr(references, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"counts\.json was changed by hand"):
        load("counts")
    with pytest.raises(ValueError, match="no reference 'count'; there are linear_gaussian"):
        load("count")


@EVERY
def test_importance_weighting_finds_the_evidence(name):
    known = load(name)
    found = log_evidence(known.pair, known.rows, num_particles=20_000)
    error = np.abs(found.log_evidence.numpy() - known.log_evidence)
    assert error.max() < 0.1
    assert np.all(error < 5 * found.standard_error.numpy() + 2e-3)


@EVERY
def test_annealing_finds_the_evidence(name):
    known = load(name)
    found = ais_bounds(known.pair, known.rows, num_chains=64, num_steps=25, num_leapfrog=3)
    assert float(found.standard_error.max()) < 0.15
    assert np.all(np.abs(found.lower.numpy() - known.log_evidence) < 5 * found.standard_error.numpy() + 0.01)


@EVERY
def test_importance_resampling_finds_moments_and_quantiles(name):
    known = load(name)
    batch = known.pair.batch(known.rows)
    torch.manual_seed(0)
    draws = known.pair.draws(batch, num_particles=20_000, enumerate_guide=False)
    chosen = resampled(draws.latents, draws.event_dims, draws.log_weights, 4000)
    size = float((1 / draws.log_weights.double().softmax(0).square().sum(0)).min())
    size = 1 / (1 / size + 1 / 4000)  # of the draws, and of those chosen among them
    for site, truth in known.posterior.items():
        values = chosen[site].double().reshape(4000, *chosen[site].shape[chosen[site].dim() - truth["mean"].ndim :])
        if values.shape[1:] != truth["mean"].shape:  # words are left of rows
            values = values.mT
        sd = truth["sd"]
        assert np.all(np.abs(values.mean(0).numpy() - truth["mean"]) < 5 * sd / size**0.5), site
        below = (values.numpy()[None] < truth["quantiles"][:, None]).mean(1)
        levels = np.array(QUANTILES).reshape(-1, *[1] * sd.ndim)
        assert np.all(np.abs(below - levels) < 5 * (levels * (1 - levels) / size) ** 0.5 + 0.02), site


@pytest.mark.parametrize("name", some(PAIRS, "linear_gaussian", "counts"))
def test_a_refined_guide_is_nearer_and_has_the_same_evidence(name):
    known = load(name)
    refined = refine(known.pair, known.rows, steps=50)
    rows = refined.rows()
    before, after = (
        np.mean([evaluate(pair, x, seed=seed)["elbo"] for seed in range(10)])
        for pair, x in ((known.pair, known.rows), (refined, rows))
    )
    assert after < known.log_evidence.mean() + 0.1
    assert after > before - 0.1
    found = log_evidence(refined, rows, num_particles=5000)
    assert np.all(np.abs(found.log_evidence.numpy() - known.log_evidence) < 5 * found.standard_error.numpy() + 0.02)


@pytest.mark.parametrize("name", some(PAIRS, "counts"))
def test_nuts_finds_the_moments(name):
    known = load(name)
    row = {key: value[:1] for key, value in known.rows.items()}
    found = nuts_posterior(known.pair, row, 200, 100, 2)
    for site, draws in found.draws.items():
        values = draws.double().flatten(0, 1)[:, 0].numpy()
        size = found.effective_sample_size[site][0].numpy()
        mean, sd = (known.posterior[site][what][0] for what in ("mean", "sd"))
        assert np.all(np.abs(values.mean(0) - mean) < 5 * sd / np.sqrt(size))
        assert values.std(0) == pytest.approx(sd, rel=0.25)


def test_imputation_finds_the_closed_form_of_missing_entries():
    known, problem = load("linear_gaussian"), PAIRS["linear_gaussian"]
    x = known.rows["x"].double().numpy()
    torch.manual_seed(0)
    drawn = known.pair.impute(known.rows, 3000, num_particles=3000).double().numpy()
    whole = problem.weight @ problem.weight.T + problem.scale**2 * np.eye(4)
    for index in np.flatnonzero(np.isnan(x).any(1)):
        gap, seen = np.isnan(x[index]), ~np.isnan(x[index])
        gain = whole[np.ix_(gap, seen)] @ np.linalg.inv(whole[np.ix_(seen, seen)])
        mean = problem.loc[gap] + gain @ (x[index, seen] - problem.loc[seen])
        covariance = whole[np.ix_(gap, gap)] - gain @ whole[np.ix_(seen, gap)]
        values = drawn[:, index][:, gap]
        sd = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(values.mean(0) - mean) < 5 * sd / 1000**0.5)
        assert np.cov(values.T).reshape(covariance.shape) == pytest.approx(covariance, abs=0.15 * sd.max() ** 2)
        assert np.all(drawn[:, index][:, seen] == x[index, seen].astype(np.float32))
