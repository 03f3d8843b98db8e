"""Priors and posteriors beyond the standard ones: their densities, and that any of them go together."""

import itertools
import math
import warnings

import numpy as np
import pyro
import pytest
import torch
from coverings import covering
from scipy import stats
from test_captured import LIKELIHOODS, NAMES, rows_of

from pyro_vae import evaluate, fit, load, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.posteriors import (
    DiagonalNormal,
    FlowPosterior,
    FullNormal,
    Householder,
    LowRankNormal,
    MixturePosterior,
)
from pyro_vae.priors import FlowPrior, NormalMixture, StandardNormal, VampPrior

SMALL = {"num_transforms": 2, "hidden_dims": (8,)}
PRIORS = {
    "standard normal": StandardNormal,
    "normal mixture": lambda latent_dim: NormalMixture(latent_dim, 3),
    "VampPrior": lambda latent_dim: VampPrior(latent_dim, 4),
    "autoregressive flow": lambda latent_dim: FlowPrior(latent_dim, **SMALL),
    "coupling flow": lambda latent_dim: FlowPrior(latent_dim, "coupling", **SMALL),
    "spline flow": lambda latent_dim: FlowPrior(latent_dim, "spline", **SMALL),
}
POSTERIORS = {
    "diagonal": DiagonalNormal,
    "full": FullNormal,
    "low rank": lambda: LowRankNormal(2),
    "mixture": lambda: MixturePosterior(3),
    "Householder": lambda: Householder(2),
    "autoregressive flow": lambda: FlowPosterior(context_dim=5, **SMALL),
    "coupling flow": lambda: FlowPosterior("coupling", context_dim=5, **SMALL),
    "spline flow": lambda: FlowPosterior("spline", context_dim=5, **SMALL),
}


def build(prior, posterior, latent_dim=2, **options):
    torch.manual_seed(0)
    options = {"likelihood": Bernoulli(), "hidden_dims": (8,), **options}
    return mlp_vae((6,), latent_dim, prior=PRIORS[prior](latent_dim), posterior=POSTERIORS[posterior](), **options)


def bits():
    torch.manual_seed(1)
    return (torch.rand(192, 1) + 0.5 * torch.rand(192, 6) > 0.75).float()


def distributions():
    """Each prior, and each posterior at some raw output, over two latents, with its name."""
    for name in PRIORS:
        yield f"prior: {name}", build(name, "diagonal").prior()
    for name, make in POSTERIORS.items():
        torch.manual_seed(2)
        head = make().for_event((2,))
        yield f"posterior: {name}", head(torch.randn(head.raw_shape((2,))))


