"""A class that is known of few rows: sums over it by brute force, and Pyro's TraceEnum_ELBO."""

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from every_tool import TOOLS
from examples import semi_supervised as example
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from scipy import stats
from sklearn.linear_model import LogisticRegression
from test_captured import LIKELIHOODS, NAMES, check, rows_of
from torch.nn import functional as F

from pyro_vae import check_pair, evaluate, fit, load, semi_supervised_vae
from pyro_vae.encodings import beside
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.networks import ConvDecoder, ConvEncoder
from pyro_vae.posteriors import Codes
from pyro_vae.priors import ClassPrior, IndependentCodes, NormalMixture, VampPrior
from pyro_vae.transforms import Binarize, Standardize

LABELS = torch.tensor([0, -1, 2, -1, 1, -1, -1])
TOLD = {"some": LABELS, "all": LABELS.clamp(min=0), "none": torch.full((7,), -1), "not given": None}
NO_ANNEALING = {"ais_bounds", "ais_bounds of simulated rows", "impute"}


def small(**options):
    torch.manual_seed(0)
    return semi_supervised_vae((6,), 2, 3, **{"likelihood": Bernoulli(), "hidden_dims": (8,), **options})


def roughened(vae, size=0.7):
    """Weights that say something, where those of a fresh network say almost nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.copy_(size * torch.randn_like(parameter))
    return vae


def with_labels(x, told="some"):
    return {"x": x} if TOLD[told] is None else {"x": x, "labels": TOLD[told]}


def groups(num=192):
    """Three groups of rows, a third of which have a label."""
    torch.manual_seed(1)
    y = torch.arange(num) % 3
    x = (torch.randn(3, 6)[y] + 0.7 * torch.randn(num, 6) > 0).float()
    return {"x": x, "labels": torch.where(torch.rand(num) < 1 / 3, y, -1)}


def by_class(vae, x, z):
    """Log p(y, x, z) and log q(z | x, y) for each class y at its own z ``(C, N, L)``, ``(C, N)``."""
    y = torch.eye(3)[:, None].expand(3, len(x), 3)
    joint = vae.class_prior().logits[:, None] + vae.prior().log_prob(z) + vae.decoder(beside(z, y)).log_prob(x)
    return joint, vae.encoder(x, y=y).log_prob(z)


# The numbers


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("told", TOLD)
def test_the_elbo_is_the_sum_over_classes_by_brute_force(told):
    vae, x = roughened(small(label_weight=2.0)), torch.randn(7, 6).round().clamp(0, 1)
    draws = vae.draws(vae.prepare(with_labels(x, told)))
    z = draws.latents["z"].detach().reshape(3, 7, 2)
    with torch.no_grad():
        joint, log_q = by_class(vae, x, z)
        q_y = vae.classifier(x)
        free = (q_y.probs.T * (joint - log_q - q_y.logits.T)).sum(0)
        of_class = joint - log_q
        labels = LABELS if TOLD[told] is None else TOLD[told]
        known = torch.zeros(7, dtype=torch.bool) if TOLD[told] is None else labels >= 0
        at_label = of_class.gather(0, labels.clamp(min=0)[None])[0]
        expected = torch.where(known, at_label, free)
        evidence = torch.where(known, at_label, of_class.logsumexp(0))
        auxiliary = torch.where(known, 2.0 * q_y.logits.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    np.testing.assert_allclose(draws.elbo[0].numpy(), expected.numpy(), rtol=1e-12)
    np.testing.assert_allclose(draws.log_weights[0].numpy(), evidence.numpy(), rtol=1e-12)
    found = draws.scaled.auxiliary.get("labels", torch.zeros(1, 7))
    np.testing.assert_allclose(found[0].numpy(), auxiliary.numpy(), rtol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("told", TOLD)
def test_the_elbo_and_its_gradient_are_those_of_trace_enum_elbo(told):
    vae, x = roughened(small(likelihood=Normal(0.5))), torch.randn(7, 6)
    data = with_labels(x, told)
    labels = {name: value for name, value in data.items() if name != "x"}
    parameters = list(vae.parameters())
    torch.manual_seed(1)
    batch = vae.prepare(data)
    structure = vae.structure(batch)
    torch.manual_seed(1)
    ours = run_pair(*vae.programs, batch, structure).elbo.sum()
    torch.manual_seed(1)
    guide = poutine.block(vae.guide, hide=["labels"])  # Pyro's would take away what the guide observes
    theirs = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, guide, x, **labels)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    for here, there in zip(
        *(torch.autograd.grad(value, parameters, allow_unused=True) for value in (ours, theirs)), strict=True
    ):
        assert (here is None) == (there is None)
        if here is not None:
            np.testing.assert_allclose(here.numpy(), there.numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_the_evidence_at_each_label_is_the_models_own_posterior_of_the_class():
    """With an affine decoder x is a mixture of normals, whose responsibilities are written down here."""
    vae = roughened(semi_supervised_vae((3,), 2, 3, likelihood=Normal(0.7), hidden_dims=()), 0.6)
    with torch.no_grad():
        vae.encoder.network.layers[0].weight.mul_(0.1)
        vae.encoder.network.layers[0].bias.copy_(torch.tensor([0.0, 0.0, 1.5, 1.5]))  # wide, so that few draws do
    x = torch.randn(5, 3)
    layer = vae.decoder.network.layers[0]
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    cov = weight[:, :2] @ weight[:, :2].T + 0.49 * np.eye(3)
    joint = np.stack(
        [stats.multivariate_normal(weight[:, 2 + k] + bias, cov).logpdf(x) - math.log(3) for k in range(3)]
    )
    found = [log_evidence(vae, {"x": x, "labels": k}, num_particles=10_000) for k in range(3)]
    for k in range(3):
        assert float(found[k].standard_error.max()) < 0.05
        error = 5 * found[k].standard_error.numpy()
        assert bool((np.abs(found[k].log_evidence.numpy() - joint[k]) < error).all())
    free = log_evidence(vae, x, num_particles=10_000)
    expected = np.logaddexp.reduce(joint, axis=0)
    assert bool((np.abs(free.log_evidence.numpy() - expected) < 5 * free.standard_error.numpy()).all())
    posterior = torch.stack([one.log_evidence for one in found], -1).softmax(-1)
    np.testing.assert_allclose(posterior.numpy(), np.exp(joint - expected).T, atol=0.1)


# The tools


def test_a_label_that_is_given_is_the_class():
    vae = roughened(small())
    x = torch.rand(7, 6).round()
    q_y = vae.encode(with_labels(x), site="y").probs
    known = LABELS >= 0
    assert torch.equal(q_y[known], F.one_hot(LABELS[known], 3).float())
    torch.testing.assert_close(q_y[~known], vae.predict_label(x)[~known])
    torch.testing.assert_close(vae.predict_label(with_labels(x)), vae.predict_label(x))
    drawn = vae.sample(60, given={"labels": torch.arange(60) % 4 - 1}, sites=("y", "x"))["y"].reshape(15, 4)
    assert torch.equal(drawn[:, 1:], torch.arange(3).expand(15, 3))
    assert len(drawn[:, 0].unique()) == 3
    rows = vae.sample(40, sites=("labels", "y"))
    assert torch.equal(rows["labels"], rows["y"])
    assert vae.sample(5, given={"labels": 2}, sites=("y",))["y"].tolist() == [2] * 5


def test_the_class_that_is_asked_for_is_the_one_that_is_drawn():
    vae = roughened(small(likelihood=Normal(0.01)), 1.0).eval()
    given = torch.arange(3).repeat_interleave(200)
    torch.manual_seed(0)
    x = vae.sample(600, given={"labels": given})
    torch.manual_seed(0)
    z = vae.sample(600, given={"labels": given}, sites=("z",))["z"]
    with torch.no_grad():
        mean = vae.decoder(beside(z, F.one_hot(given, 3))).mean
    assert float((x - mean).abs().max()) < 0.06


@pytest.mark.parametrize("tool", [tool for tool in TOOLS if tool not in NO_ANNEALING])
def test_every_tool_takes_it(tool):
    TOOLS[tool](small(), {name: value[:24] for name, value in groups().items()})


def test_what_the_contract_says_of_it():
    found = check_pair(small(), {name: value[:20] for name, value in groups().items()})
    assert found
    assert found.tools["fit"].startswith("works, compiled")
    refused = {name for name, text in found.tools.items() if not text.startswith("works")}
    assert refused <= {"ais_bounds", "impute"}


# Training


def test_training_goes_up_compiled_and_as_programs_alike():
    options = {"epochs": 8, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
    histories = [fit(small(label_weight=3.0), groups(), compile=compile, **options) for compile in (False, True)]
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["elbo"].tolist() == pytest.approx(histories[0]["elbo"].tolist(), rel=1e-4)
    assert histories[0]["elbo"].iloc[-1] > histories[0]["elbo"].iloc[0] + 0.3


def test_what_is_captured_never_touches_the_host():
    check(small, lambda: {name: value[:12] for name, value in groups().items()})


def test_rows_without_labels_make_the_classifier_better():
    """Two bars side by side, whose labels lie at opposite ends: whoever sees those alone cuts straight across."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    x = torch.stack([4 * torch.rand(400) - 2, 0.6 * (1 - 2 * y) + 0.1 * torch.randn(400)], -1)
    labels = torch.full((400,), -1)
    for k, end in ((0, -1.0), (1, 1.0)):
        labels[torch.where(y == k, end * x[:, 0], -math.inf).topk(3).indices] = k
    alone = LogisticRegression().fit(x[labels >= 0], labels[labels >= 0]).score(x, y)
    vae = semi_supervised_vae(
        (2,), 1, 2, likelihood=Normal(0.1), hidden_dims=(16,), label_weight=5.0, activation="Tanh"
    )
    fit(vae, {"x": x, "labels": labels}, epochs=40, batch_size=100, learning_rate=0.02, compile=False, progress=False)
    accuracy = float((vae.predict_label(x).argmax(-1) == y).float().mean())
    assert alone < 0.65
    assert accuracy > 0.98


