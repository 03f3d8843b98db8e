"""Trains a variational autoencoder and writes a run folder: the model, its history and figures."""

import contextlib
import inspect
import os
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from pyro_vae._support import files
from pyro_vae.cli import choices, options, runs
from pyro_vae.cli.training import train
from pyro_vae.data.sources import default_root
from pyro_vae.training import resolve_device
from pyro_vae.training.parallel import from_first_rank, process_group, rank
from pyro_vae.vae import CONFIG, load_config

EXAMPLES = (
    "pyro-vae train --data digits --likelihood bernoulli",
    "pyro-vae train --data photographs/ --network conv --resize 64,64",
    "pyro-vae train --data patients.csv --columns id=index --missing nan",
    "pyro-vae train --data digits --model semi-supervised --known 100",
    "pyro-vae train --config runs/digits-mlp/run.toml --seed 1",
    "pyro-vae train --resume runs/digits-mlp",
)

NOT_OF_A_RUN = ("context", "config", "device", "out", "resume", "help")
# Groups of options on the help page.
DATA = "Data"
STORY = "Generative model"
NETWORK = "Networks and the posterior"
OBJECTIVE = "Objective"
TRAINING = "Training"
RUN = "The run"


def main(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, kmnist, cifar10, or torchvision:CLASS; or a .npy, .npz, .h5ad, .csv, "
            ".tsv, .xlsx or .parquet file, or a folder of images. A large .npy stays on disk.",
            rich_help_panel=DATA,
        ),
    ] = "digits",
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder for downloaded data sets. [default: $PYRO_VAE_DATA, or data]", rich_help_panel=DATA),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="Kinds of a table's columns, such as 'age=count,\"patient id\"=index': binary, count, positive, "
            "real, category or date; index is not modelled but copied to results, drop is left out. "
            "[default: inferred]",
            rich_help_panel=DATA,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The column of a table that holds labels. It is not modelled. [default: the data's own labels]",
            metavar="COLUMN",
            rich_help_panel=DATA,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="For pooled: the column that holds groups. [default: the data's labels]",
            metavar="COLUMN",
            rich_help_panel=DATA,
        ),
    ] = None,
    known: Annotated[
        int | None,
        typer.Option(
            help="For semi-supervised: number of labels known in training, chosen at random by --seed. [default: all]",
            rich_help_panel=DATA,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator",
            "--sep",
            help="A table's field separator: , ; | or tab. [default: detected]",
            rich_help_panel=DATA,
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option(help="A table's decimal point: . or , [default: detected]", rich_help_panel=DATA),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="A table's text encoding, such as utf-8 or cp1252. [default: detected]", rich_help_panel=DATA
        ),
    ] = None,
    header: Annotated[
        str | None,
        typer.Option(
            help="Whether a table's first row holds column names: yes or no. [default: detected]", rich_help_panel=DATA
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="Resize all images of a folder to height,width in pixels. [default: as they are]",
            rich_help_panel=DATA,
        ),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(
            help="nan to treat NaN and empty cells as missing entries. [default: they are an error]",
            rich_help_panel=DATA,
        ),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Add uniform noise to whole grey levels, for a density.", rich_help_panel=DATA
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            help=f"The kind of model: {', '.join(choices.MODELS)}. Options for only some of them say so.",
            rich_help_panel=STORY,
        ),
    ] = "vae",
    likelihood: Annotated[
        str | None,
        typer.Option(
            help=f"The distribution of the data given the latents: {', '.join(choices.LIKELIHOODS)}. "
            "[default: chosen from the data, with the reason printed]",
            rich_help_panel=STORY,
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="The scale of normal, laplace, student-t and log-normal: a fixed number, or learned: shared (one for "
            "all), element (one for each), network (from the latents); for normal also optimal.",
            rich_help_panel=STORY,
        ),
    ] = "shared",
    latent_dim: Annotated[int, typer.Option(help="Number of latents.", rich_help_panel=STORY)] = 10,
    prior: Annotated[
        str,
        typer.Option(
            help=f"The prior of the latents: {', '.join(choices.PRIORS)}; for conditional also conditional.",
            rich_help_panel=STORY,
        ),
    ] = "standard-normal",
    latent_dims: Annotated[
        str,
        typer.Option(help="For ladder: number of latents at each level, from the data up.", rich_help_panel=STORY),
    ] = "32,8",
    num_clusters: Annotated[int, typer.Option(help="For clusters: number of clusters.", rich_help_panel=STORY)] = 10,
    start_epochs: Annotated[
        int | None,
        typer.Option(
            help="For clusters: epochs of pretraining without clusters, which k-means then initialises; 0 for none. "
            "[default: as --epochs]",
            rich_help_panel=STORY,
        ),
    ] = None,
    num_codes: Annotated[
        int | None,
        typer.Option(
            help="For vector-quantized and categorical: codes per row. [default: 16 and 20]", rich_help_panel=STORY
        ),
    ] = None,
    num_values: Annotated[
        int | None,
        typer.Option(
            help="For vector-quantized and categorical: values a code can take. [default: 64 and 10]",
            rich_help_panel=STORY,
        ),
    ] = None,
    code_dim: Annotated[
        int, typer.Option(help="For vector-quantized: dimension of a code's vector.", rich_help_panel=STORY)
    ] = 8,
    estimator: Annotated[
        str,
        typer.Option(
            help="For categorical: the gradient estimator of the encoder: relaxed (Gumbel-softmax), straight-through, "
            "enumerated or score-function.",
            rich_help_panel=STORY,
        ),
    ] = "relaxed",
    num_topics: Annotated[int, typer.Option(help="For topics: number of topics.", rich_help_panel=STORY)] = 10,
    recurrent_dim: Annotated[
        int, typer.Option(help="For sequences: width of the recurrent encoder.", rich_help_panel=STORY)
    ] = 64,
    joint: Annotated[
        str,
        typer.Option(
            help="For multimodal: how the posteriors given rows and given labels are combined: product or mixture.",
            rich_help_panel=STORY,
        ),
    ] = "product",
    label_weight: Annotated[
        float,
        typer.Option(
            help="For semi-supervised: weight of the classifier's loss, relative to the ELBO.", rich_help_panel=STORY
        ),
    ] = 50.0,
    network: Annotated[
        str,
        typer.Option(
            help="Fully connected: mlp, gated or residual; for images: conv, gated-conv or residual-conv; for signals: "
            "conv1d; for sequences (steps × numbers): recurrent.",
            rich_help_panel=NETWORK,
        ),
    ] = "mlp",
    hidden_dims: Annotated[
        str,
        typer.Option(
            help="Layer widths of fully connected and recurrent networks, such as 400,200.", rich_help_panel=NETWORK
        ),
    ] = "400",
    channels: Annotated[
        str,
        typer.Option(help="Channels of the layers of convolutional networks, such as 32,64.", rich_help_panel=NETWORK),
    ] = "32,64",
    upsample: Annotated[
        str, typer.Option(help="How a convolutional decoder upsamples: transposed or nearest.", rich_help_panel=NETWORK)
    ] = "transposed",
    activation: Annotated[
        str, typer.Option(help="ReLU, LeakyReLU, Tanh, Softplus, SiLU or GELU.", rich_help_panel=NETWORK)
    ] = "ReLU",
    normalization: Annotated[
        str | None,
        typer.Option(
            help="Normalization: none, layer or group. [default: none; in residual networks layer or group]",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    posterior: Annotated[
        str,
        typer.Option(
            help=f"The family of the approximate posterior q(z|x): {', '.join(choices.POSTERIORS)}.",
            rich_help_panel=NETWORK,
        ),
    ] = "diagonal",
    objective: Annotated[
        str,
        typer.Option(
            help=f"The objective to maximise: elbo; {', '.join(choices.AGGREGATE)}; or, with --num-particles of 2 or "
            f"more, {', '.join(choices.WEIGHTED)}.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = "elbo",
    num_particles: Annotated[
        int, typer.Option(help="Draws of the latents for each row at each step.", rich_help_panel=OBJECTIVE)
    ] = 1,
    kl: Annotated[
        str,
        typer.Option(
            help="How the KL is estimated: sampled, analytic (closed form), or auto (analytic where possible).",
            rich_help_panel=OBJECTIVE,
        ),
    ] = "sampled",
    kl_weight: Annotated[
        float, typer.Option(help="Weight β of the KL; 1 maximises the ELBO.", rich_help_panel=OBJECTIVE)
    ] = 1.0,
    kl_warmup: Annotated[
        int | None,
        typer.Option(
            help="Epochs over which the weight of the KL rises from 0 to 1. [default: 0; for ladder and multimodal "
            "half of them, for sequences 30%]",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    kl_cycles: Annotated[
        int, typer.Option(help="Number of times the warm-up is repeated.", rich_help_panel=OBJECTIVE)
    ] = 1,
    free_nats: Annotated[
        float,
        typer.Option(help="Nats below which a latent's KL is not reduced further.", rich_help_panel=OBJECTIVE),
    ] = 0.0,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the data. [default: 20, or as many as make 6,000 steps, up to 1,000]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows per step, on each process. [default: 128, or all if there are fewer]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        float,
        typer.Option(
            help="Adam's initial learning rate. It decays along a cosine in the second half.", rich_help_panel=TRAINING
        ),
    ] = 1e-3,
    average_weights: Annotated[
        float | None,
        typer.Option(
            help="Use an exponential moving average of the weights with this decay per step, such as 0.999.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop when the validation ELBO has not risen for this many epochs.", rich_help_panel=TRAINING
        ),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the training rows kept for validation. The weights with the best validation ELBO are kept.",
            rich_help_panel=TRAINING,
        ),
    ] = 0.1,
    precision: Annotated[
        str,
        typer.Option(
            help="Precision of matrix products: full, tf32 (on a GPU) or bfloat16. Distributions are never rounded.",
            rich_help_panel=TRAINING,
        ),
    ] = "full",
    compile: Annotated[
        str,
        typer.Option(
            "--compile", help="Compile the training step: auto (if it pays off), yes or no.", rich_help_panel=TRAINING
        ),
    ] = "auto",
    device: options.Device = "auto",
    seed: Annotated[
        int,
        typer.Option(help="Random seed: split, weights, order of rows and noise.", rich_help_panel=TRAINING),
    ] = 0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write the history to RUN/tensorboard during training. Needs pip install 'pyro-vae[tracking]'.",
            rich_help_panel=RUN,
        ),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The run folder. [default: runs/DATA-NETWORK, numbered]", rich_help_panel=RUN)
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            help="Resume the run in this folder, with its own settings. Only --learning-rate can be changed.",
            metavar="RUN",
            rich_help_panel=RUN,
        ),
    ] = None,
    config: options.Config = None,
) -> None:
    """Trains a variational autoencoder on a data set and writes a run folder: the model, its history and figures.

    Without options, it trains on scikit-learn's handwritten digits, in about a minute.
    Under torchrun --nproc-per-node K, it trains on K GPUs, or with K processes on CPUs.
    """
    with process_group(resolve_device(device)), contextlib.ExitStack() as stack:
        if rank() > 0:  # only rank 0 prints
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        chosen = stack.enter_context(chosen_run(context, data, data_root, out, resume)) if rank() == 0 else None
        settings, folder = from_first_rank(chosen)
        usual = {n: p.default for n, p in inspect.signature(main).parameters.items() if n not in NOT_OF_A_RUN}
        train(settings, folder, device, usual, resuming=resume is not None)