@pytest.mark.parametrize("name", [f"prior: {n}" for n in PRIORS] + [f"posterior: {n}" for n in POSTERIORS])
@torch.no_grad()
def test_the_density_integrates_to_one_and_its_draws_have_its_moments(name):
    distribution = dict(distributions())[name]
    assert (distribution.batch_shape, distribution.event_shape) == ((), (2,))
    axis = torch.linspace(-12, 12, 481)
    points = torch.cartesian_prod(axis, axis)
    mass = distribution.log_prob(points).double().exp() * float(axis[1] - axis[0]) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=5e-3)
    draws = distribution.expand(torch.Size([20_000])).sample().double()
    for power in (1, 2):
        expected = (mass[:, None] * points.double() ** power).sum(0)
        values = draws**power
        error = values.std(0) / math.sqrt(len(draws))
        assert bool(((values.mean(0) - expected).abs() < 5 * error + 5e-3).all()), power
    assert float((draws[:, 0] * draws[:, 1]).mean() - (mass * points.prod(-1)).sum()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("name", ["full", "low rank", "Householder"])
@pytest.mark.usefixtures("float64")
def test_normal_families_are_scipys(name):
    head = POSTERIORS[name]().for_event((4,))
    raw = torch.randn(3, *head.raw_shape((4,)))
    softplus, size = lambda values: np.logaddexp(0, values) + 1e-4, 4
    for row in range(3):
        values = raw[row].numpy()
        if name == "full":
            loc, entries = values[:size], values[size:]
            root = np.zeros((size, size))
            root[np.tril_indices(size)] = entries
            root = np.diag(softplus(np.diag(root))) @ (np.tril(root, -1) / 2 + np.eye(size))
            covariance = root @ root.T
        elif name == "low rank":
            loc = values[0]
            scales = np.diag(softplus(values[1]))
            covariance = scales @ (np.eye(size) + values[2:].T @ values[2:] / size) @ scales
        else:
            turn = np.eye(size)
            for normal in values[2:]:
                turn = (np.eye(size) - 2 * np.outer(normal, normal) / (normal @ normal)) @ turn
            loc, covariance = turn @ values[0], turn @ np.diag(softplus(values[1]) ** 2) @ turn.T
        z = np.random.default_rng(row).normal(size=(5, size))
        expected = stats.multivariate_normal(loc, covariance).logpdf(z)
        found = head(raw[row : row + 1]).log_prob(torch.as_tensor(z))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.usefixtures("float64")
def test_mixtures_are_mixtures_of_scipys_normals():
    prior = NormalMixture(3, 4)
    z = np.random.default_rng(0).normal(size=(6, 3))
    with torch.no_grad():
        prior.logits.copy_(torch.randn(4))
        prior.raw_scales.add_(torch.randn(4, 3))
        locs, weights = prior.locs.numpy(), prior.logits.softmax(-1).numpy()
        scales = np.logaddexp(0, prior.raw_scales.numpy()) + 1e-2
        expected = np.log(
            sum(w * stats.norm(m, s).pdf(z).prod(-1) for w, m, s in zip(weights, locs, scales, strict=True))
        )
        np.testing.assert_allclose(prior().log_prob(torch.as_tensor(z)).numpy(), expected, rtol=1e-9)


def test_a_vamp_prior_is_the_mean_of_the_encoders_beliefs_about_its_inputs():
    vae = build("VampPrior", "full").eval()
    z = torch.randn(5, 2)
    q = vae.encoder(vae.prior.pseudo_inputs)
    expected = torch.stack([q.log_prob(point) for point in z]).logsumexp(-1) - math.log(4)
    torch.testing.assert_close(vae.prior().log_prob(z), expected)
    low, high = (float(end) for end in vae.prior.pseudo_inputs.detach().aminmax())
    assert 0 <= low <= high <= 1
    rows = torch.rand(4, 6).round()
    vae.prior.start_at(rows)
    assert torch.equal(vae.prior.pseudo_inputs, rows)
    with pytest.raises(ValueError, match=r"shape \(4, 6\), found \(3, 6\)"):
        vae.prior.start_at(rows[:3])


def test_a_vamp_prior_of_no_vae_or_of_another_is_refused():
    prior = VampPrior(2, 4)
    with pytest.raises(ValueError, match="must be part of a VAE, whose encoder it uses"):
        prior()
    mlp_vae((6,), 2, likelihood=Bernoulli(), prior=prior)
    with pytest.raises(ValueError, match="give each VAE its own"):
        mlp_vae((6,), 2, likelihood=Bernoulli(), prior=prior)


def pairwise():
    """Every prior with every posterior of normals, and every posterior with every prior at least once."""
    cheap = ("diagonal", "full")
    return [
        (prior, posterior)
        for (i, prior), (j, posterior) in itertools.product(enumerate(PRIORS), enumerate(POSTERIORS))
        if posterior in cheap or i == 0 or (i + j) % 6 == 0
    ]


@pytest.mark.parametrize(("prior", "posterior"), covering(pairwise()))
def test_any_prior_goes_with_any_posterior(prior, posterior, tmp_path):
    x = bits()
    vae = build(prior, posterior)
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    start = np.mean([evaluate(vae, x, seed=seed)["elbo"] for seed in range(4)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(vae, x, epochs=12, batch_size=32, learning_rate=0.02, progress=False, compile=False)
    end = np.mean([evaluate(vae, x, seed=seed)["elbo"] for seed in range(4)])
    assert end > start + 0.02
    still = [name for name, value in vae.named_parameters() if torch.equal(before[name], value)]
    assert still == []
    assert vae.sample(5).shape == (5, 6)
    assert vae.posterior_predictive(x[:3], 2).shape == (2, 3, 6)
    assert vae.reconstruct(x[:3]).isfinite().all()
    found = log_evidence(vae, x[:20], num_particles=200)
    assert float(found.log_evidence.mean()) > evaluate(vae, x[:20])["elbo"] - 0.2
    vae.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert evaluate(again, x, seed=3)["elbo"] == pytest.approx(evaluate(vae, x, seed=3)["elbo"], abs=1e-5)


def kinds(case):
    """The classes of the two parts: flows of either kind are one, whatever their transforms."""
    return {(i, "flow" if "flow" in name else name) for i, name in enumerate(case)}


@pytest.mark.parametrize(
    ("prior", "posterior"),
    covering([p for p in pairwise() if p[0] == "VampPrior" or p[1] != "diagonal"][::3], kinds),
)
def test_they_train_alike_compiled(prior, posterior, request):
    if (prior, posterior) != ("VampPrior", "diagonal"):  # one is compiled by default, the others run as they are traced
        request.getfixturevalue("compiled_if_exhaustive")
    histories = []
    for compile in (False, True):
        pyro.clear_param_store()
        vae = build(prior, posterior)
        options = {"epochs": 2, "batch_size": 32, "progress": False, "seed": 0}
        histories.append(fit(vae, bits(), compile=compile, **options))
    eager, compiled = histories
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["elbo"].tolist() == pytest.approx(eager["elbo"].tolist(), rel=1e-4)


held = pytest.mark.filterwarnings("ignore:decoder.network")  # the decoder, as it is meant to be


def elbo_of_a_sum(posterior):
    """The ELBO after training, and the evidence: of two latents that the rows know only the sum of."""
    torch.manual_seed(0)
    x = torch.randn(512, 1) * math.sqrt(2 + 0.25)
    exact = float(torch.distributions.Normal(0.0, math.sqrt(2.25)).log_prob(x).mean())
    torch.manual_seed(0)
    vae = mlp_vae((1,), 2, hidden_dims=(16,), likelihood=Normal(scale=0.5), posterior=posterior)
    vae.decoder.network = torch.nn.Linear(2, 1)
    with torch.no_grad():
        vae.decoder.network.weight.fill_(1.0)
        vae.decoder.network.bias.zero_()
    vae.decoder.requires_grad_(False)
    fit(vae, x, epochs=75, batch_size=128, learning_rate=0.02, progress=False, schedule="cosine")
    return np.mean([evaluate(vae, x, seed=seed)["elbo"] for seed in range(20)]), exact


@held
def test_a_diagonal_family_leaves_the_gap_of_its_form():
    diagonal, exact = elbo_of_a_sum(DiagonalNormal())
    # The posterior's precision is I + 4 * 1 1ᵀ; the best diagonal one has its diagonal, 5 and 5.
    gap = 0.5 * (2 * math.log(5.0) - math.log(9.0))
    assert diagonal == pytest.approx(exact - gap, abs=0.03)


@held
@pytest.mark.parametrize(
    "make", [FullNormal, lambda: FlowPosterior(num_transforms=1, context_dim=8), lambda: Householder(3)]
)
def test_a_full_family_reaches_what_a_diagonal_one_cannot(make):
    full, exact = elbo_of_a_sum(make())
    assert full == pytest.approx(exact, abs=0.03)


def test_a_mixture_finds_both_modes():
    """x is z² with noise, so that z may be either root; the second latent says nothing."""
    torch.manual_seed(0)
    vae = mlp_vae((1,), 2, hidden_dims=(32,), likelihood=Normal(scale=0.3), posterior=MixturePosterior(2))

    class Square(torch.nn.Module):
        def forward(self, z):
            return z[:, :1].square()

    vae.decoder.network = Square()
    x = torch.randn(1024, 1).square() + 0.3 * torch.randn(1024, 1)
    fit(vae, x, epochs=60, batch_size=128, learning_rate=0.01, progress=False)
    draws = vae.encode(torch.full((1, 1), 2.25)).sample(torch.Size([2000]))[:, 0, 0]
    assert float((draws.abs() - 1.5).abs().median()) < 0.15
    assert 0.2 < float((draws > 0).double().mean()) < 0.8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: NormalMixture(2, 0), "num_components must be at least 1, found 0"),
        (lambda: VampPrior(2, 0), "num_components must be at least 1, found 0"),
        (lambda: FlowPrior(2, "nflow"), "flow"),
        (lambda: FlowPrior(2, num_transforms=0), "num_transforms must be at least 1, found 0"),
        (lambda: LowRankNormal(0), "rank must be at least 1, found 0"),
        (lambda: MixturePosterior(0), "num_components must be at least 1, found 0"),
        (lambda: Householder(0), "num_reflections must be at least 1, found 0"),
        (lambda: FlowPosterior(context_dim=0), "context_dim must be at least 1, found 0"),
        (lambda: FullNormal(min_scale=0), "min_scale must be positive; found 0"),
        (lambda: FullNormal()(torch.zeros(2, 9)), "must know the number of latents"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_vamp_prior_goes_with_every_likelihood_or_says_why_not():
    """Its inputs are learned, with and without gaps in the data."""
    for name, gaps in itertools.product(NAMES, (False, True)):
        case, missing = LIKELIHOODS[name], "nan" if gaps else None
        shape, prior = case.events[-1], VampPrior(2, 3)
        options = {"likelihood": case.make(), "hidden_dims": (4,), "missing": missing, "prior": prior}
        if name in ("categorical, kinds", "mixed"):
            with pytest.raises(ValueError, match=r"a VampPrior (needs data of one kind|learns its inputs)"):
                mlp_vae(shape, 2, activation="Softplus", **options)
            continue
        vae = mlp_vae(shape, 2, activation="Softplus", **options)
        before = vae.prior.pseudo_inputs.detach().clone()
        rows = rows_of(case, shape, gaps=gaps)
        x = rows | {"x": torch.where((rows["x"] > 0) & (rows["x"] < 1e-3), 1e-3, rows["x"])}  # not at float32's end
        fit(vae, x, epochs=1, batch_size=12, progress=False, compile=False)
        assert not torch.equal(before, vae.prior.pseudo_inputs), name
        given = {"size_factor": torch.ones(3)} if case.takes_size_factor else {}
        assert len(vae.sample(3, given=given)) == 3
