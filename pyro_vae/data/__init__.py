"""Data sets by name, arrays, tables and files, as rows for a model."""
