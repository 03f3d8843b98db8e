"""Every premade program trains by every objective, in every way of running; or one sentence says why it does not."""

import copy
import itertools

import pytest
import torch
from coverings import covering
from host_graph import HostGraphs
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from pyro_vae import (
    Elbo,
    ImportanceWeighted,
    InfoVae,
    Renyi,
    TotalCorrelation,
    WakeSleep,
    categorical_vae,
    cluster_vae,
    conditional_vae,
    deep_markov_model,
    fit,
    ladder_vae,
    mlp_vae,
    multimodal_vae,
    pooled_vae,
    semi_supervised_vae,
    topic_model,
    vector_quantized_vae,
)
from pyro_vae.inference.objectives import as_objective
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Categorical, Normal
from pyro_vae.posteriors import DiagonalNormal, SemiAmortized

N, STEPS = 240, 10
KINDS = torch.arange(N) % 3


def generator():
    return torch.Generator().manual_seed(1)


def bits():
    """Rows of three kinds."""
    return torch.bernoulli(torch.rand(3, 6, generator=generator())[KINDS], generator=generator())


def reals():
    own = generator()
    return torch.randn(3, 4, generator=own)[KINDS] + 0.3 * torch.randn(N, 4, generator=own)


BITS = {"likelihood": Bernoulli(), "hidden_dims": (8,)}
PROGRAMS = {
    "VAE": (lambda: mlp_vae((6,), 2, **BITS), bits),
    "semi-amortized": (lambda: mlp_vae((6,), 2, posterior=SemiAmortized(DiagonalNormal()), **BITS), bits),
    "ladder": (lambda: ladder_vae((6,), (3, 2), **BITS), bits),
    "conditional": (
        lambda: conditional_vae((6,), 2, given={"labels": 3}, **BITS),
        lambda: {"x": bits(), "labels": KINDS},
    ),
    "semi-supervised": (
        lambda: semi_supervised_vae((6,), 2, 3, **BITS),
        lambda: {"x": bits(), "labels": KINDS.where(torch.arange(N) < 60, -1)},
    ),
    "clusters": (lambda: cluster_vae((6,), 2, 3, **BITS), bits),
    "vector-quantized": (lambda: vector_quantized_vae((6,), 2, 3, 2, **BITS), bits),
    "categorical": (lambda: categorical_vae((6,), 2, 3, **BITS), bits),
    "enumerated": (lambda: categorical_vae((6,), 2, 3, estimator="enumerated", **BITS), bits),
    "score function": (lambda: categorical_vae((6,), 2, 3, estimator="score-function", **BITS), bits),
    "sequences": (
        lambda: deep_markov_model((3, 2), 2, likelihood=Normal(), hidden_dims=(8,), recurrent_dim=6),
        lambda: {"x": torch.randn(N, 3, 2, generator=generator()).cumsum(1), "lengths": KINDS + 1},
    ),
    "multimodal": (
        lambda: multimodal_vae(
            {"x": ((6,), Bernoulli()), "labels": ((), Categorical(3, ordered=False))}, 2, hidden_dims=(8,)
        ),
        lambda: {"x": bits(), "labels": KINDS.float().where(torch.arange(N) < 180, torch.nan)},
    ),
    "pooled": (
        lambda: pooled_vae((4,), 2, 3, likelihood=Normal(), hidden_dims=(8,)),
        lambda: {"x": reals(), "groups": KINDS},
    ),
    "topics": (
        lambda: topic_model(6, 3, hidden_dims=(8,)),
        lambda: torch.poisson(5 * bits() + 1, generator=generator()),
    ),
}
OBJECTIVES = {
    "β": Elbo(kl_weight=2.0),
    "analytic KL": Elbo(kl="analytic"),
    "free nats": Elbo(free_nats=0.1),
    "importance-weighted": ImportanceWeighted(3),
    "DReG": ImportanceWeighted(3, doubly_reparameterized=True),
    "Rényi": Renyi(3),
    "total correlation": TotalCorrelation(),
    "MMD": InfoVae(),
    "wake-sleep": WakeSleep(3),
    "sleep": WakeSleep(1, "sleep"),
    "Trace_ELBO": Trace_ELBO(),
    "TraceEnum_ELBO": TraceEnum_ELBO(),
}
WAYS = {"eager": False, "compiled": True, "captured": "auto"}

