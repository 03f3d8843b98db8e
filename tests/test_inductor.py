"""A compiled graph that is found again is the graph; the cache is the user's own; kernels are one library."""

import gc
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import sympy
import torch
import torch._inductor.compiler_bisector  # looks for the cache when it is imported, which tests move
from coverings import some
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor import async_compile, config, cpu_vec_isa, sizevars
from torch._inductor.codecache import CppPythonBindingsCodeCache, PyCodeCache
from torch.nn import functional as F
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from pyro_vae.training import inductor
from pyro_vae.training.lowering import compile_trace, trace


def forget():
    """What another process would not know."""
    PyCodeCache.cache_clear()
    CppPythonBindingsCodeCache.cache_clear()
    inductor._Library.cache.clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    forget()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    return tmp_path / "compiled"


def compiled(function, *inputs):
    """The function's graph, and how often its compilation was found."""
    counters.clear()
    run = compile_trace(trace(function, inputs), inputs)
    found = counters["aot_autograd"]
    return run, (found["autograd_cache_hit"], found["autograd_cache_miss"])


class Step:
    """A function of weights, buffers, constants and noise: what a graph may hold from outside."""

    def __init__(self, seed, rows=5):
        torch.manual_seed(seed)
        self.layer, self.conv = nn.Linear(6, 4), nn.Conv2d(1, 2, 3)
        self.shift, self.count = torch.randn(4), torch.zeros(())
        self.mask = torch.rand(rows, 4) > 0.5

    def __call__(self, x):
        self.count.add_(1)
        with torch.enable_grad():
            hidden = F.softplus(self.layer(x)) + self.shift * torch.tensor([1.0, 2.0, 3.0, 4.0])
            hidden = torch.where(self.mask, hidden, hidden.new_zeros(())) + torch.randn_like(hidden)
            image = self.conv(hidden.reshape(len(x), 1, 4, 1).expand(-1, 1, 4, 4))
            loss = image.square().sum() + torch.lgamma(hidden.exp()).sum()
            weights = [*self.layer.parameters(), *self.conv.parameters()]
            return loss.detach(), *torch.autograd.grad(loss, weights)


