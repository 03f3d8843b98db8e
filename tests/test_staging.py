"""A staged function is the function: its values, its noise, its state; and what cannot be staged says why."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import Distribution

from pyro_vae._support import cuda_graphs
from pyro_vae.training import lowering as staging


def test_a_graph_sees_parameters_and_buffers_change_and_changes_them():
    layer = nn.Linear(3, 2)
    count = torch.zeros(())

    def function(x):
        count.add_(1)
        with torch.enable_grad():
            loss = layer(x).square().sum()
            return loss.detach(), *torch.autograd.grad(loss, list(layer.parameters()))

    run = staging.compiled(function, [torch.randn(5, 3)])
    before = float(count)
    with torch.no_grad():
        layer.weight.mul_(3.0)
    x = torch.randn(5, 3)
    found = run(x)
    assert float(count) == before + 1
    expected = function(x)
    assert float(count) == before + 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_noise_is_what_the_function_would_draw_and_new_at_every_call():
    def function(x):
        return torch.randn(4) + x, torch.bernoulli(torch.full((50,), 0.5))

    run = staging.compiled(function, [torch.zeros(4)])
    torch.manual_seed(3)
    first, second = run(torch.ones(4)), run(torch.ones(4))
    torch.manual_seed(3)
    for ours, theirs in zip((first, second), (function(torch.ones(4)), function(torch.ones(4))), strict=True):
        torch.testing.assert_close(ours[0], theirs[0])
    assert not torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])


def test_a_function_that_looks_at_values_cannot_be_staged():
    with pytest.raises(cuda_graphs.CannotStageError, match="value"):
        staging.compiled(lambda x: (x * 2 if x.sum() > 0 else x,), [torch.ones(3)])


def test_softplus_and_cross_entropy_keep_their_values_and_gradients():
    logits = torch.cat([torch.linspace(-40, 40, 401), torch.randn(200)])
    bits = (torch.arange(len(logits)) % 2).float()

    def function(logits):
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            soft = nn.functional.softplus(leaf)
            log_prob = dist.Bernoulli(logits=leaf, validate_args=False).log_prob(bits)
            return soft.detach(), log_prob.detach(), *torch.autograd.grad((soft + log_prob).sum(), leaf)

    run = staging.compiled(function, [logits])
    doubles = [t.float() for t in function(logits.double())]
    for ours, exact in zip(run(logits), doubles, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-6, atol=3e-7)


def test_checks_of_distributions_are_as_they_were():
    for checks in (True, False):
        with pyro.validation_enabled(checks):
            staging.compiled(lambda x: (x + 1,), [torch.zeros(2)])
            assert Distribution._validate_args is checks


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_noise_is_new_at_every_replay():
    def function(x):
        return (x + torch.randn(4, device="cuda"),)

    x = torch.zeros(4, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        function(x)
    torch.cuda.synchronize()
    run = cuda_graphs.captured(function, [x])
    first = run(x)[0].clone()
    assert not torch.equal(first, run(x)[0])
    torch.testing.assert_close(run(x + 100)[0].round(decimals=-2), torch.full((4,), 100.0, device="cuda"))
