"""Categories as latents, their priors and estimators, against sums over all of their values."""

import itertools
import math

import pytest
import torch
from every_tool import TOOLS
from test_captured import LIKELIHOODS, rows_of
from torch.distributions import kl_divergence

from pyro_vae import Elbo, categorical_vae, evaluate, fit, load, mlp_vae
from pyro_vae.distributions import OneHots, Quantized
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.posteriors import Codes
from pyro_vae.priors import AutoregressiveCodes, IndependentCodes

ESTIMATORS = ("straight-through", "relaxed", "enumerated", "score-function")


def bits(num=192):
    torch.manual_seed(1)
    return (torch.rand(num, 1) + 0.5 * torch.rand(num, 6) > 0.75).float()


def small(estimator="enumerated", num_codes=2, num_values=3, **options):
    torch.manual_seed(0)
    options = {"likelihood": Bernoulli(), "hidden_dims": (8,), **options}
    return categorical_vae((6,), num_codes, num_values, estimator=estimator, **options)


def all_values(num_codes, num_values):
    eye = torch.eye(num_values)
    return torch.stack([torch.cat([eye[i] for i in v]) for v in itertools.product(range(num_values), repeat=num_codes)])


def roughened(module, size=1.0):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return module


def quantized():
    torch.manual_seed(4)
    return Quantized(roughened(AutoregressiveCodes(2, 3, hidden_dim=4))(), torch.randn(3, 2))


DISTRIBUTIONS = {
    "independent": lambda: roughened(IndependentCodes(2, 3))(),
    "autoregressive": lambda: roughened(AutoregressiveCodes(2, 3, hidden_dim=4))(),
    "posterior": lambda: Codes(3).for_event((6,))(torch.randn(6, generator=torch.Generator().manual_seed(2))),
    "vectors": quantized,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@torch.no_grad()
def test_probabilities_sum_to_one_and_draws_come_by_them(name):
    p = DISTRIBUTIONS[name]()
    values = all_values(2, 3)
    if name == "vectors":
        values = (values.unflatten(-1, (2, 3)) @ p.codebook).flatten(-2)
    probs = p.log_prob(values).exp()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-5)
    draws = p.expand(torch.Size((20_000,))).sample()
    assert draws.shape == (20_000, len(values[0]))
    distances = torch.cdist(draws, values)
    assert float(distances.min(-1).values.max()) < 1e-2
    counts = distances.argmin(-1).bincount(minlength=9)
    error = (probs * (1 - probs) / 20_000).sqrt()
    assert bool(((counts / 20_000 - probs).abs() < 5 * error + 1e-6).all())


@pytest.mark.usefixtures("float64")
def test_each_code_depends_on_those_before_it_alone_and_every_weight_learns():
    prior = roughened(AutoregressiveCodes(3, 4, hidden_dim=5))
    blocks = torch.rand(3, 4, requires_grad=True)
    for code in range(3):
        (gradient,) = torch.autograd.grad(prior.logits(blocks)[code].square().sum(), blocks)
        depends = gradient.abs().sum(-1) > 0
        assert depends.tolist() == [before < code for before in range(3)]
    z = prior().sample((50,))
    gradients = torch.autograd.grad(prior().log_prob(z).sum(), list(prior.parameters()))
    for parameter, gradient in zip(prior.named_parameters(), gradients, strict=True):
        assert float(gradient.abs().max()) > 0, parameter[0]


@pytest.mark.usefixtures("float64")
def test_the_kl_between_independent_codes_is_the_sum_over_their_values():
    p, q = OneHots(torch.randn(5, 2, 3)), OneHots(torch.randn(2, 3))
    values = all_values(2, 3).double()
    log_p, log_q = (d.log_prob(values[:, None]) for d in (p, q))
    torch.testing.assert_close(kl_divergence(p, q), (log_p.exp() * (log_p - log_q)).sum(0))
    assert torch.equal(p.enumerate_support(), values[:, None].expand(9, 5, 6))
    torch.testing.assert_close(p.mean, (log_p.exp()[..., None] * values[:, None]).sum(0))


