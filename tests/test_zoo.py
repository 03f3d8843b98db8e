"""The zoo's programs keep the contract, and their exact answers are those of brute force by Pyro alone."""

import math

import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from zoo import ZOO
from zoo.predictions import forward_draws, own_rows, rows_first
from zoo.program import first, without_nan
from zoo.reference import elbo_draws, evaluation_mode, importance, modules_of, sites_of, taken

LOCAL = [name for name, program in ZOO.items() if program.build().log_evidence is not None]
NUM = 40_000


def prepared(name, num=12):
    """Fresh programs with their data, NaN replaced as the library replaces it."""
    program = ZOO[name]
    programs, data = program.build(), first(program.rows(), num)
    if program.pair.get("missing") == "nan":
        data = without_nan(data)
    return program, programs, data


def test_there_are_enough_of_them():
    assert len(ZOO) >= 32
    assert len(LOCAL) >= 30


@pytest.mark.parametrize("name", ZOO)
def test_contract(name):
    program, programs, data = prepared(name)
    sites = sites_of(programs.model, programs.guide, data)
    with evaluation_mode(programs.model, programs.guide):
        guide = poutine.trace(programs.guide).get_trace(data["x"], **taken(programs.guide, data))
        model = poutine.trace(programs.model).get_trace(data["x"], **taken(programs.model, data))
    assert model.nodes["x"]["is_observed"]
    plate = model.nodes["data"]
    assert plate["type"] == "sample"
    assert plate["value"].shape == (12,)
    assert set(sites.latent) - set(guide.nodes) <= set(sites.enumerated)
    given = {key: value for key, value in data.items() if key not in (*program.observed, "mask", "x")}
    x = forward_draws(programs.model, 12, given).nodes["x"]["value"]
    assert rows_first(x, 12).shape == data["x"].shape
    assert bool(model.nodes["x"]["fn"].support.check(rows_first(x, 12) if len(x) == 12 else x).all())


@pytest.mark.parametrize("name", LOCAL)
def test_exact_answers_are_those_of_weighted_draws_from_the_prior(name):
    program, programs, data = prepared(name)
    data = own_rows(programs.model, data, program.observed)
    with evaluation_mode(programs.model):
        exact = programs.log_evidence(data)
        posterior = programs.posterior(data) if programs.posterior else {}
    assert exact.shape == (12,)
    for row in (0, 5):
        found = importance(programs.model, None, data, row, NUM)
        assert found.ess > 100
        assert abs(found.log_evidence - float(exact[row])) < 5 * found.standard_error + 1e-4
        for site, (mean, sd) in posterior.items():
            assert mean.shape == sd.shape
            assert bool(((found.mean[site] - mean[row]).abs() < 5 * found.error[site] + 1e-3).all())
            spread = 5 / math.sqrt(2 * found.ess) * 2  # of a standard deviation, with room for heavy tails
            assert torch.allclose(found.sd[site], sd[row], rtol=max(0.05, spread), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in LOCAL if ZOO[name].build().moments])
def test_moments_are_those_of_forward_draws(name):
    _, programs, data = prepared(name)
    x = forward_draws(programs.model, NUM, {}).nodes["x"]["value"].double()
    with evaluation_mode(programs.model):
        mean, sd = programs.moments(data)
    assert bool(((x.mean(0) - mean).abs() < 5 * sd / math.sqrt(NUM)).all())
    kurtosis = ((x - x.mean(0)) / x.std(0)).pow(4).mean(0)
    assert bool(((x.std(0) / sd - 1).abs() < 5 * ((kurtosis - 1) / (4 * NUM)).sqrt()).all())


@pytest.mark.parametrize("name", LOCAL)
def test_elbo_is_below_the_evidence(name):
    program, programs, data = prepared(name)
    sites = sites_of(programs.model, programs.guide, data)
    if sites.point:
        pytest.skip("the guide sets a point, and its ELBO is no bound")
    data = own_rows(programs.model, data, program.observed)
    estimates = elbo_draws(programs.model, programs.guide, data, 20)
    with evaluation_mode(programs.model):
        evidence = float(programs.log_evidence(data).mean())
    assert float(estimates.mean()) < evidence + 4 * float(estimates.std()) / math.sqrt(20) + 1e-4


@pytest.mark.parametrize("name", ["Bayesian last layer", "partial pooling"])
def test_gaussian_posterior_of_shared_latents_is_that_of_the_joint_density(name):
    """Its mean has no gradient, and its covariance is minus the inverse of the second derivatives."""
    _, programs, data = prepared(name, 300)
    data = {key: value.double() if value.is_floating_point() else value for key, value in data.items()}
    for module in modules_of(programs.model):
        module.double()
    with evaluation_mode(programs.model):
        posterior = programs.posterior(data)
    shapes = {site: mean.shape for site, (mean, _) in posterior.items()}

    def log_joint(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        values = {site: part.reshape(shape) for part, (site, shape) in zip(parts, shapes.items(), strict=True)}
        program = poutine.condition(programs.model, data=values)
        return poutine.trace(program).get_trace(data["x"], **taken(programs.model, data)).log_prob_sum()

    mean, sd = (torch.cat([pair[k].reshape(-1) for pair in posterior.values()]) for k in (0, 1))
    precision = -torch.autograd.functional.hessian(log_joint, mean)
    off = torch.linalg.solve(precision, torch.autograd.functional.jacobian(log_joint, mean))
    assert bool((off.abs() < 1e-4 * sd).all())
    assert torch.allclose(torch.linalg.inv(precision).diagonal().sqrt(), sd, rtol=1e-5)


@pytest.mark.parametrize("name", ["gaussian mixture", "hidden Markov"])
def test_summed_out_latents_leave_the_evidence(name):
    _, programs, data = prepared(name)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    with torch.no_grad():
        evidence = programs.log_evidence(data).sum()
    assert -elbo.loss(programs.model, programs.guide, data["x"]) == pytest.approx(float(evidence), rel=1e-5)


def test_exact_guide_has_the_evidence_at_every_draw():
    _, programs, data = prepared("exact posterior")
    estimates = elbo_draws(programs.model, programs.guide, data, 3)
    with torch.no_grad():
        evidence = float(programs.log_evidence(data).mean())
    assert estimates.tolist() == pytest.approx([evidence] * 3, abs=1e-4)
