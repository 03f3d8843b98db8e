"""Training any pair of programs."""

from pyro_vae.training.fit import epochs, fit
from pyro_vae.training.settings import resolve_device

__all__ = ["epochs", "fit", "resolve_device"]
