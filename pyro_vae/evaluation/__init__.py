"""How good a model is, for any pair of programs: its evidence, its posteriors, its fit, its samples."""

from pyro_vae.evaluation.annealing import AnnealedBounds, ais_bounds
from pyro_vae.evaluation.calibration import (
    PredictiveCoverage,
    SimulationBasedCalibration,
    predictive_coverage,
    simulation_based_calibration,
)
from pyro_vae.evaluation.classifier import ClassifierFeatures, train_classifier_features
from pyro_vae.evaluation.criticism import PredictiveCheck, predictive_check
from pyro_vae.evaluation.diagnostics import GuideDiagnosis, diagnose_guide
from pyro_vae.evaluation.evidence import Evidence, log_evidence
from pyro_vae.evaluation.frechet import frechet_distance
from pyro_vae.evaluation.inference_data import to_inference_data
from pyro_vae.evaluation.nuts import NutsPosterior, nuts_posterior
from pyro_vae.evaluation.rate_distortion import rate_distortion_curve
from pyro_vae.evaluation.refinement import Gaps, RefinedPair, gaps, refine
from pyro_vae.evaluation.report.figures import (
    plot_coverage,
    plot_k_hat,
    plot_predictive_check,
    plot_rate_distortion,
    plot_simulation_based_calibration,
)
from pyro_vae.evaluation.report.html import render_html
from pyro_vae.evaluation.report.sections import Finding, Report, Section, evaluate_suite
from pyro_vae.evaluation.samples import checkerboard, sample_quality
from pyro_vae.evaluation.statistics import default_statistics
from pyro_vae.evaluation.summary import evaluate

__all__ = [
    "AnnealedBounds",
    "ClassifierFeatures",
    "Evidence",
    "Finding",
    "Gaps",
    "GuideDiagnosis",
    "NutsPosterior",
    "PredictiveCheck",
    "PredictiveCoverage",
    "RefinedPair",
    "Report",
    "Section",
    "SimulationBasedCalibration",
    "ais_bounds",
    "checkerboard",
    "default_statistics",
    "diagnose_guide",
    "evaluate",
    "evaluate_suite",
    "frechet_distance",
    "gaps",
    "log_evidence",
    "nuts_posterior",
    "plot_coverage",
    "plot_k_hat",
    "plot_predictive_check",
    "plot_rate_distortion",
    "plot_simulation_based_calibration",
    "predictive_check",
    "predictive_coverage",
    "rate_distortion_curve",
    "refine",
    "render_html",
    "sample_quality",
    "simulation_based_calibration",
    "to_inference_data",
    "train_classifier_features",
]
