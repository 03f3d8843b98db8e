"""The numbers of evaluate against closed forms."""

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact_guides import EXACT, shared_mean, two_levels
from linear_gaussian import LinearGaussian, resident
from pairs import function_pair

from pyro_vae import Pair, evaluate, fit, mlp_vae
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.transforms import Binarize, Scale, Standardize


def test_rate_and_distortion_estimate_their_closed_forms():
    lg = LinearGaussian()
    x = lg.draw(20_000)
    metrics = evaluate(lg.vae, x)
    q_z = lg.vae.encode(x)
    p_z = torch.distributions.Normal(0.0, 1.0)
    rate = torch.distributions.kl_divergence(torch.distributions.Normal(q_z.mean, q_z.stddev), p_z).sum(-1).mean()
    squared = (x - lg.loc - q_z.mean @ lg.weight.T).square().sum(-1) + (q_z.variance @ lg.weight.square().T).sum(-1)
    distortion = (0.5 * squared / lg.scale**2).mean() + 5 * math.log(lg.scale * math.sqrt(2 * math.pi))
    assert abs(metrics["rate"] - rate) < 5 * metrics["rate_se"]
    assert abs(metrics["distortion"] - distortion) < 5 * metrics["distortion_se"]
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])
    assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / (5 * math.log(2)))
    assert metrics["bits_per_dim_se"] == pytest.approx(metrics["elbo_se"] / (5 * math.log(2)))
    assert metrics["num_rows"] == 20_000


def test_standard_errors_are_the_spread_of_the_mean():
    lg = LinearGaussian()
    means = [evaluate(lg.vae, lg.draw(500), seed=seed)["elbo"] for seed in range(100)]  # their spread within 7%
    claimed = evaluate(lg.vae, lg.draw(500))["elbo_se"]
    assert claimed == pytest.approx(float(torch.tensor(means).std()), rel=0.3)


def test_active_units_counts_the_latents_that_vary_with_the_data():
    lg = LinearGaussian(latent_dim=4)
    layer = lg.vae.encoder.network.layers[0]
    x = torch.randn(3000, 5)
    with torch.no_grad():
        layer.weight.zero_()
        for latent, sd in enumerate((1.0, 0.15, 0.05, 0.0)):  # variances 1, 0.0225, 0.0025 and 0
            layer.weight[latent, latent] = sd
    assert evaluate(lg.vae, x)["active_units"] == 2


@pytest.mark.parametrize("factor", [255.0, 0.01])
def test_scaling_the_data_by_a_changes_the_evidence_by_d_log_a(float64, factor):
    x = torch.rand(40, 6)
    vaes = []
    for high in (1.0, factor):
        torch.manual_seed(0)
        vaes.append(mlp_vae((6,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, high)).double())
    elbos = [evaluate(vae, x * high)["elbo"] for vae, high in zip(vaes, (1.0, factor), strict=True)]
    assert elbos[1] == pytest.approx(elbos[0] - 6 * math.log(factor), rel=1e-10)


def test_standardising_is_undone_in_the_evidence(float64):
    """A model of standardised data is a model of the data: its density integrates to one there."""
    x = torch.randn(500, 1) * 30 + 7
    vae = mlp_vae((1,), 1, hidden_dims=(), likelihood=Normal(scale=1.0), transform=Standardize((1,)).fit(x)).double()
    affine = vae.decoder.network.layers[0]
    for p in affine.parameters():
        torch.nn.init.zeros_(p)
    reconstruction, _ = elbo_per_row(vae, resident(x))
    truth = torch.distributions.Normal(x.mean(), x.std(correction=0)).log_prob(x[:, 0])
    torch.testing.assert_close(reconstruction, truth, rtol=1e-9, atol=1e-9)


def test_history_and_evaluate_speak_of_the_same_units():
    x = torch.randint(0, 256, (64, 6), dtype=torch.uint8)
    vae = mlp_vae((6,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, 255))
    history = fit(vae, x, validation_data=x, epochs=2, batch_size=16, progress=False)
    assert evaluate(vae, x)["elbo"] == pytest.approx(history["validation_elbo"].max(), rel=1e-6)
    assert history["elbo"].iloc[-1] == pytest.approx(history["validation_elbo"].iloc[-1], abs=1.5)


