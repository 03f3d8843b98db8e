"""Conditional VAEs: covariates in the prior, the encoder and the decoder, against closed forms."""

import math

import numpy as np
import pytest
import torch
from every_tool import TOOLS
from examples import conditional as example
from scipy import stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from test_captured import LIKELIHOODS, NAMES, check, rows_of

from pyro_vae import check_pair, conditional_vae, evaluate, fit, load
from pyro_vae.covariates import Amount, Covariates, Label, as_covariates
from pyro_vae.encodings import Beside, Log, OneHot, Plain, WithMask, beside
from pyro_vae.evaluation import log_evidence
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.networks import ConvDecoder, ConvEncoder
from pyro_vae.priors import NormalMixture, VampPrior
from pyro_vae.transforms import Binarize, Scale, Standardize

GIVEN = {"labels": 3, "age": None, "place": (2,)}
PRIORS = {"plain": lambda: None, "conditional": lambda: "conditional", "mixture": lambda: NormalMixture(2, 3)}


def small(**options):
    torch.manual_seed(0)
    return conditional_vae((6,), 2, **{"given": GIVEN, "likelihood": Bernoulli(), "hidden_dims": (8,), **options})


def covariates(num):
    torch.manual_seed(2)
    return {
        "labels": torch.arange(num) % 3,
        "age": 40 + 15 * torch.randn(num),
        "place": torch.randn(num, 2),
    }


def bits(num=192):
    given = covariates(num)
    torch.manual_seed(1)
    loc = 0.5 * given["labels"][:, None] + 0.02 * given["age"][:, None] + torch.randn(num, 1)
    return {"x": (loc + torch.randn(num, 6) > 1.3).float(), **given}


# What networks are shown


def test_covariates_are_shown_one_hot_and_around_zero():
    shown = as_covariates({"labels": 3, "age": None, "place": (2,)})
    assert (shown.size, shown.arguments) == (6, ("labels", "age", "place"))
    data = covariates(300)
    first = shown.train()(**data).double()
    age = data["age"].double()
    expected = np.column_stack(
        [
            np.eye(3)[data["labels"]],
            stats.zscore(age.numpy()),
            stats.zscore(data["place"].double().numpy()),
        ]
    )
    np.testing.assert_allclose(first.numpy(), expected, atol=1e-5)
    loc, scale = float(age.mean()), float(age.std(correction=0))
    alone = shown.eval()(labels=2, age=loc + 2 * scale, place=torch.zeros(1, 2))
    assert alone[0, :4].tolist() == pytest.approx([0, 0, 1, 2], abs=1e-5)


def test_a_vector_beside_a_row_takes_any_batch_dimensions():
    x, vector = torch.randn(5, 2, 3), torch.randn(4, 1, 7)
    encoding = Beside(Plain(), (2, 3), "y", 7)
    shown = encoding(x, y=vector)
    assert (encoding.shape((2, 3)), shown.shape) == ((13,), (4, 5, 13))
    assert torch.equal(shown[3, 2], torch.cat([x[2].flatten(), vector[3, 0]]))
    assert torch.equal(beside(x[:, 0], vector)[1, 4], torch.cat([x[4, 0], vector[1, 0]]))


