"""However steps are run, as programs or as a graph, training comes to the same numbers."""

import warnings

import pairs
import pyro
import pyro.distributions as dist
import pytest
import torch
from coverings import some
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from pyro_vae import Pair, conv_vae, fit, make_vae, mlp_vae
from pyro_vae.data.rows import as_rows
from pyro_vae.inference.objectives import Elbo
from pyro_vae.likelihoods import Bernoulli, Normal, Poisson
from pyro_vae.networks import (
    GatedConvDecoder,
    GatedMLP,
    RecurrentDecoder,
    RecurrentEncoder,
    ResidualConvEncoder,
    ResidualMLP,
)
from pyro_vae.programs import local_parameters
from pyro_vae.training import execution, run
from pyro_vae.training.step import Gradients
from pyro_vae.transforms import Binarize


def bits_vae():
    return mlp_vae(
        (12,), 3, hidden_dims=(16,), activation="Softplus", likelihood=Bernoulli(), transform=Binarize(0, 255)
    )


def normalised_vae():
    """A network with running averages, which each step changes."""
    vae = conv_vae((1, 8, 8), 3, likelihood=Normal(scale="optimal"), channels=(4,))
    vae.guide.encoder.network.layers.insert(1, nn.BatchNorm2d(4))
    vae.guide.encoder.network.layers[0].bias = None  # it would have no effect, and a gradient of rounding errors
    return vae


def vae_of(event_shape, encoder, decoder):
    return make_vae(event_shape, 3, likelihood=Normal(), encoder_network=encoder, decoder_network=decoder)


def gated_vae():
    return vae_of((6,), lambda i, o: GatedMLP(i, o, (8,), "layer"), lambda i, o: ResidualMLP(i, o, 8, 1))


def residual_conv_vae():
    return vae_of(
        (1, 4, 3), lambda i, o: ResidualConvEncoder(i, o, (4,)), lambda i, o: GatedConvDecoder(i, o, (4,), "nearest")
    )  # of 6 by 5, the compiler takes more than twice as long over the indices


def recurrent_vae():
    return vae_of((4, 2), lambda i, o: RecurrentEncoder(i, o, (5,)), lambda i, o: RecurrentDecoder(i, o, (5, 4)))


CASES = {
    "bits": (
        bits_vae,
        lambda: torch.randint(0, 256, (150, 12), dtype=torch.uint8),
        {"max_grad_norm": 5.0, "average_weights": 0.9},
    ),
    "counts": (
        lambda: mlp_vae((6,), 2, hidden_dims=(8,), likelihood=Poisson()),
        lambda: torch.poisson(torch.full((150, 6), 40.0)),
        {"objective": Elbo(kl_warmup=0.5)},
    ),
    "running averages": (normalised_vae, lambda: torch.randn(150, 1, 8, 8), {}),
    "mixture prior": (pairs.mixture_pair, lambda: torch.randn(150, 4), {"objective": Elbo(3)}),
    "functions": (pairs.function_pair, lambda: torch.randn(150), {"objective": Elbo(kl_weight=0.5)}),
    "score function": (pairs.discrete_pair, lambda: torch.randn(150), {}),
    "PyroModules": (pairs.pyro_module_pair, lambda: torch.randn(150, 3), {"objective": Elbo(kl="analytic")}),
    "gated and residual layers": (gated_vae, lambda: torch.randn(150, 6), {}),
    "gated and residual convolutions": (residual_conv_vae, lambda: torch.randn(150, 1, 4, 3), {}),
    "convolutions of signals": (
        lambda: conv_vae((2, 9), 3, likelihood=Normal(), channels=(3,), normalization="layer", num_dims=1),
        lambda: torch.randn(150, 2, 9),
        {},
    ),
    "recurrent networks": (recurrent_vae, lambda: torch.randn(150, 4, 2), {}),
    "labels": (pairs.labelled_pair, lambda: {"x": torch.randn(150), "labels": torch.arange(150) % 2}, {}),
}


# Functions are compiled in tests/test_fit.py, and programs with labels in tests/test_semi_supervised.py.
@pytest.mark.parametrize("case", some(CASES, *(CASES.keys() - {"functions", "labels"})))
def test_compiled_training_is_the_programs_training(case):
    build, rows, options = CASES[case]
    data, histories, weights = rows(), [], []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        pair = build()
        histories.append(
            fit(pair, data, epochs=2, batch_size=64, learning_rate=0.01, progress=False, compile=compile, **options)
        )
        store = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
        weights.append({**{n: t.clone() for n, t in pair.state_dict().items()}, **store})
    eager, compiled = histories
    assert eager.attrs["execution"] == "eager, as asked"
    assert compiled.attrs["execution"] == "compiled"
    for column in ("elbo", "reconstruction", "kl", "kl_weight", "learning_rate"):
        assert compiled[column].tolist() == pytest.approx(eager[column].tolist(), rel=1e-5)
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_the_gradient_is_that_of_pyros_own_estimator(kl, float64):
    vae = mlp_vae((5,), 2, hidden_dims=(7,), likelihood=Normal())
    x = torch.randn(20, 5)
    rows = as_rows(x, torch.device("cpu"))
    reference = next(iter(rows.references([torch.arange(20)])))
    structure = vae.structure(vae.prepare({"x": x}))
    gradients = Gradients(vae, dict(vae.named_parameters()), rows, reference, structure, Elbo(kl=kl))
    with local_parameters():
        torch.manual_seed(1)
        sums, *found = gradients(torch.ones(()), *reference.values())
        torch.manual_seed(1)
        loss = (Trace_ELBO if kl == "sampled" else TraceMeanField_ELBO)().differentiable_loss(vae.model, vae.guide, x)
    loss.backward()
    assert float(sums[0] - sums[1]) == pytest.approx(-float(loss.detach()), rel=1e-10)
    for parameter, gradient in zip(vae.parameters(), found, strict=True):
        torch.testing.assert_close(gradient, parameter.grad / 20, rtol=1e-9, atol=1e-12)


