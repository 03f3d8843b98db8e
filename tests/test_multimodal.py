"""Several modalities: a product of experts that is exact, mixtures, and what is drawn of one given another."""

import math

import pytest
import torch
from examples import multimodal as example
from test_captured import check
from torch.distributions import MultivariateNormal

from pyro_vae import Elbo, check_pair, evaluate, fit, load, multimodal_vae
from pyro_vae.distributions import MixtureOfNormals
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Categorical, Gamma, Normal
from pyro_vae.posteriors import FullNormal
from pyro_vae.programs import Encoder
from pyro_vae.transforms import Scale
from pyro_vae.vae.multimodal import MultimodalVAE

SLOPES = {"x": torch.tensor([1.0, -0.7], dtype=torch.float64), "y": torch.tensor([0.5], dtype=torch.float64)}
NOISE = 0.6


def exact():
    """z ~ N(0, 1), x = (1, -0.7) z + 0.6 e, y = 0.5 z + 0.6 e, with the experts that make the product exact."""
    shapes = {name: ((len(slope),), Normal(scale=NOISE)) for name, slope in SLOPES.items()}
    vae = multimodal_vae(shapes, 1, hidden_dims=())
    for slope, decoder, encoder in zip(SLOPES.values(), vae.decoders, vae.encoders, strict=True):
        (down,), (up,) = decoder.network.layers, encoder.network.layers
        precision = float(slope.square().sum()) / NOISE**2
        with torch.no_grad():
            down.weight.copy_(slope[:, None])
            down.bias.zero_()
            up.weight.zero_()
            up.weight[0, : len(slope)] = slope / NOISE**2 / precision
            up.bias.copy_(torch.tensor([0.0, math.log(math.expm1(precision**-0.5 - 1e-4))]))
    return vae


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("seen", [("x", "y"), ("x",), ("y",)], ids="+".join)
def test_a_product_of_exact_experts_is_the_posterior_whatever_is_missing(seen):
    vae = exact()
    z = torch.randn(8, 1)
    data = {name: z * slope + NOISE * torch.randn(8, len(slope)) for name, slope in SLOPES.items()}
    shown = {name: value if name in seen else torch.full_like(value, torch.nan) for name, value in data.items()}
    slope = torch.cat([SLOPES[name] for name in seen])
    rows = torch.cat([data[name] for name in seen], -1)
    precision = 1 + slope.square().sum() / NOISE**2
    q_z = vae.encode(shown)
    torch.testing.assert_close(q_z.mean[:, 0], rows @ slope / NOISE**2 / precision)
    torch.testing.assert_close(q_z.variance[:, 0], precision.reciprocal().expand(8))
    covariance = slope[:, None] * slope + NOISE**2 * torch.eye(len(slope))
    expected = MultivariateNormal(torch.zeros(len(slope)), covariance).log_prob(rows)
    found = log_evidence(vae, shown, num_particles=3).log_evidence
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)  # every draw has the same weight


@pytest.mark.usefixtures("float64")
def test_draws_given_a_modality_are_those_of_the_joint_normal():
    vae, y = exact(), torch.tensor([[1.5], [-2.0]])
    slope_x, slope_y = SLOPES["x"], SLOPES["y"]
    drawn = vae.draw_given({"y": y.repeat(4000, 1)}, num_particles=20)["x"].reshape(4000, 2, 2)
    gain = slope_x * slope_y / (slope_y**2 + NOISE**2)
    torch.testing.assert_close(drawn.mean(0), y * gain, rtol=0, atol=0.06)
    variance = slope_x.square() + NOISE**2 - gain * slope_x * slope_y
    torch.testing.assert_close(drawn.var(0), variance.expand(2, 2), rtol=0.1, atol=0)


