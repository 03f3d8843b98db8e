"""The page of results: every table in Markdown."""

from collections.abc import Mapping
from typing import Any

from pyro_vae._support import markdown
from pyro_vae.results import TABLES
from pyro_vae.results.row import Row, text

__all__ = ["forms", "page", "picture", "table"]

FORMS = ("short", "full")  # of a table that does not name its own
INTRODUCTION = """# Results

`pyro-vae reproduce NAME` computes a table: in a short form, which takes two cores at most half an hour, or with
`--full` as published. `--check` computes it again and compares it with the stored numbers, which come with the package.
A number after ± is a standard error over rows, or, if a range follows, the standard deviation over seeds. Forms that
were not run are marked.
"""


def table(rows: list[Row], digits: int) -> str:
    """Rows in Markdown, with the columns of all rows."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return markdown.table(columns, [[text(row.get(column), digits) for column in columns] for row in rows])


def forms(module: Any) -> tuple[str, ...]:
    """The forms that a table has."""
    return getattr(module, "FORMS", FORMS)


def picture(name: str, form: str) -> str:
    """Where the picture of a table is, seen from the page."""
    return f"images/results/{name}-{form}.png"


def page(kept: Mapping[str, Any]) -> str:
    """The page: every table, with a note on what was not run."""
    lines = [INTRODUCTION]
    for name, module in TABLES.items():
        lines += [f"## {module.TITLE}", "", module.ABOUT, ""]
        for form in forms(module):
            found = kept.get(name, {}).get(form)
            if found is None:
                lines += [f"*{form.capitalize()}: not run.*", ""]
                continue
            where = found["machine"]
            said = f"{where['cpu']}, {where['cores']} cores with {where['vectors']}; torch {found['versions']['torch']}"
            said = f"{where['gpu']}; {said}" if "gpu" in where else said
            lines += [table(found["rows"], module.DIGITS), ""]
            if hasattr(module, "PICTURE"):
                lines += [f"![{module.TITLE}]({picture(name, form)})", ""]
            counted = len(forms(module)) == 1
            when = found["date"] if counted else f"{found['date']}, {found['seconds']:,} s"
            lines += [f"*{'Counted' if counted else form.capitalize()}: {when}; {said}.*", ""]
        if notes := getattr(module, "NOTES", ""):
            lines += [notes, ""]
    return "\n".join(lines)
