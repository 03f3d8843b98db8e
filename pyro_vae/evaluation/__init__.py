"""How good a model is, for any pair of programs: its evidence, its samples."""

from pyro_vae.evaluation.evidence import Evidence, log_evidence
from pyro_vae.evaluation.samples import checkerboard, sample_quality
from pyro_vae.evaluation.summary import evaluate

__all__ = ["Evidence", "checkerboard", "evaluate", "log_evidence", "sample_quality"]
