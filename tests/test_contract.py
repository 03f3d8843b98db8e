"""check_pair says of a pair what the tools then do."""

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import config_enumerate
from torch import nn

from pyro_vae import Pair, check_pair, fit, mlp_vae
from pyro_vae.evaluation import ais_bounds, log_evidence, nuts_posterior, simulation_based_calibration
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Normal


def enumerated_pair():
    @config_enumerate
    def model(x=None, *, batch_size=None):
        locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            return pyro.sample("x", dist.Normal(locs[k], 0.5), obs=x)

    return Pair(model, lambda x: None)


class Counted(nn.Module):
    """A guide that counts its runs in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.calls = nn.Parameter(torch.zeros(())), 0

    def forward(self, x):
        self.calls += 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))


def plain_model(x=None, *, batch_size=None):
    with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


PAIRS = {
    "vae": (lambda: mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()), lambda: torch.randn(30, 3)),
    "mixture prior": (pairs.mixture_pair, lambda: torch.randn(30, 4)),
    "global latent": (pairs.function_pair, lambda: torch.randn(30)),
    "discrete": (pairs.discrete_pair, lambda: torch.randn(30)),
    "labels": (pairs.labelled_pair, lambda: {"x": torch.randn(30), "labels": torch.arange(30) % 2}),
    "enumerated": (enumerated_pair, lambda: torch.randn(30)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_what_it_says_of_each_tool_is_what_the_tool_does(name):
    build, rows = PAIRS[name]
    pair, x = build(), rows()
    found = check_pair(pair, x)
    assert found, str(found)
    few = {key: value[:1] for key, value in x.items()} if isinstance(x, dict) else x[:1]
    given = {key: value[:20] for key, value in x.items() if key != "x"} if isinstance(x, dict) else None
    tools = {
        "log_evidence": lambda: log_evidence(pair, x, num_particles=2),
        "ais_bounds": lambda: ais_bounds(pair, x, num_chains=2, num_steps=2, num_leapfrog=1),
        "simulation_based_calibration": lambda: simulation_based_calibration(pair, 20, 3, given=given),
        "nuts_posterior": lambda: nuts_posterior(pair, few, 30, 30, 2, max_tree_depth=4),
        "encode": lambda: pair.encode(x),
        "sample": lambda: pair.sample(20, given=given),
        "reconstruct": lambda: pair.reconstruct(x),
    }
    for tool, call in tools.items():
        if found.tools[tool].startswith("refused"):
            with pytest.raises((ValueError, NotImplementedError)):
                call()
        else:
            call()


def test_it_changes_nothing():
    guide = Counted()
    pair, x = Pair(plain_model, guide).eval(), torch.randn(30)
    before, state = torch.get_rng_state(), {n: t.clone() for n, t in pair.state_dict().items()}
    check_pair(pair, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert not pair.training
    assert all(torch.equal(state[name], value) for name, value in pair.state_dict().items())
    assert all(parameter.grad is None for parameter in pair.parameters())


def test_it_says_why_training_would_run_the_programs_and_training_says_the_same():
    pair, x = Pair(plain_model, Counted()), torch.randn(30)
    said = check_pair(pair, x).tools["fit"]
    assert "self.calls" in said
    with pytest.warns(UserWarning, match=r"self\.calls"):
        fit(pair, x, epochs=2, batch_size=10, compile=True, progress=False)


@pytest.mark.parametrize(
    ("guide", "sentence"),
    [
        (lambda x: pyro.sample("z", dist.Normal(x, 1.0).to_event(1)), "in the plate 'data' in one program"),
        (lambda x: None, "does not sample the model's latent 'z'"),
        (lambda x, labels: None, "does not take the contract's arguments"),
    ],
)
def test_a_broken_clause_is_named_in_one_sentence_that_the_tools_raise(guide, sentence):
    pair, x = Pair(plain_model, guide), torch.randn(30)
    found = check_pair(pair, x)
    assert not found
    assert sentence in found.broken[0].text
    assert "\n" not in found.broken[0].text
    assert list(found.tools) == ["every tool that runs the guide", "sample", "nuts_posterior"]
    with pytest.raises(ContractError, match=sentence):
        fit(pair, x, epochs=1, batch_size=10, progress=False)


def test_an_argument_that_was_not_passed_is_asked_for():
    def model(x=None, *, dose, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(dose, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    pair, x = Pair(model, guide), torch.randn(30)
    broken = " ".join(clause.text for clause in check_pair(pair, x).broken)
    assert "pass 'dose' along with the rows, in one mapping with 'x'" in broken
    assert "write it as model(" not in broken
    assert check_pair(pair, {"x": x, "dose": torch.zeros(30)})


def test_a_model_that_does_not_run_without_data_can_be_trained_and_not_drawn_from():
    def model(x):
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    pair, x = Pair(model, Counted()), torch.randn(30)
    found = check_pair(pair, x)
    assert found.tools["sample"].startswith("refused")
    assert found.tools["evaluate"] == "works"
    with pytest.raises(ContractError, match="batch_size"):
        pair.sample(2)
    assert "✗ rows without data" in str(found)
