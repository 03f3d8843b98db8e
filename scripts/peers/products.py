"""The floor: only the five large matrix products of a step of the MLP, forward and backward."""

import math
import time

import numpy as np
import torch

from peers import Task


def train(x: np.ndarray, task: Task, *, epochs: int, seed: int, dtype: str) -> list[dict[str, float]]:
    """Multiplies as often as the steps of this many epochs."""
    torch.manual_seed(seed)
    batch, num_pixels, hidden = task.batch_size, math.prod(x.shape[1:]), task.hidden_dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, device=task.device, dtype=getattr(torch, dtype))

    rows, features, raw = matrix(batch, num_pixels), matrix(batch, hidden), matrix(batch, num_pixels)
    encoder, decoder = matrix(hidden, num_pixels), matrix(num_pixels, hidden)
    products = [
        (rows, encoder.T),  # the encoder's first layer, and the gradient of its weights
        (features.T, rows),
        (features, decoder.T),  # the decoder's last layer, and the gradients of its weights and of its inputs
        (raw.T, features),
        (raw, decoder),
    ]
    out = [a @ b for a, b in products]
    history = []
    for _ in range(epochs):
        started = time.perf_counter()
        for _ in range(len(x) // batch):
            for (a, b), c in zip(products, out, strict=True):
                torch.mm(a, b, out=c)
        if task.device == "cuda":
            torch.cuda.synchronize()
        history.append({"seconds": time.perf_counter() - started})
    return history
