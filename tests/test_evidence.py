"""The evidence of each row against closed forms, finite sums and Pyro's own estimators."""

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair, mixture_pair
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.util import is_validation_enabled

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import evidence, log_evidence
from pyro_vae.evaluation.evidence import log_mean_exp, reduce_log_weights
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training import lowering
from pyro_vae.transforms import Scale

pytestmark = pytest.mark.usefixtures("float64")


def log_weights(pair, x, num_particles, **kwargs):
    """All log-weights, ``(K, N)``, in the model's units."""
    return reduce_log_weights(pair, x, lambda weights: weights, num_particles=num_particles, **kwargs)[0]


def rough_guide(lg):
    """Independent normals: off the posterior by a third, and wider."""

    def q_z(x):
        p_z = lg.posterior(x)
        return dist.Normal(p_z.mean + 0.3 * p_z.stddev, 1.3 * p_z.stddev).to_event(1)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", q_z(x))

    return Pair(lg.vae.model, guide), q_z


def test_with_the_exact_posterior_one_particle_gives_the_evidence():
    lg = LinearGaussian()
    x = lg.draw(30)
    one, ten = (log_evidence(lg.exact_pair(), x, num_particles=k) for k in (1, 10))
    torch.testing.assert_close(one.log_evidence, lg.log_evidence(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(ten.ess, torch.full((30,), 10.0))
    assert one.standard_error.isnan().all()
    assert ten.standard_error.max() < 1e-9


def test_the_mean_weight_is_unbiased_and_its_error_is_as_claimed():
    lg = LinearGaussian()
    x = lg.draw(400)
    pair, _ = rough_guide(lg)
    evidence = log_evidence(pair, x, num_particles=2000)
    error = (evidence.log_evidence - lg.log_evidence(x)) / evidence.standard_error
    assert float(error.std()) == pytest.approx(1.0, abs=0.15)
    ratio = (log_weights(pair, x, 20, seed=1) - lg.log_evidence(x)).exp().mean(0)  # unbiased however few they are
    assert abs(float((ratio.mean() - 1) / (ratio.std() / 20))) < 4
    assert float(ratio.log().mean()) < -0.005  # the logarithm is not: it is a lower bound


def test_estimates_rise_to_the_evidence_with_the_number_of_particles():
    lg = LinearGaussian()
    x = lg.draw(200)
    truth = lg.log_evidence(x)
    pair, q_z = rough_guide(lg)
    evidence = log_evidence(pair, x, num_particles=5000)
    curve = evidence.curve
    assert list(curve["num_particles"]) == [1, 10, 100, 1000, 5000]
    assert curve["log_evidence"].is_monotonic_increasing
    # At one particle it is the ELBO, from 5000 draws for each row: the evidence less the KL.
    q_x = dist.MultivariateNormal(q_z(x).mean, torch.diag_embed(q_z(x).variance))
    gap = torch.distributions.kl_divergence(q_x, lg.posterior(x)).mean()
    assert float(truth.mean() - curve["log_evidence"].iloc[0]) == pytest.approx(float(gap), rel=0.01)
    assert abs(float(truth.mean()) - evidence.mean) < 0.01 * gap
    assert evidence.mean == pytest.approx(curve["log_evidence"].iloc[-1])
    assert evidence.mean_standard_error == pytest.approx(float(evidence.log_evidence.std()) / math.sqrt(200))
    assert evidence.bits_per_dim == pytest.approx(-evidence.mean / (5 * math.log(2)))


def test_the_curve_is_over_disjoint_blocks_of_the_draws():
    lg = LinearGaussian()
    x = lg.draw(4)
    weights = log_weights(lg.vae, x, 250)
    by_hand = {
        1: weights.mean(0),
        10: torch.stack([b.exp().mean(0).log() for b in weights.split(10)]).mean(0),
        100: torch.stack([weights[:100].exp().mean(0).log(), weights[100:200].exp().mean(0).log()]).mean(0),
        250: weights.exp().mean(0).log(),
    }
    curve = log_evidence(lg.vae, x, num_particles=250).curve
    for (size, values), (_, row) in zip(by_hand.items(), curve.iterrows(), strict=True):
        assert row["num_particles"] == size
        assert row["log_evidence"] == pytest.approx(float(values.mean()), rel=1e-12)
        assert row["standard_error"] == pytest.approx(float(values.std() / 2), rel=1e-10)


def test_the_error_and_the_effective_sample_size_are_the_textbooks():
    weights = torch.rand(40, 3) + 0.1
    log_mean, error, ess = log_mean_exp(weights.log() - 900.0)  # far below what exp can hold
    torch.testing.assert_close(log_mean, weights.mean(0).log() - 900.0)
    torch.testing.assert_close(error, weights.std(0) / weights.mean(0) / math.sqrt(40))
    torch.testing.assert_close(ess, weights.sum(0).square() / weights.square().sum(0))


def test_a_binary_latent_is_summed_out():
    pair, x = discrete_pair(), torch.randn(6)
    truth = torch.logsumexp(
        torch.stack([math.log(p) + dist.Normal(m, 1.0).log_prob(x) for p, m in ((0.6, -1.0), (0.4, 1.5))]), 0
    )
    evidence = log_evidence(pair, x, num_particles=20_000)
    z = (evidence.log_evidence - truth) / evidence.standard_error
    assert z.abs().max() < 4.5
    assert evidence.standard_error.max() < 0.02


def test_it_agrees_with_pyros_estimators():
    """Pyro's Rényi bound takes its average over a whole batch, so it is held to ours on one row."""
    lg = LinearGaussian()
    x = lg.draw(1)
    ours = log_evidence(lg.vae, x, num_particles=20_000)
    renyi = RenyiELBO(alpha=0, num_particles=20_000, vectorize_particles=True, max_plate_nesting=1)
    theirs = -renyi.loss(lg.vae.model, lg.vae.guide, x)
    assert abs(float(ours.log_evidence) - theirs) < 5 * math.sqrt(2) * float(ours.standard_error)
    x = lg.draw(50)
    weights = log_weights(lg.vae, x, 2000)
    trace = Trace_ELBO(num_particles=2000, vectorize_particles=True, max_plate_nesting=1)
    elbo = -trace.loss(lg.vae.model, lg.vae.guide, x)
    error = float(weights.sum(1).std() / math.sqrt(2000))
    assert abs(float(weights.sum(1).mean()) - elbo) < 4 * math.sqrt(2) * error


def test_scales_and_subsampling_are_ignored():
    lg = LinearGaussian()
    x = lg.draw(10)
    _, q_z = rough_guide(lg)
    plain = log_evidence(lg.vae, x, num_particles=50).log_evidence
    scaled = Pair(poutine.scale(lg.vae.model, 0.3), poutine.scale(lg.vae.guide, 7.0))
    torch.testing.assert_close(log_evidence(scaled, x, num_particles=50).log_evidence, plain, rtol=1e-12, atol=0)

    def model(x=None, *, batch_size=None):
        rows = batch_size if x is None else len(x)
        with pyro.plate("data", 60_000, subsample_size=rows, dim=-1):
            z = pyro.sample("z", lg.vae.prior())
            return pyro.sample("x", lg.vae.decoder(z), obs=x)

    def guide(x):
        with pyro.plate("data", 60_000, subsample_size=len(x), dim=-1):
            pyro.sample("z", q_z(x))

    # Choosing indices uses random numbers, so the draws are others.
    found = log_evidence(Pair(model, guide), x, num_particles=4000)
    assert found.standard_error.max() < 0.1
    assert ((found.log_evidence - lg.log_evidence(x)) / found.standard_error).abs().max() < 5


def test_scaling_the_data_by_a_changes_the_evidence_by_d_log_a():
    x = torch.rand(12, 6)
    found = []
    for factor in (1.0, 255.0):
        torch.manual_seed(0)
        vae = mlp_vae((6,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, factor)).double()
        found.append(log_evidence(vae, x * factor, num_particles=20))
    torch.testing.assert_close(found[1].log_evidence, found[0].log_evidence - 6 * math.log(255), rtol=1e-10, atol=0)
    change = found[1].curve["log_evidence"] - found[0].curve["log_evidence"]
    assert change.tolist() == pytest.approx([-6 * math.log(255)] * len(change))
    torch.testing.assert_close(found[1].standard_error, found[0].standard_error)


def test_with_gaps_it_is_the_evidence_of_the_observed_part():
    lg = LinearGaussian()
    x = lg.draw(20)
    x[torch.rand(20, 5) < 0.3] = torch.nan
    x[:, 0] = 0.1

    def guide(x, mask):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.2).to_event(1))

    evidence = log_evidence(Pair(lg.vae.model, guide, missing="nan"), x, num_particles=20_000)
    for row, found, error, ess in zip(x, evidence.log_evidence, evidence.standard_error, evidence.ess, strict=True):
        seen = ~row.isnan()
        truth = dist.MultivariateNormal(lg.loc[seen], lg.covariance[seen][:, seen]).log_prob(row[seen])
        if ess > 100:
            assert abs(float(found - truth)) < 5 * float(error)
    assert (evidence.ess > 100).sum() >= 15
    assert evidence.num_dims == float((~x.isnan()).sum()) / 20


