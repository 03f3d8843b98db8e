"""The whole evaluation in one call: right models are left in peace, wrong ones are named in the first lines."""

import dataclasses
import importlib
import json
import re
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from exact_guides import EXACT, components_alone, conditional, two_levels, two_observed
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair

from pyro_vae import Pair, fit, mlp_vae
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import Finding, Report, Section, evaluate_suite, render_html
from pyro_vae.evaluation.report import guide
from pyro_vae.evaluation.report.job import SIZES
from pyro_vae.evaluation.report.thresholds import LEVELS, THRESHOLDS, as_markdown
from pyro_vae.likelihoods import Bernoulli, Normal


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    """The quick suite with less of what takes longest; the parts are tested elsewhere."""
    quick = SIZES["quick"]
    little = dataclasses.replace(quick, bounds=(4, 2, 10), gaps=(6, 20), simulations=(200, 49))
    monkeypatch.setitem(SIZES, "quick", little)


CHECKS = ["summary", "prior_predictive", "posterior_predictive"]
LEAST = {  # where nothing is said of what is found
    "evidence_rows": 20,
    "particles": 100,
    "guide_rows": 20,
    "bounds": (2, 2, 2),
    "modes": (2, 4),
    "gaps": (2, 2),
    "simulations": (20, 9),
    "at_rows": (20, 1),
    "coverage_rows": 20,
    "replications": 20,
    "sample_rows": 100,
}


def text_of(page):
    """What a reader sees, line by line."""
    body = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    return [line for line in (unescape(re.sub("<[^>]+>", " ", line)).strip() for line in body.splitlines()) if line]


@pytest.fixture(scope="module")
def bits():
    """The digits as bits, black or white."""
    data = load_data("digits")
    return (data.x_train > 7).float(), (data.x_test > 7).float(), data.y_train


def test_a_model_that_is_right_is_fine():
    lg = LinearGaussian()
    x = lg.draw(800)
    report = evaluate_suite(lg.exact_pair(), x)
    assert {finding.level for finding in report.findings} == {"fine"}
    assert report.verdict.startswith("Nothing is wrong, 0 to look at")
    numbers = report.to_json()
    assert numbers["prior_predictive"]["joint_p_value"] >= 0.01
    assert numbers["calibration"]["p_value"] >= 0.01
    assert numbers["bounds"]["simulated_upper"] == pytest.approx(numbers["bounds"]["simulated_lower"], abs=1e-3)
    assert report.sections["nuts"].about.startswith("Not done: it takes up to minutes")
    assert numbers["evidence"]["gap"] == pytest.approx(0, abs=1e-4)
    chosen = torch.randperm(800, generator=torch.Generator().manual_seed(0))[:200]
    assert numbers["evidence"]["log_evidence"] == pytest.approx(float(lg.log_evidence(x[chosen]).mean()), abs=1e-4)


def test_a_normal_with_fixed_scale_on_bits_is_named_in_the_first_lines(bits):
    x_train, x_test, labels = bits
    vae = mlp_vae((8, 8), 4, hidden_dims=(32,), likelihood=Normal(scale=1.0))
    fit(vae, x_train, epochs=4, progress=False)
    report = evaluate_suite(vae, x_test, train=(x_train, labels), parts=[*CHECKS, "samples"])
    first = text_of(render_html(report, "digits"))[:7]
    assert re.search(r"[2-9] things are wrong", first[2])
    told = " ".join(first[3:])
    assert "✗ wrong" in told
    assert "Data drawn from the model are unlike the data" in told
    assert "Even from the latents of each row, the model draws data unlike the data" in told
    shares = re.findall(r"share at one value\[\d\] is ([\d.]+) in the data and ([\d.]+) in its draws", told)
    assert float(shares[0][0]) > 0.1
    assert float(shares[0][1]) == 0.0
    assert report.to_json()["findings"][0]["level"] == "wrong"
    assert report.to_json()["samples"]["classifier_accuracy"] > 0.8


