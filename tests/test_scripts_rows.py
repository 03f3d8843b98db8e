"""What is written of rows, one by one: their latents, their evidence and what in them is out of place."""

import contextlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae import load
from pyro_vae.cli.commands import encode, evaluate, predict, sample, score, train
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import log_evidence, unexpectedness


def command(script, run, out, *arguments):
    """Runs a script as from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [script.__name__, str(run), "--out", str(out), *map(str, arguments)])
        try:
            run_command(script.main)
        except SystemExit as ended:
            return ended.code
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run on a table whose rows have names, and one on digits."""
    folder = tmp_path_factory.mktemp("rows")
    rng = np.random.default_rng(0)
    height = rng.normal(170, 10, 300).round(1)
    table = pd.DataFrame(
        {
            "id": [f"p{i:03}" for i in rng.permutation(300)],
            "height": height,
            "weight": (height - 100 + rng.normal(0, 3, 300)).round(1),
            "smokes": rng.choice(["yes", "no"], 300),
        }
    )
    table.loc[7, "weight"] = 160.0
    table.to_csv(folder / "people.csv", index=False)
    of_people = ["--data", folder / "people.csv", "--columns", "id=index", "--latent-dim", 2, "--epochs", 150]
    for name, arguments in {"people": of_people, "digits": ["--epochs", 2]}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pyro_vae.cli.training.draw_figures", lambda *_, **__: None)  # takes seconds
            patch.setattr(
                "sys.argv", ["train", "--hidden-dims", "16", "--out", str(folder / name), *map(str, arguments)]
            )
            with contextlib.suppress(SystemExit):
                run_command(train.main)
    return folder


def test_latents_are_in_the_order_of_the_file_with_what_names_its_rows(folder, tmp_path):
    command(encode, folder / "people", tmp_path / "latents.csv")
    found, people = pd.read_csv(tmp_path / "latents.csv"), pd.read_csv(folder / "people.csv")
    assert list(found) == ["id", "rows", "mean_1", "mean_2", "scale_1", "scale_2"]
    assert found["id"].tolist() == people["id"].tolist()
    assert found["rows"].tolist() == list(range(300))
    vae, data = load(folder / "people"), load_data(str(folder / "people.csv"), hold_out=False, kinds={"id": "index"})
    q = vae.encode(data.x_test)
    np.testing.assert_allclose(found[["mean_1", "mean_2"]], q.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[["scale_1", "scale_2"]], q.stddev, rtol=1e-4, atol=1e-5)


