"""How often calibration calls a right guide wrong, or a wrong one right."""

import json
from collections import defaultdict
from pathlib import Path

from judged.faults import FAULTS
from judged.page import HELD_OUT, found

from tables.row import Row

TITLE = "Calibration of right and wrong guides"
ABOUT = """From the judge's runs (`docs/judge.jsonl`, from `scripts/judge.py`): in how many of them calibration, by
ranks, jointly (TARP, Lemos et al., 2023, and the rank of the log-weight) or at the rows themselves, calls guides
wrong or worth a look. The thresholds were set on most of these runs; [judge.md](judge.md) lists the others
separately."""
DIGITS = 0
FINDINGS = {"calibration", "joint_calibration", "calibration_at_rows", "coverage"}
JUDGED = Path(__file__).parents[2] / "docs" / "judge.jsonl"


def rows(*, short: bool, root: Path) -> list[Row]:
    """Counts by kind of guide."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for line in JUDGED.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        kind, name, *strength = record["key"].removeprefix(HELD_OUT).split("/")
        if kind == "sound":
            which = "right guides"
        elif FAULTS[name].named_by & FINDINGS:
            which = f"wrong ones, {strength[0]}"
        else:
            continue
        levels = {level for finding, level in found(record).items() if finding in FINDINGS}
        counts[which][0] += 1
        counts[which][1] += "wrong" in levels
        counts[which][2] += "wrong" not in levels and "look" in levels
    return [
        {"": which, "runs": runs, "called wrong": wrong, "worth a look": look}
        for which, (runs, wrong, look) in sorted(counts.items())
    ]
