"""Clusters that the model enumerates: sums by brute force, Pyro's TraceEnum_ELBO, and the mixture that they come to."""

import math

import numpy as np
import pytest
import torch
from every_tool import TOOLS
from examples import clusters as example
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from test_captured import LIKELIHOODS, NAMES, check, rows_of

from pyro_vae import VAE, check_pair, cluster_vae, evaluate, fit, load
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.posteriors import DiagonalNormal, SemiAmortized
from pyro_vae.priors import NormalMixture, StandardNormal
from pyro_vae.transforms import Binarize, Standardize


def small(**options):
    torch.manual_seed(0)
    return cluster_vae((6,), 2, 3, **{"likelihood": Bernoulli(), "hidden_dims": (8,), **options})


def roughened(vae, size=0.7):
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return vae


def bits(num=192):
    torch.manual_seed(1)
    return (torch.randn(3, 6)[torch.arange(num) % 3] + 0.7 * torch.randn(num, 6) > 0).float()


def by_cluster(vae, z):
    """Log p(y) p(z | y) for each cluster y, ``(3, N)``."""
    prior = vae.prior
    scales = np.logaddexp(0, prior.raw_scales.detach().numpy()) + prior.min_scale
    log_prob = stats.norm(prior.locs.detach().numpy()[:, None], scales[:, None]).logpdf(z.numpy()).sum(-1)
    return log_prob + prior.logits.detach().log_softmax(-1).numpy()[:, None]


@pytest.mark.usefixtures("float64")
def test_the_elbo_is_the_sum_over_clusters_by_brute_force():
    vae, x = roughened(small()), bits(7).double()
    draws = vae.draws(vae.prepare({"x": x}))
    z = draws.latents["z"].detach()
    with torch.no_grad():
        rest = (vae.decoder(z).log_prob(x) - vae.encoder(x).log_prob(z)).numpy()
    expected = np.logaddexp.reduce(by_cluster(vae, z), axis=0) + rest
    np.testing.assert_allclose(draws.elbo[0].numpy(), expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_elbo_and_its_gradient_are_those_of_trace_enum_elbo_and_of_the_mixture():
    vae, x = roughened(small()), bits(7).double()
    batch = vae.prepare({"x": x})
    structure = vae.structure(batch)
    parameters = list(vae.parameters())
    torch.manual_seed(1)
    ours = run_pair(*vae.programs, batch, structure).elbo.sum()
    torch.manual_seed(1)
    theirs = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    plain = VAE(vae.prior, vae.decoder, vae.encoder)  # the same with the mixture as its prior, and no clusters
    mixed = run_pair(*plain.programs, batch, plain.structure(batch)).elbo.sum()
    gradients = [torch.autograd.grad(value, parameters) for value in (ours, theirs, mixed)]
    for other, gradient in zip((theirs, mixed), gradients[1:], strict=True):
        assert float(ours.detach()) == pytest.approx(float(other.detach()), rel=1e-12)
        for here, there in zip(gradients[0], gradient, strict=True):
            np.testing.assert_allclose(here.numpy(), there.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_evidence_and_the_clusters_are_those_of_a_mixture_of_normals():
    """With an affine decoder each cluster of x is normal, too, and so are the exact responsibilities."""
    vae = roughened(cluster_vae((3,), 2, 3, likelihood=Normal(0.7), hidden_dims=()), 0.8)
    layer, prior = vae.decoder.network.layers[0], vae.prior
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    scales = np.logaddexp(0, prior.raw_scales.detach().numpy()) + prior.min_scale
    locs, weights = prior.locs.detach().numpy(), prior.logits.detach().log_softmax(-1).numpy()
    torch.manual_seed(4)
    x = vae.sample(5)
    covariances = [weight @ np.diag(scale**2) @ weight.T + 0.49 * np.eye(3) for scale in scales]
    joint = np.stack(
        [
            log_weight + stats.multivariate_normal(weight @ loc + bias, cov).logpdf(x)
            for log_weight, loc, cov in zip(weights, locs, covariances, strict=True)
        ]
    )
    with torch.no_grad():  # the guide is as wide as the prior, so that draws can be weighted
        vae.encoder.network.layers[0].weight.zero_()
        vae.encoder.network.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 1.5, 1.5]))
    found = log_evidence(vae, x, num_particles=20_000)
    expected = np.logaddexp.reduce(joint, axis=0)
    assert float(found.standard_error.max()) < 0.05
    assert bool((np.abs(found.log_evidence.numpy() - expected) < 5 * found.standard_error.numpy()).all())

    # With the exact posterior of one cluster as the guide, and clusters far apart, they are Bayes' rule.
    with torch.no_grad():
        vae.encoder.network.layers[0].weight.copy_(torch.cat([torch.linalg.pinv(layer.weight), torch.zeros(2, 3)]))
        shift = -torch.linalg.pinv(layer.weight) @ layer.bias
        vae.encoder.network.layers[0].bias.copy_(torch.cat([shift, torch.full((2,), -8.0)]))
    z = vae.encode(x, site="z").mean
    responsibilities = np.exp(by_cluster(vae, z) - np.logaddexp.reduce(by_cluster(vae, z), axis=0))
    np.testing.assert_allclose(vae.predict_cluster(x).numpy(), responsibilities.T, atol=2e-3)