def test_binary_evidence_is_a_probability_and_has_no_jacobian():
    x = torch.randint(0, 2, (30, 4)) * 255
    vae = mlp_vae((4,), 2, likelihood=Bernoulli(), transform=Binarize(0, 255))
    plain = mlp_vae((4,), 2, likelihood=Bernoulli())
    plain.load_state_dict(vae.state_dict())
    assert evaluate(vae, x)["elbo"] < 0
    assert evaluate(vae, x)["elbo"] == pytest.approx(evaluate(plain, x // 255)["elbo"], abs=0.5)


def test_the_result_does_not_depend_on_the_callers_random_state_nor_change_it():
    lg = LinearGaussian()
    x = lg.draw(50)
    first = evaluate(lg.vae, x)
    torch.rand(3)
    state = torch.get_rng_state()
    assert evaluate(lg.vae, x) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert evaluate(lg.vae, x, seed=1)["elbo"] != first["elbo"]


def test_any_pair_is_evaluated():
    pair = function_pair()
    metrics = evaluate(pair, torch.randn(200))
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])


@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_with_the_exact_posterior_the_elbo_is_the_evidence_whatever_the_draw(make):
    """Scales, subsampling, masks, enumeration, other observed sites and latents of all rows included."""
    exact = make()
    metrics = evaluate(exact.pair, exact.data)
    assert metrics["elbo"] == pytest.approx(float(exact.log_evidence.mean()), abs=1e-5)
    assert ("bits_per_dim" in metrics) == (set(exact.data) & {"y", "targets"} == set())
    expected = {
        "two_levels": 4,
        "words": 4,
        "closures": 2,
        "scaled": 2,
        "sequences": 3,
        "mixture": 1,
        "components_alone": None,
        "guide_enumerates": None,
    }.get(make.__name__, 1)
    assert metrics.get("num_latents") == expected
    assert ("active_units" in metrics) == (expected is not None)


def test_active_units_are_those_of_all_continuous_latents():
    """The variances of a's and b's posterior means are known; with b shrunk to a hundredth, its means do not vary."""
    exact = two_levels(2000)
    assert evaluate(exact.pair, exact.data)["active_units"] == 4

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(0.01 * x, 3.0).to_event(1))
            pyro.sample("a", dist.Normal(b / 1.64, 0.6).to_event(1))  # draws of b vary, their middle does not

    metrics = evaluate(Pair(exact.pair.model, guide), exact.data)
    assert (metrics["active_units"], metrics["num_latents"]) == (0, 4)


class WithoutMean(dist.Normal):
    mean = property(lambda self: (_ for _ in ()).throw(NotImplementedError))


