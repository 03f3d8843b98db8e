"""Tools whose runs of the programs are replayed as a CUDA graph: on stand-ins for a GPU, to the numbers of a CPU."""

import random
import time
import warnings
from unittest.mock import MagicMock

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from every_tool import seeded, some
from host_graph import HostGraphs
from pretended_cuda import PretendedCuda
from test_captured import of
from test_tools_on_device import gaps_vae, table_with_gaps
from zoo import ZOO

from pyro_vae import Pair
from pyro_vae._support import cuda_graphs
from pyro_vae.evaluation import ais_bounds, calibration_at_rows, find_modes, log_evidence
from pyro_vae.generation import conditional
from pyro_vae.inference.replaying import Replayed
from pyro_vae.inference.structure import ContractError

NUM_ROWS = 20


@pytest.fixture
def graphs(monkeypatch):
    return HostGraphs(monkeypatch)


def in_turn_pair():
    """The decoder takes one draw for each row and no more, so the programs run for one draw after another."""
    decoder = torch.nn.Linear(1, 6)

    def model(x=None, *, batch_size=None, mask=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            p_x = dist.Normal(decoder(z.reshape(len(z), 1)), 1.0)
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x.mean(-1), 1.0))

    return Pair(model, guide, missing="nan")


def noisy_pair():
    """The decoder draws noise of its own, so the density at a latent is another each time."""
    decoder = torch.nn.Linear(1, 3)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            loc = decoder(z[..., None])
            return pyro.sample("x", dist.Normal(loc + 0.1 * torch.rand_like(loc), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x.mean(-1), 1.0))

    return Pair(model, guide)


def of_zoo(name):
    return lambda: of(ZOO[name]), lambda: some(ZOO[name].rows(), NUM_ROWS)


PAIRS = {
    "gaps": (gaps_vae, table_with_gaps),
    "noisy": (noisy_pair, lambda: torch.randn(NUM_ROWS, 3)),
    "two-headed": of_zoo("two-headed"),
    "gaussian mixture": of_zoo("gaussian mixture"),
}
TOOLS = {
    "annealing": lambda pair, x: ais_bounds(pair, some(x, 4), num_chains=3, num_steps=18, num_leapfrog=2),
    "annealing of simulated rows": lambda pair, x: ais_bounds(pair, num_rows=3, num_steps=20, num_leapfrog=2),
    "calibration at rows": lambda pair, x: calibration_at_rows(pair, x, num_chains=3, num_transitions=17).ranks,
    "modes": lambda pair, x: find_modes(pair, some(x, 3), num_chains=4, num_particles=30),
    "evidence": lambda pair, x: log_evidence(pair, x, num_particles=40, memory_mib=1e-3),
}
CASES = [
    *(("gaps", tool) for tool in TOOLS if "simulated" not in tool),
    ("noisy", "modes"),  # these run for one chain after another
    ("noisy", "evidence"),
    ("two-headed", "annealing of simulated rows"),
    ("gaussian mixture", "evidence"),
]


