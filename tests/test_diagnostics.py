"""Whether the guide is right for a row: known guides, ArviZ's own fit, and the closed form of the weights' variance."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair

from pyro_vae import Pair
from pyro_vae.evaluation import diagnose_guide

pytestmark = pytest.mark.usefixtures("float64")


def guided(lg, shift=0.0, factor=1.0):
    """The posterior moved by so many standard deviations, and scaled."""

    def guide(x):
        p_z = lg.posterior(x)
        with pyro.plate("data", len(x), dim=-1):
            scale_tril = factor * p_z.scale_tril
            pyro.sample("z", dist.MultivariateNormal(p_z.mean + shift * p_z.stddev, scale_tril=scale_tril))

    return Pair(lg.vae.model, guide)


def test_k_hat_tells_the_exact_guide_from_one_beside_the_posterior():
    lg = LinearGaussian()
    x = lg.draw(20)
    exact, shifted, narrow = (diagnose_guide(guided(lg, **how), x) for how in ({}, {"shift": 4.0}, {"factor": 0.4}))
    assert (exact.k_hat < 0.5).all()
    assert not exact.flagged.any()
    assert "all 20 rows" in str(exact)
    torch.testing.assert_close(exact.ess, torch.full((20,), 1000.0), rtol=1e-6, atol=0)
    assert shifted.k_hat.median() > 0.7
    assert narrow.k_hat.median() > 0.7  # the weights of a guide half as wide have no variance
    assert "far from the posterior" in str(shifted)


def test_a_wider_guide_is_near_enough_and_its_effective_sample_size_is_the_closed_form():
    lg = LinearGaussian()
    diagnosis = diagnose_guide(guided(lg, factor=1.5), lg.draw(50), num_particles=4000)
    assert (diagnosis.k_hat < 0.5).all()
    # For N(0, 1) by N(0, s²): E[w]²/E[w²] = sqrt(2 s² − 1) / s² in each of the two dimensions.
    expected = ((2 * 1.5**2 - 1) ** 0.5 / 1.5**2) ** 2
    assert float(diagnosis.ess.mean()) / 4000 == pytest.approx(expected, rel=0.02)


def test_a_discrete_latent_has_no_tail():
    pair = discrete_pair()
    assert (diagnose_guide(pair, torch.randn(10)).k_hat == 0).all()


def test_too_few_particles_are_refused():
    lg = LinearGaussian()
    with pytest.raises(ValueError, match="at least 25"):
        diagnose_guide(lg.exact_pair(), lg.draw(3), num_particles=10)
