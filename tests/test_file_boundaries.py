"""A command that is killed, or refused by the system, at any of its file boundaries loses and leaves nothing."""

import functools
import json
import re
import shutil
import sys

import pytest
from boundaries import ERRORS, KILLED, KILLS, TRAIN, USES, Commands, recorded, write_table

from pyro_vae._support import files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc which file is open")

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
        """The same, but for the process's number in names."""
        return {re.sub(r"\.\d+@", ".PID@", name): data for name, data in self.content().items()}


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
        shutil.rmtree(commands.root.with_name("recorded"), ignore_errors=True)
        undisturbed = commands.run(*self.command, how="record")
        assert (undisturbed.status, said(undisturbed)) == (0, []), undisturbed.err
        assert undisturbed.escaped == []
        self.calls, self.end = undisturbed.passed, self.folder.numbers()
        self.recovered = set()
        self.kills = {
            (number, how): Folder(path).content()
            for number in range(len(self.calls))
            for how in KILLS
            if (path := recorded(commands.root, number, how)).exists()
        }

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
            else:
                assert name.endswith(".json"), f"{what}: {name} is neither old nor new"
                json.loads(data)


def hidden(name):
    """Whether it is a name of something temporary."""
    return "/." in f"/{name}"


def said(result):
    """What a command says of errors: its lines, but bars."""
    return [line for line in result.err.splitlines() if line.strip() and "%|" not in line]


@pytest.fixture(scope="module")
def takes(exhaustive):
    """Which of the ways of disturbing a command at a boundary are tried.

    All in an exhaustive run. Else each boundary in one way, in turn, and each kind of boundary in every way.
    """

    def taken(calls, ways):
        seen = set()
        for number, call in enumerate(calls):
            for i, way in enumerate(ways):
                kind = (call.split()[0], way)
                if exhaustive or i == number % len(ways) or kind not in seen:
                    seen.add(kind)
                    yield number, way

    return taken


@pytest.fixture(scope="module")
def trials(commands, states):
    """Of each command."""
    return functools.cache(lambda name: Trials(commands, states, name))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_is_killed_at_any_boundary_ends_at_the_same_files_when_it_is_run_again(trials, takes, name):
    of_name = trials(name)
    assert len(of_name.kills) >= 2 * len(of_name.calls)
    for number, how in filter(of_name.kills.__contains__, takes(of_name.calls, KILLS)):
        left = of_name.kills[number, how]
        what = f"killed {how} {of_name.calls[number]} ({number})"
        if number % 10 == 3:  # what was recorded is what a kill leaves
            assert of_name.run(number, how).status == KILLED
            found = of_name.folder.numbers()
            of_name.folder.fill(left)
            assert of_name.folder.numbers() == found, what
        of_name.folder.fill(left)
        of_name.check_recovery(what)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_gets_an_error_at_any_boundary_says_so_and_leaves_nothing(trials, takes, name):
    of_name = trials(name)
    for number, error in takes(of_name.calls, ERRORS):
        call = of_name.calls[number]
        result, what = of_name.run(number, error), f"{error} at {call} ({number})"
        lines = said(result)
        assert (result.status, len(lines)) in ((0, 0), (2, 1)), f"{what}: status {result.status}, {result.err}"
        assert all(line.startswith("error: ") for line in lines), f"{what}: {result.err}"
        left = of_name.folder.numbers()
        if not call.startswith(("unlink", "rmdir")):
            assert not list(filter(hidden, left.keys() - of_name.before.keys())), what
        if result.status == 0:
            assert {name: data for name, data in left.items() if not hidden(name)} == of_name.end, what
        of_name.check_recovery(what)


# Two at once: one is held at each of its boundaries while the other runs


@pytest.mark.parametrize(
    ("before", "first", "second"),
    [
        pytest.param("new", NEW_RUN, NEW_RUN, id="two runs", marks=pytest.mark.exhaustive),
        pytest.param("stopped", RESUME, RESUME, id="resumed twice", marks=pytest.mark.exhaustive),
        pytest.param("new", NEW_RUN, RESUME, id="a run and its resumption"),
        pytest.param("stopped", RESUME, NEW_RUN, id="resumed, and begun anew"),
    ],
)
def test_of_two_that_train_in_one_folder_one_is_told_so(commands, states, trials, before, first, second):
    folder, end = Folder(commands.root), trials("train").end
    number, told = 0, 0
    while True:
        folder.fill(states[before])
        held = commands.start(*first, at=number)
        other = commands.run(*second)
        result = commands.finish(held)
        if number >= len(result.passed):
            break
        what = f"while the first waited at {result.passed[number]} ({number})"
        results = (result, other)
        assert all((one.status, len(said(one))) in ((0, 0), (2, 1)) for one in results), f"{what}: {results}"
        assert [one.status for one in results].count(0) >= 1, f"{what}: {results}"
        told += "another process is training in run" in other.err
        assert folder.numbers() == end, what
        number += 1 if number < 12 else 5
    assert told > 5


def test_two_that_train_without_a_name_have_a_folder_each(commands, states, trials, exhaustive):
    folder, end = Folder(commands.root), trials("train").end
    for number in (*range(12 if exhaustive else 6), 30, 60):
        folder.fill(states["new"])
        held = commands.start(*TRAIN, at=number)
        other = commands.run(*TRAIN)
        result = commands.finish(held)
        assert (result.status, other.status) == (0, 0), (result, other)
        content = folder.numbers()
        for name in ("table-mlp", "table-mlp-2"):
            there = {path: data for path, data in content.items() if path.startswith(f"runs/{name}/")}
            assert there == {
                path.replace("run/", f"runs/{name}/", 1): data for path, data in end.items() if path.startswith("run/")
            }, (number, result.passed[number])


@pytest.mark.parametrize("name", ["sample .csv", "evaluate"])
def test_what_uses_a_run_that_trains_is_whole_or_a_sentence(commands, states, trials, exhaustive, name):
    folder, of_name = Folder(commands.root), trials(name)
    out = of_name.command[-1]
    outcomes = []
    calls = trials("train").calls
    for number in range(0, len(calls), 3) if exhaustive else [*range(0, len(calls), 11), len(calls) - 1]:
        folder.fill(states["new"])
        held = commands.start(*NEW_RUN, at=number)
        user = commands.run(*of_name.command)
        assert commands.finish(held).status == 0
        content = folder.numbers()
        assert (user.status, len(said(user))) in ((0, 0), (2, 1)), user
        assert content.pop(out, None) == (of_name.end[out] if user.status == 0 else None), user
        assert content == trials("train").end
        outcomes.append(user.status)
    assert outcomes == sorted(outcomes, reverse=True)  # sentences, and then files
    assert set(outcomes) == {0, 2}
