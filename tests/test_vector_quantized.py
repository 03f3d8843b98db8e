"""A vector-quantised VAE: its codebook, its gradients and its bound, by hand."""

import math

import pytest
import torch
from every_tool import TOOLS
from test_captured import LIKELIHOODS, rows_of
from test_codes import patterns

from pyro_vae import Elbo, check_pair, evaluate, fit, load, vector_quantized_vae
from pyro_vae.evaluation import diagnose_guide, log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.priors import IndependentCodes


def bits(num=192):
    torch.manual_seed(1)
    return (torch.rand(num, 1) + 0.5 * torch.rand(num, 6) > 0.75).float()


def small(**options):
    torch.manual_seed(0)
    options = {"likelihood": Bernoulli(), "hidden_dims": (8,), **options}
    return vector_quantized_vae((6,), 2, 4, 3, **options)


def by_hand(vae, x):
    """The encoder's vectors, the codes nearest to them by search, and those codes' vectors."""
    vectors, codebook = vae.encoder.network(x).unflatten(-1, (2, 3)), vae.encoder.posterior.codebook
    found = vectors.detach()
    codes = torch.tensor([[min(range(4), key=lambda k: float((v - codebook[k]).norm())) for v in row] for row in found])
    return vectors, codes, codebook[codes]


@pytest.mark.usefixtures("float64")
def test_the_elbo_is_that_of_the_nearest_codes_and_gradients_go_straight_through():
    vae, x = small(commitment=0.3), bits(9).double()
    batch = vae.prepare({"x": x})
    vectors, codes, near = by_hand(vae, x)
    assert torch.equal(vae.codes(x), codes)
    torch.testing.assert_close(vae.vectors(codes), near.flatten(-2))
    one_hot = torch.nn.functional.one_hot(codes, 4).double().flatten(-2)
    z = near.flatten(-2).detach().requires_grad_()
    log_x, log_k = vae.decoder(z).log_prob(x), vae.prior().log_prob(one_hot)
    draws = run_pair(*vae.eval().programs, batch, vae.structure(batch))
    torch.testing.assert_close(draws.elbo[0], log_x + log_k)
    torch.testing.assert_close(draws.rate[0], -log_k)
    distance = (vectors - near.detach()).square().sum((-2, -1))
    torch.testing.assert_close(draws.auxiliary["commitment"][0], -0.3 * distance)
    # The gradient at the codes is that of the encoder's vectors, with the commitment's own.
    weights = list(vae.encoder.network.parameters())
    (at_codes,) = torch.autograd.grad(log_x.sum(), z, retain_graph=True)
    surrogate = (vectors.flatten(-2) * at_codes).sum() - 0.3 * distance.sum()
    found = torch.autograd.grad(Elbo()(draws, torch.ones(())).sum(), weights)
    for here, there in zip(found, torch.autograd.grad(surrogate, weights), strict=True):
        torch.testing.assert_close(here, there)


@pytest.mark.usefixtures("float64")
def test_the_codebook_is_a_running_mean_of_what_is_near_to_it():
    vae, x = small(decay=0.9, restart=0.0), bits(40).double()
    nearest = vae.encoder.posterior
    nearest.usage.copy_(torch.tensor([0.5, 1.0, 1.5, 1.0]))
    vectors, codes, _ = by_hand(vae, x)
    before, usage = nearest.codebook.clone(), nearest.usage.clone()
    vae.eval().encoder(x)
    assert torch.equal(nearest.codebook, before)
    vae.train().encoder(x)
    due = vectors.shape[:-1].numel() / 4
    for k in range(4):
        near = vectors[codes == k]
        share = 0.9 * usage[k] + 0.1 * len(near) / due
        expected = (0.9 * usage[k] * before[k] + 0.1 * near.sum(0) / due) / share
        torch.testing.assert_close(nearest.codebook[k], expected)
        torch.testing.assert_close(nearest.usage[k], share)


def test_codes_that_none_is_near_to_are_moved_to_where_the_rows_are():
    vae, x = small(), bits(40)
    nearest = vae.encoder.posterior
    vae.train().encoder(x)  # the first batch: each starts at one of its vectors
    vectors = vae.encoder.network(x).detach().unflatten(-1, (2, 3)).flatten(0, 1)
    assert float(torch.cdist(nearest.codebook, vectors).min(-1).values.max()) < 1e-6
    with torch.no_grad():
        nearest.codebook[2] = 100.0
    for _ in range(400):  # 0.99 ** 349 is 0.03
        vae.encoder(x)
    assert float(nearest.codebook[2].abs().max()) < 10
    assert bool((nearest.usage >= 0.03).all())