def test_a_guide_with_collapsed_scale_is_named_in_the_first_lines(bits, monkeypatch):
    monkeypatch.setitem(SIZES, "quick", dataclasses.replace(SIZES["quick"], gaps=(6, 200)))
    x_train, x_test, _ = bits
    vae = mlp_vae((8, 8), 4, hidden_dims=(32,), likelihood=Bernoulli())
    fit(vae, x_train, epochs=60, progress=False)

    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = vae.encoder

        def forward(self, x):
            q_z = self.encoder(x)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", pyro.distributions.Normal(q_z.mean, 0.02 * q_z.stddev).to_event(1))

    sound, collapsed = (
        evaluate_suite(Pair(vae.model, guide), x_test, parts=["guide", "gaps", "calibration", *CHECKS])
        for guide in (vae.guide, Narrow())
    )
    for part in ("guide", "gaps", "calibration"):
        assert not any(finding.level == "wrong" for finding in sound.sections[part].findings)
    first = " ".join(text_of(render_html(collapsed, "digits"))[:6])
    assert re.search(r"wrong\s+The guide is far from the best of its family", first)
    assert re.search(r"wrong\s+On data drawn from the model, the guide is not calibrated", first)
    assert collapsed.sections["calibration"].numbers["largest_spread"] > 1.5
    assert collapsed.sections["guide"].numbers["share_above_threshold"] > 0.9
    assert collapsed.sections["guide"].findings[0].level == "look"


@pytest.mark.parametrize(
    ("width", "shift", "level"), [(1, 0, "fine"), (0.5, 0, "wrong"), (2, 0, "wrong"), (1, 1, "wrong")]
)
def test_a_guide_of_another_width_or_place_is_wrong(width, shift, level):
    """Every latent's draws are too close together, too far apart, or off by their own width."""
    lg = LinearGaussian()

    def guide(x):
        q_z = lg.posterior(x)
        scale = torch.linalg.cholesky(q_z.covariance_matrix)
        loc = q_z.mean + shift * q_z.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro.distributions.MultivariateNormal(loc, scale_tril=width * scale))

    report = evaluate_suite(Pair(lg.vae.model, guide), lg.draw(50), parts=["calibration"])
    assert [finding.level for finding in report.findings] == [level]


def test_latents_that_say_nothing_are_named():
    x = torch.randn(300, 3)
    vae = mlp_vae((3,), 2, likelihood=Normal(scale=1.0))
    for p in (*vae.encoder.parameters(), *vae.decoder.network.parameters()):
        torch.nn.init.zeros_(p)
    report = evaluate_suite(vae, x, parts=["summary"])
    assert report.findings[0].text.startswith("The latents say nothing about the rows: at least 0.00 nats")
    assert report.findings[0].name == "information"


def test_parts_that_do_not_apply_say_so():
    x = torch.randn(200, 3)
    x[0, 0] = torch.nan
    vae = mlp_vae((3,), 1, likelihood=Normal(), missing="nan")
    report = evaluate_suite(vae, x, parts=["summary", "samples"])
    assert report.sections["samples"].about.startswith("Not done: distances between rows need every entry")
    assert report.sections["summary"].numbers["num_rows"] == 200
    assert "Not done" in render_html(report)


@pytest.mark.parametrize("make_pair", [function_pair, discrete_pair])
def test_any_pair_is_evaluated(make_pair):
    state = torch.get_rng_state()
    report = evaluate_suite(make_pair(), torch.linspace(-2, 2, 60))
    assert torch.equal(torch.get_rng_state(), state)
    assert json.dumps(report.to_json(), allow_nan=False)
    assert "prior_predictive" in report.to_json()
    if make_pair is function_pair:
        assert report.sections["evidence"].about.startswith("Not done: the latent 'mean' lies outside the plate")
    else:
        assert report.sections["evidence"].numbers["num_rows"] == 60


