"""Annealed bounds against closed forms and quadrature, with guides that importance sampling would be poor with."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from coverings import some
from linear_gaussian import LinearGaussian
from pairs import discrete_pair

from pyro_vae import Pair
from pyro_vae.evaluation import ais_bounds
from pyro_vae.transforms import Scale

pytestmark = pytest.mark.usefixtures("float64")


def rough_pair(lg, *, shift=2.0, width=2.0, **kwargs):
    """The linear-Gaussian model with independent normals, off the posterior by ``shift`` of its deviations."""

    def guide(x):
        p_z = lg.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(p_z.mean + shift * p_z.stddev, width * p_z.stddev).to_event(1))

    return Pair(lg.vae.model, guide, **kwargs)


def positive_pair():
    """A Gamma prior on the scale of three normals, and a lognormal guide: their map from real numbers bends."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            return pyro.sample("x", dist.Normal(0.0, z[..., None].expand(*z.shape, 3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(x.square().mean(-1).log() / 2 + 0.5, 1.0))

    return Pair(model, guide)


def positive_evidence(x):
    """By the trapezoidal rule over the logarithm of z."""
    s = torch.linspace(-12.0, 6.0, 20001)
    z = s.exp()
    log_joint = dist.Gamma(2.0, 1.0).log_prob(z) + s + dist.Normal(0.0, z).log_prob(x[..., None]).sum(-2)
    return torch.logsumexp(log_joint, -1) + math.log(float(s[1] - s[0]))


def below(values, truth, slack=4.0):
    """Whether values are below the truth, within some standard errors of their mean difference."""
    off = values - truth
    return float(off.mean()) <= slack * float(off.std()) / math.sqrt(len(off))


@pytest.mark.parametrize("start", some(["guide", "prior"], "guide"))  # of the prior's weights there is a test below
def test_bounds_sandwich_the_evidence_and_tighten(start):
    lg = LinearGaussian()
    gaps = []
    for num_steps in (5, 100):
        bounds = ais_bounds(rough_pair(lg), num_rows=40, num_chains=4, num_steps=num_steps, num_leapfrog=3, start=start)
        assert bounds.x is not None
        assert bounds.upper is not None
        truth = lg.log_evidence(bounds.x)
        assert below(bounds.lower, truth)
        assert below(-bounds.upper, -truth)
        gaps.append((float((truth - bounds.lower).mean()), float((bounds.upper - truth).mean())))
    assert gaps[1][0] < 0.5 * gaps[0][0]
    assert gaps[1][1] < 0.5 * gaps[0][1]


def test_two_hundred_steps_find_the_evidence():
    lg = LinearGaussian()
    bounds = ais_bounds(rough_pair(lg), num_rows=30, num_chains=10, num_steps=200, num_leapfrog=3)
    truth = lg.log_evidence(bounds.x)
    assert abs(float((bounds.lower - truth).mean())) < 0.05
    assert abs(float((bounds.upper - truth).mean())) < 0.05
    assert 0.6 < bounds.acceptance < 0.95


def test_the_jacobian_of_a_positive_latent_counts():
    pair = positive_pair()
    bounds = ais_bounds(pair, num_rows=40, num_chains=10, num_steps=200, num_leapfrog=3)
    assert bounds.x is not None
    assert bounds.upper is not None
    truth = positive_evidence(bounds.x)
    assert abs(float((bounds.lower - truth).mean())) < 0.05
    assert abs(float((bounds.upper - truth).mean())) < 0.05


def test_the_transform_shifts_by_its_jacobian():
    lg = LinearGaussian()
    x = lg.draw(5)
    plain = ais_bounds(rough_pair(lg), x, num_chains=2, num_steps=4)
    scaled = ais_bounds(
        rough_pair(lg, transform=Scale(-400.0, 400.0, onto=(-100.0, 100.0))), 4 * x, num_chains=2, num_steps=4
    )
    torch.testing.assert_close(scaled.lower, plain.lower - 5 * math.log(4))


def test_discrete_latents_are_refused():
    with pytest.raises(ValueError, match="the latent 'z' is discrete"):
        ais_bounds(discrete_pair(), num_rows=3)


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_weights_are_unbiased_however_few_the_steps(start):
    lg = LinearGaussian()
    x = lg.draw(150)
    for num_steps in (1, 6):
        bounds = ais_bounds(rough_pair(lg), x, num_chains=32, num_steps=num_steps, start=start)
        ratio = (bounds.lower - lg.log_evidence(x)).exp()
        assert abs(float(ratio.mean()) - 1) < 4.5 * float(ratio.std()) / 150**0.5


def test_a_guide_that_sets_a_point_is_refused_as_a_start():
    lg = LinearGaussian()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 2)).to_event(1))

    pair = Pair(lg.vae.model, guide)
    with pytest.raises(ValueError, match="no density at 'z'"):
        ais_bounds(pair, lg.draw(3), num_chains=2, num_steps=3)
    assert ais_bounds(pair, lg.draw(3), num_chains=2, num_steps=3, start="prior").lower.isfinite().all()


def test_several_latents_in_a_plate_of_their_own_and_labels_are_annealed():
    """Two latents of a row in an inner plate, and a third above them: x is their noisy sum, normal in closed form."""

    def model(x=None, *, shift, batch_size=None):
        with pyro.plate("data", len(shift), dim=-1):
            a = pyro.sample("a", dist.Normal(shift, 1.0))
            with pyro.plate("parts", 2, dim=-2):
                b = pyro.sample("b", dist.Normal(a, 0.5))
            return pyro.sample("x", dist.Normal(b.sum(-2, keepdim=True), 0.7), obs=x)

    def guide(x, *, shift):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", dist.Normal(shift, 1.5))
            with pyro.plate("parts", 2, dim=-2):
                pyro.sample("b", dist.Normal(x / 2, 0.8))

    shift = torch.randn(20)
    x = 2 * shift + 3 * torch.randn(20)
    truth = dist.Normal(2 * shift, (4 + 2 * 0.25 + 0.49) ** 0.5).log_prob(x)
    bounds = ais_bounds(Pair(model, guide), {"x": x, "shift": shift}, num_chains=8, num_steps=200, num_leapfrog=3)
    assert float((bounds.lower - truth).mean()) == pytest.approx(0, abs=0.05)
