"""Pyro as in its example: a DataLoader, ``SVI.step``, ``Trace_ELBO``, ``pyro.optim.Adam``, with default settings."""

import time
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from peers import Look, Task


class Program(nn.Module):
    """Model and guide in one module, as in the example."""

    def __init__(self, num_pixels: int, task: Task) -> None:
        super().__init__()
        hidden, self.latent_dim = task.hidden_dim, task.latent_dim
        self.encoder = nn.Sequential(
            nn.Linear(num_pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * self.latent_dim)
        )
        self.decoder = nn.Sequential(
            nn.Linear(self.latent_dim, hidden), nn.Softplus(), nn.Linear(hidden, num_pixels), nn.Sigmoid()
        )

    def model(self, x: Tensor) -> None:
        """p(z) p(x | z)."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def train(x: np.ndarray, task: Task, *, epochs: int, seed: int, look: Look | None = None) -> list[dict[str, float]]:
    """Trains from fresh weights."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    grey = torch.from_numpy(x).reshape(len(x), -1).float() / task.high
    loader = DataLoader(TensorDataset(grey), batch_size=task.batch_size, shuffle=True)
    program = Program(grey.shape[1], task).to(task.device)
    adam = pyro.optim.Adam({"lr": task.learning_rate})  # pyright: ignore[reportAttributeAccessIssue]
    svi = SVI(program.model, program.guide, adam, Trace_ELBO())
    history = []
    for _ in range(epochs):
        started, loss = time.perf_counter(), 0.0
        for (batch,) in loader:
            value: Any = svi.step(torch.bernoulli(batch.to(task.device)))
            loss += value
        history.append({"seconds": time.perf_counter() - started, "elbo": -loss / len(x)})
        if look is not None:
            look(lambda rows: _elbo(svi, rows, task))
    return history


def _elbo(svi: SVI, rows: np.ndarray, task: Task) -> float:
    x = torch.from_numpy(rows).reshape(len(rows), -1).float().to(task.device) / task.high
    value: Any = svi.evaluate_loss(x)
    return -value / len(rows)
