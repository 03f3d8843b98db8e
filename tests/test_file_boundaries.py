"""A command that is killed, or refused by the system, at any of its file boundaries loses nothing and leaves nothing."""

import json
import re
import shutil
import sys

import pandas as pd
import pytest
from boundaries import ERRORS, KILLED, TRAIN, USES, Commands, write_table

from pyro_vae._support import files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc which file is open")

TIMING = ["seconds", "rows_per_second"]
OLD = b"what an earlier command has written"
NEW_RUN, RESUME = (*TRAIN, "--out", "run"), ("train", "--resume", "run")
COMMANDS = {"train": ("new", NEW_RUN), "resume": ("stopped", RESUME)} | {
    name: ("trained", command) for name, command in USES.items()
}


class Folder:
    """The folder that is watched: filled, and looked at."""

    def __init__(self, root):
        self.root = root

    def fill(self, content):
        """Makes it hold these files (bytes) and folders (None), and no others."""
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, data in content.items():
            path = self.root / name
            (path if data is None else path.parent).mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data)

    def content(self):
        """Its files and folders by name."""
        paths = sorted(self.root.rglob("*"))
        return {str(path.relative_to(self.root)): None if path.is_dir() else path.read_bytes() for path in paths}

    def numbers(self):
        """The same, but for what differs from process to process: times, and a number in the name."""
        found = {re.sub(r"\.\d+@", ".PID@", name): data for name, data in self.content().items()}
        if "run/history.csv" in found:
            table = pd.read_csv(self.root / "run" / "history.csv").drop(columns=TIMING)
            found["run/history.csv"] = table.to_csv(index=False).encode()
        return found


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A warmed process, and the folder that it watches."""
    started = Commands(tmp_path_factory.mktemp("watched").resolve())
    yield started
    started.close()


@pytest.fixture(scope="module")
def states(commands):
    """What is there before a command: a table and nothing else; a run killed after an epoch; one trained to its end."""
    folder = Folder(commands.root)
    folder.fill({})
    write_table(folder.root / "table.csv")
    new = folder.content()
    undisturbed = commands.run(*NEW_RUN)
    assert undisturbed.status == 0, undisturbed.err
    trained = folder.content() | {command[-1]: OLD for command in USES.values()}
    folder.fill(new)
    end_of_epoch = next(n for n, call in enumerate(undisturbed.passed) if re.match("replace.*-checkpoint", call))
    assert commands.run(*NEW_RUN, at=end_of_epoch, how="after").status == KILLED
    return {"new": new, "stopped": folder.content(), "trained": trained}


class Trials:
    """One command, started again and again from one state."""

    def __init__(self, commands, states, name):
        before, self.command = COMMANDS[name]
        self.commands, self.folder, self.before = commands, Folder(commands.root), states[before]
        self.folder.fill(self.before)
        undisturbed = commands.run(*self.command)
        assert (undisturbed.status, said(undisturbed)) == (0, []), undisturbed.err
        assert undisturbed.escaped == []
        self.calls, self.end = undisturbed.passed, self.folder.numbers()
        self.recovered = set()

    def run(self, number, how):
        """The command, disturbed at boundary ``number``."""
        self.folder.fill(self.before)
        return self.commands.run(*self.command, at=number, how=how)

    def check_recovery(self, what):
        """From what is in the folder, every way on ends at the undisturbed run's files."""
        left, seen = self.folder.content(), repr(self.folder.numbers())
        if seen in self.recovered:  # what follows depends on nothing else
            return
        self.recovered.add(seen)
        self.check_whole(left, what)
        ways = [(self.command,)]
        if self.command == NEW_RUN:
            ways = [(NEW_RUN, RESUME)] + [(RESUME,)] * ("run/config.json" in left)
        for way in ways:
            self.folder.fill(left)
            for command in way:
                result = self.commands.run(*command)
                if "already holds a run" not in result.err:
                    break
            assert result.status == 0, f"{what}, then {' '.join(command)}: {result.err}"
            found = self.folder.numbers()
            different = [name for name in found.keys() | self.end.keys() if found.get(name) != self.end.get(name)]
            assert not different, f"{what}, then {' '.join(command)}: {different} differ"

    def check_whole(self, left, what):
        """No file under its own name is half written."""
        for name, data in left.items():
            if data is None or hidden(name) or data in (OLD, self.before.get(name), self.end.get(name)):
                continue
            if name.endswith(".safetensors"):
                files.read_tensors(self.folder.root / name)
            elif name == "run/history.csv":
                assert self.folder.numbers()[name] == self.end[name], what
            else:
                assert name.endswith(".json"), f"{what}: {name} is neither old nor new"
                json.loads(data)


def hidden(name):
    """Whether it is a name of something temporary."""
    return "/." in f"/{name}"


def said(result):
    """What a command says of errors: its lines, but bars."""
    return [line for line in result.err.splitlines() if line.strip() and "%|" not in line]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed_at_any_boundary_ends_at_the_same_files_when_it_is_run_again(commands, states, name):
    trials = Trials(commands, states, name)
    for number, call in enumerate(trials.calls):
        for how in ("before", "half", "after") if call.startswith("write") else ("before", "after"):
            assert trials.run(number, how).status == KILLED
            trials.check_recovery(f"killed {how} {call} ({number})")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_gets_an_error_at_any_boundary_says_so_and_leaves_nothing(commands, states, name):
    trials = Trials(commands, states, name)
    for number, call in enumerate(trials.calls):
        for error in ERRORS:
            result, what = trials.run(number, error), f"{error} at {call} ({number})"
            lines = said(result)
            assert (result.status, len(lines)) in ((0, 0), (2, 1)), f"{what}: status {result.status}, {result.err}"
            assert all(line.startswith("error: ") for line in lines), f"{what}: {result.err}"
            left = trials.folder.numbers()
            if not call.startswith(("unlink", "rmdir")):
                assert not list(filter(hidden, left.keys() - trials.before.keys())), what
            if result.status == 0:
                assert {name: data for name, data in left.items() if not hidden(name)} == trials.end, what
            trials.check_recovery(what)
