"""Contenders of ``scripts/benchmark.py``: the same work, each in the usual style of its library.

Every module here has ``train(x, task, *, epochs, seed, …)``, which trains from fresh weights and returns for each
epoch its ``seconds`` and the mean ``elbo`` of its steps in nats per row. An epoch is the same work for all: the rows
are shuffled, each batch is binarised again, and each batch is a step of Adam. No contender imports another's library.

After each epoch ``train`` calls ``look``, if there is one, with a function from rows to their mean ELBO.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Look = Callable[[Callable[[Any], float]], None]


@dataclass(frozen=True)
class Task:
    """The model that all contenders train.

    Args:
        network: ``"mlp"`` is D-hidden-latent with Softplus; ``"conv"`` has channels 32 and 64 and ReLU.
        hidden_dim: Width of the single hidden layer of each MLP.
        latent_dim: Number of latents.
        batch_size: Rows in a step; the number of rows is a multiple of this.
        learning_rate: Adam's step size.
        high: The grey level that is always 1 when bits are drawn.
        num_particles: Draws from the guide for each row.
        device: ``"cpu"`` or ``"cuda"``.
    """

    network: str = "mlp"
    hidden_dim: int = 400
    latent_dim: int = 50
    batch_size: int = 128
    learning_rate: float = 1e-3
    high: int = 255
    num_particles: int = 1
    device: str = "cpu"
