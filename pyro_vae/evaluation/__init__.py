"""Evaluation of any pair of programs: its evidence, its posteriors, its fit and its samples."""

from typing import TYPE_CHECKING

from pyro_vae._support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vae.evaluation.annealing import AnnealedBounds, ais_bounds
    from pyro_vae.evaluation.calibration import SimulationBasedCalibration, simulation_based_calibration
    from pyro_vae.evaluation.classifier import ClassifierFeatures, train_classifier_features
    from pyro_vae.evaluation.comparison import Comparison, compare
    from pyro_vae.evaluation.contract import Contract, check_pair
    from pyro_vae.evaluation.coverage import PredictiveCoverage, predictive_coverage
    from pyro_vae.evaluation.criticism import PredictiveCheck, predictive_check
    from pyro_vae.evaluation.diagnostics import GuideDiagnosis, diagnose_guide
    from pyro_vae.evaluation.evidence import Evidence, log_evidence
    from pyro_vae.evaluation.frechet import frechet_distance
    from pyro_vae.evaluation.inference_data import to_inference_data
    from pyro_vae.evaluation.joint_ranks import JointCalibration, joint_calibration
    from pyro_vae.evaluation.latents import active_latents, latent_effects, latent_information, nearest_rows
    from pyro_vae.evaluation.memory import Memory, memory_of
    from pyro_vae.evaluation.modes import Modes, find_modes
    from pyro_vae.evaluation.nuts import NutsPosterior, nuts_posterior
    from pyro_vae.evaluation.ranks_at_rows import CalibrationAtRows, calibration_at_rows
    from pyro_vae.evaluation.rate_distortion import rate_distortion_curve
    from pyro_vae.evaluation.refinement import Gaps, RefinedPair, gaps, refine
    from pyro_vae.evaluation.report import Finding, Report, Section, evaluate_suite, render_html
    from pyro_vae.evaluation.report.figures import (
        plot_coverage,
        plot_k_hat,
        plot_predictive_check,
        plot_rate_distortion,
        plot_simulation_based_calibration,
    )
    from pyro_vae.evaluation.samples import checkerboard, sample_quality
    from pyro_vae.evaluation.statistics import default_statistics
    from pyro_vae.evaluation.summary import evaluate
    from pyro_vae.evaluation.surprise import unexpectedness

__all__ = [
    "AnnealedBounds",
    "CalibrationAtRows",
    "ClassifierFeatures",
    "Comparison",
    "Contract",
    "Evidence",
    "Finding",
    "Gaps",
    "GuideDiagnosis",
    "JointCalibration",
    "Memory",
    "Modes",
    "NutsPosterior",
    "PredictiveCheck",
    "PredictiveCoverage",
    "RefinedPair",
    "Report",
    "Section",
    "SimulationBasedCalibration",
    "active_latents",
    "ais_bounds",
    "calibration_at_rows",
    "check_pair",
    "checkerboard",
    "compare",
    "default_statistics",
    "diagnose_guide",
    "evaluate",
    "evaluate_suite",
    "find_modes",
    "frechet_distance",
    "gaps",
    "joint_calibration",
    "latent_effects",
    "latent_information",
    "log_evidence",
    "memory_of",
    "nearest_rows",
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
    "unexpectedness",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "annealing": ("AnnealedBounds", "ais_bounds"),
        "calibration": ("SimulationBasedCalibration", "simulation_based_calibration"),
        "ranks_at_rows": ("CalibrationAtRows", "calibration_at_rows"),
        "classifier": ("ClassifierFeatures", "train_classifier_features"),
        "comparison": ("Comparison", "compare"),
        "contract": ("Contract", "check_pair"),
        "coverage": ("PredictiveCoverage", "predictive_coverage"),
        "criticism": ("PredictiveCheck", "predictive_check"),
        "diagnostics": ("GuideDiagnosis", "diagnose_guide"),
        "evidence": ("Evidence", "log_evidence"),
        "frechet": ("frechet_distance",),
        "inference_data": ("to_inference_data",),
        "joint_ranks": ("JointCalibration", "joint_calibration"),
        "modes": ("Modes", "find_modes"),
        "memory": ("Memory", "memory_of"),
        "latents": ("active_latents", "latent_effects", "latent_information", "nearest_rows"),
        "nuts": ("NutsPosterior", "nuts_posterior"),
        "rate_distortion": ("rate_distortion_curve",),
        "refinement": ("Gaps", "RefinedPair", "gaps", "refine"),
        "report": ("Finding", "Report", "Section", "evaluate_suite", "render_html"),
        "report.figures": (
            "plot_coverage",
            "plot_k_hat",
            "plot_predictive_check",
            "plot_rate_distortion",
            "plot_simulation_based_calibration",
        ),
        "samples": ("checkerboard", "sample_quality"),
        "statistics": ("default_statistics",),
        "summary": ("evaluate",),
        "surprise": ("unexpectedness",),
    },
)
