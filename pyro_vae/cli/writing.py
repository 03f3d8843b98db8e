"""Writes the results of commands: tables, arrays and images, completely or not at all."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae import plotting
from pyro_vae._support import files
from pyro_vae.cli.runs import levels_of, schema_of, text_of
from pyro_vae.data.sources import DataSet
from pyro_vae.data.tables import Schema, write_table
from pyro_vae.vae import load_config

TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet")


def writer(
    out: Path, by_suffix: Mapping[str, Callable[[Any, Path], None]], *, run: Path | None = None, data: str | None = None
) -> Callable[[Any, Path], None]:
    """The function that writes a file of this type, after checks that it can be written and is not data.

    Args:
        out: The file.
        by_suffix: How to write each type.
        run: A run, whose training data are not to be replaced.
        data: Other data that are read, likewise.
    """
    if out.suffix not in by_suffix:
        raise ValueError(f"--out must end in {' or '.join(by_suffix)}, found {out}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it, such as {out / ('out' + out.suffix)}")
    trained_on = None if run is None else load_config(run)["run"].get("data")
    for name in filter(None, (data, trained_on)):
        if out.exists() and Path(name).exists() and out.samefile(name):
            raise ValueError(f"--out {out} would replace the data that are read: name another file")
    files.check_writable(out.parent)
    return by_suffix[out.suffix]


def only_pictures(run: Path, out: Path) -> None:
    """Refuses to draw a table's rows as images."""
    if out.suffix == ".png" and load_config(run)["run"].get("schema") is not None:
        figure = run / "figures" / "columns.png"
        raise ValueError(
            f"{run} was trained on a table, whose rows are not images: name a .csv; {figure} shows the columns"
        )


def write_tiles(bounds: plotting.Bounds, x: torch.Tensor, out: Path) -> None:
    """Draws rows as tiles."""
    plotting.save_figure(plotting.plot_samples(x, bounds=bounds), out)


def write_reconstructions(bounds: plotting.Bounds, arrays: Mapping[str, torch.Tensor], out: Path) -> None:
    """Draws rows of data, their reconstructions and one draw for each."""
    x, means, draws = arrays["x"], arrays["reconstructions"], arrays["posterior_predictive"][0]
    plotting.save_figure(plotting.plot_reconstructions(x, means, draws, bounds=bounds), out)


def write_array(x: torch.Tensor, out: Path) -> None:
    """Writes one array."""
    with files.replacing(out) as temporary:
        np.save(temporary, x.numpy())


def write_arrays(arrays: Mapping[str, torch.Tensor], out: Path) -> None:
    """Writes named arrays."""
    with files.replacing(out) as temporary:
        np.savez(temporary, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})


def table_writers(
    run: Path, given: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Callable[[torch.Tensor, Path], None]]:
    """Functions that write new rows ``(N, D)`` as a table like the one that a run was trained on, by file suffix.

    Labels or groups that the rows were conditioned on go into the column that they come from.
    """

    def write(x: torch.Tensor, out: Path) -> None:
        table, settings = drawn_table(table_schema(run, out), x), load_config(run)["run"]
        for name, values in (given or {}).items():
            if settings.get(name) is not None:
                table.insert(0, settings[name], np.array(levels_of(run))[values.numpy()])
        save_table(table, out, text_of(run))

    return dict.fromkeys(TABLES, write)


def seven_digits(number: float) -> float:
    """Rounds to seven digits, as many as a float32 has."""
    return float(f"{number:.7g}")


def drawn_table(schema: Schema, x: torch.Tensor) -> Any:
    """Draws as a table, whose numbers have no more digits than the draws' type."""
    table = schema.decode(x)
    if x.dtype == torch.float32:
        numbers = table.select_dtypes("float64")
        table[numbers.columns] = numbers.map(seven_digits)
    return table


