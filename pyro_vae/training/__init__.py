"""Training any pair of programs."""

from pyro_vae._support.devices import resolve_device
from pyro_vae.training.fit import epochs, fit

__all__ = ["epochs", "fit", "resolve_device"]
