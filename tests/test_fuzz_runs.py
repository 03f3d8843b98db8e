"""Run folders that were damaged: each opens as the model that was saved, or is refused in one sentence."""

import contextlib
import copy
import json
import shutil
import sys
import time

import pytest
import safetensors.torch
import torch
from boundaries import KILLED, TRAIN, Commands, write_table
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pyro_vae import fit, load, mlp_vae
from pyro_vae._support import files
from pyro_vae.likelihoods import Normal

ODD = [
    None, True, False, 0, -1, 3, 10**12, 10**30, 2**63, 0.5, 1e308, float("nan"), float("inf"), "", "Normal", "tanh",
    "torch.nn.Linear", "ü" * 50, [], [[]], {}, [1] * 1000, [4, 4], {"class": "VAE"}, {"class": "Normal"},
    {"class": "torch.nn.Linear", "in_features": 10**12, "out_features": 10**6},
    {"class": "torch.nn.Module"}, {"class": "StandardNormal", "latent_dim": 10**12}, {"class": ["a"]},
]  # fmt: skip


@pytest.fixture(scope="session")
def fuzzed(exhaustive):
    """Settings for a number of changes, of which the default run tries a quarter: the first of the same sequence."""

    def of(number):
        number = number if exhaustive else number // 4
        return settings(max_examples=number, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

    return of


def places(content, path=()):
    """Where values are in JSON data."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for name, value in inner for place in places(value, (*path, name)))]


def changed(content, place, change):
    """JSON data with the value at a place dropped, replaced or nested."""
    content = copy.deepcopy(content)
    if not place:
        return change[1] if change[0] == "put" else [content]
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    if change[0] == "drop":
        del inner[place[-1]]
    elif change[0] == "nest":
        inner[place[-1]] = [inner[place[-1]]]
    else:
        inner[place[-1]] = change[1]
    return content


changes = st.one_of(
    st.just(("drop",)), st.just(("nest",)), st.sampled_from(ODD).map(lambda value: ("put", value))
)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model on disk, with what it is there."""
    torch.manual_seed(0)
    vae = mlp_vae((3,), latent_dim=2, hidden_dims=(4,), likelihood=Normal())
    fit(vae, torch.randn(24, 3), epochs=1, batch_size=24, progress=False, compile=False)
    folder = tmp_path_factory.mktemp("saved")
    vae.save(folder, run={"note": "kept"})
    return folder, vae


def outcome(act):
    """What it returns, or the ValueError of one sentence that it raises."""
    try:
        return act()
    except ValueError as error:
        refusal = error
    assert "\n" not in str(refusal), refusal
    assert len(str(refusal)) < 1000, refusal
    return refusal


def assert_opens_or_refused(folder, vae):
    """The very model, or one sentence; soon."""
    began = time.monotonic()
    opened = outcome(lambda: load(folder))
    assert time.monotonic() - began < 10
    if isinstance(opened, ValueError):
        return False
    state, own = opened.state_dict(), vae.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)
    assert repr(opened) == repr(vae)
    assert (opened.event_shape, repr(opened.data_range)) == (vae.event_shape, repr(vae.data_range))
    assert (opened.missing, opened.num_rows) == (vae.missing, vae.num_rows)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(opened.decode(z).mean, vae.decode(z).mean)
    return True


