"""What depends on the kind of device, on a machine that has none but the CPU: kinds are played by stand-ins."""

import contextlib
import types

import pytest
import torch

from pyro_vae._support import cuda_graphs, devices
from pyro_vae._support.cuda_graphs import CannotStageError
from pyro_vae._support.devices import current, forked_random_state, get_random_state, resolve_device, set_random_state
from pyro_vae.inference.predictive import chunk_shape
from pyro_vae.training import parallel

CPU = torch.device("cpu")


def kinds(monkeypatch, *, cuda, xpu, float64=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: xpu)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: int(xpu))
    properties = types.SimpleNamespace(has_fp64=float64)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: properties)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"cuda": True, "xpu": True}, "cuda"),
        ({"cuda": False, "xpu": True}, "xpu"),
        ({"cuda": False, "xpu": True, "float64": False}, "cpu"),
        ({"cuda": False, "xpu": False}, "cpu"),
    ],
)
def test_auto_takes_the_first_that_is_there_and_has_float64(monkeypatch, there, expected):
    kinds(monkeypatch, **there)
    assert resolve_device("auto") == torch.device(expected)


@pytest.mark.parametrize("name", ["mps", "xpu"])
def test_a_device_without_float64_is_refused_in_a_sentence(monkeypatch, name):
    kinds(monkeypatch, cuda=False, xpu=True, float64=False)
    monkeypatch.setattr(torch, "empty", lambda *args, device: None)  # as if it were there
    with pytest.raises(ValueError, match=f"cannot use device '{name}', which lacks float64"):
        resolve_device(name)


class Module:
    """A kind of device, with a generator of its own for each."""

    def __init__(self):
        self.states, self.now, self.log = {0: torch.tensor([0]), 1: torch.tensor([1])}, 0, []

    def current_device(self):
        return self.now

    def get_rng_state(self, device):
        return self.states[device.index].clone()

    def set_rng_state(self, state, device):
        self.states[device.index] = state.clone()

    @contextlib.contextmanager
    def device(self, device):
        before, self.now = self.now, device.index
        try:
            yield
        finally:
            self.now = before


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_random_numbers_of_the_very_device_come_back(monkeypatch, kind):
    module, second = Module(), torch.device(kind, 1)
    monkeypatch.setattr(torch, "get_device_module", lambda name: module)
    before = get_random_state(second)
    assert {name: state.tolist() for name, state in before.items() if name != "cpu"} == {kind: [1]}
    with contextlib.suppress(KeyError), forked_random_state(second):
        module.states = {0: torch.tensor([5]), 1: torch.tensor([6])}
        raise KeyError
    assert module.states[1].tolist() == [1]
    assert module.states[0].tolist() == [5]  # which is another's business
    set_random_state(get_random_state(CPU), second)  # of a run on a CPU, which goes on here
    assert module.states[1].tolist() == [1]


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_a_device_is_the_current_one_inside_and_not_after(monkeypatch, kind):
    module = Module()
    monkeypatch.setattr(torch, "get_device_module", lambda name: module)
    with contextlib.suppress(KeyError), current(torch.device(kind, 1)):
        assert module.now == 1
        raise KeyError
    assert module.now == 0
    with current(CPU), current(torch.device("meta")), current(torch.device(kind)):
        assert module.now == 0


def test_random_numbers_of_a_cpu_come_back():
    with forked_random_state(CPU):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3))
    assert not devices.captures(CPU)


