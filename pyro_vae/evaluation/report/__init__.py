"""The whole evaluation of a pair in one call, with its findings in words."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyro_vae.evaluation.report.findings import Finding, Report, Section
    from pyro_vae.evaluation.report.html import render_html
    from pyro_vae.evaluation.report.suite import PARTS, evaluate_suite

__all__ = ["PARTS", "Finding", "Report", "Section", "evaluate_suite", "render_html"]

_FILE_OF = {
    "PARTS": "suite",
    "Finding": "findings",
    "Report": "findings",
    "Section": "findings",
    "evaluate_suite": "suite",
    "render_html": "html",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used."""
    if name not in _FILE_OF:
        raise AttributeError(f"module 'pyro_vae.evaluation.report' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"pyro_vae.evaluation.report.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
