"""On a real GPU: what is captured, compiled or run by a tool there comes to the numbers of the programs."""

import itertools
import math
import warnings

import pyro
import pytest
import torch
from every_tool import TOOLS, numbers
from test_captured import (
    ELSEWHERE,
    NAMES,
    OBJECTIVES,
    PAIRS,
    TRANSFORMS,
    WAIT,
    of,
    with_likelihood,
    with_transform,
)
from test_execution import CASES
from test_fit_on_device import RUNS, table, table_vae, trained, weights_of
from test_replaying import PAIRS as REPLAYED_PAIRS
from test_replaying import TOOLS as REPLAYED
from test_replaying import outcome
from zoo import ZOO
from zoo.program import first

from pyro_vae import Elbo, epochs, fit
from pyro_vae._support import cuda_graphs, devices
from pyro_vae.programs import local_parameters
from pyro_vae.training import execution, lowering
from pyro_vae.training.parameters import trainable
from pyro_vae.training.step import Gradients

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


# The derivative of a cumulative product looks for zeros.
WAITS_THERE = (*WAIT, "stick-breaking", "Dirichlet process")
STEPS = {
    **{
        f"likelihood {n}, {gaps}": (*with_likelihood(n, gaps=gaps), None)
        for n, gaps in itertools.product(NAMES, (False, True))
    },
    **{f"transform {name}": (*with_transform(name), None) for name in TRANSFORMS},
    **{f"objective {objective}": (*CASES["bits"][:2], objective) for objective in OBJECTIVES},
    **{f"pair {name}": (*case, None) for name, case in PAIRS.items()},
    **{
        f"program {name}": ((lambda name=name: of(ZOO[name])), ZOO[name].rows, None)
        for name in ZOO
        if name not in (*WAITS_THERE, *ELSEWHERE, "annealing in Python", "local autoguide")
    },
}
COMPILED = [name for number, name in enumerate(STEPS) if number % 8 == 0 or name.startswith("pair")]


