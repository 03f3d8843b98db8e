"""Every likelihood in use: a VAE of that kind learns what a known one drew, and Pyro's own tools take it as it is.

The known VAE has one latent, so that its log evidence is an integral over a line, worked out by quadrature.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_vae import VAE, fit
from pyro_vae._support.ranges import constraints, phrase
from pyro_vae.likelihoods import (
    Bernoulli,
    Beta,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedLogisticMixture,
    Gamma,
    Laplace,
    Likelihood,
    LogNormal,
    Mixed,
    NegativeBinomial,
    Normal,
    Poisson,
    StudentT,
    ZeroInflatedNegativeBinomial,
    ZeroInflatedPoisson,
)
from pyro_vae.networks import MLP
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import Decoder, Encoder, evaluating

NUM_DIMS, NUM_ROWS, NUM_HELD_OUT = 4, 1500, 1000


@dataclass(frozen=True)
class Case:
    """A kind of VAE, how the known one's decoder depends on z, and how near a learned one must come."""

    make: Callable[[], Likelihood]
    gains: tuple[float, ...]  # of each raw output, how much it changes with z
    centres: tuple[float, ...] = (0.0,)  # and where it is at z = 0
    own: float = 0.0  # how far the known likelihood's own parameters are moved
    gap: float = 0.12  # nats that the ELBO may be below the log evidence
    epochs: int = 20
    bad: float | None = None  # a value outside the range
    size_factors: bool = False


MIXED = (Bernoulli, Normal, lambda: Categorical(3, ordered=False), Gamma)
CASES = {
    "bernoulli": Case(Bernoulli, (3.0,), bad=0.5),
    "continuous bernoulli": Case(ContinuousBernoulli, (5.0,), bad=1.5),
    "normal, fixed scale": Case(lambda: Normal(scale=0.3), (1.0,), bad=math.nan),
    "normal, shared scale": Case(lambda: Normal(scale="shared"), (1.5,), own=-0.3),
    "normal, scale of each element": Case(lambda: Normal(scale="element"), (1.5,), own=-0.3),
    "normal, scale by the network": Case(lambda: Normal(scale="network"), (1.5, 0.2)),
    "normal, optimal scale": Case(lambda: Normal(scale="optimal"), (1.5,)),
    "laplace": Case(Laplace, (1.5,), bad=math.inf),
    "student's t": Case(StudentT, (1.5,)),
    "log-normal": Case(LogNormal, (1.0,), bad=0.0),
    "log-normal, small units": Case(LogNormal, (1.0,), (-9.0,)),
    "log-normal, large units": Case(LogNormal, (1.0,), (9.0,)),
    "gamma": Case(Gamma, (1.0,), own=0.5, bad=-1.0),
    "beta": Case(lambda: Beta(margin=1e-6), (0.7,), own=6.0, bad=0.0),
    "discretised logistic": Case(lambda: DiscretizedLogistic(32), (0.4, 0.1), (0.0, 0.5), epochs=40, bad=32.0),
    "mixture of discretised logistics": Case(
        lambda: DiscretizedLogisticMixture(num_levels=8, num_components=2),
        (0.1, 0.1, 1.0, 1.0, 0.1, 0.1),
        (2.0, -2.0, 0.0, 0.0, 1.0, 1.0),
        gap=0.25,
        epochs=35,
        bad=0.5,
    ),
    "categorical, amounts": Case(lambda: Categorical(4), (1.5,) * 4, bad=4.0),
    "categorical, kinds": Case(lambda: Categorical(3, ordered=False), (2.0,) * 3, bad=-1.0),
    "poisson": Case(Poisson, (0.6,), (1.5,), bad=-1.0),
    "poisson, size factors": Case(Poisson, (0.6,), (0.5,), gap=0.2, size_factors=True),
    "zero-inflated poisson": Case(ZeroInflatedPoisson, (0.6, 0.1), (1.5, -2.0), bad=0.5),
    "negative binomial": Case(NegativeBinomial, (0.8,), (1.5,), own=2.0, bad=0.5),
    "zero-inflated negative binomial": Case(ZeroInflatedNegativeBinomial, (1.0, 0.1), (1.5, -2.0), own=3.0, bad=-2.0),
    "mixed": Case(lambda: Mixed([make() for make in MIXED]), (2.0,) * 6, bad=0.5),
}
cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
# Each class is trained by default, but not with every scale and unit.
VARIANTS = ("normal, shared scale", "normal, scale of each element", "log-normal", "log-normal, small units")
trained = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=name, marks=[pytest.mark.exhaustive] * (name in VARIANTS)) for name, case in CASES.items()],
)
PICKY = {name: case for name, case in CASES.items() if case.bad is not None}


