"""Features in which distances between rows are meaningful: those of a small classifier trained on the user's labels."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae.data.rows import Inputs
from pyro_vae.data.sources import split
from pyro_vae.evaluation.described import plain_rows
from pyro_vae.networks import MLP, ConvEncoder
from pyro_vae.programs.running import forked_random_state

__all__ = ["ClassifierFeatures", "train_classifier_features"]


class ClassifierFeatures(nn.Module):
    """The last hidden layer of a classifier, as features of a row; made by :func:`train_classifier_features`.

    Args:
        network: Maps standardised rows ``(N, *E)`` to ``(N, F)``.
        loc: Subtracted from rows.
        scale: Divides them.
        num_classes: Number of labels.

    Shape:
        x: ``(N, *E)`` in the user's units. Returns ``(N, F)``, without gradients.
    """

    def __init__(self, network: nn.Module, loc: float, scale: float, num_features: int, num_classes: int) -> None:
        super().__init__()
        self.network, self.loc, self.scale = network, loc, scale
        self.last = nn.Linear(num_features, num_classes)
        self.accuracy, self.most_frequent = math.nan, math.nan

    accuracy: float
    """Share of held-out rows that it labels correctly: how far its features can be trusted."""
    most_frequent: float
    """Share of the held-out rows that have the most frequent label: the accuracy of always guessing it."""

    def logits(self, x: Tensor) -> Tensor:
        """The classes' logits, ``(N, C)``, with gradients."""
        return self.last(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        return F.relu(self.network((x.to(self.last.weight.dtype) - self.loc) / self.scale))

    def forward(self, x: Any) -> Tensor:  # noqa: D102
        with torch.no_grad():
            return torch.cat([self._features(chunk) for chunk in torch.as_tensor(x).split(1024)])


def train_classifier_features(
    x: Inputs,
    labels: Inputs,
    *,
    num_features: int = 64,
    epochs: int = 10,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> ClassifierFeatures:
    r"""Trains a small classifier, whose last hidden layer provides features for these data.

    A tenth of the rows is held out to measure its accuracy, which should be reported with every number computed from
    its features. Images, ``(H, W)`` or ``(C, H, W)`` with sides of 16 pixels or more, go through two convolutional
    layers, other rows through a fully connected one. It is not Inception, and its distances are not comparable with
    any published FID. Compare two models of the same data in the features of *one* such classifier.

    Args:
        x: Rows ``(N, *E)`` in the user's units; use those that the model was trained on.
        labels: ``(N,)``, class numbers.
        num_features: Width F of the last hidden layer.
        epochs: Passes over the rows.
        batch_size: Rows in a step of Adam.
        learning_rate: Adam's step size, which falls to zero along a cosine.
        seed: Seeds weights, split and order; the caller's random state is unchanged.

    Returns:
        A module that maps rows to features, with its held-out ``accuracy``.

    Raises:
        ValueError: if labels and rows do not match, or there are fewer than two labels.

    Example:
        >>> x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> features = train_classifier_features(x, x[:, 0] > 0, num_features=8)
        >>> features.accuracy > 0.9, features(x).shape
        (True, torch.Size([400, 8]))
    """
    x, labels = torch.as_tensor(plain_rows(x, "x")), torch.as_tensor(plain_rows(labels, "labels"))
    if labels.dim() != 1 or len(labels) != len(x):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected one for each of {len(x)} rows")
    classes, labels = labels.unique(return_inverse=True)
    if len(classes) < 2 or len(x) < 20:
        raise ValueError(
            f"a classifier needs at least two labels and 20 rows, found {len(classes)} and {len(x)}: "
            f"pass features of your own, or none"
        )
    x = x.cpu().to(torch.get_default_dtype())
    kept, held_out = split(len(x), 0.1, seed)
    with forked_random_state(torch.device("cpu")), torch.enable_grad():
        torch.manual_seed(seed)
        scale = float(x[kept].std())
        features = ClassifierFeatures(
            _network(tuple(x.shape[1:]), num_features), float(x[kept].mean()), scale or 1.0, num_features, len(classes)
        )
        optimizer = torch.optim.Adam(features.parameters(), lr=learning_rate)
        steps = epochs * math.ceil(len(kept) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for batch in kept[torch.randperm(len(kept))].split(batch_size):
                optimizer.zero_grad()
                F.cross_entropy(features.logits(x[batch]), labels[batch]).backward()
                optimizer.step()
                schedule.step()
    features.eval().requires_grad_(requires_grad=False)
    chosen = torch.cat([features.logits(chunk) for chunk in x[held_out].split(1024)]).argmax(1)
    features.accuracy = float((chosen == labels[held_out]).double().mean())
    features.most_frequent = float(labels[held_out].bincount().max() / len(held_out))
    return features


def _network(event_shape: tuple[int, ...], num_features: int) -> nn.Module:
    if len(event_shape) in (2, 3) and min(event_shape[-2:]) >= 16:
        return ConvEncoder(event_shape, (num_features,), (16, 32))
    return MLP(event_shape, (num_features,), (128,))
