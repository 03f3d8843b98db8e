"""A deep Markov model: a linear one against Kalman's filter, lengths, forecasts, and with every tool."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from examples import sequences as example
from test_captured import LIKELIHOODS, check, rows_of

from pyro_vae import Pair, check_pair, deep_markov_model, evaluate, fit, load
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP
from pyro_vae.priors import NormalMixture
from pyro_vae.transforms import Standardize

A, SHIFT, Q = 0.8, 0.3, 0.6  # z_t = 0.8 z_{t-1} + 0.3 + 0.6 e
H, NOISE = torch.tensor([1.0, -0.5]), 0.4  # x_t = H z_t + 0.4 e
STEPS = 5

held = pytest.mark.filterwarnings("ignore:.*was not registered")  # the model, as it is meant to be


def linear(**options):
    model = deep_markov_model(
        (STEPS, 2),
        1,
        likelihood=Normal(scale=NOISE),
        hidden_dims=(),
        transition_network=lambda i, o: MLP(i, o, ()),
        recurrent_dim=16,
        **options,
    )
    (moves,), (sees,) = model.transition_network.layers, model.decoder.network.layers
    with torch.no_grad():
        moves.weight.copy_(torch.tensor([[A], [0.0]]))
        moves.bias.copy_(torch.tensor([SHIFT, math.log(math.expm1(Q - 1e-4))]))
        sees.weight.copy_(H[:, None])
        sees.bias.zero_()
    model.model.requires_grad_(requires_grad=False)
    return model


def walks(num_rows=6):
    states = [torch.randn(num_rows)]
    for _ in range(STEPS - 1):
        states.append(A * states[-1] + SHIFT + Q * torch.randn(num_rows))
    x = torch.stack(states, 1)[..., None] * H + NOISE * torch.randn(num_rows, STEPS, 2)
    return {"x": x, "lengths": torch.arange(num_rows) % STEPS + 1}


def kalman(x, length):
    """The filter: log evidence of the first steps, and the mean and variance of the state after each of all steps."""
    h, mean, variance, total, states = H.double().numpy(), 0.0, 1.0, 0.0, []
    for t in range(STEPS):
        if t:
            mean, variance = A * mean + SHIFT, A**2 * variance + Q**2
        if t < length:
            s = np.outer(h, h) * variance + NOISE**2 * np.eye(2)
            error = x[t].double().numpy() - h * mean
            total += -0.5 * (error @ np.linalg.solve(s, error) + np.linalg.slogdet(2 * np.pi * s)[1])
            gain = variance * np.linalg.solve(s, h)
            mean, variance = mean + gain @ error, variance * (1 - gain @ h)
        states.append((mean, variance))
    return total, states


def exact_guide(x, *, lengths):
    """Every state given the one before and all that is seen, by the joint normal of the states."""
    move = torch.eye(STEPS) - A * torch.eye(STEPS).roll(1, 0).tril(-1)
    weights = torch.tensor([1.0] + [1 / Q**2] * (STEPS - 1))
    there = (torch.arange(STEPS) < lengths[:, None]).to(x)
    prior = move.T @ (weights[:, None] * move)
    precision = prior + torch.diag_embed(there * H.to(x).square().sum() / NOISE**2)
    shift = torch.tensor([0.0] + [SHIFT] * (STEPS - 1))
    covariance = torch.linalg.inv(precision)
    mean = (covariance @ (move.T @ (weights * shift) + there * (x @ H.to(x)) / NOISE**2)[..., None])[..., 0]
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z_1", dist.Normal(mean[:, :1], covariance[:, :1, 0].sqrt()).to_event(1))
        for t in range(1, STEPS):
            slope = (covariance[:, t, t - 1] / covariance[:, t - 1, t - 1])[:, None]
            rest = covariance[:, t, t, None] - slope * covariance[:, t, t - 1, None]
            loc = mean[:, t, None] + slope * (z - mean[:, t - 1, None])
            z = pyro.sample(f"z_{t + 1}", dist.Normal(loc, rest.sqrt()).to_event(1))


@pytest.mark.usefixtures("float64")
@held
def test_the_evidence_of_a_linear_model_is_kalmans_filters():
    data, model = walks(), linear()
    expected = [kalman(x, n)[0] for x, n in zip(data["x"], data["lengths"].tolist(), strict=True)]
    found = log_evidence(Pair(model.model, exact_guide), data, num_particles=3).log_evidence
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)  # every draw has the same weight


@held
def test_the_guide_comes_close_to_the_posterior_and_its_forecasts_are_kalmans():
    torch.manual_seed(1)
    model, data = linear(), walks(500)
    fit(model, data, epochs=30, batch_size=50, learning_rate=0.01, progress=False)
    few = {name: value[:10] for name, value in data.items()}
    filtered = [kalman(x, n) for x, n in zip(few["x"], few["lengths"].tolist(), strict=True)]
    expected = torch.tensor([evidence for evidence, _ in filtered])
    found = log_evidence(model, few, num_particles=20_000)
    torch.testing.assert_close(found.log_evidence.double(), expected, rtol=0, atol=0.05)
    elbo = torch.tensor([evaluate(model, few, seed=seed)["elbo"] for seed in range(20)]).mean()
    assert float(expected.mean()) - 0.25 < float(elbo) < float(expected.mean()) + 0.1
    many = {name: value.repeat(300, *[1] * (value.dim() - 1)) for name, value in few.items()}
    drawn = model.impute(many, 3, num_particles=100).reshape(900, 10, STEPS, 2)
    for row in range(10):
        for t in range(int(few["lengths"][row]), STEPS):
            mean, variance = filtered[row][1][t]
            spread = math.sqrt(float(H[0]) ** 2 * variance + NOISE**2)
            assert float(drawn[:, row, t, 0].mean()) == pytest.approx(float(H[0]) * mean, abs=0.25 * spread)
            assert float(drawn[:, row, t, 0].std()) == pytest.approx(spread, rel=0.15)


def small(**options):
    return deep_markov_model((STEPS, 2), 2, **{"likelihood": Normal(), "recurrent_dim": 8, **options})


def test_what_is_after_the_end_of_a_row_contributes_nothing():
    data = walks(10)
    transform = Standardize((STEPS, 2)).fit(3 * data["x"] + 1)
    ended = torch.arange(STEPS) >= data["lengths"][:, None]
    torch.manual_seed(0)
    model = small(transform=transform)
    junk = {"x": torch.where(ended[..., None], torch.nan, data["x"]), "lengths": data["lengths"]}
    assert evaluate(model, junk) == evaluate(model, data)
    torch.manual_seed(0)
    gaps = small(transform=transform, missing="nan")
    gaps.load_state_dict(model.state_dict())
    assert evaluate(gaps, junk["x"]) == evaluate(model, data)  # NaN says the same as lengths
    batch = model.batch(data)
    draws = model.draws(batch)
    for t in range(1, STEPS + 1):
        rate = (draws.log_guide[f"z_{t}"] - draws.log_prior[f"z_{t}"])[0]
        assert torch.equal(rate == 0, t > data["lengths"])
    more = deep_markov_model((STEPS + 3, 2), 2, likelihood=Normal(), recurrent_dim=8)
    less = small()
    more.load_state_dict(less.state_dict())
    padded = {"x": torch.cat([data["x"], torch.zeros(10, 3, 2)], 1), "lengths": data["lengths"]}
    for name in ("z_1", "z_3"):
        torch.testing.assert_close(more.encode(padded, site=name).mean, less.encode(data, site=name).mean)


def test_every_tool_takes_it(tmp_path):
    data = walks(20)
    model = small(transform="auto")
    fit(model, data, epochs=1, batch_size=10, progress=False, compile=False)
    contract = check_pair(model, data)
    assert contract, contract
    assert not {name: text for name, text in contract.tools.items() if text.startswith("refused")}
    assert model.sample(3).shape == (3, STEPS, 2)
    assert model.posterior_predictive(data, 3).shape == (3, 20, STEPS, 2)
    filled = model.impute(data, 2, num_particles=5)
    seen = torch.arange(STEPS) < data["lengths"][:, None]
    assert torch.equal(filled[:, seen], data["x"][seen].expand(2, -1, -1))
    assert model.encode(data, site="z_2").event_shape == (2,)
    model.save(tmp_path)
    assert evaluate(load(tmp_path), data, seed=1) == evaluate(model, data, seed=1)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_a_compiled_step_has_the_numbers_of_the_programs():
    data, histories = (
        {name: value[:, :2] if name == "x" else value.clamp(max=2) for name, value in walks(20).items()},
        [],
    )
    for compile in (False, True):
        torch.manual_seed(0)
        model = deep_markov_model((2, 2), 2, likelihood=Normal(), recurrent_dim=8)
        histories.append(fit(model, data, epochs=2, batch_size=10, progress=False, seed=0, compile=compile))
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)


def test_what_is_captured_never_touches_the_host():
    check(small, lambda: walks(12))


@pytest.mark.parametrize("name", ["bernoulli", "categorical, kinds", "mixed", "poisson"])
@pytest.mark.parametrize("missing", [None, "nan"])
def test_any_likelihood_is_that_of_a_step(name, missing):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    data = rows_of(case, shape, gaps=False)
    data["x"] = data["x"][:, None].repeat_interleave(3, 1)
    if missing:
        data["x"][::2, 2:] = torch.nan
    model = deep_markov_model(
        (3, *shape), 2, likelihood=case.make(), recurrent_dim=4, hidden_dims=(4,), missing=missing
    )
    fit(model, data, epochs=1, batch_size=12, progress=False, compile=False)
    given = {name: value for name, value in data.items() if name != "x"}
    assert model.sample(12, given=given).shape == (12, 3, *shape)
    assert math.isfinite(evaluate(model, data)["elbo"])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"lengths": torch.tensor([1, 6])}, "from 1 to 5; found 6"),
        ({"lengths": torch.tensor([0, 3])}, "from 1 to 5; found 0"),
        ({"lengths": torch.tensor([1.5, 3.0])}, "found 1.5"),
        ({"lengths": torch.ones(2, 1)}, r"found shape \(2, 1\)"),
        ({"mask": torch.ones(2, 5)}, r"the mask has shape \(2, 5\), expected that of the rows, \(N, 5, 2\)"),
    ],
)
def test_wrong_arguments_are_sentences(data, words):
    with pytest.raises(ValueError, match=words):
        evaluate(small(), {"x": torch.zeros(2, STEPS, 2), **data})


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"rows of a sequence have shape \(T, ...\)"):
        deep_markov_model((), 2, likelihood=Normal())
    model = small()
    parts = (model.transition_network, model.decoder, model.encoder)
    with pytest.raises(ValueError, match=r"must be a StandardNormal: found NormalMixture"):
        type(model)(NormalMixture(2), *parts, STEPS)
    with pytest.raises(ValueError, match="num_steps must be at least 1, found 0"):
        type(model)(model.prior, *parts, 0)


def test_the_example_draws_its_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(example, "STEPS", 8)
    monkeypatch.setattr(example, "SHOWN", 3)
    example.main(out=tmp_path / "sequences.png", epochs=1)
    assert (tmp_path / "sequences.png").stat().st_size > 5000