def test_keyword_arguments_go_with_their_rows():
    """More rows than the quick suite looks at, each with its own mean."""
    shift = 10.0 * (torch.arange(1500) % 2)

    def model(x=None, *, shift, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(shift, 1.0))
            return pyro.sample("x", pyro.distributions.Normal(z, 1.0), obs=x)

    def guide(x, *, shift):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro.distributions.Normal((x + shift) / 2, 0.5**0.5))

    x = shift + 2**0.5 * torch.randn(1500)
    report = evaluate_suite(Pair(model, guide), {"x": x, "shift": shift}, parts=["evidence", "calibration", *CHECKS])
    assert report.sections["calibration"].numbers["p_value"] >= 0.01
    assert report.sections["prior_predictive"].numbers["joint_p_value"] >= 0.01
    assert report.sections["prior_predictive"].numbers["num_rows"] == 1000


def test_nuts_is_compared_with_the_guide(monkeypatch):
    monkeypatch.setitem(SIZES, "full", dataclasses.replace(SIZES["full"], nuts=(1, 50)))
    lg = LinearGaussian(latent_dim=1)

    def narrow(x):
        with pyro.plate("data", len(x), dim=-1):
            q_z = lg.posterior(x)
            pyro.sample("z", pyro.distributions.Normal(q_z.mean, 0.3 * q_z.stddev).to_event(1))

    for pair, level, ratio in ((lg.exact_pair(), "fine", 1.0), (Pair(lg.vae.model, narrow), "wrong", 0.3)):
        section = evaluate_suite(pair, lg.draw(20), suite="full", parts=["nuts"]).sections["nuts"]
        assert section.findings[-1].level == level
        found = section.numbers["rows"]["row 0"]["guide's sd over posterior's"]
        assert found == pytest.approx(ratio, rel=0.25)


def test_nuts_takes_every_continuous_latent(monkeypatch):
    """Two latents, neither called z; the guide's width at b alone is a third of what it should be."""
    monkeypatch.setitem(SIZES, "full", dataclasses.replace(SIZES["full"], nuts=(1, 100)))
    exact = two_levels(20)

    def narrow(x):
        with pyro.plate("data", len(x), dim=-1):
            sd = (1.64 * 0.25 / 1.89) ** 0.5
            b = pyro.sample("b", pyro.distributions.Normal(x * 1.64 / 1.89, sd / 3).to_event(1))
            pyro.sample("a", pyro.distributions.Normal(b / 1.64, (0.64 / 1.64) ** 0.5).to_event(1))

    section = evaluate_suite(Pair(exact.pair.model, narrow), exact.data, suite="full", parts=["nuts"]).sections["nuts"]
    ratios = {name: record["guide's sd over posterior's"] for name, record in section.numbers["rows"].items()}
    assert ratios["row 0, b"] == pytest.approx(1 / 3, rel=0.2)
    # Given b, a has variance 0.64 / 1.64; b adds its own, over 1.64².
    of_b = 1.64 * 0.25 / 1.89 / 1.64**2
    expected = ((0.64 / 1.64 + of_b / 9) / (0.64 / 1.64 + of_b)) ** 0.5
    assert ratios["row 0, a"] == pytest.approx(expected, rel=0.15)
    assert section.findings[-1].level == "wrong"


_FINE = ["summary", "evidence", "guide", "calibration", "coverage", "prior_predictive", "posterior_predictive"]


