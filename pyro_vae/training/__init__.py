"""Training any pair of programs."""

from pyro_vae.training.fit import fit, resolve_device

__all__ = ["fit", "resolve_device"]