def by_hand(vae, x):
    """The ELBO and the evidence of each row, by sums over all values of the codes."""
    values = all_values(2, 3).to(x.dtype)
    log_q = vae.encoder(x).log_prob(values[:, None])  # (values, N)
    log_joint = vae.prior().log_prob(values)[:, None] + vae.decoder(values).log_prob(x[:, None]).T
    return (log_q.exp() * (log_joint - log_q)).sum(0), log_joint.logsumexp(0)


@pytest.mark.parametrize("prior", [IndependentCodes, AutoregressiveCodes])
@pytest.mark.usefixtures("float64")
def test_enumerated_elbo_gradient_and_evidence_are_sums_over_all_values(prior):
    vae, x = roughened(small(prior=prior(2, 3)), 0.7), bits(7).double()
    batch, parameters = vae.prepare({"x": x}), list(vae.parameters())
    elbo, evidence = by_hand(vae, x)
    draws = run_pair(*vae.programs, batch, vae.structure(batch))
    found = Elbo()(draws, torch.ones(()))
    torch.testing.assert_close(found, elbo, rtol=1e-12, atol=1e-12)
    expected = torch.autograd.grad(elbo.sum(), parameters)
    for here, there in zip(torch.autograd.grad(found.sum(), parameters), expected, strict=True):
        torch.testing.assert_close(here, there, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(log_evidence(vae, x, num_particles=1).log_evidence, evidence, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("estimator", ["straight-through", "score-function"])
@pytest.mark.usefixtures("float64")
def test_what_training_reports_is_the_elbo_of_categories(estimator):
    vae, x = roughened(small(estimator), 0.5).train(), bits(5).double()
    batch = vae.prepare({"x": x})
    with torch.no_grad():
        elbo, _ = by_hand(small("enumerated").double().eval(), x)
        vae.eval()
        elbo, _ = by_hand(vae, x)
        vae.train()
        draws = run_pair(*vae.programs, batch, vae.structure(batch), num_particles=20_000)
        error = draws.elbo.std(0) / math.sqrt(20_000)
    assert bool(((draws.elbo.mean(0) - elbo).abs() < 5 * error).all())
    values = draws.latents["z"].unflatten(-1, (2, 3))
    assert bool(((values - values.round()).abs() < 1e-12).all())


@pytest.mark.usefixtures("float64")
def test_relaxed_draws_are_gumbel_softmax_ones():
    """At two categories the first entry is the logistic function of logistic noise (Maddison et al., 2017)."""
    logits, temperature = torch.tensor([[1.0, -0.3]]), 0.7
    torch.manual_seed(0)
    draws = OneHots(logits, temperature, hard=False).expand(torch.Size((50_000,))).rsample()[:, 0]
    for threshold in (0.1, 0.4, 0.8):
        exact = torch.sigmoid(1.3 - temperature * torch.tensor(threshold).logit())
        assert float((draws > threshold).double().mean()) == pytest.approx(float(exact), abs=0.012)
    scale = torch.tensor(1.0, requires_grad=True)
    torch.manual_seed(1)
    drawn = OneHots(logits * scale, temperature, hard=True).expand(torch.Size((100,))).rsample()
    torch.manual_seed(1)
    soft = OneHots(logits * scale, temperature, hard=False).expand(torch.Size((100,))).rsample()
    assert set(drawn.detach().round(decimals=10).unique().tolist()) == {0.0, 1.0}
    weight = torch.randn(100, 2)
    straight, through = (torch.autograd.grad((weight * d).sum(), scale)[0] for d in (drawn, soft))
    torch.testing.assert_close(straight, through)


def patterns(num=600):
    """Four kinds of rows, of unequal frequency, each with entries flipped now and then."""
    torch.manual_seed(5)
    kinds = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 0, 0]]).float()
    which = torch.distributions.Categorical(torch.tensor([0.4, 0.3, 0.2, 0.1])).sample((num,))
    flips = (torch.rand(num, 6) < 0.02).float()
    return (kinds[which] - flips).abs(), kinds


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_comes_to_a_model_that_draws_rows_like_the_data(estimator):
    x, kinds = patterns()
    vae = small(estimator, hidden_dims=(16,))
    objective = Elbo(kl="auto") if estimator == "relaxed" else Elbo()
    options = {"epochs": 80, "batch_size": 100, "learning_rate": 0.02, "compile": False, "progress": False}
    fit(vae, x, objective=objective, **options)
    with torch.no_grad():
        _, evidence = by_hand(vae, x)
    flips = 6 * (0.02 * math.log(0.02) + 0.98 * math.log(0.98))
    best = flips + sum(p * math.log(p) for p in (0.4, 0.3, 0.2, 0.1))
    mean = x.mean(0)
    without = float((torch.special.xlogy(mean, mean) + torch.special.xlogy(1 - mean, 1 - mean)).sum())
    learned = (float(evidence.mean()) - without) / (best - without)  # of what latents are good for
    assert learned > (0.6 if estimator == "straight-through" else 0.83)  # whose gradient is biased
    drawn = vae.sample(2000)
    near = (torch.cdist(drawn, kinds, p=1).min(-1).values <= 1).float().mean()
    assert float(near) > (0.85 if estimator == "straight-through" else 0.93)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 4, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    eager, compiled = (fit(small("relaxed"), bits(), compile=compile, **options) for compile in (False, True))
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["elbo"].tolist() == pytest.approx(eager["elbo"].tolist(), rel=1e-4)


