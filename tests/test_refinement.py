"""Refined posteriors and the two gaps against closed forms."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, labelled_pair

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import diagnose_guide, gaps, refine
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize, Standardize


def precision_of(lg):
    return torch.eye(lg.weight.shape[1]) + lg.weight.T @ lg.weight / lg.scale**2


def full_covariance_pair(lg):
    """A guide of the right family, far from right."""

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(0.3 * x[:, :2], scale_tril=0.5 * torch.eye(2)))

    return Pair(lg.vae.model, guide)


def test_a_full_covariance_guide_has_no_approximation_gap():
    lg = LinearGaussian()
    x = lg.draw(6)
    found = gaps(full_covariance_pair(lg), x, lg.log_evidence(x))
    assert float(found.approximation.abs().max()) < 0.02
    assert float(found.amortisation.min()) > 0.1
    torch.testing.assert_close(found.amortisation + found.approximation, lg.log_evidence(x).double() - found.elbo)
    refined = refine(full_covariance_pair(lg), x)
    torch.testing.assert_close(refined.encode(refined.rows()).mean, lg.posterior(x).mean, atol=0.03, rtol=0)
    assert (diagnose_guide(refined, refined.rows()).ess > 900).all()


def test_a_diagonal_guide_has_the_analytic_approximation_gap():
    """The best diagonal normal has scales P_ii^-½, and KL ½ (Σ log P_ii − log |P|)."""
    lg = LinearGaussian()
    with torch.no_grad():
        lg.affine.weight[:, 1] += lg.affine.weight[:, 0]  # correlated
    lg.weight = lg.affine.weight.detach()
    lg.covariance = lg.weight @ lg.weight.T + lg.scale**2 * torch.eye(5)
    x, precision = lg.draw(6), precision_of(lg)
    expected = 0.5 * float(precision.diag().log().sum() - precision.logdet())
    assert expected > 0.1
    refined = refine(lg.vae, x, steps=800)
    found = gaps(lg.vae, x, lg.log_evidence(x), refined=refined, num_particles=4000)
    assert ((found.approximation - expected).abs() < 0.03 + 4 * found.approximation_se).all()
    assert found.summary()["approximation"] == pytest.approx(expected, abs=0.03)
    torch.testing.assert_close(
        refined.encode(refined.rows()).stddev, precision.diag().rsqrt().expand(6, 2), rtol=0.1, atol=0
    )


def test_refined_rows_are_known_by_number_in_any_order_and_others_are_refused():
    lg = LinearGaussian()
    x = lg.draw(5)
    refined = refine(lg.vae, x, steps=30)
    order = [3, 0, 3, 4]
    torch.testing.assert_close(refined.encode(refined.rows(order)).mean, refined.encode(refined.rows()).mean[order])
    torch.testing.assert_close(refined.rows(order)["x"], x[order])
    assert refined.posterior_predictive(refined.rows(), 3).shape == (3, 5, 5)
    with pytest.raises(ValueError, match=r"pass refined\.rows\(\)"):
        refined.encode(x)
    with pytest.raises(ValueError, match="refined_row must be from 0 to 4"):
        refined.encode({"x": x, "refined_row": torch.arange(1, 6)})
    with pytest.raises(ValueError, match="refined for other rows than x"):
        gaps(lg.vae, x.flip(0), torch.zeros(5), refined=refined)


def test_a_site_that_depends_on_another_draw_still_does():
    """z2 follows z1 in guide and posterior; only a guide that keeps the dependence reaches the evidence."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(()), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 0.2))
            return pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("z2", dist.Normal(z1 * 1 / 1.04, 0.3))

    x = torch.tensor([-1.0, 0.5, 2.0])
    evidence = dist.Normal(0.0, 2.04**0.5).log_prob(x)
    found = gaps(Pair(model, guide), x, evidence)
    assert float(found.approximation.abs().max()) < 0.02
    assert float(found.amortisation.min()) > 0.05


def test_a_discrete_guide_is_refined_to_the_posterior():
    pair = discrete_pair()
    x = torch.tensor([-1.0, 0.2, 1.5])
    p_x = torch.stack([0.6 * dist.Normal(-1.0, 1.0).log_prob(x).exp(), 0.4 * dist.Normal(1.5, 1.0).log_prob(x).exp()])
    refined = refine(pair, x, steps=400, num_particles=64)
    torch.testing.assert_close(refined.encode(refined.rows()).mean, p_x[1] / p_x.sum(0), atol=0.05, rtol=0)
    found = gaps(pair, x, p_x.sum(0).log(), refined=refined)
    assert float(found.approximation.abs().max()) < 0.02


def test_keyword_arguments_go_with_their_rows_and_units_are_the_users():
    pair, labels = labelled_pair(), torch.tensor([0, 1, 1])
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([0.0, 3.0]))
    x = torch.tensor([40.0, 55.0, 70.0])
    pair.transform = Standardize(()).fit(x)
    y = pair.transform(x)
    posterior = (y - pair.model.shift.detach()[labels]) / 0.25 / 5
    evidence = dist.Normal(pair.model.shift.detach()[labels], 1.25**0.5).log_prob(
        y
    ) + pair.transform.log_abs_det_jacobian(x)
    rows = {"x": x, "labels": labels}
    found = gaps(pair, rows, evidence)
    assert float(found.approximation.abs().max()) < 0.02  # the scale 0.5 is set free, too
    refined = refine(pair, rows)
    torch.testing.assert_close(refined.encode(refined.rows()).mean, posterior, atol=0.03, rtol=0)


def test_rows_keep_the_bits_that_they_were_refined_for():
    vae = mlp_vae((20,), 2, likelihood=Bernoulli(), transform=Binarize())
    x = torch.rand(4, 20)
    refined = refine(vae, x, steps=5)
    bits = refined.batch(refined.rows()).x
    assert torch.equal(bits, refined.batch(refined.rows()).x)
    assert torch.equal(vae.batch(x).x, bits)  # a row's bits are its own


def test_the_pair_is_left_alone():
    lg = LinearGaussian()
    x = lg.draw(3)
    before = {name: value.clone() for name, value in lg.vae.state_dict().items()}
    state = torch.get_rng_state()
    refine(lg.vae, x, steps=5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in lg.vae.state_dict().items())
    assert all(p.grad is None for p in lg.vae.parameters())
    assert lg.vae.training


def test_a_guide_that_cannot_be_refined_is_refused():
    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x[:, :2], event_dim=1))

    with pytest.raises(
        ValueError, match=r"^the guide cannot be refined: the parameter 'v' at its site 'z' .* on others$"
    ):
        refine(Pair(LinearGaussian().vae.model, guide), torch.randn(3, 5))


def test_bad_arguments_are_refused():
    lg = LinearGaussian()
    with pytest.raises(ValueError, match="belongs to all rows"):
        refine(function_pair(), torch.randn(4))
    with pytest.raises(ValueError, match="expected one number for 3 rows"):
        gaps(lg.vae, lg.draw(3), torch.zeros(()))
