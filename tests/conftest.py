"""Every test starts alike: seeded, with an empty parameter store and Pyro's checks on; nothing writes outside tmp."""

import os
import tempfile
from pathlib import Path

import pyro
import pytest
import torch

ROOT = Path(__file__).parents[1]

if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each worker, and for what it starts
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)

if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # one of this run's own, which its workers inherit
    _compiled = tempfile.TemporaryDirectory(prefix="compiled-")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _compiled.name
os.environ.setdefault("TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS", "1")  # once for all graphs, which halves g++'s time


def pytest_addoption(parser):
    parser.addoption("--exhaustive", action="store_true", help="all cases of grids, and not a covering of them")


def pytest_collection_modifyitems(config, items):
    """Leaves out what tests/coverings.py leaves to an exhaustive run."""
    if not config.getoption("exhaustive"):
        left_out = [item for item in items if item.get_closest_marker("exhaustive")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("exhaustive")]


@pytest.fixture(scope="session")
def exhaustive(request):
    """Whether a test that goes through a grid by itself is to go through all of it."""
    return request.config.getoption("exhaustive")


@pytest.fixture(autouse=True)
def _fresh():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture
def as_traced(monkeypatch):
    """Runs graphs as they were traced: what is tested is what is in them, and compiling takes seconds each."""
    from traced import run_traced

    run_traced(monkeypatch)


@pytest.fixture
def compiled_if_exhaustive(request, exhaustive):
    """Runs graphs as they were traced, but in an exhaustive run. Some test of each kind compiles in any case."""
    if not exhaustive:
        request.getfixturevalue("as_traced")


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def data_root():
    """A data root that holds MNIST, or a skip that says where one was looked for."""
    candidates = [os.environ.get("PYRO_VAE_DATA"), ROOT.parent / "shared" / "data"]
    for candidate in candidates:
        if candidate and (Path(candidate) / "MNIST" / "raw").is_dir():
            return Path(candidate)
    pytest.skip(f"no MNIST: neither $PYRO_VAE_DATA nor {candidates[1]} holds MNIST/raw")
