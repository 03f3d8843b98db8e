"""Mixtures of normals whose draws have derivatives, and the KL of normals from independent ones."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from pyro_vae.distributions import MixtureOfNormals

pytestmark = pytest.mark.usefixtures("float64")


def parameters(components=3, size=3):
    torch.manual_seed(1)
    made = torch.randn(components, size), torch.rand(components, size) + 0.3, torch.randn(components)
    return [value.requires_grad_() for value in made]


def mean_of(locs, scales, logits):
    """E[z₀² + z₀ z₁ + z₁ z₂ + z₂] in closed form."""
    first, second, third = locs.unbind(-1)
    values = first**2 + scales[:, 0] ** 2 + first * second + second * third + third
    return (logits.softmax(-1) * values).sum()


def test_gradients_of_draws_are_those_of_the_mean():
    given = parameters()
    expected = torch.autograd.grad(mean_of(*given), given)
    found = []
    for _ in range(40):
        z = MixtureOfNormals(*given).rsample((5_000,))
        f = z[:, 0] ** 2 + z[:, 0] * z[:, 1] + z[:, 1] * z[:, 2] + z[:, 2]
        found.append(torch.autograd.grad(f.mean(), given))
    for values, exact in zip(zip(*found, strict=True), expected, strict=True):
        values = torch.stack(values)
        error = values.std(0) / math.sqrt(len(values))
        assert bool(((values.mean(0) - exact).abs() < 4.5 * error + 1e-12).all())
        assert float((error / (exact.abs() + 0.1)).max()) < 0.05  # small enough to see a wrong one


def test_a_draw_moves_so_that_its_distribution_function_stays():
    locs, scales, logits = parameters(size=1)
    mixture = MixtureOfNormals(locs, scales, logits)
    z = mixture.rsample((50,))
    found = torch.autograd.grad(z.sum(), [locs, scales, logits], retain_graph=True)
    weights, standard = logits.softmax(-1), torch.distributions.Normal(0.0, 1.0)
    function = (weights[:, None] * standard.cdf((z.detach()[:, None] - locs) / scales)).sum(1)
    density = mixture.log_prob(z.detach()).exp().detach()
    expected = torch.autograd.grad(-(function[:, 0] / density).sum(), [locs, scales, logits])
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_one_component_is_a_normal():
    loc, scale = torch.randn(4, requires_grad=True), (torch.rand(4) + 0.1).requires_grad_()
    z = MixtureOfNormals(loc[None], scale[None], torch.zeros(1)).rsample((6,))
    found = torch.autograd.grad((z**2).sum(), [loc, scale])
    noise = ((z - loc) / scale).detach()
    expected = torch.autograd.grad(((loc + scale * noise) ** 2).sum(), [loc, scale])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 50.0])
def test_many_entries_of_any_scale_have_finite_gradients(scale):
    torch.manual_seed(0)
    given = [torch.randn(20, 3, 60), torch.full((20, 3, 60), scale), torch.randn(20, 3)]
    given = [value.float().requires_grad_() for value in given]
    mixture = MixtureOfNormals(*given)
    z = mixture.rsample((10,))
    bound = z.square().sum() - mixture.log_prob(z).sum()
    for gradient in torch.autograd.grad(bound, given):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("rank", [None, 2])
def test_the_kl_from_independent_normals_is_that_from_their_joint_normal(rank):
    torch.manual_seed(0)
    factor, p = torch.randn(5, 4, 4 if rank is None else rank), dist.Normal(torch.randn(4), torch.rand(4) + 0.5)
    diagonal = torch.rand(5, 4) + 0.1
    if rank is None:
        q = dist.MultivariateNormal(torch.randn(5, 4), factor @ factor.mT + torch.diag_embed(diagonal))
    else:
        q = dist.LowRankMultivariateNormal(torch.randn(5, 4), factor, diagonal)
    joint = dist.MultivariateNormal(p.mean, torch.diag(p.variance))
    torch.testing.assert_close(kl_divergence(q, p.to_event(1)), kl_divergence(q, joint))
