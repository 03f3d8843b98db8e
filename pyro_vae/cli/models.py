"""The models of the command line: the function that builds each, its options, and what it takes besides rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_vae import (
    VAE,
    MultimodalVAE,
    TopicModel,
    categorical_vae,
    cluster_vae,
    conditional_vae,
    deep_markov_model,
    fit,
    ladder_vae,
    make_vae,
    mlp_vae,
    multimodal_vae,
    pooled_vae,
    semi_supervised_vae,
    topic_model,
    vector_quantized_vae,
)
from pyro_vae.cli import beside
from pyro_vae.evaluation.matching import matched
from pyro_vae.likelihoods import Categorical, Likelihood
from pyro_vae.priors import StandardNormal
from pyro_vae.vae.premade import Premade

Found = Mapping[str, Tensor]

_OF_LATENTS = ("latent_dim", "prior", "posterior")


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Args:
        builder: Called with the shape of a row and, by name, the options below, the number of levels, a likelihood, a
            transform, ``missing`` and networks.
        options: Its options of the command line, in addition to those of every model.
        told: The argument that its programs take for each row: ``labels``, ``groups`` or ``lengths``.
        tell: Makes the programs' input from rows, the codes of their levels, and whether it is for training.
        levels: The builder's name for the number of levels of ``told``.
        networks: The builder's names for networks that can be of any kind; empty if the model has its own.
        has_gaps: Whether it takes ``missing``.
        drawn_given: Arguments that new rows can be conditioned on.
        always_given: Whether they are required.
        draw_given: Draws rows given these, or their means, if ``sample`` does not.
        likelihood: The default if it does not depend on the data, and why.
        columns: The default kind of a table's columns, if it is not inferred from their entries.
        warmup: Default share of the training over which the weight of the KL rises.
        priors: Priors in addition to the usual ones.
        finds: Its predictions for rows, by name: the result and, if there is one, the best guess.
        latents: Describes its latents in words.
        each_alone: Whether it is also trained on rows alone and on labels alone.
        start: Called before training to initialise the model; returns whether it finished.
        vocabulary: Whether columns are words, whose counts are not drawn as images.
    """

    builder: Callable[..., Any]
    options: tuple[str, ...] = _OF_LATENTS
    told: str | None = None
    tell: Callable[[Any, Tensor | None, bool], Any] = lambda x, y, training: x
    levels: str | None = None
    networks: tuple[str, ...] = ("encoder_network", "decoder_network")
    has_gaps: bool = True
    drawn_given: tuple[str, ...] = ()
    always_given: bool = False
    draw_given: Callable[[Any, Mapping[str, Tensor], bool], Tensor] | None = None
    likelihood: tuple[str, str] | None = None
    columns: str | None = None
    warmup: float = 0.0
    priors: Mapping[str, Any] = field(default_factory=dict)
    finds: Callable[[Any, Any], Found] = lambda model, rows: {}
    latents: Callable[[Any], str] = lambda model: f"{model.encoder.latent_dim} latents"
    each_alone: bool = False
    start: Callable[..., bool] | None = None
    vocabulary: bool = False


def _vae(event_shape: Sequence[int], latent_dim: int, **options: Any) -> VAE:
    builder = make_vae if "encoder_network" in options else mlp_vae
    return builder(event_shape, latent_dim, **options)


def _conditional(event_shape: Sequence[int], latent_dim: int, *, num_labels: int, **options: Any) -> Premade:
    return conditional_vae(event_shape, latent_dim, given={"labels": num_labels}, **options)


def _multimodal(
    event_shape: Sequence[int], latent_dim: int, *, num_labels: int, likelihood: Likelihood, **options: Any
) -> Premade:
    kinds = Categorical(num_labels, ordered=False)
    return multimodal_vae({"x": (event_shape, likelihood), "labels": ((), kinds)}, latent_dim, **options)


