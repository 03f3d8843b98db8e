"""The refined posterior and the gaps, against the linear-Gaussian model's closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair
from torch import nn

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import gaps, log_evidence, refine
from pyro_vae.likelihoods import Normal
from pyro_vae.transforms import Scale

pytestmark = pytest.mark.usefixtures("float64")


def rough_pair(lg, *, full):
    """A guide that looks at nothing: a standard normal, with or without covariances in its family."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            if full:
                eye = torch.eye(2).expand(len(x), 2, 2)
                pyro.sample("z", dist.MultivariateNormal(torch.zeros(len(x), 2), scale_tril=eye))
            else:
                pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))

    return Pair(lg.vae.model, guide)


def divergence_of_the_best_diagonal(lg, x):
    """KL from the best independent normal to a normal with this precision: ½ (Σ log P_ii − log |P|)."""
    precision = lg.posterior(x).precision_matrix
    return 0.5 * (torch.diagonal(precision, dim1=-2, dim2=-1).log().sum(-1) - torch.logdet(precision))


def test_a_full_covariance_closes_the_gap_and_a_diagonal_leaves_the_analytic_one():
    torch.manual_seed(9)  # latents that are far from independent
    lg = LinearGaussian()
    x = lg.draw(12)
    full = gaps(rough_pair(lg, full=True), x, num_steps=400)
    assert (full["approximation"].abs() < 1e-3).all()
    diagonal = gaps(rough_pair(lg, full=False), x, num_steps=400, num_particles=20_000)
    expected = divergence_of_the_best_diagonal(lg, x)
    found = torch.tensor(diagonal["approximation"])
    assert float(expected.min()) > 0.15  # there is something to find
    error = torch.tensor(diagonal["approximation_se"])
    assert float(error.max()) < 0.1 * float(expected.min())
    assert ((found - expected).abs() < 5 * error + 1e-3).all()
    p_z, q_z = lg.posterior(x), dist.MultivariateNormal(torch.zeros(12, 2), torch.eye(2))
    whole = torch.distributions.kl_divergence(q_z, p_z)
    error = torch.tensor(diagonal["amortisation_se"] ** 2 + diagonal["approximation_se"] ** 2).sqrt()
    total = torch.tensor(diagonal["amortisation"] + diagonal["approximation"])
    assert ((total - whole).abs() < 5 * error + 0.02).all()


def test_the_exact_guide_has_no_gaps():
    lg = LinearGaussian()
    table = gaps(lg.exact_pair(), lg.draw(5))
    assert table["amortisation"].abs().max() < 1e-3
    assert table["approximation"].abs().max() < 1e-3


def test_the_refined_posterior_is_the_posterior_and_serves_as_a_guide():
    lg = LinearGaussian()
    x = lg.draw(9)
    refined = refine(rough_pair(lg, full=True), x, num_steps=400)
    p_z = lg.posterior(x)
    torch.testing.assert_close(refined.posteriors["z"].mean, p_z.mean, rtol=0, atol=1e-3)
    torch.testing.assert_close(
        refined.posteriors["z"].covariance_matrix, p_z.covariance_matrix.expand(9, 2, 2), rtol=0.01, atol=1e-3
    )
    evidence = log_evidence(refined.pair, refined.x, num_particles=50, **refined.context)
    torch.testing.assert_close(evidence.log_evidence, lg.log_evidence(x), rtol=0, atol=2e-3)
    some = {name: value[3:5] for name, value in refined.context.items()}
    torch.testing.assert_close(refined.pair.encode(x[3:5], **some).mean, refined.posteriors["z"].mean[3:5])


def test_the_users_units_are_the_transforms_matter():
    lg = LinearGaussian()
    x = lg.draw(4).clamp(-9, 9)
    pair = rough_pair(lg, full=False)
    scaled = Pair(pair.model, pair.guide, transform=Scale(-100, 100, onto=(-10, 10)))
    refined = refine(scaled, 10 * x, num_steps=50)
    torch.testing.assert_close(refined.x, x)
    expected = refine(pair, x, num_steps=50).posteriors["z"].mean
    torch.testing.assert_close(refined.posteriors["z"].mean, expected)


def test_guides_that_cannot_be_refined_are_refused():
    with pytest.raises(ValueError, match="differentiated through"):
        refine(discrete_pair(), torch.randn(5))

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(x, 1.0))
            pyro.sample("z", dist.Normal(a, 1.0))

    with pytest.raises(ValueError, match="depends on what it drew"):
        refine(Pair(model, guide), torch.randn(5))


def test_the_caller_is_left_alone():
    vae = mlp_vae((3,), 2, hidden_dims=(4,), likelihood=Normal()).train()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    x = torch.randn(6, 3)
    state = torch.get_rng_state()
    refine(vae, x, num_steps=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training
    assert all(module.training for module in vae.modules() if isinstance(module, nn.Linear))
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert all(parameter.grad is None for parameter in vae.parameters())
