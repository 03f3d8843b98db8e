"""The page of a report: what it is of, what checks its numbers, what to try, and how it fits a narrow screen."""

import importlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae import mlp_vae
from pyro_vae.cli.running import run_command
from pyro_vae.data.rows import as_rows
from pyro_vae.evaluation import evaluate_suite, render_html
from pyro_vae.evaluation.report import PARTS
from pyro_vae.evaluation.report.guidance import DOCUMENTATION, GUIDANCE
from pyro_vae.likelihoods import Normal

ROOT = Path(__file__).parents[1]


def anchors(markdown):
    """Of its headings, as they are made of their text: lower case, hyphens for spaces, without marks."""
    titles = re.findall(r"^#+ (.*)$", markdown, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


class Page(HTMLParser):
    """Ids, links and the order of tags of a page; an unclosed one is an error."""

    def __init__(self, page):
        super().__init__()
        self.ids, self.links, self.open = set(), set(), []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs["id"]} if "id" in attrs else set()
        self.links |= {attrs["href"]} if "href" in attrs else set()
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_every_part_says_what_checks_it_and_what_to_try_where_the_documentation_has_more():
    assert set(PARTS) <= GUIDANCE.keys()
    known = anchors((ROOT / DOCUMENTATION).read_text())
    assert {guidance.anchor for guidance in GUIDANCE.values()} <= known


def test_the_page_names_its_data_and_versions_and_leads_from_findings_to_what_to_try():
    lg = LinearGaussian()
    x = lg.draw(200)
    parts = ["summary", "joint_calibration", "calibration_at_rows"]
    report = evaluate_suite(lg.partial_pair(shrink=0.5), x, parts=parts)
    page = render_html(report, "narrow <guide>")
    found = Page(page)
    assert found.ids == set(parts)
    assert found.links == {f"#{part}" for part in parts}
    assert as_rows(x, torch.device("cpu")).fingerprint() in page
    assert f"PyTorch {torch.__version__}" in page
    assert page.count("What to try: ") == 2  # the parts whose findings are not fine
    assert page.count("Checked by: ") == 3
    assert "narrow &lt;guide&gt;" in page
    assert json.loads(json.dumps(report.to_json()))["facts"]["rows"].startswith("200 of 5, fingerprint")
    levels = [finding.level for finding in report.sections["calibration_at_rows"].findings]
    assert levels == ["wrong"]


def test_wide_tables_scroll_on_their_own():
    page = render_html(evaluate_suite(LinearGaussian().exact_pair(), LinearGaussian().draw(60), parts=["evidence"]))
    assert page.count('<div class="wide"><table') == page.count("<table") > 0
    assert 'name="viewport"' in page


def test_two_runs_are_compared_on_the_same_rows(tmp_path, monkeypatch, capsys):
    x = torch.randn(60, 2)
    np.save(tmp_path / "x.npy", x.numpy())
    for name, scale in (("near", 1.0), ("far", 0.2)):
        mlp_vae((2,), 1, hidden_dims=(), likelihood=Normal(scale=scale)).save(tmp_path / name)
    out = tmp_path / "compared.json"
    command = ["evaluate.py", "near", "far", "--data", "x.npy", "--out", str(out)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as status:
        run_command(importlib.import_module("evaluate").main)
    said = capsys.readouterr()
    assert status.value.code in (0, None), said.err
    assert "the first makes the rows more probable" in said.out
    written = json.loads(out.read_text())
    assert written["difference"] > 0
    assert written["num_rows"] == 60
    assert len(written["rows"]) == 10
