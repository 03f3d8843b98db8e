"""The guide to decoders: its figures and numbers can be made again, and it quotes those that were measured."""

import importlib
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pyro_vae.cli.running import run_command

DOCS = Path(__file__).parents[1] / "docs"
GUIDE = (DOCS / "decoders.md").read_text(encoding="utf-8")
NUMBERS = json.loads((DOCS / "decoders-figures.json").read_text(encoding="utf-8"))


def leaves(numbers, path=()):
    """Every number with its path; a list is one place."""
    if isinstance(numbers, dict):
        for name, value in numbers.items():
            yield from leaves(value, (*path, name))
    else:
        yield path, numbers


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the script makes of the digits in one epoch."""
    out = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["decoder_figures.py", "--data", "digits", "--epochs", "1", "--out", str(out)])
        with pytest.raises(SystemExit) as end:
            run_command(importlib.import_module("decoder_figures").main)
    assert not end.value.code
    return out


def test_every_figure_of_the_guide_is_made_and_no_other(made):
    linked = set(re.findall(r"!\[[^\]]+\]\(([^)]+)\)", GUIDE))
    assert 1 <= len(linked) <= 8
    assert {str(p.relative_to(made)) for p in made.rglob("*.png")} == linked
    for name in linked:
        for folder in (made, DOCS):
            assert (folder / name).stat().st_size < 100 * 1024
            with Image.open(folder / name) as image:
                assert min(image.size) > 200


def test_every_number_is_made_and_finite(made):
    found = dict(leaves(json.loads((made / "decoders-figures.json").read_text())))
    assert set(found) == set(dict(leaves(NUMBERS)))
    for where, value in found.items():
        for number in value if isinstance(value, list) else [value]:
            assert where == ("settings", "data") or math.isfinite(number), where


def test_other_data_are_refused(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "table.npy", np.random.default_rng(0).normal(size=(300, 5)))
    arguments = ["--data", str(tmp_path / "table.npy"), "--out", str(tmp_path / "docs")]
    monkeypatch.setattr(sys, "argv", ["decoder_figures.py", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(importlib.import_module("decoder_figures").main)
    assert end.value.code == 2
    assert "grey images with labels" in capsys.readouterr().err
    assert not (tmp_path / "docs").exists()


# What the guide says is what was measured


def number(value, digits=2, percent=False):
    text = f"{100 * value if percent else value:.{digits}f}".replace("-", "−")
    return f"{text} %" if percent else text


def cells(label):
    """The cells of the one table row that starts with this label."""
    (row,) = [line for line in GUIDE.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_guide_quotes_the_checkerboards():
    sides = [NUMBERS["checkerboard"][side] for side in ("transposed", "nearest")]
    for label, key in {"initialised": "initialised", "after 7,500 images": "early"}.items():
        assert cells(label) == [number(side[key], percent=True) for side in sides]
    assert cells("initialised, five seeds") == [
        f"{number(100 * side['initialised_lowest_of_five_seeds'])} to "
        f"{number(side['initialised_highest_of_five_seeds'], percent=True)}"
        for side in sides
    ]
    for label, i in {"15,000 images": 2, "60,000 images, one epoch": 4, "300,000 images, trained": -1}.items():
        assert cells(f"after {label}") == [number(side["curve"][i], percent=True) for side in sides]
        assert f"{sides[0]['images_seen'][i]:,}" in label
    assert cells("test ELBO, nats") == [number(side["elbo"], 1) for side in sides]


@pytest.mark.parametrize(
    ("label", "key", "scale_digits", "rate_digits"),
    [
        (r"sigmoid, $\sigma$ learned", "sigmoid", 3, 1),
        (r"tanh, pixels brought to [−1, 1], $\sigma$ learned", "tanh_scaled", 3, 1),
        (r"tanh, pixels left in [0, 1], $\sigma$ learned", "tanh_wrong", 3, 1),
        (r"sigmoid, $\sigma = 1$", "scale_one", 0, 1),
        ("squared error averaged over pixels", "averaged", 1, 3),
    ],
)
def test_the_guide_quotes_the_last_layers(label, key, scale_digits, rate_digits):
    measured = NUMBERS["last_layers"][key]
    assert cells(label) == [
        number(measured["scale"], scale_digits),
        number(measured["elbo"], 1),
        number(measured["rate"], rate_digits),
        str(measured["active_units"]),
        number(measured["root_mean_squared_error"], 3),
    ]


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("training images", "training_images"),
        ("Bernoulli, fully connected: means", "bits_means"),
        ("the same at $0.7 z$", "bits_means_at_0.7_z"),
        ("Bernoulli, fully connected: draws", "bits_draws"),
        ("Bernoulli, transposed: means", "transposed_means"),
        ("Bernoulli, repeat and convolve: means", "nearest_means"),
        (r"Normal, $\sigma$ learned: means", "sigmoid_means"),
        (r"Normal, $\sigma$ learned: draws", "sigmoid_draws"),
        (r"Normal, $\sigma = 1$: means", "scale_one_means"),
        (r"Normal, $\sigma = 1$: draws", "scale_one_draws"),
        ("averaged squared error: means", "averaged_means"),
    ],
)
def test_the_guide_quotes_the_quality_of_samples(label, key):
    measured = NUMBERS["sample_quality"][key]
    keys = ("precision", "density", "recall", "coverage")
    assert cells(label) == [number(measured[space][name]) for space in ("pixels", "features") for name in keys]


def test_the_guide_quotes_the_halfway_points():
    measured = NUMBERS["interpolation"]
    for label, key, length in (
        ("the ends, reconstructed", "ends", "length_of_encoded"),
        ("pixels", "cross_fade", None),
        ("linear in $z$", "linear", "length_halfway_linear"),
        ("spherical in $z$", "spherical", "length_halfway_spherical"),
    ):
        assert cells(label) == [
            number(measured[length]) if length else "–",
            number(measured[key]["sharpness"]),
            number(measured[key]["share_the_classifier_is_sure_of"], 1, percent=True),
            number(measured[key]["precision"]),
            number(measured[key]["recall"]),
        ]


CHOSEN = {"0.1", "0.7", "0.01", "0.05", "0.95", "0.9", "0.00025"}  # by the guide, not measured


def test_every_decimal_in_the_text_is_a_number_that_was_measured():
    text = re.sub(r"```.*?```|`[^`]*`|^\|.*?$", "", GUIDE, flags=re.DOTALL | re.MULTILINE)
    measured = [n for _, v in leaves(NUMBERS) for n in (v if isinstance(v, list) else [v]) if not isinstance(n, str)]
    layers = NUMBERS["last_layers"]
    measured.append(layers["sigmoid"]["elbo"] - layers["tanh_wrong"]["elbo"])
    measured.append(layers["least_error_of_sigmoid_on_minus_one_to_one"] / 2)
    found = re.findall(r"(−?\d+\.(\d+))( %)?", text)
    assert len(found) > 30
    for quoted, decimals, percent in found:
        known = {number(n, len(decimals), bool(percent)) for n in measured}
        assert quoted + percent in known | CHOSEN, quoted
    assert "1,503 nats" in text
    assert f"{NUMBERS['grey_pixels']['constants_left_out']:,.0f}" == "1,503"


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "guide"}
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        exec(compile(block, "decoders.md", "exec"), session)
    assert session["p_x"].event_shape == (8, 8)
    assert set(session["bits"].unique().tolist()) == {0.0, 1.0}
    for target in re.findall(r"\]\(([^)#]+)", GUIDE):
        assert (DOCS / target).exists(), target