def new_vae(likelihood):
    """One latent, an affine decoder, an encoder with one hidden layer."""
    event_shape, encoding = (NUM_DIMS,), likelihood.encoding((NUM_DIMS,))
    encoder_network = MLP(encoding.shape(event_shape), (2, 1), hidden_dims=(16,), activation="Tanh")
    return VAE(
        StandardNormal(1),
        Decoder(MLP((1,), likelihood.raw_shape(event_shape), hidden_dims=()), likelihood, event_shape),
        Encoder(encoder_network, DiagonalNormal(), 1, encoding),
    )


def known_vae(case):
    """A VAE whose decoder has random weights of the case's size."""
    vae = new_vae(case.make())
    (affine,) = vae.decoder.network.layers
    size = affine.out_features // vae.decoder.likelihood.raw_shape((NUM_DIMS,))[0]
    gains, centres = (
        torch.tensor(many).repeat(affine.out_features // (len(many) * size)).repeat_interleave(size)
        for many in (case.gains, case.centres)
    )
    signs = torch.where(torch.rand(affine.out_features) < 0.5, -1.0, 1.0)
    with torch.no_grad():
        affine.weight.copy_((gains * signs * (0.7 + 0.6 * torch.rand(affine.out_features)))[:, None])
        affine.bias.copy_(centres + 0.3 * torch.randn(affine.out_features))
        for parameter in vae.decoder.likelihood.parameters():
            parameter += case.own
    return vae.eval()


def data_of(case, known):
    """Rows for training and rows that are held out, with their keyword arguments."""
    num_rows = NUM_ROWS + NUM_HELD_OUT
    given = {"size_factor": torch.tensor([1.0, 5.0])[torch.randint(2, (num_rows,))]} if case.size_factors else {}
    data = {"x": known.sample(num_rows, given=given).to(torch.get_default_dtype()), **given}
    parts = range(0, NUM_ROWS), range(NUM_ROWS, num_rows)
    return [{name: value[list(part)] for name, value in data.items()} for part in parts]


@torch.no_grad()
def log_evidence(known, x, num_points=161, **given):
    """log p(x) of each row, and what it would be if its elements did not depend on each other: quadrature over z."""
    z = torch.linspace(-8, 8, num_points)
    log_weight = -0.5 * z**2 - 0.5 * math.log(2 * math.pi) + torch.log(z[1] - z[0])
    whole, parts = torch.zeros(len(x)), torch.zeros(len(x))
    factors = given.get("size_factor", torch.ones(len(x)))
    for factor in factors.unique():
        here = factors == factor
        same = {name: factor.expand(num_points) for name in given}
        for element in [None, *range(NUM_DIMS)]:
            mask = torch.ones(NUM_DIMS, dtype=torch.bool) if element is None else torch.arange(NUM_DIMS) == element
            p_x = known.decoder(z[:, None], mask=mask.expand(num_points, NUM_DIMS), **same)
            found = torch.logsumexp(p_x.log_prob(x[here][:, None]) + log_weight, 1)
            (whole if element is None else parts)[here] += found
    return whole, parts


def elbo_of(vae, x, num_draws=5, **given):
    """The ELBO of each row, by Pyro's traces alone."""
    draws = []
    with evaluating(vae.model, vae.guide):
        for _ in range(num_draws):
            guide = poutine.trace(vae.guide).get_trace(x, **given)
            model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x, **given)
            guide.compute_log_prob()
            model.compute_log_prob()
            of_model = model.nodes["x"]["log_prob"] + model.nodes["z"]["log_prob"]
            draws.append(of_model - guide.nodes["z"]["log_prob"])
    return torch.stack(draws).mean(0)


@pytest.mark.usefixtures("float64")
def test_the_quadrature_gives_the_closed_form_of_a_linear_gaussian_model():
    linear = LinearGaussian(data_dim=NUM_DIMS, latent_dim=1)
    x = linear.draw(200)
    whole, parts = log_evidence(linear.vae.eval(), x)
    torch.testing.assert_close(whole, linear.log_evidence(x), rtol=1e-9, atol=1e-9)
    independent = torch.distributions.Normal(linear.loc, linear.covariance.diagonal().sqrt()).log_prob(x).sum(1)
    torch.testing.assert_close(parts, independent, rtol=1e-9, atol=1e-9)


@trained
@pytest.mark.usefixtures("float64")
def test_a_vae_comes_near_the_log_evidence_of_the_one_that_drew_the_data(case):
    known = known_vae(case)
    train, held_out = data_of(case, known)
    vae = new_vae(case.make())
    fit(vae, train, epochs=case.epochs, batch_size=100, learning_rate=5e-2, progress=False, device="cpu")
    evidence, independent = log_evidence(known, **held_out)
    shortfall = (evidence - elbo_of(vae, **held_out)).numpy()
    error = shortfall.std(ddof=1) / math.sqrt(NUM_HELD_OUT)
    assert -error < shortfall.mean() < case.gap
    # The latent is needed for this: elements that do not depend on each other fall further short.
    assert (evidence - independent).mean() > 2 * case.gap


