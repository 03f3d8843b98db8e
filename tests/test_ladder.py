"""Ladder inference over several levels of latents, against quadrature and closed forms."""

import math

import pytest
import torch
from every_tool import TOOLS
from test_captured import LIKELIHOODS, NAMES, rows_of
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from pyro_vae import Elbo, check_pair, evaluate, fit, ladder_vae, load
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.priors import NormalMixture, VampPrior
from pyro_vae.transforms import Binarize, Standardize


def small(sizes=(3, 2), **options):
    torch.manual_seed(0)
    return ladder_vae((6,), sizes, **{"likelihood": Bernoulli(), "hidden_dims": (8,), **options})


def bits(num=192):
    torch.manual_seed(1)
    return (torch.rand(num, 1) + 0.5 * torch.rand(num, 6) > 0.75).float()


def roughened(vae, size=1.5):
    """Other weights than those of a fresh network, whose levels say almost nothing of each other."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return vae


@pytest.mark.usefixtures("float64")
def test_the_evidence_is_that_of_quadrature_over_both_levels():
    vae, x = roughened(small((1, 1)), 0.5), bits(5).double()
    axis = torch.linspace(-9, 9, 1201)
    width = axis[1] - axis[0]
    with torch.no_grad():
        p_1 = vae.conditionals[0](axis[:, None])
        joint = TorchNormal(0, 1).log_prob(axis)[:, None] + p_1.log_prob(axis[None, :, None].transpose(0, 1)).T
        p_x = vae.decoder(axis[:, None])
        expected = torch.stack(
            [(joint + p_x.log_prob(row)[None]).flatten().logsumexp(0) + 2 * width.log() for row in x]
        )
    found = log_evidence(vae, x, num_particles=10_000)
    error = (found.log_evidence - expected).abs()
    assert float(error.max()) < 0.1
    assert bool((error < 5 * found.standard_error + 1e-6).all())


@pytest.mark.usefixtures("float64")
def test_what_comes_from_above_and_below_is_joined_by_precision():
    vae, x = roughened(small(), 0.5), bits(4).double()
    z_2 = vae.encode(x, site="z_2").mean
    q = vae.encode(x, site="z_1")  # given the mean of the level above
    with torch.no_grad():
        alone, above = vae.encoder.levels(x)[0], vae.conditionals[0](z_2)
    axis = torch.linspace(-40, 40, 200_001)
    for row in range(4):
        for j in range(3):
            a, b = (TorchNormal(d.mean[row, j], d.stddev[row, j]) for d in (alone, above))
            weights = (a.log_prob(axis) + b.log_prob(axis)).softmax(0)
            mean = float((weights * axis).sum())
            assert float(q.mean[row, j]) == pytest.approx(mean, abs=1e-6)
            assert float(q.variance[row, j]) == pytest.approx(float((weights * (axis - mean) ** 2).sum()), rel=1e-5)


@pytest.mark.usefixtures("float64")
def test_the_rate_is_that_of_the_levels_and_each_is_in_closed_form():
    vae, x = roughened(small((3, 2, 2)), 0.3), bits(300).double()
    metrics = evaluate(vae, x)
    levels = [metrics[f"rate_z_{level}"] for level in (1, 2, 3)]
    assert sum(levels) == pytest.approx(metrics["rate"], rel=1e-9)
    batch = vae.prepare({"x": x})
    draws = vae.draws(batch, num_particles=400).with_closed_forms(required=True)
    assert set(draws.closed_form) == {"z_1", "z_2", "z_3"}
    exact = {name: float(values.mean()) for name, values in draws.log_guide.items()}
    for name, value in exact.items():
        assert metrics[f"rate_{name}"] == pytest.approx(value, abs=5 * metrics[f"rate_{name}_se"])
    top = vae.encode(x, site="z_3")
    kl = kl_divergence(TorchNormal(top.mean, top.stddev), TorchNormal(0.0, 1.0)).sum(-1)
    assert exact["z_3"] == pytest.approx(float(kl.mean()), rel=1e-9)


def test_units_in_use_are_counted_at_each_level():
    vae, x = small((3, 2)), bits()
    with torch.no_grad():  # the upper level's second unit is told nothing
        last = vae.encoder.networks[1].layers[-1]
        last.weight[1] = 0
        last.weight[0] *= 5
        vae.encoder.networks[0].layers[-1].weight.mul_(5)
        vae.conditionals[0].network.layers[-1].weight.mul_(0)
    found = evaluate(vae, x)
    assert (found["active_units_z_2"], found["num_latents_z_2"]) == (1, 2)
    assert (found["active_units_z_1"], found["num_latents_z_1"]) == (3, 3)
    assert (found["active_units"], found["num_latents"]) == (4, 5)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike():
    sizes = (3, 2, 2)
    options = {"epochs": 6, "batch_size": 32, "learning_rate": 0.01, "progress": False, "seed": 0}
    histories = [
        fit(small(sizes), bits(), objective=Elbo(kl="auto", kl_warmup=0.5), compile=compile, **options)
        for compile in (False, True)
    ]
    assert histories[1].attrs["execution"] == "compiled"
    assert set(histories[1].attrs["closed_form"]) == {f"z_{level + 1}" for level in range(len(sizes))}
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)
    assert histories[0]["elbo"].iloc[-1] > histories[0]["elbo"].iloc[0] + 0.3


def test_the_upper_level_is_learned_where_the_lower_one_has_two_modes():
    """One latent of two levels: without the upper one a lower level that is normal cannot have two modes."""
    torch.manual_seed(0)
    x = torch.where(torch.rand(512, 1) < 0.5, -3.0, 3.0) + 0.3 * torch.randn(512, 1)
    torch.manual_seed(0)
    vae = ladder_vae((1,), (1, 1), hidden_dims=(32,), likelihood=Normal(scale=0.3), activation="Tanh")
    fit(vae, x, epochs=100, learning_rate=0.02, objective=Elbo(kl_warmup=0.5), compile=False, progress=False)
    metrics = evaluate(vae, x)
    assert metrics["active_units_z_2"] == metrics["active_units_z_1"] == 1
    near = (vae.sample(2000).abs() - 3).abs() < 1
    assert float(near.float().mean()) > 0.9
    modes = torch.distributions.Normal(torch.tensor([-3.0, 3.0]), 0.3)
    entropy = -float((modes.log_prob(x).logsumexp(1) - math.log(2)).mean())
    assert -float(log_evidence(vae, x[:200], num_particles=500).mean) == pytest.approx(entropy, abs=0.25)


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_any_likelihood_and_rows_with_gaps(name):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    torch.manual_seed(0)
    vae = ladder_vae(shape, (2, 2), likelihood=case.make(), hidden_dims=(6,), missing="nan")
    data = rows_of(case, shape, gaps=True)
    history = fit(vae, data, epochs=3, compile=False, progress=False)
    assert math.isfinite(history["elbo"].iloc[-1])
    filled = vae.impute(data, 2, num_particles=5)
    seen = ~data["x"].isnan()
    assert torch.equal(filled[:, seen], data["x"][seen].expand(2, -1).to(filled.dtype))


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in ("impute", "encode")])
def test_every_tool_takes_it(tool):
    torch.manual_seed(0)
    TOOLS[tool](small(), bits(24))


def test_what_the_contract_says_of_it():
    found = check_pair(small(), bits(20))
    assert found
    assert found.tools["encode"] == "works, for the latent named by site=: z_2, z_1"
    assert found.tools["fit"].startswith("works, compiled")
    assert all(text.startswith("works") for name, text in found.tools.items() if name != "impute")


PRIORS = {"mixture": lambda: NormalMixture(2, 3), "VampPrior": lambda: VampPrior(2, 4), "standard": lambda: None}


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_saved_opens_as_the_same_numbers(tmp_path, prior):
    vae = small(prior=PRIORS[prior](), transform=Binarize(0, 16), missing="nan")
    x = 16 * bits(32)
    fit(vae, x, epochs=1, batch_size=16, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert type(opened) is type(vae)
    assert evaluate(opened, x) == evaluate(vae, x)
    torch.manual_seed(0)
    drawn = vae.sample(5)
    torch.manual_seed(0)
    assert torch.equal(opened.sample(5), drawn)
    assert {id(p) for p in opened.conditionals[0].parameters()} <= {id(p) for p in opened.model.parameters()}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small((3,)), r"at least two levels; found \(3,\): for one level use mlp_vae"),
        (lambda: small((3, 0)), r"at least two levels; found \(3, 0\)"),
        (
            lambda: small(prior=NormalMixture(4)),
            r"the model's levels have \(3, 4\) latents and the encoder's",
        ),
        (lambda: small(transform=Standardize((6,))), "use transform="),
        (lambda: small().encode(bits(2)), "name one of them with site="),
        (lambda: small().decode(torch.zeros(2, 3)), "give the value of each by name"),
    ],
    ids=["one level", "an empty level", "prior", "transform", "no site", "no names"],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
