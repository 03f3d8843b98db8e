"""A report as one HTML file that needs nothing else: pictures are inside."""

import base64
import io
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING

from pyro_vae.evaluation.report.findings import Finding, Report, Section

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["render_html"]

_MARKS = {"wrong": "✗ wrong", "look": "! look", "fine": "✓ fine"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
ul.findings { list-style: none; padding: 0 }
ul.findings li { margin: .35rem 0; padding-left: 5.5rem; text-indent: -5.5rem }
.mark { display: inline-block; width: 5.5rem; text-indent: 0; font-weight: 600 }
.wrong .mark { color: #b3261e } .look .mark { color: #8a5a00 } .fine .mark { color: #2e6b34 }
.about { color: #555 } img { max-width: 100% } figcaption { color: #555; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .7rem; text-align: right }
tr + tr td, tr + tr th { border-top: 1px solid #eee } th:first-child { text-align: left; font-weight: 400 }
"""


def render_html(report: Report, title: str = "Evaluation") -> str:
    """The report as a page, what is wrong in its first lines.

    Args:
        report: What was found.
        title: Its heading, such as the run's name.
    """
    lines = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p><strong>{escape(report.verdict)}</strong></p>",
        *_findings(report.findings),
        f'<p class="about">Suite: {escape(report.suite)}. Thresholds are named below, where they are '
        f"used. “Fine” means that this check found nothing, not that there is nothing.</p>",
    ]
    for section in report.sections.values():
        lines += _section(section)
    return "\n".join([*lines, "</body></html>", ""])


def _findings(findings: list[Finding]) -> Iterator[str]:
    yield '<ul class="findings">'
    for finding in findings:
        mark = f'<span class="mark">{_MARKS[finding.level]}</span>'
        yield f'<li class="{finding.level}">{mark}{escape(finding.text)}</li>'
    yield "</ul>"


def _section(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.title)}</h2>"
    if section.findings:
        yield from _findings(section.findings)
    if section.about:
        yield f'<p class="about">{escape(section.about)}</p>'
    for caption, table in section.tables.items():
        yield _table(table, caption)
    for caption, figure in section.figures.items():
        yield f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{_png(figure)}">'
        yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def _table(table: "pd.DataFrame", caption: str) -> str:
    content = table.rename_axis(None).to_html(border=0, float_format=lambda value: f"{value:.4g}")
    return (f"<p>{escape(caption)}</p>" if caption else "") + content


def _png(figure: "Figure") -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return base64.b64encode(out.getvalue()).decode()