# What goes with what


@pytest.mark.parametrize("name", NAMES)
def test_it_takes_any_likelihood_and_rows_with_gaps(name):
    case = LIKELIHOODS[name]
    shape = case.events[-1]
    torch.manual_seed(0)

    def build():
        return semi_supervised_vae(shape, 2, 3, likelihood=case.make(), hidden_dims=(6,), missing="nan")

    if "optimal" in name:
        with pytest.raises(ValueError, match="scale='optimal' is computed from residuals"):
            build()
        return
    vae, data = build(), {**rows_of(case, shape, gaps=True), "labels": torch.arange(12) % 4 - 1}
    history = fit(vae, data, epochs=2, compile=False, progress=False)
    assert math.isfinite(history["elbo"].iloc[-1])
    filled = vae.impute(data, 2, num_particles=5)
    seen = ~data["x"].isnan()
    assert torch.equal(filled[:, seen], data["x"][seen].expand(2, -1).to(filled.dtype))


@pytest.mark.usefixtures("float64")
def test_codes_are_summed_over_with_the_class():
    """Two codes of three values: the evidence is the sum over nine codes and three classes."""
    torch.manual_seed(0)
    vae = roughened(
        semi_supervised_vae(
            (6,),
            6,
            3,
            likelihood=Bernoulli(),
            hidden_dims=(8,),
            posterior=Codes(3, "enumerated"),
            prior=IndependentCodes(2, 3),
        )
    )
    x, blocks = torch.randn(7, 6).round().clamp(0, 1), torch.eye(3)
    codes = torch.cat([blocks.repeat_interleave(3, 0), blocks.repeat(3, 1)], -1)[:, None, None]
    with torch.no_grad():
        joint, _ = by_class(vae, x, codes.expand(9, 3, 7, 6))
        at_label = joint.logsumexp(0)
        free = at_label.logsumexp(0)
        at_label = at_label.gather(0, LABELS.clamp(min=0)[None])[0]
    expected = torch.where(LABELS >= 0, at_label, free)
    draws = vae.draws(vae.prepare(with_labels(x)))
    np.testing.assert_allclose(draws.log_weights[0].numpy(), expected.numpy(), rtol=1e-10)