@pytest.mark.parametrize("make", EXACT, ids=lambda make: make.__name__)
def test_programs_that_are_not_ours_with_their_exact_posterior_are_fine(make):
    exact = make(200)
    report = evaluate_suite(exact.pair, exact.data, parts=_FINE)
    assert json.dumps(report.to_json(), allow_nan=False)
    assert "wrong" not in {finding.level for finding in report.findings}
    assert sum(finding.level == "look" for finding in report.findings) <= 1  # one in a hundred p-values is below 0.01
    done = {name for name, section in report.sections.items() if not section.about.startswith("Not done")}
    if make.__name__ == "shared_mean":
        assert done == {"summary", "prior_predictive", "posterior_predictive"}
        for name in ("evidence", "calibration", "coverage"):
            assert report.sections[name].about.startswith("Not done: the latent 'mean' lies outside the plate 'data'")
    else:
        assert done == set(_FINE)
        numbers = report.sections["evidence"].numbers
        assert numbers["log_evidence"] == pytest.approx(float(exact.log_evidence.mean()), abs=1e-4)
        assert numbers["gap"] == pytest.approx(0, abs=1e-4)
        assert ("bits_per_dim" in numbers) == ("bits_per_dim" in report.sections["summary"].numbers)
    assert "Not done" in render_html(report) or done == set(_FINE)


@pytest.mark.parametrize(("missing", "kind"), [(None, "prior"), ("nan", "posterior")])
def test_intervals_are_given_the_rest_of_a_row_only_where_the_encoder_knows_gaps(missing, kind):
    """An encoder that was shown whole rows alone makes something else of one with an entry hidden."""
    vae = mlp_vae((3,), latent_dim=1, hidden_dims=(), likelihood=Normal(scale=1.0), missing=missing)
    section = evaluate_suite(vae, torch.randn(100, 3), parts=["coverage"]).sections["coverage"]
    assert section.numbers["kind"] == kind


def test_what_is_absent_is_left_out_and_said():
    exact = components_alone(100)
    section = evaluate_suite(exact.pair, exact.data, parts=["summary"]).sections["summary"]
    assert section.findings == []
    assert "The information in the latents is not estimated" in section.about
    exact = two_observed(100)
    section = evaluate_suite(exact.pair, exact.data, parts=["summary"]).sections["summary"]
    assert "bits_per_dim" not in section.tables[""].index


def test_rows_that_come_sorted_are_judged_as_others_are():
    """Both halves of sorted rows are strangers to one another, and a model of something else is not fine for that."""
    x = torch.cat([torch.randn(150, 2) - 20, torch.randn(150, 2) + 20])
    lg = LinearGaussian(data_dim=2)
    found = evaluate_suite(lg.exact_pair(), x, parts=["samples"]).sections["samples"]
    assert found.findings[0].level == "wrong"
    assert found.numbers["real rows"]["coverage"] > 0.9


