"""Groups with effects of their own: against the closed forms of a linear model, and with every tool."""

import math

import pyro
import pytest
import torch
from examples import pooled as example
from test_captured import LIKELIHOODS, rows_of
from torch.distributions import MultivariateNormal

from pyro_vae import Elbo, Pair, check_pair, evaluate, fit, load, pooled_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Normal, Poisson
from pyro_vae.priors import VampPrior

held = pytest.mark.filterwarnings("ignore:decoder.network")  # the decoder, as it is meant to be
SLOPE, NOISE, SPREAD, SHIFT = 0.8, 0.5, 1.3, 0.4


def linear(num_groups, **options):
    """x = 0.8 z + u + 0.4 + 0.5 e, one of each."""
    options = {"effect_scale": SPREAD, **options}
    vae = pooled_vae((1,), 1, num_groups, likelihood=Normal(scale=NOISE), hidden_dims=(), **options)
    (affine,) = vae.decoder.network.layers
    with torch.no_grad():
        affine.weight.fill_(SLOPE)
        affine.bias.fill_(SHIFT)
    return vae


def inverse_softplus(value):
    return math.log(math.expm1(value))


def rows_in_groups(num_rows=40, num_groups=5):
    groups = torch.randint(0, num_groups - 1, (num_rows,))  # the last has no rows
    effects = SPREAD * torch.randn(num_groups)
    x = SHIFT + effects[groups] + math.hypot(SLOPE, NOISE) * torch.randn(num_rows)
    return {"x": x[:, None], "groups": groups}


def exact(data, num_groups):
    """Means and standard deviations of the effects, and the log evidence of all rows together."""
    x, groups = data["x"][:, 0] - SHIFT, data["groups"]
    noise = SLOPE**2 + NOISE**2
    sizes = torch.bincount(groups, minlength=num_groups)
    precision = 1 / SPREAD**2 + sizes / noise
    means = torch.zeros(num_groups).index_add(0, groups, x) / noise / precision
    same = (groups[:, None] == groups).to(x)
    evidence = MultivariateNormal(torch.zeros(len(x)), noise * torch.eye(len(x)) + SPREAD**2 * same).log_prob(x)
    return means, precision.rsqrt(), evidence


@pytest.mark.usefixtures("float64")
def test_the_exact_guide_has_the_evidence_of_all_rows_without_variance():
    data = rows_in_groups()
    means, spreads, evidence = exact(data, 5)
    vae = linear(5)
    noise = SLOPE**2 + NOISE**2
    (affine,) = vae.encoder.network.layers
    with torch.no_grad():
        vae.guide.loc.copy_(means[:, None])
        vae.guide.raw_scale.copy_((spreads - 1e-4).expm1().log()[:, None])
        affine.weight.copy_(torch.tensor([[SLOPE / noise, -SLOPE / noise], [0.0, 0.0]]))  # of the row and its effect
        affine.bias.copy_(torch.tensor([-SHIFT * SLOPE / noise, inverse_softplus(NOISE / math.sqrt(noise) - 1e-4)]))
    vae.num_rows = len(data["x"])
    for seed in range(3):
        assert evaluate(vae, data, seed=seed)["elbo"] * vae.num_rows == pytest.approx(float(evidence), abs=1e-8)
    assert means[4] == 0
    assert spreads[4] == pytest.approx(SPREAD)  # of the group without rows: what the prior says


@held
def test_training_finds_the_effects_and_pools_them():
    data = rows_in_groups(num_rows=60)
    means, spreads, evidence = exact(data, 5)
    vae = linear(5)
    vae.decoder.requires_grad_(False)
    fit(vae, data, epochs=400, batch_size=60, learning_rate=0.03, objective=Elbo(kl="auto"), progress=False)
    found = vae.effects()
    assert torch.allclose(found.mean[:, 0], means, atol=0.06)
    assert torch.allclose(found.variance[:, 0].sqrt(), spreads, atol=0.06)
    elbo = sum(evaluate(vae, data, seed=seed)["elbo"] for seed in range(10)) / 10
    assert elbo * 60 == pytest.approx(float(evidence), abs=0.6)


@held
@pytest.mark.parametrize("effect_scale", ["learned", "latent"])
def test_the_scale_of_the_effects_is_learned(effect_scale):
    torch.manual_seed(1)
    num_groups, spread = 60, 0.3
    groups = torch.arange(num_groups).repeat(10)
    x = SHIFT + spread * torch.randn(num_groups)[groups] + math.hypot(SLOPE, NOISE) * torch.randn(len(groups))
    data = {"x": x[:, None], "groups": groups}
    vae = linear(num_groups, effect_scale=effect_scale)
    vae.decoder.requires_grad_(False)
    fit(vae, data, epochs=100, batch_size=200, learning_rate=0.02, progress=False)
    # The standard deviation of which the data are most probable, by a grid.
    noise = SLOPE**2 + NOISE**2
    means = torch.zeros(num_groups).index_add(0, groups, x - SHIFT) / 10
    grid = torch.linspace(0.02, 1.0, 99)
    log_prob = torch.distributions.Normal(0.0, (grid.square() + noise / 10).sqrt()).log_prob(means[:, None]).sum(0)
    best = float(grid[log_prob.argmax()])
    found = vae.model.scale() if effect_scale == "learned" else vae.guide.log_scale_loc.exp()
    assert float(found.detach()) == pytest.approx(best, abs=0.1)


