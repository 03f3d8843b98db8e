"""The parts of a report: findings, sections, and the report itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from pyro_vae.evaluation.report.thresholds import LEVELS, Level

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Finding", "Report", "Section"]


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Args:
        level: ``"wrong"``: do not rely on it; ``"look"``: worth a look, and acceptable for some uses; ``"fine"``.
        text: The result in a sentence, with the number that was compared with a threshold.
        name: The name of the threshold in :mod:`pyro_vae.evaluation.report.thresholds`.
        numbers: The numbers compared with it, by the threshold's keywords.
    """

    level: Level
    text: str
    name: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass
class Section:
    """One part of a report.

    Args:
        title: Its heading.
        about: What was estimated and how, in a sentence or two, or why it was not.
        numbers: By name, for ``metrics.json``.
        findings: What the numbers mean.
        tables: By caption.
        figures: By caption.
    """

    title: str
    about: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    tables: "dict[str, pd.DataFrame]" = field(default_factory=dict)
    figures: "dict[str, Figure]" = field(default_factory=dict)

    def found(self, name: str, level: Level, text: str, **numbers: float) -> None:
        """Adds a finding: the name of its threshold, its level, its text, and the numbers compared."""
        self.findings.append(Finding(level, text, name, numbers))


@dataclass(frozen=True)
class Report:
    """The result of :func:`~pyro_vae.evaluation.evaluate_suite`.

    Args:
        suite: ``"quick"`` or ``"full"``.
        sections: The sections by name, in order.
        facts: What the report is about, by name: versions, the model, the rows and their fingerprint, the seed.
    """

    suite: str
    sections: Mapping[str, Section]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        """All findings, wrong ones first."""
        every = [finding for section in self.sections.values() for finding in section.findings]
        return sorted(every, key=lambda finding: LEVELS.index(finding.level))

    @property
    def verdict(self) -> str:
        """How many findings of each kind, in one line."""
        count = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        wrong = f"{count['wrong']} {'thing is' if count['wrong'] == 1 else 'things are'} wrong"
        return f"{wrong if count['wrong'] else 'Nothing is wrong'}, {count['look']} to look at, {count['fine']} fine."

    def to_json(self) -> dict[str, Any]:
        """Numbers by section and the findings, as JSON data."""
        numbers = {name: section.numbers for name, section in self.sections.items() if section.numbers}
        findings = [{"name": f.name, "level": f.level, "text": f.text} for f in self.findings]
        facts = {"facts": dict(self.facts)} if self.facts else {}
        return {"suite": self.suite, **facts, "verdict": self.verdict, "findings": findings, **_plain(numbers)}

    def _repr_html_(self) -> str:
        colours = dict(zip(LEVELS, ("#b3261e", "#8a5a00", "#2e6b34"), strict=True))
        lines = (
            f'<li><strong style="color:{colours[finding.level]}">{finding.level}</strong> {escape(finding.text)}</li>'
            for finding in self.findings
        )
        return f'<p><strong>{escape(self.verdict)}</strong></p><ul style="list-style:none">{"".join(lines)}</ul>'

    def __str__(self) -> str:
        lines = [f"{finding.level:<6}{finding.text}" for finding in self.findings]
        return "\n".join([self.verdict, *lines])


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
