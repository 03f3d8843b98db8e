"""From names, arrays, tables and files to rows on their way to a model."""