def test_latents_of_all_rows_are_refused_until_they_are_fixed():
    pair, x = function_pair(), torch.randn(5)
    with pytest.raises(ValueError, match=r"latent 'mean' lies outside the plate 'data'.*pyro.condition"):
        log_evidence(pair, x)
    mean = {"mean": torch.tensor(0.7)}
    fixed = Pair(poutine.condition(pair.model, mean), poutine.condition(pair.guide, mean))
    evidence = log_evidence(fixed, x, num_particles=20_000)
    truth = dist.Normal(0.7, math.sqrt(1.25)).log_prob(x)
    assert ((evidence.log_evidence - truth) / evidence.standard_error).abs().max() < 5
    assert evidence.standard_error.max() < 0.1


def test_a_guide_that_does_not_sample_the_models_latents_is_refused():
    lg = LinearGaussian()
    x = lg.draw(5)

    def nothing(x):
        with pyro.plate("data", len(x), dim=-1):
            pass

    def other(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", lg.vae.encoder(x))
            pyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="guide does not sample the model's latent 'z'"):
        log_evidence(Pair(lg.vae.model, nothing), x)
    with pytest.raises(ValueError, match="guide samples 'y', which is not a latent of the model"):
        log_evidence(Pair(lg.vae.model, other), x)


@pytest.mark.parametrize("at_once", [True, False])
def test_plates_within_a_row_are_summed_over(at_once):
    """Rows of a tree: each has a latent u and, in a plate of three parts, latents v around it."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                v = pyro.sample("v", dist.Normal(u, 0.8))
            # Both are (N, 3) for one draw; only the first leaves the place of the parts, so that draws go left of it.
            loc = v.unsqueeze(-1).transpose(-3, -1) if at_once else v.movedim(-2, -1)
            return pyro.sample("x", dist.Normal(loc, 0.6).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(0.6 * x.mean(-1), 0.7))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("v", dist.Normal(0.3 * u + 0.6 * x.T, 0.6))

    p_x = dist.MultivariateNormal(torch.zeros(3), torch.ones(3, 3) + (0.8**2 + 0.6**2) * torch.eye(3))
    x = p_x.sample((6,))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        evidence = log_evidence(Pair(model, guide), x, num_particles=20_000 if at_once else 1000)
    assert len(told) == (not at_once)
    assert ((evidence.log_evidence - p_x.log_prob(x)) / evidence.standard_error).abs().max() < 5
    assert evidence.standard_error.max() < 0.2


def test_a_plate_that_takes_a_part_of_a_row_is_refused():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("pixels", 4, subsample_size=2, dim=-2) as index:
                pyro.sample("pixel", dist.Normal(z, 1.0), obs=None if x is None else x.T[index])
            return pyro.sample("x", dist.Delta(z * torch.zeros(())), obs=None)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(-1), 1.0))
            pyro.sample("x", dist.Delta(torch.zeros(len(x))))

    pair = Pair(model, guide, event_shape=(4,), data_range=dist.constraints.real)
    with pytest.raises(ValueError, match="plate 'pixels' subsamples its elements"):
        log_evidence(pair, torch.randn(5, 4))


@pytest.mark.parametrize("how", ["fails", "mixes up draws and rows"])
def test_programs_that_take_one_draw_at_a_time_are_run_so_and_that_is_said(how):
    lg = LinearGaussian()
    x = lg.draw(5)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", lg.vae.prior())
            if how == "fails":
                loc = torch.einsum("nl,dl->nd", z, lg.weight) + lg.loc
            else:  # what a batch has in common is taken over the wrong dimension
                loc = z @ lg.weight.T + lg.loc + 0.1 * (z - z.mean(0)).square().mean() * (z.dim() > 2)
            return pyro.sample("x", dist.Normal(loc, lg.scale).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="cannot run for several draws at once"):
        evidence = log_evidence(Pair(model, lg.exact_pair().guide), x, num_particles=20)
    torch.testing.assert_close(evidence.log_evidence, lg.log_evidence(x), rtol=0, atol=1e-8)


def test_memory_is_bounded_and_the_number_does_not_depend_on_it():
    vae = mlp_vae((40,), 3, hidden_dims=(30,), likelihood=Bernoulli()).double()
    x = torch.rand(9, 40).round()
    biggest = []

    class Watch(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, z):
            raw = self.network(z)
            biggest.append(raw.numel() * 8)
            return raw

    vae.decoder.network = Watch(vae.decoder.network)
    results = []
    for memory_mib in (0.05, 1, 64):
        biggest.clear()
        results.append(log_evidence(vae, x, num_particles=3000, memory_mib=memory_mib))
        assert max(biggest[5:]) < memory_mib * 2**20  # the first runs look at the programs
    for a, b in itertools.pairwise(results):
        error = (a.standard_error.square() + b.standard_error.square()).sqrt()
        assert ((a.log_evidence - b.log_evidence) / error).abs().max() < 5


def test_keyword_arguments_come_with_their_rows():
    pair, x, labels = labelled_pair(), torch.randn(4), torch.tensor([0, 1, 1, 0])
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([-2.0, 3.0]))
        pair.guide.weight.fill_(0.8)
        pair.guide.offset.copy_(torch.tensor([1.6, -2.4]))
    evidence = log_evidence(pair, {"x": x, "labels": labels}, num_particles=5000, memory_mib=0.01)
    truth = dist.Normal(pair.model.shift.detach()[labels], math.sqrt(1.25)).log_prob(x)
    assert evidence.ess.min() > 1000
    assert ((evidence.log_evidence - truth) / evidence.standard_error).abs().max() < 5


def test_the_caller_is_left_alone_and_the_seed_decides():
    vae = mixture_pair().double()
    vae.train()
    x = torch.randn(6, 4)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = log_evidence(vae, x, num_particles=30).log_evidence
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.model.training
    assert not list(pyro.get_param_store().keys())
    assert is_validation_enabled()
    assert torch.equal(log_evidence(vae, x, num_particles=30).log_evidence, first)
    assert not torch.equal(log_evidence(vae, x, num_particles=30, seed=1).log_evidence, first)


def test_float32_models_are_averaged_in_float64():
    torch.set_default_dtype(torch.float32)
    lg = LinearGaussian()
    evidence = log_evidence(lg.vae, lg.draw(5), num_particles=10)
    assert evidence.log_evidence.dtype == torch.float64
    assert evidence.standard_error.dtype == torch.float64


def test_bad_arguments_are_refused():
    lg = LinearGaussian()
    x = lg.draw(3)
    with pytest.raises(ValueError, match="num_particles must be at least 1, found 0"):
        log_evidence(lg.vae, x, num_particles=0)
    with pytest.raises(ValueError, match="memory_mib must be positive"):
        log_evidence(lg.vae, x, memory_mib=0)
    with torch.no_grad():
        lg.affine.weight.fill_(math.nan)
    pyro.enable_validation(False)
    with pytest.raises(FloatingPointError, match="3 of 3 rows have NaN among their log-weights"):
        log_evidence(lg.vae, x, num_particles=5)


def test_compiled_programs_give_the_same_weights(monkeypatch):
    vae = mlp_vae((6,), 2, hidden_dims=(8,), likelihood=Bernoulli())
    x = torch.rand(9, 6).round()
    plain = log_evidence(vae, x, num_particles=50)
    seen = []
    original = lowering.compiled
    monkeypatch.setattr(evidence, "_DRAWS_THAT_REPAY", 1)
    monkeypatch.setattr(lowering, "compiled", lambda *args: seen.append(1) or original(*args))
    graph = log_evidence(vae, x, num_particles=50)
    assert seen
    torch.testing.assert_close(graph.log_evidence, plain.log_evidence, rtol=1e-5, atol=1e-5)
