"""Steps that are captured are the programs' steps; here on a CPU, with a stand-in for CUDA's graphs."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from host_graph import HostGraphs
from test_execution import CASES, bits_vae
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import TensorDataset

from pyro_vae import Pair, fit, mlp_vae
from pyro_vae._support import cuda_graphs
from pyro_vae._support.cuda_graphs import CannotStageError
from pyro_vae.likelihoods import Normal
from pyro_vae.training import execution

CAPTURED = "uncompiled, captured in a CUDA graph"


@pytest.fixture
def graphs(monkeypatch, float64):
    return HostGraphs(monkeypatch)


def trained(build, data, **options):
    """The history, and every tensor that it left."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    pair = build()
    history = fit(pair, data, **{"epochs": 4, "batch_size": 16, "progress": False, "learning_rate": 0.01} | options)
    store = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    return history, {**{name: tensor.clone() for name, tensor in pair.state_dict().items()}, **store}


def assert_alike(a, b, **tolerance):
    (history, weights), (other_history, others) = a, b
    for column in ("elbo", "reconstruction", "kl", "learning_rate"):
        assert history[column].tolist() == pytest.approx(other_history[column].tolist(), rel=1e-8)
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, **tolerance)


@pytest.mark.parametrize("case", ["bits", "counts", "running averages", "score function"])
def test_captured_training_is_the_programs_training(graphs, case):
    build, rows, options = CASES[case]
    data = rows()
    captured = trained(build, data, **options)
    assert captured[0].attrs["execution"] == CAPTURED
    assert graphs.num_recorded == 1 < 20 < graphs.num_launched
    assert_alike(captured, trained(build, data, compile=False, **options), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("schedule", "streamed"), [("cosine", True), ("plateau", False)])
def test_every_schedule_and_streamed_rows_reach_the_graph(graphs, schedule, streamed):
    x = torch.randn(90, 3)
    data = TensorDataset(x) if streamed else x
    options = {"schedule": schedule, "epochs": 20, "learning_rate": 0.5, "num_workers": 0}

    def build():
        return mlp_vae((3,), 1, hidden_dims=(4,), likelihood=Normal())

    captured = trained(build, data, **options)
    assert captured[0].attrs["execution"] == CAPTURED
    assert_alike(captured, trained(build, data, compile=False, **options), rtol=1e-6, atol=1e-8)
    rates = captured[0]["learning_rate"]
    assert rates.iloc[-1] < rates.iloc[0]


