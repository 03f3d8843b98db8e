"""The scripts, as a person runs them: what they leave behind, and what they say to mistakes."""

import importlib
import json
import signal
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pyro_vae import load, plotting
from pyro_vae.cli import running, writing
from pyro_vae.vae import FORMAT_VERSION

SCRIPTS = Path(__file__).parents[1] / "scripts"
SMALL = ("--epochs", "3", "--hidden-dims", "16", "--latent-dim", "3")


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script in this process; returns its exit status, output and errors. Drawing figures takes seconds."""

    def command(script, *arguments, figures=False):
        module = importlib.import_module(script)
        if script == "train" and not figures:
            monkeypatch.setattr("pyro_vae.cli.training.draw_figures", lambda *_, **__: None)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            running.run_command(module.main)
        out, err = capsys.readouterr()
        return end.value.code or 0, out, err

    return command


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on the digits, trained once for all tests that only read it."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    subprocess.run([sys.executable, SCRIPTS / "train.py", *SMALL, "--out", folder], check=True, capture_output=True)
    return folder


def assert_refused(result, *words):
    """One sentence, status 2, no traceback."""
    status, out, err = result
    lines = [line for line in err.splitlines() if line.strip() and "%|" not in line]  # without the progress bar
    assert status == 2, (out, err)
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0], lines[0]


def picture_size(path):
    with Image.open(path) as image:
        return image.size


# What a run leaves


def test_a_run_leaves_its_model_history_and_figures(trained):
    assert {str(p.relative_to(trained)) for p in trained.rglob("*") if p.is_file()} == {
        "config.json",
        "run.toml",
        "model.safetensors",
        "history.csv",
        *(f"figures/{n}.png" for n in ("samples", "reconstructions", "interpolation", "latent", "curves")),
    }
    history = pd.read_csv(trained / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0]
    assert load(trained).latent_dim == 3
    assert min(picture_size(trained / "figures" / "samples.png")) > 300


@pytest.mark.parametrize(
    "arguments",
    [
        ("--network", "conv", "--channels", "4,8", "--latent-dim", "2"),
        ("--network", "conv", "--channels", "4", "--upsample", "nearest", "--likelihood", "normal"),
        ("--likelihood", "normal", "--scale", "0.1", "--kl-warmup", "1", "--patience", "1"),
        ("--likelihood", "normal", "--scale", "network", "--activation", "GELU"),
        ("--likelihood", "normal", "--scale", "element"),
        ("--network", "residual", "--hidden-dims", "16,16", "--normalization", "group", "--average-weights", "0.9"),
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_every_choice_trains(run, tmp_path, arguments):
    status, out, _ = run("train", "--epochs", 2, "--out", tmp_path / "run", *arguments, figures=True)
    assert status == 0
    assert f"pyro-vae sample {tmp_path / 'run'}" in out
    assert (tmp_path / "run" / "figures" / "manifold.png").exists() == ("2" in arguments)
    status, out, _ = run("evaluate", tmp_path / "run", "--out", tmp_path / "metrics.json")
    assert status == 0


def test_without_a_name_runs_are_numbered(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("train", *SMALL, "--epochs", 1)[0] == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["digits-mlp", "digits-mlp-2"]


def test_evaluate_writes_every_metric(run, trained, tmp_path):
    status, out, _ = run("evaluate", trained, "--out", tmp_path / "metrics.json")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert status == 0
    assert metrics["num_rows"] == 359
    assert metrics["elbo"] == pytest.approx(-metrics["rate"] - metrics["distortion"])
    for name in ("elbo", "rate", "distortion", "bits_per_dim"):
        assert metrics[f"{name}_se"] > 0
    assert 0 <= metrics["active_units"] <= 3
    assert f"{metrics['elbo']:.4f}" in out


def test_sample_writes_numbers_and_pictures(run, trained, tmp_path):
    assert run("sample", trained, "--num-samples", 50, "--out", tmp_path / "x.npy")[0] == 0
    x = np.load(tmp_path / "x.npy")
    assert x.shape == (50, 8, 8)
    assert set(np.unique(x)) == {0.0, 16.0}
    assert run("sample", trained, "--mean", "--out", tmp_path / "mean.npy")[0] == 0
    assert len(np.unique(np.load(tmp_path / "mean.npy"))) > 100
    assert run("sample", trained, "--num-samples", 9, "--out", tmp_path / "x.png")[0] == 0
    assert min(picture_size(tmp_path / "x.png")) > 300


@pytest.mark.parametrize("command", [("sample",), ("predict",), ("score", "--entries", "0")])
def test_a_picture_has_black_and_white_where_the_data_have_them(run, trained, tmp_path, monkeypatch, command):
    drawn = []
    monkeypatch.setattr(plotting, "save_figure", lambda figure, out: drawn.append(figure))
    script, *options = command
    status, _, err = run(script, trained, "--out", tmp_path / "x.png", *options)
    assert status == 0, err
    (figure,) = drawn
    assert figure.axes[0].images[0].get_clim() == (0, 16)  # and not the extremes of the rows that are drawn


def test_sample_streams_numbers_that_the_library_draws(run, trained, tmp_path):
    status, out, err = run("sample", trained, "--num-samples", 20_000, "--seed", 4, "--out", tmp_path / "x.npy")
    assert status == 0
    assert "20,000 rows of shape (8, 8), draws" in out
    assert "draw/s" in err
    vae = load(trained)  # which takes random numbers of its own
    torch.manual_seed(4)
    assert np.array_equal(np.load(tmp_path / "x.npy"), vae.sample(20_000).numpy())


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGTERM")
def test_a_terminated_sample_takes_its_half_file_back(trained, tmp_path):
    command = [sys.executable, SCRIPTS / "sample.py", trained, "--num-samples", "5000000", "--out", tmp_path / "x.npy"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 120
    while not list(tmp_path.iterdir()) and process.poll() is None and time.time() < end:
        time.sleep(0.05)
    assert [p.name.partition("@")[0] for p in tmp_path.iterdir()] == [f".{process.pid}"]
    process.terminate()
    assert process.wait(60) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_the_same_seed_draws_the_same(run, trained, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("sample", trained, "--out", tmp_path / f"{name}.npy", "--seed", seed)
    a, b, c = (np.load(tmp_path / f"{name}.npy") for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_predict_keeps_the_order_of_the_rows_it_is_given(run, trained, tmp_path):
    x = np.random.default_rng(0).integers(0, 17, (30, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "new.npy", x)
    arguments = ("--data", tmp_path / "new.npy", "--num-samples", 4, "--out", tmp_path / "out.npz")
    assert run("predict", trained, *arguments)[0] == 0
    with np.load(tmp_path / "out.npz") as file:
        written = dict(file)
    assert np.array_equal(written["x"], x)
    assert written["posterior_predictive"].shape == (4, 30, 8, 8)
    assert written["reconstructions"].shape == (30, 8, 8)
    assert set(np.unique(written["posterior_predictive"])) == {0.0, 16.0}
    assert run("predict", trained, "--out", tmp_path / "out.png")[0] == 0


def test_measurements_without_bounds_are_standardised(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 5)) * [1, 10, 100, 1, 1] + [0, 50, 0, 0, 0]
    np.savez(tmp_path / "table.npz", x_train=x[:250], x_test=x[250:], y_train=np.array(["a", "b"] * 125))
    arguments = ("--data", tmp_path / "table.npz", "--likelihood", "normal", "--epochs", 40, "--hidden-dims", "16")
    assert run("train", *arguments, "--out", tmp_path / "run", figures=True)[0] == 0
    run("sample", tmp_path / "run", "--num-samples", 4000, "--out", tmp_path / "x.npy")
    drawn = np.load(tmp_path / "x.npy")
    assert drawn.std(0) / x.std(0) == pytest.approx(np.ones(5), abs=0.3)
    assert drawn.mean(0)[1] == pytest.approx(50, abs=3)


def test_mnist_trains_from_its_packed_files(run, data_root, tmp_path):
    arguments = ("--data", "mnist", "--data-root", data_root, "--epochs", 1, "--hidden-dims", "32")
    status, out, _ = run("train", *arguments, "--out", tmp_path / "run")
    assert status == 0
    assert "rows: 54,000 to train on, 6,000 to validate, 10,000 to test" in out
    assert run("evaluate", tmp_path / "run", "--out", tmp_path / "m.json")[0] == 0
    assert -250 < json.loads((tmp_path / "m.json").read_text())["elbo"] < -120


# Stopped and resumed


def test_ctrl_c_keeps_what_there_is_and_resume_ends_at_the_same_numbers(run, tmp_path):
    arguments = ["--epochs", "40", "--hidden-dims", "16", "--seed", "3"]
    assert run("train", *arguments, "--out", tmp_path / "whole")[0] == 0

    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "train.py", *arguments, "--out", folder],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background ignores it
    )
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"pyro-vae train --resume {folder}" in out
    assert load(folder).latent_dim == 10  # what it has can be used
    assert not (folder / "figures").exists()

    assert_refused(run("train", "--resume", folder, "--epochs", 5), "leave out --epochs")
    assert run("train", "--resume", folder)[0] == 0
    assert not (folder / "checkpoint.safetensors").exists()
    whole, resumed = (
        pd.read_csv(tmp_path / name / "history.csv").drop(columns=["seconds", "rows_per_second"])
        for name in ("whole", "stopped")
    )
    pd.testing.assert_frame_equal(whole, resumed, check_exact=True)
    a, b = (load(tmp_path / name).state_dict() for name in ("whole", "stopped"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    status, out, _ = run("train", "--resume", folder)
    assert status == 0
    assert "nothing left to do" in out


def test_a_run_that_was_killed_in_its_first_epoch_resumes_from_the_start(run, trained, tmp_path):
    (tmp_path / "config.json").write_text((trained / "config.json").read_text())
    assert_refused(run("sample", tmp_path, "--out", tmp_path / "x.npy"), "training has not finished", "--resume")
    assert run("train", "--resume", tmp_path)[0] == 0
    a, b = (load(folder).state_dict() for folder in (trained, tmp_path))
    assert all(torch.equal(a[name], b[name]) for name in a)


# Mistakes

ARRAYS = {
    "nan": np.array([[0.5, np.nan]] * 300),
    "infinity": np.array([[0.5, np.inf]] * 300),
    "empty": np.zeros((0, 4)),
    "few": np.zeros((20, 4), np.uint8),
    "wild": np.linspace(-3, 5, 1200).reshape(300, 4),
    "text": np.array([["a", "b"]] * 300),
}

MISTAKES = {
    "nan": (["--data", "{nan}"], ["NaN or infinite values", "the first at index (0, 1)"]),
    "infinity": (["--data", "{infinity}"], ["NaN or infinite values", "(0, 1)"]),
    "no rows": (["--data", "{empty}"], ["holds no rows"]),
    "fewer rows than a batch": (
        ["--data", "{few}", "--batch-size", "128"],
        ["fewer than batch_size=128", "smaller batch_size"],
    ),
    "unbounded values as bits": (
        ["--data", "{wild}", "--likelihood", "bernoulli"],
        ["values from -3 to 5", "--likelihood normal"],
    ),
    "text": (["--data", "{text}"], ["expected rows of numbers"]),
    "unknown data": (["--data", "mnits"], ["unknown data set 'mnits'", "did you mean 'mnist'", "cifar10"]),
    "unknown likelihood": (["--likelihood", "bernouli"], ["did you mean 'bernoulli'", "normal"]),
    "unknown network": (["--network", "cnov"], ["did you mean 'conv'"]),
    "unknown activation": (["--activation", "relu6"], ["did you mean 'ReLU'", "GELU"]),
    "an activation of gates": (["--network", "gated", "--activation", "Tanh"], ["--network gated has no --activation"]),
    "an average that is none": (["--average-weights", "1"], ["average_weights must be between 0 and 1", "found 1.0"]),
    "unknown upsampling": (["--network", "conv", "--upsample", "nearst"], ["did you mean 'nearest'"]),
    "unknown scale": (["--likelihood", "normal", "--scale", "shard"], ["did you mean 'shared'"]),
    "negative scale": (["--likelihood", "normal", "--scale", "-1"], ["positive number", "-1"]),
    "bad widths": (["--hidden-dims", "400x200"], ["whole numbers separated by commas", "400x200"]),
    "no latents": (["--latent-dim", "0"], ["latent_dim must be at least 1, found 0"]),
    "no epochs": (["--epochs", "0"], ["epochs must be at least 1, found 0"]),
    "unknown device": (["--device", "gpu0"], ["cannot use device 'gpu0'"]),
    "an image network for vectors": (["--data", "{few}", "--network", "conv"], ["(H, W) or (C, H, W)", "(4,)"]),
    "fraction": (["--validation-fraction", "1"], ["nothing would be left to train on"]),
    "infinite fraction": (["--validation-fraction", "inf"], ["fraction must be between 0 and 1, found inf"]),
    "resume of nothing": (["--resume", "{here}/nowhere"], ["holds no saved model"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, tmp_path, name):
    arguments, words = MISTAKES[name]
    paths = {"here": tmp_path}
    for array, content in ARRAYS.items():
        paths[array] = tmp_path / f"{array}.npy"
        np.save(paths[array], content)
    before = sorted(tmp_path.rglob("*"))
    out = [] if "--resume" in arguments else ["--out", tmp_path / "a" / "run"]
    assert_refused(run("train", *(a.format(**paths) for a in arguments), *out), *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_holds_a_run_is_left_alone(run, trained):
    before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
    assert_refused(run("train", "--out", trained), "already holds a run", f"--resume {trained}", "another --out")
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_a_folder_that_cannot_be_written_is_found_out_before_training(run, tmp_path, trained):
    (tmp_path / "file").write_text("kept")
    start = time.monotonic()
    assert_refused(run("train", "--epochs", 100_000, "--out", tmp_path / "file" / "run"), "cannot write in")
    assert time.monotonic() - start < 30
    assert_refused(run("sample", trained, "--out", tmp_path / "file" / "x.npy"), "cannot write in")
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("script", ["sample", "predict", "evaluate"])
def test_a_run_that_is_damaged_or_newer_or_none_is_refused(run, trained, tmp_path, script):
    suffix = {"sample": "npy", "predict": "npz", "evaluate": "json"}[script]
    out = ("--out", tmp_path / "out" / f"x.{suffix}")
    assert_refused(run(script, tmp_path / "nowhere", *out), "holds no saved model")

    broken = tmp_path / "broken"
    broken.mkdir()
    config = (trained / "config.json").read_text()
    weights = (trained / "model.safetensors").read_bytes()
    (broken / "config.json").write_text(config)
    (broken / "model.safetensors").write_bytes(weights[:1000])
    assert_refused(run(script, broken, *out), "damaged or half-written")
    (broken / "model.safetensors").write_bytes(weights)
    (broken / "config.json").write_text(config.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 7'))
    assert_refused(run(script, broken, *out), "format 7", "install a newer version")
    (broken / "config.json").write_text(config[:100])
    assert_refused(run(script, broken, *out), "is damaged")
    assert not (tmp_path / "out" / f"x.{suffix}").exists()


def test_data_of_another_shape_names_both(run, trained, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((300, 9, 9), np.uint8))
    result = run("predict", trained, "--data", tmp_path / "wide.npy", "--out", tmp_path / "x.npz")
    assert_refused(result, "(9, 9)", "(8, 8)")
    np.save(tmp_path / "bright.npy", np.full((300, 8, 8), 200, np.uint8))
    result = run("evaluate", trained, "--data", tmp_path / "bright.npy", "--out", tmp_path / "x.json")
    assert_refused(result, "values from 200 to 200", "the interval [0, 16]")


@pytest.mark.parametrize(("script", "known"), [("sample", ".png or .npy"), ("predict", ".npz"), ("evaluate", ".json")])
def test_a_kind_of_file_that_is_not_written_is_refused(run, trained, tmp_path, script, known):
    assert_refused(run(script, trained, "--out", tmp_path / "x.gif"), "must end in", known, "x.gif")


@pytest.mark.parametrize("script", ["train", "sample", "predict", "evaluate"])
def test_help_names_every_option(run, script):
    status, out, _ = run(script, "--help")
    assert status == 0
    expected = {"train": ["--data", "--latent-dim", "--resume", "--kl-warmup"]}.get(
        script, ["RUN", "--out", "--device"]
    )
    for option in expected:
        assert option in out


# Tables, gaps, and files that stay on disk


def clinic(num_rows=200):
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": rng.integers(1, 90, num_rows),
            "weight": rng.gamma(5, 10, num_rows).round(1),
            "stage": pd.Categorical(rng.choice(["early", "late", "none"], num_rows)),
            "smoker": rng.choice(["yes", "no"], num_rows),
            "change": rng.normal(size=num_rows).round(3),
        }
    )


def with_gaps(table):
    return table.mask(np.random.default_rng(1).random(table.shape) < 0.2)


@pytest.fixture(scope="module")
def of_tables(tmp_path_factory):
    """Runs on a whole table and on one with gaps."""
    folder = tmp_path_factory.mktemp("tables")
    clinic().to_parquet(folder / "whole.parquet")
    with_gaps(clinic()).to_csv(folder / "gaps.csv", index=False)
    for name, arguments in (("whole", ("whole.parquet",)), ("gaps", ("gaps.csv", "--missing", "nan"))):
        data, *more = arguments
        command = ["train.py", *SMALL, "--data", folder / data, *more, "--out", folder / name]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*map(str, command)])
            with pytest.raises(SystemExit) as end:
                running.run_command(importlib.import_module("train").main)
        assert not end.value.code
    return folder


def test_samples_of_a_parquet_table_are_the_same_table(run, of_tables, tmp_path):
    assert run("sample", of_tables / "whole", "--num-samples", 40, "--out", tmp_path / "x.parquet")[0] == 0
    drawn, table = pd.read_parquet(tmp_path / "x.parquet"), pd.read_parquet(of_tables / "whole.parquet")
    assert drawn.dtypes.to_dict() == table.dtypes.to_dict()
    assert len(drawn) == 40
    assert set(drawn["stage"]) <= set(table["stage"])
    assert (drawn["age"] >= 0).all()
    assert (drawn["weight"] > 0).all()
    assert run("sample", of_tables / "whole", "--num-samples", 40, "--out", tmp_path / "x.csv")[0] == 0
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "x.csv"), drawn.astype({"stage": "str"}), check_dtype=False, rtol=1e-6
    )
    written = pd.read_csv(tmp_path / "x.csv", dtype=str)["change"]
    assert max(len(Decimal(cell).as_tuple().digits) for cell in written) == 7  # what float32 tells apart


def test_an_imputed_table_has_every_row_and_keeps_what_was_there(run, of_tables, tmp_path):
    arguments = ("--data", of_tables / "gaps.csv", "--num-samples", 2, "--num-particles", 5)
    assert run("impute", of_tables / "gaps", *arguments, "--out", tmp_path / "x.csv")[0] == 0
    drawn, table = pd.read_csv(tmp_path / "x.csv"), pd.read_csv(of_tables / "gaps.csv", keep_default_na=True)
    assert drawn.pop("draw").tolist() == [1] * 200 + [2] * 200
    for half in (drawn[:200], drawn[200:].reset_index(drop=True)):
        for name in ("stage", "smoker"):
            assert (half[name] == table[name])[table[name].notna()].all()
        for name in ("age", "weight", "change"):
            seen = table[name].notna()
            np.testing.assert_allclose(half[name][seen], table[name][seen], rtol=1e-6)
    assert run("evaluate", of_tables / "gaps", "--data", of_tables / "gaps.csv", "--out", tmp_path / "m.json")[0] == 0


def bad_table(kind):
    """A table with one thing wrong, and what is said of it where it is new to training and where it is not."""
    table = with_gaps(clinic()).astype(object)
    if kind == "text":
        table["note"] = [f"came on day {day}" for day in range(200)]
    if kind == "unseen":
        table.loc[7, "stage"] = "unheard of"
    if kind == "negative":
        table.loc[7, "age"] = -3
    if kind == "row":
        table.loc[7] = np.nan
    if kind == "column":
        table["weight"] = np.nan
    return table


@pytest.mark.parametrize("script", ["train", "evaluate", "impute"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("kind", "in_training", "later"),
    [
        ("text", "column 'note' has 200 distinct texts", "unknown column 'note'"),
        ("unseen", None, "column 'stage' has 'unheard of', which is not among its levels in training"),
        ("negative", "column 'age' has -3 in row 7", "column 'age' has -3 in row 7"),
        ("row", "row 7 of the table, counted from 0, has no entries", "row 7 of the table"),
        ("column", "column 'weight' has no entries: drop it", None),
        ("not a table", "cannot read", "cannot read"),
    ],
)
def test_a_bad_table_is_one_sentence_and_nothing_is_written(
    run, of_tables, tmp_path, script, suffix, kind, in_training, later
):
    expected = in_training if script == "train" else later
    if expected is None:
        pytest.skip("not a mistake here")
    data = tmp_path / f"bad.{suffix}"
    if kind == "not a table":
        data.write_bytes(b"a,b\n1,2,3\n" if suffix == "csv" else b"PAR1, it says")
    elif suffix == "csv":
        bad_table(kind).to_csv(data, index=False)
    else:
        bad_table(kind).infer_objects().to_parquet(data)
    arguments = {
        "train": (*SMALL, "--missing", "nan", "--columns", "age=count", "--out", tmp_path / "out" / "run"),
        "evaluate": (of_tables / "gaps", "--out", tmp_path / "out" / "m.json"),
        "impute": (of_tables / "gaps", "--out", tmp_path / "out" / "x.csv"),
    }[script]
    assert_refused(run(script, *arguments, "--data", data), expected)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != data]


def test_gaps_are_an_error_until_something_is_said_of_them(run, of_tables, tmp_path):
    arguments = ("--data", of_tables / "gaps.csv", *SMALL, "--out", tmp_path / "run")
    assert_refused(run("train", *arguments), "the table has missing entries, in age (", "give --missing nan")
    result = run("impute", of_tables / "whole", "--out", tmp_path / "x.csv")
    assert_refused(result, "was trained on complete rows", "--missing nan")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(
    ("x", "arguments", "words"),
    [
        ("row", ("--missing", "nan"), ["rows without any observed entry", "leave such rows out"]),
        ("column", ("--missing", "nan"), ["not observed in any row, the first at index (2,)"]),
        ("column", (), ["NaN or infinite value", "remove or fill"]),
        ("negative", ("--likelihood", "poisson"), ["such as -", "the whole numbers from 0"]),
        ("text", (), ["expected rows of numbers"]),
        ("cut", (), ["cannot read"]),
    ],
)
def test_a_bad_array_is_one_sentence_and_nothing_is_written(run, tmp_path, monkeypatch, large, x, arguments, words):
    """Whether it is read at once or stays on disk."""
    monkeypatch.setattr("pyro_vae.data.sources._IN_MEMORY", 100 if large else 2**28)
    rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    if x == "row":
        rows[3] = np.nan
    if x == "column":
        rows[:, 2] = np.nan
    if x == "negative":
        rows = np.random.default_rng(0).integers(-3, 9, (300, 4))
    if x == "text":
        rows = np.array([["a", "b"]] * 300)
    path = tmp_path / "x.npy"
    np.save(path, rows)
    if x == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    assert_refused(run("train", "--data", path, *SMALL, *arguments, "--out", tmp_path / "a" / "run"), *words)
    assert [p for p in tmp_path.rglob("*") if p != path] == []


@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_a_file_that_stays_on_disk_ends_at_the_numbers_of_one_that_is_read_at_once(
    run, tmp_path, monkeypatch, likelihood
):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(0, 256, (400, 6, 6)).astype(np.uint8))
    arguments = ("--data", tmp_path / "x.npy", *SMALL, "--likelihood", likelihood)
    for name, limit in (("whole", 2**28), ("streamed", 100)):
        monkeypatch.setattr("pyro_vae.data.sources._IN_MEMORY", limit)
        assert run("train", *arguments, "--out", tmp_path / name)[0] == 0
        assert run("evaluate", tmp_path / name, "--out", tmp_path / f"{name}.json")[0] == 0
        assert run("predict", tmp_path / name, "--out", tmp_path / f"{name}.png")[0] == 0
    a, b = (load(tmp_path / name).state_dict() for name in ("whole", "streamed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (tmp_path / "whole.json").read_text() == (tmp_path / "streamed.json").read_text()


# Runs that go wrong in the middle, or go on with other things


def end_of_epoch(monkeypatch, number, act):
    """Lets something happen once the checkpoint of an epoch is written."""
    import pyro_vae.training.run as training

    write, written = training.write_checkpoint, []

    def writing(state, path):
        write(state, path)
        written.append(path)
        if len(written) == number:
            act()

    monkeypatch.setattr(training, "write_checkpoint", writing)


def test_a_file_that_is_cut_short_in_the_middle_can_be_put_back_and_gone_on_with(run, tmp_path, monkeypatch):
    import pyro_vae.data.sources as sources

    monkeypatch.setattr(sources, "_IN_MEMORY", 0)
    path, folder = tmp_path / "x.npy", tmp_path / "run"
    np.save(path, np.random.default_rng(0).normal(size=(300, 6)))
    whole = path.read_bytes()
    arguments = ("--data", path, *SMALL, "--compile", "no")
    assert run("train", *arguments, "--out", tmp_path / "undisturbed")[0] == 0
    with monkeypatch.context() as patched:
        end_of_epoch(patched, 1, lambda: path.write_bytes(whole[:5000]))
        assert_refused(run("train", *arguments, "--out", folder), "it has been truncated")
    assert {"config.json", "run.toml", "checkpoint.safetensors"} == {p.name for p in folder.iterdir()}
    assert_refused(run("train", "--resume", folder), "x.npy")
    path.write_bytes(whole)
    assert run("train", "--resume", folder)[0] == 0
    a, b = (load(tmp_path / name).state_dict() for name in ("undisturbed", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_that_diverges_in_the_middle_is_kept_and_goes_on_with_smaller_steps(run, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        end_of_epoch(patched, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert run("train", *SMALL, "--compile", "no", "--out", folder)[0] == 130
    words = ("became", "The model so far is in", "--learning-rate 1e+29")
    assert_refused(run("train", "--resume", folder, "--learning-rate", "1e30"), *words)
    assert run("sample", folder, "--num-samples", 5, "--out", tmp_path / "x.npy")[0] == 0
    assert np.isfinite(np.load(tmp_path / "x.npy")).all()
    assert run("train", "--resume", folder, "--learning-rate", "0.0001")[0] == 0
    assert pd.read_csv(folder / "history.csv")["learning_rate"].tolist()[:2] == pytest.approx([1e-3, 1e-4])


def test_a_run_is_not_resumed_on_a_table_that_has_changed(run, tmp_path, monkeypatch):
    path, folder = tmp_path / "table.csv", tmp_path / "run"
    clinic().to_csv(path, index=False)
    with monkeypatch.context() as patched:
        end_of_epoch(patched, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert run("train", "--data", path, *SMALL, "--compile", "no", "--out", folder)[0] == 130
    before = (folder / "checkpoint.safetensors").read_bytes()
    clinic().assign(age=lambda table: table["age"] - 45).to_csv(path, index=False)
    assert_refused(run("train", "--resume", folder), "column 'age'")
    clinic().assign(age=lambda table: table["age"] + 0.5).to_csv(path, index=False)
    assert_refused(run("train", "--resume", folder), "column 'age'")
    clinic().assign(change=lambda table: table["change"] * 2).to_csv(path, index=False)
    assert_refused(run("train", "--resume", folder), "other training rows")
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    clinic().to_csv(path, index=False)
    assert run("train", "--resume", folder)[0] == 0


def test_the_rows_that_a_run_held_out_can_be_imputed_alone(run, of_tables, tmp_path):
    arguments = ("--num-samples", 1, "--num-particles", 2, "--held-out", "--out", tmp_path / "x.csv")
    assert run("impute", of_tables / "gaps", *arguments)[0] == 0
    assert len(pd.read_csv(tmp_path / "x.csv")) == 40
    clinic().to_csv(tmp_path / "other.csv", index=False)
    assert_refused(run("impute", of_tables / "gaps", "--data", tmp_path / "other.csv", *arguments), "--held-out is for")


def test_a_column_called_draw_is_not_overwritten():
    table = pd.DataFrame({"draw": [7, 8], "x": [1.5, 2.5]})
    whole = writing.draws_of_table([table, table])
    assert whole["draw"].tolist() == [7, 8, 7, 8]
    assert whole["_draw"].tolist() == [1, 1, 2, 2]
    assert list(whole) == ["_draw", "draw", "x"]
