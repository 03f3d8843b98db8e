"""What notebooks and TensorBoard show."""

import pytest
import torch

from pyro_vae import fit, mlp_vae
from pyro_vae.evaluation import compare, evaluate_suite, log_evidence
from pyro_vae.likelihoods import Normal


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    vae = mlp_vae((3,), latent_dim=2, hidden_dims=(8,), likelihood=Normal())
    return vae, torch.randn(60, 3)


def test_a_model_says_what_it_is_made_of(trained):
    shown = trained[0]._repr_html_()
    for part in ("p(z)", "StandardNormal", "Normal(", "DiagonalNormal", "Identity"):
        assert part in shown


def test_findings_and_sentences_are_escaped_and_whole(trained):
    vae, x = trained
    for found in (log_evidence(vae, x, num_particles=50), compare(vae, vae, x, num_particles=50)):
        assert found._repr_html_() == f"<p>{found}</p>"
    report = evaluate_suite(vae, x, suite="quick", parts=["training"])
    assert report.verdict in report._repr_html_()
    assert report._repr_html_().count("<li>") == len(report.findings)


def test_tensorboard_has_the_history(trained, tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    vae, x = trained
    history = fit(vae, x, epochs=3, progress=False, compile=False, log=tmp_path / "log")
    found = reading.EventAccumulator(str(tmp_path / "log"))
    found.Reload()
    assert {name for name in history if name != "epoch"} == set(found.Tags()["scalars"])
    scalars = found.Scalars("elbo")
    assert [scalar.step for scalar in scalars] == [1, 2, 3]
    assert [scalar.value for scalar in scalars] == pytest.approx(history["elbo"].tolist(), rel=1e-6)


def test_nothing_is_logged_of_a_run_that_is_refused(trained, tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match="NaN"):
        fit(trained[0], torch.full((5, 3), torch.nan), progress=False, log=tmp_path / "log")
    assert list(tmp_path.iterdir()) == []