def table_schema(run: Path, out: Path) -> Schema:
    """The columns of the table that a run was trained on."""
    schema = schema_of(run)
    if schema is None:
        raise ValueError(f"a {out.suffix} holds a table, but {run} was not trained on one: use another kind of file")
    return schema


def save_table(frame: Any, out: Path, like: Any = None) -> None:
    """Writes a table, completely or not at all, in the format of the table that was read."""
    with files.replacing(out) as temporary:
        write_table(frame, temporary, like)


def held_table(data: DataSet) -> Any:
    """The held-out rows of a table, as they were read."""
    rows, table = data.rows_test, data.table
    if table is None or rows is None:
        raise ValueError(f"{data.name} is not a table, so its rows cannot be written as one: use another kind of file")
    frame, text = (
        None if part is None else part.iloc[rows.numpy()].reset_index(drop=True) for part in (table.frame, table.text)
    )
    return replace(table, frame=frame, text=text)


def with_index(schema: Schema, data: DataSet, drawn: Any) -> Any:
    """A table of draws, one for each held-out row, with the index columns first."""
    table = held_table(data)
    known = table.frame if table.text is None else table.text
    names = [name for name in schema.index if name in known]
    return drawn.assign(**{name: known[name] for name in names})[[*names, *drawn.columns]]


def named(run: Path, found: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """A model's predictions with labels by name, and the levels that the probabilities refer to."""
    arrays: dict[str, Any] = dict(found)
    if "predicted_labels" in found:
        levels = np.array(levels_of(run))
        arrays |= {"predicted_labels": levels[found["predicted_labels"].numpy()], "levels": levels}
    return arrays


def free_name(name: str, table: Any) -> str:
    """A column name that the table does not have yet: this one, with underscores in front if needed."""
    return next(free for count in itertools.count() if (free := "_" * count + name) not in table)


def draws_of_table(tables: list[Any]) -> Any:
    """Concatenates tables, with the number of each row's table as ``draw``, or ``_draw`` if that is taken."""
    import pandas as pd

    whole = pd.concat(tables, ignore_index=True)
    whole.insert(0, free_name("draw", whole), np.repeat(np.arange(1, len(tables) + 1), len(tables[0])))
    return whole


def result_writers(run: Path, data: DataSet) -> dict[str, Callable[[Mapping[str, Any], Path], None]]:
    """Functions that write results for each row, with its labels, id and row number, by file suffix."""

    def write(found: Mapping[str, Any], out: Path) -> None:
        import pandas as pd

        schema = schema_of(run)
        index = {} if schema is None else dict(with_index(schema, data, pd.DataFrame(index=range(len(data.x_test)))))
        along = what_comes_along(data)
        if load_config(run)["run"].get("labels") in index:  # under their own name
            along.pop("labels", None)
        columns: dict[str, Any] = {**index, **{n: np.asarray(v) for n, v in along.items()}}
        for name, values in found.items():
            if values.dtype.kind == "f":
                values = np.vectorize(seven_digits, otypes=[float])(values)
            parts = {name: values} if values.ndim == 1 else {f"{name}_{i + 1}": v for i, v in enumerate(values.T)}
            columns |= {free_name(part, columns): value for part, value in parts.items()}
        save_table(pd.DataFrame(columns), out, None if data.table is None else replace(data.table, header=True))

    def write_npz(found: Mapping[str, Any], out: Path) -> None:
        write_arrays({**found, **what_comes_along(data)}, out)

    return {".npz": write_npz, **dict.fromkeys(TABLES, write)}


def what_comes_along(data: DataSet) -> dict[str, Any]:
    """Labels, ids and row numbers of the held-out rows, if there are any, to write next to the results."""
    labels = None if data.y_test is None else data.y_test.numpy()
    if labels is not None and data.labels is not None:
        names = np.asarray([*data.labels, ""] if min(labels, default=0) < 0 else data.labels)
        labels = names[labels]
    found = {"labels": labels, "ids": data.ids_test, "rows": data.rows_test}
    return {name: value for name, value in found.items() if value is not None}