@contextlib.contextmanager
def chosen_run(
    context: typer.Context, data: str, data_root: Path | None, out: Path | None, resume: Path | None
) -> Iterator[tuple[dict[str, Any], Path]]:
    """The settings of a new or resumed run, and its folder, locked against other processes."""
    options = [option.name for option in context.command.params]  # in a fixed order
    settings = {name: context.params[name] for name in options if name not in NOT_OF_A_RUN}
    if resume is None:
        settings |= {"data": runs.absolute(data), "data_root": str((data_root or default_root()).absolute())}
        model = settings["network"] if settings["model"] == "vae" else settings["model"]
        name = "-".join(filter(None, (Path(data).stem, model, settings["likelihood"])))
        with runs.new_run(out, name) as folder:
            yield settings, folder
        return
    given = [n for n in context.params if getattr(context.get_parameter_source(n), "name", "") == "COMMANDLINE"]
    clashes = ["--" + n.replace("_", "-") for n in given if n not in ("resume", "device", "learning_rate")]
    if clashes:
        raise ValueError(f"--resume uses the run's own settings: leave out {', '.join(clashes)}")
    before = load_config(resume)["run"]
    with files.only_writer(resume):
        after = resumed(settings, before, resume)
        if "learning_rate" in given:
            after |= {"learning_rate": settings["learning_rate"], "other_rate": True}
        yield after, resume


def resumed(defaults: dict[str, Any], before: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that a run was started with. Options that its version lacked have their defaults."""
    if not isinstance(before, dict) or "data" not in before:
        raise ValueError(f"{folder} holds a model, but not a run that can be resumed: train again, with another --out")
    for name, hint in get_type_hints(main).items():
        if name in before and not has_type(before[name], hint):
            raise ValueError(f"{folder / CONFIG} is damaged: its {name} is {before[name]!r:.40}")
    return defaults | before


def has_type(value: Any, hint: Any) -> bool:
    """Whether a JSON value has an option's type."""
    if isinstance(hint, UnionType):
        return any(has_type(value, one) for one in get_args(hint))
    return type(value) in {float: (float, int), Path: (str, type(None))}.get(hint, (get_origin(hint) or hint,))
