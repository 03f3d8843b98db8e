"""The tables of docs/results.md: what is kept is what is shown, and what came out otherwise is told."""

import json
import math

import numpy as np
import pytest
import reproduce
import torch
from tables import TABLES, linear, rate_distortion
from tables.row import spread, text, with_error

KEPT = json.loads(reproduce.RESULTS.read_text())


def test_the_page_is_that_of_what_is_kept():
    assert reproduce.RESULTS.with_suffix(".md").read_text() == reproduce.page(KEPT)
    assert set(KEPT) <= set(TABLES)


def test_every_table_says_what_it_is_and_has_its_room_on_the_page():
    page = reproduce.page({})
    for module in TABLES.values():
        assert f"## {module.TITLE}\n\n{module.ABOUT}\n\n*Short: not run.*\n\n*Full: not run.*" in page


def test_errors_and_spreads():
    values = [1.0, 2.0, 6.0]
    found = with_error(torch.tensor(values))
    assert found == {"value": 3.0, "error": pytest.approx(np.std(values, ddof=1) / math.sqrt(3)), "count": 3}
    assert text(found, 2) == "3.00 ± 1.53"
    assert text(spread(values), 1) == "3.0 ± 2.6 (1.0 to 6.0)"
    assert text(-1234.5, 1) == "−1,234.5"
    assert text(with_error([2.0]), 1) == "2.0"


def test_a_number_that_comes_out_otherwise_is_told():
    before = [{"": "ours", "nats": {"value": -80.0, "error": 0.1, "count": 100}, "rate": 3.0}]
    near = [{"": "ours", "nats": {"value": -80.5, "error": 0.1, "count": 100}, "rate": 9.0}]
    far = [{"": "ours", "nats": {"value": -81.0, "error": 0.1, "count": 100}}]
    assert reproduce.differences(before, near) == []
    assert reproduce.differences(before, far) == ["ours, nats: -81, was -80"]


def test_the_evidence_of_the_best_linear_model_is_scikit_learns():
    from sklearn.decomposition import PCA

    x = torch.randn(40, 5).double() * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.3])
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    log_det = values[:2].log().sum() + 3 * values[2:].mean().log()
    exact = -0.5 * float(log_det + 5 * (1 + math.log(2 * math.pi)))
    assert PCA(2).fit(x.numpy()).score(x.numpy()) + linear.scikit_learn_gap(x) == pytest.approx(exact, abs=1e-9)


def test_means_of_missing_entries_are_those_of_the_conditional_normal():
    covariance = torch.tensor([[2.0, 0.6], [0.6, 1.0]]).double()
    x = torch.tensor([[torch.nan, 1.5], [0.5, torch.nan]]).double()
    filled = linear.conditional_means(x, torch.tensor([1.0, 1.0]).double(), covariance)
    assert filled[0, 0] == pytest.approx(1 + 0.6 / 1.0 * 0.5)
    assert filled[1, 1] == pytest.approx(1 - 0.6 / 2.0 * 0.5)


def test_nothing_of_a_direction_that_drowns_is_told():
    assert rate_distortion.water_filling([1.0, 0.5], 0.5, 8.0)[0] == 0.0
    rate, distortion = rate_distortion.water_filling([4.0], 1.0, 1.0)
    assert rate == pytest.approx(math.log(2))
    assert distortion == pytest.approx(0.5 + 0.5 * math.log(2 * math.pi))