def outcome(tool, build, data, device="cpu"):
    """The tool's numbers; that a program cannot be captured is an error, as all other warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the programs cannot run for several")
        return seeded(tool, build, data, device)


def assert_alike(found, expected):
    assert len(found) == len(expected) > 0
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize(("pair", "tool"), CASES)
def test_replayed_tools_give_the_numbers_of_the_programs(monkeypatch, pair, tool):
    build, data = PAIRS[pair]
    expected = outcome(TOOLS[tool], build, data)
    graphs = HostGraphs(monkeypatch)
    assert_alike(outcome(TOOLS[tool], build, data), expected)
    assert graphs.num_recorded > 0
    assert graphs.num_launched > 10 * graphs.num_recorded


def test_draws_given_some_entries_and_imputation_in_turn_are_replayed(monkeypatch):
    def annealed(vae, x):
        return conditional(vae, x[:2], num_samples=2, num_particles=30, min_ess=29, num_steps=40).draws

    def imputed(vae, x):
        return vae.impute(x, 2, num_particles=40)

    cases = [(annealed, gaps_vae), (imputed, in_turn_pair)]
    expected = [outcome(tool, build, table_with_gaps) for tool, build in cases]
    graphs = HostGraphs(monkeypatch)
    for (tool, build), wanted in zip(cases, expected, strict=True):
        before = graphs.num_launched
        assert_alike(outcome(tool, build, table_with_gaps), wanted)
        assert graphs.num_launched - before > 30


@pytest.mark.parametrize("tool", ["annealing", "evidence"])
def test_on_a_pretended_device_replays_never_touch_the_host(monkeypatch, tool):
    expected = outcome(TOOLS[tool], *PAIRS["gaps"])
    captured = MagicMock(wraps=cuda_graphs.captured)
    monkeypatch.setattr(cuda_graphs, "captured", captured)
    with PretendedCuda():
        found = outcome(TOOLS[tool], *PAIRS["gaps"], "cuda")
    assert captured.called
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


class Odd(torch.nn.Module):
    """A decoder that does ``what`` beside its work; a graph does not."""

    def __init__(self, what):
        super().__init__()
        self.linear, self.what, self.calls = torch.nn.Linear(1, 3), what, 0

    def forward(self, z):
        return self.linear(z) + self.what(self, z)


def counts(decoder, z):
    decoder.calls += 1
    return 0.0 if decoder.calls < 400 else 0.1  # of many hundred


def reads(decoder, z):
    return 0.0 if float(z.detach().sum()) < 1e9 else 1.0


def asks_numpy(decoder, z):
    return 1e-3 * np.random.rand()


def asks_python(decoder, z):
    return 1e-3 * random.random()


def asks_the_clock(decoder, z):
    return 1e-9 * time.time()


def pair_with(what):
    decoder = Odd(what)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(decoder(z[..., None]), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.3 * x.mean(-1), 1.0))

    return Pair(model, guide)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (counts, r"decoder.calls \(\d+ → \d+\) when it runs"),
        (reads, "permitted when stream is capturing"),
        (asks_numpy, "NumPy"),
        (asks_python, "random"),
        (asks_the_clock, "time"),
    ],
)
def test_programs_that_a_graph_would_freeze_run_each_time_and_say_so(monkeypatch, what, words):
    case = (TOOLS["annealing"], lambda: pair_with(what), PAIRS["noisy"][1])
    expected = outcome(*case)
    graphs = HostGraphs(monkeypatch)
    with pytest.warns(UserWarning, match=f"cannot be captured in a CUDA graph .*{words}"):
        found = outcome(*case)
    assert graphs.num_launched == 0
    if what is not asks_the_clock:
        assert_alike(found, expected)


def test_programs_that_something_changes_after_some_replays_are_refused(graphs):
    scale = [1.0]
    replayed = Replayed(lambda x: (scale[0] * x,), {}, torch.device("cpu"))
    for _ in range(10):
        assert replayed(torch.ones(3))[0].tolist() == [1.0, 1.0, 1.0]
    scale[0] = 2.0  # replays 1, 2, 4 and 8 are checked
    with pytest.raises(ContractError, match="their graph gives other numbers, after 7 replays"):
        replayed(torch.ones(3))


def test_a_function_is_captured_for_the_shapes_of_its_first_call_if_it_is_called_often(graphs):
    def function(x):
        return (x + torch.rand_like(x),)

    torch.manual_seed(0)
    expected = [torch.ones(3) + torch.rand(3) for _ in range(30)]
    torch.manual_seed(0)
    replayed = Replayed(function, {}, torch.device("cpu"))
    found = [replayed(torch.ones(3))[0] for _ in range(30)]
    assert all(map(torch.equal, found, expected))
    assert graphs.num_launched == 30 - 3
    assert replayed(torch.ones(5))[0].shape == (5,)
    few = Replayed(function, {}, torch.device("cpu"), num_calls=10)
    for _ in range(10):
        few(torch.ones(2))
    assert (graphs.num_recorded, graphs.num_launched) == (1, 30 - 3)
