"""A page to look around a trained pair: the plane of its latents, and what it answers there. Needs Bokeh."""

from pyro_vae.explorer.neighbours import Neighbours
from pyro_vae.explorer.page import Page
from pyro_vae.explorer.plane import Plane
from pyro_vae.explorer.server import serve

__all__ = ["Neighbours", "Page", "Plane", "serve"]
