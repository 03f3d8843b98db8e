"""Premade programs at the command line: each is trained by one word, and used by the other scripts."""

import json
import signal

import numpy as np
import pandas as pd
import pytest
import torch
from test_scripts import assert_refused, end_of_epoch, run  # noqa: F401

from pyro_vae import load
from pyro_vae.cli import pictures
from pyro_vae.cli.choices import MODELS

SMALL = ("--epochs", 2, "--hidden-dims", 8, "--compile", "no")
LITTLE = {
    "vae": ("--latent-dim", 2),
    "ladder": ("--latent-dims", "3,2"),
    "conditional": ("--latent-dim", 2, "--prior", "conditional"),
    "semi-supervised": ("--latent-dim", 2, "--known", 30),
    "clusters": ("--latent-dim", 2, "--num-clusters", 4, "--start-epochs", 1),
    "vector-quantized": ("--num-codes", 3, "--num-values", 4, "--code-dim", 2),
    "categorical": ("--num-codes", 3, "--num-values", 4),
    "sequences": ("--latent-dim", 2, "--recurrent-dim", 4),
    "multimodal": ("--latent-dim", 2, "--joint", "mixture"),
    "pooled": ("--latent-dim", 2),
    "topics": ("--num-topics", 3),
}
GIVEN = {"conditional": ("--given", "labels=7,1"), "topics": ("--given", "total_count=40")}
FINDS = {
    "semi-supervised": {"label_probabilities": (40, 10), "predicted_labels": (40,)},
    "multimodal": {"label_probabilities": (40, 10), "predicted_labels": (40,)},
    "clusters": {"cluster_probabilities": (40, 4), "clusters": (40,)},
    "vector-quantized": {"codes": (40, 3)},
    "categorical": {"code_probabilities": (40, 3, 4), "codes": (40, 3)},
    "topics": {"topic_shares": (40, 3)},
}


