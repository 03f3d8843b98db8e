"""The benchmark runs and adds up. What it measures is never asserted."""

import contextlib
import io
import json
import os
import re
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import benchmark
import benchmark_report as report
import numpy as np
import pytest
from peers import Task
from peers.__main__ import answer
from PIL import Image

from pyro_vae.cli.running import run_command

SCRIPTS = Path(__file__).parents[1] / "scripts"
NAMES = ("Pyro example", "PyTorch eager", "NumPyro", "pyro_vae eager")


def command(folder, *arguments):
    """The script on 1,000 random images."""
    np.save(folder / "grey.npy", np.random.default_rng(0).integers(0, 256, (1000, 28, 28), dtype=np.uint8))
    small = ("--rounds", "2", "--epochs", "1", "--num-samples", "10", "--evidence-rows", "2", "--num-particles", "5")
    script = [sys.executable, str(SCRIPTS / "benchmark.py"), "--data", str(folder / "grey.npy"), "--device", "cpu"]
    return [*script, *small, "--out", str(folder / "docs" / "small"), *arguments]


class Here(benchmark.Worker):
    """A contender's turns in this process; NumPyro, whose threads would stay, has its own."""

    def __init__(self, contender, data, task, folder):
        super().__init__(contender, data, task, folder)
        self.x, self.task = np.load(data), Task(**task)

    def call(self, function, num_rows, task, **arguments):
        if self.contender.module == "numpyro_epoch":
            return super().call(function, num_rows, task, **arguments)
        started, arguments = time.perf_counter(), {**self.contender.arguments, **arguments}
        call = {"function": function, "num_rows": num_rows, "task": task, "arguments": arguments}
        found = json.loads(json.dumps(answer(self.contender.module, self.x, self.task, call)))
        return found | {"idle": 0.0, "wall": time.perf_counter() - started}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with the results of what runs without a compiler, and what was printed."""
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ("--contenders", ",".join([*NAMES, "pyro_vae"]), "--only", "mlp,samples,evidence")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(benchmark, "Worker", Here)
        run(command(folder, *arguments), patch)
    return folder / "docs", printed.getvalue()


def run(script, patch):
    """Runs a command of the script to its end, in this process."""
    patch.setattr(sys, "argv", script[1:])
    with pytest.raises(SystemExit) as end:
        run_command(benchmark.main)
    assert not end.value.code


def test_every_contender_has_its_rounds_and_its_ratios(measured):
    docs, printed = measured
    results = json.loads((docs / "small.json").read_text())
    assert list(results["sections"]) == ["mlp", "samples", "evidence"]
    assert results["settings"]["rounds"] == 2
    assert results["machine"]["cpu"] in printed
    section = results["sections"]["mlp"]
    assert section["num_rows"] == 768  # of 800 to train on, six whole batches
    assert set(section["contenders"]) | set(section["left_out"]) == set(NAMES)
    assert ("NumPyro" in section["left_out"]) == (find_spec("numpyro") is None)
    for name in ("samples", "evidence"):
        assert set(results["sections"][name]["contenders"]) == {"PyTorch eager", "pyro_vae"}
    for found in results["sections"].values():
        for reference, ratios in found["ratios"].items():
            base = found["contenders"][reference]["seconds"]
            assert set(ratios) == set(found["contenders"])
            for label, ratio in ratios.items():
                seconds = found["contenders"][label]["seconds"]
                assert len(seconds) == 2
                quotients = [seconds[i] / base[i] for i in range(2)]
                assert ratio["median"] == pytest.approx(statistics.mean(quotients))
                assert [ratio["low"], ratio["high"]] == pytest.approx(sorted(quotients))
            assert ratios[reference] == {"median": 1, "low": 1, "high": 1}
    for label, row in section["contenders"].items():
        assert row["first_step"]["from_start"] > row["first_step"]["from_call"] > 0
        assert f"| {label} | " in printed


def test_contenders_do_the_same_work(measured):
    # After six steps from fresh weights all have come from 784 ln 2 = 543 nats as far.
    rows = json.loads((measured[0] / "small.json").read_text())["sections"]["mlp"]["contenders"]
    elbos = {label: row["elbo"] for label, row in rows.items() if "elbo" in row}
    assert set(elbos) == set(rows)
    for label, values in elbos.items():
        assert values == pytest.approx([statistics.mean(elbos["PyTorch eager"])] * 2, abs=3), label
        assert values[0] != values[1], label  # other weights and other noise in each round


def test_the_document_and_the_figure_are_made(measured):
    docs, printed = measured
    text = (docs / "README.md").read_text()
    assert "![Ratios and growth](small.png)" in text
    assert "Not yet measured by this command" in text
    assert set(printed[printed.index("## On ") :].split("\n\n")) <= set(text.split("\n\n")) | {""}
    with Image.open(docs / "small.png") as image:
        assert min(image.size) > 300


def test_a_peer_that_is_not_installed_is_left_out_with_a_sentence(tmp_path, monkeypatch, capsys):
    (tmp_path / "numpyro.py").write_text("raise ModuleNotFoundError(\"No module named 'numpyro'\")")
    arguments = ("--contenders", "NumPyro,products float32", "--only", "mlp")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    run(command(tmp_path, *arguments), monkeypatch)
    assert re.search(r"NumPyro +is left out: No module named '(jax|numpyro)'", capsys.readouterr().out)
    section = json.loads((tmp_path / "docs" / "small.json").read_text())["sections"]["mlp"]
    assert list(section["contenders"]) == ["products float32"]
    assert section["ratios"] == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--only", "mlp,cnn"), "--only knows whole, mlp, conv"),
        (("--contenders", "pythae"), "--contenders knows Pyro example"),
        (("--rounds", "0"), "at least 1"),
        (("--num-rows", "100"), "fewer than a batch of 128"),
    ],
)
def test_mistakes_are_named(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(sys, "argv", command(tmp_path, *arguments)[1:])
    with pytest.raises(SystemExit) as end:
        run_command(benchmark.main)
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "docs" / "small.json").exists()


def test_sections_of_the_same_machine_are_joined_and_others_are_not():
    before = {"machine": "m", "versions": "v", "settings": "s", "sections": {"mlp": 1, "conv": 2}}
    now = before | {"sections": {"conv": 3}}
    assert report.joined(before, now)["sections"] == {"mlp": 1, "conv": 3}
    assert report.joined(before | {"machine": "other"}, now)["sections"] == {"conv": 3}


def test_bfloat16_is_left_out_where_it_would_be_emulated(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "has_bfloat16", lambda device: False)
    bench = benchmark.Bench(tmp_path, np.zeros((128, 28, 28), np.uint8), {"device": "cpu"}, 1)
    section = bench.training([benchmark.OURS[2], benchmark.FLOOR[1]], {}, 128, 1, [])
    assert section["contenders"] == {}
    assert set(section["left_out"]) == {"pyro_vae bfloat16", "products bfloat16"}


def test_a_gpu_has_its_own_tables():
    found = report.section("s", {"a": {"seconds": [1.0, 2.0], "peak_memory": 1.0}}, {}, ["a"]) | {"count": 10}
    settings = {"data": "mnist", "batch_size": 128, "rounds": 2}
    common = {"date": "2026-01-01", "versions": {"torch": "2"}, "settings": settings, "sections": {"samples": found}}
    text = report.document([common | {"machine": {"cpu": "C", "cores": 2, "vectors": "AVX2", "gpu": "G"}}])
    assert "## On G (C, 2 cores with AVX2)" in text
    assert "Not yet measured" not in text
    assert "| a | 8 (5 to 10) | 1.00 (1.00 to 1.00) |" in text  # the median of 10 / 1 and 10 / 2


def test_growth_is_drawn_and_tabulated():
    times = {"pyro_vae eager": {"32": [0.001, 0.003, 0.002], "128": [0.004] * 3}}
    growth = {"unit": "seconds a step", "sizes": {"batch_size": times}}
    assert "| batch 32 | 2.00 (1.00 to 3.00) |" in report.growth_table(growth)
    (axes,) = report.figure({"sections": {"growth": growth}}).axes
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([2, 4])


def test_the_tasks_of_the_script_are_known():
    assert tuple(report.TITLES) == benchmark.SECTIONS


def test_whole_trainings_are_run_from_their_start_and_tabulated(tmp_path):
    folder = tmp_path / "work"
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (400, 28, 28), dtype=np.uint8)
    bench = benchmark.Bench(folder, x, {"high": 255, "device": "cpu"}, 1)
    found = bench.whole([benchmark.EAGER], 384, 2, -1e9, x[384:])
    row = found["contenders"]["PyTorch eager"]
    assert 0 < row["to_goal"][0] < row["seconds"][0]
    assert row["goal_epoch"] == [1]
    assert -800 < row["elbo"][0] < 0
    table = report.whole_table(found)
    assert "| PyTorch eager | " in table
    assert "seconds to −1000000000 nats" in table
    row |= {"to_goal": [None], "goal_epoch": [None]}
    assert "not reached" in report.whole_table(found)