def test_networks_for_images_are_shown_the_class_as_planes():
    torch.manual_seed(0)

    def encoder(i, o):
        return ConvEncoder(i, o, channels=(4,))

    vae = semi_supervised_vae(
        (1, 8, 8),
        2,
        3,
        likelihood=Bernoulli(),
        encoder_network=encoder,
        classifier_network=encoder,
        decoder_network=lambda i, o: ConvDecoder(i, o, channels=(4,)),
    )
    assert (vae.encoder.network.in_shape, vae.classifier.network.in_shape) == ((4, 8, 8), (1, 8, 8))
    data = {"x": torch.rand(20, 1, 8, 8).round(), "labels": torch.arange(20) % 4 - 1}
    fit(vae, data, epochs=1, compile=False, progress=False)
    assert vae.reconstruct(data).shape == (20, 1, 8, 8)


@pytest.mark.parametrize("prior", ["standard", "mixture"])
def test_what_is_saved_opens_as_the_same_numbers(tmp_path, prior):
    options = {"prior": NormalMixture(2, 3)} if prior == "mixture" else {}
    vae = small(transform=Binarize(0, 16), missing="nan", label_weight=4.0, **options)
    data = groups(32)
    data["x"] = 16 * data["x"]
    fit(vae, data, epochs=1, batch_size=16, compile=False, progress=False)
    vae.save(tmp_path / "saved")
    opened = load(tmp_path / "saved")
    assert type(opened) is type(vae)
    assert opened.label_weight == 4.0
    assert evaluate(opened, data) == evaluate(vae, data)
    assert torch.equal(opened.predict_label(data), vae.predict_label(data))
    torch.manual_seed(0)
    drawn = vae.sample(5)
    torch.manual_seed(0)
    assert torch.equal(opened.sample(5), drawn)