def step_of(build, data, objective, num_rows=8):
    """A training step as a function of tensors, with an example of them."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = build()
    x = data()
    pair.to("cuda").train()
    rows = pair.check(x)
    reference = next(iter(rows.references([torch.arange(num_rows)])))
    batch = pair.prepare(rows.resolve(reference))
    structure = pair.structure(batch)
    parameters = trainable(pair, batch, structure)
    step = Gradients(pair, parameters, rows, reference, structure, Elbo() if objective is None else objective)
    return pair, step, [torch.full((), 0.7, device="cuda"), *reference.values()]


def seeded(pair, function, *inputs):
    """What a function gives from one state of the buffers and the generators."""
    before = {name: buffer.clone() for name, buffer in pair.named_buffers()}
    pyro.set_rng_seed(3)
    found = [result.clone() for result in function(*inputs)]
    for name, buffer in pair.named_buffers():
        buffer.data.copy_(before[name])
    return found


def assert_alike(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * (1 + float(b.abs().max())))


@pytest.mark.parametrize("name", STEPS)
def test_a_captured_step_is_the_programs_step(name):
    with local_parameters(), pyro.validation_enabled(is_validate=False):
        pair, step, inputs = step_of(*STEPS[name])
        with cuda_graphs.on_side_stream():
            for _ in range(2):
                seeded(pair, step, *inputs)
            with cuda_graphs.refusing_to_wait():
                step(*inputs)
        launch = cuda_graphs.captured(step, inputs)
        assert_alike(seeded(pair, launch, *inputs), seeded(pair, step, *inputs))


@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_step_is_the_programs_step(name):
    with local_parameters(), pyro.validation_enabled(is_validate=False):
        pair, step, inputs = step_of(*STEPS[name])
        seeded(pair, step, *inputs)
        state = torch.cuda.get_rng_state()
        traced = lowering.trace(step, inputs)
        torch.cuda.set_rng_state(state)
        compiled = lowering.compile_trace(traced, inputs)
        expected = seeded(pair, step, *inputs)
        assert_alike(seeded(pair, compiled, *inputs), expected)
        with cuda_graphs.on_side_stream():
            compiled(*inputs)
        assert_alike(seeded(pair, cuda_graphs.captured(compiled, inputs), *inputs), expected)


@pytest.mark.parametrize("compile", ["auto", True])
@pytest.mark.parametrize("case", CASES)
def test_captured_training_is_the_programs_training(case, compile):
    build, rows, options = CASES[case]
    data = rows()
    pair, history = trained(build, data, "cuda", compile=False, **options)
    other, captured = trained(build, data, "cuda", compile=compile, **options)
    how = "uncompiled" if compile == "auto" else "compiled"
    assert captured.attrs["execution"] == f"{how}, captured in a CUDA graph"
    assert captured["elbo"].tolist() == pytest.approx(history["elbo"].tolist(), rel=1e-3)
    for name, value in weights_of(pair).items():
        torch.testing.assert_close(weights_of(other)[name], value, rtol=1e-2, atol=1e-2)


def test_eight_steps_of_a_launch_are_the_programs_steps(monkeypatch):
    build, data = CASES["bits"][0], torch.randint(0, 256, (1290, 12), dtype=torch.uint8)
    runs, several = [], []
    ask = execution._Recording.ask

    def noted(self, position, *, is_last):
        ask(self, position, is_last=is_last)
        several.append(self.waiting)

    monkeypatch.setattr(execution._Recording, "ask", noted)
    for compile in (False, "auto"):
        pair, history = trained(build, data, "cuda", epochs=4, compile=compile)
        runs.append((weights_of(pair), history["elbo"].tolist()))
    assert several.count(7) > 8  # seven wait before the eighth is asked for
    (expected, elbos), (found, others) = runs
    assert others == pytest.approx(elbos, rel=1e-3)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_a_run_that_is_resumed_ends_at_the_same_bits(tmp_path, options):
    data, file = table(), tmp_path / "run.safetensors"
    options = {"validation_data": data[:20], **options}
    whole, expected = trained(table_vae, data, "cuda", epochs=8, **options)
    settings = {"batch_size": 32, "learning_rate": 0.01, "progress": False, "device": "cuda", **options}
    pyro.set_rng_seed(0)
    for number, _ in enumerate(epochs(table_vae(), data, epochs=8, checkpoint=file, **settings), start=1):
        if number == 5:
            break
    pair, history = trained(table_vae, data, "cuda", epochs=8, checkpoint=file, resume=True, **options)
    assert history["elbo"].tolist() == expected["elbo"].tolist()
    found = weights_of(pair)
    for name, value in weights_of(whole).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"local autoguide"}))
def test_programs_train_there_and_a_refusal_or_a_fall_back_is_a_sentence(name):
    pair = of(ZOO[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            history = fit(
                pair, ZOO[name].rows(), epochs=6, batch_size=64, learning_rate=0.01, progress=False, device="cuda"
            )
        except ValueError as error:
            if name not in ELSEWHERE or "is not on cuda" not in str(error):
                raise
            return
    how = history.attrs["execution"]
    print(name, how, [str(warning.message)[:200] for warning in caught])
    assert all(math.isfinite(value) for value in history["elbo"])
    if name not in (*WAITS_THERE, *ELSEWHERE):
        assert "captured" in how or "change" in how, how


@pytest.mark.parametrize("name", sorted(ZOO.keys() - {"local autoguide"} - ELSEWHERE.keys()))
def test_tools_give_the_numbers_of_the_cpu(name):
    """Drawn by other generators: what does not depend on them is the same, and the rest is finite where it was."""
    faults = []
    for tool in TOOLS:
        outcomes = []
        for device in ("cpu", "cuda"):
            pair, rows = of(ZOO[name]), first(ZOO[name].rows(), 24)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    pair.to(device).eval()
                    pyro.set_rng_seed(1)
                    outcomes.append(numbers(TOOLS[tool](pair, rows)))
                except (ValueError, TypeError, NotImplementedError) as error:
                    outcomes.append(str(error))
                except Exception as error:
                    outcomes.append(f"{type(error).__name__}: {error}"[:300])
        on_cpu, there = outcomes
        if isinstance(on_cpu, str) or isinstance(there, str):
            if on_cpu != there:
                faults.append(f"{tool}: {str(there)[:300]} (on the CPU: {str(on_cpu)[:60]})")
            continue
        if [a.shape for a in on_cpu] != [b.shape for b in there]:
            faults.append(f"{tool}: other shapes")
        elif any(bool(a.isfinite().all()) > bool(b.isfinite().all()) for a, b in zip(on_cpu, there, strict=True)):
            faults.append(f"{tool}: numbers that are not finite")
        elif tool in SAME and any(
            not torch.allclose(a, b, rtol=1e-3, atol=1e-3, equal_nan=True) for a, b in zip(on_cpu, there, strict=True)
        ):
            faults.append(f"{tool}: other numbers")
    assert not faults, "\n".join(faults)


SAME = {"encode"}  # draw nothing


@pytest.mark.parametrize("name", ["gaps", "two-headed", "gaussian mixture"])
@pytest.mark.parametrize("tool", REPLAYED)
def test_replayed_tools_give_the_numbers_of_the_programs(monkeypatch, tool, name):
    if tool != "evidence" and name == "gaussian mixture":
        pytest.skip("there is no latent to move")
    found = outcome(REPLAYED[tool], *REPLAYED_PAIRS[name], "cuda")
    monkeypatch.setattr(devices, "captures", lambda device: False)
    expected = outcome(REPLAYED[tool], *REPLAYED_PAIRS[name], "cuda")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3, equal_nan=True)
