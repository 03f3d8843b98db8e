"""The whole evaluation of a pair in one call, with its findings in words."""

from pyro_vae.evaluation.report.html import render_html
from pyro_vae.evaluation.report.sections import PARTS, Finding, Report, Section, evaluate_suite

__all__ = ["PARTS", "Finding", "Report", "Section", "evaluate_suite", "render_html"]
