"""How the documentation site is built, by ``python -m sphinx -W -b html docs build/site``."""

import os
from collections.abc import Callable
from typing import Any

from sphinx.application import Sphinx

import pyro_vae

project = "pyro_vae"
author = "The pyro_vae authors"
copyright = author  # the name Sphinx uses
version = release = pyro_vae.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinxcontrib.programoutput",
]
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb"}

html_theme = "furo"
html_title = "pyro_vae"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

# Pages in Markdown: formulas between dollars, links to headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# Tutorials run at each build, so their output is that of this version.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # from tqdm, which Pyro imports
nb_output_stderr = "warn"  # nothing in a tutorial should complain
nb_merge_streams = True

# The reference: the order is that of the source.
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "To write a new head"]
toc_object_entries_show_parents = "hide"
python_maximum_signature_line_length = 100


def setup(app: Sphinx) -> None:
    """Keeps the colons of a property's docstring from napoleon, which takes the words before one for a type."""
    app.connect("autodoc-process-docstring", replacing(":", "\ue000"), priority=400)
    app.connect("autodoc-process-docstring", replacing("\ue000", ":"), priority=600)  # napoleon's priority is 500


def replacing(old: str, new: str) -> Callable[..., None]:
    """Replaces a character in the docstrings of properties."""

    def replaced(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
        if what in ("attribute", "property"):
            lines[:] = [line.replace(old, new) for line in lines]

    return replaced