def told(values):
    return {"x": torch.zeros(4, 6), "labels": values}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small().encode(told(torch.tensor([0, -1, 3, 1]))), "from 0 to 2, or -1 if a row has none; found 3"),
        (lambda: small().encode(told(torch.tensor([0, -2, 5, 1]))), "found -2 and 1 more like it"),
        (lambda: small().encode(told(torch.tensor([0, math.nan, 1, 1]))), "-1 if a row has none; found nan"),
        (lambda: small().encode(told(torch.zeros(4, 1))), r"labels has shape \(4, 1\), expected \(N,\)"),
        (lambda: small().sample(3, given={"labels": 0.5}), "labels must be whole numbers"),
        (lambda: small(label_weight=-1.0), "label_weight must be a finite number from 0, found -1"),
        (lambda: small(prior=VampPrior(2, 3)), "the encoder takes 'y' along with each row"),
        (lambda: small(prior=NormalMixture(4)), "the prior has 4 latents and the encoder 2"),
        (lambda: small(transform=Standardize((6,))), "use transform="),
        (lambda: semi_supervised_vae((6,), 2, 1, likelihood=Bernoulli()), "num_classes must be at least 2, found 1"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_classes_probabilities_are_equal_or_learned():
    assert ClassPrior(4)().probs.tolist() == [0.25] * 4
    assert [name for name, _ in ClassPrior(4, learned=True).named_parameters()] == ["logits"]
    assert not list(ClassPrior(4).parameters())
    assert isinstance(ClassPrior(3)(), dist.Categorical)


def test_the_example_draws_its_picture(tmp_path):
    example.main(out=tmp_path / "picture.png", epochs=1)
    assert (tmp_path / "picture.png").stat().st_size > 5_000


@pytest.mark.parametrize("told", ["in training", "in validation"])
def test_rows_to_validate_on_may_come_with_other_arguments_than_those_to_train_on(told):
    x = torch.bernoulli(torch.full((40, 6), 0.5))
    labelled = {"x": x[:32], "labels": torch.arange(32) % 4 - 1}
    data, valid = (labelled, x[32:]) if told == "in training" else (x[8:], {n: v[:8] for n, v in labelled.items()})
    vae = small()
    history = fit(vae, data, validation_data=valid, epochs=3, batch_size=8, compile=False, progress=False)
    assert ("auxiliary" in history) == (told == "in training")
    found = history["validation_elbo"][history.attrs["best_epoch"] - 1]
    assert evaluate(vae, valid)["elbo"] == pytest.approx(found, rel=1e-6)
