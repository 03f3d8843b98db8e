"""Command lines with values of any kind: each works, or is refused in one sentence, and then writes nothing."""

import shutil
import sys

import numpy as np
import pytest
from boundaries import TRAIN, USES, Commands, write_table

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

USUAL = {command[0]: command for command in USES.values()} | {
    "train": (*TRAIN, "--epochs", "1", "--out", "new/run"),
}

# Values of options, with | between them.
NUMBERS = f"0|-1|1|3|1e9|1.5|nan|inf|-inf|{2**63}|{2**70}|1000000000000|| |ü|1,2"
DATA = "nowhere.csv|mnits||header.csv|zeros.npy|one.npy"
OUT = f"|.|run|table.csv/x.npy|x|x.gif|.npy|.csv|x.NPY|/proc/x.npy|run/|{'x' * 300}.npy|a\0.npy|x.npy"
RUN = f"nowhere||table.csv|folder.csv|run/config.json|a\0b|{'x' * 300}"
WORDS = {
    "train": {
        "--epochs": "0|-1|-9223372036854775809|1.5|nan||ü",  # a huge number is a wish
        "--batch-size": NUMBERS,
        "--latent-dim": NUMBERS,
        "--hidden-dims": f",|0|a||4,|4,,4|-4|4;4|1e3|{'10' * 20}|1000000000000|{','.join('3' * 300)}",
        "--learning-rate": NUMBERS,
        "--kl-weight": NUMBERS,
        "--kl-warmup": NUMBERS,
        "--num-particles": NUMBERS,
        "--patience": NUMBERS,
        "--validation-fraction": "0|-1|1|0.999|1e-9|nan|inf|-inf|0.5|2|ü",
        "--seed": NUMBERS,
        "--likelihood": f"Normal|normall||mixd|bernoulli|poisson|-1|{'a' * 1000}",
        "--scale": "0|-1|nan|inf|shard|1e400|",
        "--network": "conv|cnn||MLP",
        "--model": "VAE||ladder|conditional|semi-supervised|clusters|vector-quantized|sequences|pooled|topics",
        "--labels": "height|ward|nobody||visits|a\0b",
        "--groups": "ward|nobody|",
        "--known": NUMBERS,
        "--latent-dims": "0|,|3|x|2,2",
        "--num-codes": NUMBERS,
        "--channels": "0|,|x|1000000000000",
        "--activation": "relu|ReLU6||Linear|Module",
        "--kl": "|exact|analytic|auto",
        "--precision": "half||tf32",
        "--compile": "maybe||True",
        "--device": "gpu|cuda:99|cuda|meta||cpu:7",
        "--missing": "NaN||-1|none",
        "--columns": "height|height=|=count|hight=count|height=date|height=drop|visits=category|a=b=c|",
        "--separator": "|::|x|tab|;|\n",
        "--decimal": "|;|..|,",
        "--encoding": "utf-99||utf-16|cp1252",
        "--header": "maybe||no|YES",
        "--resize": "8,8|0,0|x|",
        "--data": f"{DATA}|.|/|empty.csv|folder.csv|huge.npy|nan\0.csv",
        "--data-root": "|nowhere",
        "--out": f"table.csv|table.csv/run||/proc/run|a\0b|{'x' * 300}|run\n|/dev/null",
        "--resume": "nowhere|table.csv||folder.csv",
        "--nonsense": "1",
    },
    "sample": {
        "--given": "labels=3|labels|=|x=1|groups=|total_count=0|",
        "--num-samples": NUMBERS,
        "--seed": NUMBERS,
        "--device": "gpu|meta|",
        "--out": OUT,
        "RUN": RUN,
    },
    "impute": {
        "--num-samples": NUMBERS,
        "--num-particles": NUMBERS.replace("|1000000000000", ""),  # a wish
        "--seed": NUMBERS,
        "--data": DATA,
        "--out": OUT,
        "RUN": RUN,
    },
    "predict": {"--num-samples": NUMBERS, "--seed": NUMBERS, "--data": DATA, "--out": OUT, "RUN": RUN},
    "evaluate": {
        "--seed": NUMBERS,
        "--data": DATA,
        "--data-root": "|nowhere",
        "--out": OUT,
        "--parts": "|evidence|nothing",
        "--suite": "|quik",
        "RUN": RUN,
    },
}


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """A warmed process, in a folder with data good and bad, and a run."""
    root = tmp_path_factory.mktemp("watched").resolve()
    write_table(root / "table.csv")
    (root / "empty.csv").write_text("")
    (root / "header.csv").write_text("height,visits,ward\n")
    (root / "folder.csv").mkdir()
    np.save(root / "zeros.npy", np.zeros((24, 0)))
    np.save(root / "one.npy", np.ones((1, 3)))
    with open(root / "huge.npy", "wb") as file:  # says more than it holds
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**3)}
        np.lib.format.write_array_header_1_0(file, header)
    started = Commands(root)
    assert started.run(*TRAIN, "--out", "run").status == 0
    yield started
    started.close()


