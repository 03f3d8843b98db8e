"""The device that tests pretend is as strict as a GPU, and its numbers are the CPU's."""

import pytest
import torch
from pretended_cuda import CUDA, CaptureRefusedError, DeviceLostError, PretendedCuda
from torch import nn
from torch.nn import functional as F


@pytest.fixture
def device():
    with PretendedCuda() as device:
        yield device


def kinds(device):
    return [event.kind for event in device.events]


def test_it_is_gone_afterwards():
    with PretendedCuda():
        assert torch.cuda.is_available()
        assert torch.zeros(2, device="cuda").device == CUDA
    assert not torch.cuda.is_available()
    assert torch.zeros(2).sum().item() == 0


def test_tensors_of_two_devices_do_not_mix(device):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    for mixed in (lambda: there + here, lambda: here @ there, lambda: torch.cat([there, here])):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(RuntimeError, match="same device as the indexed tensor"):
        here[torch.zeros(2, dtype=torch.long, device="cuda")]
    with pytest.raises(TypeError, match=r"Use Tensor.cpu\(\) first"):
        there.numpy()
    assert kinds(device) == []


def test_a_number_of_the_cpu_may_join_in(device):
    assert (torch.ones(3, device="cuda") * torch.tensor(2.0)).device == CUDA
    assert kinds(device) == []


@pytest.mark.parametrize(
    ("kind", "work"),
    [
        ("wait", lambda x: x[0].item()),
        ("wait", lambda x: bool(x.sum() > 0)),
        ("wait", lambda x: f"{x[0]:.2f}"),
        ("wait", lambda x: x.tolist()),
        ("wait", lambda x: x.nonzero()),
        ("wait", lambda x: x[x > 0]),
        ("wait", lambda x: torch.equal(x, x)),
        ("wait", lambda x: torch.linalg.cholesky(x.outer(x) + torch.eye(3, device="cuda"))),
        ("to host", lambda x: x.cpu()),
        ("to device", lambda x: torch.as_tensor(0.5, device="cuda")),
        ("to device", lambda x: torch.tensor([1.0, 2.0], device="cuda")),
        ("to device", lambda x: x.new_tensor(0.5)),
        ("to device", lambda x: torch.ones(3).to("cuda")),
        ("to device", lambda x: x.copy_(torch.ones(3))),
        ("to device", lambda x: x[torch.tensor([0, 1])]),
    ],
)
def test_waits_and_copies_are_noted_with_their_line_and_refused_while_a_graph_is_captured(device, kind, work):
    x = torch.ones(3, device="cuda")
    work(x)
    assert set(kinds(device)) == {kind}
    assert device.events[0].where.startswith("tests/test_pretended_cuda.py:")
    with device.capturing(), pytest.raises(CaptureRefusedError):
        work(x)


@pytest.mark.parametrize(
    "work",
    [
        lambda x: torch.full((), 0.5, device="cuda"),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.to("cuda"),
        lambda x: x.clone().__setitem__(x > 0, 0.5),
        lambda x: torch.randn(3, device="cuda").clamp(min=0.1),
    ],
)
def test_what_never_touches_the_host_is_captured(device, work):
    with device.capturing():
        work(torch.ones(3, device="cuda"))
    assert kinds(device) == []


def test_a_wait_is_an_error_where_waits_are_debugged(device):
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="synchronizing"):
        torch.ones(3, device="cuda").sum().item()


def test_networks_and_gradients_are_the_cpus(device):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3), nn.Softplus())
    x, weights = torch.randn(5, 1, 4, 4), list(network.parameters())
    expected = torch.autograd.grad(network(x).square().sum(), weights)
    assert all(a is b for a, b in zip(network.to("cuda").parameters(), weights, strict=True))
    found = torch.autograd.grad(network(x.to("cuda")).square().sum(), weights)
    for a, b in zip(found, expected, strict=True):
        assert a.device == CUDA
        torch.testing.assert_close(a.cpu(), b)


def test_recurrent_networks_are_the_cpus(device):
    network = nn.GRU(2, 3, batch_first=True, bidirectional=True)
    x = torch.randn(4, 5, 2)
    expected = network(x)[0].detach()
    torch.testing.assert_close(network.to("cuda")(x.to("cuda"))[0].cpu(), expected)


def test_a_graph_does_nothing_when_it_is_captured_and_all_of_it_when_it_is_replayed(device):
    x, total = torch.ones(3, device="cuda"), torch.zeros(3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    before = torch.get_rng_state()
    with torch.cuda.graph(graph):
        noise = torch.randn(3, device="cuda")
        doubled = F.relu(x * 2)
        total.add_(doubled)
    assert total.tolist() == [0.0, 0.0, 0.0]
    assert torch.equal(torch.get_rng_state(), before)
    draws = []
    for number in (1.0, 10.0):
        x.fill_(number)
        graph.replay()
        draws.append(noise.tolist())
        assert doubled.tolist() == [2 * number] * 3
    assert total.tolist() == [22.0] * 3
    torch.set_rng_state(before)
    assert draws == [torch.randn(3).tolist(), torch.randn(3).tolist()]


def test_an_index_outside_is_the_end(device):
    x = torch.ones(3, device="cuda")
    with pytest.raises(DeviceLostError):
        x[torch.full((2,), 3, device="cuda")]
    with pytest.raises(IndexError):
        torch.ones(3)[torch.full((2,), 3)]
