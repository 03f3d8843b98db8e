"""Trains a variational autoencoder and leaves a run folder: the model, its history and figures."""

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import beside
import choices
import cli
import models
import torch
import typer
from pictures import draw_figures
from torch import Tensor

from pyro_vae import Elbo, fit
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.data.checks import check_finite
from pyro_vae.data.sources import DataSet, default_root, split
from pyro_vae.data.tables import Schema
from pyro_vae.training import resolve_device
from pyro_vae.training.parallel import first_rank_first, from_first_rank, process_group, rank, world_size
from pyro_vae.vae import CONFIG, load_config
from pyro_vae.vae.saving import check_same

COMPILE = {"auto": "auto", "yes": True, "no": False}


def main(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, kmnist, cifar10, or torchvision:CLASS; or a .npy, .npz, .h5ad, .csv, "
            ".tsv, .xlsx or .parquet file, or a folder of images. A large .npy stays on disk."
        ),
    ] = "digits",
    data_root: Annotated[
        Path | None, typer.Option(help="Where downloaded data sets live. [default: $PYRO_VAE_DATA, or data]")
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help=f"What is supposed to have made the data: {', '.join(choices.MODELS)}. Options of one of them say so."
        ),
    ] = "vae",
    network: Annotated[
        str,
        typer.Option(
            help="Fully connected: mlp, gated or residual; of images: conv, gated-conv or residual-conv; of signals: "
            "conv1d; of sequences, steps × numbers: recurrent."
        ),
    ] = "mlp",
    upsample: Annotated[
        str, typer.Option(help="How a convolutional decoder enlarges: transposed or nearest.")
    ] = "transposed",
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="What a table's columns hold, such as 'age=count,\"patient id\"=index': binary, count, positive, "
            "real, category or date; index keeps a column aside and writes it back, drop leaves it out. "
            "[default: inferred]"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The column of a table that holds labels, which is kept aside. [default: the data's own labels]",
            metavar="COLUMN",
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Of pooled: the column that holds groups. [default: the data's labels]", metavar="COLUMN"),
    ] = None,
    known: Annotated[
        int | None,
        typer.Option(help="Of semi-supervised: labels that are known in training, drawn by --seed. [default: all]"),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", "--sep", help="What stands between a table's fields: , ; | or tab. [default: found]"
        ),
    ] = None,
    decimal: Annotated[
        str | None, typer.Option(help="A table's decimal point: . or , in numbers. [default: found]")
    ] = None,
    encoding: Annotated[
        str | None, typer.Option(help="How a table's text is encoded, such as utf-8 or cp1252. [default: found]")
    ] = None,
    header: Annotated[
        str | None, typer.Option(help="Whether a table's first row holds names: yes or no. [default: found]")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(help="Bring all images of a folder to one size, height,width in pixels. [default: as they are]"),
    ] = None,
    likelihood: Annotated[
        str | None,
        typer.Option(
            help=f"What the data are: {', '.join(choices.LIKELIHOODS)}. [default: by what the numbers are, and said]"
        ),
    ] = None,
    dequantize: Annotated[
        bool, typer.Option("--dequantize", help="Spread whole levels uniformly, for a density of grey levels.")
    ] = False,
    missing: Annotated[
        str | None, typer.Option(help="nan, if NaN or an empty cell is a missing entry. [default: an error]")
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="The scale of normal, laplace, student-t and log-normal: a number, or learned: shared (one), element "
            "(one for each), network; for normal also optimal."
        ),
    ] = "shared",
    latent_dim: Annotated[int, typer.Option(help="Number of latents.")] = 10,
    latent_dims: Annotated[
        str, typer.Option(help="Of ladder: numbers of latents of its levels, from the data up.")
    ] = "32,8",
    num_clusters: Annotated[int, typer.Option(help="Of clusters: how many.")] = 10,
    start_epochs: Annotated[
        int | None,
        typer.Option(
            help="Of clusters: epochs without them, after which they start where k-means finds them; 0 for none. "
            "[default: as --epochs]"
        ),
    ] = None,
    num_codes: Annotated[
        int | None, typer.Option(help="Of vector-quantized and categorical: codes of a row. [default: 16 and 20]")
    ] = None,
    num_values: Annotated[
        int | None, typer.Option(help="Likewise: values that a code may have. [default: 64 and 10]")
    ] = None,
    code_dim: Annotated[int, typer.Option(help="Of vector-quantized: numbers of a code's vector.")] = 8,
    estimator: Annotated[
        str,
        typer.Option(
            help="Of categorical, how its encoder learns: relaxed (Gumbel-softmax), straight-through, enumerated or "
            "score-function."
        ),
    ] = "relaxed",
    num_topics: Annotated[int, typer.Option(help="Of topics: how many.")] = 10,
    recurrent_dim: Annotated[int, typer.Option(help="Of sequences: width of what reads them.")] = 64,
    joint: Annotated[
        str, typer.Option(help="Of multimodal: how rows and labels are joined, by a product or a mixture.")
    ] = "product",
    label_weight: Annotated[
        float, typer.Option(help="Of semi-supervised: what the classifier learns of a label, beside the ELBO.")
    ] = 50.0,
    prior: Annotated[
        str,
        typer.Option(
            help=f"What latents are like before any data: {', '.join(choices.PRIORS)}; of conditional also conditional."
        ),
    ] = "standard-normal",
    posterior: Annotated[
        str, typer.Option(help=f"What may be believed of a row's latents: {', '.join(choices.POSTERIORS)}.")
    ] = "diagonal",
    hidden_dims: Annotated[
        str, typer.Option(help="Widths of fully connected and recurrent networks' layers, such as 400,200.")
    ] = "400",
    channels: Annotated[str, typer.Option(help="Channels of convolutional networks' layers, such as 32,64.")] = "32,64",
    activation: Annotated[str, typer.Option(help="ReLU, LeakyReLU, Tanh, Softplus, SiLU or GELU.")] = "ReLU",
    normalization: Annotated[
        str | None,
        typer.Option(help="Of the layers: none, layer or group. [default: none; in residual networks layer or group]"),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(help="Times every row is seen. [default: 20, or as many as make 6,000 steps, up to 1,000]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows in a step, on each process. [default: 128, or all where there are fewer]")
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's step size at the start; it falls along a cosine.")
    ] = 1e-3,
    objective: Annotated[
        str,
        typer.Option(
            help=f"What is maximised: elbo; {', '.join(choices.AGGREGATE)}; or, of --num-particles of 2 or more, "
            f"{', '.join(choices.WEIGHTED)}."
        ),
    ] = "elbo",
    kl_weight: Annotated[float, typer.Option(help="Weight β of the KL; 1 maximises the ELBO.")] = 1.0,
    kl: Annotated[
        str,
        typer.Option(help="How the KL is estimated: sampled, analytic (in closed form), or auto (where there is one)."),
    ] = "sampled",
    num_particles: Annotated[int, typer.Option(help="Draws of the latents for each row and step.")] = 1,
    kl_warmup: Annotated[
        int | None,
        typer.Option(
            help="Epochs over which the weight of the KL rises from 0 to 1. [default: 0; of ladder and multimodal half "
            "of them, of sequences three in ten]"
        ),
    ] = None,
    kl_cycles: Annotated[int, typer.Option(help="Times that it does so, one after another.")] = 1,
    average_weights: Annotated[
        float | None,
        typer.Option(
            help="Use an average of the weights over steps, each counting this much less than the next: 0.999."
        ),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop when the validation ELBO has not risen for so many epochs.")
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(help="Share of the training rows that is only watched; the best weights by it are kept."),
    ] = 0.1,
    precision: Annotated[
        str,
        typer.Option(help="Of matrix products: full, tf32 (on a GPU) or bfloat16; distributions never are rounded."),
    ] = "full",
    compile: Annotated[
        str, typer.Option("--compile", help="Compile the training step: auto (where it repays), yes or no.")
    ] = "auto",
    device: cli.Device = "auto",
    seed: Annotated[int, typer.Option(help="Seeds the split, the weights, the order of rows and the noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="The run folder. [default: runs/DATA-NETWORK, numbered]")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Go on with the run in this folder, with its own settings; --learning-rate alone may be another.",
            metavar="RUN",
        ),
    ] = None,
) -> None:
    """Trains a variational autoencoder on a data set.

    Without options: on the handwritten digits that come with scikit-learn, in about a minute.
    Under torchrun --nproc-per-node K: on K GPUs, or K processes on CPUs, together.
    """
    with process_group(resolve_device(device)), contextlib.ExitStack() as stack:
        if rank() > 0:  # rank 0 prints
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        chosen = stack.enter_context(chosen_run(context, data, data_root, out, resume)) if rank() == 0 else None
        settings, folder = from_first_rank(chosen)
        train(settings, folder, device, resuming=resume is not None)


