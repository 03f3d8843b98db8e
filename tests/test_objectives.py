"""Our ELBO against Pyro's, on the same programs under the same seed: the number and every gradient."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair, mixture_pair, pyro_module_pair
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import conv_vae, mlp_vae
from pyro_vae.inference.objectives import elbo_terms
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


def surrogate_loss(pair, x, **kwargs):
    """Our loss, with the value of the ELBO and the gradient of the surrogate."""
    terms = elbo_terms(pair.model, pair.guide, x, **kwargs)
    weight = kwargs.get("kl_weight", 1.0)
    value = (terms.reconstruction - weight * terms.kl).mean()
    return -(terms.surrogate - terms.surrogate.detach() + value)


@pytest.mark.parametrize("name", PAIRS)
def test_loss_and_gradients_equal_those_of_trace_elbo(name):
    pair, x = PAIRS[name]()
    ours = loss_and_gradients(lambda: surrogate_loss(pair, x))
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
    ours = loss_and_gradients(lambda: surrogate_loss(pair, x, kl_weight=0.3))
    theirs = loss_and_gradients(lambda: Trace_ELBO().differentiable_loss(model, guide, x) / len(x))
    assert_same(ours, theirs)


def test_with_a_weight_of_zero_only_the_reconstruction_has_a_gradient():
    pair, x = PAIRS["linear"]()
    terms = elbo_terms(pair.model, pair.guide, x, kl_weight=0.0)
    assert terms.surrogate.item() == pytest.approx(terms.reconstruction.mean().item(), rel=1e-12)


def test_a_global_site_is_shared_among_all_rows_of_the_data_set():
    pair, x = function_pair(), torch.randn(7)
    num_rows = 70

    class ScaleLocal(poutine.messenger.Messenger):
        """What a plate of 70 rows with a subsample of 7 does to the sites within."""

        def _pyro_sample(self, msg):
            if msg["name"] in ("z", "x"):
                msg["scale"] = msg["scale"] * num_rows / len(x)

    model, guide = ScaleLocal()(pair.model), ScaleLocal()(pair.guide)
    ours = loss_and_gradients(lambda: surrogate_loss(pair, x, num_rows=num_rows))
    theirs = loss_and_gradients(lambda: Trace_ELBO().differentiable_loss(model, guide, x) / num_rows)
    assert_same(ours, theirs)


def test_the_terms_of_each_row_are_the_log_probabilities_at_its_draw():
    lg = LinearGaussian()
    x = lg.draw(6)
    pyro.set_rng_seed(5)
    terms = elbo_terms(lg.vae.model, lg.vae.guide, x)
    pyro.set_rng_seed(5)
    q_z = lg.vae.encoder(x)
    z = q_z.rsample()
    torch.testing.assert_close(terms.reconstruction, lg.vae.decoder(z).log_prob(x))
    torch.testing.assert_close(terms.kl, q_z.log_prob(z) - lg.vae.prior().log_prob(z))
    torch.testing.assert_close(terms.elbo, terms.reconstruction - terms.kl)


def test_the_score_function_gradient_is_unbiased():
    """The exact gradient for a binary latent is a sum over its two values."""
    pair, x = discrete_pair(), torch.randn(4)
    pair.guide(x)
    slope = pyro.get_param_store()["slope"].unconstrained()

    def exact():
        loc = torch.tensor([-1.0, 1.5])
        q = torch.sigmoid(slope * x)
        log_joint = [
            torch.distributions.Normal(loc[k], 1.0).log_prob(x) + math.log(p) for k, p in enumerate((0.6, 0.4))
        ]
        return ((1 - q) * (log_joint[0] - torch.log(1 - q)) + q * (log_joint[1] - torch.log(q))).mean()

    (truth,) = torch.autograd.grad(exact(), slope)
    draws = torch.stack(
        [torch.autograd.grad(elbo_terms(pair.model, pair.guide, x).surrogate, slope)[0] for _ in range(3000)]
    )
    assert abs(float((draws.mean() - truth) / (draws.std() / 3000**0.5))) < 4


def test_keyword_arguments_reach_both_programs():
    pair, x, labels = labelled_pair(), torch.randn(4), torch.tensor([0, 1, 1, 0])
    results = []
    for loss in (
        lambda: surrogate_loss(pair, x, context={"labels": labels}),
        lambda: Trace_ELBO().differentiable_loss(pair.model, pair.guide, x, labels=labels) / 4,
    ):
        pyro.set_rng_seed(3)
        results.append(torch.autograd.grad(loss(), list(pair.parameters())))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def pyros_loss(elbo, pair, x):
    return elbo.differentiable_loss(pair.model, pair.guide, x) / len(x)


def average(terms):
    """The loss of several draws, with the value of the ELBO and the gradient of the surrogate."""
    return -(terms.surrogate - terms.surrogate.detach() + terms.elbo.mean())


@pytest.mark.parametrize("name", PAIRS)
def test_vectorised_particles_equal_those_of_trace_elbo(name):
    pair, x = PAIRS[name]()
    ours = loss_and_gradients(lambda: average(elbo_terms(pair.model, pair.guide, x, num_particles=4)))
    pyros = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    theirs = loss_and_gradients(lambda: pyros.differentiable_loss(pair.model, pair.guide, x) / len(x))
    assert_same(ours, theirs)


@pytest.mark.parametrize("num_particles", [None, 3])
@pytest.mark.parametrize("name", ["mlp", "conv", "linear", "functions with a global latent", "PyroModules"])
def test_an_analytic_kl_gives_what_trace_mean_field_elbo_gives(name, num_particles):
    pair, x = PAIRS[name]()
    for kl in ("analytic", "auto"):
        ours = loss_and_gradients(
            lambda kl=kl: average(elbo_terms(pair.model, pair.guide, x, kl=kl, num_particles=num_particles))
        )
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
    sampled, auto = (
        loss_and_gradients(lambda kl=kl: average(elbo_terms(pair.model, pair.guide, x, kl=kl)))
        for kl in ("sampled", "auto")
    )
    assert_same(auto, sampled)
    with pytest.raises(ValueError, match=why):
        elbo_terms(pair.model, pair.guide, x, kl="analytic")


def test_the_kl_is_sampled_where_the_programs_have_their_latents_in_another_order():
    """KL(q(a) || p(a | b)) at a draw of b from q(b | a) would not be unbiased."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(0.0, 1.0))
            a = pyro.sample("a", dist.Normal(b, 1.0))
            pyro.sample("x", dist.Normal(a, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.5 * x, 1.0))
            pyro.sample("b", dist.Normal(a, 1.0))

    x = torch.randn(5)
    assert elbo_terms(model, guide, x, kl="auto").closed_form == ()
    with pytest.raises(ValueError, match="different orders"):
        elbo_terms(model, guide, x, kl="analytic")


def test_particles_come_row_by_row():
    pair, x = PAIRS["functions with a global latent"]()
    terms = elbo_terms(pair.model, pair.guide, x, num_particles=3, num_rows=70)
    assert terms.elbo.shape == (3, 7)
    mean, z = terms.latents["mean"].reshape(3, 1), terms.latents["z"]
    q_mean = dist.Normal(0.0, 1.0).log_prob(mean) - dist.Normal(0.0, 10.0).log_prob(mean)
    q_z = dist.Normal(mean, 1.0).log_prob(z) - dist.Normal(mean, 1.0).log_prob(z)
    torch.testing.assert_close(terms.kl, q_mean / 70 + q_z)
    torch.testing.assert_close(terms.reconstruction, dist.Normal(z, 0.5).log_prob(x))