def _topics(
    event_shape: Sequence[int], num_topics: int, *, vocabulary: Sequence[str] | None = None, **options: Any
) -> TopicModel:
    if len(event_shape) != 1:
        raise ValueError(
            f"--model topics describes counts of words, a row for each document and a column for each word; found rows "
            f"of shape {tuple(event_shape)}"
        )
    if (transform := options.pop("transform")).__class__.__name__ != "Identity":
        raise ValueError(f"--model topics takes counts as they are, but these would need a {transform}")
    return topic_model(vocabulary or event_shape[0], num_topics, **options)


def _sequences(event_shape: Sequence[int], latent_dim: int, **options: Any) -> Premade:
    if len(event_shape) < 2:
        raise ValueError(
            f"--model sequences describes rows of shape (steps, numbers per step); found rows of shape "
            f"{tuple(event_shape)}: save a series of single numbers with shape (rows, steps, 1)"
        )
    return deep_markov_model(event_shape, latent_dim, **options)


def _by_class(name: str, guess: str) -> Callable[[Tensor], Found]:
    return lambda probabilities: {name: probabilities.cpu(), guess: probabilities.argmax(-1).cpu()}


def _labels(model: Any, rows: Any) -> Found:
    return _by_class("label_probabilities", "predicted_labels")(model.predict_label(rows))


def _clusters(model: Any, rows: Any) -> Found:
    return _by_class("cluster_probabilities", "clusters")(model.predict_cluster(rows))


def _labels_of_pictures(model: MultimodalVAE, rows: Any) -> Found:
    """How often each label is drawn given the rest of a row, with a fixed seed."""
    x = beside.rows_alone(rows)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = model.draw_given({"x": x}, 50, num_particles=50)["labels"].long()
    num: Any = model.decoders[1].likelihood.num_levels
    return _by_class("label_probabilities", "predicted_labels")(
        torch.nn.functional.one_hot(draws, num).double().mean(0)
    )


def _pictures_of_labels(model: MultimodalVAE, given: Mapping[str, Tensor], mean: bool) -> Tensor:
    if not mean:
        return model.draw_given(given)["x"][0]
    nothing = torch.full((len(given["labels"]), *model.decoder.event_shape), torch.nan)
    return model.posterior_predictive({"x": nothing, "labels": given["labels"].float()}, mean=True)[0]


def _codes(model: Any, rows: Any) -> Found:
    return {"codes": model.codes(rows).cpu()}


def _codes_of_categories(model: VAE, rows: Any) -> Found:
    blocks = model.encode(rows).mean.unflatten(-1, (-1, model.encoder.posterior.num_values))  # pyright: ignore
    return {"code_probabilities": blocks.cpu(), "codes": blocks.argmax(-1).cpu()}


def _shares(model: TopicModel, rows: Any) -> Found:
    return {"topic_shares": model.shares(rows).cpu()}


def _start_clusters(vae: Any, rows: Any, *, seed: int, **options: Any) -> bool:
    """Pretrains the same networks with a standard normal prior, then initialises the clusters by k-means.

    Returns:
        False if training was interrupted.
    """
    plain = VAE(StandardNormal(vae.prior.latent_dim), vae.decoder, vae.encoder, vae.transform, vae.missing)
    history = fit(plain, rows, seed=seed, schedule="constant", **options)
    if history.attrs["stopped"] == "interrupted":
        return False
    vae.start_at(rows, seed=seed)
    return True


def _levels(model: Any) -> str:
    return f"levels of {', '.join(map(str, model.latent_dims))} latents, from the data up"


