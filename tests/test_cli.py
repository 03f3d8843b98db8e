"""The command ``pyro-vae``: its help loses nothing, its examples are right, its files repeat a run."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from pyro_vae import ImportanceWeighted
from pyro_vae.cli import choices
from pyro_vae.cli.__main__ import COMMANDS, main
from pyro_vae.cli.running import command_of
from pyro_vae.vae import load_config

FOLDER = Path(import_module("pyro_vae.cli.commands").__file__).parent
SMALL = ("--epochs", "2", "--hidden-dims", "8", "--latent-dim", "2", "--compile", "no")


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs ``pyro-vae`` in this process; returns its exit status, output and errors. Drawing figures takes seconds."""
    monkeypatch.setattr("pyro_vae.cli.training.draw_figures", lambda *_, **__: None)

    def called(*arguments):
        monkeypatch.setattr(sys, "argv", ["pyro-vae", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return called


def module(name):
    return import_module(f"pyro_vae.cli.commands.{name}")


def test_every_command_has_a_file_and_a_line_of_help():
    assert {path.stem for path in FOLDER.glob("*.py")} - {"__init__"} == set(COMMANDS)


def words(text):
    return re.sub(r"\s+", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_loses_nothing(call, name):
    status, out, _ = call(name, "--help")
    assert status == 0
    command, page = command_of(module(name).main), words(out)
    for parameter in command.params:
        assert words(parameter.help or "") in page, parameter.name
        title = getattr(parameter, "rich_help_panel", None)
        assert title is None or f"\n{title}:\n" in out
    for paragraph in (command.help or "").split("\n\n"):
        assert words(paragraph) in page
    assert all(f"  {example}\n" in out for example in module(name).EXAMPLES)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_right(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits-mlp").mkdir(parents=True)
    (tmp_path / "runs" / "digits-mlp" / "run.toml").write_text('data = "digits"\n')
    for example in module(name).EXAMPLES:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("pyro-vae", name)
        command_of(module(name).main).make_context(name, arguments)  # or a UsageError


def test_a_mistyped_command_is_named(call):
    status, _, err = call("trian")
    assert status == 2
    assert "'train'" in err


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_the_version_and_the_commands_come_without_torch(option):
    """Which takes seconds to import."""
    code = f"""
import sys
from pyro_vae.cli.__main__ import main
sys.argv = ["pyro-vae", "{option}"]
try:
    main()
finally:
    print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, torch_was_imported = done.stdout.split("\n")[:-1]
    assert torch_was_imported == "False"
    if option == "--version":
        assert said == [import_module("pyro_vae").__version__]
    else:
        assert all(any(line.startswith(f"  {name} ") for line in said) for name in COMMANDS)


def test_a_run_is_repeated_by_its_own_file(call, tmp_path):
    asked = ("--likelihood", "bernoulli", "--learning-rate", "0.004", "--kl-weight", "2", "--seed", "5")
    assert call("train", *SMALL, *asked, "--out", tmp_path / "first")[0] == 0
    written = tomllib.loads((tmp_path / "first" / "run.toml").read_text())
    assert {"learning_rate": 0.004, "kl_weight": 2.0, "seed": 5, "epochs": 2}.items() <= written.items()
    assert "batch_size" not in written
    config = tmp_path / "first" / "run.toml"
    assert call("train", "--config", config, "--out", tmp_path / "again")[0] == 0
    assert call("train", "--config", config, "--seed", "6", "--out", tmp_path / "other")[0] == 0
    first, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again", "other"))
    assert all((first[name] == again[name]).all() for name in first)
    assert any((first[name] != other[name]).any() for name in first)


def test_where_a_run_came_from_is_in_its_folder(call, tmp_path):
    assert call("train", *SMALL, "--out", tmp_path / "run")[0] == 0
    made = load_config(tmp_path / "run")["run"]["made"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", made["date"])
    assert re.fullmatch(r"[0-9a-f]{32}", made["rows"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('latent-dim = 2\nlikelihod = "normal"\n', "likelihood"),
        ("epochs: 3\n", "TOML"),
        ("[train]\nepochs = 3\n", "train"),
    ],
)
def test_a_wrong_file_of_options_is_refused_in_one_sentence(call, tmp_path, text, said):
    (tmp_path / "run.toml").write_text(text)
    status, _, err = call("train", "--config", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    assert not (tmp_path / "run").exists()


def test_a_file_of_options_with_a_wrong_value_is_refused(call, tmp_path):
    (tmp_path / "run.toml").write_text('epochs = "many"\n')
    status, _, err = call("train", "--config", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert status == 2
    assert "--epochs" in err


def test_a_resumed_run_takes_no_file_of_options(call, tmp_path):
    assert call("train", *SMALL, "--out", tmp_path / "run")[0] == 0
    status, _, err = call("train", "--resume", tmp_path / "run", "--config", tmp_path / "run" / "run.toml")
    assert status == 2
    assert "--config" in err


def test_two_runs_are_compared(call, tmp_path):
    for name, seed in {"a": "0", "b": "1"}.items():
        assert call("train", *SMALL, "--seed", seed, "--out", tmp_path / name)[0] == 0
    status, out, _ = call("compare", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out.json")
    assert status == 0
    assert "rows that differ most" in out


def test_exported_files_are_written(call, tmp_path):
    assert call("train", *SMALL, "--out", tmp_path / "run")[0] == 0
    status, out, _ = call("export", tmp_path / "run", "--no-onnx", "--out", tmp_path / "exported")
    assert status == 0
    assert out.split() == [str(tmp_path / "exported" / name) for name in ("encoder.pt2", "decoder.pt2")]


def test_the_word_for_the_doubly_reparameterised_gradient_is_not_the_plain_one():
    made = choices.WEIGHTED["doubly-reparameterized"](3)
    assert made == ImportanceWeighted(3, doubly_reparameterized=True) != choices.WEIGHTED["importance-weighted"](3)