def test_tables_are_written_as_the_one_that_was_read(tmp_path):
    lines = [f"{name};{height},5" for name, height in zip(["groß", "klein"] * 30, range(100, 160), strict=True)]
    (tmp_path / "table.csv").write_bytes("\r\n".join(["art;höhe", *lines, ""]).encode("latin-1"))
    arguments = ("--data", tmp_path / "table.csv", "--labels", "art", "--epochs", 1, "--hidden-dims", 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train", "--out", str(tmp_path / "run"), *map(str, arguments)])
        with contextlib.suppress(SystemExit):
            run_command(train.main)
    for script, header in ((sample, "höhe"), (encode, "art;rows;mean_1"), (score, "art;rows;log_evidence")):
        assert command(script, tmp_path / "run", tmp_path / "out.csv") == 0
        text = (tmp_path / "out.csv").read_bytes().decode("latin-1")
        assert text.startswith(header)
        first = text.split("\r\n")[1].split(";")[-1]
        assert float(first.replace(",", ".")) == pytest.approx(0, abs=1000)
        assert "." not in text


def test_latents_of_held_out_rows_as_arrays(folder, tmp_path):
    command(encode, folder / "digits", tmp_path / "latents.npz", "--held-out")
    data = load_data("digits")
    with np.load(tmp_path / "latents.npz") as file:
        found = dict(file)
    assert sorted(found) == ["labels", "mean", "rows", "scale"]
    np.testing.assert_array_equal(found["labels"], data.y_test)
    np.testing.assert_allclose(found["mean"], load(folder / "digits").encode(data.x_test).mean, rtol=1e-4, atol=1e-5)


def test_scores_say_which_rows_they_are_of(folder, tmp_path, capsys):
    for arguments, words in {(): "of 60 held-out rows (--whole scores all)", ("--whole",): "of 300 rows,"}.items():
        command(score, folder / "people", tmp_path / "scores.csv", "--entries", 0, *arguments)
        assert words in capsys.readouterr().out


def test_scores_are_the_evidence_and_an_entry_out_of_place_is_named(folder, tmp_path):
    command(score, folder / "people", tmp_path / "scores.csv", "--whole", "--entries", 1)
    found = pd.read_csv(tmp_path / "scores.csv")
    assert list(found) == ["id", "rows", "log_evidence", "standard_error", "entry_1", "nats_1"]
    vae, data = load(folder / "people"), load_data(str(folder / "people.csv"), hold_out=False, kinds={"id": "index"})
    expected = log_evidence(vae, data.x_test, num_particles=500)
    np.testing.assert_allclose(found["log_evidence"], expected.log_evidence, rtol=1e-5)
    assert int(found["log_evidence"].argmin()) == 7
    assert found["entry_1"][7] in ("weight", "height")
    assert found["nats_1"][7] == found["nats_1"].max() > 2


def test_scores_of_pictures_have_a_number_for_each_pixel(folder, tmp_path):
    for suffix in ("npz", "png"):
        command(score, folder / "digits", tmp_path / f"scores.{suffix}", "--num-particles", 20)
    data = load_data("digits")
    with np.load(tmp_path / "scores.npz") as file:
        found = dict(file)
    expected = unexpectedness(load(folder / "digits"), data.x_test, num_particles=20)
    np.testing.assert_allclose(found["unexpected"], expected, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "scores.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (
            "scores.csv",
            ["--entries", 99],
            "error: --entries must be from 0 to 64, the number of entries of a row; found 99",
        ),
        ("scores.json", [], "error: --out must end in .npz or .csv"),
        ("scores.csv", ["--num-particles", 0], "error: num_particles must be at least 1, found 0"),
    ],
    ids=["entries", "suffix", "particles"],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(folder, tmp_path, capsys, name, arguments, words):
    assert command(score, folder / "digits", tmp_path / name, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(words)
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [sample, score, encode, predict])
def test_data_are_not_replaced_by_what_is_made_of_them(folder, tmp_path, capsys, script):
    others = shutil.copy(folder / "people.csv", tmp_path / "others.csv")
    (tmp_path / "link.csv").symlink_to(others)
    trained_on = folder / "people.csv"
    before = trained_on.read_bytes()
    asked = [(trained_on, [])] if script is sample else [(trained_on, []), (tmp_path / "link.csv", ["--data", others])]
    for out, arguments in asked:
        assert command(script, folder / "people", out, *arguments) == 2
        assert (
            capsys.readouterr().err == f"error: --out {out} would replace the data that are read: name another file\n"
        )
    assert trained_on.read_bytes() == (tmp_path / "others.csv").read_bytes() == before


def test_a_gap_is_named_by_its_place_in_the_file_and_with_the_commands_advice(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for row in (4, 31, 49):  # among the rows to train on, or to test with, once they are shuffled
        x = rng.normal(size=(50, 3))
        x[row, 1] = np.nan
        np.save(tmp_path / "x.npy", x)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")])
            with pytest.raises(SystemExit):
                run_command(train.main)
        said = f"has 1 NaN or infinite value, the first at index ({row}, 1): remove or fill those entries, or give "
        assert said + "--missing nan if NaN is a missing entry\n" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_names_of_least_expected_entries_leave_out_what_is_missing():
    nats = np.array([[0.5, 3.0, np.nan], [np.nan, np.nan, np.nan]])
    found = score.least_expected(nats, ["a", "b", "c"], 2)
    assert found["entry_1"].tolist() == ["b", ""]
    assert found["entry_2"].tolist() == ["a", ""]
    assert found["nats_1"][0] == 3.0
    assert np.isnan(found["nats_1"][1])


def test_a_latent_of_kinds_has_probabilities():
    q = torch.distributions.OneHotCategorical(probs=torch.tensor([[0.2, 0.8]]))
    np.testing.assert_allclose(encode.beliefs(q)["probability"], [[0.2, 0.8]])


def test_runs_that_take_different_things_are_not_compared(folder, tmp_path, capsys):
    config = json.loads((folder / "digits" / "config.json").read_text())
    config["run"] |= {"model": "conditional", "levels": [str(digit) for digit in range(10)]}
    shutil.copytree(folder / "digits", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert command(evaluate, folder / "digits", tmp_path / "both.json", tmp_path / "other") == 2
    assert "takes x and" in (said := capsys.readouterr().err)
    assert "x, labels: their evidence is not comparable" in said
    assert not (tmp_path / "both.json").exists()
