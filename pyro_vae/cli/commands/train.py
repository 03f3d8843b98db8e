"""Trains a variational autoencoder and leaves a run folder: the model, its history and figures."""

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
# The groups of its help page.
DATA = "Data"
STORY = "What made the data"
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
        typer.Option(help="Where downloaded data sets live. [default: $PYRO_VAE_DATA, or data]", rich_help_panel=DATA),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            help="What a table's columns hold, such as 'age=count,\"patient id\"=index': binary, count, positive, "
            "real, category or date; index keeps a column aside and writes it back, drop leaves it out. "
            "[default: inferred]",
            rich_help_panel=DATA,
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The column of a table that holds labels, which is kept aside. [default: the data's own labels]",
            metavar="COLUMN",
            rich_help_panel=DATA,
        ),
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(
            help="Of pooled: the column that holds groups. [default: the data's labels]",
            metavar="COLUMN",
            rich_help_panel=DATA,
        ),
    ] = None,
    known: Annotated[
        int | None,
        typer.Option(
            help="Of semi-supervised: labels that are known in training, drawn by --seed. [default: all]",
            rich_help_panel=DATA,
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator",
            "--sep",
            help="What stands between a table's fields: , ; | or tab. [default: found]",
            rich_help_panel=DATA,
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option(help="A table's decimal point: . or , in numbers. [default: found]", rich_help_panel=DATA),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="How a table's text is encoded, such as utf-8 or cp1252. [default: found]", rich_help_panel=DATA
        ),
    ] = None,
    header: Annotated[
        str | None,
        typer.Option(help="Whether a table's first row holds names: yes or no. [default: found]", rich_help_panel=DATA),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            help="Bring all images of a folder to one size, height,width in pixels. [default: as they are]",
            rich_help_panel=DATA,
        ),
    ] = None,
    missing: Annotated[
        str | None,
        typer.Option(help="nan, if NaN or an empty cell is a missing entry. [default: an error]", rich_help_panel=DATA),
    ] = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize", help="Spread whole levels uniformly, for a density of grey levels.", rich_help_panel=DATA
        ),
    ] = False,
    model: Annotated[
        str,
        typer.Option(
            help=f"What is supposed to have made the data: {', '.join(choices.MODELS)}. Options of one of them say so.",
            rich_help_panel=STORY,
        ),
    ] = "vae",
    likelihood: Annotated[
        str | None,
        typer.Option(
            help=f"What the data are: {', '.join(choices.LIKELIHOODS)}. [default: by what the numbers are, and said]",
            rich_help_panel=STORY,
        ),
    ] = None,
    scale: Annotated[
        str,
        typer.Option(
            help="The scale of normal, laplace, student-t and log-normal: a number, or learned: shared (one), element "
            "(one for each), network; for normal also optimal.",
            rich_help_panel=STORY,
        ),
    ] = "shared",
    latent_dim: Annotated[int, typer.Option(help="Number of latents.", rich_help_panel=STORY)] = 10,
    prior: Annotated[
        str,
        typer.Option(
            help=f"What latents are like before any data: {', '.join(choices.PRIORS)}; of conditional also "
            "conditional.",
            rich_help_panel=STORY,
        ),
    ] = "standard-normal",
    latent_dims: Annotated[
        str, typer.Option(help="Of ladder: numbers of latents of its levels, from the data up.", rich_help_panel=STORY)
    ] = "32,8",
    num_clusters: Annotated[int, typer.Option(help="Of clusters: how many.", rich_help_panel=STORY)] = 10,
    start_epochs: Annotated[
        int | None,
        typer.Option(
            help="Of clusters: epochs without them, after which they start where k-means finds them; 0 for none. "
            "[default: as --epochs]",
            rich_help_panel=STORY,
        ),
    ] = None,
    num_codes: Annotated[
        int | None,
        typer.Option(
            help="Of vector-quantized and categorical: codes of a row. [default: 16 and 20]", rich_help_panel=STORY
        ),
    ] = None,
    num_values: Annotated[
        int | None,
        typer.Option(help="Likewise: values that a code may have. [default: 64 and 10]", rich_help_panel=STORY),
    ] = None,
    code_dim: Annotated[
        int, typer.Option(help="Of vector-quantized: numbers of a code's vector.", rich_help_panel=STORY)
    ] = 8,
    estimator: Annotated[
        str,
        typer.Option(
            help="Of categorical, how its encoder learns: relaxed (Gumbel-softmax), straight-through, enumerated or "
            "score-function.",
            rich_help_panel=STORY,
        ),
    ] = "relaxed",
    num_topics: Annotated[int, typer.Option(help="Of topics: how many.", rich_help_panel=STORY)] = 10,
    recurrent_dim: Annotated[
        int, typer.Option(help="Of sequences: width of what reads them.", rich_help_panel=STORY)
    ] = 64,
    joint: Annotated[
        str,
        typer.Option(
            help="Of multimodal: how rows and labels are joined, by a product or a mixture.", rich_help_panel=STORY
        ),
    ] = "product",
    label_weight: Annotated[
        float,
        typer.Option(
            help="Of semi-supervised: what the classifier learns of a label, beside the ELBO.", rich_help_panel=STORY
        ),
    ] = 50.0,
    network: Annotated[
        str,
        typer.Option(
            help="Fully connected: mlp, gated or residual; of images: conv, gated-conv or residual-conv; of signals: "
            "conv1d; of sequences, steps × numbers: recurrent.",
            rich_help_panel=NETWORK,
        ),
    ] = "mlp",
    hidden_dims: Annotated[
        str,
        typer.Option(
            help="Widths of fully connected and recurrent networks' layers, such as 400,200.", rich_help_panel=NETWORK
        ),
    ] = "400",
    channels: Annotated[
        str, typer.Option(help="Channels of convolutional networks' layers, such as 32,64.", rich_help_panel=NETWORK)
    ] = "32,64",
    upsample: Annotated[
        str, typer.Option(help="How a convolutional decoder enlarges: transposed or nearest.", rich_help_panel=NETWORK)
    ] = "transposed",
    activation: Annotated[
        str, typer.Option(help="ReLU, LeakyReLU, Tanh, Softplus, SiLU or GELU.", rich_help_panel=NETWORK)
    ] = "ReLU",
    normalization: Annotated[
        str | None,
        typer.Option(
            help="Of the layers: none, layer or group. [default: none; in residual networks layer or group]",
            rich_help_panel=NETWORK,
        ),
    ] = None,
    posterior: Annotated[
        str,
        typer.Option(
            help=f"What may be believed of a row's latents: {', '.join(choices.POSTERIORS)}.", rich_help_panel=NETWORK
        ),
    ] = "diagonal",
    objective: Annotated[
        str,
        typer.Option(
            help=f"What is maximised: elbo; {', '.join(choices.AGGREGATE)}; or, of --num-particles of 2 or more, "
            f"{', '.join(choices.WEIGHTED)}.",
            rich_help_panel=OBJECTIVE,
        ),
    ] = "elbo",
    num_particles: Annotated[
        int, typer.Option(help="Draws of the latents for each row and step.", rich_help_panel=OBJECTIVE)
    ] = 1,
    kl: Annotated[
        str,
        typer.Option(
            help="How the KL is estimated: sampled, analytic (in closed form), or auto (where there is one).",
            rich_help_panel=OBJECTIVE,
        ),
    ] = "sampled",
    kl_weight: Annotated[
        float, typer.Option(help="Weight β of the KL; 1 maximises the ELBO.", rich_help_panel=OBJECTIVE)
    ] = 1.0,
    kl_warmup: Annotated[
        int | None,
        typer.Option(
            help="Epochs over which the weight of the KL rises from 0 to 1. [default: 0; of ladder and multimodal half "
            "of them, of sequences three in ten]",
            rich_help_panel=OBJECTIVE,
        ),
    ] = None,
    kl_cycles: Annotated[
        int, typer.Option(help="Times that it does so, one after another.", rich_help_panel=OBJECTIVE)
    ] = 1,
    free_nats: Annotated[
        float,
        typer.Option(
            help="Nats of the KL of a latent below which it is pushed down no further.", rich_help_panel=OBJECTIVE
        ),
    ] = 0.0,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Times every row is seen. [default: 20, or as many as make 6,000 steps, up to 1,000]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Rows in a step, on each process. [default: 128, or all where there are fewer]",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's step size at the start; it falls along a cosine.", rich_help_panel=TRAINING)
    ] = 1e-3,
    average_weights: Annotated[
        float | None,
        typer.Option(
            help="Use an average of the weights over steps, each counting this much less than the next: 0.999.",
            rich_help_panel=TRAINING,
        ),
    ] = None,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop when the validation ELBO has not risen for so many epochs.", rich_help_panel=TRAINING),
    ] = None,
    validation_fraction: Annotated[
        float,
        typer.Option(
            help="Share of the training rows that is only watched; the best weights by it are kept.",
            rich_help_panel=TRAINING,
        ),
    ] = 0.1,
    precision: Annotated[
        str,
        typer.Option(
            help="Of matrix products: full, tf32 (on a GPU) or bfloat16; distributions never are rounded.",
            rich_help_panel=TRAINING,
        ),
    ] = "full",
    compile: Annotated[
        str,
        typer.Option(
            "--compile", help="Compile the training step: auto (where it repays), yes or no.", rich_help_panel=TRAINING
        ),
    ] = "auto",
    device: options.Device = "auto",
    seed: Annotated[
        int,
        typer.Option(help="Seeds the split, the weights, the order of rows and the noise.", rich_help_panel=TRAINING),
    ] = 0,
    tensorboard: Annotated[
        bool,
        typer.Option(
            "--tensorboard",
            help="Write the history to RUN/tensorboard as it goes; takes pip install 'pyro-vae[tracking]'.",
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
            help="Go on with the run in this folder, with its own settings; --learning-rate alone may be another.",
            metavar="RUN",
            rich_help_panel=RUN,
        ),
    ] = None,
    config: options.Config = None,
) -> None:
    """Trains a variational autoencoder on a data set, and leaves a run folder: the model, its history and figures.

    Without options: on the handwritten digits that come with scikit-learn, in about a minute.
    Under torchrun --nproc-per-node K: on K GPUs, or K processes on CPUs, together.
    """
    with process_group(resolve_device(device)), contextlib.ExitStack() as stack:
        if rank() > 0:  # rank 0 prints
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        chosen = stack.enter_context(chosen_run(context, data, data_root, out, resume)) if rank() == 0 else None
        settings, folder = from_first_rank(chosen)
        usual = {n: p.default for n, p in inspect.signature(main).parameters.items() if n not in NOT_OF_A_RUN}
        train(settings, folder, device, usual, resuming=resume is not None)


@contextlib.contextmanager
def chosen_run(
    context: typer.Context, data: str, data_root: Path | None, out: Path | None, resume: Path | None
) -> Iterator[tuple[dict[str, Any], Path]]:
    """The settings of a run, new or resumed, and its folder, in which no other process writes."""
    options = [option.name for option in context.command.params]  # in one order, however they were given
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
        raise ValueError(
            f"{folder} holds a model, but no run of this script that can be resumed: train again, into another --out"
        )
    for name, hint in get_type_hints(main).items():
        if name in before and not has_type(before[name], hint):
            raise ValueError(f"{folder / CONFIG} is damaged: its {name} is {before[name]!r:.40}")
    return defaults | before


def has_type(value: Any, hint: Any) -> bool:
    """Whether JSON data are of an option's type."""
    if isinstance(hint, UnionType):
        return any(has_type(value, one) for one in get_args(hint))
    return type(value) in {float: (float, int), Path: (str, type(None))}.get(hint, (get_origin(hint) or hint,))
