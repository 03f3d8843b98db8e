"""Exported files say what the model says, without the library."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from pyro_vae import Pair, conditional_vae, conv_vae, mlp_vae
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Bernoulli, Categorical, NegativeBinomial, Normal
from pyro_vae.posteriors import FlowPosterior, FullNormal
from pyro_vae.serving import export
from pyro_vae.transforms import Binarize, Compose, Dequantize, Logit, Scale, Standardize

LEVELS = torch.randint(0, 17, (100, 8, 8), generator=torch.Generator().manual_seed(0))
REAL = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
FAR = 1e9 + REAL.double()
GAPS = REAL.masked_fill(REAL > 1.5, torch.nan)


def network(**arguments):
    return mlp_vae(latent_dim=2, hidden_dims=(16,), **arguments)


def standardised(x):
    return network(event_shape=(4,), likelihood=Normal(), transform=Standardize((4,)).fit(x))


MODELS = {
    "standardised": (
        lambda: network(event_shape=(4,), likelihood=Normal(), transform=Standardize((4,)).fit(REAL)),
        REAL,
    ),
    "far from zero": (
        lambda: network(event_shape=(4,), likelihood=Normal(), transform=Standardize((4,)).fit(FAR)),
        FAR,
    ),
    "bits drawn": (lambda: network(event_shape=(8, 8), likelihood=Bernoulli(), transform=Binarize(0, 16)), LEVELS),
    "gaps": (lambda: network(event_shape=(4,), likelihood=Normal(), missing="nan"), GAPS),
    "counts": (lambda: network(event_shape=(8, 8), likelihood=NegativeBinomial()), LEVELS),
    "levels": (lambda: network(event_shape=(8, 8), likelihood=Categorical(17)), LEVELS),
    "convolutions": (
        lambda: conv_vae((8, 8), 2, channels=(4, 8), likelihood=Normal(link="sigmoid"), transform=Scale(0, 16)),
        LEVELS,
    ),
    "composed": (
        lambda: network(event_shape=(8, 8), likelihood=Normal(), transform=Compose((Scale(-1, 17), Logit()))),
        LEVELS,
    ),
    "full covariance": (lambda: network(event_shape=(4,), likelihood=Normal(), posterior=FullNormal()), REAL),
}
ONNX = ("gaps", "bits drawn")


def made(name):
    torch.manual_seed(0)
    build, x = MODELS[name]
    return build(), x


@pytest.mark.parametrize("name", MODELS)
def test_exported_programs_are_the_model(name, tmp_path):
    vae, x = made(name)
    encoder, decoder = (torch.export.load(path).module() for path in export(vae, tmp_path, x[:20], onnx=False))
    held_out = x[20:]
    given = held_out if held_out.dtype == torch.float64 else held_out.float()
    mean, scale = encoder(given.to(vae.dtype))
    q = vae.encode(given.to(vae.dtype))
    torch.testing.assert_close(mean, q.mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scale, q.stddev, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(decoder(q.mean), vae.mean_at(q.mean), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ONNX)
def test_onnx_is_the_model_and_the_example_runs_without_the_library(name, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    vae, x = made(name)
    paths = export(vae, tmp_path, x[:20])
    assert sorted(path.name for path in paths) == sorted(path.name for path in tmp_path.iterdir())
    held_out = x[20:].float()
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / f"{part}.onnx") for part in ("encoder", "decoder"))
    mean, scale = encoder.run(None, {"x": held_out.numpy()})
    q = vae.encode(held_out)
    np.testing.assert_allclose(mean, q.mean.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scale, q.stddev.numpy(), rtol=1e-4, atol=1e-5)
    (found,) = decoder.run(None, {"z": mean})
    np.testing.assert_allclose(found, vae.mean_at(q.mean).numpy(), rtol=1e-4, atol=1e-4)
    if name == ONNX[0]:
        np.save(tmp_path / "rows.npy", held_out.numpy())
        code = (tmp_path / "example.py").read_text()
        assert "import pyro" not in code
        done = subprocess.run(
            [sys.executable, "example.py", "rows.npy"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert done.stdout.split("\n")[0] == "(80, 2) (80, 2) (80, 4) (16, 4)"


def test_what_cannot_be_exported_is_refused_and_nothing_is_written(tmp_path):
    flow = network(event_shape=(4,), likelihood=Normal(), posterior=FlowPosterior())
    with pytest.raises(ContractError, match=r"encoder.pt2 differs from the model"):
        export(flow, tmp_path, REAL, onnx=False)  # the mean of a flow is that of its draws
    conditional = conditional_vae((4,), 2, given={"labels": 3}, likelihood=Normal())
    with pytest.raises(ContractError, match="found a ConditionalVAE"):
        export(conditional, tmp_path, REAL, onnx=False)
    vae, _ = made("standardised")
    with pytest.raises(ContractError, match="found a Pair"):
        export(Pair(vae.model, vae.guide), tmp_path, REAL, onnx=False)
    with pytest.raises(ValueError, match="at least two rows to trace and compare, found 1"):
        export(vae, tmp_path, REAL[:1], onnx=False)
    assert list(tmp_path.iterdir()) == []


def test_arithmetic_that_onnx_lacks_is_named(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    spread = Compose((Dequantize(17), Scale(0, 17)))
    vae = network(event_shape=(8, 8), likelihood=Normal(), transform=spread)
    with pytest.raises(ContractError, match=r"cannot be written as ONNX, so give onnx=False: .*nextafter"):
        export(vae, tmp_path, LEVELS)