def digits():
    """A few digits with labels, 160 to train on and 40 held out."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    x, y = loaded.images.astype(np.uint8), loaded.target
    return {"x_train": x[:160], "x_test": x[160:200], "y_train": y[:160], "y_test": y[160:200]}


def words_of_documents():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(3, 0.2), 200) @ rng.dirichlet(np.full(9, 0.3), 3)
    counts = np.stack([rng.multinomial(30, share) for share in shares])
    return pd.DataFrame(counts, columns=[f"word{i}" for i in range(9)])


def animals():
    """A table with a column of three species, one of whose names has a comma in it."""
    rng = np.random.default_rng(0)
    species = rng.choice(["ant", "bee", "cat, wild"], 300)
    typical = pd.Series(species).map({"ant": 1.0, "bee": 3.0, "cat, wild": 9.0}).to_numpy()
    weight = (typical * np.exp(0.2 * rng.normal(size=300))).round(3)
    return pd.DataFrame({"species": species, "weight": weight, "tame": rng.choice(["no", "yes"], 300)})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with data of several kinds."""
    folder = tmp_path_factory.mktemp("data")
    np.savez(folder / "digits.npz", **digits())
    words_of_documents().to_csv(folder / "words.csv", index=False)
    animals().to_csv(folder / "animals.csv", index=False)
    rng = np.random.default_rng(0)
    waves = np.sin(0.5 * np.arange(8) + 6.3 * rng.random((200, 1)))[..., None]
    lengths = rng.integers(4, 9, 200)
    waves[np.arange(8) >= lengths[:, None]] = np.nan  # which is never looked at
    np.savez(folder / "waves.npz", x=waves, lengths=lengths)
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The titles of pictures by their names, which are made and not written: that takes seconds."""
    found = {}

    def keep(figure, path):
        axes = [part.get_title() for part in figure.axes]
        found[path.stem] = " ".join([figure.get_suptitle(), *axes])

    monkeypatch.setattr(pictures.plotting, "save_figure", keep)
    return found


def of(word, data):
    return ("--model", word, "--data", data / ("words.csv" if word == "topics" else "digits.npz"), *SMALL)


# A run of each


@pytest.mark.parametrize("word", MODELS)
def test_each_word_trains_opens_evaluates_draws_and_predicts(run, data, drawn, tmp_path, word):  # noqa: F811
    folder = tmp_path / "run"
    status, said, err = run("train", *of(word, data), *LITTLE[word], "--out", folder, figures=True)
    assert status == 0, err
    assert {"latent", "curves"} <= set(drawn)
    assert type(load(folder)).__name__ in said or f"model       {word}" in said or word == "vae"

    assert run("evaluate", folder, "--out", tmp_path / "metrics.json")[0] == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["num_rows"] == 40
    assert np.isfinite(metrics["elbo"])
    for name in ("accuracy", "cluster_accuracy"):
        assert 0 <= metrics.get(name, 0.5) <= 1
    assert ("accuracy" in metrics) == (word in ("semi-supervised", "multimodal"))
    assert ("cluster_accuracy" in metrics) == (word == "clusters")

    shape = (9,) if word == "topics" else (8, 8)
    for name in ("a", "b"):
        arguments = (*GIVEN.get(word, ()), "--num-samples", 12, "--out", tmp_path / f"{name}.npy")
        status, _, err = run("sample", folder, *arguments)
        assert status == 0, err
    a, b = (np.load(tmp_path / f"{name}.npy") for name in "ab")
    assert a.shape == (12, *shape)
    assert np.array_equal(a, b)
    if word == "topics":
        assert (a.sum(-1) == 40).all()

    assert run("predict", folder, "--num-samples", 2, "--out", tmp_path / "predicted.npz")[0] == 0
    with np.load(tmp_path / "predicted.npz") as file:
        predicted = dict(file)
    assert predicted["posterior_predictive"].shape == (2, 40, *shape)
    for name, shape in FINDS.get(word, {}).items():
        assert predicted[name].shape == shape
    if "predicted_labels" in predicted:
        assert set(predicted["predicted_labels"]) <= set(map(str, range(10)))
        right = predicted["predicted_labels"].astype(int) == predicted["labels"]
        assert right.mean() == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize(
    ("word", "made"),
    {
        "conditional": {"by_labels": "one label per row", "interpolation": "the label is that of the nearer end"},
        "clusters": {"by_cluster": "one cluster per row"},
        "pooled": {"by_groups": "one group per row"},
        "sequences": {"forecasts": "forecasts", "latent": "the state at step 8"},
        "ladder": {"latent": "the top of 2 levels"},
        "topics": {"topics": "words"},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pictures_say_what_they_show(run, data, drawn, tmp_path, word, made):  # noqa: F811
    assert run("train", *of(word, data), *LITTLE[word], "--out", tmp_path / "run", figures=True)[0] == 0
    for name, words in made.items():
        assert words in drawn[name]
    if word in ("conditional", "pooled", "topics"):  # which are not drawn from without saying what of
        assert "samples" not in drawn


# What rows come with


def test_a_column_holds_the_labels_of_a_table(run, data, tmp_path):  # noqa: F811
    folder, table = tmp_path / "run", data / "animals.csv"
    arguments = ("--data", table, "--labels", "species", "--epochs", 60, "--hidden-dims", 16, "--learning-rate", 0.01)
    assert run("train", "--model", "conditional", *arguments, "--out", folder)[0] == 0
    mixed = ("--given", "labels=ant,cat, wild,bee", "--num-samples", 6)
    assert run("sample", folder, *mixed, "--out", tmp_path / "mixed.csv")[0] == 0
    assert pd.read_csv(tmp_path / "mixed.csv")["species"].tolist() == ["ant", "cat, wild", "bee"] * 2
    given = ("--given", "labels=cat, wild", "--num-samples", 200)
    assert run("sample", folder, *given, "--out", tmp_path / "cats.csv")[0] == 0
    cats = pd.read_csv(tmp_path / "cats.csv")
    assert set(cats["species"]) == {"cat, wild"}
    assert cats["weight"].median() == pytest.approx(9, rel=0.25)
    assert run("sample", folder, "--given", "labels=ant,bee", "--num-samples", 200, "--out", tmp_path / "x.csv")[0] == 0
    medians = pd.read_csv(tmp_path / "x.csv").groupby("species")["weight"].median()
    assert medians["ant"] == pytest.approx(1, rel=0.3)
    assert medians["bee"] == pytest.approx(3, rel=0.3)

    assert run("encode", folder, "--out", tmp_path / "latents.csv")[0] == 0
    latents = pd.read_csv(tmp_path / "latents.csv")
    assert latents["species"].tolist() == animals()["species"].tolist()
    assert "labels" not in latents

    # A file of the same kind is read alike, in whatever order its levels come.
    animals()[::-1].iloc[:50].to_csv(tmp_path / "more.csv", index=False)
    assert run("evaluate", folder, "--data", tmp_path / "more.csv", "--out", tmp_path / "m.json")[0] == 0
    told = json.loads((tmp_path / "m.json").read_text())["elbo"]
    swapped = animals()[::-1].iloc[:50].replace({"species": {"ant": "cat, wild", "cat, wild": "ant"}})
    swapped.to_csv(tmp_path / "swapped.csv", index=False)
    assert run("evaluate", folder, "--data", tmp_path / "swapped.csv", "--out", tmp_path / "m.json")[0] == 0
    assert json.loads((tmp_path / "m.json").read_text())["elbo"] < told - 1

    animals().drop(columns="species").to_csv(tmp_path / "unnamed.csv", index=False)
    refused = run("evaluate", folder, "--data", tmp_path / "unnamed.csv", "--out", tmp_path / "none.json")
    assert_refused(refused, "300 of 300 rows have no label", "semi-supervised")
    animals().replace({"species": {"ant": "dog"}}).to_csv(tmp_path / "dogs.csv", index=False)
    refused = run("evaluate", folder, "--data", tmp_path / "dogs.csv", "--out", tmp_path / "none.json")
    assert_refused(refused, "label 'dog', which the model does not know", "'ant', 'bee', 'cat, wild'")
    assert not (tmp_path / "none.json").exists()


def test_labels_that_few_rows_have_are_found_for_the_others(run, data, tmp_path):  # noqa: F811
    folder, half = tmp_path / "run", animals()
    half.loc[half.index % 4 > 0, "species"] = None
    half.to_csv(tmp_path / "half.csv", index=False)
    arguments = ("--data", tmp_path / "half.csv", "--labels", "species", "--hidden-dims", 16, "--learning-rate", 0.01)
    status, said, _ = run("train", "--model", "semi-supervised", *arguments, "--epochs", 60, "--out", folder)
    assert status == 0
    assert "'ant', 'bee', 'cat, wild'; known for " in said
    animals().drop(columns="species").to_csv(tmp_path / "unnamed.csv", index=False)
    new = ("--data", tmp_path / "unnamed.csv", "--num-samples", 1, "--out", tmp_path / "found.csv")
    assert run("predict", folder, *new)[0] == 0
    found = pd.read_csv(tmp_path / "found.csv")["predicted_labels"]
    assert (found == animals()["species"]).mean() > 0.9  # their weights tell them apart
    assert run("evaluate", folder, "--data", data / "animals.csv", "--out", tmp_path / "m.json")[0] == 0
    right = json.loads((tmp_path / "m.json").read_text())["accuracy"]
    assert right == pytest.approx((found == animals()["species"]).mean())


def test_as_many_labels_are_known_as_is_said_and_some_of_each(run, data, tmp_path):  # noqa: F811
    from pyro_vae.cli import beside

    y = torch.tensor(digits()["y_train"])
    few = beside.known(y, 25, 10, seed=0)
    counts = few[few >= 0].bincount(minlength=10)
    assert int(counts.sum()) == 25
    assert set(counts.tolist()) == {2, 3}
    assert bool((few[few >= 0] == y[few >= 0]).all())
    assert torch.equal(few, beside.known(y, 25, 10, seed=0))
    assert not torch.equal(few, beside.known(y, 25, 10, seed=1))
    status, said, _ = run("train", *of("semi-supervised", data), "--known", 25, "--out", tmp_path / "run")
    assert status == 0
    assert "known for 25 of 144 rows" in said
    for wrong in (9, 1000):
        refused = run("train", *of("semi-supervised", data), "--known", wrong, "--out", tmp_path / "none")
        assert_refused(refused, "--known must be from 10", "144", str(wrong))


def test_a_group_that_was_never_seen_is_a_new_one(run, data, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    arguments = ("--model", "pooled", "--data", data / "animals.csv", "--groups", "species", *SMALL)
    assert run("train", *arguments, "--out", folder)[0] == 0
    animals().replace({"species": {"ant": "dog"}}).to_csv(tmp_path / "dogs.csv", index=False)
    for name in ("animals", "dogs"):
        path = (data if name == "animals" else tmp_path) / f"{name}.csv"
        assert run("evaluate", folder, "--data", path, "--out", tmp_path / f"{name}.json")[0] == 0
    a, b = (json.loads((tmp_path / f"{name}.json").read_text())["elbo"] for name in ("animals", "dogs"))
    assert a != b
    assert run("sample", folder, "--given", "groups=bee", "--out", tmp_path / "bees.csv")[0] == 0
    assert set(pd.read_csv(tmp_path / "bees.csv")["species"]) == {"bee"}


def test_rows_of_several_lengths_come_with_them(run, data, tmp_path):  # noqa: F811
    folder = tmp_path / "run"
    arguments = ("--model", "sequences", "--data", data / "waves.npz", *SMALL, "--latent-dim", 2)
    status, said, err = run("train", *arguments, "--out", folder)
    assert status == 0, err
    assert "lengths     4 to 8 steps" in said
    assert run("evaluate", folder, "--out", tmp_path / "m.json")[0] == 0
    assert np.isfinite(json.loads((tmp_path / "m.json").read_text())["elbo"])


# Stopped and resumed


@pytest.mark.parametrize("word", ["conditional", "semi-supervised", "multimodal", "clusters"])
def test_a_run_that_is_stopped_ends_at_the_same_numbers(run, data, tmp_path, monkeypatch, word):  # noqa: F811
    arguments = (*of(word, data), *LITTLE[word])
    assert run("train", *arguments, "--out", tmp_path / "whole")[0] == 0
    for epoch in (1, 2) if word == "clusters" else (1,):  # before there are clusters, and with them
        folder = tmp_path / f"stopped{epoch}"
        with monkeypatch.context() as patched:
            end_of_epoch(patched, epoch, lambda: signal.raise_signal(signal.SIGINT))
            status, said, _ = run("train", *arguments, "--out", folder)
        assert status == 130
        assert f"--resume {folder}" in said
        assert_refused(run("train", "--resume", folder, "--model", "vae"), "leave out --model")
        assert run("train", "--resume", folder)[0] == 0
        a, b = (load(path).state_dict() for path in (tmp_path / "whole", folder))
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert {path.suffix for path in folder.iterdir()} == {".json", ".toml", ".csv", ".safetensors"}
        assert len(list(folder.glob("*.safetensors"))) == 1


# Mistakes

MISTAKES = {
    "unknown model": (["--model", "cluster"], ["unknown model 'cluster'", "did you mean 'clusters'"]),
    "prior of a codebook": (["--model", "vector-quantized", "--prior", "vamp"], ["has no --prior", "--num-codes"]),
    "levels of one": (["--latent-dims", "3,2"], ["--model vae has no --latent-dims", "--latent-dim"]),
    "latents of levels": (["--model", "ladder", "--latent-dim", 3], ["has no --latent-dim:", "--latent-dims"]),
    "network of sequences": (["--model", "sequences", "--network", "conv"], ["sequences has no --network"]),
    "known of all": (["--known", 20], ["--model vae has no --known"]),
    "labels of pooled": (["--model", "pooled", "--labels", "y"], ["pooled has no --labels", "--groups"]),
    "no column": (["--labels", "species"], ["--labels names a column of a table"]),
    "topics of pictures": (["--model", "topics"], ["counts of words", "(8, 8)"]),
    "no labels": (["--model", "conditional", "--data", "{animals}"], ["needs labels", "with --labels"]),
    "no groups": (["--model", "pooled", "--data", "{animals}"], ["needs groups", "with --groups"]),
    "labels of measurements": (
        ["--model", "conditional", "--data", "{animals}", "--labels", "weight"],
        ["--labels weight has", "levels repeat"],
    ),
    "labels of another kind": (
        ["--data", "{animals}", "--labels", "species", "--columns", "species=category"],
        ["takes the column 'species' out of the model", "category"],
    ),
    "sequences of a table": (
        ["--model", "sequences", "--data", "{animals}", "--columns", "species=drop"],
        ["(steps, numbers per step)"],
    ),
    "gaps of modalities": (["--model", "multimodal", "--missing", "nan"], ["leave out --missing"]),
    "no clusters": (["--model", "clusters", "--num-clusters", 1], ["num_clusters must be at least 2"]),
    "start": (["--model", "clusters", "--start-epochs", -1], ["--start-epochs must be at least 0"]),
    "one draw for wake-sleep": (["--objective", "wake-sleep"], ["--num-particles 5"]),
    "a prior that asks": (
        ["--posterior", "semi-amortized", "--prior", "vamp"],
        ["use another prior"],
    ),
    "steps of other programs": (["--model", "conditional", "--posterior", "semi-amortized"], ["of a VAE"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence_and_nothing_is_written(run, data, tmp_path, name):  # noqa: F811
    arguments, words = MISTAKES[name]
    arguments = [str(a).format(animals=data / "animals.csv") for a in arguments]
    where = [] if "--data" in arguments else ["--data", data / "digits.npz"]
    assert_refused(run("train", *where, *arguments, *SMALL, "--out", tmp_path / "a" / "run"), *words)
    assert not list(tmp_path.iterdir())


def test_what_a_model_is_not_drawn_given_is_refused(run, data, tmp_path):  # noqa: F811
    for word in ("conditional", "vae"):
        assert run("train", *of(word, data), *LITTLE[word], "--out", tmp_path / word)[0] == 0
    out = ("--out", tmp_path / "x.npy")
    wrong = {
        ("conditional",): ["add --given labels=0,1,2"],
        ("conditional", "--given", "labels=12"): ["does not know '12' among its labels", "'9'"],
        ("conditional", "--given", "label=1"): ["cannot draw rows given 'label'", "labels"],
        ("conditional", "--given", "labels"): ["--given takes labels=VALUE"],
        ("vae", "--given", "labels=1"): ["cannot draw rows given 'labels'", "takes no --given"],
    }
    for (word, *arguments), words in wrong.items():
        assert_refused(run("sample", tmp_path / word, *arguments, *out), *words)
    assert not (tmp_path / "x.npy").exists()


# Objectives and posteriors by a word


@pytest.mark.parametrize(
    "arguments",
    [
        ("--objective", "wake-sleep", "--num-particles", 3),
        ("--objective", "doubly-reparameterized", "--num-particles", 3),
        ("--posterior", "semi-amortized", "--latent-dim", 2),
    ],
    ids=["wake-sleep", "doubly-reparameterized", "semi-amortized"],
)
def test_words_of_objectives_and_posteriors_train(run, data, tmp_path, arguments):  # noqa: F811
    digits_too = ("--data", data / "digits.npz", "--hidden-dims", 8, "--epochs", 4, "--learning-rate", 0.01)
    assert run("train", *digits_too, *arguments, "--compile", "no", "--out", tmp_path / "run")[0] == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["elbo"].iloc[-1] > history["elbo"].iloc[0] + 1
    assert run("evaluate", tmp_path / "run", "--out", tmp_path / "m.json")[0] == 0
