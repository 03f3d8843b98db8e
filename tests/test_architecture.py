"""The layout holds: imports point one way, and the documentation names every room."""

import ast
import importlib
import re
from pathlib import Path

import pyro_vae

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "pyro_vae"


def rooms():
    """The modules in the order of docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    listing = text.split("pyro_vae/\n")[1].split("```")[0]
    return re.findall(r"^  (\w+)(?:\.py|/)", listing, re.MULTILINE)


def files(room):
    """The files of a room, which is a module or a folder of them."""
    return [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").exists() else sorted((PACKAGE / room).rglob("*.py"))


def imported(path):
    """Rooms of the package that a file imports, at the top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "pyro_vae":
            found |= {alias.name for alias in node.names if files(alias.name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pyro_vae."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("pyro_vae.")}
    return found


def test_the_documentation_names_every_room():
    modules = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__"}
    folders = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert sorted(rooms()) == sorted(modules | folders)


def test_imports_point_one_way():
    order = rooms()
    for position, room in enumerate(order):
        later = set().union(*map(imported, files(room))) - {room, *order[:position]}
        assert not later, f"{room} imports {later}, which stand below it"


def test_networks_and_support_know_nothing_of_pyro():
    for path in [*files("networks"), *files("_support")]:
        assert not re.search(r"^\s*(import|from) pyro\b", path.read_text(), re.MULTILINE), path


def test_what_is_heavy_is_imported_only_where_it_is_used():
    heavy = {"PIL", "arviz", "matplotlib", "pandas", "pyarrow", "sklearn", "torchvision"}
    for path in PACKAGE.rglob("*.py"):
        if path in (PACKAGE / "data" / "tables" / path.name, PACKAGE / "estimator.py"):  # imported for pandas, sklearn
            continue
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in top if isinstance(node, ast.ImportFrom)}
        assert not heavy & {name.split(".")[0] for name in names}, path


def test_public_names_are_there_and_documented():
    for name in pyro_vae.__all__:
        if name != "__version__":
            assert getattr(pyro_vae, name).__doc__


def test_no_name_that_comes_when_used_is_that_of_a_file_beside_it():
    """A file that is imported takes its name in the package, and would stand in the place of the function."""
    for path in PACKAGE.rglob("__init__.py"):
        package = importlib.import_module(".".join(["pyro_vae", *path.parent.relative_to(PACKAGE).parts]))
        if hasattr(package, "__getattr__"):
            files_beside = {file.stem for file in path.parent.glob("*.py")}
            folders = {file.parent.name for file in path.parent.glob("*/__init__.py")}
            assert not set(package.__all__) & (files_beside | folders), path