@pytest.fixture
def copied(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copy")
    return tmp_path / "copy"


def test_a_configuration_with_one_change_opens_the_same_model_or_is_refused(saved, copied, fuzzed):
    folder, vae = saved
    config = json.loads((folder / "config.json").read_text())

    @fuzzed(150)
    @given(place=st.sampled_from(places(config)), change=changes)
    def check(place, change):
        (copied / "config.json").write_text(json.dumps(changed(config, place, change)))
        assert_opens_or_refused(copied, vae)

    check()


def test_what_keeps_the_sense_of_a_configuration_opens(saved, copied):
    folder, vae = saved
    config = json.loads((folder / "config.json").read_text())

    def turned(value):
        if isinstance(value, dict):
            return {name: turned(value[name]) for name in reversed(value)}
        return [turned(inner) for inner in value] if isinstance(value, list) else value

    for text in (json.dumps(config), json.dumps(turned(config), indent="\t"), "\n" + json.dumps(config) + "\r\n"):
        (copied / "config.json").write_text(text)
        assert assert_opens_or_refused(copied, vae)


NOT_JSON = {
    "empty": b"",
    "cut": b'{"format_version": 2, "mod',
    "UTF-16": '{"format_version": 2}'.encode("utf-16"),
    "not text": bytes(range(256)),
    "zeros": bytes(1000),
    "deep": b"[" * 100_000,
    "deep and whole": b'{"format_version": 2, "run": {}, "model": ' + b"[" * 900 + b"]" * 900 + b"}",
    "a number": b"1" * 10_000,
    "a list": b"[1, 2]",
}


@pytest.mark.parametrize("content", NOT_JSON)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_configuration_and_no_weights_is_refused(saved, copied, name, content):
    (copied / name).write_bytes(NOT_JSON[content])
    assert not assert_opens_or_refused(copied, saved[1])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused(saved, copied, name):
    (copied / name).unlink()
    (copied / name).mkdir()
    assert not assert_opens_or_refused(copied, saved[1])


def test_weights_with_bytes_changed_or_cut_open_the_same_model_or_are_refused(saved, copied, fuzzed):
    folder, vae = saved
    whole = (folder / "model.safetensors").read_bytes()

    @fuzzed(150)
    @given(at=st.integers(0, len(whole) - 1), bit=st.integers(0, 7), cut=st.booleans())
    @example(at=7, bit=6, cut=False)  # a header of 2**62 bytes
    @example(at=3, bit=5, cut=False)
    def check(at, bit, cut):
        damaged = bytearray(whole[:at] if cut else whole)
        if not cut:
            damaged[at] ^= 1 << bit
        (copied / "model.safetensors").write_bytes(damaged)
        assert_opens_or_refused(copied, vae)

    check()


def tensors_damaged(tensors):
    """Tensors with one fault each, by what it is."""
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
    tensor = tensors[name]
    yield "one is not there", {n: t for n, t in tensors.items() if n != name}
    yield "one too many", tensors | {"another": tensor}
    yield "renamed", {n + "_" * (n == name): t for n, t in tensors.items()}
    yield "one in half precision", tensors | {name: tensor.half()}
    yield "whole numbers", tensors | {name: tensor.long()}
    yield "complex", tensors | {name: tensor.to(torch.complex64)}
    yield "transposed", tensors | {name: tensor.T.contiguous()}
    yield "flat", tensors | {name: tensor.flatten()}
    yield "empty", tensors | {name: tensor[:0]}
    yield "a number", tensors | {name: torch.zeros(())}
    yield "NaN", tensors | {name: torch.full_like(tensor, float("nan"))}
    yield "one NaN", tensors | {name: torch.where(tensor == tensor.flatten()[0], float("nan"), tensor)}
    yield "none", {}


def test_other_tensors_in_a_whole_file_are_refused(saved, copied):
    folder, vae = saved
    tensors, metadata = files.read_tensors(folder / "model.safetensors")
    for what, damaged in tensors_damaged(tensors):
        files.save_tensors(damaged, copied / "model.safetensors", metadata)
        assert not assert_opens_or_refused(copied, vae), what
    (copied / "model.safetensors").write_bytes(safetensors.torch.save(tensors))  # of a version without checksums
    assert assert_opens_or_refused(copied, vae)


# A run that is to go on


def rows():
    return torch.randn(24, 3, generator=torch.Generator().manual_seed(0))


def train(checkpoint, epochs=3, stop=None, **options):
    """Trains, or goes on; returns the history without times, and the weights."""
    torch.manual_seed(0)
    vae = mlp_vae((3,), latent_dim=2, hidden_dims=(4,), likelihood=Normal())
    arguments = {"validation_data": rows()[:6], "progress": False, "compile": False, "batch_size": 12}
    history = fit(vae, rows(), epochs=epochs, checkpoint=checkpoint, **arguments, **options)
    return history.drop(columns=["seconds", "rows_per_second"]).to_csv(), vae.state_dict()


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A checkpoint after two of three epochs, and how the whole run ends."""
    folder = tmp_path_factory.mktemp("begun")
    end = train(None)
    write, epochs = files.write_tensors, []

    class StopsError(Exception):
        pass

    def stop(*arguments, **options):
        write(*arguments, **options)
        epochs.append(1)
        if len(epochs) == 2:
            raise StopsError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write_tensors", stop)
        with pytest.raises(StopsError):
            train(folder / "checkpoint.safetensors")
    return folder / "checkpoint.safetensors", end


def assert_goes_on_or_refused(path, end):
    """The same numbers, or one sentence and the file as it was."""
    before = path.read_bytes()
    found = outcome(lambda: train(path, resume=True))
    if isinstance(found, ValueError):
        assert path.read_bytes() == before
        return False
    history, weights = found
    assert history == end[0]
    assert all(torch.equal(weights[name], end[1][name]) for name in end[1])
    return True


def test_a_checkpoint_with_bytes_changed_or_cut_goes_on_to_the_same_numbers_or_is_refused(begun, tmp_path, fuzzed):
    whole, path = begun[0].read_bytes(), tmp_path / "checkpoint.safetensors"
    path.write_bytes(whole)
    assert assert_goes_on_or_refused(path, begun[1])

    @fuzzed(150)
    @given(at=st.integers(0, len(whole) - 1), bit=st.integers(0, 7), cut=st.booleans())
    def check(at, bit, cut):
        damaged = bytearray(whole[:at] if cut else whole)
        if not cut:
            damaged[at] ^= 1 << bit
        path.write_bytes(damaged)
        assert_goes_on_or_refused(path, begun[1])

    check()


def test_a_checkpoint_of_other_tensors_is_refused(begun, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = files.read_tensors(begun[0])
    for group in sorted({name.partition("/")[0] for name in tensors}):
        others = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{group}/")}
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{group}/")}
        for name, tensor in own.items():
            faults = {
                "gone": {},
                "renamed": {f"{name}_": tensor},
                "cut": {name: tensor.reshape(-1)[:-1].clone()},
                "of another type": {name: tensor.to(torch.int32)},
                "doubled": {name: torch.stack([tensor, tensor])},
            }
            for what, fault in faults.items():
                rest = {n: t for n, t in own.items() if n != name}
                files.save_tensors(others | rest | fault, path, metadata)
                assert not assert_goes_on_or_refused(path, begun[1]), f"{name} {what}"


def test_a_checkpoint_with_one_other_number_is_refused_or_goes_on(begun, tmp_path, fuzzed):
    """With a checksum made anew: no other error, and none that was written over."""
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = files.read_tensors(begun[0])
    numbers = json.loads(metadata["numbers"])

    @fuzzed(150)
    @given(place=st.sampled_from(places(numbers)), change=changes)
    def check(place, change):
        files.save_tensors(tensors, path, {"numbers": json.dumps(changed(numbers, place, change))})
        with contextlib.suppress(FloatingPointError):  # a learning rate of 1e308 is one
            outcome(lambda: train(path, resume=True))

    check()


# The scripts


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    if sys.platform != "linux":
        pytest.skip("forks")
    started = Commands(tmp_path_factory.mktemp("watched").resolve())
    yield started
    started.close()


@pytest.fixture(scope="module")
def run_state(commands):
    """A run stopped after its first epoch, and how it ends."""
    root = commands.root
    write_table(root / "table.csv")
    new = (*TRAIN, "--out", "run")
    undisturbed = commands.run(*new)
    end = {path.name: path.read_bytes() for path in (root / "run").iterdir() if path.is_file()}
    shutil.rmtree(root / "run")
    first = next(n for n, call in enumerate(undisturbed.passed) if "replace" in call and "checkpoint" in call)
    assert commands.run(*new, at=first, how="after").status == KILLED
    shutil.copytree(root / "run", root.with_name("begun"))
    return root.with_name("begun"), end


def assert_sentence(result):
    lines = [line for line in result.err.splitlines() if line.strip() and "%|" not in line]
    assert (result.status, len(lines)) in ((0, 0), (2, 1)), (result.status, result.err, result.out)
    assert result.megabytes < 300
    return result.status == 0


def test_a_run_whose_settings_have_one_change_ends_at_the_same_numbers_or_is_refused(commands, run_state, fuzzed):
    begun, end = run_state
    config = json.loads((begun / "config.json").read_text())
    run = commands.root / "run"
    chosen = [("run", *place) for place in places(config["run"])] + [(name,) for name in config]

    @fuzzed(60)
    @given(place=st.sampled_from(chosen), change=changes)
    @example(place=("run", "activation"), change=("put", "Tanh"))
    @example(place=("run", "hidden_dims"), change=("put", "5"))
    @example(place=("run", "seed"), change=("put", 1))
    @example(place=("run", "likelihood"), change=("put", "normal"))
    @example(place=("run", "kl_weight"), change=("put", 2.0))
    @example(place=("run", "patience"), change=("put", 1))
    @example(place=("run", "scale"), change=("drop",))  # of an older version
    def check(place, change):
        shutil.rmtree(run)
        shutil.copytree(begun, run)
        (run / "config.json").write_text(json.dumps(changed(config, place, change)))
        if assert_sentence(commands.run("train", "--resume", "run")):
            for name in ("model.safetensors", "history.csv"):
                assert (run / name).read_bytes() == end[name], name
        else:
            assert (run / "checkpoint.safetensors").read_bytes() == (begun / "checkpoint.safetensors").read_bytes()

    check()


def test_a_model_without_a_run_is_not_resumed(commands, saved):
    run = commands.root / "run"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(saved[0], run)
    result = commands.run("train", "--resume", "run")
    assert not assert_sentence(result)
    assert "not a run that can be resumed" in result.err
    assert sorted(path.name for path in run.iterdir()) == ["config.json", "model.safetensors"]
