"""Variational autoencoders on Pyro and PyTorch: train, look, sample, predict, and check the numbers."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pyro_vae.evaluation import check_pair, evaluate
    from pyro_vae.inference.objectives import Elbo
    from pyro_vae.pair import Batch, Pair
    from pyro_vae.training import epochs, fit
    from pyro_vae.vae import VAE, conv_vae, load, make_vae, mlp_vae

__all__ = [
    "VAE",
    "Batch",
    "Elbo",
    "Pair",
    "__version__",
    "check_pair",
    "conv_vae",
    "epochs",
    "evaluate",
    "fit",
    "load",
    "make_vae",
    "mlp_vae",
]

_ROOMS = {
    "VAE": "vae",
    "Batch": "pair",
    "Elbo": "inference.objectives",
    "Pair": "pair",
    "check_pair": "evaluation",
    "conv_vae": "vae",
    "epochs": "training",
    "evaluate": "evaluation",
    "fit": "training",
    "load": "vae",
    "make_vae": "vae",
    "mlp_vae": "vae",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: ``import pyro_vae`` brings in nothing else."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pyro_vae.{_ROOMS[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
