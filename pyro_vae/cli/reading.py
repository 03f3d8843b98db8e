"""Reads the rows for a command, splits them, and adds their labels, groups or lengths."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae._support.names import lookup
from pyro_vae.cli import beside
from pyro_vae.cli.options import integers
from pyro_vae.cli.runs import is_own, kind_of, levels_of, schema_of
from pyro_vae.data.sources import DataSet, load_data
from pyro_vae.data.tables import parse_kinds
from pyro_vae.vae import load_config

# Options of pyro-vae train that say how to read a file.
READING = ("resize", "separator", "decimal", "encoding", "header")


def read_data(
    name: str, root: Path, *, header: str | None = None, resize: str | None = None, **options: Any
) -> DataSet:
    """Data by a name or path, read with the command line's options."""
    if header is not None:
        lookup(header, ("yes", "no"), "--header")
    size = None if resize is None else integers(resize, "--resize")
    if size is not None and len(size) != 2:
        raise ValueError(f"--resize takes height,width, such as 64,64; found {resize!r}")
    return load_data(name, root, header=None if header is None else header == "yes", resize=size, **options)


def kinds_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The kinds of a table's columns that the user gave; columns of labels or groups are index columns."""
    kinds = parse_kinds(settings.get("columns") or ())
    for option in ("labels", "groups"):
        column = settings.get(option)
        if column is not None and kinds.setdefault(column, "index") != "index":
            raise ValueError(
                f"--{option} takes the column {column!r} out of the model, but --columns says it is {kinds[column]}: "
                f"give one of the two"
            )
    return kinds


def with_labels(data: DataSet, settings: Mapping[str, Any]) -> DataSet:
    """The data with labels from the column that a run's settings name for labels or groups."""
    for option in ("labels", "groups"):
        data = beside.from_column(data, settings.get(option), f"--{option}")
    return data


def part(data: DataSet, indices: torch.Tensor) -> DataSet:
    """The data with only some of the training rows."""
    fields = {name: getattr(data, f"{name}_train") for name in ("x", "y", "ids", "rows", "lengths")}
    return replace(
        data,
        **{
            f"{name}_train": whole[indices.numpy() if isinstance(whole, np.ndarray) else indices]
            for name, whole in fields.items()
            if whole is not None
        },
    )


def data_for(run: Path, name: str | None, root: Path | None, *, whole: bool = False) -> DataSet:
    """Data to use a model on: those it was trained on, or others, all of whose rows count as held out.

    For the data that it was trained on, the same rows are held out, unless ``whole`` asks for all.
    """
    settings = load_config(run)["run"]
    trained_on = settings.get("data")
    if name is None and trained_on is None:
        raise ValueError(f"{run} does not say what it was trained on: name the data with --data")
    root = root or Path(settings.get("data_root", "data"))
    own = is_own(run, name)
    how = {option: settings.get(option) for option in READING} if own else {"resize": settings.get("resize")}
    data = read_data(name or trained_on, root, hold_out=own and not whole, schema=schema_of(run), **how)
    return with_labels(data, settings)


def all_rows(run: Path, name: str | None, root: Path | None, *, held_out: bool) -> DataSet:
    """All rows of some data in their order, or the held-out rows of a run's own data."""
    if held_out and not is_own(run, name):
        raise ValueError(f"--held-out is for the data {run} was trained on; all rows of {name} are used: leave it out")
    return data_for(run, name, root, whole=not held_out)


def rows_of(run: Path, data: DataSet) -> Any:
    """The held-out rows of the data, as the run's model takes them."""
    return beside.told(kind_of(run), data, "test", levels_of(run))


def labels_of(run: Path, data: DataSet) -> torch.Tensor | None:
    """The labels of the held-out rows, as the codes of the run's model if it has levels."""
    levels = levels_of(run)
    return beside.coded(data, "test", levels, new=True) if levels else data.y_test