def content(root):
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in root.rglob("*")}


def faults(commands, before, command):
    """What is wrong with the way in which a command line ended, in words."""
    result = commands.run(*command)
    lines = [line for line in result.err.splitlines() if line.strip() and "%|" not in line]
    lines = [line for line in lines if "UserWarning: " not in line and not line.startswith("  ")]  # of Pyro, on NaN
    after = content(commands.root)
    new = after.keys() - before.keys()
    found = []
    if result.status not in (0, 2):
        found.append(f"status {result.status}")
    if result.status == 2:
        usage = lines[0].startswith("Usage:") if lines else False  # by the reader of options, with a line on --help
        if not usage and (len(lines) != 1 or not lines[0].startswith("error: ")):
            found.append("not one sentence")
        if new or any(after.get(name) != data for name, data in before.items()):
            found.append(f"left {sorted(new)}")
    if result.status == 0 and lines:
        found.append("worked, and said")
    if any(name.rpartition("/")[2].startswith(".") and name not in (".csv", ".npy") for name in new):
        found.append("temporary files")
    if result.megabytes > 400:
        found.append(f"{result.megabytes} MB")
    for name in sorted(new, reverse=True):  # as it was
        path = commands.root / name
        path.rmdir() if path.is_dir() else path.unlink()
    for name, data in before.items():
        if after.get(name) != data:
            (commands.root / name).write_bytes(data)
    return f"{' '.join(command)!r}: {', '.join(found)}: {' | '.join(lines[-3:])[-500:]}" if found else ""


def command_line(script, option, value):
    """A command that works, but for the value of one option."""
    if option == "RUN":
        return [script, value, *USUAL[script][2:]]
    if option == "--resume":
        return ["train", "--resume", value]
    return [*USUAL[script], option, value]


@pytest.mark.parametrize(("script", "option"), [(script, option) for script in WORDS for option in WORDS[script]])
def test_an_option_of_any_value_works_or_is_refused_in_one_sentence(commands, exhaustive, script, option):
    """By default, of values that several options are given each is given a quarter, so that all values are given."""
    before = content(commands.root)
    values = WORDS[script][option].split("|")
    shared = [(s, o) for s in WORDS for o in WORDS[s] if WORDS[s][o] == WORDS[script][option]]
    if len(shared) >= 4 and not exhaustive:
        values = values[shared.index((script, option)) % 4 :: 4]
    found = [faults(commands, before, command_line(script, option, value)) for value in values]
    assert not any(found), "\n".join(filter(None, found))


def test_more_samples_than_a_disk_holds_are_refused(commands):
    before = content(commands.root)
    room = shutil.disk_usage(commands.root).free
    too_many = str(room // 12 + 10**6)
    result = commands.run("sample", "run", "--num-samples", too_many, "--out", "x.npy")
    assert result.status == 2, result
    assert "free" in result.err
    assert content(commands.root) == before