def test_clusters_that_are_there_are_found():
    """Four heaps on a circle in the plane that a line of pictures lies in."""
    torch.manual_seed(0)
    y = torch.arange(400) % 4
    angle = y * math.pi / 2 + 0.25 * torch.randn(400)
    plane = 2 * torch.stack([angle.cos(), angle.sin()], -1) + 0.1 * torch.randn(400, 2)
    x = plane @ torch.randn(2, 6) + 0.1 * torch.randn(400, 6)
    vae = cluster_vae((6,), 2, 4, likelihood=Normal(), hidden_dims=(32,), transform=Standardize((6,)).fit(x))
    options = {"batch_size": 100, "learning_rate": 0.01, "compile": False, "progress": False}
    fit(VAE(type(vae.prior)(2, 1), vae.decoder, vae.encoder, vae.transform), x, epochs=15, **options)
    vae.start_at(x)
    fit(vae, x, epochs=15, **options)
    probabilities = vae.predict_cluster(x)
    assert torch.allclose(probabilities.sum(-1), torch.ones(400), atol=1e-5)
    clusters = probabilities.argmax(-1)
    table = torch.zeros(4, 4).index_put((clusters, y), torch.ones(400), accumulate=True)
    assert float(table.max(1).values.sum()) > 390
    assert sorted(table.argmax(1).tolist()) == [0, 1, 2, 3]


def test_a_mixture_starts_where_it_is_put():
    prior = NormalMixture(2, 3)
    locs, scales = torch.randn(3, 2), torch.tensor([[0.5, 2.0], [1e-3, 30.0], [1.0, 0.1]])
    prior.start_at(locs, scales, torch.tensor([0.2, 0.5, 0.3]))
    torch.testing.assert_close(prior.components().mean, locs)
    torch.testing.assert_close(prior.components().stddev, scales.clamp(min=1.1e-2), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prior.weights().probs, torch.tensor([0.2, 0.5, 0.3]))
    index = torch.tensor([[2], [0]])
    torch.testing.assert_close(prior.components(index).mean, locs[index])


def test_starts_are_the_same_each_time():
    x, vae = bits(), roughened(small(), 0.3)
    vae.start_at(x)
    before = [value.clone() for value in vae.prior.parameters()]
    random = torch.get_rng_state()
    vae.start_at(x)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.prior.parameters(), strict=True))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(vae.predict_cluster(x), vae.predict_cluster(x))


# The tools


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "impute"])
def test_every_tool_takes_it(tool):
    TOOLS[tool](small(), bits(24))