def test_distributions_without_a_mean_are_left_out():
    def pair(family, second):
        def model(x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                b = pyro.sample("b", dist.Normal(torch.zeros(()), 1.0))
                return pyro.sample("x", dist.Normal(a.sum(-1) + b, 1.0), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("a", family(x[:, None].expand(-1, 2), 1.0).to_event(1))
                pyro.sample("b", second(x, 1.0))

        return Pair(model, guide)

    x = 3 * torch.randn(100)
    for first, second, count in (
        (dist.Normal, dist.Normal, 3),
        (WithoutMean, dist.Normal, 1),
        (dist.Cauchy, dist.Normal, 1),  # whose mean is NaN
        (dist.Normal, WithoutMean, 2),
    ):
        metrics = evaluate(pair(first, second), x)
        assert metrics["active_units"] == metrics["num_latents"] == count
    nothing = evaluate(pair(WithoutMean, WithoutMean), x)
    assert nothing.keys().isdisjoint({"active_units", "num_latents"})
    assert "elbo" in nothing


class Wrapped(dist.TorchDistribution):
    """A flow as ``pyro.contrib.zuko`` wraps it: called for draws, with a density, and nothing else."""

    arg_constraints: ClassVar[dict] = {}
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__(loc.shape, validate_args=False)

    def __call__(self, shape=()):
        return self.loc + torch.randn(*shape, *self.loc.shape)

    def log_prob(self, value):
        return torch.distributions.Normal(self.loc, 1.0).log_prob(value)

    def expand(self, shape, _instance=None):
        return Wrapped(self.loc.expand(shape))


def test_flows_are_evaluated():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", Wrapped(torch.zeros(())))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", Wrapped(x / 2))

    x = 2**0.5 * torch.randn(4000)
    pair = Pair(model, guide)
    metrics = evaluate(pair, x, seed=1)  # with seed 0 the guide would meet the numbers that x is made of
    assert "active_units" not in metrics
    # KL between normals of variance 1 with means x / 2 and 0, and E log p(x | z) with z = x / 2 + e.
    assert metrics["rate"] == pytest.approx(float((x / 2).square().mean() / 2), abs=5 * metrics["rate_se"])
    expected = float(((x / 2).square().mean() + 1) / 2) + 0.5 * math.log(2 * math.pi)
    assert metrics["distortion"] == pytest.approx(expected, abs=5 * metrics["distortion_se"])
    assert (pair.reconstruct(x) - x / 2).abs().max() < 5 / 16  # the mean of 256 draws


def test_the_kl_of_a_global_latent_is_shared_as_in_training():
    exact = shared_mean(64)
    validation = exact.data["x"][:20]

    def guide(x):
        loc = pyro.param("loc", torch.tensor(2.0))
        mean = pyro.sample("mean", dist.Normal(loc, 0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("level", dist.Normal((x + 0.25 * mean) / 1.25, 0.2**0.5))

    pair = Pair(exact.pair.model, guide)
    alone = evaluate(pair, validation)  # not trained yet: these rows are all there are
    history = fit(pair, exact.data["x"], validation_data=validation, epochs=2, batch_size=16, progress=False)
    metrics = evaluate(pair, validation)
    assert metrics["elbo"] == pytest.approx(history["validation_elbo"].max(), rel=1e-6)
    # With q(level) exact the row's KL less its reconstruction is -log p(x | mean); the global's KL comes in 64 parts.
    loc = pyro.param("loc").item()
    assert loc != 2.0
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(loc, 0.3), torch.distributions.Normal(0.0, 2.0))
    bounds = [evaluate(pair, validation, seed=seed)["elbo"] for seed in range(200)]
    expected = torch.distributions.Normal(loc, 1.25**0.5).log_prob(validation).mean() - 0.3**2 / (2 * 1.25) - kl / 64
    spread = torch.tensor(bounds).std() / 200**0.5
    assert float(torch.tensor(bounds).mean()) == pytest.approx(float(expected), abs=4.5 * float(spread))
    assert alone["elbo"] < metrics["elbo"]


def test_what_the_guide_observes_is_reported_apart():
    """CEVAE's structure in small: the guide predicts t as well, which the model has, and the ELBO does not count it."""

    def model(x=None, *, t=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("t", dist.Bernoulli(logits=z), obs=t)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, *, t):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("t", dist.Bernoulli(torch.tensor(0.3)), obs=t, infer={"is_auxiliary": True})
            pyro.factor("penalty", torch.full((len(x),), 2.0), has_rsample=False)
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    def without(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 0.7))

    x, t = torch.randn(300), torch.bernoulli(torch.full((300,), 0.4))
    metrics, plain = (evaluate(Pair(model, g), {"x": x, "t": t}) for g in (guide, without))
    share = float(t.mean())
    assert metrics["auxiliary"] == pytest.approx(share * math.log(0.3) + (1 - share) * math.log(0.7) - 2, abs=1e-5)
    assert metrics["auxiliary_se"] > 0
    assert metrics["elbo"] == pytest.approx(plain["elbo"], abs=4 * metrics["elbo_se"])
    assert "auxiliary" not in plain


def test_rows_come_in_any_form(tmp_path):
    import numpy as np
    import pandas as pd
    import scipy.sparse

    lg = LinearGaussian()
    x = lg.draw(40)
    x[x < 0] = 0
    expected = evaluate(lg.vae, x)
    np.save(tmp_path / "x.npy", x.numpy())
    for rows in (
        x.numpy(),
        pd.DataFrame(x.numpy()),
        scipy.sparse.csr_matrix(x.numpy()),
        np.load(tmp_path / "x.npy", mmap_mode="r"),
        torch.utils.data.TensorDataset(x),
        {"x": x},
    ):
        assert evaluate(lg.vae, rows, num_workers=0) == pytest.approx(expected)
    with pytest.raises(TypeError, match="neither program takes 'labels'"):
        evaluate(lg.vae, {"x": x, "labels": torch.zeros(40)})
    with pytest.raises(TypeError, match="unexpected keyword argument 'label'"):
        evaluate(lg.vae, x, label=3)


def test_one_row_has_no_standard_error():
    lg = LinearGaussian()
    assert "elbo_se" not in evaluate(lg.vae, lg.draw(1))
