"""Tables: columns of several kinds as rows of numbers, with NaN where an entry is missing, and back.

A :class:`Schema` says what each column holds. It is inferred from the training table and saved with the model, so draws
come out as the same table: its columns, in their order, with their levels and types.

The files, from the bottom up: ``names`` (names and kinds as people write them), ``columns`` (the description of one
column), ``dates`` (dates as days and as text), ``entries`` (entries ↔ numbers), ``guessing`` (entries → a column),
``cells`` (text → entries), ``delimited`` (bytes → text), ``reading``, ``filling`` and ``writing``, ``schema`` (all
columns).
"""

from pyro_vae.data.tables.columns import KINDS, Column
from pyro_vae.data.tables.names import parse_kinds
from pyro_vae.data.tables.reading import Table, read_table
from pyro_vae.data.tables.schema import Schema
from pyro_vae.data.tables.writing import write_table

__all__ = ["KINDS", "Column", "Schema", "Table", "parse_kinds", "read_table", "write_table"]