MODELS: Mapping[str, Kind] = {
    "vae": Kind(_vae),
    "ladder": Kind(ladder_vae, ("latent_dims", "prior"), warmup=0.5, latents=_levels),
    "conditional": Kind(
        _conditional,
        told="labels",
        tell=beside.of_each,
        levels="num_labels",
        drawn_given=("labels",),
        always_given=True,
        priors={"conditional": "conditional"},
    ),
    "semi-supervised": Kind(
        semi_supervised_vae,
        (*_OF_LATENTS, "known", "label_weight"),
        told="labels",
        tell=beside.in_training,
        levels="num_classes",
        networks=("encoder_network", "decoder_network", "classifier_network"),
        drawn_given=("labels",),
        finds=_labels,
    ),
    "clusters": Kind(
        cluster_vae, ("latent_dim", "posterior", "num_clusters", "start_epochs"), finds=_clusters, start=_start_clusters
    ),
    "vector-quantized": Kind(
        vector_quantized_vae,
        ("num_codes", "num_values", "code_dim"),
        finds=_codes,
        latents=lambda model: (
            f"{model.encoder.latent_dim // model.encoder.posterior.code_dim} codes of "
            f"{model.encoder.posterior.num_values} values, vectors of {model.encoder.posterior.code_dim}"
        ),
    ),
    "categorical": Kind(
        categorical_vae,
        ("num_codes", "num_values", "estimator"),
        finds=_codes_of_categories,
        latents=lambda model: (
            f"{model.latent_dim // model.encoder.posterior.num_values} codes of "
            f"{model.encoder.posterior.num_values} values"
        ),
    ),
    "sequences": Kind(
        _sequences,
        ("latent_dim", "recurrent_dim"),
        warmup=0.3,
        told="lengths",
        networks=(),
        latents=lambda model: f"{model.num_steps} states of {model.prior.latent_dim} latents",
    ),
    "multimodal": Kind(
        _multimodal,
        ("latent_dim", "prior", "joint"),
        warmup=0.5,
        told="labels",
        tell=beside.as_modality,
        levels="num_labels",
        networks=(),
        has_gaps=False,
        drawn_given=("labels",),
        draw_given=_pictures_of_labels,
        finds=_labels_of_pictures,
        latents=lambda model: f"{model.prior.latent_dim} latents of rows and labels",
        each_alone=True,
    ),
    "pooled": Kind(
        pooled_vae,
        (*_OF_LATENTS, "groups"),
        told="groups",
        tell=beside.of_groups,
        levels="num_groups",
        networks=(),
        drawn_given=("groups",),
    ),
    "topics": Kind(
        _topics,
        ("num_topics", "posterior"),
        networks=(),
        drawn_given=("total_count",),
        always_given=True,
        likelihood=("multinomial", "a topic model describes the words of a document, whose number is given"),
        columns="count",
        finds=_shares,
        latents=lambda model: f"{model.prior.latent_dim} topics",
        vocabulary=True,
    ),
}
# What only some models have.
OPTIONS = tuple(dict.fromkeys(option for kind in MODELS.values() for option in kind.options))
_SETTINGS = ("known", "start_epochs", "groups")  # of training and of the data, and not of a builder


def check_options(word: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Refuses an option that the model does not have.

    Raises:
        ValueError: naming the option, and those that the model has.
    """
    kind = MODELS[word]
    others = [name for name in OPTIONS if name not in kind.options and settings[name] != usual[name]]
    if word == "pooled" and settings["labels"] != usual["labels"]:
        others.append("labels")
    if not kind.networks and settings["network"] != usual["network"]:
        others.append("network")
    if not kind.networks and settings["normalization"] != usual["normalization"]:
        others.append("normalization")
    if others:
        known = ", ".join(_flag(name) for name in kind.options)
        raise ValueError(f"--model {word} has no {_flag(others[0])}: leave it out; its own options are {known}")
    if settings["missing"] and not kind.has_gaps:
        raise ValueError(f"--model {word} takes rows with missing entries as they are: leave out --missing")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def of_builder(word: str) -> tuple[str, ...]:
    """The options passed to a model's builder."""
    return tuple(name for name in MODELS[word].options if name not in _SETTINGS)


def scores(kind: Kind, model: Any, rows: Any, y: Tensor | None) -> dict[str, float]:
    """A model's accuracy on rows with known labels ``y``, -1 where unknown; empty if it makes no predictions.

    Clusters have no names: each is matched to a label, by the best assignment.
    """
    if y is None or not bool((there := y >= 0).any()):
        return {}
    found = kind.finds(model, rows)
    if "predicted_labels" in found:
        name, share = "accuracy", float((found["predicted_labels"] == y)[there].double().mean())
    elif "clusters" in found:
        name, share = "cluster_accuracy", matched(found["clusters"][there], y[there])[0]
    else:
        return {}
    num = int(there.sum())
    return {name: share, f"{name}_se": (share * (1 - share) / num) ** 0.5, "num_labelled": num}
