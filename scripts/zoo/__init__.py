"""Pyro programs of the kinds that Pyro's examples show, each with data and, where there are any, exact answers.

``scripts/programs_table.py`` tries every tool of the library on every one of them.
"""

import importlib.util

from zoo import autoencoders, discrete, documents, gaussian, sequences, shared
from zoo.program import Program, Programs

__all__ = ["ZOO", "Program", "Programs"]

_THEMES = [gaussian, autoencoders, discrete, documents, sequences, shared]
if importlib.util.find_spec("zuko") is not None:
    from zoo import flows

    _THEMES.append(flows)

ZOO: dict[str, Program] = {program.name: program for theme in _THEMES for program in theme.PROGRAMS}
