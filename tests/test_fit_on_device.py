"""Training on a device other than the CPU, which is pretended: by the way of CUDA graphs, to the CPU's numbers."""

import warnings
from unittest import mock

import pyro
import pytest
import torch
from pretended_cuda import CUDA, PretendedCuda
from test_execution import CASES

from pyro_vae import Elbo, fit, mlp_vae
from pyro_vae.likelihoods import NegativeBinomial, Normal

CAPTURED = "uncompiled, captured in a CUDA graph"


def weights_of(pair):
    return {name: value.detach().cpu() for name, value in (*pair.state_dict().items(), *pyro.get_param_store().items())}


def trained(build, data, device, **options):
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pair = build()
    settings = {"epochs": 8, "batch_size": 32, "learning_rate": 0.01, "progress": False, "device": device, **options}
    history = fit(pair, data, **settings)
    assert all(parameter.grad is None for parameter in pair.parameters())
    return pair, history


def assert_same(pair, history, expected_pair, expected_history, tolerance=1e-5):
    assert history["elbo"].tolist() == pytest.approx(expected_history["elbo"].tolist(), rel=tolerance)
    expected = weights_of(expected_pair)
    for name, value in weights_of(pair).items():
        torch.testing.assert_close(value, expected[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ["bits", "running averages", "functions"])
def test_what_is_captured_comes_to_the_numbers_of_the_programs_on_the_cpu(case):
    build, rows, options = CASES[case]
    data = rows()
    on_cpu = trained(build, data, "cpu", compile=False, **options)
    with PretendedCuda():
        pair, history = trained(build, data, "auto", **options)
        assert pair.device == CUDA
        assert history.attrs["execution"] == CAPTURED
        assert_same(pair, history, *on_cpu)


def test_so_does_what_is_compiled_and_captured():
    build, rows, options = CASES["mixture prior"]
    data = rows()
    on_cpu = trained(build, data, "cpu", compile=False, **options)
    with PretendedCuda():  # which runs what would be compiled, operation by operation
        pair, history = trained(build, data, "cuda", compile=True, **options)
        assert history.attrs["execution"] == "compiled, captured in a CUDA graph"
        assert_same(pair, history, *on_cpu)


def table_vae():
    return mlp_vae((3,), 1, hidden_dims=(4,), likelihood=Normal(), missing="nan")


def table():
    x = torch.randn(64, 3)
    x[0, 1] = x[5, 2] = float("nan")
    return x


RUNS = {
    "cosine": {},
    "plateau, warm-up, a bound on the gradient": {
        "schedule": "plateau",
        "objective": Elbo(kl_warmup=0.5),
        "max_grad_norm": 0.5,
    },
    "averaged weights": {"average_weights": 0.9},
}


@pytest.mark.parametrize("options", RUNS.values(), ids=list(RUNS))
def test_a_run_that_is_resumed_ends_at_the_same_bits(tmp_path, options):
    data, file = table(), tmp_path / "run.safetensors"
    options = {"validation_data": data[:20], **options}
    with PretendedCuda():
        whole, expected = trained(table_vae, data, "cuda", epochs=8, **options)

        def stopping(pair):
            from pyro_vae import epochs

            settings = {"batch_size": 32, "learning_rate": 0.01, "progress": False, "device": "cuda", **options}
            for number, _ in enumerate(epochs(pair, data, epochs=8, checkpoint=file, **settings), start=1):
                if number == 5:
                    break

        pyro.set_rng_seed(0)
        stopping(table_vae())
        pair, history = trained(table_vae, data, "cuda", epochs=8, checkpoint=file, resume=True, **options)
        assert history["learning_rate"].tolist() == expected["learning_rate"].tolist()
        assert history["elbo"].tolist() == expected["elbo"].tolist()
        found = weights_of(pair)
        for name, value in weights_of(whole).items():
            assert torch.equal(found[name], value), name


def test_arguments_on_the_cpu_are_moved():
    x, size_factor = torch.poisson(torch.full((96, 3), 4.0)), torch.rand(96) + 0.5
    data = {"x": x.numpy(), "size_factor": size_factor.numpy()}

    def build():
        return mlp_vae((3,), 1, hidden_dims=(4,), likelihood=NegativeBinomial(2.0))

    with PretendedCuda():
        pair, history = trained(build, data, "cuda", validation_data={name: rows[:20] for name, rows in data.items()})
        assert history.attrs["execution"] == CAPTURED
        on_device = {"x": x.to("cuda"), "size_factor": size_factor.to("cuda")}
        again, same = trained(build, on_device, "cuda", validation_data={n: v[:20] for n, v in on_device.items()})
        assert_same(pair, history, again, same, tolerance=0.0)


def test_programs_that_cannot_be_compiled_are_captured_as_they_are():
    def no_compiler(*_, **__):
        raise RuntimeError("there is no Triton")

    with (
        PretendedCuda(),
        mock.patch("torch._inductor.compile", no_compiler),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        _, history = trained(table_vae, table(), "cuda", compile=True)
        assert history.attrs["execution"] == CAPTURED
    assert any("uncompiled" in str(warning.message) for warning in caught)


def test_a_pair_that_comes_back_from_the_device_runs_on_the_cpu():
    build, rows, options = CASES["functions"]
    with PretendedCuda():
        pair, _ = trained(build, rows(), "cuda", **options)
        assert all(value.device == CUDA for value in pyro.get_param_store().values())
        pair.to("cpu")
        assert pair.sample(3).device.type == "cpu"
    assert all(value.device.type == "cpu" for value in pyro.get_param_store().values())
    assert pair.sample(3).shape == (3,)
