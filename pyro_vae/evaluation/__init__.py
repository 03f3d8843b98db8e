"""How good a model is, for any pair of programs: its evidence, its samples."""

from pyro_vae.evaluation.samples import checkerboard, sample_quality
from pyro_vae.evaluation.summary import evaluate

__all__ = ["checkerboard", "evaluate", "sample_quality"]