def test_new_groups_have_effects_of_the_prior_and_known_ones_their_own():
    vae = linear(3)
    with torch.no_grad():
        vae.guide.loc.copy_(torch.tensor([[-4.0], [0.0], [4.0]]))
        vae.guide.raw_scale.fill_(-20.0)
    rows = 2000
    for group, mean in enumerate((-4.0, 0.0, 4.0)):
        x = vae.sample(rows, given={"groups": torch.full((rows,), group)})
        assert float(x.mean()) == pytest.approx(mean + SHIFT, abs=0.1)
        assert float(x.std()) == pytest.approx(math.hypot(SLOPE, NOISE), abs=0.05)
    means = torch.stack([vae.sample(200, given={"groups": -1}).mean() for _ in range(50)])
    assert float(means.std()) == pytest.approx(SPREAD, rel=0.35)
    assert vae.sample(4).shape == (4, 1)
    assert vae.sample(2, given={"groups": torch.tensor([0, 2])}).shape == (2, 1)


def test_every_tool_takes_it(tmp_path):
    data = rows_in_groups()
    vae = pooled_vae((1,), 2, 5, likelihood=Normal(), hidden_dims=(8,), transform="auto", effect_scale="latent")
    fit(vae, data, epochs=2, batch_size=10, progress=False)
    assert check_pair(vae, data)
    assert vae.posterior_predictive(data, 3).shape == (3, 40, 1)
    assert vae.reconstruct(data).shape == (40, 1)
    assert vae.encode(data).event_shape == (2,)
    effects = {"effect_scale": torch.tensor(1.0), "effects": torch.randn(6, 1)}
    fixed = Pair(pyro.condition(vae.model, effects), pyro.condition(vae.guide, effects), transform=vae.transform)
    assert log_evidence(fixed, data, num_particles=20).log_evidence.isfinite().all()
    vae.save(tmp_path)
    assert evaluate(load(tmp_path), data, seed=1) == evaluate(vae, data, seed=1)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_a_compiled_step_has_the_numbers_of_the_programs():
    data, histories = rows_in_groups(), []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = pooled_vae((1,), 2, 5, likelihood=Normal(), hidden_dims=(8,), effect_scale="latent")
        histories.append(fit(vae, data, epochs=3, batch_size=16, progress=False, seed=0, compile=compile))
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "name", ["bernoulli", "normal, linear link, scale network", "categorical, kinds", "mixed", "poisson"]
)
@pytest.mark.parametrize("missing", [None, "nan"])
def test_any_likelihood_has_effects_in_its_raw_outputs(name, missing):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    data = rows_of(case, shape, gaps=missing is not None) | {"groups": torch.arange(12) % 3}
    vae = pooled_vae(shape, 2, 3, likelihood=case.make(), hidden_dims=(4,), missing=missing)
    fit(vae, data, epochs=1, batch_size=12, progress=False, compile=False)
    given = {name: value for name, value in data.items() if name != "x"}
    assert vae.sample(12, given=given).shape == (12, *shape)
    assert math.isfinite(evaluate(vae, data)["elbo"])


def test_other_networks_are_taken():
    data = rows_in_groups()
    vae = pooled_vae(
        (1,),
        2,
        5,
        likelihood=Normal(),
        encoder_network=torch.nn.Linear(2, 4),
        decoder_network=lambda i, o: torch.nn.Linear(i[0], math.prod(o)),
    )
    assert math.isfinite(evaluate(vae, data)["elbo"])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (torch.tensor([0, 1, 3, 0]), "from 0 to 2, or -1 for a new one; found 3"),
        (torch.tensor([0, -2, 1, 0]), "found -2"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), "one whole number for each row, found torch.float32"),
        (torch.zeros(4, 1, dtype=torch.long), r"shape \(4, 1\)"),
        (None, "give groups"),
    ],
)
def test_wrong_groups_are_sentences(groups, words):
    vae = pooled_vae((2,), 1, 3, likelihood=Poisson(), hidden_dims=())
    with pytest.raises(ValueError, match=words):
        vae.encode({"x": torch.ones(4, 2), "groups": groups} if groups is not None else torch.ones(4, 2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_groups": 0}, "num_groups must be at least 1, found 0"),
        ({"effect_scale": -1.0}, "effect_scale must be a positive number, 'learned' or 'latent'; found -1.0"),
        ({"effect_scale": "learnt"}, "unknown effect_scale 'learnt': did you mean 'learned'"),
        ({"prior": VampPrior(1, 4)}, "takes 'effect' along with each row"),
    ],
)
def test_mistakes_are_sentences(options, words):
    with pytest.raises(ValueError, match=words):
        pooled_vae((2,), 1, **{"num_groups": 3, "likelihood": Normal(), "hidden_dims": (), **options})


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "pooled.png", epochs=2)
    assert (tmp_path / "pooled.png").stat().st_size > 5000
