"""This library: a premade VAE and :func:`pyro_vae.fit`."""

import time
from typing import Any

import numpy as np
import torch

import pyro_vae
from peers import Look, Task
from pyro_vae import VAE, Elbo, conv_vae, evaluate, mlp_vae
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize


def build(shape: tuple[int, ...], task: Task, seed: int) -> VAE:
    """A VAE with fresh weights."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {"likelihood": Bernoulli(), "transform": Binarize(0, task.high)}
    if task.network == "conv":
        return conv_vae(shape, task.latent_dim, channels=(32, 64), **common)
    return mlp_vae(shape, task.latent_dim, hidden_dims=(task.hidden_dim,), activation="Softplus", **common)


def train(
    x: np.ndarray,
    task: Task,
    *,
    epochs: int,
    seed: int,
    compile: Any = "auto",
    precision: Any = "full",
    look: Look | None = None,
) -> list[dict[str, float]]:
    """Trains from fresh weights."""
    vae = build(x.shape[1:], task, seed)
    history = []
    for row in pyro_vae.epochs(
        vae,
        x,
        objective=Elbo(task.num_particles),
        epochs=epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        schedule="constant",
        seed=seed,
        device=task.device,
        progress=False,
        compile=compile,
        precision=precision,
    ):
        history.append({name: float(row[name]) for name in ("seconds", "elbo")})
        if look is not None:
            look(lambda rows: float(evaluate(vae, rows)["elbo"]))
    return history


def sample(x: np.ndarray, task: Task, *, num_samples: int, seed: int) -> float:
    """Seconds that draws from the prior take, with initial weights."""
    vae = build(x.shape[1:], task, seed).to(task.device)
    started = time.perf_counter()
    vae.sample(num_samples).cpu()
    return time.perf_counter() - started


def evidence(x: np.ndarray, task: Task, *, num_particles: int, seed: int) -> float:
    """Seconds that importance-weighted evidence takes."""
    from pyro_vae.evaluation import log_evidence

    vae = build(x.shape[1:], task, seed).to(task.device)
    started = time.perf_counter()
    log_evidence(vae, x, num_particles=num_particles)
    return time.perf_counter() - started