ONE_VECTOR = "takes a guide that draws one latent vector for each row"
OF_ROWS = "weights the draws of each row, and 'effects' lies outside the plate 'data'"
NOT_DIFFERENTIABLE = "cannot be differentiated through"
INDEPENDENT = "takes latents that are independent given the row"
ENUMERATED = "learns from values that the guide draws, but this guide enumerates them"
OBSERVED = "does not support sites that the guide observes"
PRIOR = "cannot train the prior of 'z'"
POINT = "the guide sets 'z' to a point"
# What makes no sense, and a part of the sentence that says so.
REASONS = {
    "ladder": {"DReG": ONE_VECTOR, "total correlation": ONE_VECTOR, "MMD": ONE_VECTOR},
    "semi-supervised": {
        "analytic KL": NOT_DIFFERENTIABLE,
        "DReG": OBSERVED,
        "total correlation": ONE_VECTOR,
        "MMD": ONE_VECTOR,
        "wake-sleep": ENUMERATED,
        "sleep": ENUMERATED,
    },
    "clusters": {"analytic KL": "depends on a latent that is summed over", "MMD": "latent that is summed over"},
    "vector-quantized": {
        "DReG": OBSERVED,
        "total correlation": INDEPENDENT,
        "MMD": PRIOR,
        "wake-sleep": POINT,
        "sleep": POINT,
    },
    "categorical": {"analytic KL": "none is known at z", "total correlation": INDEPENDENT, "MMD": PRIOR},
    "enumerated": {
        "analytic KL": NOT_DIFFERENTIABLE,
        "DReG": ONE_VECTOR,
        "total correlation": ONE_VECTOR,
        "MMD": ONE_VECTOR,
        "wake-sleep": ENUMERATED,
        "sleep": ENUMERATED,
    },
    "score function": {
        "analytic KL": NOT_DIFFERENTIABLE,
        "importance-weighted": NOT_DIFFERENTIABLE,
        "DReG": NOT_DIFFERENTIABLE,
        "Rényi": NOT_DIFFERENTIABLE,
        "total correlation": INDEPENDENT,
        "MMD": NOT_DIFFERENTIABLE,
    },
    "sequences": {"DReG": ONE_VECTOR, "total correlation": ONE_VECTOR, "MMD": ONE_VECTOR},
    "pooled": {
        "importance-weighted": OF_ROWS,
        "DReG": OF_ROWS,
        "Rényi": OF_ROWS,
        "total correlation": ONE_VECTOR,
        "MMD": ONE_VECTOR,
        "wake-sleep": OF_ROWS,
        "sleep": OF_ROWS,
    },
}
REFUSED = [(program, objective, words) for program, reasons in REASONS.items() for objective, words in reasons.items()]
TRAINED = [
    (program, objective, way)
    for way, program, objective in itertools.product(WAYS, PROGRAMS, OBJECTIVES)
    if objective not in REASONS.get(program, {})
]


def features(case):
    """Each program and objective as it stands; each program, and every other objective, in each other way."""
    program, objective, way = case
    if way == "eager":
        return {program, objective}
    slow = program in ("semi-amortized", "sequences")  # tracing them takes many seconds
    return set() if slow else {way, objective} if way == "captured" else {(way, program in ("VAE", "pooled"))}


def built(program):
    torch.manual_seed(0)
    return PROGRAMS[program][0]()


def ten_steps(program, objective, **options):
    pair = built(program)
    settings = {"epochs": 1, "batch_size": N // STEPS, "learning_rate": 0.02, "seed": 0, "progress": False}
    return pair, fit(pair, PROGRAMS[program][1](), objective=OBJECTIVES[objective], **settings, **options)


def loss(pair, program, objective):
    """What is minimised, on all rows, with the same noise each time."""
    pair, rows, objective = copy.deepcopy(pair).train(), PROGRAMS[program][1](), as_objective(OBJECTIVES[objective])
    batch = pair.prepare(rows if isinstance(rows, dict) else {"x": rows})
    structure = pair.structure(batch)
    torch.manual_seed(5)
    num = objective.num_particles
    draws = run_pair(*pair.programs, batch, structure, num_particles=num if num > 1 else None, num_rows=N)
    return -float(objective(draws, torch.ones(())).mean().detach())


@pytest.mark.parametrize(("program", "objective", "way"), covering(TRAINED, features))
def test_ten_steps_lower_the_loss(program, objective, way, as_traced, monkeypatch):
    if way == "captured":
        HostGraphs(monkeypatch)
    pair, history = ten_steps(program, objective, compile=WAYS[way])
    assert way in history.attrs["execution"], history.attrs["execution"]
    assert loss(pair, program, objective) < loss(built(program), program, objective) - 0.01


@pytest.mark.parametrize(("program", "objective", "words"), REFUSED, ids=lambda value: value.replace(" ", "-")[:24])
def test_what_makes_no_sense_is_said_in_a_sentence(program, objective, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(")) as error:  # a ContractError is one
        ten_steps(program, objective, compile=False)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300
