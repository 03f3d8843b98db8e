"""How often calibration calls a right guide wrong, or a wrong one right."""

import json
from collections import defaultdict
from pathlib import Path

from pyro_vae.evaluation.report.thresholds import THRESHOLDS
from pyro_vae.results.row import Row
from pyro_vae.results.stored import records

TITLE = "Calibration of right and wrong guides"
ABOUT = """From the judge's runs (`docs/judge.jsonl`, from `scripts/judge.py`): in how many of them calibration, by
ranks, jointly (TARP, Lemos et al., 2023, and the rank of the log-weight) or at the rows themselves, calls guides
wrong or worth a look. The thresholds were set on most of these runs; [judge.md](judge.md) lists the others
separately."""
DIGITS = 0
FORMS = ("short",)  # it is counted from records
FINDINGS = {"calibration", "joint_calibration", "calibration_at_rows", "coverage"}


def rows(*, short: bool, root: Path) -> list[Row]:
    """Counts by kind of guide."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for line in records("judge.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "named_by" not in record:  # only faults have such findings
            which = "right guides"
        elif FINDINGS.intersection(record["named_by"]):
            which = f"wrong ones, {record['key'].rpartition('/')[2]}"
        else:
            continue
        found = [finding for finding in record["findings"] if finding["name"] in FINDINGS]
        levels = {THRESHOLDS[finding["name"]].level(**finding["numbers"]) for finding in found}
        counts[which][0] += 1
        counts[which][1] += "wrong" in levels
        counts[which][2] += "wrong" not in levels and "look" in levels
    return [
        {"": which, "runs": runs, "called wrong": wrong, "worth a look": look}
        for which, (runs, wrong, look) in sorted(counts.items())
    ]