def test_latents_of_any_kind_and_scale_are_in_use():
    """A categorical latent, one of a narrow prior, and one that is symmetric about 0 whatever the row."""

    def judged(prior, likelihood, guide, x):
        def model(x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                return pyro.sample("x", likelihood(pyro.sample("z", prior)), obs=x)

        def program(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", guide(x))

        (finding,) = evaluate_suite(Pair(model, program), x, parts=["summary"]).findings
        return finding.level

    dist = pyro.distributions
    x = torch.cat([torch.randn(100) - 5, torch.randn(100) + 5])
    centres = torch.tensor([-5.0, 5.0])
    classes = lambda x: dist.Categorical(logits=-0.5 * (x[:, None] - centres) ** 2)  # noqa: E731
    assert judged(dist.Categorical(torch.ones(2)), lambda z: dist.Normal(centres[z], 1.0), classes, x) == "fine"
    narrow = lambda x: dist.Normal(x * 0.01 / 2, 0.01 / 2**0.5)  # noqa: E731
    x = 2**0.5 * torch.randn(200)
    prior = dist.Normal(torch.zeros(()), 0.01)
    assert judged(prior, lambda z: dist.Normal(100 * z, 1.0), narrow, x) == "fine"

    def both(x):
        loc = torch.stack([-x.abs().sqrt(), x.abs().sqrt()], 1)
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(loc, 0.1))

    x = torch.randn(200) ** 2
    assert judged(dist.Normal(torch.zeros(()), 1.0), lambda z: dist.Normal(z**2, 0.1), both, x) == "fine"
    nothing = lambda x: dist.Normal(torch.zeros(len(x)), 1.0)  # noqa: E731
    assert judged(dist.Normal(torch.zeros(()), 1.0), lambda z: dist.Normal(z, 0.1), nothing, x) == "wrong"


def test_a_missing_mode_is_wrong_and_its_evidence_is_not_fine():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", pyro.distributions.Normal(z**2, 0.1), obs=x)

    def guide(x):
        root = x.clamp_min(0.01).sqrt()
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", pyro.distributions.Normal(root, 0.05 / root))

    x = 0.5 + torch.rand(60)
    report = evaluate_suite(Pair(model, guide), x, parts=["evidence", "modes"])
    assert report.findings[0].name == "modes"
    assert report.findings[0].level == "wrong"
    assert report.sections["modes"].numbers["gain"] == pytest.approx(0.693, abs=0.05)
    settled = next(finding for finding in report.findings if finding.name == "evidence_step")
    assert settled.level == "look"
    assert "on 12 rows, chains that start elsewhere find 0." in settled.text
    gap = next(finding for finding in report.findings if finding.name == "elbo_gap")
    assert gap.numbers["gap"] == pytest.approx(report.sections["evidence"].numbers["gap"] + 0.693, abs=0.05)
    assert "at least" in gap.text
    assert "below the evidence, and chains that start elsewhere find 0." in gap.text


def test_one_row_is_not_judged():
    exact = LinearGaussian()
    with pytest.raises(ValueError, match=r"a report needs at least 2 rows, .*; found 1$"):
        evaluate_suite(exact.exact_pair(), exact.draw(1))


def test_curves_say_where_training_was_best_and_how_far_it_still_rose():
    exact = LinearGaussian()
    x = exact.draw(30)
    said = evaluate_suite(exact.exact_pair(), x, parts=["curves"]).sections["curves"].about
    assert said == "Not done: the history of its training was not given: history=fit(...)."
    bound = np.append(-40.0 + np.arange(19.0), -30.0)  # highest at 19; −23.5 in the last tenth but one, −26 in the last
    history = pd.DataFrame({"epoch": np.arange(1, 21), "elbo": bound + 5, "reconstruction": bound + 9, "kl": 4.0})
    history = history.assign(validation_elbo=bound)
    settings = {"epochs": 20, "likelihood": "normal"}
    report = evaluate_suite(exact.exact_pair(), x, parts=["curves"], history=history, settings=settings)
    section = report.sections["curves"]
    assert section.numbers == {"epochs": 20, "best_epoch": 19, "best": -22.0, "rise": -2.5, "fall": 4.0}
    assert section.about.startswith("The validation ELBO was highest after epoch 19 of 20: -22.00 nats.")
    assert len(section.figures) == 1
    (finding,) = section.findings
    assert (finding.name, finding.level) == ("fall", "look")
    assert "fell by 4.00 nats after epoch 19, whose weights were kept" in finding.text
    level = history.assign(validation_elbo=np.append(bound[:18], [-22.0, -22.5]))
    (finding,) = evaluate_suite(exact.exact_pair(), x, parts=["curves"], history=level).sections["curves"].findings
    assert (finding.name, finding.level) == ("rise", "look")
    alone = history.drop(columns="validation_elbo").assign(elbo=bound)  # training rows alone tell nothing of the kind
    (finding,) = evaluate_suite(exact.exact_pair(), x, parts=["curves"], history=alone).sections["curves"].findings
    assert finding.level == "fine"
    assert "was no longer rising when training ended: it fell by 2.50 nats" in finding.text
    rising = evaluate_suite(exact.exact_pair(), x, parts=["curves"], history=history[:18]).sections["curves"]
    assert [finding.level for finding in rising.findings] == ["look"]
    assert "was still rising when training ended: it rose by 1.00 nats" in rising.findings[0].text
    assert report.facts["trained with"] == "epochs 20, likelihood normal"
    section = evaluate_suite(exact.exact_pair(), x, parts=["curves"], history=history[["epoch"]]).sections["curves"]
    assert section.about.startswith("Not done: a history has a row for each epoch")


def test_training_rows_show_what_was_learned_by_heart():
    lg = LinearGaussian(data_dim=5)
    x, train = lg.draw(300), lg.draw(600)
    section = evaluate_suite(lg.exact_pair(), x, parts=["training"]).sections["training"]
    assert section.about.startswith("Not done: the training rows are needed to see whether")

    def levels(pair, x, train):
        return {f.name: f.level for f in evaluate_suite(pair, x, train=train, parts=["training"]).findings}

    assert levels(lg.exact_pair(), x, train) == {"overfitting": "fine", "copies": "fine", "leaks": "fine"}
    known = torch.cat([x[:150], train[:450]])
    assert levels(lg.exact_pair(), x, known)["leaks"] == "wrong"

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", pyro.distributions.Categorical(torch.ones(len(train))))
            return pyro.sample("x", pyro.distributions.Normal(train[z], 0.02).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            nearest = torch.cdist(x, train).square()
            pyro.sample("z", pyro.distributions.Categorical(logits=-nearest / 0.0008))

    assert levels(Pair(model, guide), x, train) == {"overfitting": "wrong", "copies": "wrong", "leaks": "fine"}


def test_samples_are_drawn_under_the_conditions_of_the_rows():
    exact = conditional(400)
    section = evaluate_suite(exact.pair, exact.data, parts=["samples"]).sections["samples"]
    assert section.findings, section.about
    assert section.findings[0].level == "fine"
    assert section.numbers["samples"]["coverage"] > 0.8
    exact = two_observed(300)
    section = evaluate_suite(exact.pair, exact.data, parts=["samples"]).sections["samples"]
    assert section.findings[0].level == "fine", section.about


def test_a_part_that_fails_leaves_the_others():
    exact = two_levels(60)

    def model(x=None, *, batch_size=None):
        if x is None and batch_size != 1:
            raise RuntimeError("no rows\ntoday")
        return exact.pair.model(x, batch_size=batch_size)

    report = evaluate_suite(Pair(model, exact.pair.guide), exact.data, parts=["summary", "prior_predictive"])
    about = report.sections["prior_predictive"].about
    assert about.startswith("Not done: the model does not run without data")
    assert "RuntimeError: no rows" in about
    assert "elbo" in report.sections["summary"].numbers


@pytest.mark.parametrize(
    ("name", "numbers", "level"),
    [
        ("information", {"nats": 0.004, "moved": 0.01}, "wrong"),
        ("information", {"nats": 0.04, "moved": 0.01}, "look"),
        ("information", {"nats": 0.001, "moved": 0.06}, "look"),
        ("information", {"nats": 0.11, "moved": 0.01}, "fine"),
        ("modes", {"gain": 0.05, "error": 0.001, "missed": 0.05}, "fine"),
        ("modes", {"gain": 0.2, "error": 0.01, "missed": 0.18}, "look"),
        ("modes", {"gain": 0.69, "error": 0.01, "missed": 0.5}, "wrong"),
        ("modes", {"gain": 0.69, "error": 0.3, "missed": 0.5}, "fine"),
        ("modes", {"gain": -0.4, "error": 0.1, "missed": 0.0}, "wrong"),
        ("overfitting", {"gap": 2.0, "error": 0.5, "rate": 8.0}, "look"),
        ("overfitting", {"gap": 5.0, "error": 0.5, "rate": 8.0}, "wrong"),
        ("overfitting", {"gap": 5.0, "error": 2.0, "rate": 8.0}, "fine"),
        ("rise", {"rise": 0.11, "rate": 1.0}, "look"),
        ("rise", {"rise": 1.1, "rate": 30.0}, "fine"),
        ("fall", {"fall": 0.9, "rate": 1.0}, "fine"),
        ("fall", {"fall": 1.1, "rate": 1.0}, "look"),
        ("fall", {"fall": 1.1, "rate": 30.0}, "fine"),
        ("copies", {"nearer": 0.59, "error": 0.01}, "fine"),
        ("copies", {"nearer": 0.7, "error": 0.01}, "look"),
        ("copies", {"nearer": 0.8, "error": 0.01}, "wrong"),
        ("leaks", {"leaked": 0.5, "twins": 0.5, "num_rows": 100}, "fine"),
        ("leaks", {"leaked": 0.04, "twins": 0.0, "num_rows": 1000}, "look"),
        ("leaks", {"leaked": 0.3, "twins": 0.0, "num_rows": 100}, "wrong"),
        ("samples", {"reached": 0.0, "possible": 0.0}, "look"),
        ("evidence_step", {"step": 1.01}, "look"),
        ("bounds", {"gap": 1.1}, "look"),
        ("bounds", {"gap": -1.1}, "wrong"),
        ("elbo_gap", {"gap": 3.0, "rate": 7.0}, "fine"),
        ("elbo_gap", {"gap": 3.0, "rate": 5.0}, "look"),
        ("elbo_gap", {"gap": 0.9, "rate": 0.1}, "fine"),
        ("amortisation", {"gap": 0.4, "rate": 0.1}, "fine"),
        ("amortisation", {"gap": 3.0, "rate": 7.0}, "look"),
        ("amortisation", {"gap": 4.0, "rate": 7.0}, "wrong"),
        ("k_hat", {"flagged": 0.11}, "look"),
        ("nuts_scale", {"ratio": 0.79}, "look"),
        ("nuts_scale", {"ratio": 0.49}, "wrong"),
        ("nuts_settled", {"largest": 1.0, "divergences": 1}, "look"),
        ("calibration", {"p_value": 0.011, "largest": 2.0, "smallest": 0.1, "off": 0.5, "beyond": 0.5}, "fine"),
        ("calibration", {"p_value": 0.009, "largest": 1.24, "smallest": 0.81, "off": 0.19, "beyond": 0.09}, "look"),
        ("calibration", {"p_value": 0.009, "largest": 1.0, "smallest": 0.8, "off": 0.0, "beyond": 0.0}, "wrong"),
        ("calibration", {"p_value": 0.009, "largest": 1.0, "smallest": 1.0, "off": 0.0, "beyond": 0.1}, "wrong"),
        ("coverage", {"p_value": 0.009, "distance": 0.1}, "look"),
        ("coverage", {"p_value": 0.009, "distance": 0.11}, "wrong"),
        ("checks", {"p_value": 0.009, "share": 0.26}, "wrong"),
        ("checks", {"p_value": 0.011, "share": 0.26}, "fine"),
        ("samples", {"reached": 0.39, "possible": 0.5}, "look"),
        ("samples", {"reached": 0.24, "possible": 0.5}, "wrong"),
    ],
)
def test_thresholds_are_what_the_table_says(name, numbers, level):
    assert THRESHOLDS[name].level(**numbers) == level
    assert THRESHOLDS[name].in_words(level)


def test_the_documentation_has_the_table_of_thresholds():
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
    assert as_markdown() in text
    for threshold in THRESHOLDS.values():
        for value in threshold.limits.values():
            said = " ".join(threshold.in_words(level) for level in LEVELS)
            assert f"{value:g}" in said or f"{value:.0%}" in said


def test_the_verdict_counts_and_puts_what_is_wrong_first():
    section = Section("One", findings=[Finding("fine", "a"), Finding("wrong", "<b>"), Finding("look", "c")])
    report = Report("quick", {"one": section, "two": Section("Two", about="Not done: d.")})
    assert [finding.text for finding in report.findings] == ["<b>", "c", "a"]
    assert report.verdict == "1 thing is wrong, 1 to look at, 1 fine."
    assert str(report).splitlines()[1] == "wrong <b>"
    page = render_html(report, "A & B")
    assert "&lt;b&gt;" in page
    assert "A &amp; B" in page
    assert page.index("&lt;b&gt;") < page.index("<h2 ")


def test_there_are_two_suites():
    with pytest.raises(ValueError, match="unknown suite 'quik': did you mean 'quick'"):
        evaluate_suite(LinearGaussian().vae, torch.zeros(3, 5), suite="quik")
    with pytest.raises(ValueError, match="unknown part 'sample': did you mean 'samples'"):
        evaluate_suite(LinearGaussian().vae, torch.zeros(3, 5), parts=["sample"])


def test_the_script_writes_numbers_and_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "quick", dataclasses.replace(SIZES["quick"], **LEAST))
    data = load_data("digits")
    vae = mlp_vae((8, 8), 2, hidden_dims=(16,), likelihood=Normal(scale=1.0))
    vae.save(tmp_path / "run", run={"data": "digits"})
    out = tmp_path / "out" / "m.json"
    for extra, status in (
        (["--suite", "all"], 2),
        (["--parts", "summary"], 2),
        (["--suite", "quick", "--parts", "summary, sample"], 2),
        (["--suite", "quick", "--parts", "summary,guide"], 0),
        (["--suite", "quick"], 0),
    ):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path / "run"), "--out", str(out), *extra])
        with pytest.raises(SystemExit) as end:
            run_command(importlib.import_module("evaluate").main)
        assert (end.value.code or 0) == status
        assert out.exists() == (status == 0)
        if "summary,guide" in extra:
            assert "guide" in json.loads(out.read_text())
            assert "evidence" not in json.loads(out.read_text())
    metrics = json.loads(out.read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    assert metrics["elbo"] == metrics["summary"]["elbo"]
    assert metrics["num_rows"] == len(data.x_test)
    assert metrics["verdict"] in text_of(page)[2]
    assert page.count("data:image/png;base64,") >= 3
    assert "src=" not in page.replace('src="data:', "")
    printed = capsys.readouterr()
    assert metrics["verdict"] in printed.out
    assert "unknown suite 'all'" in printed.err
    assert "unknown part 'sample'" in printed.err
    assert "add --suite quick" in printed.err


@pytest.mark.parametrize("name", ["history.csv", "run.toml"])
def test_a_damaged_file_of_a_run_is_named(name, tmp_path, monkeypatch, capsys):
    vae = mlp_vae((8, 8), 2, hidden_dims=(4,), likelihood=Normal(scale=1.0))
    vae.save(tmp_path / "run", run={"data": "digits"})
    (tmp_path / "run" / name).write_bytes(b'"\xff')
    out = tmp_path / "m.json"
    command = ["evaluate.py", str(tmp_path / "run"), "--suite", "quick", "--parts", "curves", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as end:
        run_command(importlib.import_module("evaluate").main)
    assert end.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert name in errors[0]
    assert not out.exists()


@pytest.mark.parametrize(
    ("gain", "error", "missed", "level", "words"),
    [
        (0.0, 0.1, 0.0, "fine", "misses next to nothing"),
        (1.05, 0.42, 0.58, "fine", "cannot be told from chance"),
        (0.2, 0.01, 0.15, "look", "misses some"),
        (0.69, 0.01, 0.5, "wrong", "misses much"),
    ],
)
def test_the_words_about_modes_are_those_of_the_numbers(gain, error, missed, level, words):
    found = SimpleNamespace(
        gain=torch.tensor([gain]), missed=torch.tensor([missed]), standard_error=torch.tensor([error])
    )
    section = Section("")
    guide.modes(SimpleNamespace(modes=found, size=SimpleNamespace(modes=(1, 16))), section)
    assert section.findings[0].level == level
    assert words in section.findings[0].text
