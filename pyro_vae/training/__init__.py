"""Training any pair of programs."""

from pyro_vae.training.fit import epochs, fit, resolve_device

__all__ = ["epochs", "fit", "resolve_device"]
