"""Hand-written PyTorch: rows on the device, the KL in closed form, fused Adam; eager, compiled, or one CUDA graph."""

import math
import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from peers import Look, Task


class Autoencoder(nn.Module):
    """The two networks and the loss."""

    def __init__(self, shape: tuple[int, ...], task: Task) -> None:
        super().__init__()
        self.shape, num_pixels, hidden, latent_dim = shape, math.prod(shape), task.hidden_dim, task.latent_dim
        if task.network == "mlp":
            encoder = [nn.Flatten(), nn.Linear(num_pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent_dim)]
            decoder = [nn.Linear(latent_dim, hidden), nn.Softplus(), nn.Linear(hidden, num_pixels)]
        else:
            height, width = shape[0] // 4, shape[1] // 4
            encoder = [
                *(nn.Unflatten(1, (1, shape[0])), nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU()),
                *(nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
                *(nn.Flatten(), nn.Linear(64 * height * width, 2 * latent_dim)),
            ]
            decoder = [
                *(nn.Linear(latent_dim, 64 * height * width), nn.Unflatten(1, (64, height, width)), nn.ReLU()),
                *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 3, 2, 1, 1)),
            ]
        self.encoder, self.decoder = nn.Sequential(*encoder), nn.Sequential(*decoder)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of q(z | x)."""
        loc, log_scale = self.encoder(x).chunk(2, dim=-1)
        return loc, log_scale

    def logits(self, z: Tensor) -> Tensor:
        """Logits of p(x | z)."""
        return self.decoder(z).reshape(-1, *self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO, in nats per row."""
        loc, log_scale = self.encode(x)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        cross_entropy = F.binary_cross_entropy_with_logits(self.logits(z), x, reduction="sum")
        kl = 0.5 * (loc.square() + (2 * log_scale).exp() - 1).sum() - log_scale.sum()
        return (cross_entropy + kl) / len(x)


_kept: dict[tuple, tuple[Autoencoder, Callable[[Tensor], Tensor]]] = {}


def fresh(shape: tuple[int, ...], task: Task, *, seed: int, compile: bool) -> tuple[Autoencoder, Callable]:
    """A model with new weights, and its loss, compiled once."""
    torch.manual_seed(seed)
    if (shape, task, compile) not in _kept:
        model = Autoencoder(shape, task).to(task.device)
        _kept[shape, task, compile] = model, torch.compile(model) if compile else model
    model, loss = _kept[shape, task, compile]
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            layer.reset_parameters()
    return model, loss


def train(
    x: np.ndarray,
    task: Task,
    *,
    epochs: int,
    seed: int,
    compile: bool = False,
    cuda_graph: bool = False,
    look: Look | None = None,
) -> list[dict[str, float]]:
    """Trains from fresh weights."""
    model, loss = fresh(x.shape[1:], task, seed=seed, compile=compile)
    grey = torch.from_numpy(x).to(task.device).float() / task.high
    optimizer = torch.optim.Adam(model.parameters(), lr=task.learning_rate, fused=True, capturable=cuda_graph)
    index = torch.arange(task.batch_size, device=task.device)
    total = torch.zeros((), device=task.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value = loss(torch.bernoulli(grey[index]))
        value.backward()
        optimizer.step()
        total.add_(value.detach())

    replay = captured(step, model, optimizer) if cuda_graph else step
    history = []
    for _ in range(epochs):
        started = time.perf_counter()
        total.zero_()
        order = torch.randperm(len(grey), device=task.device)
        for rows in order.split(task.batch_size):
            index.copy_(rows)
            replay()
        elbo = -float(total) / (len(grey) // task.batch_size)
        history.append({"seconds": time.perf_counter() - started, "elbo": elbo})
        if look is not None:
            look(lambda rows: _elbo(model, rows, task))
    return history


@torch.no_grad()
def _elbo(model: Autoencoder, rows: np.ndarray, task: Task) -> float:
    return -float(model(torch.from_numpy(rows).to(task.device).float() / task.high))


def captured(step: Callable[[], None], model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """The step as one CUDA graph; the weights and moments are restored after the warm-up steps."""
    weights = [p.detach().clone() for p in model.parameters()]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    with torch.no_grad():
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            parameter.copy_(weight)
        for moments in optimizer.state.values():
            for value in moments.values():
                value.zero_()
    return graph.replay


def synchronize(task: Task) -> None:
    """Waits for the device."""
    if task.device == "cuda":
        torch.cuda.synchronize()


def sample(x: np.ndarray, task: Task, *, num_samples: int, seed: int) -> float:
    """Seconds that draws from the prior take, with initial weights."""
    model, _ = fresh(x.shape[1:], task, seed=seed, compile=False)
    started = time.perf_counter()
    with torch.no_grad():
        chunks: Iterable[int] = [1024] * (num_samples // 1024) + [num_samples % 1024]
        draws = [
            torch.bernoulli(model.logits(torch.randn(n, task.latent_dim, device=task.device)).sigmoid()) for n in chunks
        ]
        torch.cat(draws)
    synchronize(task)
    return time.perf_counter() - started


def evidence(x: np.ndarray, task: Task, *, num_particles: int, seed: int) -> float:
    """Seconds that importance-weighted evidence takes, row by row."""
    model, _ = fresh(x.shape[1:], task, seed=seed, compile=False)
    bits = torch.bernoulli(torch.from_numpy(x).to(task.device).float() / task.high)
    synchronize(task)
    started = time.perf_counter()
    with torch.no_grad():
        loc, log_scale = model.encode(bits)
        values = []
        for i in range(len(bits)):
            noise = torch.randn(num_particles, task.latent_dim, device=task.device)
            z = loc[i] + log_scale[i].exp() * noise
            logits = model.logits(z)
            log_p_x = -F.binary_cross_entropy_with_logits(logits, bits[i].expand_as(logits), reduction="none")
            log_ratio = (0.5 * noise.square() + log_scale[i] - 0.5 * z.square()).sum(-1)
            values.append((log_p_x.flatten(1).sum(-1) + log_ratio).logsumexp(0) - math.log(num_particles))
        float(torch.stack(values).mean())
    return time.perf_counter() - started
