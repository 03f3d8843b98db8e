"""The site of docs/: every page is reached, every public name is in the reference, every tutorial runs as it says."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest

import pyro_vae
from pyro_vae.cli.__main__ import COMMANDS

matplotlib.use("Agg")

DOCS = Path(__file__).parents[1] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
PUBLIC = [
    "pyro_vae",
    *(f"pyro_vae.{m.name}" for m in pkgutil.iter_modules(pyro_vae.__path__) if m.name[0] != "_" and m.name != "cli"),
    "pyro_vae.data.sources",
    "pyro_vae.data.tables",
]


def test_every_page_is_in_the_table_of_contents_once():
    pages = [p.relative_to(DOCS).with_suffix("").as_posix() for p in DOCS.rglob("*") if p.suffix in (".md", ".rst")]
    trees = re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted([*listed, "index"]) == sorted(pages)


def test_links_between_pages_lead_somewhere():
    for page in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def found(name):
    """An object by its full name, through packages and what they import when it is used."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def directives():
    """Of the reference: the kind of each directive, what it is of, and its options."""
    pattern = re.compile(r"^\.\. (?:auto|py:)(\w+):: (\S+)\n((?:   :.*\n?)*)", re.MULTILINE)
    for page in sorted((DOCS / "reference").glob("*.rst")):
        for kind, name, options in pattern.findall(page.read_text()):
            yield kind, name, dict(re.findall(r":([\w-]+): ?(.*)", options))


def documented():
    """The objects that the reference shows, by name; of a module's members, those that have a docstring."""
    shown = {}
    for kind, name, options in directives():
        if kind != "module":
            shown[name] = found(name)
        elif "members" in options:
            names = options["members"].split(", ") if options["members"] else importlib.import_module(name).__all__
            left_out = options.get("exclude-members", "").split(", ")
            members = {f"{name}.{member}": found(f"{name}.{member}") for member in names if member not in left_out}
            shown |= {n: value for n, value in members.items() if inspect.isclass(value) or inspect.isroutine(value)}
    return shown


def test_every_public_name_is_in_the_reference():
    shown = documented()
    objects = {id(value) for value in shown.values() if inspect.isclass(value) or inspect.isroutine(value)}
    lacking = [
        f"{module}.{name}"
        for module in PUBLIC
        for name in getattr(importlib.import_module(module), "__all__", ())
        if f"{module}.{name}" not in shown and id(found(f"{module}.{name}")) not in objects
    ]
    assert len(shown) > 150
    assert not lacking


def test_no_class_is_described_twice():
    classes = [value for value in documented().values() if inspect.isclass(value)]
    assert len(set(classes)) == len(classes)


# What the pages say of what they print, by the names of their cells.
CLAIMS = {
    "anomalies": [
        "beyond.any(axis=1).sum() <= 2",  # limits for each sensor will not find them
        "0.5 <= (odd & is_broken).sum() / 40 < 0.75",
        "(odd & ~is_broken).mean() < 0.02",
        "by_sensor[~by_sensor.found & (by_sensor.sensor != 'temperature')].change.max() < 1 / 3",
        "not by_sensor[by_sensor.sensor == 'temperature'].found.any()",
        "share > 0.9",
        "np.mean((guess - power) ** 2) < 0.05 * np.var(power)",
        "abs(np.mean((low <= power) & (power <= high)) - 0.9) < 0.08",
    ],
    "choosing-a-likelihood": [
        "found['levels'].mean > found['counts'].mean + 5",
        "evidence.mean > -16.5",  # of the negative binomial; that of the Poisson is two nats less
    ],
    "first-vae": [
        "torch.equal(again.reconstruct(some), vae.reconstruct(some))",
        "abs(metrics['elbo'] + metrics['distortion'] + metrics['rate']) < 1e-3",
        "history['validation_elbo'].iloc[-1] > history['validation_elbo'].iloc[4]",
    ],
    "is-it-right": [
        "'wrong' not in {finding.level for finding in report_of_right.findings}",
        "{f.name for f in report_of_wrong.findings if f.level == 'wrong'} == {'coverage', 'checks'}",
    ],
    "labels": [
        "(few.predict_label(digits.x_test).argmax(1) == digits.y_test).double().mean() > 0.9",
        "(torch.stack(scores).argmax(0) == digits.y_test).double().mean() > 0.95",
    ],
    "your-images": ["metrics['num_latents'] == 16", "tiles.labels == ('china', 'flower')"],
    "your-program": [
        "(found - true_difficulty).abs().mean() < 0.3",
        "torch.corrcoef(torch.stack([means, ability[1000:]]))[0, 1] > 0.8",
        "'wrong' not in {finding.level for finding in report.findings}",
        "torch.equal(pyro.param('difficulty'), found)",
    ],
    "your-table": [
        "np.mean((true - by_vae.mean(0).numpy()) ** 2) < 0.3 * np.var(true)",
        "0.85 < np.mean((low <= true) & (true <= high))",
        "new.groupby('smoker')['pressure'].mean().diff().iloc[-1] > 3",
        "not filled[0].isna().any(axis=None)",
    ],
}


def test_the_claims_are_those_of_the_tutorials():
    assert sorted(CLAIMS) == [page.stem for page in TUTORIALS]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs_and_what_it_says_is_so(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "tutorial"}
    for cell in re.findall(r"```\{code-cell\} python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(cell, page.name, "exec"), session)
    for claim in CLAIMS[page.stem]:
        assert eval(claim, session), claim


def test_the_page_of_commands_has_each_once():
    text = (DOCS / "commands.md").read_text()
    assert re.findall(r"^## pyro-vae (\w+)$", text, re.MULTILINE) == list(COMMANDS)
    assert re.findall(r"python -m pyro_vae\.cli (\w+) --help$", text, re.MULTILINE) == list(COMMANDS)


def test_words_before_a_colon_are_no_type_in_a_propertys_docstring():
    pytest.importorskip("sphinx")
    from sphinx.ext.napoleon import Config, _process_docstring

    spec = importlib.util.spec_from_file_location("conf", DOCS / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    handlers = {500: _process_docstring}
    conf.setup(SimpleNamespace(connect=lambda event, handler, priority: handlers.update({priority: handler})))
    app = SimpleNamespace(config=Config(napoleon_numpy_docstring=False))
    checked = 0
    for name in PUBLIC:
        for _, of in inspect.getmembers(importlib.import_module(name), inspect.isclass):
            for attribute, value in inspect.getmembers(of, lambda value: isinstance(value, property)):
                lines = inspect.getdoc(value).splitlines() if value.__doc__ else []
                before = [line for line in lines if line]
                for _, handler in sorted(handlers.items()):
                    handler(app, "property", attribute, value, None, lines)
                assert [line for line in lines if line] == before, f"{of.__name__}.{attribute}"
                checked += any(":" in line for line in before)
    assert checked > 30
