"""How good a model is, for any pair of programs: its evidence, its fit, its samples."""

from pyro_vae.evaluation.classifier import ClassifierFeatures, train_classifier_features
from pyro_vae.evaluation.criticism import PredictiveCheck, predictive_check
from pyro_vae.evaluation.figures import plot_predictive_check, plot_rate_distortion
from pyro_vae.evaluation.frechet import frechet_distance
from pyro_vae.evaluation.rate_distortion import rate_distortion_curve
from pyro_vae.evaluation.samples import checkerboard, sample_quality
from pyro_vae.evaluation.statistics import default_statistics
from pyro_vae.evaluation.summary import evaluate

__all__ = [
    "ClassifierFeatures",
    "PredictiveCheck",
    "checkerboard",
    "default_statistics",
    "evaluate",
    "frechet_distance",
    "plot_predictive_check",
    "plot_rate_distortion",
    "predictive_check",
    "rate_distortion_curve",
    "sample_quality",
    "train_classifier_features",
]