def test_what_is_found_again_has_the_values_of_now_and_not_of_then(cache):
    x = torch.randn(5, 6)
    _, counts = compiled(Step(0), x)
    assert counts == (0, 1)
    for seed in (1, 2, 3):
        forget()
        step = Step(seed)
        run, counts = compiled(step, x)
        assert counts == (1, 0)
        y = torch.randn(5, 6)
        before = float(step.count)
        torch.manual_seed(7)
        found = run(y)
        assert float(step.count) == before + 1
        torch.manual_seed(7)
        for ours, theirs in zip(found, step(y), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


NEAR = {  # functions that differ in a number alone
    "factor": lambda c: [lambda x: x * 2.0, lambda x: x * 2.5],
    "value that is read": lambda c: [lambda x: x * 3.0, lambda x: x * float(c)],
    "constant": lambda c: [lambda x, t=t: x + torch.tensor([1.0, 2.0, t]) for t in (3.0, 4.0)],
    "indices": lambda c: [lambda x, i=i: x[:, i] for i in ([0, 1, 2], [1, 0, 2])],
    "probability": lambda c: [lambda x, p=p: F.dropout(x, p) for p in (0.3, 0.6)],
    "tensor from outside": lambda c: [lambda x, t=t: torch.where(t > 1.5, x, -x) for t in (c, -c)],
}


@pytest.mark.parametrize("kind", NEAR)
def test_what_differs_is_not_taken_for_what_was_compiled(cache, kind):
    x = torch.rand(5, 3)
    for function in NEAR[kind](torch.tensor(2.0)):
        run, _ = compiled(lambda x, function=function: (function(x),), x)
        torch.manual_seed(1)
        (found,) = run(x)
        torch.manual_seed(1)
        torch.testing.assert_close(found, function(x))
        forget()


def test_the_kernels_of_a_graph_are_one_library(cache):
    _, counts = compiled(Step(0), torch.randn(5, 6))
    assert counts == (0, 1)
    (source,) = cache.rglob("*.main.cpp")
    (_,) = cache.rglob("*.so")
    assert source.read_text().count("PyMODINIT_FUNC") > 1


def test_where_kernels_cannot_be_joined_each_is_compiled_by_itself(cache, monkeypatch):
    monkeypatch.setattr(inductor, "_library", lambda kernels: 1 / 0)
    x = torch.randn(5, 6)

    def function(x):  # two kernels, with a product between them
        return ((x.exp() @ x.T).tanh().sum(-1),)

    run, _ = compiled(function, x)
    torch.testing.assert_close(run(x)[0], function(x)[0], rtol=1e-5, atol=1e-5)
    assert len(list(cache.rglob("*.so"))) > 1


def test_strides_of_expanded_indices_are_those_of_inductors_own():
    x, y = sympy.symbols("x y", integer=True, nonnegative=True)
    indices = [
        30 * x + 5 * y + 2,
        5 * (x + 2 * y) - 2 * (x - 3),
        3 * FloorDiv(x, 16) + ModularIndexing(x, 1, 16) + 7 * y,
        6 * FloorDiv(x, 5) + ModularIndexing(x, 1, 5) + 30 * FloorDiv(y, 2),
        3 * ModularIndexing(x + 8 * y, 5, 6) + FloorDiv(x + y, 2),
        4 * (FloorDiv(x, 8) + y) * 9 + x - 36 * y,
    ]

    def strides():
        for function in (sizevars.stride_at, sizevars.simplify_index_in_vec_range, sizevars.stride_at_vec_range):
            function.cache_clear()
        return [sizevars.stride_at_vec_range(i, var, size) for i in indices for var in (x, y) for size in (8, 16)]

    theirs = strides()
    with inductor._expanded_indices():
        ours = strides()
    for one, other in zip(ours, theirs, strict=True):
        assert sympy.simplify(one - other) == 0
        assert one.is_number == other.is_number  # by which Inductor chooses how to read
    assert {0, 1, 5, 30} <= {stride for stride in theirs if stride.is_number}


def test_nothing_of_the_process_is_left_changed(cache):
    def state():
        environment = {k: v for k, v in os.environ.items() if not k.startswith("_TORCHINDUCTOR")}
        patched = async_compile.AsyncCompile, cpu_vec_isa.valid_vec_isa_list, sizevars.sympy
        return environment, patched, config.get_config_copy()

    before = state()
    compiled(lambda x: (x.exp(),), torch.randn(5, 6))
    assert state() == before
    assert gc.isenabled()


def test_the_cache_is_the_users_and_outlives_a_reboot(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = inductor.cache_folder()
    if sys.platform == "linux":
        assert folder.is_relative_to(tmp_path / "pyro_vae")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert torch.__version__ in folder.name
    assert inductor.cache_folder() == folder


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="modes are those of POSIX")
def test_a_folder_that_others_may_write_to_is_not_trusted(cache):
    folder = inductor.cache_folder()
    folder.chmod(0o777)
    assert not inductor.cache_folder().is_relative_to(cache)


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file"))
    x = torch.randn(5, 6)
    run, _ = compiled(lambda x: (x.exp().sum(),), x)
    torch.testing.assert_close(run(x)[0], x.exp().sum())
    assert (tmp_path / "file").read_text() == ""


def test_a_damaged_cache_is_compiled_anew(cache):
    """In another process, where nothing is loaded."""
    script = (
        "import sys; sys.path.insert(0, 'tests'); import test_inductor as t, torch\n"
        "x = torch.randn(5, 6)\n"
        "run, _ = t.compiled(lambda x: (x.exp().sum(),), x)\n"
        "torch.testing.assert_close(run(x)[0], x.exp().sum())\n"
    )
    x = torch.randn(5, 6)
    compiled(lambda x: (x.exp().sum(),), x)
    for path in [path for path in cache.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()  # what this process has loaded stays as it was
        path.write_bytes(content[: len(content) // 2])
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


DRAWS = {
    "uniform": lambda p: torch.rand_like(p),
    "normal": lambda p: torch.randn(p.shape),
    "bits": lambda p: torch.bernoulli(p),
    "whole": lambda p: torch.randint(0, 9, p.shape).to(p.dtype),
    "exponential": lambda p: torch.empty_like(p).exponential_(),
}


@pytest.mark.parametrize("turn", some([1, 2, 3], 2))
def test_draws_keep_their_order_and_their_numbers_whatever_is_used_first(cache, turn):
    names = list(DRAWS)

    def function(p):
        drawn = {name: DRAWS[name](p.sigmoid()) for name in names}
        hidden = p
        for number in range(len(names)):  # in another order than they were drawn
            hidden = (hidden @ p.T @ p).tanh() + drawn[names[number * turn % len(names)]]
        return hidden, hidden.sum()

    p = torch.randn(6, 4)
    run, _ = compiled(function, p)
    torch.manual_seed(3)
    expected, state = function(p), torch.get_rng_state()
    torch.manual_seed(3)
    for a, b in zip(run(p), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(torch.get_rng_state(), state)


def test_bits_are_drawn_by_pytorchs_own_kernel():
    """A uniform number that is compared, as Inductor has it, is the same bit on a CPU alone."""
    p = torch.rand(7, 3).T
    graph = trace(lambda p: (torch.bernoulli(p),), [p]).graph
    torch.manual_seed(0)
    expected = torch.bernoulli(p)
    torch.manual_seed(0)
    assert torch.equal(graph(p)[0], expected)
    called = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    assert torch.ops.aten.bernoulli_.Tensor in called
    assert torch.ops.aten.bernoulli.default not in called


def test_what_was_seen_as_a_view_may_be_a_copy(cache):
    """Where the compiler takes an operation apart its result may lie in memory in another order than when traced."""

    def function(logits, codes, weight):
        with torch.enable_grad():
            probabilities = logits.softmax(-1).T  # (K, N), in the other order of memory
            raw = (codes @ weight).reshape(3, 20, 1, 8)
            values = (raw.unbind(-2)[0].sigmoid() - 0.5).square().sum(-1)
            return torch.autograd.grad((probabilities * values).sum(), [weight])

    inputs = [torch.randn(20, 3), torch.randn(60, 4), torch.randn(4, 8).requires_grad_()]
    run, _ = compiled(function, *inputs)
    torch.testing.assert_close(run(*inputs), tuple(function(*inputs)))
