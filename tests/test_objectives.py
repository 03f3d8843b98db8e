"""Our ELBO against Pyro's, on the same programs under the same seed: the number and every gradient."""

import itertools
import math
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair, mixture_pair, pyro_module_pair
from pyro import poutine
from pyro.infer import (
    EnergyDistance,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoNormal

from pyro_vae import Elbo, Pair, conv_vae, mlp_vae
from pyro_vae.inference.objectives import as_objective
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import Fixed
from pyro_vae.likelihoods import Bernoulli

pytestmark = pytest.mark.usefixtures("float64")

# Name: the pair, and rows that suit it.
PAIRS = {
    "mlp": lambda: (mlp_vae((3, 2), 2, hidden_dims=(5,), likelihood=Bernoulli()), torch.rand(7, 3, 2).round()),
    "conv": lambda: (conv_vae((5, 4), 2, channels=(3,), likelihood=Bernoulli()), torch.rand(7, 5, 4).round()),
    "linear": lambda: (LinearGaussian().vae, torch.randn(7, 5)),
    "mixture prior": lambda: (mixture_pair(), torch.randn(7, 4)),
    "functions with a global latent": lambda: (function_pair(), torch.randn(7)),
    "discrete latent": lambda: (discrete_pair(), torch.randn(7)),
    "PyroModules": lambda: (pyro_module_pair(), torch.randn(7, 3)),
}


def loss_and_gradients(run):
    """A loss and its gradients by parameter name, with every parameter that the programs use."""
    pyro.set_rng_seed(3)
    with poutine.trace(param_only=True) as capture:
        loss = run()
    parameters = {name: site["value"].unconstrained() for name, site in capture.trace.nodes.items()}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return loss.item(), dict(zip(parameters, gradients, strict=True))


def assert_same(ours, theirs):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        if gradient is None:
            assert ours[1][name] is None
        else:
            torch.testing.assert_close(ours[1][name], gradient, rtol=1e-9, atol=1e-12, msg=name)


class Ours:
    """Our loss of a pair, looked at once."""

    def __init__(self, pair, x, **context):
        self.pair, self.batch = pair, pair.batch({"x": x, **context})
        self.structure = pair.structure(self.batch)

    def draws(self, **options):
        return run_pair(*self.pair.programs, self.batch, self.structure, **options)

    def __call__(self, objective=None, progress=1.0, num_particles=None, **options):
        objective = objective or Elbo()
        return -objective(self.draws(num_particles=num_particles, **options), torch.tensor(progress)).mean()


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradients_equal_those_of_trace_elbo(name):
    pair, x = PAIRS[name]()
    ours = loss_and_gradients(Ours(pair, x))
    theirs = loss_and_gradients(lambda: Trace_ELBO().differentiable_loss(pair.model, pair.guide, x) / len(x))
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "discrete latent"])
def test_the_kl_weight_is_a_scale_on_the_latent_sites_of_both_programs(name):
    pair, x = PAIRS[name]()
    unobserved = {"z", "mean"}

    class Weigh(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if msg["name"] in unobserved:
                msg["scale"] = msg["scale"] * 0.3

    model, guide = Weigh()(pair.model), Weigh()(pair.guide)
    ours = loss_and_gradients(partial(Ours(pair, x), Elbo(kl_weight=0.3)))
    theirs = loss_and_gradients(lambda: Trace_ELBO().differentiable_loss(model, guide, x) / len(x))
    assert_same(ours, theirs)


def test_with_a_weight_of_zero_only_the_reconstruction_has_a_gradient():
    pair, x = PAIRS["linear"]()
    ours = Ours(pair, x)
    assert_same(
        loss_and_gradients(partial(ours, Elbo(kl_weight=0.0))),
        loss_and_gradients(lambda: -ours.draws().reconstruction.mean()),
    )


def test_a_global_site_is_shared_among_all_rows_of_the_data_set():
    pair, x = function_pair(), torch.randn(7)
    num_rows = 70

    class ScaleLocal(poutine.messenger.Messenger):
        """What a plate of 70 rows with a subsample of 7 does to the sites within."""

        def _pyro_sample(self, msg):
            if msg["name"] in ("z", "x"):
                msg["scale"] = msg["scale"] * num_rows / len(x)

    model, guide = ScaleLocal()(pair.model), ScaleLocal()(pair.guide)
    ours = loss_and_gradients(partial(Ours(pair, x), num_rows=num_rows))
    theirs = loss_and_gradients(lambda: Trace_ELBO().differentiable_loss(model, guide, x) / num_rows)
    assert_same(ours, theirs)


def test_the_terms_of_each_row_are_the_log_probabilities_at_its_draw():
    lg = LinearGaussian()
    x = lg.draw(6)
    ours = Ours(lg.vae, x)
    pyro.set_rng_seed(5)
    draws = ours.draws()
    pyro.set_rng_seed(5)
    q_z = lg.vae.encoder(x)
    z = q_z.rsample()
    torch.testing.assert_close(draws.reconstruction[0], lg.vae.decoder(z).log_prob(x))
    torch.testing.assert_close(draws.rate[0], q_z.log_prob(z) - lg.vae.prior().log_prob(z))
    torch.testing.assert_close(draws.elbo, draws.reconstruction - draws.rate)


@pytest.mark.parametrize("kl_weight", [1.0, 0.3])
def test_the_score_function_gradient_is_unbiased(kl_weight):
    """The mean of the gradient over all values of a binary latent is that of the exact sum over them."""
    pair, x = discrete_pair(), torch.randn(4)
    ours = Ours(pair, x)
    pair.guide(x)
    slope = pyro.get_param_store()["slope"].unconstrained()
    loc, prior = torch.tensor([-1.0, 1.5]), torch.tensor([0.6, 0.4]).log()
    log_q = torch.nn.functional.logsigmoid(torch.stack([-slope * x, slope * x]))
    terms = [dist.Normal(loc[k], 1.0).log_prob(x) + kl_weight * (prior[k] - log_q[k]) for k in (0, 1)]
    exact = (log_q.exp() * torch.stack(terms)).sum(0).mean()
    (truth,) = torch.autograd.grad(exact, slope, retain_graph=True)
    mean = 0.0
    for values in itertools.product((0, 1), repeat=4):
        with Fixed({"z": torch.tensor(values, dtype=torch.float64)}):
            (gradient,) = torch.autograd.grad(-ours(Elbo(kl_weight=kl_weight)), slope)
        mean = mean + gradient * log_q[values, range(4)].sum().detach().exp()
    torch.testing.assert_close(mean, truth)


def test_keyword_arguments_reach_both_programs():
    pair, x, labels = labelled_pair(), torch.randn(4), torch.tensor([0, 1, 1, 0])
    results = []
    for loss in (
        Ours(pair, x, labels=labels),
        lambda: Trace_ELBO().differentiable_loss(pair.model, pair.guide, x, labels=labels) / 4,
    ):
        pyro.set_rng_seed(3)
        results.append(torch.autograd.grad(loss(), list(pair.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def pyros_loss(elbo, pair, x):
    return elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)


@pytest.mark.parametrize("name", PAIRS)
def test_vectorised_particles_equal_those_of_trace_elbo(name):
    pair, x = PAIRS[name]()
    ours = loss_and_gradients(partial(Ours(pair, x), num_particles=4))
    pyros = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    theirs = loss_and_gradients(lambda: pyros.differentiable_loss(pair.model, pair.guide, x) / len(x))
    assert_same(ours, theirs)


@pytest.mark.parametrize("num_particles", [None, 3])
@pytest.mark.parametrize("name", ["mlp", "conv", "linear", "functions with a global latent", "PyroModules"])
def test_an_analytic_kl_gives_what_trace_mean_field_elbo_gives(name, num_particles):
    pair, x = PAIRS[name]()
    for kl in ("analytic", "auto"):
        ours = loss_and_gradients(partial(Ours(pair, x), Elbo(kl=kl), num_particles=num_particles))
        pyros = TraceMeanField_ELBO(
            num_particles=num_particles or 1, vectorize_particles=num_particles is not None, max_plate_nesting=1
        )
        theirs = loss_and_gradients(partial(pyros_loss, pyros, pair, x))
        assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("name", "why"), [("mixture prior", "none is known at z"), ("discrete latent", "draws at z cannot")]
)
def test_without_a_closed_form_auto_samples_and_analytic_says_why(name, why):
    pair, x = PAIRS[name]()
    ours = Ours(pair, x)
    sampled, auto = (loss_and_gradients(partial(ours, Elbo(kl=kl))) for kl in ("sampled", "auto"))
    assert_same(auto, sampled)
    with pytest.raises(ValueError, match=why):
        ours(Elbo(kl="analytic"))


def test_the_kl_is_sampled_where_the_programs_have_their_latents_in_another_order():
    """KL(q(a) || p(a | b)) at a draw of b from q(b | a) would not be unbiased."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            a = pyro.sample("a", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.5 * x, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    ours = Ours(Pair(model, guide), torch.randn(5))
    assert ours.draws().with_closed_forms().closed_form == ()
    with pytest.raises(ValueError, match="different orders"):
        ours(Elbo(kl="analytic"))


@pytest.mark.parametrize("num_particles", [None, 3])
def test_draws_that_the_guide_alone_makes_leave_the_kl_in_closed_form(num_particles):
    ours = Ours(two_level_pair(), torch.randn(5))
    assert ours.draws().with_closed_forms(required=True).closed_form == ("far", "near")
    pyros = TraceMeanField_ELBO(
        num_particles=num_particles or 1, vectorize_particles=num_particles is not None, max_plate_nesting=1
    )
    losses = (
        partial(ours, Elbo(kl="analytic"), num_particles=num_particles),
        partial(pyros_loss, pyros, ours.pair, ours.batch.x),
    )
    results = []
    for loss in losses:
        pyro.set_rng_seed(3)
        results.append(loss())
        results.append(torch.autograd.grad(results[-1], list(ours.pair.parameters())))
    torch.testing.assert_close(results[:2], results[2:], rtol=1e-9, atol=1e-12)


def test_a_latent_whose_prior_a_sum_over_values_joins_has_no_closed_form():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            before = pyro.sample("before", dist.Normal(torch.zeros(()), 1.0))
            k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(k + before, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("before", dist.Normal(0.2 * x, 0.6))
            pyro.sample("z", dist.Normal(0.5 * x, 0.7))

    ours = Ours(Pair(model, guide), torch.randn(5))
    draws = ours.draws()
    closed = draws.with_closed_forms()
    assert closed.closed_form == ("before",)
    kl = torch.distributions.kl_divergence(dist.Normal(0.2 * ours.batch.x, 0.6), dist.Normal(0.0, 1.0))
    torch.testing.assert_close(closed.rate[0], kl + draws.log_guide["z"][0] - draws.log_prior["z"][0])
    torch.testing.assert_close(closed.reconstruction, draws.reconstruction)
    with pytest.raises(ValueError, match="the prior of z depends on a latent that is summed over"):
        ours(Elbo(kl="analytic"))


def test_a_point_with_a_density_keeps_it_in_the_closed_form():
    """As AutoNormal has for a positive latent; Pyro's own KL leaves the density out."""

    def model(x=None, *, batch_size=None):
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    ours = Ours(Pair(model, AutoNormal(model)), torch.randn(5))
    draws = ours.draws()
    closed = draws.with_closed_forms(required=True)
    assert closed.closed_form == ("scale",)
    torch.testing.assert_close(closed.elbo, draws.elbo)
    unconstrained, scale = draws.latents["scale_unconstrained"], draws.latents["scale"]
    loc = ours.pair.guide.median()["scale"].log()
    log_q = dist.Normal(loc, 0.1).log_prob(unconstrained) - unconstrained
    prior = dist.LogNormal(0.0, 0.5).log_prob(scale)
    torch.testing.assert_close(closed.rate[0], ((log_q - prior) / 5).expand(5))


def test_particles_come_row_by_row():
    pair, x = PAIRS["functions with a global latent"]()
    draws = Ours(pair, x).draws(num_particles=3, num_rows=70)
    assert draws.elbo.shape == (3, 7)
    mean, z = draws.latents["mean"].reshape(3, 1), draws.latents["z"]
    q_mean = dist.Normal(0.0, 1.0).log_prob(mean) - dist.Normal(0.0, 10.0).log_prob(mean)
    q_z = dist.Normal(mean, 1.0).log_prob(z) - dist.Normal(mean, 1.0).log_prob(z)
    torch.testing.assert_close(draws.rate, q_mean / 70 + q_z)
    torch.testing.assert_close(draws.reconstruction, dist.Normal(z, 0.5).log_prob(x))


# Weights on the KL


def two_level_pair(loc=2.0):
    """A latent whose KL is large, and one below it whose KL is small."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.tensor(0.7))

        def forward(self, x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                far = pyro.sample("far", dist.Normal(torch.zeros(()), 1.0))
                near = pyro.sample("near", dist.Normal(self.slope * far, 1.0))
                return pyro.sample("x", dist.Normal(near, 1.0), obs=x)

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor(loc))
            self.shift = torch.nn.Parameter(torch.tensor(0.1))

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                u = pyro.sample("u", dist.Normal(self.shift * x, 0.3), infer={"is_auxiliary": True})
                far = pyro.sample("far", dist.Normal(self.loc + u, 0.5))
                pyro.sample("near", dist.Normal(0.7 * far + self.shift, 0.9))

    return Pair(Model(), Guide())


@pytest.mark.parametrize("num_particles", [None, 5])
@pytest.mark.parametrize("kl", ["sampled", "auto"])
def test_free_nats_are_a_floor_under_the_kl_of_each_latent_on_average_over_the_batch(num_particles, kl):
    pair = two_level_pair()
    ours = Ours(pair, torch.randn(6))

    def gradients(loss):
        pyro.set_rng_seed(3)
        value = loss()
        return value.item(), dict(enumerate(torch.autograd.grad(value, list(pair.parameters()))))

    def by_formula(floor):
        draws = ours.draws(num_particles=num_particles)
        if kl == "auto":
            draws = draws.with_closed_forms()
        kls = {name: (draws.log_guide[name] - draws.log_prior[name]).mean() for name in ("far", "near")}
        assert float(kls["near"].detach()) < 0.5 < float(kls["far"].detach())
        kept = [torch.maximum(value, torch.tensor(floor)) for value in kls.values()]
        return -(draws.reconstruction.mean() - 0.8 * (sum(kept) + draws.log_guide["u"].mean()))

    options = {"num_particles": num_particles}
    found = gradients(partial(ours, Elbo(kl=kl, kl_weight=0.8, free_nats=0.5), **options))
    assert_same(found, gradients(partial(by_formula, 0.5)))
    without = gradients(partial(ours, Elbo(kl=kl, kl_weight=0.8), **options))
    assert_same(without, gradients(partial(by_formula, -math.inf)))
    assert without[0] != pytest.approx(found[0])


def test_the_kl_weight_rises_over_a_share_of_training_then_stays():
    pair, x = PAIRS["linear"]()
    ours = Ours(pair, x)
    for progress, weight in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.4, 2.0), (0.7, 2.0)):
        objective = Elbo(kl_weight=2.0, kl_warmup=0.4)
        assert objective.weight(progress) == pytest.approx(weight)
        assert float(objective.weight(torch.tensor(progress))) == pytest.approx(weight)
        found = loss_and_gradients(partial(ours, objective, progress))
        assert_same(found, loss_and_gradients(partial(ours, Elbo(kl_weight=weight))))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_particles": 0}, "num_particles must be at least 1, found 0"),
        ({"kl": "analytical"}, "did you mean 'analytic'"),
        ({"kl_weight": -1.0}, "kl_weight must be a finite number from 0, found -1.0"),
        ({"kl_weight": math.inf}, "kl_weight must be a finite number from 0, found inf"),
        ({"free_nats": math.nan}, "free_nats must be a finite number from 0, found nan"),
        ({"kl_warmup": 5}, "kl_warmup is a share of the training, from 0 to 1; found 5"),
    ],
)
def test_weights_out_of_range_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Elbo(**arguments)


# Other objectives


def test_pyros_own_objects_stand_for_the_equal_elbo_or_for_themselves():
    assert as_objective(Trace_ELBO(num_particles=4)) == Elbo(4)
    assert as_objective(TraceEnum_ELBO(num_particles=2, max_plate_nesting=1)) == Elbo(2)
    assert as_objective(TraceMeanField_ELBO()) == Elbo(1, "auto")

    class MyElbo(Trace_ELBO):
        pass

    assert as_objective(JitTrace_ELBO(num_particles=3)) == as_objective(JitTraceEnum_ELBO(num_particles=3)) == Elbo(3)
    for other in (MyElbo(), RenyiELBO(), TraceGraph_ELBO(), Elbo(3, free_nats=1.0)):
        assert as_objective(other) is other
    for wrong in ("elbo", EnergyDistance(), Trace_ELBO, lambda draws, progress: draws.elbo.mean(0), None):
        with pytest.raises(TypeError, match=r"expected Elbo\(...\), another function of draws"):
            as_objective(wrong)


@dataclass(frozen=True)
class ImportanceWeighted:
    num_particles: int = 5

    def __call__(self, draws, progress):
        return draws.scaled.log_weights.logsumexp(0) - math.log(self.num_particles)


@pytest.mark.parametrize("name", ["linear", "mlp", "mixture prior"])
def test_an_importance_weighted_bound_in_three_lines_is_pyros_renyi_elbo(name):
    pair, x = PAIRS[name]()
    ours = loss_and_gradients(partial(Ours(pair, x), ImportanceWeighted(), num_particles=5))
    pyro.set_rng_seed(3)
    pyros = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    with poutine.trace(param_only=True) as capture:
        loss = pyros.loss_and_grads(pair.model, pair.guide, x) / len(x)
    gradients = {name: site["value"].unconstrained().grad / len(x) for name, site in capture.trace.nodes.items()}
    assert_same(ours, (loss, gradients))
