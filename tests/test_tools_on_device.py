"""Every tool runs where the pair is: on a pretended device, to the numbers that it gives on the CPU."""

import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from coverings import covering
from every_tool import TOOLS, seeded
from pretended_cuda import PretendedCuda
from test_captured import bits_vae, numbers_pair, of
from zoo import ZOO
from zoo.program import first

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import nuts_posterior
from pyro_vae.likelihoods import Normal

NUM = 24


def gaps_vae():
    return mlp_vae((6,), 2, hidden_dims=(4,), likelihood=Normal(), missing="nan")


def table_with_gaps():
    x = torch.randn(NUM, 6)
    x[0, 0] = x[1, 2] = float("nan")
    return x


def of_zoo(name):
    return lambda: of(ZOO[name]), lambda: first(ZOO[name].rows(), NUM)


# Of the last, the look for several draws at once indexes outside.
PROGRAMS = ("two-headed", "semi-supervised", "gaussian mixture", "partial pooling")
PAIRS = {
    "bits": (bits_vae, lambda: torch.randint(0, 256, (NUM, 6), dtype=torch.uint8)),
    "README's": (numbers_pair, lambda: torch.randn(NUM)),
    "gaps": (gaps_vae, table_with_gaps),
    **{name: of_zoo(name) for name in PROGRAMS},
}


def outcome(tool, build, data, device):
    """The tool's numbers, or the sentence by which it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return seeded(TOOLS[tool], build, data, device)
        except (ValueError, TypeError, NotImplementedError) as error:
            return str(error)


SLOW = ("check_pair", "ais_bounds", "ais_bounds of simulated rows", "nuts_posterior")  # for some of the pairs
CASES = [(p, t) for p in PAIRS for t in TOOLS if t not in SLOW or p in ("bits", "gaussian mixture", "partial pooling")]


def features(case):
    """Each tool on a VAE of the library and on programs of another hand; each pair."""
    pair, tool = case
    return {(tool, pair in ("bits", "gaps")), pair}


@pytest.mark.parametrize(("pair", "tool"), covering(CASES, features))
def test_to_the_numbers_of_the_cpu(pair, tool):
    build, data = PAIRS[pair]
    expected = outcome(tool, build, data, "cpu")
    with PretendedCuda():
        found = outcome(tool, build, data, "cuda")
    if isinstance(expected, str):
        assert found == expected
        return
    assert not isinstance(found, str), found
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def in_a_module():
    return mlp_vae((4,), 2, hidden_dims=(3,), likelihood=Normal())


def in_a_function():
    decoder = torch.nn.Linear(2, 4)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, device=decoder.weight.device), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    return Pair(model, lambda x: None)


def with_a_bare_parameter():
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(self.loc, pyro.param("scale", scale)))
                return pyro.sample("x", dist.Normal(z.unsqueeze(-1).expand(*z.shape, 4), 1.0).to_event(1), obs=x)

    pair = Pair(Model(), lambda x: None)
    pair.store_names = {"scale"}
    return pair


@pytest.mark.parametrize(
    ("build", "copied"), [(in_a_module, True), (in_a_function, False), (with_a_bare_parameter, False)]
)
def test_nuts_hardly_touches_the_device_where_a_copy_can_be_made(build, copied):
    row = torch.tensor([[0.5, -1.0, 0.0, 2.0]])
    pyro.set_rng_seed(0)
    expected = nuts_posterior(build(), row, 20, 20, 2)
    pyro.clear_param_store()
    with PretendedCuda() as device:
        pyro.set_rng_seed(0)
        pair = build().to("cuda")
        before = {name: value.clone() for name, value in pyro.get_param_store().named_parameters()}
        device.events.clear()
        found = nuts_posterior(pair, row, 20, 20, 2)
        touched = len(device.events)
        assert found.draws["z"].device.type == pair.device.type == "cuda"
        store = dict(pyro.get_param_store().named_parameters())
        assert store.keys() == before.keys()
        assert all(store[name].device.type == "cuda" for name in store)
        torch.testing.assert_close(found.draws["z"].cpu(), expected.draws["z"], rtol=1e-4, atol=1e-5)
    assert (touched < 40) is copied, touched
