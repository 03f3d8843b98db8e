"""How torch multiplies while a run trains, seen from inside its programs; and afterwards as the caller had it."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import Pair, fit, mlp_vae
from pyro_vae.likelihoods import Normal
from pyro_vae.training import lowering
from pyro_vae.training.arithmetic import in_force, repeatable

GPU = (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"))
CPU = (("mkldnn", "matmul"), ("mkldnn", "conv"), ("mkldnn", "rnn"))
PARENTS = (("generic", "all"), ("cuda", "all"))

CALLERS = {
    "nothing": lambda: None,
    "products in TF32": lambda: torch.set_float32_matmul_precision("high"),
    "products in bfloat16 on a CPU": lambda: torch.set_float32_matmul_precision("medium"),
    "no TF32 by the old name": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
    "TF32 by the old name": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "TF32 for all by the new name": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "full for all by the new name": lambda: setattr(torch.backends, "fp32_precision", "ieee"),
    "full in cuDNN by the new name": lambda: setattr(torch.backends.cudnn, "fp32_precision", "ieee"),
    "old and new at odds in products": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "old and new at odds in convolutions": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
    "bfloat16 in a CPU's convolutions": lambda: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
}


def newer():
    return {pair: torch._C._get_fp32_precision_getter(*pair) for pair in (*PARENTS, *GPU, *CPU)}


def read(function):
    try:
        return function()
    except RuntimeError as error:
        return str(error)


def everything():
    """All that can be read of the settings, errors of torch's included, and what follows when a parent is changed."""
    seen = [newer(), read(torch.get_float32_matmul_precision)]
    seen += [read(lambda: torch.backends.cudnn.allow_tf32), read(lambda: torch.backends.cuda.matmul.allow_tf32)]
    return [*seen, torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark]


@pytest.fixture(autouse=True)
def _as_torch_begins():
    yield
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for setting in (torch.backends.cuda.matmul, *(getattr(torch.backends.mkldnn, op) for op in ("matmul", "conv"))):
        setting.fp32_precision = "none"
    torch.backends.mkldnn.rnn.fp32_precision = "none"


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("precision", ["full", "tf32", "bfloat16"])
def test_precision_is_in_force_inside_and_what_the_caller_had_comes_back(caller, precision):
    CALLERS[caller]()
    before = everything()
    with contextlib.suppress(KeyError), in_force(precision):
        inside = newer()
        assert {inside[pair] for pair in GPU} == {"tf32" if precision == "tf32" else "ieee"}
        assert {inside[pair] for pair in CPU} == {"ieee"}
        # What torch and programs may read by the old names, at once and before each other.
        assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is (precision == "tf32")
        assert torch.get_float32_matmul_precision() == ("high" if precision == "tf32" else "highest")
        with torch.backends.cudnn.flags(enabled=False):
            pass
        raise KeyError
    assert everything() == before


@pytest.mark.parametrize("caller", ["TF32 for all by the new name", "full in cuDNN by the new name"])
def test_settings_that_went_by_those_of_their_library_still_do(caller):
    for setting in (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn):
        setting.fp32_precision = "none"
    CALLERS[caller]()
    with in_force("full"):
        pass
    torch.backends.fp32_precision = torch.backends.cudnn.fp32_precision = "ieee"
    assert {newer()[pair] for pair in GPU} == {"ieee"}
    torch.backends.cudnn.fp32_precision = "tf32"
    assert {newer()[pair] for pair in GPU} == {"tf32"}


class Spy(nn.Module):
    """A guide that notes the settings whenever it is run, and stops the run if it is told to."""

    def __init__(self, seen, stop_at=None):
        super().__init__()
        self.layer, self.seen, self.stop_at = nn.Linear(3, 4), seen, stop_at

    def forward(self, x):
        if self.training:
            self.seen(everything())
        loc, raw = self.layer(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("precision", ["full", "tf32"])
def test_fit_computes_by_its_precision_however_steps_are_run(precision, compile, monkeypatch):
    seen, at_run = [], []

    def watched(trace, inputs):
        at_run.append(everything())  # when kernels are chosen

        def call(*tensors):
            at_run.append(everything())
            with torch.no_grad():
                return tuple(trace.graph(*tensors, *trace.held))

        return call

    monkeypatch.setattr(lowering, "compile_trace", watched)
    torch.backends.cudnn.benchmark = False
    pair = Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Spy(seen.append))
    before = everything()
    how = fit(pair, torch.randn(64, 3), epochs=3, batch_size=16, progress=False, compile=compile, precision=precision)
    assert everything() == before
    assert len(at_run) > 5 if compile else len(seen) >= 12, how.attrs["execution"]
    for settings, _, cudnn, cublas, deterministic, benchmark in [*seen[-3:], *at_run]:
        assert {settings[pair] for pair in GPU} == {"tf32" if precision == "tf32" else "ieee"}
        assert (cudnn, cublas) == ((precision == "tf32"),) * 2
        assert (deterministic, benchmark) == (True, False)


def test_settings_come_back_where_a_program_fails():
    def stop(settings):
        if settings[3] is True:  # TF32 in products: a step, and not a look at the programs beforehand
            raise ArithmeticError("stop")

    pair = Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Spy(stop))
    before = everything()
    with pytest.raises(ArithmeticError, match="stop"):
        fit(pair, torch.randn(64, 3), epochs=1, batch_size=16, progress=False, precision="tf32", compile=False)
    assert everything() == before


@pytest.mark.parametrize("benchmark", [False, True])
def test_convolutions_are_deterministic_inside(benchmark):
    with torch.backends.cudnn.flags(benchmark=benchmark, deterministic=False):
        before = everything()
        with repeatable():
            assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        assert everything() == before