@contextlib.contextmanager
def chosen_run(
    context: typer.Context, data: str, data_root: Path | None, out: Path | None, resume: Path | None
) -> Iterator[tuple[dict[str, Any], Path]]:
    """The settings of a run, new or resumed, and its folder, in which no other process writes."""
    options = [option.name for option in context.command.params]  # in one order, however they were given
    settings = {name: context.params[name] for name in options if name not in ("out", "resume", "device")}
    if resume is None:
        settings |= {"data": cli.absolute(data), "data_root": str((data_root or default_root()).absolute())}
        model = settings["network"] if settings["model"] == "vae" else settings["model"]
        name = "-".join(filter(None, (Path(data).stem, model, settings["likelihood"])))
        with cli.new_run(out, name) as folder:
            yield settings, folder
        return
    given = [n for n in context.params if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
    clashes = ["--" + n.replace("_", "-") for n in given if n not in ("resume", "device", "learning_rate")]
    if clashes:
        raise ValueError(f"--resume goes on with the run's own settings: leave out {', '.join(clashes)}")
    before = load_config(resume)["run"]
    with files.only_writer(resume):
        after = resumed(settings, before, resume)
        if "learning_rate" in given:
            after |= {"learning_rate": settings["learning_rate"], "other_rate": True}
        yield after, resume


def resumed(defaults: dict[str, Any], before: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that a run was begun with; those that its version did not know have their defaults."""
    if not isinstance(before, dict) or "data" not in before:
        raise ValueError(f"{folder} holds a model, but no run of this script that can be resumed: train anew, by --out")
    for name, hint in get_type_hints(main).items():
        if name in before and not has_type(before[name], hint):
            raise ValueError(f"{folder / CONFIG} is damaged: its {name} is {before[name]!r:.40}")
    return defaults | before


def has_type(value: Any, hint: Any) -> bool:
    """Whether JSON data are of an option's type."""
    if isinstance(hint, UnionType):
        return any(has_type(value, one) for one in get_args(hint))
    return type(value) in {float: (float, int), Path: (str, type(None))}.get(hint, (get_origin(hint) or hint,))


def train(settings: dict[str, Any], folder: Path, device: str, *, resuming: bool) -> None:
    """Trains by these settings in a run folder."""
    checkpoint = folder / cli.CHECKPOINT
    kind = choices.choose(choices.MODELS, settings["model"], "model")
    usual = {name: parameter.default for name, parameter in inspect.signature(main).parameters.items()}
    models.check_options(settings["model"], settings, usual)
    if resuming and not checkpoint.exists() and (folder / "history.csv").exists():
        print(f"{folder} has been trained to its end: nothing is left to do.")
        return
    kinds: Mapping[str, str] = cli.kinds_of(settings)
    reading = {option: settings[option] for option in cli.READING}
    known = None if settings.get("schema") is None else Schema.from_json(settings["schema"])
    with first_rank_first():
        data = cli.read_data(settings["data"], settings["data_root"], kinds=kinds, schema=known, **reading)
        if kind.columns is not None and data.schema is not None:
            kinds = dict.fromkeys(data.schema.names, str(kind.columns)) | dict(kinds)
            data = cli.read_data(settings["data"], settings["data_root"], kinds=kinds, schema=known, **reading)
    if resuming and data.schema is not None:
        check_same_columns(data, kinds, settings["data"])
    data = cli.with_labels(data, settings)
    whole = settings["missing"] is None and kind.has_gaps and data.lengths_train is None
    if whole and data.schema is not None:
        check_no_gaps(data.schema)
    if whole and isinstance(data.x_train, Tensor):
        check_finite(data.x_train, settings["data"])
    kept, of_watched = split(len(data.x_train), settings["validation_fraction"], settings["seed"])
    if kind.levels is not None:
        settings = {"levels": beside.levels_of(data, settings["model"], kind)} | settings
    levels = settings.get("levels", [])
    watched = beside.told(kind, cli.part(data, of_watched), "train", levels)
    data = cli.part(data, kept)
    rows = beside.told(kind, data, "train", levels, training=True)
    if settings["model"] == "semi-supervised":
        rows["labels"] = beside.known(rows["labels"], settings["known"], len(levels), settings["seed"])
    asked = settings["likelihood"]
    likelihood, because = (
        (asked, "as asked for") if asked is not None else kind.likelihood or choices.default_likelihood(data)
    )
    settings = settings | {"likelihood": likelihood}
    if data.schema is not None:
        settings |= {"schema": data.schema.to_json()}
        print(data.schema.describe().to_string(index=False), end="\n\n")
    vae, why = build(settings, data, kind, levels)
    at_once = settings["batch_size"] or min(128, len(data.x_train) // world_size())
    usual = min(1000, max(20, math.ceil(6000 / math.ceil(len(data.x_train) / max(1, at_once)))))
    epochs = usual if settings["epochs"] is None else settings["epochs"]
    if epochs < 1:
        raise ValueError(f"--epochs must be at least 1, found {epochs}")
    start_epochs = epochs if settings["start_epochs"] is None else settings["start_epochs"]
    if start_epochs < 0:
        raise ValueError(f"--start-epochs must be at least 0, found {start_epochs}")
    told = rows
    objective = objective_of(settings, epochs, kind.warmup)
    if settings["model"] == "multimodal":
        rows = vae.each_alone(rows)

    if isinstance(data.x_train, Tensor):  # what streams is looked at once, by fit
        vae.check(rows, settings["data"])
    if resuming:
        check_same(vae, folder, load_config(folder), whose="the model that the run's settings ask for")
    if rank() == 0:
        vae.save_config(folder, run=settings)
    for note in data.notes:
        print(f"note        {note}")
    num_weights = sum(p.numel() for p in vae.parameters())
    split_up = f"{len(kept):,} to train on, {len(of_watched):,} to watch, {len(data.x_test):,} to test"
    print(f"data        {data.name}, rows: {split_up}")
    word = settings["network"] if kind.networks else "networks of its own"
    what = word if settings["model"] == "vae" else f"{settings['model']}, {word}"
    print(f"model       {what}, {kind.latents(vae)}, {num_weights:,} weights")
    if kind.told is not None:
        print(f"{kind.told:<12}{beside.summary(kind, told, levels)}")
    print(f"likelihood  {settings['likelihood']}: {because}")
    print(f"transform   {vae.transform}: {why}")
    few = at_once < 128 and settings["batch_size"] is None
    print(f"training    {epochs:,} epochs of {at_once} rows a step{', for there are no more' if few else ''}")
    if isinstance(objective, Elbo) and objective.kl_warmup and settings["kl_warmup"] is None:
        print(f"            whose KL counts in full after {round(objective.kl_warmup * epochs)}: see --kl-warmup")
    if rows is not told:
        print("            of rows with their labels, and once again of rows and of labels alone")
    how = {
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "seed": settings["seed"],
        "device": device,
        "precision": settings["precision"],
        "compile": choices.choose(COMPILE, settings["compile"], "--compile"),
    }
    going_on = resuming and ("learning_rate" if settings.get("other_rate") else True)
    if settings["model"] == "clusters" and start_epochs > 0 and not (resuming and checkpoint.exists()):
        print(f"start       {start_epochs:,} epochs without clusters, which then start where k-means finds them")
        start = folder / cli.START
        done = models.start_clusters(
            vae, rows, epochs=start_epochs, checkpoint=start, resume=start.exists() and going_on, **how
        )
        if not done:
            print(f"\nStopped before there were clusters. Go on with:\n  python scripts/train.py --resume {folder}")
            sys.exit(130)
    try:
        history = fit(
            vae,
            rows,
            validation_data=watched,
            objective=objective,
            epochs=epochs,
            average_weights=settings["average_weights"],
            patience=settings["patience"],
            **how,
            checkpoint=checkpoint,
            resume=checkpoint.exists() and going_on,
        )
    except FloatingPointError as error:
        if not checkpoint.exists():
            raise
        if rank() == 0:
            vae.to("cpu").save(folder, run=settings)
        raise FloatingPointError(
            f"{error}. What it had learned by then is in {folder} and can be used; to go on with smaller steps: python "
            f"scripts/train.py --resume {folder} --learning-rate {settings['learning_rate'] / 10:g}"
        ) from error

    if rank() > 0:
        return
    vae.to("cpu").save(folder, run=settings)
    if history.attrs["stopped"] == "interrupted":
        print(f"\nStopped after {len(history)} of {epochs} epochs; what it had learned is in {folder}. Go on with:")
        print(f"  python scripts/train.py --resume {folder}")
        sys.exit(130)
    draw_figures(vae, settings["model"], kind, data, levels, history, folder / "figures")
    with files.replacing(folder / "history.csv") as temporary:
        history.to_csv(temporary, index=False)
    for file in (checkpoint, folder / cli.START):
        file.unlink(missing_ok=True)
    seconds = history["seconds"].median()
    print(f"\nsteps ran {history.attrs['execution']}; an epoch took {seconds:.3g} s")
    best_epoch = history.attrs["best_epoch"]
    best_elbo = history["validation_elbo"].max()
    print(f"validation ELBO {best_elbo:.2f} nats per datum, at epoch {best_epoch} of {len(history)}")
    print(f"The run is in {folder}, its pictures in {folder / 'figures'}. To go on:")
    print(f"  python scripts/evaluate.py {folder} --out metrics.json")
    picture, numbers = ("png", "npy") if data.schema is None else ("csv", "csv")
    picture = "npy" if settings["model"] == "topics" and data.schema is None else picture
    example = beside.example(kind, levels)
    print(f"  python scripts/sample.py {folder} --num-samples 64{example} --out samples.{picture}")
    print(f"  python scripts/predict.py {folder} --num-samples 10 --out predictions.npz")
    print(f"  python scripts/encode.py {folder} --out latents.csv")
    print(f"  python scripts/score.py {folder} --out scores.csv")
    if settings["missing"]:
        print(f"  python scripts/impute.py {folder} --num-samples 5 --out imputed.{numbers}")


# As they usually are.
ELBO_ALONE = {"kl": ("sampled",), "kl_weight": (1.0,), "kl_warmup": (None, 0), "kl_cycles": (1,)}


def objective_of(settings: dict[str, Any], epochs: int, usual_warmup: float) -> Any:
    """What is maximised. A warm-up is a share of a cycle there, and a number of epochs at the command line."""
    name, num_particles = settings["objective"], settings["num_particles"]
    lookup(name, ["elbo", *choices.WEIGHTED, *choices.AGGREGATE], "objective")
    changed = [option for option, usual in ELBO_ALONE.items() if settings[option] not in usual]
    if name != "elbo" and changed:
        raise ValueError(f"--{changed[0].replace('_', '-')} is of --objective elbo alone: leave it out")
    if name in choices.AGGREGATE:
        if num_particles != 1:
            raise ValueError(f"--objective {name} takes one draw of a row: leave --num-particles out")
        return choices.AGGREGATE[name]()
    if name in choices.WEIGHTED:
        if num_particles < 2:
            raise ValueError(f"--objective {name} weighs several draws of a row: give --num-particles 5")
        return choices.WEIGHTED[name](num_particles)
    warmup, cycles = settings["kl_warmup"], settings["kl_cycles"]
    if warmup is None:
        warmup = int(usual_warmup * epochs) // cycles if cycles > 0 else 0
    if warmup < 0 or warmup * cycles > max(epochs, 0):
        raise ValueError(f"--kl-warmup must be from 0 to {epochs // max(1, cycles)} epochs; found {warmup}")
    elbo = Elbo(num_particles, settings["kl"], settings["kl_weight"], kl_cycles=cycles)
    return replace(elbo, kl_warmup=warmup * cycles / epochs)


def check_same_columns(data: DataSet, kinds: Mapping[str, str], name: str) -> None:
    """Refuses a table whose columns would now be taken for something else than when the run was begun."""
    assert data.schema is not None
    if different := data.schema.differs(Schema.infer(data.table.frame, kinds)):
        raise ValueError(f"{name} has changed since the run was begun (here) to now (there): {'; '.join(different)}")


def check_no_gaps(schema: Schema) -> None:
    """Refuses a table with missing entries where nothing was said of them."""
    gaps = [f"{column.name} ({column.num_missing})" for column in schema.columns if column.num_missing]
    if gaps:
        raise ValueError(
            f"the table has missing entries, in {', '.join(gaps)}: give --missing nan to train on what is there, or "
            f"fill them"
        )


def build(settings: dict[str, Any], data: DataSet, kind: models.Kind, levels: list[str]) -> tuple[Any, str]:
    """The model that the settings ask for, and why its transform."""
    likelihood, transform, why = choices.likelihood_and_transform(
        data, settings["likelihood"], cli.number_or_name(settings["scale"]), dequantize=settings["dequantize"]
    )
    networks, of_network = choices.choose(choices.NETWORKS, settings["network"], "network")
    for name, usual in {"activation": "ReLU", "normalization": None}.items():
        if name not in of_network and settings[name] != usual:
            raise ValueError(f"--network {settings['network']} has no --{name}: leave it out")
    lists = {name: "--" + name.replace("_", "-") for name in ("hidden_dims", "channels", "latent_dims")}
    given = settings | {name: cli.integers(settings[name], flag) for name, flag in lists.items()}
    prior = choices.choose({**choices.PRIORS, **kind.priors}, settings["prior"], "prior")
    posterior = choices.choose(choices.POSTERIORS, settings["posterior"], "posterior")
    torch.manual_seed(settings["seed"])
    size = given["latent_dims"][-1] if "latent_dims" in kind.options else settings["latent_dim"]
    given |= {"prior": prior(size) if callable(prior) else prior, "posterior": posterior()}
    options = {name: given[name] for name in models.of_builder(settings["model"]) if given[name] is not None}
    if kind.levels is not None:
        options[kind.levels] = len(levels)
    if settings["model"] == "topics":
        options["vocabulary"] = data.columns if data.schema is None else data.schema.names
    if kind.has_gaps:
        options["missing"] = settings["missing"]
    if kind.networks and (settings["network"] != "mlp" or settings["normalization"] is not None):
        encoder, decoder = networks(**{name: given[name] for name in of_network})
        options |= {name: decoder if name.startswith("decoder") else encoder for name in kind.networks}
    else:
        options |= {name: given[name] for name in ("hidden_dims", "activation")}
    shape = tuple(data.x_train.shape[1:])
    return kind.builder(shape, likelihood=likelihood, transform=transform, **options), why


if __name__ == "__main__":
    cli.run_command(main)
