r"""Encoder and decoder, and the two Pyro programs that join the parts: :math:`p(z)\,p(x \mid z)` and
:math:`q(z \mid x)`.

The programs keep the contract that every tool of the library relies on, for a user's own programs too:

- a plate ``"data"`` at dim -1, sized by the batch, around every per-datum site; sites outside it are global;
- the observed site is ``"x"``; ``model(x=None, batch_size=n)`` runs the program forward without data;
- the guide samples every latent site of the model; ``"z"`` is the one that ``encode`` speaks of;
- anything else (labels, covariates, masks) comes as keyword arguments given to both, with the batch first.
"""  # noqa: D205

import itertools
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.features import Features, Plain
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import Prior

__all__ = [
    "Decoder",
    "Encoder",
    "Guide",
    "Model",
    "evaluating",
    "forked_random_state",
    "local_parameters",
    "site_distribution",
]


class Decoder(nn.Module):
    r"""A network and a likelihood: :math:`z \mapsto p(x \mid z)`.

    Args:
        network: Maps ``(*B, L)`` to ``(*B, *likelihood.raw_shape(event_shape))``.
        likelihood: Turns that into a distribution. The decoder takes a copy of its own.
        event_shape: Shape of one row of data.

    Shape:
        z: ``(*B, L)``. Returns a distribution with batch ``(*B,)`` and event ``event_shape``, in the model's units. Of
        ``x`` and ``mask``, ``(*B, *event_shape)``, the distribution does not depend on x but through a likelihood that
        asks to observe training data; entries where ``mask`` is false have no say in its log-probability. Other
        keyword arguments go to the likelihood.
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.network = network
        self.likelihood = likelihood.for_event(self.event_shape)

    def forward(  # noqa: D102
        self, z: Tensor, x: Tensor | None = None, mask: Tensor | None = None, **context: Any
    ) -> TorchDistribution:
        raw = self.network(z)
        if x is not None and self.training:
            self.likelihood.observe(raw, x, mask, **context)
        return self.likelihood(raw, mask=mask, **context)


class Encoder(nn.Module):
    r"""A network and a posterior family: :math:`x \mapsto q(z \mid x)`.

    Args:
        network: Maps ``(*B, *features.shape(event_shape))`` to ``(*B, *posterior.raw_shape((latent_dim,)))``.
        posterior: Turns that into a distribution. The encoder takes a copy of its own.
        latent_dim: Number of latents :math:`L`.
        features: How the network is shown a row; by default as it is.

    Shape:
        x: ``(*B, *event_shape)`` in the model's units; mask: the same, true where an entry is observed. Returns a
        distribution with batch ``(*B,)`` and event ``(L,)``.
    """

    def __init__(
        self, network: nn.Module, posterior: Posterior, latent_dim: int, features: Features | None = None
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.features = Plain() if features is None else features
        self.network = network
        self.posterior = posterior.for_event((latent_dim,))

    def forward(self, x: Tensor, mask: Tensor | None = None, **context: Any) -> TorchDistribution:  # noqa: D102
        if "size_factor" in context:  # what was looked at more is not more
            x = x / context["size_factor"].to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return self.posterior(self.network(self.features(x, mask)))


# Pyro's parameter store keeps the first tensor it sees under a name, so a second model with the same name would
# silently not train. Names are given once for each object; a copy is another object.
_names: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()
_numbers = itertools.count()


def _register(module: nn.Module) -> None:
    name = _names.setdefault(module, f"{type(module).__name__.lower()}_{next(_numbers)}")
    pyro.module(name, module)


class Model(nn.Module):
    r"""The generative program :math:`p(z)\,p(x \mid z)`.

    Args:
        prior: Called with nothing, returns :math:`p(z)`.
        decoder: Called with ``z``, returns :math:`p(x \mid z)`.
    """

    def __init__(self, prior: Prior, decoder: Decoder) -> None:
        super().__init__()
        self.prior, self.decoder = prior, decoder

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **context: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` in the model's units, or forward for ``batch_size`` new rows.

        ``mask`` is true where an entry is observed; other keyword arguments go to the likelihood.
        """
        rows = batch_size if x is None else len(x)
        if rows is None:
            raise ValueError("the model needs rows x, or batch_size=n to draw n new ones")
        _register(self)
        with pyro.plate("data", rows, dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.decoder(z, x, mask, **context), obs=x)


class Guide(nn.Module):
    r"""The inference program :math:`q(z \mid x)`.

    Args:
        encoder: Called with ``x``, returns :math:`q(z \mid x)`.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **context: Any) -> Tensor:
        """Runs the program on rows ``x`` in the model's units; ``mask`` is true where an entry is observed."""
        _register(self)
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.encoder(x, mask, **context))


@contextmanager
def local_parameters() -> Iterator[None]:
    """Keeps the parameters of modules out of Pyro's global store while programs run.

    Modules hold their own parameters. In the global store they would be found by name, so that two modules of one
    name would share them, and they would outlive their module. Parameters made by a bare ``pyro.param`` have no other
    home: they are seen inside, and stay.
    """
    store = pyro.get_param_store()
    with store.scope(_bare(store.get_state())) as state:
        yield
    store.set_state(_bare(state))


def _bare(state: Any) -> Any:
    params = {name: value for name, value in state["params"].items() if not isinstance(value, nn.Parameter)}
    return {"params": params, "constraints": {name: state["constraints"][name] for name in params}}


def forked_random_state(device: torch.device) -> AbstractContextManager[None]:
    """Puts torch's random state, on the CPU and on ``device``, back to what it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


@contextmanager
def evaluating(*programs: Any) -> Iterator[None]:
    """Runs programs without gradients and in evaluation mode, and puts each module's mode back."""
    modules = [module for program in programs if isinstance(program, nn.Module) for module in program.modules()]
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad(), local_parameters():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def site_distribution(program: Any, site: str, *args: Any, **kwargs: Any) -> TorchDistribution:
    """Runs a program once and returns the distribution at one of its sample sites.

    Raises:
        ValueError: if the program has no such site, naming those it has.
    """
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    if site not in trace.nodes or trace.nodes[site]["type"] != "sample":
        sites = [*trace.stochastic_nodes, *trace.observation_nodes]
        raise ValueError(f"the program has no sample site {site!r}; its sites are {', '.join(sites) or 'none'}")
    return trace.nodes[site]["fn"]
