"""The report of a GPU is made where there is one, and its path is known to work where there is none."""

import json
import subprocess
import sys
from datetime import date

import benchmark
import gpu_report
import numpy as np
import pytest
import torch

from pyro_vae.cli.running import run_command


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "grey.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (400, 8, 8), dtype=np.uint8))
    return path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["gpu_report.py", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        run_command(gpu_report.main)
    return end.value.code


def test_without_a_gpu_it_says_so_and_writes_nothing(monkeypatch, capsys, images, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, "--data", images, "--out", tmp_path / "docs" / "gpu") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "docs").exists()


def play_tests(monkeypatch, words, status):
    end = subprocess.CompletedProcess([], status, stdout=f"ss..\n{words}\n", stderr="")
    monkeypatch.setattr(gpu_report.subprocess, "run", lambda *args, **kwargs: end)


def test_results_of_tests_are_counted(monkeypatch):
    play_tests(monkeypatch, "2 failed, 9 passed, 3 skipped, 1 error, 800 deselected in 4.1s", 1)
    counts = gpu_report.run_tests(short=True)
    assert (counts["passed"], counts["failed"], counts["skipped"]) == (9, 3, 3)
    play_tests(monkeypatch, "no such folder", 4)
    with pytest.raises(ValueError, match="did not run: no such folder"):
        gpu_report.run_tests(short=True)


def test_nothing_is_timed_where_a_test_fails(monkeypatch, capsys, images, tmp_path):
    play_tests(monkeypatch, "1 failed, 9 passed in 4.1s", 1)
    monkeypatch.setattr(benchmark, "main", lambda **options: pytest.fail("timed"))
    assert run(monkeypatch, "--data", images, "--out", tmp_path / "gpu", "--device", "cpu", "--short") == 2
    assert "1 of the tests that need a GPU failed" in capsys.readouterr().err


@pytest.mark.parametrize(("goal", "words"), [(-1000, "reached at epoch 1 of 2"), (-1, "not reached at epoch 2 of 2")])
def test_the_document_has_tests_goal_and_timings(monkeypatch, capsys, images, tmp_path, goal, words):
    play_tests(monkeypatch, "7 passed, 2 skipped in 4.1s", 0)
    out = tmp_path / "docs" / "gpu"

    def timed(**options):
        settings = {"data": "grey", "batch_size": 128, "rounds": options["rounds"]}
        machine = {"cpu": "C", "cores": 2, "vectors": "AVX2", "gpu": "G"}
        common = {"date": date(2026, 1, 2).isoformat(), "machine": machine, "versions": {}, "settings": settings}
        out.parent.mkdir()
        options["out"].with_name("gpu.json").write_text(json.dumps(common | {"sections": {}}))

    monkeypatch.setattr(benchmark, "main", timed)
    arguments = ["--data", images, "--out", out, "--device", "cpu", "--short", "--goal", goal, "--epochs", 2]
    assert run(monkeypatch, *arguments) == 0, capsys.readouterr().err
    text = out.with_name("gpu.md").read_text()
    assert "7 passed, 0 failed, 2 skipped" in text
    assert words in text
    assert "## On G (C, 2 cores with AVX2)" in text
    results = json.loads(out.with_name("gpu.json").read_text())
    assert results["goal"]["reached"] is (goal == -1000)
    assert results["goal"]["elbo"] == pytest.approx(-64 * np.log(2), abs=15)  # of random bits, hardly trained
    assert 0 < results["goal"]["seconds"] < 300


def test_short_takes_no_compiler():
    assert {"Pyro example", "PyTorch eager", "pyro_vae eager", "pyro_vae captured"} <= set(gpu_report.QUICK)
    assert not any("compiled" in label for label in gpu_report.QUICK)