@cases
@pytest.mark.parametrize("settings", [{}, {"num_particles": 3, "vectorize_particles": True}], ids=str)
def test_pyros_svi_takes_the_programs_as_they_are(case, settings):
    known = known_vae(case)
    train = {name: value[:50].float() for name, value in data_of(case, known)[0].items()}
    x, given = train.pop("x"), train
    vae = new_vae(case.make())
    before = [p.detach().clone() for p in vae.parameters()]
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO(**settings))
    assert math.isfinite(svi.step(x, **given))
    for old, new in zip(before, vae.parameters(), strict=True):
        assert new.isfinite().all()
        assert not torch.equal(old, new)


@cases
@pytest.mark.parametrize("parallel", [False, True])
def test_pyros_predictive_takes_the_model_as_it_is(case, parallel):
    vae = new_vae(case.make())
    given = {"size_factor": torch.ones(5)} if case.size_factors else {}
    x = Predictive(vae.model, num_samples=3, parallel=parallel)(batch_size=5, **given)["x"]
    assert x.shape == (3, 5, NUM_DIMS)
    assert x.dtype == torch.float32
    assert vae.decode(torch.zeros(5, 1), given=given).support.check(x).all()
    assert vae.sample(5, given=given).dtype == vae.sample(5, mean=True, given=given).dtype == torch.float32


@pytest.mark.parametrize("case", PICKY.values(), ids=list(PICKY))
def test_a_value_outside_the_range_is_refused_by_fit_with_one_sentence(case):
    x = data_of(case, known_vae(case))[0]["x"].float()
    x[7, 0] = case.bad
    vae = new_vae(case.make())
    before = [p.detach().clone() for p in vae.parameters()]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        fit(vae, x, epochs=1, batch_size=100, progress=False, device="cpu")
    sentence = str(caught.value)
    data_range = case.make().data_range
    if isinstance(data_range, constraints.stack):
        described = re.escape(phrase(data_range.cseq[0]))
        assert re.fullmatch(
            rf"column 0 of x_train has values from .*, such as {case.bad:g}, but its likelihood describes "
            rf"{described}: .+",
            sentence,
        )
    elif math.isfinite(case.bad):
        described = re.escape(phrase(data_range))
        assert re.fullmatch(
            rf"x_train has values from .*, such as {case.bad:g}, but the likelihood describes {described}: .+", sentence
        )
    else:
        hint = ", or build the model with missing='nan' if NaN is a missing entry" if math.isnan(case.bad) else ""
        assert sentence == (
            f"x_train has 1 NaN or infinite value, the first at index (7, 0): remove or fill those entries{hint}"
        )
    assert all(torch.equal(old, new) for old, new in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize(
    ("likelihood", "wrong"),
    [
        (ContinuousBernoulli(), "link="),
        (Beta(), "link="),
        (Beta(), r"Scale\([^=]*\)"),
        (DiscretizedLogistic(32), "link=|onto="),
        (DiscretizedLogisticMixture(32), "link=|onto="),
        (Categorical(32), "link=|onto="),
    ],
    ids=str,
)
def test_the_sentence_advises_nothing_that_the_likelihood_would_refuse(likelihood, wrong):
    x = torch.full((100, NUM_DIMS), 77.7)
    with pytest.raises(ValueError, match="the likelihood describes") as caught:
        fit(new_vae(likelihood), x, epochs=1, batch_size=100, progress=False, device="cpu")
    assert not re.search(wrong, str(caught.value))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_size_factor_that_is_not_positive_is_refused_by_fit_with_one_sentence(bad):
    size_factor = torch.ones(100)
    size_factor[7] = bad
    data = {"x": torch.ones(100, NUM_DIMS), "size_factor": size_factor}
    with pytest.raises(ValueError, match=r"^[^\n]*size_factor[^\n]*$"):
        fit(new_vae(NegativeBinomial()), data, epochs=1, batch_size=100, progress=False, device="cpu")


@pytest.mark.parametrize("make", [Bernoulli, Gamma, lambda: Mixed([Gamma() for _ in range(NUM_DIMS)])])
def test_a_size_factor_is_refused_by_kinds_of_data_that_have_none(make):
    data = {"x": torch.ones(100, NUM_DIMS), "size_factor": torch.ones(100)}
    with pytest.raises(TypeError, match="size_factor"):
        fit(new_vae(make()), data, epochs=1, batch_size=100, progress=False, device="cpu")


@pytest.mark.usefixtures("float64")
def test_the_running_scale_counts_every_training_batch_once():
    vae = new_vae(Normal(scale="optimal"))
    x = torch.randn(100, NUM_DIMS)
    fit(vae, x, epochs=1, batch_size=100, progress=False, device="cpu")
    likelihood = vae.decoder.likelihood
    np.testing.assert_allclose(likelihood.variance_weight.item(), 1 - 0.99, rtol=1e-9)
    torch.testing.assert_close(vae.decode(torch.zeros(1, 1)).variance[0, 0], likelihood.batch_variance)
