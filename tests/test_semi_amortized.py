"""A posterior that is refined for each row: its gap on the linear-Gaussian model, its gradient by differences."""

import math

import pytest
import torch
from every_tool import TOOLS
from linear_gaussian import LinearGaussian
from test_captured import LIKELIHOODS, rows_of

from pyro_vae import conv_vae, evaluate, fit, load, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Normal, Poisson
from pyro_vae.posteriors import Codes, DiagonalNormal, FlowPosterior, FullNormal, SemiAmortized
from pyro_vae.priors import FlowPrior, VampPrior
from pyro_vae.programs import Encoder

held = pytest.mark.filterwarnings("ignore:decoder.network")  # the decoder, as it is meant to be
FLOW = {"num_transforms": 1, "hidden_dims": (8,)}


def bits(num=192):
    torch.manual_seed(1)
    return (torch.rand(num, 1) + 0.5 * torch.rand(num, 6) > 0.75).float()


def small(posterior=None, **options):
    torch.manual_seed(0)
    options = {"likelihood": Bernoulli(), "hidden_dims": (8,), **options}
    return mlp_vae((6,), 2, posterior=SemiAmortized(posterior or DiagonalNormal(), steps=2), **options)


def narrow(posterior):
    """A linear-Gaussian VAE whose encoder squeezes a row through one unit, which cannot tell of two latents."""
    torch.manual_seed(0)
    lg = LinearGaussian(data_dim=5, latent_dim=2, scale=0.7)
    vae = mlp_vae((5,), 2, hidden_dims=(1,), activation="Tanh", likelihood=Normal(scale=0.7), posterior=posterior)
    vae.model.decoder.network = lg.vae.decoder.network.requires_grad_(requires_grad=False)
    torch.manual_seed(1)
    return vae, lg, lg.draw(400)


def best_elbo(lg, x):
    """The ELBO of the best diagonal normal of each row, which has the posterior's mean and precisions."""
    posterior = lg.posterior(x)
    loss = 0.5 * (
        posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).log().sum(-1) - posterior.precision_matrix.logdet()
    )
    return float((lg.log_evidence(x) - loss).mean())


@held
def test_steps_close_most_of_what_the_network_leaves_open():
    gaps = {}
    for name, posterior in {"amortised": DiagonalNormal(), "semi": SemiAmortized(DiagonalNormal(), steps=8)}.items():
        vae, lg, x = narrow(posterior)
        fit(vae, x, epochs=60, batch_size=100, learning_rate=0.01, compile=False, progress=False)
        gaps[name] = best_elbo(lg, x) - sum(evaluate(vae, x, seed=seed)["elbo"] for seed in range(20)) / 20
    evidence = log_evidence(vae, x[:50], num_particles=2000)
    error = evidence.log_evidence - lg.log_evidence(x[:50]).double()
    assert bool((error.abs() < 6 * evidence.standard_error + 0.01).all())
    assert gaps["amortised"] > 1
    assert -0.02 < gaps["semi"] < 0.05 * gaps["amortised"]


@held
def test_a_full_covariance_comes_to_the_evidence():
    vae, lg, x = narrow(SemiAmortized(FullNormal(), steps=8))
    fit(vae, x, epochs=60, batch_size=100, learning_rate=0.01, compile=False, progress=False)
    elbo = sum(evaluate(vae, x, seed=seed)["elbo"] for seed in range(20)) / 20
    assert elbo == pytest.approx(float(lg.log_evidence(x).mean()), abs=0.1)


@pytest.mark.usefixtures("float64")
def test_the_gradient_goes_through_the_steps():
    """Of the ELBO after the steps, by some weights of network, model and step sizes, by central differences."""
    vae, x = small(activation="Tanh"), bits(6).double()
    batch = vae.prepare({"x": x})
    structure = vae.structure(batch)

    def elbo():
        torch.manual_seed(5)
        return run_pair(*vae.train().programs, batch, structure).elbo.mean()

    named = dict(vae.named_parameters())
    assert "guide.encoder.posterior.log_step" in named
    found = torch.autograd.grad(elbo(), list(named.values()))
    for (name, parameter), gradient in zip(named.items(), found, strict=True):
        index = int(gradient.abs().argmax())
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.view(-1)[index] += step
                values.append(float(elbo().detach()))
                parameter.view(-1)[index] -= step
        difference = (values[0] - values[1]) / 2e-5
        assert float(gradient.view(-1)[index]) == pytest.approx(difference, rel=1e-5, abs=1e-8), name


