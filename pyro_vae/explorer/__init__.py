"""A page to explore a trained pair: the plane of its latents, and the decoder's output there. Needs Bokeh."""

from pyro_vae.explorer.neighbours import Neighbours
from pyro_vae.explorer.page import Page
from pyro_vae.explorer.plane import Plane
from pyro_vae.explorer.server import serve

__all__ = ["Neighbours", "Page", "Plane", "serve"]
