"""The tables of docs/results.md: what is kept is what is shown, and what came out otherwise is told."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged.faults import FAULTS

from pyro_vae.cli.commands import reproduce
from pyro_vae.cli.running import run_command
from pyro_vae.data.dataset import DataSet
from pyro_vae.results import (
    TABLES,
    calibration,
    clusters,
    counts,
    linear,
    parts,
    priors,
    rate_distortion,
    semi_supervised,
    stored,
    time_to_quality,
)
from pyro_vae.results.page import forms, page
from pyro_vae.results.pictures import differences_of
from pyro_vae.results.row import spread, text, with_error
from pyro_vae.results.stored import DOCS, STORED, differences
from pyro_vae.transforms import Binarize

KEPT = json.loads(STORED.read_text())


def test_the_page_is_that_of_what_is_kept():
    assert (DOCS / "results.md").read_text() == page(KEPT)
    assert set(KEPT) <= set(TABLES)


def test_every_table_says_what_it_is_and_has_its_room_on_the_page():
    empty = page({})
    for module in TABLES.values():
        rooms = "\n\n".join(f"*{form.capitalize()}: not run.*" for form in forms(module))
        assert f"## {module.TITLE}\n\n{module.ABOUT}\n\n{rooms}" in empty


def test_errors_and_spreads():
    values = [1.0, 2.0, 6.0]
    found = with_error(torch.tensor(values))
    assert found == {"value": 3.0, "error": pytest.approx(np.std(values, ddof=1) / math.sqrt(3)), "count": 3}
    assert text(found, 2) == "3.00 ± 1.53"
    assert text(spread(values), 1) == "3.0 ± 2.6 (1.0 to 6.0)"
    assert text(-1234.5, 1) == "−1,234.5"
    assert text(with_error([2.0]), 1) == "2.0"


def test_a_number_that_comes_out_otherwise_is_told():
    before = [
        {"": "mean", "nats": 1.0},
        {"": "ours", "nats": {"value": -80.0, "error": 0.1, "count": 100}, "rate": 3.0, "published": None},
    ]
    assert differences(before, before) == []

    def told(**ours):  # rows are told apart by their names, in any order
        return differences(before, [{**before[1], **ours}, before[0]])

    assert told(nats={"value": -80.5, "error": 0.1, "count": 100}, rate=3.2) == []
    assert told(nats={"value": -81.0, "error": 0.1, "count": 100}) == ["ours, nats: -81, was -80"]
    assert told(nats={"value": -80.5, "sd": 0.1, "count": 100}) == ["ours, nats: -80.5, was -80"]
    assert told(rate=3.4) == ["ours, rate: 3.4, was 3"]
    assert told(rate=math.nan) == ["ours, rate: nan, was 3"]
    assert told(nats={"value": math.nan, "error": math.nan, "count": 100}) == ["ours, nats: nan, was -80"]
    assert told(rate=None) == ["ours, rate: not in the new table"]
    assert differences(before, before[:1]) == ["ours: only in the stored table"]
    assert differences(before[:1], before) == ["ours: only in the new table"]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command where a table ``quick`` is the only one; returns its exit status, output and errors."""
    quick = SimpleNamespace(TITLE="Quick", ABOUT="At once.", DIGITS=1, rows=lambda **_: [{"": "ours", "nats": cell}])
    cell = {"value": -80.0, "error": 0.1, "count": 100}
    monkeypatch.setattr("pyro_vae.cli.commands.reproduce.TABLES", {"quick": quick})
    monkeypatch.setattr("pyro_vae.results.page.TABLES", {"quick": quick})

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["reproduce", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            run_command(reproduce.main)
        return end.value.code or 0, *capsys.readouterr()

    command.cell, command.table = cell, quick
    return command


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """The package without a checkout around it, whose stored results are another file."""
    monkeypatch.setattr(reproduce, "DOCS", None)
    monkeypatch.setattr(stored, "DOCS", None)
    monkeypatch.setattr(reproduce, "STORED", tmp_path / "installed" / "results.json")


def test_results_are_stored_with_their_page_and_compared(run, tmp_path):
    file = tmp_path / "new" / "mine.json"
    assert "has no short form of quick" in run("quick", "--results", file, "--check")[2]
    status, out, _ = run("quick", "--results", file)
    assert status == 0
    assert "| ours | −80.0 ± 0.1 |" in out
    assert json.loads(file.read_text())["quick"]["short"]["rows"] == [{"": "ours", "nats": run.cell}]
    assert "| ours | −80.0 ± 0.1 |" in file.with_suffix(".md").read_text()
    assert run("quick", "--results", file, "--check")[0] == 0
    run.cell["value"] = -81.0
    status, _, err = run("quick", "--results", file, "--check")
    assert status == 2
    assert "ours, nats: -81, was -80" in err
    assert json.loads(file.read_text())["quick"]["short"]["rows"][0]["nats"]["value"] == -80.0


def test_a_wrong_file_or_table_is_refused_in_one_sentence(run, tmp_path):
    for arguments, said in (
        (("quick", "--results", tmp_path / "x.md"), "must name a .json file"),
        (("quik",), "did you mean 'quick'"),
        (("quick", "--full", "--check"), "results.json has no full form of quick"),
    ):
        status, _, err = run(*arguments)
        assert (status, err.count("\n")) == (2, 1)
        assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("installed")
def test_outside_a_checkout_nothing_is_written_unless_a_file_is_named(run, tmp_path):
    assert run("quick")[0] == 0
    assert "name a file by --results" in run("page")[2]
    assert list(tmp_path.iterdir()) == []
    assert run("quick", "--results", tmp_path / "mine.json")[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.json", "mine.md"]


@pytest.mark.usefixtures("installed")
def test_outside_a_checkout_tables_of_its_records_say_where_they_are():
    for table, name in ((calibration, "judge.jsonl"), (time_to_quality, "benchmarks")):
        with pytest.raises(ValueError, match=f"counted from docs/{name} of the project.*in a checkout"):
            table.rows(short=True, root=None)


def test_a_table_of_records_has_one_form(run, monkeypatch):
    run.table.FORMS = ("short",)
    status, _, err = run("quick", "--full")
    assert (status, err) == (2, "error: quick is counted from records and has one form: leave out --full\n")
    assert run("all", "--full")[0] == 0  # of the others


def test_a_table_that_cannot_be_computed_does_not_stop_the_others(run, monkeypatch):
    def rows(**_):
        raise ImportError("these counts come with statsmodels: pip install 'pyro-vae[results]'")

    monkeypatch.setattr(reproduce, "TABLES", {"counts": SimpleNamespace(rows=rows), "quick": run.table})
    monkeypatch.setattr(reproduce, "DOCS", None)
    status, out, err = run("all")
    assert status == 2
    assert "| ours | −80.0 ± 0.1 |" in out
    assert err == "error: counts: these counts come with statsmodels: pip install 'pyro-vae[results]'\n"


def test_counts_without_statsmodels_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "statsmodels.datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'pyro-vae\[results\]'"):
        counts.rows(short=True, root=None)


def test_tables_of_records_are_those_of_the_records():
    for name, module in (("calibration", calibration), ("time-to-quality", time_to_quality)):
        assert module.rows(short=True, root=None) == KEPT[name]["short"]["rows"]
    for line in (DOCS / "judge.jsonl").read_text().splitlines():
        kind, name = (record := json.loads(line))["key"].removeprefix("held-out/").split("/")[:2]
        assert record.get("named_by") == (sorted(FAULTS[name].named_by) if kind == "wrong" else None)


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


@pytest.fixture
def small_mnist(monkeypatch):
    """Three hundred of scikit-learn's digits in the place of MNIST; returns them."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[:300].reshape(-1, 8, 8)).float().repeat_interleave(3, 1).repeat_interleave(3, 2)
    x = (torch.nn.functional.pad(x, (2, 2, 2, 2)) * 255 / 16).round()
    y = torch.tensor(labels[:300])
    data = DataSet("mnist", x[:200], x[200:], (0.0, 255.0), y[:200], y[200:])
    fewer = DataSet("mnist", x[:90], x[90:110], (0.0, 255.0), y[:90], y[90:110])  # clusters of a row take many draws
    for module, rows in ((clusters, fewer), (semi_supervised, data)):
        monkeypatch.setattr(module, "load_data", lambda *_, rows=rows: rows)
    return data


@pytest.mark.usefixtures("small_mnist")
def test_the_full_forms_of_labels_and_clusters_train_on_mnist():
    error, alone = semi_supervised.trained_on_mnist(None, seed=0, epochs=20)
    assert error < 0.5  # 0.9 by guessing
    assert alone < 0.5
    middles, members, accuracies = clusters.trained_on_mnist(None, seed=0, epochs=1)
    assert middles.shape == (10, 28, 28)
    assert members.shape == (10, 11, 28, 28)
    assert 0.1 <= accuracies[0] <= 1
    assert accuracies[1] > 0.5  # k-means on pixels


@pytest.mark.parametrize("name", priors.FULL[4:])
def test_the_models_of_full_forms_alone_train_on_mnist(name, small_mnist):
    sizes = {"latent_dim": 5, "epochs": 1, "num_rows": None, "test_rows": 20, "num_particles": 20}
    metrics, evidence = parts.trained(small_mnist, parts.PARTS[name], transform=Binarize(0, 255), **sizes)
    assert evidence.shape == (20,)
    assert -784 * math.log(2) * 1.5 < metrics["elbo"] < metrics["evidence"] < 0


def test_pictures_show_the_numbers_and_are_next_to_the_page(run, tmp_path):
    run.table.PICTURE = differences_of("nats", "to nothing")
    assert run("quick", "--results", tmp_path / "mine.json")[0] == 0
    assert "![Quick](images/results/quick-short.png)" in (tmp_path / "mine.md").read_text()
    assert (tmp_path / "images/results/quick-short.png").stat().st_size > 1000
    axes = run.table.PICTURE([{"": "ours", "nats": run.cell}, {"": "without"}]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours"]
    assert axes.collections[0].get_segments()[0][:, 0] == pytest.approx([-80.2, -79.8])  # two standard errors


def test_rates_have_a_panel_for_each_set_of_data_with_the_closed_form_where_there_is_one():
    linear_panel, digits_panel = rate_distortion.PICTURE(KEPT["rate-distortion"]["short"]["rows"]).axes
    assert [axes.get_title() for axes in (linear_panel, digits_panel)] == ["linear", "digits"]
    first = KEPT["rate-distortion"]["short"]["rows"][0]
    assert linear_panel.lines[0].get_xydata()[0] == pytest.approx(
        [first["rate in theory"], first["distortion in theory"]]
    )
    assert linear_panel.lines[1].get_xydata()[0] == pytest.approx(
        [first[part]["value"] for part in ("rate", "distortion")]
    )
    assert len(digits_panel.lines) == 1