def test_a_row_has_one_posterior_whatever_rows_are_beside_it():
    for posterior in (DiagonalNormal(), FullNormal(), FlowPosterior(context_dim=4, **FLOW)):
        vae, x = small(posterior), bits(6)
        z = torch.randn(6, 2)
        torch.manual_seed(1)
        together = vae.encode(x).log_prob(z)
        torch.manual_seed(2)
        alone = torch.cat([vae.encode(x[[i]]).log_prob(z[[i]]) for i in range(5, -1, -1)]).flip(0)
        torch.testing.assert_close(together, alone)


@torch.no_grad()
def test_it_runs_where_gradients_are_off_and_leaves_none_behind():
    vae, x = small(), bits(4)
    q = vae.encoder(x)
    assert not q.mean.requires_grad
    alone = vae.encoder.posterior(vae.encoder.network(x))
    assert float((q.mean - alone.mean).abs().min()) > 0
    assert all(p.grad is None for p in vae.parameters())


def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 4, "batch_size": 32, "learning_rate": 0.01, "progress": False, "seed": 0}
    eager, compiled = (fit(small(), bits(), compile=compile, **options) for compile in (False, True))
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["elbo"].tolist() == pytest.approx(eager["elbo"].tolist(), rel=1e-4)
    assert eager["elbo"].iloc[-1] > eager["elbo"].iloc[0]


CASES = {
    "flow posterior": lambda: small(FlowPosterior(context_dim=4, **FLOW)),
    "flow prior": lambda: small(prior=FlowPrior(2, **FLOW)),
    "convolutions": lambda: conv_vae(
        (1, 4, 4), 2, channels=(3,), likelihood=Bernoulli(), posterior=SemiAmortized(DiagonalNormal(), steps=2)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_with_other_families_priors_and_networks(case):
    vae = CASES[case]()
    torch.manual_seed(0)
    x = torch.rand(64, *vae.event_shape).round()
    history = fit(vae, x, epochs=5, batch_size=32, learning_rate=0.01, compile=False, progress=False)
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0]


@pytest.mark.parametrize("name", ["poisson", "categorical", "normal", "mixed"])
def test_it_goes_with_other_likelihoods_gaps_and_arguments(name):
    case = LIKELIHOODS[next(n for n in LIKELIHOODS if n.startswith(name))]
    shape = case.events[-1]
    torch.manual_seed(0)
    posterior = SemiAmortized(DiagonalNormal(), steps=2)
    vae = mlp_vae(shape, 2, likelihood=case.make(), hidden_dims=(6,), missing="nan", posterior=posterior)
    data = rows_of(case, shape, gaps=True)
    assert math.isfinite(fit(vae, data, epochs=3, compile=False, progress=False)["elbo"].iloc[-1])
    seen = ~data["x"].isnan()
    assert torch.equal(vae.impute(data, 2, num_particles=9)[:, seen], data["x"][seen].expand(2, -1).to(vae.dtype))


def test_rows_are_refined_with_the_arguments_of_their_likelihood():
    vae = small(likelihood=Poisson())
    x = bits(8)
    small_one, large = ({"x": x, "size_factor": torch.full((8,), size)} for size in (1.0, 20.0))
    assert not torch.allclose(vae.encode(small_one).mean, vae.encode(large).mean)
    with torch.no_grad():  # the network is not shown them by itself
        shown = vae.encoder.encoding.arguments
    assert set(vae.encoder.arguments) == {*shown, "size_factor"}


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "impute"])
def test_every_tool_takes_it(tool):
    TOOLS[tool](small(), bits(24))


def test_what_is_saved_opens_as_the_same_numbers(tmp_path):
    vae, x = small(), bits(32)
    fit(vae, x, epochs=1, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert isinstance(opened.encoder.posterior, SemiAmortized)
    assert evaluate(opened, x) == evaluate(vae, x)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SemiAmortized(DiagonalNormal(), steps=0), "steps and num_draws must be at least 1, found 0 and 4"),
        (lambda: SemiAmortized(DiagonalNormal(), num_draws=3), "num_draws must be even"),
        (lambda: SemiAmortized(DiagonalNormal(), step_size=0.0), "step_size must be positive, found 0.0"),
        (
            lambda: small(prior=VampPrior(2, 3)),
            "does not work with a VampPrior, which calls the encoder on inputs that are not rows",
        ),
        (
            lambda: mlp_vae((6,), 6, likelihood=Bernoulli(), posterior=SemiAmortized(Codes(3))).encode(bits(2)),
            "needs draws with derivatives, and those of Codes have none",
        ),
        (
            lambda: Encoder(torch.nn.Linear(3, 4), SemiAmortized(DiagonalNormal()), 2, None, (3,))(torch.zeros(2, 3)),
            "must be part of a VAE, whose ELBO it uses: pass it to mlp_vae",
        ),
    ],
    ids=["no steps", "odd", "no step", "VampPrior", "no derivatives", "alone"],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
