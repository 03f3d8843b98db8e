"""Two processes that train together come to what one comes to on steps of twice the rows."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import Elbo, Pair, fit, load, mlp_vae
from pyro_vae.cli.running import run_command
from pyro_vae.data.rows import as_rows
from pyro_vae.likelihoods import Normal, Poisson
from pyro_vae.training import parallel
from pyro_vae.training.execution import Epoch, Execution
from pyro_vae.training.step import Gradients

ROOT = Path(__file__).parents[1]
SETTINGS = {"epochs": 4, "seed": 3, "device": "cpu", "progress": False, "compile": False}
# The last step of an epoch has 13 rows for two ranks; 33, since a row alone joins the step before; 31, of which one
# rank has as many as of a whole step, and the other does not.
FIXED = {
    "uneven": {"num_rows": 77, "max_grad_norm": 0.5, "average_weights": 0.9},
    "one left over": {"num_rows": 65, "objective": Elbo(kl_warmup=0.5)},
    "compiled": {"num_rows": 95, "compile": True},
}


class FixedNoise(nn.Module):
    """z = loc + scale eps, with eps from the data: no number is drawn."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 4).double(), nn.Linear(2, 3).double()
        self.log_scale = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x=None, *, eps, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            prior = dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)


class FixedGuide(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.encoder = model.encoder

    def forward(self, x, *, eps):
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(loc + raw.exp() * eps, event_dim=1))


def fixed_pair(seed=0):
    torch.manual_seed(seed)
    model = FixedNoise()
    return Pair(model, FixedGuide(model))


def fixed_data(num_rows):
    generator = torch.Generator().manual_seed(1)
    x, eps = (torch.randn(num_rows, n, generator=generator, dtype=torch.float64) for n in (3, 2))
    return {"x": x, "eps": eps}


def train_fixed(num_rows, batch_size, seed=0, **settings):
    pair = fixed_pair(seed)
    data, watched = fixed_data(num_rows), fixed_data(20)
    history = fit(pair, data, validation_data=watched, batch_size=batch_size, **(SETTINGS | settings))
    return pair.state_dict(), history.drop(columns=["seconds", "rows_per_second"]).to_numpy(), history.attrs


def gradients_of_first_step(batch_size):
    """The gradient that a step on the first rows of all ranks leaves, before Adam has seen it."""
    pair, data = fixed_pair(), as_rows(fixed_data(32), torch.device("cpu"))
    named = {n: p for n, p in pair.named_parameters() if p.requires_grad}
    example = {"index": torch.arange(batch_size)}
    structure = pair.structure(pair.prepare(data.resolve(example)))
    gradients = Gradients(pair, named, data, example, structure, Elbo())
    execution = Execution(gradients, torch.optim.Adam(named.values(), lr=torch.tensor(0.0)))
    index = parallel.share(torch.arange(batch_size * parallel.world_size()))
    execution.begin_epoch(Epoch([index], lambda indices: iter([{"index": index}]), [0.3], [[0.0]]))
    execution.step({"index": index})
    return {name: parameter.grad.clone() for name, parameter in named.items()}


def train_normed(num_rows):
    """Batch norm, which has no variance of one row; rows are left over."""
    torch.manual_seed(0)
    vae = mlp_vae((3,), latent_dim=2, hidden_dims=(8,), likelihood=Normal())
    vae.encoder.network = nn.Sequential(nn.BatchNorm1d(3), vae.encoder.network)
    x = torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(4))
    history = fit(vae, x, batch_size=16, **SETTINGS)
    return len(history), vae.state_dict()


def counts():
    return torch.poisson(torch.full((77, 3), 6.0), generator=torch.Generator().manual_seed(2))


def train_noisy(path, *, stop_at=None, resume=False):
    """A VAE of counts, whose likelihood takes its anchor from the first batch; the noise it drew at each step."""
    torch.manual_seed(5 + parallel.rank())  # other weights on each rank, to be made equal
    vae = mlp_vae((3,), latent_dim=2, hidden_dims=(8,), likelihood=Poisson())
    noise = []

    def look(guide, arguments, z):
        if guide.training:
            q = guide.encoder(arguments[0])
            noise.append(((z - q.mean) / q.stddev).detach())
            if stop_at == len(noise) and parallel.rank() == parallel.world_size() - 1:
                os.kill(os.getpid(), signal.SIGINT)

    vae.guide.register_forward_hook(look)
    history = fit(vae, counts(), batch_size=16, checkpoint=path, resume=resume, **SETTINGS)
    return {
        "state": vae.state_dict(),
        "noise": noise,
        "stopped": history.attrs["stopped"],
        "history": history[["epoch", "elbo", "learning_rate"]].to_numpy(),
    }