class Undecided(nn.Module):
    """A guide with control flow that depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            loc = self.loc if x.mean() > 0 else -self.loc
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def test_a_program_that_looks_at_its_data_trains_as_it_stands_and_says_so_once():
    def build():
        torch.manual_seed(0)
        return Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Undecided())

    x = torch.randn(100, 3)
    with pytest.warns(UserWarning, match="runs the programs at every step.*value") as said:
        fallen_back = fit(build(), x, epochs=2, batch_size=50, progress=False, compile=True)
    assert len(said) == 1
    asked_for = fit(build(), x, epochs=2, batch_size=50, progress=False, compile=False)
    assert fallen_back.elbo.tolist() == asked_for.elbo.tolist()
    assert fallen_back.attrs["execution"].startswith("eager: ")


def test_a_program_that_keeps_count_outside_of_tensors_is_found_out():
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc, self.calls = nn.Parameter(torch.zeros(2)), 0

        def forward(self, x):
            self.calls += 1
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.loc + self.calls, 1.0).to_event(1))

    pair = Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Forgetful())
    with pytest.warns(UserWarning, match=r"the guide changes self\.calls \(\d+ → \d+\) when it runs"):
        fit(pair, torch.randn(100, 3), epochs=1, batch_size=50, progress=False, compile=True)


def test_auto_compiles_where_steps_repay_it_and_a_compiler_is_there(monkeypatch):
    x = torch.randn(100, 3)

    def how(**options):
        torch.manual_seed(0)
        vae = mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal())
        return fit(vae, x, epochs=2, batch_size=50, progress=False, **options).attrs["execution"]

    assert how() == "eager: fewer than 4,000 steps do not repay compiling"
    monkeypatch.setattr(execution, "STEPS_THAT_REPAY", 4)
    assert how() == "compiled"
    monkeypatch.setattr(execution, "compiler_missing", lambda: "there is no C++ compiler (g++ or clang++)")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert how() == "eager: there is no C++ compiler (g++ or clang++)"
    with pytest.warns(UserWarning, match="no C"):
        how(compile=True)


def test_a_compiled_run_resumes_to_the_same_numbers(tmp_path):
    x = torch.randint(0, 256, (150, 12), dtype=torch.uint8)

    def build():
        torch.manual_seed(0)
        return bits_vae()

    options = {"epochs": 4, "batch_size": 64, "progress": False, "compile": True}
    whole = build()
    fit(whole, x, **options)
    path = tmp_path / "run.safetensors"

    class Stop(Exception):
        pass

    stopped, seen = build(), []
    original = execution.Execution.step

    def step(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 8:  # in the third epoch
            raise Stop
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution.Execution, "step", step)
        with pytest.raises(Stop):
            fit(stopped, x, checkpoint=path, **options)
    resumed = build()
    fit(resumed, x, checkpoint=path, resume=True, **options)
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_products_in_bfloat16_leave_distributions_in_float32():
    seen = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)

        def forward(self, x):
            out = self.layer(x)
            exact = (x[:, :, None] * self.layer.weight.T).sum(1) + self.layer.bias
            seen.append((out.dtype, float((out - exact).detach().abs().max())))
            loc, raw = out.chunk(2, -1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    pair = Pair(mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal()).model, Spy())
    x = torch.randn(64, 3)
    rows = as_rows(x, torch.device("cpu"))
    reference = next(iter(rows.references([torch.arange(64)])))
    structure = pair.structure(pair.prepare({"x": x}))
    seen.clear()
    for precision in ("full", "bfloat16"):
        torch.manual_seed(0)
        gradients = Gradients(
            pair, dict(pair.named_parameters()), rows, reference, structure, Elbo(), precision=precision
        )
        gradients(torch.ones(()), *reference.values())
    assert [dtype for dtype, _ in seen] == [torch.float32, torch.float32]
    assert seen[0][1] < 1e-6 < 1e-4 < seen[1][1] < 3e-2


def test_bfloat16_without_instructions_for_it_is_warned_of(monkeypatch):
    monkeypatch.setattr(run, "has_bfloat16", lambda device: False)
    with pytest.warns(UserWarning, match="use precision='full'"):
        fit(bits_vae(), torch.rand(8, 12), epochs=1, batch_size=8, progress=False, precision="bfloat16", device="cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compile", ["auto", True])
def test_captured_training_is_the_programs_training(compile):
    x = torch.randint(0, 256, (1000, 12), dtype=torch.uint8)
    histories = []
    for how in (False, compile):
        torch.manual_seed(0)
        histories.append(
            fit(bits_vae(), x, validation_data=x[:100], epochs=4, batch_size=64, progress=False, compile=how)
        )
    eager, captured = histories
    assert "captured" in captured.attrs["execution"]
    # The noise of a graph comes from other places of the generator's stream.
    assert captured.elbo.iloc[-1] == pytest.approx(eager.elbo.iloc[-1], rel=0.02)