def test_what_the_contract_says_of_it():
    found = check_pair(small(), bits(20))
    assert found
    assert found.tools["fit"].startswith("works, compiled")
    assert all(text.startswith("works") for name, text in found.tools.items() if name != "impute")


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 8, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    histories = [fit(small(), bits(), compile=compile, **options) for compile in (False, True)]
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)
    assert histories[0]["elbo"].iloc[-1] > histories[0]["elbo"].iloc[0] + 0.3


def test_what_is_captured_never_touches_the_host():
    check(small, lambda: bits(12))


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_any_likelihood_and_rows_with_gaps(name):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    torch.manual_seed(0)
    vae = cluster_vae(shape, 2, 3, likelihood=case.make(), hidden_dims=(6,), missing="nan")
    data = rows_of(case, shape, gaps=True)
    history = fit(vae, data, epochs=2, compile=False, progress=False)
    assert math.isfinite(history["elbo"].iloc[-1])
    filled = vae.impute(data, 2, num_particles=5)
    seen = ~data["x"].isnan()
    assert torch.equal(filled[:, seen], data["x"][seen].expand(2, -1).to(filled.dtype))
    assert vae.predict_cluster(data).shape == (12, 3)


@torch.no_grad()
def test_a_posterior_that_goes_up_the_elbo_goes_up_that_of_the_clusters(tmp_path):
    vae = roughened(small(posterior=SemiAmortized(DiagonalNormal(), steps=8, num_draws=32)))
    vae.encoder.posterior.log_step.fill_(math.log(0.2))
    x = bits(40)

    def elbo(pair):
        torch.manual_seed(0)
        return float(pair.draws(pair.prepare({"x": x}), num_particles=200).elbo.mean())

    VAE(StandardNormal(2), vae.decoder, vae.encoder)  # as before clusters are looked for
    vae.start_at(x)
    vae.prior.locs.add_(3.0)  # far from where the standard normal would have codes
    refined = elbo(vae)
    assert elbo(VAE(vae.prior, vae.decoder, vae.encoder)) == pytest.approx(refined, rel=1e-5)  # the mixture as a prior
    vae.save(tmp_path / "saved")
    assert elbo(load(tmp_path / "saved")) == pytest.approx(refined, rel=1e-6)
    VAE(StandardNormal(2), vae.decoder, vae.encoder)
    assert elbo(vae) < refined - 1


def test_networks_may_be_others():
    vae = cluster_vae(
        (1, 8, 8),
        2,
        3,
        likelihood=Bernoulli(),
        encoder_network=lambda i, o: ConvEncoder(i, o, channels=(4,)),
        decoder_network=lambda i, o: ConvDecoder(i, o, channels=(4,)),
    )
    assert vae.predict_cluster(torch.rand(20, 1, 8, 8).round()).shape == (20, 3)


def test_what_is_saved_opens_as_the_same_numbers(tmp_path):
    vae, x = small(transform=Binarize(0, 16), missing="nan"), 16 * bits(32)
    fit(vae, x, epochs=1, batch_size=16, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert type(opened) is type(vae)
    assert evaluate(opened, x) == evaluate(vae, x)
    assert torch.equal(opened.predict_cluster(x), vae.predict_cluster(x))
    torch.manual_seed(0)
    drawn = vae.sample(5)
    torch.manual_seed(0)
    assert torch.equal(opened.sample(5), drawn)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: cluster_vae((6,), 2, 1, likelihood=Bernoulli()), "num_clusters must be at least 2, found 1"),
        (lambda: small(transform=Standardize((6,))), "use transform="),
        (lambda: small().start_at(bits(2)), "3 clusters need at least as many rows, found 2"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_a_network_of_the_users_own_stands_in_the_place_of_one():
    network = torch.nn.Linear(6, 4)
    vae = small(encoder_network=network)
    assert vae.encoder.network is network
    assert type(vae.decoder.network) is MLP


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "picture.png", epochs=1)
    assert (tmp_path / "picture.png").stat().st_size > 5_000