def clusters(num_rows=600):
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (num_rows,))
    centres = torch.tensor([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return {"x": centres[labels] + 0.4 * torch.randn(num_rows, 2), "label": labels}, centres


def labelled(joint="product", **options):
    kinds = Categorical(3, ordered=False)
    return multimodal_vae({"x": ((2,), Normal()), "label": ((), kinds)}, 2, joint=joint, hidden_dims=(16,), **options)


@pytest.mark.parametrize("joint", ["product", "mixture"])
def test_one_modality_is_drawn_from_another(joint):
    data, centres = clusters()
    vae = labelled(joint)
    warm = Elbo(kl="auto", kl_warmup=0.5)
    fit(vae, vae.each_alone(data), objective=warm, epochs=20, batch_size=60, learning_rate=0.01, progress=False)
    guessed = vae.draw_given({"x": data["x"][:200]}, 9)["label"].mode(0).values
    assert float((guessed == data["label"][:200]).double().mean()) > 0.95
    x = vae.draw_given({"label": torch.arange(3).repeat(200)}, num_particles=20)["x"].reshape(200, 3, 2)
    near = (x[:, :, None] - centres).square().sum(-1).argmin(-1)
    assert float((near == torch.arange(3)).double().mean()) > 0.7  # by chance a third


def test_rows_once_more_with_each_modality_alone():
    data, _ = clusters(10)
    rows = labelled().each_alone(data | {"weight": torch.arange(10)})
    assert rows["x"].shape == (30, 2)
    assert rows["x"].isnan().any(-1).nonzero()[:, 0].tolist() == list(range(20, 30))
    assert rows["label"].isnan().nonzero()[:, 0].tolist() == list(range(10, 20))
    assert rows["weight"].tolist() == 3 * list(range(10))


def test_a_mixture_with_fixed_weights_has_its_density_and_unbiased_gradients():
    locs = torch.tensor([[1.0, -1.0], [2.0, 0.5], [9.0, 9.0]], dtype=torch.float64).requires_grad_()
    weights = torch.tensor([0.25, 0.75, 0.0]).double()
    components = torch.distributions.Independent(torch.distributions.Normal(locs, 0.7), 1)
    fn = MixtureOfNormals(locs, torch.full_like(locs, 0.7), weights.log())
    z = fn.rsample(torch.Size([40_000]))
    expected = torch.stack([w * components.log_prob(z[:9, None])[:, k].exp() for k, w in enumerate(weights)]).sum(0)
    torch.testing.assert_close(fn.log_prob(z[:9]).exp(), expected)
    assert float((z > 6).any(-1).double().mean()) == 0
    (gradient,) = torch.autograd.grad(z.square().sum(-1).mean(), locs)
    torch.testing.assert_close(gradient, 2 * weights[:, None] * locs.detach(), rtol=0.05, atol=0.02)
    (gradient,) = torch.autograd.grad(fn.log_prob(z[:50].detach()).sum(), locs)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("joint", ["product", "mixture"])
def test_every_tool_takes_it(joint, tmp_path):
    data, _ = clusters(40)
    data = {"x": data["x"].clone(), "label": data["label"].float()}
    data["x"][:10] = data["label"][30:] = torch.nan
    data["x"][10, 0] = torch.nan
    vae = labelled(joint, transform="auto")
    fit(vae, data, epochs=1, batch_size=20, progress=False, compile=False)
    contract = check_pair(vae, data)
    assert contract, contract
    assert not {name: text for name, text in contract.tools.items() if text.startswith("refused")}
    assert vae.sample(3, sites=("x", "label"))["label"].shape == (3,)
    assert vae.reconstruct(data).isfinite().all()
    filled = vae.impute(data, 2, num_particles=5, sites=("x", "label"))
    assert torch.equal(filled["x"][:, 11:], data["x"][11:].expand(2, -1, -1))
    assert torch.equal(filled["label"][:, :30], data["label"][:30].expand(2, -1))
    missing = {"x": data["x"][10:], "label": torch.full((30,), torch.nan)}
    one, other = vae.encode(data["x"][10:]), vae.encode(missing)  # that a modality is not given says the same
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.variance, other.variance)
    vae.save(tmp_path)
    assert evaluate(load(tmp_path), data, seed=1) == evaluate(vae, data, seed=1)


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_a_compiled_step_has_the_numbers_of_the_programs():
    data, histories = clusters(40)[0], []
    for compile in (False, True):
        torch.manual_seed(0)
        vae = labelled("mixture")
        rows = vae.each_alone(data)
        histories.append(fit(vae, rows, epochs=2, batch_size=20, progress=False, seed=0, compile=compile))
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)


@pytest.mark.parametrize("joint", ["product", "mixture"])
def test_what_is_captured_never_touches_the_host(joint):
    check(lambda: labelled(joint), lambda: labelled().each_alone(clusters(12)[0]))


def test_where_nothing_is_seen_values_that_fit_stand_in_the_gaps():
    vae = multimodal_vae({"x": ((2,), Bernoulli()), "y": ((3,), Gamma())}, 2, hidden_dims=(4,))
    x = torch.ones(12, 2)
    fit(vae, {"x": x, "y": torch.full((12, 3), torch.nan)}, epochs=1, progress=False, compile=False)
    assert all(parameter.isfinite().all() for parameter in vae.parameters())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: labelled("sum"), "unknown joint posterior 'sum'"),
        (lambda: multimodal_vae({"x": ((2,), Normal())}, 2), "at least two modalities, with different names"),
        (lambda: multimodal_vae({"y": ((2,), Normal()), "x": ((2,), Normal())}, 2), "the first called x: found y, x"),
        (lambda: multimodal_vae({"x": ((2,), Normal()), "z": ((2,), Normal())}, 2), "cannot be called 'z'"),
        (lambda: multimodal_vae({"x": ((2,), Bernoulli()), "y": ((2,), Normal())}, 2, transform=Scale(0, 1)), "yields"),
        (lambda: labelled().draw_given({}), "give some of x, label, but not all: found none"),
        (lambda: labelled().draw_given({"x": torch.ones(2, 2), "label": torch.ones(2)}), "found x, label"),
        (lambda: evaluate(labelled(), {"x": torch.ones(2, 2), "label": torch.tensor([0, 3])}), "label has values"),
        (lambda: evaluate(labelled(), {"x": torch.ones(2, 2), "label": torch.ones(2, 1)}), r"rows of shape \(1,\)"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_experts_that_are_no_independent_normals_are_refused():
    vae = labelled()
    full = FullNormal()
    encoders = [
        Encoder(torch.nn.Flatten(), full, 2, e.encoding, d.event_shape)
        for e, d in zip(vae.encoders, vae.decoders, strict=True)
    ]
    with pytest.raises(ValueError, match="x has a FullNormal"):
        MultimodalVAE(vae.prior, vae.names, vae.decoders, encoders)


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "multimodal.png", epochs=1)
    assert (tmp_path / "multimodal.png").stat().st_size > 5000
