"""Trains by the settings of a run: reads the data, builds the model, fits it, and writes its files."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import Elbo, fit
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli import beside, choices, models, options, provenance, reading, runs
from pyro_vae.cli.pictures import draw_figures
from pyro_vae.data.checks import check_finite
from pyro_vae.data.sources import DataSet, split
from pyro_vae.data.tables import Schema
from pyro_vae.training.parallel import first_rank_first, rank, world_size
from pyro_vae.vae import load_config
from pyro_vae.vae.saving import check_same

COMPILE = {"auto": "auto", "yes": True, "no": False}


@dataclass(frozen=True)
class Task:
    """A model and the data to train it on.

    Args:
        settings: The run's settings, with those that follow from the data.
        kind: The kind of model.
        data: The data, without the validation rows.
        levels: The labels or groups that the model knows.
        rows: The rows to train on, with their labels, groups or lengths.
        watched: The validation rows.
        vae: The model.
        because: Why this likelihood.
        why: Why this transform.
    """

    settings: dict[str, Any]
    kind: models.Kind
    data: DataSet
    levels: list[str]
    rows: Any
    watched: Any
    vae: Any
    because: str
    why: str

    @property
    def at_once(self) -> int:
        """Rows per step, on each process."""
        return self.settings["batch_size"] or min(128, len(self.data.x_train) // world_size())

    @property
    def epochs(self) -> int:
        """As many as the user asked for, or as make six thousand steps."""
        steps = math.ceil(len(self.data.x_train) / max(1, self.at_once))
        epochs = self.settings["epochs"]
        return min(1000, max(20, math.ceil(6000 / steps))) if epochs is None else epochs

    @property
    def start_epochs(self) -> int:
        """For clusters: epochs of pretraining without them."""
        return self.epochs if self.settings["start_epochs"] is None else self.settings["start_epochs"]


def train(settings: dict[str, Any], folder: Path, device: str, usual: Mapping[str, Any], *, resuming: bool) -> None:
    """Trains in a run folder with these settings, whose defaults are ``usual``."""
    checkpoint = folder / runs.CHECKPOINT
    choices.choose(choices.MODELS, settings["model"], "model")
    models.check_options(settings["model"], settings, usual)
    if resuming and not checkpoint.exists() and (folder / runs.HISTORY).exists():
        print(f"{folder} has finished training: there is nothing left to do.")
        return
    task = prepared(settings, resuming=resuming)
    settings, vae = task.settings, task.vae
    for name, least in {"epochs": 1, "start_epochs": 0}.items():
        if getattr(task, name) < least:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} must be at least {least}, found {getattr(task, name)}")
    objective = objective_of(settings, task.epochs, task.kind.warmup)
    fingerprint = None
    if isinstance(task.data.x_train, Tensor):  # streamed data are read only once, by fit
        fingerprint = vae.check(task.rows, settings["data"], fingerprint=True).fingerprint()
    if resuming:
        check_same(vae, folder, load_config(folder), whose="the model that the run's settings ask for")
    settings = {"made": provenance.made(fingerprint)} | settings
    if rank() == 0:
        vae.save_config(folder, run=settings)
        if not (resuming and (folder / provenance.SETTINGS).exists()):
            provenance.write_settings(folder, settings, usual)
    announce(task, objective)
    how = {
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "seed": settings["seed"],
        "device": device,
        "precision": settings["precision"],
        "compile": choices.choose(COMPILE, settings["compile"], "--compile"),
    }
    history = fitted(replace(task, settings=settings), folder, objective, how, resuming=resuming)
    if rank() > 0:
        return
    vae.to("cpu").save(folder, run=settings)
    if history.attrs["stopped"] == "interrupted":
        print(f"\nStopped after {len(history)} of {task.epochs} epochs. The model so far is in {folder}. Resume with:")
        print(f"  pyro-vae train --resume {folder}")
        sys.exit(130)
    draw_figures(vae, settings["model"], task.kind, task.data, task.levels, history, folder / "figures")
    with files.replacing(folder / runs.HISTORY) as temporary:
        history.to_csv(temporary, index=False)
    for file in (checkpoint, folder / runs.START):
        file.unlink(missing_ok=True)
    say_what_next(task, folder, history)


def prepared(settings: dict[str, Any], *, resuming: bool) -> Task:
    """The data and the model that the settings ask for."""
    kind = choices.MODELS[settings["model"]]
    data = read(settings, kind, resuming=resuming)
    kept, of_watched = split(len(data.x_train), settings["validation_fraction"], settings["seed"])
    if kind.levels is not None:
        settings = {"levels": beside.levels_of(data, settings["model"], kind)} | settings
    levels = settings.get("levels", [])
    watched = beside.told(kind, reading.part(data, of_watched), "train", levels)
    data = reading.part(data, kept)
    rows = beside.told(kind, data, "train", levels, training=True)
    if "known" in kind.options:
        rows["labels"] = beside.known(rows["labels"], settings["known"], len(levels), settings["seed"])
    asked = settings["likelihood"]
    likelihood, because = (
        (asked, "as asked for") if asked is not None else kind.likelihood or choices.default_likelihood(data)
    )
    settings = settings | {"likelihood": likelihood, "bounds": data.bounds}
    if data.schema is not None:
        assert data.table is not None
        settings |= {"schema": data.schema.to_json(), "text": runs.text_settings(data.table)}
    vae, why = build(settings, data, kind, levels)
    return Task(settings, kind, data, levels, rows, watched, vae, because, why)


def read(settings: Mapping[str, Any], kind: models.Kind, *, resuming: bool) -> DataSet:
    """The data that the settings name, checked for missing entries if none are allowed."""
    kinds: Mapping[str, str] = reading.kinds_of(settings)
    how = {option: settings[option] for option in reading.READING}
    known = None if settings.get("schema") is None else Schema.from_json(settings["schema"])
    with first_rank_first():
        data = reading.read_data(settings["data"], settings["data_root"], kinds=kinds, schema=known, **how)
        if kind.columns is not None and data.schema is not None:
            kinds = dict.fromkeys(data.schema.names, str(kind.columns)) | dict(kinds)
            data = reading.read_data(settings["data"], settings["data_root"], kinds=kinds, schema=known, **how)
    if resuming and data.schema is not None:
        check_same_columns(data, kinds, settings["data"])
    data = reading.with_labels(data, settings)
    if settings["missing"] is None and kind.has_gaps and data.lengths_train is None:
        if data.schema is not None:
            check_no_gaps(data.schema)
        parts = [x for x in (data.x_train, data.x_test) if isinstance(x, Tensor) and x.is_floating_point()]
        if not all(bool(torch.isfinite(x).all()) for x in parts):
            for x in in_files_order(data):
                check_finite(x, settings["data"], allow="give --missing nan")
    return data


def in_files_order(data: DataSet) -> list[Tensor]:
    """The rows in memory as they are in their file, or in each of its parts."""
    parts = [(x, rows) for x, rows in ((data.x_train, data.rows_train), (data.x_test, data.rows_test))]
    if not all(isinstance(part, Tensor) for pair in parts for part in pair):
        return [x for x, _ in parts if isinstance(x, Tensor)]
    x, rows = (torch.cat(found) for found in zip(*parts, strict=True))
    return [x[rows.argsort()]] if len(rows.unique()) == len(rows) else [data.x_train, data.x_test]


def announce(task: Task, objective: Any) -> None:
    """Prints what is about to be trained on what, and why."""
    settings, kind, data, vae = task.settings, task.kind, task.data, task.vae
    if data.schema is not None:
        print(data.schema.describe().to_string(index=False), end="\n\n")
    for note in data.notes:
        print(f"note        {note}")
    num_weights = sum(p.numel() for p in vae.parameters())
    watched = len(beside.rows_alone(task.watched))
    split_up = f"{len(data.x_train):,} to train on, {watched:,} to validate, {len(data.x_test):,} to test"
    print(f"data        {data.name}, rows: {split_up}")
    word = settings["network"] if kind.networks else "networks of its own"
    what = word if settings["model"] == "vae" else f"{settings['model']}, {word}"
    print(f"model       {what}, {kind.latents(vae)}, {num_weights:,} weights")
    if kind.told is not None:
        print(f"{kind.told:<12}{beside.summary(kind, task.rows, task.levels)}")
    print(f"likelihood  {settings['likelihood']}: {task.because}")
    print(f"transform   {vae.transform}: {task.why}")
    few = task.at_once < 128 and settings["batch_size"] is None
    print(f"training    {task.epochs:,} epochs, {task.at_once} rows per step{', as there are no more' if few else ''}")
    if isinstance(objective, Elbo) and objective.kl_warmup and settings["kl_warmup"] is None:
        print(f"            with the full KL after {round(objective.kl_warmup * task.epochs)}: see --kl-warmup")
    if kind.each_alone:
        print("            on rows with their labels, on rows alone and on labels alone")


def fitted(task: Task, folder: Path, objective: Any, how: Mapping[str, Any], *, resuming: bool) -> Any:
    """Fits the model, from its checkpoint if there is one; returns the history."""
    settings, checkpoint, vae = task.settings, folder / runs.CHECKPOINT, task.vae
    going_on = resuming and ("learning_rate" if settings.get("other_rate") else True)
    rows = vae.each_alone(task.rows) if task.kind.each_alone else task.rows
    if task.kind.start is not None and task.start_epochs > 0 and not (resuming and checkpoint.exists()):
        print(f"start       {task.start_epochs:,} epochs without clusters, which k-means then initialises")
        start = folder / runs.START
        resume = start.exists() and going_on
        if not task.kind.start(vae, rows, epochs=task.start_epochs, checkpoint=start, resume=resume, **how):
            print(f"\nStopped before there were clusters. Resume with:\n  pyro-vae train --resume {folder}")
            sys.exit(130)
    try:
        return fit(
            vae,
            rows,
            validation_data=task.watched,
            objective=objective,
            epochs=task.epochs,
            average_weights=settings["average_weights"],
            patience=settings["patience"],
            **how,
            checkpoint=checkpoint,
            resume=checkpoint.exists() and going_on,
            log=folder / "tensorboard" if settings["tensorboard"] else None,
        )
    except FloatingPointError as error:
        if not checkpoint.exists():
            raise
        if rank() == 0:
            vae.to("cpu").save(folder, run=settings)
        raise FloatingPointError(
            f"{error}. The model so far is in {folder} and can be used; to resume with smaller steps: "
            f"pyro-vae train --resume {folder} --learning-rate {settings['learning_rate'] / 10:g}"
        ) from error


def say_what_next(task: Task, folder: Path, history: Any) -> None:
    """Prints a summary of training, and commands to use the run with."""
    settings, data, attrs = task.settings, task.data, history.attrs
    print(f"\nsteps ran {attrs['execution']}; {history['seconds'].median():.3g} s per epoch")
    best = history["validation_elbo"].max()
    print(f"validation ELBO {best:.2f} nats per datum, at epoch {attrs['best_epoch']} of {len(history)}")
    print(f"The run is in {folder}, its figures in {folder / 'figures'}. What to do next:")
    print(f"  pyro-vae evaluate {folder} --out metrics.json")
    picture, numbers = ("png", "npy") if data.schema is None else ("csv", "csv")
    picture = "npy" if task.kind.vocabulary and data.schema is None else picture
    example = beside.example(task.kind, task.levels)
    print(f"  pyro-vae sample {folder} --num-samples 64{example} --out samples.{picture}")
    print(f"  pyro-vae predict {folder} --num-samples 10 --out predictions.npz")
    print(f"  pyro-vae encode {folder} --out latents.csv")
    print(f"  pyro-vae score {folder} --whole --out scores.csv")
    if settings["missing"]:
        print(f"  pyro-vae impute {folder} --num-samples 5 --out imputed.{numbers}")


# Options of the ELBO alone, with their default values.
ELBO_ALONE = {"kl": ("sampled",), "kl_weight": (1.0,), "kl_warmup": (None, 0), "kl_cycles": (1,), "free_nats": (0.0,)}


def objective_of(settings: dict[str, Any], epochs: int, usual_warmup: float) -> Any:
    """The objective. It takes the warm-up as a share of a cycle, the command line as a number of epochs."""
    name, num_particles = settings["objective"], settings["num_particles"]
    lookup(name, ["elbo", *choices.WEIGHTED, *choices.AGGREGATE], "objective")
    changed = [option for option, usual in ELBO_ALONE.items() if settings[option] not in usual]
    if name != "elbo" and changed:
        raise ValueError(f"--{changed[0].replace('_', '-')} is only for --objective elbo: leave it out")
    if name in choices.AGGREGATE:
        if num_particles != 1:
            raise ValueError(f"--objective {name} takes one draw per row: leave --num-particles out")
        return choices.AGGREGATE[name]()
    if name in choices.WEIGHTED:
        if num_particles < 2:
            raise ValueError(f"--objective {name} weights several draws per row: give --num-particles 5, for example")
        return choices.WEIGHTED[name](num_particles)
    warmup, cycles = settings["kl_warmup"], settings["kl_cycles"]
    if warmup is None:
        warmup = int(usual_warmup * epochs) // cycles if cycles > 0 else 0
    if warmup < 0 or warmup * cycles > max(epochs, 0):
        raise ValueError(f"--kl-warmup must be from 0 to {epochs // max(1, cycles)} epochs; found {warmup}")
    elbo = Elbo(num_particles, settings["kl"], settings["kl_weight"], free_nats=settings["free_nats"], kl_cycles=cycles)
    return replace(elbo, kl_warmup=warmup * cycles / epochs)


def check_same_columns(data: DataSet, kinds: Mapping[str, str], name: str) -> None:
    """Refuses a table whose inferred columns have changed since the run was started."""
    assert data.schema is not None
    if different := data.schema.differs(Schema.infer(data.table.frame, kinds)):
        raise ValueError(
            f"{name} has changed since the run was started (here: then, there: now): {'; '.join(different)}"
        )


def check_no_gaps(schema: Schema) -> None:
    """Refuses a table with missing entries if ``--missing`` was not given."""
    gaps = [f"{column.name} ({column.num_missing})" for column in schema.columns if column.num_missing]
    if gaps:
        raise ValueError(
            f"the table has missing entries, in {', '.join(gaps)}: give --missing nan to train on the observed ones, "
            f"or fill them"
        )


def build(settings: dict[str, Any], data: DataSet, kind: models.Kind, levels: list[str]) -> tuple[Any, str]:
    """The model that the settings ask for, and why it has its transform."""
    likelihood, transform, why = choices.likelihood_and_transform(
        data, settings["likelihood"], options.number_or_name(settings["scale"]), dequantize=settings["dequantize"]
    )
    networks, of_network = choices.choose(choices.NETWORKS, settings["network"], "network")
    for name, usual in {"activation": "ReLU", "normalization": None}.items():
        if name not in of_network and settings[name] != usual:
            raise ValueError(f"--network {settings['network']} has no --{name}: leave it out")
    lists = {name: "--" + name.replace("_", "-") for name in ("hidden_dims", "channels", "latent_dims")}
    given = settings | {name: options.integers(settings[name], flag) for name, flag in lists.items()}
    prior = choices.choose({**choices.PRIORS, **kind.priors}, settings["prior"], "prior")
    posterior = choices.choose(choices.POSTERIORS, settings["posterior"], "posterior")
    torch.manual_seed(settings["seed"])
    size = given["latent_dims"][-1] if "latent_dims" in kind.options else settings["latent_dim"]
    given |= {"prior": prior(size) if callable(prior) else prior, "posterior": posterior()}
    arguments = {name: given[name] for name in models.of_builder(settings["model"]) if given[name] is not None}
    if kind.levels is not None:
        arguments[kind.levels] = len(levels)
    if kind.vocabulary:
        arguments["vocabulary"] = data.columns if data.schema is None else data.schema.names
    if kind.has_gaps:
        arguments["missing"] = settings["missing"]
    if kind.networks and (settings["network"] != "mlp" or settings["normalization"] is not None):
        encoder, decoder = networks(**{name: given[name] for name in of_network})
        arguments |= {name: decoder if name.startswith("decoder") else encoder for name in kind.networks}
    else:
        arguments |= {name: given[name] for name in ("hidden_dims", "activation")}
    shape = tuple(data.x_train.shape[1:])
    return kind.builder(shape, likelihood=likelihood, transform=transform, **arguments), why