class Cuda:
    """As much of ``torch.cuda`` as a capture needs, and how it is left."""

    def __init__(self, monkeypatch, *, ends):
        self.ends, self.stream_now, self.mode, self.mended = ends, "the caller's", None, []
        self.sync_mode = 1
        fakes = {
            "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None),
            "graph_pool_handle": lambda: (0, 7),
            "Stream": lambda: "a side stream",
            "stream": self.stream,
            "graph": self.graph,
            "get_rng_state": lambda: torch.tensor([3], dtype=torch.uint8),
            "current_device": lambda: 1,
            "default_generators": [None, types.SimpleNamespace(graphsafe_set_state=self.mended.append)],
            "get_sync_debug_mode": lambda: self.sync_mode,
            "set_sync_debug_mode": lambda mode: setattr(self, "sync_mode", mode),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *pool: self.mended.append(pool), raising=False)
        generator = types.SimpleNamespace(set_state=self.mended.append, graphsafe_get_state=lambda: "fresh")
        monkeypatch.setattr(torch, "Generator", lambda device: generator)

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    @contextlib.contextmanager
    def graph(self, graph, pool, stream, mode):
        self.mode, self.stream_now = mode, stream
        try:
            yield
        finally:  # as torch's, which leaves its stream in place where the capture turns out to be spoilt
            if not self.ends:
                raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_lets_other_threads_go_on_and_mends_nothing(monkeypatch):
    cuda = Cuda(monkeypatch, ends=True)
    out, _ = cuda_graphs.recorded(lambda: "results")
    assert (out, cuda.mode, cuda.stream_now, cuda.mended) == ("results", "thread_local", "the caller's", [])


def test_a_failed_capture_leaves_streams_generator_and_allocator_sound(monkeypatch):
    cuda = Cuda(monkeypatch, ends=False)
    with pytest.raises(CannotStageError, match="it cannot be captured: RuntimeError: operation failed"):
        cuda_graphs.recorded(lambda: None)
    assert cuda.stream_now == "the caller's"
    pool, state, generator = cuda.mended
    assert pool == (1, (0, 7))
    assert state.tolist() == [3]
    assert generator == "fresh"


def test_waiting_is_refused_inside_and_as_the_caller_had_it_after(monkeypatch):
    cuda = Cuda(monkeypatch, ends=True)
    with contextlib.suppress(KeyError), cuda_graphs.refusing_to_wait():
        assert cuda.sync_mode == "error"
        raise KeyError
    assert cuda.sync_mode == 1


@pytest.mark.parametrize(("kind", "backend", "own"), [("cuda", "nccl", torch.device("cuda", 1)), ("cpu", "gloo", None)])
def test_each_rank_says_which_gpu_is_its_own(monkeypatch, kind, backend, own):
    joined = []
    store = types.SimpleNamespace(add=lambda *args: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(parallel, "rendezvous", lambda *args, **kwargs: iter([(store, 1, 2)]))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", joined.append)
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda name, **kwargs: joined.append((name, kwargs)))
    monkeypatch.setattr(parallel.dist, "destroy_process_group", lambda: None)
    with parallel.process_group(torch.device(kind)):
        name, arguments = joined[-1]
    assert (name, arguments["device_id"]) == (backend, own)
    assert joined[:-1] == ([1] if kind == "cuda" else [])


@pytest.mark.parametrize("name", ["mps", "meta", "nonsense"])
def test_a_device_that_is_not_taken_is_refused_in_one_short_sentence(name):
    with pytest.raises(ValueError, match=r"^cannot use device .*use auto, cpu, cuda or xpu$") as error:
        devices.resolve_device(name)
    assert len(str(error.value)) < 400
    assert "Could not run" not in str(error.value)


def test_draws_take_a_share_of_a_gpus_memory(monkeypatch):
    assert devices.memory_for_draws(CPU) == 2**26
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=2**37))
    large = torch.device("cuda", 0)
    assert devices.memory_for_draws(large) == 2**31
    runs, rows = chunk_shape(784, device=large)
    assert runs * rows * 784 <= 2**31 // 16 < (runs * (rows + 1)) * 784
    assert chunk_shape(784, device=large, at_most=100)[1] == 100


def test_a_device_is_looked_for_without_being_opened(monkeypatch):
    """Under torchrun each process has one of its own, and would open the first besides."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("opened"))
    assert devices.resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(ValueError, match=r"cannot use device 'cuda:2' \(2 of that kind are available\)"):
        devices.resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"cannot use device 'cuda' \(none of that kind is available\)"):
        devices.resolve_device("cuda")
