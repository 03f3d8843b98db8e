"""The README's code runs: its Python as one session, its commands one after another, with fewer epochs."""

import importlib
import re
import shlex
import struct
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vae.cli.__main__ import main
from pyro_vae.cli.running import run_command
from pyro_vae.data.sources import load_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def python_session(text, first=0):
    """What is there when a document's Python has run from top to bottom, but for what it begins with, which waits.

    Args:
        text: The document.
        first: How many blocks the first one waits for, as it shows what they define.
    """
    session = {"__name__": "document"}
    opening, *rest = blocks("python", text)
    for block in [*rest[:first], opening, *rest[first:]]:
        exec(compile(block, "document", "exec"), session)
    return session


def test_the_python_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    session = python_session(README, first=2)
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("Nothing is wrong") for line in printed)
    assert {line for line in blocks("text")[0].splitlines() if line != "…"} <= set(printed)
    assert session["x_like"].shape == (5, 359, 8, 8)
    assert session["threes"].shape == (16, 64)
    assert {name: draws.shape for name, draws in session["both"].items()} == {"z": (16, 4), "x": (16, 64)}
    assert session["epoch"]["epoch"] <= 5
    assert session["draws"].shape == (10, 5, 8, 8)


def test_the_python_of_the_document_on_tables_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_patients(tmp_path / "patients.csv")
    session = python_session((ROOT / "docs" / "tables.md").read_text())
    assert len(session["filled"]) == 5
    assert not any(table.isna().any(axis=None) for table in session["filled"])
    assert list(session["new"].columns) == ["age", "pressure", "group"]


def test_the_python_of_the_document_on_rows_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = python_session((ROOT / "docs" / "rows.md").read_text())
    assert session["nats"].shape == (20, 8, 8)
    assert session["nearest"].shape == (20, 3)
    assert session["latents"].shape[0] == 150
    assert session["mean"].shape == (5, 10)


@pytest.mark.parametrize(
    "title", ["Groups with their own effects", "Topics", "Several modalities, with parts missing", "Sequences"]
)
def test_the_python_of_the_document_on_premade_programs_runs(title, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "programs-premade.md").read_text()
    assert python_session(text.split(f"\n## {title}\n")[1].split("\n## ")[0])


def commands():
    texts = (README, (ROOT / "docs" / "models.md").read_text())
    found = [line for text in texts for block in blocks("bash", text) for line in block.splitlines()]
    found = [line for line in found if line.startswith("pyro-vae ")]
    return [c for c in found if "mnist" not in c], [c for c in found if "mnist" in c]


def write_patients(path):
    """The table that the README speaks of: measurements, a category, and gaps."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.integers(20, 90, 200),
            "pressure": rng.normal(120, 15, 200),
            "group": rng.choice(["treated", "control"], 200),
        }
    )
    frame.astype(object).mask(rng.random(frame.shape) < 0.1).dropna(how="all").to_csv(path, index=False)


def run(command, monkeypatch, *extra):
    program, name, *arguments = shlex.split(command)
    if program == "pyro-vae":
        monkeypatch.setattr(sys, "argv", [program, name, *arguments, *extra])
        called = main
    else:
        monkeypatch.setattr(sys, "argv", [name, *arguments, *extra])
        called = partial(run_command, importlib.import_module(Path(name).stem).main)
    with pytest.raises(SystemExit) as end:
        called()
    assert not end.value.code


def test_the_commands_run_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    offline, _ = commands()
    assert len(offline) == 13
    write_patients(tmp_path / "patients.csv")
    for command in offline:
        run(command, monkeypatch, *(("--epochs", "2", "--batch-size", "64") if "pyro-vae train" in command else ()))
    made = {p.name for p in tmp_path.iterdir()}
    assert {
        "metrics.json",
        "samples.png",
        "predictions.npz",
        "latents.csv",
        "scores.csv",
        "imputed.csv",
        "new-patients.csv",
        "threes-and-sevens.png",
    } <= made
    assert list(pd.read_csv(tmp_path / "new-patients.csv").columns) == ["age", "pressure", "group"]


def write_some_of_mnist(root, data_root):
    """A data root with some rows of MNIST, in its own format; tests/test_scripts.py trains on all."""
    data, raw = load_data("mnist", data_root), root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, x, y in (
        ("train", data.x_train[:2000], data.y_train[:2000]),
        ("t10k", data.x_test[:300], data.y_test[:300]),
    ):
        for name, values in ((f"{part}-images-idx3", x), (f"{part}-labels-idx1", y)):
            header = struct.pack(f">4B{values.dim()}I", 0, 0, 8, values.dim(), *values.shape)
            (raw / f"{name}-ubyte").write_bytes(header + values.to(torch.uint8).numpy().tobytes())


def test_the_commands_on_mnist_run(tmp_path, monkeypatch, data_root):
    monkeypatch.chdir(tmp_path)
    write_some_of_mnist(tmp_path / "data", data_root)
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "data"))
    _, on_mnist = commands()
    assert len(on_mnist) == 2
    for command in on_mnist:
        run(command, monkeypatch, "--epochs", "1", "--channels", "2,4", "--hidden-dims", "16", "--batch-size", "100")


def test_the_pictures_and_documents_it_links_to_are_there():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target
