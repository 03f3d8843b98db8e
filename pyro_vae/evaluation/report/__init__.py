"""The whole evaluation of a pair in one call, with its findings in words."""

from typing import TYPE_CHECKING

from pyro_vae._support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vae.evaluation.report.findings import Finding, Report, Section
    from pyro_vae.evaluation.report.html import render_html
    from pyro_vae.evaluation.report.suite import PARTS, evaluate_suite

__all__ = ["PARTS", "Finding", "Report", "Section", "evaluate_suite", "render_html"]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "findings": ["Finding", "Report", "Section"],
        "html": ["render_html"],
        "suite": ["PARTS", "evaluate_suite"],
    },
)
