"""Files: written whole or not at all, read back to the last bit, refused with one sentence where damaged."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from pyro_vae import conv_vae, mlp_vae
from pyro_vae._support import files
from pyro_vae._support.configs import build, describe
from pyro_vae.encodings import Plain
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import Decoder, Encoder
from pyro_vae.transforms import Binarize, Identity, Scale, Standardize
from pyro_vae.vae import VAE

HEADS = (Bernoulli, Normal, DiagonalNormal, StandardNormal)
TRANSFORMS = (Binarize, Identity, Scale, Standardize)
CLASSES = {c.__name__: c for c in (VAE, Decoder, Encoder, MLP, ConvDecoder, ConvEncoder, Plain, *HEADS, *TRANSFORMS)}

CONTENT = {"a": [1, 2.5, None, True], "b": {"é — 数": "x\ny"}, "tiny": 1e-300, "third": 1 / 3}
TENSORS = {
    "floats": torch.tensor([[0.1, -0.0], [torch.inf, 1e-45]]),
    "doubles": torch.tensor(1 / 3, dtype=torch.float64),
    "bits": torch.tensor([True, False]),
    "bytes": torch.arange(6, dtype=torch.uint8).reshape(2, 3).T,
    "none": torch.zeros(0, 3),
}
REFUSED = re.compile(r"[^\n]+")  # one sentence, on one line


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_json_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "folder" / "content.json"
    files.write_json(CONTENT, path)
    assert files.read_json(path) == CONTENT
    assert names(path.parent) == ["content.json"]


def test_tensors_and_metadata_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "t.safetensors"
    files.write_tensors(TENSORS, path, {"epoch": "3"})
    tensors, metadata = files.read_tensors(path)
    assert metadata == {"epoch": "3"}
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        assert tensors[name].shape == expected.shape
        assert torch.equal(tensors[name], expected)
    assert names(path.parent) == ["t.safetensors"]


def test_parameters_and_views_of_one_tensor_can_be_written(tmp_path):
    shared = torch.nn.Parameter(torch.randn(3, 4))
    files.write_tensors({"whole": shared, "again": shared, "row": shared[1]}, tmp_path / "t.safetensors")
    tensors, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert torch.equal(tensors["whole"], shared)
    assert torch.equal(tensors["again"], shared)
    assert torch.equal(tensors["row"], shared[1])
    assert metadata == {}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
def test_an_exception_while_writing_leaves_the_old_content_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write_half():
        with files.replacing(path) as temporary:
            temporary.write_text("ne")
            raise error("in the middle")

    with pytest.raises(error, match="in the middle"):
        write_half()
    assert names(tmp_path) == ["file.txt"]
    assert path.read_text() == "old"


def test_the_old_content_stays_until_the_new_is_written(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file.txt"]


def test_content_that_is_not_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "content.json"
    files.write_json(CONTENT, path)
    with pytest.raises(TypeError):
        files.write_json({"a": object()}, path)
    assert files.read_json(path) == CONTENT
    assert names(tmp_path) == ["content.json"]


@pytest.mark.parametrize("kept", [0, 4, 9, 0.5, -1])
def test_truncated_tensors_are_refused_with_one_sentence(tmp_path, kept):
    path = tmp_path / "t.safetensors"
    files.write_tensors({"x": torch.randn(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged or half-written") as caught:
        files.read_tensors(path)
    assert REFUSED.fullmatch(str(caught.value))


@pytest.mark.parametrize("content", [b"not tensors", b"\xff" * 100, b"\x02" + b"\0" * 7 + b"{]"], ids=repr)
def test_a_file_of_something_else_is_refused_as_tensors(tmp_path, content):
    path = tmp_path / "t.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged or half-written") as caught:
        files.read_tensors(path)
    assert REFUSED.fullmatch(str(caught.value))


@pytest.mark.parametrize(
    "content", [b"", b'{"a": [1, 2', b"\xff\xfe\0", b"{'a': 1}", b"[" * 100_000], ids=lambda content: repr(content[:12])
)
def test_damaged_json_is_refused_with_one_sentence(tmp_path, content):
    path = tmp_path / "content.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is damaged: it is not JSON") as caught:
        files.read_json(path)
    assert REFUSED.fullmatch(str(caught.value))


@pytest.mark.parametrize("read", [files.read_json, files.read_tensors])
@pytest.mark.parametrize("name", ["missing", "folder"])
def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path, read, name):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(tmp_path / name))}: ") as caught:
        read(tmp_path / name)
    assert REFUSED.fullmatch(str(caught.value))


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    files.check_writable(tmp_path / "new" / "folder")
    assert names(tmp_path / "new" / "folder") == []


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=f"cannot write in {re.escape(str(tmp_path / 'file' / 'run'))}: .* choose"):
        files.check_writable(tmp_path / "file" / "run")


VAES = {
    "mlp": lambda: mlp_vae(
        (2, 3),
        2,
        likelihood=Normal(scale="element", link="linear", min_scale=0.01),
        hidden_dims=(5, 4),
        activation="Tanh",
        posterior=DiagonalNormal(min_scale=0.02),
        transform=Standardize((2, 3)).fit(torch.randn(9, 2, 3)),
    ),
    "mlp without hidden layers": lambda: mlp_vae((6,), 2, likelihood=Bernoulli(), hidden_dims=()),
    "conv": lambda: conv_vae(
        (1, 5, 7),
        2,
        likelihood=Normal(scale="network", link="tanh"),
        channels=(2, 3),
        upsample="nearest",
        kernel_size=5,
        activation="GELU",
        transform=Scale(0, 16, onto=(-1, 1)),
    ),
    "conv on bits": lambda: conv_vae((8, 8), 2, likelihood=Bernoulli(), channels=(2,), transform=Binarize(0, 16)),
}


@pytest.mark.parametrize("vae", VAES.values(), ids=list(VAES))
def test_a_whole_vae_is_rebuilt_from_its_description(vae):
    vae = vae()
    description = json.loads(json.dumps(describe(vae)))
    same = build(description, CLASSES)
    assert describe(same) == description
    assert repr(same) == repr(vae)
    same.load_state_dict(vae.state_dict())
    x, z = torch.rand(3, *vae.decoder.event_shape), torch.randn(3, 2)
    for found, expected in ((same.decoder(z), vae.decoder(z)), (same.encoder(x), vae.encoder(x))):
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.variance, expected.variance)
    y = same.transform(torch.zeros(1, *vae.decoder.event_shape))
    assert torch.equal(y, vae.transform(torch.zeros(1, *vae.decoder.event_shape)))


def test_the_description_of_a_vae_names_every_part_and_argument():
    assert describe(mlp_vae((4,), 2, likelihood=Bernoulli(), hidden_dims=(3,))) == {
        "class": "VAE",
        "prior": {"class": "StandardNormal", "latent_dim": 2},
        "decoder": {
            "class": "Decoder",
            "network": {
                "class": "MLP",
                "in_shape": [2],
                "out_shape": [1, 4],
                "hidden_dims": [3],
                "activation": "ReLU",
                "normalization": "none",
            },
            "likelihood": {"class": "Bernoulli"},
            "event_shape": [4],
        },
        "encoder": {
            "class": "Encoder",
            "network": {
                "class": "MLP",
                "in_shape": [4],
                "out_shape": [2, 2],
                "hidden_dims": [3],
                "activation": "ReLU",
                "normalization": "none",
            },
            "posterior": {"class": "DiagonalNormal", "min_scale": 1e-4},
            "latent_dim": 2,
            "encoding": {"class": "Plain"},
            "event_shape": [4],
        },
        "transform": {"class": "Identity"},
        "missing": None,
    }


def test_an_unknown_class_is_refused_by_name_however_deep_it_lies():
    description = describe(mlp_vae((4,), 2, likelihood=Bernoulli()))
    description["decoder"]["likelihood"]["class"] = "Poison"
    with pytest.raises(ValueError, match="a part 'Poison' that this version of pyro_vae does not have"):
        build(description, CLASSES)


@pytest.mark.parametrize(
    "description",
    [
        {"scale": 0.1},
        {"class": None},
        {"class": "os.system", "command": "true"},
        {"class": "Normal", "scales": 0.1},
        {"class": "StandardNormal"},
        {"class": "StandardNormal", "latent_dim": "two"},
        {"class": "StandardNormal", "latent_dim": -1},
        {"class": "MLP", "in_shape": None, "out_shape": [3]},
        {"class": "MLP", "in_shape": [4], "out_shape": [3], "hidden_dims": [-1]},
        {"class": "Normal", "scale": -1.0},
        {"class": "VAE", "prior": {"class": "Bernoulli"}, "decoder": 1, "encoder": 2},
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(description):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        build(description, CLASSES)
    assert REFUSED.fullmatch(str(caught.value))


@pytest.mark.parametrize(("value", "kind"), [(torch.ones(2), "Tensor"), (len, "builtin"), ({"a": 1}, "dict")])
def test_a_value_that_is_not_plain_data_cannot_be_described(value, kind):
    with pytest.raises(ValueError, match=f"cannot save a {kind}"):
        describe([1, value])


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        files.write_tensors(TENSORS, tmp_path / "t.safetensors")
        files.write_json(CONTENT, tmp_path / "c.json")
        mlp_vae((3,), 1, likelihood=Normal()).save(tmp_path / "model")
    finally:
        os.umask(before)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 4
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~mask}


def test_what_killed_writers_leave_is_swept_up_and_what_lives_is_left_alone(tmp_path):
    path = tmp_path / "file.txt"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    left = files._temporary(path)
    dead = left.with_name(left.name.replace(f".{os.getpid()}@", f".{gone.pid}@"))
    other = left.with_name(".1@elsewhere-file.txt")
    for temporary in (left, dead, other):
        temporary.write_text("half")
    with files.replacing(tmp_path / "another.txt") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted([left.name, other.name, "another.txt"])
    os.utime(other, (0, 0))  # of another machine, and old
    with files.only_writer(tmp_path):
        assert names(tmp_path) == [".lock", "another.txt"]
    assert names(tmp_path) == ["another.txt"]