@pytest.mark.parametrize(
    ("inner", "channels"),
    [(lambda: Plain(), 3), (lambda: WithMask(Plain(), (3, 4, 5)), 6), (lambda: OneHot(4, 3), 12)],
    ids=["plain", "mask", "levels"],
)
def test_beside_images_a_vector_is_planes(inner, channels):
    x = torch.randint(0, 4, (2, 3, 4, 5)).float()
    encoding = Beside(inner(), (3, 4, 5), "y", 2, planes=True)
    shown = encoding(x, y=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert tuple(shown.shape[1:]) == encoding.shape((3, 4, 5)) == (channels + 2, 4, 5)
    assert torch.equal(shown[:, :channels], inner()(x).reshape(2, channels, 4, 5))
    assert shown[1, -2].unique().tolist() == [3.0]
    assert shown[0, -1].unique().tolist() == [2.0]


def test_planes_are_for_images():
    with pytest.raises(ValueError, match=r"planes are for images, \(\.\.\., H, W\), but a row has shape \(6,\)"):
        Beside(Plain(), (6,), "y", 2, planes=True)


# The numbers


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("prior", ["plain", "conditional"])
def test_the_evidence_is_that_of_x_given_the_covariates(prior):
    r"""With affine networks x given y is normal: mean and covariance are written down here."""
    vae = conditional_vae(
        (3,), 2, given={"labels": 3, "age": None}, likelihood=Normal(0.7), hidden_dims=(), prior=PRIORS[prior]()
    )
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(0.6 * torch.randn_like(parameter))
        vae.encoder.network.layers[0].weight.mul_(0.1)
        vae.encoder.network.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 1.5, 1.5]))  # wide, so that few draws do
    data = {"x": torch.randn(6, 3), "labels": torch.arange(6) % 3, "age": torch.randn(6)}
    found = log_evidence(vae, data, num_particles=20_000)
    layer = vae.decoder.network.layers[0]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    for row in range(6):
        y = np.concatenate([np.eye(3)[data["labels"][row]], [data["age"][row]]])
        mean, variance = np.zeros(2), np.ones(2)
        if prior == "conditional":
            raw = vae.prior.network(torch.as_tensor(y)).detach().numpy()
            mean, variance = raw[0], (np.logaddexp(0, raw[1]) + vae.prior.posterior.min_scale) ** 2
        to_z, to_y = weight[:, :2], weight[:, 2:]
        cov = to_z @ np.diag(variance) @ to_z.T + 0.49 * np.eye(3)
        expected = stats.multivariate_normal(to_z @ mean + to_y @ y + bias, cov).logpdf(data["x"][row])
        error = float(found.standard_error[row])
        assert error < 0.05
        assert float(found.log_evidence[row]) == pytest.approx(expected, abs=5 * error)


@pytest.mark.usefixtures("float64")
def test_one_value_for_all_rows_is_that_value_at_each():
    vae, data = small(prior="conditional").eval(), bits(12)
    x = data["x"].double()
    alone = {"x": x, "labels": 2, "age": 31.0, "place": data["place"]}
    each = {**alone, "labels": torch.full((12,), 2), "age": torch.full((12,), 31.0)}
    assert torch.equal(vae.encode(alone).mean, vae.encode(each).mean)
    assert evaluate(vae, alone) == evaluate(vae, each)
    given = {name: value for name, value in alone.items() if name != "x"}
    torch.manual_seed(5)
    drawn = vae.sample(12, given=given)
    torch.manual_seed(5)
    assert torch.equal(drawn, vae.sample(12, given={**given, "labels": [2] * 12}))


# Training


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 8, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    histories = [fit(small(prior="conditional"), bits(), compile=compile, **options) for compile in (False, True)]
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)
    assert histories[0]["elbo"].iloc[-1] > histories[0]["elbo"].iloc[0] + 0.3


def test_what_is_captured_never_touches_the_host():
    check(lambda: small(prior="conditional"), lambda: bits(12))


def test_draws_given_a_class_are_classified_as_it():
    """A classifier that has seen only data tells the class that was asked for."""
    x, y = load_digits(return_X_y=True)
    classifier = LogisticRegression(max_iter=2000).fit(x[:900] / 16, y[:900])
    of_data = classifier.score(x[900:] / 16, y[900:])
    torch.manual_seed(0)
    vae = conditional_vae(
        (64,), 4, given={"labels": 10}, likelihood=Normal(link="sigmoid"), transform=Scale(0, 16), hidden_dims=(128,)
    )
    data = {"x": torch.as_tensor(x).float(), "labels": torch.as_tensor(y)}
    fit(vae, data, epochs=30, batch_size=100, learning_rate=3e-3, compile=False, progress=False)
    asked = np.arange(500) % 10
    drawn = vae.sample(500, given={"labels": asked})
    assert of_data > 0.9
    assert classifier.score(drawn.numpy() / 16, asked) > 0.9
    sevens = classifier.predict(vae.sample(100, given={"labels": 7}).numpy() / 16)
    assert (sevens == 7).mean() > 0.9


# What goes with what


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_any_likelihood_and_rows_with_gaps(name):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    torch.manual_seed(0)
    vae = conditional_vae(shape, 2, given=GIVEN, likelihood=case.make(), hidden_dims=(6,), missing="nan")
    data = {**rows_of(case, shape, gaps=True), **covariates(12)}
    history = fit(vae, data, epochs=2, compile=False, progress=False)
    assert math.isfinite(history["elbo"].iloc[-1])
    filled = vae.impute(data, 2, num_particles=5)
    seen = ~data["x"].isnan()
    assert torch.equal(filled[:, seen], data["x"][seen].expand(2, -1).to(filled.dtype))


