"""NumPyro as in its example: a whole epoch is one jitted loop, which shuffles, binarises and steps."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import lax, random
from jax.example_libraries import stax
from numpyro.infer import SVI, Trace_ELBO

from peers import Look, Task

WEIGHTS = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as torch.nn.Linear's


def _networks(num_pixels: int, task: Task) -> tuple:
    def mlp(hidden: int, out: int) -> tuple:
        return stax.serial(stax.Dense(hidden, WEIGHTS), stax.Softplus, stax.Dense(out, WEIGHTS))

    return mlp(task.hidden_dim, 2 * task.latent_dim), mlp(task.hidden_dim, num_pixels)


@functools.cache
def _compiled(num_pixels: int, num_rows: int, task: Task) -> tuple:
    """The SVI object, and the jitted epoch: (state, key, grey levels) → (state, sum of the steps' losses)."""
    encoder, decoder = _networks(num_pixels, task)

    def model(x: jax.Array) -> None:
        decode = numpyro.module("decoder", decoder, (len(x), task.latent_dim))
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([task.latent_dim]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        encode = numpyro.module("encoder", encoder, (len(x), num_pixels))
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(encode(x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(task.learning_rate), Trace_ELBO())

    @functools.partial(jax.jit, donate_argnums=0)
    def epoch(state, key, grey):  # noqa: ANN001, ANN202
        order_key, bits_key = random.split(key)
        order = random.permutation(order_key, num_rows)

        def step(i, carried):  # noqa: ANN001, ANN202
            state, total = carried
            batch = grey[lax.dynamic_slice_in_dim(order, i * task.batch_size, task.batch_size)]
            bits = random.bernoulli(random.fold_in(bits_key, i), batch).astype(grey.dtype)
            state, loss = svi.update(state, bits)
            return state, total + loss

        return lax.fori_loop(0, num_rows // task.batch_size, step, (state, 0.0))

    return svi, epoch


def _device(task: Task) -> Any:
    """The device.

    Raises:
        ImportError: if this jax was installed without support for the GPU.
    """
    try:
        return jax.devices("gpu" if task.device == "cuda" else "cpu")[0]
    except RuntimeError as error:
        raise ImportError("jax finds no GPU: pip install 'jax[cuda13]'") from error


_executables: dict[tuple, Any] = {}


def _executable(epoch: Any, *arguments: Any) -> Any:
    """The epoch, compiled before timing, once for each shape of the data."""
    key = epoch, arguments[-1].shape
    if key not in _executables:
        _executables[key] = epoch.lower(*arguments).compile()
    return _executables[key]


def train(x: np.ndarray, task: Task, *, epochs: int, seed: int, look: Look | None = None) -> list[dict[str, float]]:
    """Trains from fresh weights."""
    grey = jax.device_put(x.reshape(len(x), -1).astype(np.float32) / task.high, _device(task))
    svi, epoch = _compiled(grey.shape[1], len(x), task)
    key = random.PRNGKey(seed)
    state = svi.init(key, grey[: task.batch_size])
    compiled = _executable(epoch, state, key, grey)
    history = []
    for number in range(epochs):
        started = time.perf_counter()
        state, loss = compiled(state, random.fold_in(key, number), grey)
        history.append({"elbo": -float(loss) / len(x), "seconds": time.perf_counter() - started})
        if look is not None:
            look(functools.partial(_elbo, jax.jit(svi.evaluate), state, task))
    return history


def _elbo(evaluate: Any, state: Any, task: Task, rows: np.ndarray) -> float:
    x = jax.device_put(rows.reshape(len(rows), -1).astype(np.float32) / task.high, _device(task))
    return -float(evaluate(state, x)) / len(rows)