def worker(rank, folder, port):
    """What one of two processes does; its results go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with parallel.process_group(torch.device("cpu")):
        results = {
            "shares": parallel.share(torch.arange(7)),
            "gradients": gradients_of_first_step(16),
            **{name: train_fixed(batch_size=16, seed=rank, **case) for name, case in FIXED.items()},
            "normed": [train_normed(num_rows) for num_rows in (65, 66, 67)],
            "whole": train_noisy(None),
            "stopped": train_noisy(folder / "two", stop_at=4),
        }
        if rank == 0:
            (folder / "for one").write_bytes((folder / "two").read_bytes())
        results["resumed"] = train_noisy(folder / "two", resume=True)
        try:
            train_fixed(num_rows=31, batch_size=16)
        except ValueError as error:
            results["refused"] = str(error)
    torch.save(results, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The results of both ranks, and the folder that they wrote into."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(worker, (folder, port), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)], folder


def assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def test_alone_there_is_one_rank_and_all_rows_are_its_own():
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert parallel.share(torch.arange(5)).tolist() == [0, 1, 2, 3, 4]
    assert parallel.from_first_rank("path") == "path"


def test_rows_are_shared_out_without_overlap(two):
    assert [results["shares"].tolist() for results in two[0]] == [[0, 1, 2, 3], [4, 5, 6]]


def test_gradients_are_those_of_one_process_on_all_rows(two):
    expected = gradients_of_first_step(32)
    assert min(gradient.norm() for gradient in expected.values()) > 1e-3
    for results in two[0]:
        assert_same(results["gradients"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", FIXED)
def test_weights_and_history_are_those_of_one_process(two, case):
    state, history, _ = train_fixed(batch_size=32, **(FIXED[case] | {"compile": False}))
    start = fixed_pair().state_dict()
    assert max((state[name] - start[name]).abs().max() for name in state) > 1e-3
    for results in two[0]:
        found, rows, attributes = results[case]
        assert_same(found, state, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(rows, history, rtol=1e-7)
        assert attributes["execution"] == ("compiled" if case == "compiled" else "eager, as asked")


def test_no_rank_is_left_with_a_single_row(two):
    for ours, theirs in zip(*(results["normed"] for results in two[0]), strict=True):
        assert ours[0] == SETTINGS["epochs"]
        assert_same(ours[1], theirs[1])


def test_noise_differs_between_ranks_and_epochs(two):
    first, second = (results["whole"]["noise"] for results in two[0])
    assert len(first) == len(second) == 12
    for ours, theirs in zip(first, second, strict=True):
        assert (ours[:6] - theirs[:6]).abs().max() > 0.1
    assert (second[0][:6] - second[3][:6]).abs().max() > 0.1
    assert abs(torch.cat(second).mean()) < 0.3


def test_ranks_end_with_the_same_weights_and_buffers(two):
    first, second = (results["whole"] for results in two[0])
    assert_same(first["state"], second["state"])
    np.testing.assert_array_equal(first["history"], second["history"])


def test_ctrl_c_stops_all_ranks_at_the_same_step(two):
    for results in two[0]:
        assert results["stopped"]["stopped"] == "interrupted"
        assert len(results["stopped"]["history"]) == 2
    assert_same(two[0][0]["stopped"]["state"], two[0][1]["stopped"]["state"])


def test_a_checkpoint_of_two_goes_on_to_the_same_numbers_on_two(two):
    for results in two[0]:
        assert_same(results["resumed"]["state"], results["whole"]["state"])
        np.testing.assert_array_equal(results["resumed"]["history"], results["whole"]["history"])


def test_a_checkpoint_of_two_goes_on_with_one(two):
    results, folder = two
    alone = train_noisy(folder / "for one", resume=True)
    assert alone["stopped"] == "finished"
    np.testing.assert_array_equal(alone["history"][:2], results[0]["whole"]["history"][:2])
    assert len(alone["noise"]) == 2 * 5  # epochs of 77 rows in steps of 16
    # The schedule goes by the share of the run that is done, not by steps. Epoch 3 is at its half, 4 at three quarters.
    np.testing.assert_allclose(alone["history"][:, 2], results[0]["whole"]["history"][:, 2], rtol=1e-6)
    assert alone["history"][3, 1] > alone["history"][0, 1]


def test_too_few_rows_for_a_step_are_refused_on_every_rank(two):
    for results in two[0]:
        assert results["refused"].startswith("x_train has 31 rows, fewer than batch_size=16 on 2 ranks")


def run_two(*arguments):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*torchrun, ROOT / "scripts" / "train.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)


def test_torchrun_leaves_one_run_and_refuses_with_one_sentence(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    done = run_two("--epochs", "2", "--hidden-dims", "16", "--latent-dim", "3", "--out", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validation ELBO") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "figures",
        "history.csv",
        "model.safetensors",
        "run.toml",
    ]
    assert load(folder).latent_dim == 3
    out = tmp_path / "metrics.json"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(folder), "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        run_command(importlib.import_module("evaluate").main)
    assert not end.value.code
    assert -100 < json.loads(out.read_text())["elbo"] < 0

    refused = run_two("--out", folder)
    assert refused.returncode != 0
    assert [line for line in refused.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {folder} already holds a run: use --resume {folder}, or name another --out"
    ]