def test_networks_for_images_are_shown_covariates_as_planes():
    torch.manual_seed(0)
    vae = conditional_vae(
        (1, 8, 8),
        2,
        given=GIVEN,
        likelihood=Bernoulli(),
        encoder_network=lambda i, o: ConvEncoder(i, o, channels=(4,)),
        decoder_network=lambda i, o: ConvDecoder(i, o, channels=(4,)),
    )
    assert vae.encoder.network.in_shape == (1 + 6, 8, 8)
    data = {"x": torch.rand(20, 1, 8, 8).round(), **covariates(20)}
    fit(vae, data, epochs=1, compile=False, progress=False)
    assert vae.reconstruct(data).shape == (20, 1, 8, 8)


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool != "impute"])
def test_every_tool_takes_it(tool):
    TOOLS[tool](small(prior="conditional"), bits(24))


def test_what_the_contract_says_of_it():
    found = check_pair(small(prior="conditional"), bits(20))
    assert found
    assert found.tools["fit"].startswith("works, compiled")
    assert all(text.startswith("works") for name, text in found.tools.items() if name != "impute")


@pytest.mark.parametrize("prior", PRIORS)
def test_what_is_saved_opens_as_the_same_numbers(tmp_path, prior):
    vae = small(prior=PRIORS[prior](), transform=Binarize(0, 16), missing="nan")
    data = bits(32)
    data["x"] = 16 * data["x"]
    fit(vae, data, epochs=1, batch_size=16, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert type(opened) is type(vae)
    assert evaluate(opened, data) == evaluate(vae, data)
    given = covariates(5)
    torch.manual_seed(0)
    drawn = vae.sample(5, given=given)
    torch.manual_seed(0)
    assert torch.equal(opened.sample(5, given=given), drawn)


def without(data, name):
    return {key: value for key, value in data.items() if key != name}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small().encode(without(bits(4), "labels")), "the rows come without labels, which this model needs"),
        (lambda: fit(small(), without(bits(4), "age"), epochs=1), "the rows come without age, which this model needs"),
        (lambda: small().sample(3, given={"age": 3.0, "place": torch.zeros(3, 2)}), "rows come without labels"),
        (lambda: small().sample(3, given={**covariates(3), "labels": 3}), "whole numbers from 0 to 2; found 3"),
        (lambda: small().encode({**bits(4), "labels": torch.tensor([0, -1, 7, 1])}), "found -1 and 1 more like it"),
        (lambda: small().encode({**bits(4), "labels": torch.rand(4)}), "labels must be whole numbers from 0 to 2"),
        (
            lambda: small().encode({**bits(4), "age": torch.full((4,), torch.nan)}),
            "age has 4 values that are not finite",
        ),
        (lambda: small().encode({**bits(4), "place": torch.zeros(4)}), r"place has shape \(4,\), expected \(N, 2\)"),
        (
            lambda: small().encode({**bits(4), "labels": torch.zeros(4, 1)}),
            r"labels has shape \(4, 1\), expected \(N,\)",
        ),
        (lambda: small(prior=VampPrior(2, 3)), "takes 'covariates' along with each row"),
        (lambda: small(prior=NormalMixture(4)), "the prior has 4 latents and the encoder 2"),
        (lambda: small(transform=Standardize((6,))), "use transform="),
        (lambda: small(given={}), "covariates need distinct names, found none"),
        (lambda: small(given={"mask": 3}), "a covariate is a keyword argument and cannot be called 'mask'"),
        (lambda: small(given={"labels": 1}), "labels must have at least 2 classes, found 1"),
        (lambda: Covariates([Label("a", 3), Amount("a")]), "covariates need distinct names, found a, a"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_logarithms_still_stand_on_what_standardises_them():
    """The base of what is standardised has logarithms as one of its kinds."""
    x = torch.rand(50, 3).exp()
    np.testing.assert_allclose(Log((3,))(x).numpy(), stats.zscore(x.log().numpy()), atol=1e-4)


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "picture.png", epochs=1)
    assert (tmp_path / "picture.png").stat().st_size > 5_000