@pytest.mark.parametrize(("several", "num_rows"), [(2, 96), (3, 170), (8, 400), (8, 410)])
def test_several_steps_of_a_launch_are_the_steps_one_by_one(graphs, monkeypatch, several, num_rows):
    monkeypatch.setattr(execution, "_STEPS_OF_A_LAUNCH", several)
    x = torch.randint(0, 256, (num_rows, 12), dtype=torch.uint8)
    launched = trained(bits_vae, x, epochs=6, max_grad_norm=5.0)
    assert launched[0].attrs["execution"] == CAPTURED
    assert graphs.num_recorded == 2
    assert graphs.num_launched < 6 * (num_rows // 16) / 2 + 40  # those that are checked are launched alone
    monkeypatch.setattr(execution, "_STEPS_OF_A_LAUNCH", num_rows)  # more than there are
    alone = trained(bits_vae, x, epochs=6, max_grad_norm=5.0)
    assert graphs.num_recorded == 3
    assert_alike(launched, alone, rtol=0, atol=0)


def test_steps_are_launched_one_by_one_where_several_cannot_be_recorded(graphs, monkeypatch):
    x = torch.randint(0, 256, (400, 12), dtype=torch.uint8)
    recorded = cuda_graphs.recorded

    def one(function, pool=None):
        if graphs.num_recorded:
            raise CannotStageError("out of memory")
        return recorded(function, pool)

    monkeypatch.setattr(cuda_graphs, "recorded", one)
    captured = trained(bits_vae, x)
    assert captured[0].attrs["execution"] == CAPTURED
    assert_alike(captured, trained(bits_vae, x, compile=False), rtol=1e-6, atol=1e-8)


def test_a_replay_launches_nothing_beside_the_graph(graphs, monkeypatch):
    beside = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if not graphs.launching:
                beside.append(func)
            return func(*args, **(kwargs or {}))

    replay, counts = execution.Execution._replay, []

    def watched(self, *args, **options):
        beside.clear()
        with Log():
            replay(self, *args, **options)
        counts.append(list(beside))

    monkeypatch.setattr(execution.Execution, "_replay", watched)
    trained(bits_vae, torch.randint(0, 256, (400, 12), dtype=torch.uint8), max_grad_norm=5.0)
    assert len(counts) > 60
    # After a step that was checked, or another epoch's first, the tape is wound by hand.
    assert sum(map(len, counts)) <= 4
    assert [] in counts


def test_a_captured_run_goes_on_to_the_same_bits(graphs, tmp_path):
    x = torch.randint(0, 256, (112, 12), dtype=torch.uint8)
    whole = trained(bits_vae, x, epochs=4, validation_data=x[:20])
    path = tmp_path / "run.safetensors"

    class StopError(Exception):
        pass

    begin, begun = execution.Execution.begin_epoch, []

    def stopping(self, epoch):
        begun.append(epoch)
        if len(begun) == 3:
            raise StopError
        begin(self, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution.Execution, "begin_epoch", stopping)
        with pytest.raises(StopError):
            trained(bits_vae, x, epochs=4, validation_data=x[:20], checkpoint=path)
    resumed = trained(bits_vae, x, epochs=4, validation_data=x[:20], checkpoint=path, resume=True)
    assert resumed[0].attrs["execution"] == CAPTURED
    assert resumed[0]["elbo"].tolist() == whole[0]["elbo"].tolist()
    assert all(torch.equal(resumed[1][name], value) for name, value in whole[1].items())


def test_training_goes_back_to_where_the_graph_held(graphs, monkeypatch):
    """Where a check fails, all steps since the one before are taken again, by the programs, and counted once."""
    x = torch.randn(16 * 40, 3)

    def build():
        return mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal())

    alone = trained(build, x, compile=False)
    same, checks = execution.Execution._are_the_same, []

    def failing(self, *args):
        checks.append(self._graph.steps)
        return same(self, *args) and len(checks) < 4

    monkeypatch.setattr(execution.Execution, "_are_the_same", failing)
    with pytest.warns(UserWarning, match="continues with the programs, after .* steps of their graph"):
        gone_back = trained(build, x)
    assert checks[-1] - checks[-2] > 4  # steps that were taken again
    assert_alike(gone_back, alone, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("fails", ["a step that waits", "the capture"])
def test_what_cannot_be_captured_trains_as_programs_and_says_so_once(graphs, monkeypatch, fails):
    x = torch.randint(0, 256, (150, 12), dtype=torch.uint8)
    alone = trained(bits_vae, x, compile=False)

    class Waiting(TorchDispatchMode):
        """Fails in the middle of a step, after noise has been drawn."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.addmm.default and len(args[0]) == 12:
                raise RuntimeError("called a synchronizing CUDA operation")
            return func(*args, **(kwargs or {}))

    def refused(function, pool=None):
        torch.rand(3)
        raise CannotStageError("called a synchronizing CUDA operation")

    if fails == "the capture":
        monkeypatch.setattr(cuda_graphs, "recorded", refused)
    else:
        monkeypatch.setattr(cuda_graphs, "refusing_to_wait", Waiting)
    with pytest.warns(UserWarning, match="cannot be captured") as said:
        trained_as_programs = trained(bits_vae, x)
    assert len(said) == 1
    how = trained_as_programs[0].attrs["execution"]
    assert "then eager: their graph cannot be captured (" in how
    assert "called a synchronizing CUDA operation" in how
    if fails == "a step that waits":
        assert_alike(trained_as_programs, alone, rtol=1e-6, atol=1e-8)


def test_a_value_that_stays_is_read_once_and_not_while_capturing(graphs):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.register_buffer("width", torch.tensor(2.0))

        def forward(self, x):
            loc, raw = self.layer(x).chunk(2, -1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc * self.width.item(), raw.exp()).to_event(1))

    def build():
        return Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Scaled())

    x = torch.randn(96, 3)
    captured = trained(build, x)
    assert captured[0].attrs["execution"] == CAPTURED
    assert_alike(captured, trained(build, x, compile=False), rtol=1e-6, atol=1e-8)