REFUSED = ("ais_bounds", "ais_bounds of simulated rows", "nuts_posterior", "impute")


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in REFUSED])
def test_every_tool_takes_categories(tool):
    TOOLS[tool](small("straight-through"), bits(24))


@pytest.mark.parametrize("name", ["poisson", "categorical", "normal"])
def test_codes_go_with_other_likelihoods_and_gaps(name):
    case = LIKELIHOODS[next(n for n in LIKELIHOODS if n.startswith(name))]
    shape = case.events[-1]
    torch.manual_seed(0)
    vae = categorical_vae(shape, 2, 3, likelihood=case.make(), hidden_dims=(6,), missing="nan")
    data = rows_of(case, shape, gaps=True)
    assert math.isfinite(fit(vae, data, epochs=2, compile=False, progress=False)["elbo"].iloc[-1])
    seen = ~data["x"].isnan()
    assert torch.equal(vae.impute(data, 2, num_particles=9)[:, seen], data["x"][seen].expand(2, -1).to(vae.dtype))


@pytest.mark.parametrize("prior", [IndependentCodes, AutoregressiveCodes])
def test_what_is_saved_opens_as_the_same_numbers(tmp_path, prior):
    vae = roughened(small("relaxed", prior=prior(2, 3)))
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert opened.encoder.posterior.estimator == "relaxed"
    assert evaluate(opened, bits()) == evaluate(vae, bits())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small(num_codes=0), "num_codes and num_values must be at least 1, found 0 and 3"),
        (lambda: small("gumbel"), "unknown estimator 'gumbel'"),
        (lambda: small(num_codes=9), "9 codes of 3 values have more than 4096 combinations"),
        (lambda: small(temperature=0.0), "temperature must be positive, found 0.0"),
        (
            lambda: mlp_vae((6,), 7, likelihood=Bernoulli(), posterior=Codes(3)),
            "a multiple of num_values=3, found 7",
        ),
        (lambda: small(prior=IndependentCodes(3, 3)), "the prior has 9 latents and the encoder 6"),
        (lambda: AutoregressiveCodes(2, 2, 0), "hidden_dim must be at least 1, found 0"),
    ],
    ids=["no codes", "estimator", "too many", "temperature", "no multiple", "prior", "hidden"],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
