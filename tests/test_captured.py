"""What a CUDA graph is made of never touches the host: neither a wait nor a copy is in a training step."""

import itertools
import math

import known_pairs
import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pretended_cuda import CaptureRefusedError, PretendedCuda
from test_likelihoods import CASES as LIKELIHOODS
from test_transforms import CASES as TRANSFORMS
from torch import nn
from zoo import ZOO

from pyro_vae import Elbo, Pair, conv_vae, mlp_vae
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Bernoulli, DiscretizedLogisticMixture, Normal
from pyro_vae.programs import local_parameters
from pyro_vae.training.parameters import trainable
from pyro_vae.training.step import Gradients
from pyro_vae.transforms import Binarize

_NUM_ROWS = 8


def captured_step(build, data, objective=None):
    """Runs what is captured as it is while a graph is captured; returns what touched the host, and the gradient."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair, x = build(), data()
    with PretendedCuda() as device, local_parameters():
        pair.to("cuda").train()
        rows = pair.check(x)
        reference = next(iter(rows.references([torch.arange(_NUM_ROWS)])))
        batch = pair.prepare(rows.resolve(reference))
        structure = pair.structure(batch)
        parameters = trainable(pair, batch, structure)
        step = Gradients(pair, parameters, rows, reference, structure, Elbo() if objective is None else objective)
        inputs = [torch.full((), 0.7, device="cuda"), *reference.values()]
        with pyro.validation_enabled(is_validate=False):
            step(*inputs)
            del device.events[:]
            with device.capturing():
                results = step(*inputs)
        events = list(device.events)
        assert all(result.device.type == "cuda" for result in results)
        return events, [result.cpu() for result in results]


def step_on_the_cpu(build, data, objective=None):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair, x = build().train(), data()
    with local_parameters():
        rows = pair.check(x)
        reference = {"index": torch.arange(_NUM_ROWS)}
        batch = pair.prepare(rows.resolve(reference))
        structure = pair.structure(batch)
        parameters = trainable(pair, batch, structure)
        step = Gradients(pair, parameters, rows, reference, structure, Elbo() if objective is None else objective)
        with pyro.validation_enabled(is_validate=False):
            step(torch.tensor(0.7), reference["index"])
            return list(step(torch.tensor(0.7), reference["index"]))


def check(build, data, objective=None):
    events, found = captured_step(build, data, objective)
    assert events == []
    for a, b in zip(found, step_on_the_cpu(build, data, objective), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def rows_of(case, event_shape, *, gaps):
    inside = torch.tensor(case.inside, dtype=torch.float32)
    values = inside[torch.arange(12)[:, None].expand(12, math.prod(event_shape)) % len(inside)]
    x = inside[torch.arange(12) % len(inside)] if inside.dim() > 1 else values.reshape(12, *event_shape)
    if gaps:
        x[0].view(-1)[0] = x[3].view(-1)[-1] = math.nan
    return {"x": x, **({"size_factor": torch.rand(12) + 0.5} if case.takes_size_factor else {})}


def is_one_of_many(name):
    """Whether links and dispersions are those that the normal likelihood has been tried with already."""
    return ("link" in name and "linear" not in name) or (
        not name.startswith("normal") and any(word in name for word in ("shared", "element"))
    )


NAMES = [name for name in LIKELIHOODS if not is_one_of_many(name)]


def with_likelihood(name, *, gaps):
    """A VAE with a likelihood, and its rows."""
    case = LIKELIHOODS[name]
    event_shape = case.events[-1]

    def build():
        missing = "nan" if gaps else None
        return mlp_vae(event_shape, 2, hidden_dims=(4,), likelihood=case.make(), missing=missing)

    return build, lambda: rows_of(case, event_shape, gaps=gaps)


def with_transform(name):
    """A VAE with a transform, and its rows."""
    case = TRANSFORMS[name]
    event_shape = case.events[0]

    def build():
        likelihood = Bernoulli() if "binarize" in name else Normal()
        return mlp_vae(event_shape, 2, hidden_dims=(4,), likelihood=likelihood, transform=case.make(event_shape))

    return build, lambda: torch.cat([case.rows(event_shape), case.rows(event_shape)]).float()


@pytest.mark.parametrize(("name", "gaps"), list(zip(NAMES, itertools.cycle([True, False]), strict=False)))
def test_likelihoods(name, gaps):
    check(*with_likelihood(name, gaps=gaps))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name):
    check(*with_transform(name))


def bits_vae():
    return mlp_vae((6,), 2, hidden_dims=(4,), likelihood=Bernoulli(), transform=Binarize(0, 255))


def grey_rows():
    return torch.randint(0, 256, (12, 6), dtype=torch.uint8)


OBJECTIVES = [
    *[Elbo(num, kl=kl) for num in (1, 3) for kl in ("sampled", "analytic", "auto")],
    Elbo(kl_weight=0.5, kl_warmup=0.5),
    Elbo(free_nats=0.1),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_objectives(objective):
    check(bits_vae, grey_rows, objective)


def numbers_pair():
    """As it is written for the CPU: numbers, and tensors made where the programs run."""

    def model(x=None, *, batch_size=None):
        weights = dist.Categorical(probs=torch.tensor([0.2, 0.3, 0.5]))
        components = dist.Normal(torch.arange(3.0), torch.ones(3))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.MixtureSameFamily(weights, components))
            return pyro.sample("x", dist.StudentT(3, z, 0.5), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.5))
        scale = pyro.param("scale", lambda: torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(slope * x + x.new_tensor(0.1), scale))

    return Pair(model, guide)


PAIRS = {
    "README's": (numbers_pair, lambda: torch.randn(12)),
    "mixture": (pairs.mixture_pair, lambda: torch.randn(12, 4)),
    "functions": (pairs.function_pair, lambda: torch.randn(12)),
    "score function": (pairs.discrete_pair, lambda: torch.randn(12)),
    "PyroModules": (pairs.pyro_module_pair, lambda: torch.randn(12, 3)),
    "labels": (pairs.labelled_pair, lambda: {"x": torch.randn(12), "labels": torch.arange(12) % 2}),
    "images": (
        lambda: conv_vae((3, 8, 8), 2, likelihood=DiscretizedLogisticMixture(), channels=(4,), upsample="nearest"),
        lambda: torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name):
    check(*PAIRS[name])


WAIT = {  # of their own accord: a decomposition is looked at, a sampler rejects until it is done
    "exact posterior": "_linalg_check_errors",
    "von Mises": "_local_scalar_dense",
    "beta-binomial": "_to_copy",  # of a tensor on the CPU, which PyTorch's Binomial does
}
ELSEWHERE = {"gaussian process": "model", "regression": "guide"}  # have tensors on the CPU
NOT_AMORTISED = {"local autoguide"}


@pytest.mark.parametrize("name", sorted(ZOO.keys() - WAIT.keys() - ELSEWHERE.keys() - NOT_AMORTISED))
def test_programs_of_many_kinds(name):
    program = ZOO[name]
    events, results = captured_step(lambda: of(program), program.rows)
    assert events == []
    assert all(bool(result.isfinite().all()) for result in results)


def of(program):
    programs = program.build()
    return Pair(programs.model, programs.guide, **program.pair)


@pytest.mark.parametrize("name", WAIT)
def test_what_waits_of_its_own_accord_is_refused(name):
    program = ZOO[name]
    with pytest.raises(CaptureRefusedError, match=WAIT[name]):
        captured_step(lambda: of(program), program.rows)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_tensors_of_the_cpu_are_told_in_a_sentence_with_their_line(name):
    program = ZOO[name]
    sentence = (
        rf"^the {ELSEWHERE[name]} uses a tensor that is not on cuda:0 \(\w+\.py, line \d+\): register it as a buffer "
        r"of a module, which moves with the pair, or create it inside the program$"
    )
    with pytest.raises(ContractError, match=sentence):
        captured_step(lambda: of(program), program.rows)


def test_the_line_that_is_told_is_the_one_that_uses_the_tensor():
    ladder = known_pairs.Ladder()
    with pytest.raises(ContractError, match=r"the guide uses .* \(known_pairs\.py, line \d+\)"):
        captured_step(lambda: ladder.pair, lambda: torch.randn(12, 3))


def test_a_device_that_is_asked_for_is_kept():
    seen = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, x=None, *, batch_size=None):
            generator = torch.Generator().manual_seed(0)
            made = [torch.ones(2, device="cpu"), torch.rand(2, generator=generator), torch.ones(2)]
            seen.append([tensor.device.type for tensor in made])
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                return pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    with PretendedCuda():
        Pair(Model(), lambda x: None).to("cuda").sample(3)
    assert ["cpu", "cpu", "cuda"] in seen