def test_the_prior_learns_the_codes_and_draws_are_like_the_data():
    x, kinds = patterns()
    vae = small(hidden_dims=(16,))
    options = {"epochs": 80, "batch_size": 100, "learning_rate": 0.01, "compile": False, "progress": False}
    history = fit(vae, x, **options)
    assert {"auxiliary", "elbo", "kl"} <= set(history.columns)
    counts = torch.bincount(vae.codes(x) @ torch.tensor([4, 1]), minlength=16)
    entropy = -float(torch.special.xlogy(counts / len(x), counts / len(x)).sum())
    metrics = evaluate(vae, x)
    assert metrics["rate"] == pytest.approx(entropy, abs=0.15)
    assert metrics["elbo"] > -1.28 - 0.59 - 0.5  # the entropy of the kinds, that of the flips
    drawn = vae.sample(2000)
    assert float((torch.cdist(drawn, kinds, p=1).min(-1).values <= 1).float().mean()) > 0.93
    found = torch.bincount(vae.codes(drawn) @ torch.tensor([4, 1]), minlength=16) / 2000
    assert float((found - counts / len(x)).abs().sum()) < 0.35  # where draws are read back


def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 4, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    eager, compiled = (fit(small(), bits(), compile=compile, **options) for compile in (False, True))
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["objective"].tolist() == pytest.approx(eager["objective"].tolist(), rel=1e-3)
    assert eager["objective"].iloc[-1] > eager["objective"].iloc[0]


REFUSED = {
    "log_evidence": "the guide sets the discrete latent 'z' to one value",
    "diagnose_guide": "the guide sets the discrete latent 'z' to one value",
    "predictive_coverage": "the guide sets the discrete latent 'z' to one value",
    "impute": "the guide sets the discrete latent 'z' to one value",
    "refine": "cannot be refined",
    "gaps": "cannot be refined",
    "ais_bounds": "is discrete, and annealing",
    "ais_bounds of simulated rows": "is discrete, and annealing",
    "nuts_posterior": "NUTS can neither move it nor sum over it",
}


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_takes_it_or_says_why_not(tool):
    vae, x = small(missing="nan"), bits(24)
    if tool in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[tool]):
            TOOLS[tool](vae, x)
    else:
        TOOLS[tool](vae, x)


def test_a_bound_of_one_draw_is_no_evidence():
    vae, x = small(), bits(6)
    for tool in (log_evidence, diagnose_guide):
        with pytest.raises(ValueError, match="their bound is the elbo of evaluate"):
            tool(vae, x)
    tools = check_pair(vae, x).tools
    assert tools["log_evidence"].startswith("refused: the guide sets the discrete latent")
    assert tools["impute"].startswith("refused: the guide sets the discrete latent")


@pytest.mark.parametrize("name", ["poisson", "categorical", "normal"])
def test_it_goes_with_other_likelihoods_and_gaps(name):
    case = LIKELIHOODS[next(n for n in LIKELIHOODS if n.startswith(name))]
    shape = case.events[-1]
    torch.manual_seed(0)
    vae = vector_quantized_vae(shape, 2, 3, 2, likelihood=case.make(), hidden_dims=(6,), missing="nan")
    data = rows_of(case, shape, gaps=True)
    assert math.isfinite(fit(vae, data, epochs=2, compile=False, progress=False)["elbo"].iloc[-1])
    assert vae.posterior_predictive(data).shape[1:] == data["x"].shape
    assert vae.codes(data).shape == (12, 2)


def test_what_is_saved_opens_as_the_same_numbers(tmp_path):
    vae, x = small(prior=IndependentCodes(2, 4)), bits()
    fit(vae, x, epochs=2, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert torch.equal(opened.codes(x), vae.codes(x))
    assert evaluate(opened, x) == evaluate(vae, x)
    assert torch.equal(opened.model.prior().codebook, opened.encoder.posterior.codebook)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small(commitment=-1.0), "commitment must be a finite number from 0, found -1.0"),
        (lambda: small(decay=1.0), "decay and restart must lie from 0 to 1"),
        (lambda: small(prior=IndependentCodes(2, 3)), "the prior has 6 latents; 2 codes of 4 values are 8"),
        (lambda: vector_quantized_vae((6,), 2, 0, likelihood=Normal()), "must be at least 1, found 0 and 8"),
    ],
    ids=["commitment", "decay", "prior", "values"],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
