"""The quick tools on the programs of the zoo, as scripts/programs_table.py tries them: most untrained."""

import itertools

import programs_table
import pytest
import torch
from coverings import covering
from zoo import ZOO
from zoo.checks import Disagreement, agree, below, equal, same_draws
from zoo.program import Program, Programs
from zoo.tools import TOOLS, Trial

from pyro_vae import fit

# What is refused, and by which words. All else works, and agrees with a second way of computing it.
REFUSED = {
    **{(tool, "local autoguide"): "the guide is an AutoNormal" for tool in ("reconstruct", "encode", "evaluate")},
    ("reconstruct", "topic model"): "the Categorical at 'x' has no mean",
}


def features(case):
    """Each tool, each program, and each refusal."""
    return {*case, case if case in REFUSED else case[0]}


CASES = itertools.product(["sample", "reconstruct", "encode", "evaluate"], ZOO)


@pytest.mark.parametrize(("tool", "name"), covering(CASES, features))
def test_agrees_with_a_second_way(tool, name):
    trial = Trial(ZOO[name])
    words = REFUSED.get((tool, name))
    if words is None:
        assert TOOLS[tool](trial)
    else:
        with pytest.raises(ValueError, match=words):
            TOOLS[tool](trial)


KNOWN = [name for name in ZOO if ZOO[name].build().log_evidence and name not in ("vector-quantised", "local autoguide")]
FAR_OFF = (  # guides that miss the posterior until they are trained
    "two-headed",
    "student-t",
    "attention",
    "ProdLDA",
    "linear-gaussian",
    "scaled",
    "subsampled",
    "deep Markov",
)


@pytest.mark.filterwarnings("ignore:the programs cannot run for several draws at once")
@pytest.mark.parametrize("name", KNOWN)
def test_the_evidence_is_the_exact_one(name):
    trial = Trial(ZOO[name])
    if name in FAR_OFF:
        fit(trial.pair, trial.data, epochs=20, batch_size=64, learning_rate=0.02, progress=False)
    assert TOOLS["evidence"](trial)


@pytest.mark.parametrize("name", ["missing entries", "ladder", "hidden Markov", "gamma-Poisson"])
def test_annealing_bounds_the_exact_evidence(name):
    assert TOOLS["annealing"](Trial(ZOO[name]))


@pytest.mark.parametrize("name", ["linear-gaussian", "gaussian mixture", "semi-supervised", "causal", "deep Markov"])
def test_training_takes_the_gradient_of_pyros_objective(name):
    assert "gradient" in TOOLS["fit as programs"](Trial(ZOO[name], epochs=2))


def test_a_wrong_number_is_a_fault(monkeypatch):
    trial = Trial(ZOO["linear-gaussian"])
    sample = trial.pair.sample
    monkeypatch.setattr(trial.pair, "sample", lambda *args, **kwargs: sample(*args, **kwargs) + 1.0)
    cell = programs_table.attempt("sample", trial, {})
    assert cell.kind == "fault"
    assert "mean of x" in cell.text


def test_refusals_are_sentences_of_the_library_and_tracebacks_are_faults():
    def model(x=None, *, batch_size=None):
        raise ValueError("what a program itself raises is no sentence of the library")

    refused = programs_table.attempt("evidence", Trial(ZOO["regression"]), {})
    assert refused.kind == "refuses"
    assert "'sigma'" in refused.text
    trial = Trial(ZOO["linear-gaussian"])
    trial.programs = Programs(model, trial.programs.guide)
    assert programs_table.attempt("sample", trial, {}).kind == "fault"


def test_checks_find_differences():
    draws = torch.randn(1000, 3)
    assert agree("a", 1.0, 1.05, 0.1)
    assert equal("a", 1.0, 1.0)
    assert below("a", 1.0, 1.01, 0.0)
    assert same_draws("a", draws, torch.randn(1000, 3))
    for wrong in (
        lambda: agree("a", 1.0, 2.0, 0.1),
        lambda: agree("a", float("nan"), 2.0, 0.1),
        lambda: equal("a", 1.0, 1.01),
        lambda: equal("a", torch.ones(2), torch.ones(3)),
        lambda: below("a", 1.1, 1.0, 0.001),
        lambda: same_draws("a", draws, torch.randn(1000, 3) + 0.5),
        lambda: same_draws("a", draws, 2 * torch.randn(1000, 3)),
        lambda: same_draws("a", draws, torch.randn(1000, 2)),
    ):
        with pytest.raises(Disagreement):
            wrong()


def test_page():
    trial = Trial(ZOO["linear-gaussian"])
    trial.numbers |= {"pyro": -4.0, "elbo": -4.01, "compiled": 1e-6}
    cells = {
        "linear-gaussian": {
            "sample": programs_table.Cell("works", "mean of x"),
            "NUTS": programs_table.Cell("works"),
            "impute": programs_table.Cell("refuses", "the model takes no 'mask' of 3 entries"),
            "evidence": programs_table.Cell("refuses", "the model takes no 'other' of 5 entries"),
            "encode": programs_table.Cell("fault", "a number"),
        }
    }
    page = programs_table.markdown(
        cells, ["sample", "NUTS", "impute", "evidence", "encode"], {"linear-gaussian": trial}
    )
    assert "| ✓ | · | 1 | 1 | **FAULT** |" in page
    assert "1. The model takes no 'mask' of 3 entries." in page
    assert "-4.010" in page
    assert isinstance(ZOO["linear-gaussian"], Program)
