"""The judge, judged: the page and the thresholds agree, and a few cases are tried again."""

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import judge
import pytest
from judged.faults import FAULTS, STRENGTHS
from judged.page import HELD_OUT, any_wrong, found, markdown, named
from judged.sound import SOUND

from pyro_vae.evaluation.report.job import SIZES

DOCS = Path(__file__).parents[1] / "docs"
PARTS = {  # by what they find
    "amortisation": ["gaps"],
    "calibration": ["calibration"],
    "joint_calibration": ["joint_calibration"],
    "calibration_at_rows": ["calibration_at_rows"],
    "checks": ["prior_predictive", "posterior_predictive"],
    "copies": ["training"],
    "coverage": ["coverage"],
    "information": ["summary"],
    "modes": ["modes"],
    "samples": ["samples"],
}


@pytest.fixture(scope="module")
def records():
    lines = (DOCS / "judge.jsonl").read_text().splitlines()
    by_key = {(record := json.loads(line))["key"]: record for line in lines}
    return [by_key[key] for key in judge.plan(6, STRENGTHS, 2) if key in by_key]


def test_the_page_is_that_of_the_results_and_the_thresholds(records):
    assert (DOCS / "judge.md").read_text() == markdown(records)


def test_at_most_one_sound_model_in_twenty_is_called_wrong(records):
    sound = [record for record in records if record["key"].startswith("sound/")]
    assert len(sound) >= 216
    assert {record["key"].split("/")[1] for record in sound} == set(SOUND)
    assert sum(map(any_wrong, sound)) <= len(sound) / 20


def test_every_gross_fault_is_wrong_for_its_own_reason(records):
    gross = [record for record in records if record["key"].endswith("/gross") and record["key"].startswith("wrong/")]
    assert {record["key"].split("/")[1] for record in gross} == set(FAULTS)
    assert [record["key"] for record in gross if named(record) != "wrong"] == []


def test_verdicts_hold_on_cases_that_thresholds_were_not_set_on(records):
    new = [{**r, "key": r["key"].removeprefix(HELD_OUT)} for r in records if r["key"].startswith(HELD_OUT)]
    sound, gross = ([r for r in new if r["key"].startswith(kind)] for kind in ("sound/", "wrong/"))
    assert len(sound) >= 72
    assert len(gross) == len(FAULTS)
    assert sum(map(any_wrong, sound)) <= max(1, len(sound) / 20)
    assert [record["key"] for record in gross if named(record) != "wrong"] == []


def test_documents_give_these_numbers(records):
    counts = Counter((r["key"].split("/")[2], named(r)) for r in records if r["key"].startswith("wrong/"))
    evaluation, readme = (
        " ".join(path.read_text().split()) for path in (DOCS / "evaluation.md", DOCS / "../README.md")
    )
    assert (
        f"so are {counts['plain', 'wrong']} of the {len(FAULTS)} plain ones and {counts['slight', 'wrong']} of the "
        f"slight ones, and {counts['plain', 'fine']} and {counts['slight', 'fine']} pass."
    ) in evaluation
    known, new = (
        [any_wrong(r) for r in records if r["key"].startswith(prefix)] for prefix in ("sound/", f"{HELD_OUT}sound/")
    )
    assert f"calls {sum(known) / len(known):.0%} of {len(known)} sound models wrong" in readme
    assert f"it calls {sum(new) or 'none'} of {len(new)} wrong" in readme


@pytest.mark.parametrize("key", ["sound/two modes/7", "sound/small prior/7", "sound/count clusters/7"])
def test_a_sound_model_is_not_called_wrong(key, monkeypatch):
    assert not any_wrong(tried(key, monkeypatch))


@pytest.mark.parametrize("name", ["narrow", "missing mode", "overdispersed", "copies", "collapsed"])
def test_a_gross_fault_is_named(name, monkeypatch):
    own = [PARTS[finding] for finding in FAULTS[name].named_by]
    monkeypatch.setattr(judge, "PARTS", [part for part in judge.PARTS if part in itertools.chain(*own)])
    record = tried(f"wrong/{name}/gross", monkeypatch)
    assert named(record) == "wrong", found(record)


def tried(key, monkeypatch):
    monkeypatch.setitem(SIZES, "quick", dataclasses.replace(SIZES["quick"], **judge._LESS))
    name, which = key.split("/")[1:]
    return {"key": key, **judge.tried(judge.made(key, (name, which)))}
