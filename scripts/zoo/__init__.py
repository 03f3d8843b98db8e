"""Pyro programs of the kinds that Pyro's examples and tutorials show, each with data and, where there are any, exact
answers. ``scripts/programs_table.py`` puts every tool of the library to every one of them."""  # noqa: D205

from zoo import gaussian
from zoo.program import Program, Programs

__all__ = ["ZOO", "Program", "Programs"]

ZOO: dict[str, Program] = {program.name: program for module in (gaussian,) for program in module.PROGRAMS}
