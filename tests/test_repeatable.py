"""A row is the same to every tool, every time, in any batch and order; and its digits arrive whole."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vae import evaluate, fit, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Mixed, NegativeBinomial, Normal
from pyro_vae.transforms import Binarize, Compose, Dequantize, Scale, Standardize

TRANSFORMS = {
    "bits": (Bernoulli(), Binarize(0, 16)),
    "bits by a seed": (Bernoulli(), Binarize(0, 16, seed=7)),
    "spread levels": (Normal(link="sigmoid"), Compose((Dequantize(17), Scale(0, 17)))),
    "measurements": (Normal(), Standardize((9,))),
}


def grey_levels(num_rows=40):
    return torch.randint(0, 17, (num_rows, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def trained(name, x):
    likelihood, transform = TRANSFORMS[name]
    transform.fit(x)
    vae = mlp_vae((9,), latent_dim=2, hidden_dims=(8,), likelihood=likelihood, transform=transform)
    fit(vae, x, epochs=1, batch_size=20, progress=False, compile=False)
    return vae


@pytest.mark.parametrize("name", TRANSFORMS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_row_has_one_encoding_in_any_batch_and_order(name, data):
    x = grey_levels()
    vae = trained(name, x)
    whole = vae.encode(x)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(x) - 1), min_size=1, max_size=60)))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    part = vae.encode(x[rows])
    torch.testing.assert_close(part.mean, whole.mean[rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(part.variance, whole.variance[rows], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vae.reconstruct(x[rows]), vae.reconstruct(x)[rows], rtol=1e-5, atol=1e-4)


def test_a_row_is_scored_as_the_same_bits_by_every_tool():
    x = grey_levels()
    vae = trained("bits", x)
    bits = vae.transform.eval()(x.float())
    of_bits = mlp_vae((9,), latent_dim=2, hidden_dims=(8,), likelihood=Bernoulli())
    of_bits.load_state_dict(vae.state_dict())
    of_bits.eval()
    assert evaluate(vae, x)["elbo"] == pytest.approx(evaluate(of_bits, bits)["elbo"], abs=1e-5)
    here, there = (log_evidence(v, rows, num_particles=50).log_evidence for v, rows in ((vae, x), (of_bits, bits)))
    torch.testing.assert_close(here, there)


def test_training_draws_again_each_time_and_evaluation_does_not():
    x = torch.full((2000, 9), 8.0)
    for transform in (Binarize(0, 16), Compose((Binarize(0, 16), Scale(0, 1, onto=(-1, 1))))):
        transform.train()
        assert not torch.equal(transform(x), transform(x))
        transform.eval()
        assert torch.equal(transform(x), transform(x))


def test_the_noise_of_a_row_is_uniform_and_that_of_two_rows_independent():
    x = torch.rand(4000, 9, generator=torch.Generator().manual_seed(1)) * 16
    bits = Binarize(0, 16).eval()(x)
    error = bits - x / 16
    assert float(error.mean()) == pytest.approx(0, abs=4 * 0.5 / math.sqrt(error.numel()))
    spread = Dequantize(17).eval()(x.floor()) - x.floor()
    uniform = spread.flatten().sort().values
    steps = torch.arange(1, len(uniform) + 1) / len(uniform)
    assert float((uniform - steps).abs().max()) < 1.63 / math.sqrt(len(uniform))  # Kolmogorov's bound at 1%
    together = torch.corrcoef(spread.T).fill_diagonal_(0).abs().max()
    assert float(together) < 4 / math.sqrt(len(x))


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e6, -1e9])
def test_measurements_far_from_zero_are_those_near_it(offset):
    x = np.random.default_rng(0).normal(size=(400, 3)) * [1e-3, 1e-2, 1.0]
    near, far = (
        fit_and_measure(rows) for rows in (np.round(x, 9), np.round(x, 9) + offset)
    )  # the same digits, as far as float64 has them
    tolerance = 1e-2 if abs(offset) > 1e8 else 1e-4  # float64 itself rounds 1e-3 beside 1e9 to four digits
    assert far["elbo"] == pytest.approx(near["elbo"], abs=tolerance)
    np.testing.assert_allclose(far["sd"], near["sd"], rtol=tolerance)


def fit_and_measure(x):
    vae = mlp_vae((3,), 2, hidden_dims=(8,), likelihood=Normal(), transform=Standardize((3,)).fit(torch.as_tensor(x)))
    torch.manual_seed(0)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(0)
    return {"elbo": evaluate(vae, x)["elbo"], "sd": vae.sample(500).double().std(0).numpy()}


@pytest.mark.parametrize(
    ("x", "likelihood", "words"),
    [
        (1e6 + 1e-3 * np.random.default_rng(0).normal(size=(40, 2)), Normal(), "index (0,)"),
        (1_700_000_000 + np.arange(80).reshape(40, 2), NegativeBinomial(), "index (0,)"),
        (
            np.stack([np.arange(40.0), 1e8 + np.arange(40.0)], 1),
            Mixed((Normal(), Normal()), ("near", "far")),
            "column 'far' (index 1)",
        ),
    ],
)
def test_what_the_models_type_cannot_tell_apart_is_refused(x, likelihood, words):
    vae = mlp_vae((2,), 1, likelihood=likelihood)
    with pytest.raises(ValueError, match="cannot tell apart") as caught:
        fit(vae, x, epochs=1, progress=False)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    vae = vae.double()  # as it says
    fit(vae, x, epochs=1, progress=False, compile=False)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    values=st.lists(st.one_of(st.floats(-1e12, 1e12), st.just(math.nan)), min_size=12, max_size=12),
    kind=st.sampled_from(["float32", "float64"]),
)
def test_imputed_rows_keep_their_observed_entries_to_the_last_digit(values, kind):
    x = np.array(values, dtype=kind).reshape(4, 3)
    x[:, 0] = np.where(np.isnan(x[:, 0]), 0.1, x[:, 0])
    vae = mlp_vae((3,), 1, hidden_dims=(4,), likelihood=Normal(), missing="nan")
    vae.transform = Standardize((3,)).fit(torch.as_tensor(x))
    filled = vae.impute(x, 2, num_particles=2).numpy()
    seen = ~np.isnan(x)
    for draw in filled:
        assert np.array_equal(draw[seen], x[seen])
    assert np.isfinite(filled).all()


def test_moving_a_model_to_another_type_keeps_the_digits_of_its_transform(tmp_path):
    from pyro_vae import load

    x = torch.tensor([[1e6], [1e6 + 1e-3]], dtype=torch.float64)
    vae = mlp_vae((1,), 1, likelihood=Normal(), transform=Standardize((1,)).fit(x))
    loc = vae.transform.loc.clone()
    vae.half().float()
    assert torch.equal(vae.transform.loc, loc)
    vae.save(tmp_path)
    opened = load(tmp_path)
    assert torch.equal(opened.transform.loc, loc)
    assert opened.dtype == torch.float32
