"""A report as one self-contained HTML file, with its figures inside."""

import base64
import io
from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

from pyro_vae.evaluation.report.findings import Finding, Report, Section
from pyro_vae.evaluation.report.guidance import GUIDANCE
from pyro_vae.evaluation.report.thresholds import LEVELS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["render_html"]

_MARKS = {"wrong": "✗ wrong", "look": "! look", "fine": "✓ fine"}

_WAYS = {"wrong": "What to try", "look": "What to try", "fine": "Details"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }
ul.findings { list-style: none; padding: 0 }
ul.findings li { margin: .35rem 0; padding-left: 5.5rem; text-indent: -5.5rem }
.mark { display: inline-block; width: 5.5rem; text-indent: 0; font-weight: 600 }
.wrong .mark { color: #b3261e } .look .mark { color: #8a5a00 } .fine .mark { color: #2e6b34 }
.about { color: #555 } img { max-width: 100% } figcaption { color: #555; font-size: .9rem }
table { border-collapse: collapse; font-size: .9rem } td, th { padding: .15rem .7rem; text-align: right }
.wide { overflow-x: auto } .next { border-left: 3px solid #8a5a00; padding-left: .7rem }
.checked, dl.facts { color: #555; font-size: .9rem }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem }
dl.facts dd { margin: 0; overflow-wrap: anywhere }
figure { margin: 1rem 0 } h1, h2 { overflow-wrap: anywhere }
@media (max-width: 36rem) {
  ul.findings li { padding-left: 0; text-indent: 0 } .mark { display: block } td, th { padding: .15rem .35rem }
  dl.facts { display: block } dl.facts dd { margin-bottom: .5rem }
}
tr + tr td, tr + tr th { border-top: 1px solid #eee } th:first-child { text-align: left; font-weight: 400 }
"""


def render_html(report: Report, title: str = "Evaluation") -> str:
    """The report as an HTML page, with what is wrong in its first lines.

    Args:
        report: The result of :func:`~pyro_vae.evaluation.evaluate_suite`.
        title: The page's heading, such as the run's name.
    """
    found = [(name, finding) for name, section in report.sections.items() for finding in section.findings]
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p><strong>{escape(report.verdict)}</strong></p>",
        *_findings(sorted(found, key=lambda part: LEVELS.index(part[1].level))),
        f'<p class="about">Suite: {escape(report.suite)}. Each section states its thresholds. '
        f"“Fine” means that the check found nothing wrong, not that nothing is wrong.</p>",
    ]
    lines += _facts(report)
    for name, section in report.sections.items():
        lines += _section(name, section)
    return "\n".join([*lines, "</body></html>", ""])


def _findings(findings: Iterable[tuple[str, Finding]]) -> Iterator[str]:
    """Each finding with a link to its section, which says what to try; no link if it has no name."""
    yield '<ul class="findings">'
    for name, finding in findings:
        mark = f'<span class="mark">{_MARKS[finding.level]}</span>'
        way = f' <a href="#{escape(name)}">{_WAYS[finding.level]}</a>' if name else ""
        yield f'<li class="{finding.level}">{mark}{escape(finding.text)}{way}</li>'
    yield "</ul>"


def _facts(report: Report) -> Iterator[str]:
    if report.facts:
        yield '<dl class="facts">'
        for name, value in report.facts.items():
            yield f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        yield "</dl>"


def _section(name: str, section: Section) -> Iterator[str]:
    yield f'<h2 id="{escape(name)}">{escape(section.title)}</h2>'
    if section.findings:
        yield from _findings(("", finding) for finding in section.findings)
    guidance = GUIDANCE.get(name)
    if guidance is not None and any(finding.level != "fine" for finding in section.findings):
        said = escape(guidance.what_to_try)
        yield f'<p class="next">What to try: {said} See <code>{escape(guidance.place)}</code>.</p>'
    if section.about:
        yield f'<p class="about">{escape(section.about)}</p>'
    if guidance is not None and section.findings:
        yield f'<p class="checked">Checked by: {escape(guidance.checked_by)}.</p>'
    for caption, table in section.tables.items():
        yield _table(table, caption)
    for caption, figure in section.figures.items():
        yield f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{_png(figure)}">'
        yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def _table(table: "pd.DataFrame", caption: str) -> str:
    content = table.rename_axis(None).to_html(border=0, float_format=lambda value: f"{value:.4g}")
    return (f"<p>{escape(caption)}</p>" if caption else "") + f'<div class="wide">{content}</div>'


def _png(figure: "Figure") -> str:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110, bbox_inches="tight")
    return base64.b64encode(out.getvalue()).decode()
