"""What the scripts share: reading what a person typed, finding data, writing files, errors as one sentence."""

import contextlib
import functools
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import beside
import numpy as np
import torch
import typer
from models import MODELS, Kind

from pyro_vae import load, plotting
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.data.sources import DataSet, load_data
from pyro_vae.data.tables import Schema, parse_kinds, write_table
from pyro_vae.training import resolve_device
from pyro_vae.vae import CONFIG, WEIGHTS, load_config

# Options that several scripts have.
Run = Annotated[Path, typer.Argument(help="A run folder that train.py left.", metavar="RUN")]
DataRoot = Annotated[Path | None, typer.Option(help="Where downloaded data sets live. [default: the run's]")]
HeldOut = Annotated[
    bool, typer.Option("--held-out", help="Only the rows that the run held out, of those that it was trained on.")
]
Device = Annotated[str, typer.Option(help="auto (CUDA or XPU where there is one), cpu, cuda or xpu.")]

CHECKPOINT = "checkpoint.safetensors"
START = "start.safetensors"  # of what clusters start from


def integers(text: str, option: str) -> tuple[int, ...]:
    """Reads ``"400,200"``."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1 or max(numbers) >= 2**63:
        raise ValueError(
            f"{option} takes positive whole numbers with commas between them, such as 400,200; found {text!r}"
        )
    return numbers


def number_or_name(text: str) -> float | str:
    """Reads a number where there is one."""
    try:
        return float(text)
    except ValueError:
        return text


def absolute(data: str) -> str:
    """A path that still leads there from another folder; a name stays a name."""
    return str(Path(data).absolute()) if Path(data).suffix or "/" in data else data


@contextlib.contextmanager
def new_run(out: Path | None, name: str) -> Iterator[Path]:
    """A folder for a run that no other process writes in: ``out``, or ``runs/name``, ``runs/name-2`` and so on.

    It is taken back if the run does not come to a first checkpoint.
    """
    numbered = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    with contextlib.ExitStack() as stack:
        for folder in numbered if out is None else [out]:
            made = [path for path in (folder, *folder.parents) if not path.exists()]
            stack.callback(_remove_empty, made)
            try:
                stack.enter_context(files.only_writer(folder))
            except files.Busy:
                if out is not None:
                    raise
                continue
            if not _holds_run(folder):
                stack.callback(_take_back, folder)  # while it is still ours
                yield folder
                return
            if out is not None:
                raise ValueError(f"{folder} already holds a run: go on with --resume {folder}, or name another --out")
            stack.close()


def _holds_run(folder: Path) -> bool:
    """Whether there is something to go on with, or to use; a run that never came to a checkpoint is none."""
    return any((folder / name).exists() for name in (CHECKPOINT, START, WEIGHTS))


def _take_back(folder: Path) -> None:
    """Removes what a run has written that did not come to a checkpoint."""
    if not _holds_run(folder):
        with contextlib.suppress(OSError):
            (folder / CONFIG).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def open_run(run: Path, device: str) -> Any:
    """The model that a run folder holds, on a device."""
    if (run / CONFIG).exists() and not (run / WEIGHTS).exists():
        raise ValueError(f"{run} holds a run whose training has not ended: python scripts/train.py --resume {run}")
    return load(run).to(resolve_device(device))


def schema_of(run: Path) -> Schema | None:
    """The columns of the table that a run was trained on, if it was one."""
    schema = load_config(run)["run"].get("schema")
    return None if schema is None else Schema.from_json(schema)


def is_own(run: Path, name: str | None) -> bool:
    """Whether these are the data that a run was trained on, which are meant where none are named."""
    return name is None or absolute(name) == load_config(run)["run"].get("data")


def data_for(run: Path, name: str | None, root: Path | None, *, whole: bool = False) -> DataSet:
    """Data to use a model on: those it was trained on, or others, of which all rows are held out.

    Where the data that it was trained on are named, the same rows are held out, unless ``whole`` asks for all.
    """
    settings = load_config(run)["run"]
    trained_on = settings.get("data")
    if name is None and trained_on is None:
        raise ValueError(f"{run} does not say what it was trained on: name the rows with --data")
    root = root or Path(settings.get("data_root", "data"))
    own = is_own(run, name)
    how = {option: settings.get(option) for option in READING} if own else {"resize": settings.get("resize")}
    data = read_data(name or trained_on, root, hold_out=own and not whole, schema=schema_of(run), **how)
    return with_labels(data, settings)


def all_rows(run: Path, name: str | None, root: Path | None, *, held_out: bool) -> DataSet:
    """All rows of some data in their order, or those that a run held out of what it was trained on."""
    if held_out and not is_own(run, name):
        raise ValueError(f"--held-out is for what {run} was trained on; of {name} all rows are taken: leave it out")
    return data_for(run, name, root, whole=not held_out)


def kinds_of(settings: Mapping[str, Any]) -> dict[str, str]:
    """The kinds of a table's columns that a run was given; what holds labels or groups is kept aside."""
    kinds = parse_kinds(settings.get("columns") or ())
    for option in ("labels", "groups"):
        column = settings.get(option)
        if column is not None and kinds.setdefault(column, "index") != "index":
            raise ValueError(f"--{option} keeps the column {column!r} aside, and --columns says it is {kinds[column]}")
    return kinds


def with_labels(data: DataSet, settings: Mapping[str, Any]) -> DataSet:
    """The data with the column for labels that holds those, or groups, by the settings of a run."""
    for option in ("labels", "groups"):
        data = beside.from_column(data, settings.get(option), f"--{option}")
    return data


def part(data: DataSet, indices: torch.Tensor) -> DataSet:
    """The data with some of the training rows, and what belongs to each."""
    fields = {name: getattr(data, f"{name}_train") for name in ("x", "y", "ids", "rows", "lengths")}
    return replace(
        data,
        **{
            f"{name}_train": whole[indices.numpy() if isinstance(whole, np.ndarray) else indices]
            for name, whole in fields.items()
            if whole is not None
        },
    )


def kind_of(run: Path) -> Kind:
    """The kind of model that a run folder holds."""
    return MODELS[lookup(load_config(run)["run"].get("model", "vae"), MODELS, "model")]


def levels_of(run: Path) -> list[str]:
    """The levels of labels or groups that a run's model knows."""
    return load_config(run)["run"].get("levels", [])


def rows_of(run: Path, data: DataSet) -> Any:
    """The held-out rows of the data, as the run's model takes them."""
    return beside.told(kind_of(run), data, "test", levels_of(run))


def given_of(run: Path, texts: Sequence[str], num: int) -> dict[str, torch.Tensor] | None:
    """What so many new rows of a run's model are to be drawn given, by what was typed; None if it is nothing."""
    word = load_config(run)["run"].get("model", "vae")
    return beside.given(texts, kind_of(run), word, levels_of(run), num) or None


def labels_of(run: Path, data: DataSet) -> torch.Tensor | None:
    """The labels of the held-out rows, by the numbers that the run's model has for them, if it has any."""
    levels = levels_of(run)
    return beside.coded(data, "test", levels, new=True) if levels else data.y_test


# Options of train.py that say how a file is to be read.
READING = ("resize", "separator", "decimal", "encoding", "header")


def read_data(
    name: str, root: Path, *, header: str | None = None, resize: str | None = None, **options: Any
) -> DataSet:
    """Data by a name or path, read as the command line says."""
    if header is not None:
        lookup(header, ("yes", "no"), "--header")
    size = None if resize is None else integers(resize, "--resize")
    if size is not None and len(size) != 2:
        raise ValueError(f"--resize takes height,width, such as 64,64; found {resize!r}")
    return load_data(name, root, header=None if header is None else header == "yes", resize=size, **options)


def writer(out: Path, by_suffix: Mapping[str, Callable[[Any, Path], None]]) -> Callable[[Any, Path], None]:
    """What writes a file of this name, once it is known that one can be written there."""
    if out.suffix not in by_suffix:
        raise ValueError(f"--out must end in {' or '.join(by_suffix)}, found {out}")
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder: name a file in it, such as {out / ('out' + out.suffix)}")
    files.check_writable(out.parent)
    return by_suffix[out.suffix]


def only_pictures(run: Path, out: Path) -> None:
    """Refuses a picture of a table's rows: there is nothing to be seen in it."""
    if out.suffix == ".png" and load_config(run)["run"].get("schema") is not None:
        figure = run / "figures" / "columns.png"
        raise ValueError(
            f"{run} was trained on a table, whose rows are no pictures: name a .csv; {figure} shows columns"
        )


def write_tiles(x: torch.Tensor, out: Path) -> None:
    """Draws rows as tiles."""
    plotting.save_figure(plotting.plot_samples(x), out)


def write_reconstructions(arrays: Mapping[str, torch.Tensor], out: Path) -> None:
    """Draws data, reconstructions and one draw for each."""
    figure = plotting.plot_reconstructions(arrays["x"], arrays["reconstructions"], arrays["posterior_predictive"][0])
    plotting.save_figure(figure, out)


def write_array(x: torch.Tensor, out: Path) -> None:
    """Writes one array."""
    with files.replacing(out) as temporary:
        np.save(temporary, x.numpy())


TABLES = (".csv", ".tsv", ".txt", ".xlsx", ".parquet")


def table_writers(
    run: Path, given: Mapping[str, torch.Tensor] | None = None
) -> dict[str, Callable[[torch.Tensor, Path], None]]:
    """What writes new rows ``(N, D)`` as the table that a run was trained on, by the end of the file's name.

    What labels or groups they were drawn given stands in the column that they come from.
    """

    def write(x: torch.Tensor, out: Path) -> None:
        table, settings = drawn_table(table_schema(run, out), x), load_config(run)["run"]
        for name, values in (given or {}).items():
            if settings.get(name) is not None:
                table.insert(0, settings[name], np.array(levels_of(run))[values.numpy()])
        save_table(table, out)

    return dict.fromkeys(TABLES, write)


def seven_digits(number: float) -> float:
    """As many digits as a float32 has."""
    return float(f"{number:.7g}")


def drawn_table(schema: Schema, x: torch.Tensor) -> Any:
    """Draws as a table, in which numbers have no more digits than the type of the draws."""
    table = schema.decode(x)
    if x.dtype == torch.float32:
        numbers = table.select_dtypes("float64")
        table[numbers.columns] = numbers.map(seven_digits)
    return table


def table_schema(run: Path, out: Path) -> Schema:
    """The columns of the table that a run was trained on."""
    schema = schema_of(run)
    if schema is None:
        raise ValueError(f"a {out.suffix} holds a table, and {run} was not trained on one: use another kind of file")
    return schema


def save_table(frame: Any, out: Path, like: Any = None) -> None:
    """Writes a table, whole or not at all, in the format of the one that was read."""
    with files.replacing(out) as temporary:
        write_table(frame, temporary, like)


def held_table(data: DataSet) -> Any:
    """The rows of a table that are held out, as they were read."""
    rows, table = data.rows_test, data.table
    if table is None or rows is None:
        raise ValueError(f"{data.name} is no table, so there is none to write its rows as: use another kind of file")
    frame, text = (
        None if part is None else part.iloc[rows.numpy()].reset_index(drop=True) for part in (table.frame, table.text)
    )
    return replace(table, frame=frame, text=text)


def with_index(schema: Schema, data: DataSet, drawn: Any) -> Any:
    """A table of draws, one for each held-out row, with the columns that name the rows before it."""
    table = held_table(data)
    known = table.frame if table.text is None else table.text
    names = [name for name in schema.index if name in known]
    return drawn.assign(**{name: known[name] for name in names})[[*names, *drawn.columns]]


def named(run: Path, found: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a run's model says of rows, with the names of labels and the levels that probabilities are of."""
    arrays: dict[str, Any] = dict(found)
    if "predicted_labels" in found:
        levels = np.array(levels_of(run))
        arrays |= {"predicted_labels": levels[found["predicted_labels"].numpy()], "levels": levels}
    return arrays


def free_name(name: str, table: Any) -> str:
    """A name for a column that the table does not have: this one, or with underscores before it."""
    return next(free for count in itertools.count() if (free := "_" * count + name) not in table)


def draws_of_table(tables: list[Any]) -> Any:
    """Tables below one another, each row with the number of its table as ``draw``, or ``_draw`` where there is one."""
    import pandas as pd

    whole = pd.concat(tables, ignore_index=True)
    whole.insert(0, free_name("draw", whole), np.repeat(np.arange(1, len(tables) + 1), len(tables[0])))
    return whole


def write_arrays(arrays: Mapping[str, torch.Tensor], out: Path) -> None:
    """Writes named arrays."""
    with files.replacing(out) as temporary:
        np.savez(temporary, allow_pickle=False, **{name: np.asarray(x) for name, x in arrays.items()})


def result_writers(run: Path, data: DataSet) -> dict[str, Callable[[Mapping[str, Any], Path], None]]:
    """What writes numbers of each row, with what comes along with the rows, by the end of the file's name."""

    def write(found: Mapping[str, Any], out: Path) -> None:
        import pandas as pd

        schema = schema_of(run)
        index = {} if schema is None else dict(with_index(schema, data, pd.DataFrame(index=range(len(data.x_test)))))
        columns: dict[str, Any] = {**index, **{n: np.asarray(v) for n, v in what_comes_along(data).items()}}
        for name, values in found.items():
            if values.dtype.kind == "f":
                values = np.vectorize(seven_digits, otypes=[float])(values)
            parts = {name: values} if values.ndim == 1 else {f"{name}_{i + 1}": v for i, v in enumerate(values.T)}
            columns |= {free_name(part, columns): value for part, value in parts.items()}
        save_table(pd.DataFrame(columns), out)

    def write_npz(found: Mapping[str, Any], out: Path) -> None:
        write_arrays({**found, **what_comes_along(data)}, out)

    return {".npz": write_npz, **dict.fromkeys(TABLES, write)}


def what_comes_along(data: DataSet) -> dict[str, Any]:
    """Labels, names and places of the held-out rows, as far as there are any, to be written beside the results."""
    labels = None if data.y_test is None else data.y_test.numpy()
    if labels is not None and data.labels is not None:
        names = np.asarray([*data.labels, ""] if min(labels, default=0) < 0 else data.labels)
        labels = names[labels]
    found = {"labels": labels, "ids": data.ids_test, "rows": data.rows_test}
    return {name: value for name, value in found.items() if value is not None}


def run_command(main: Callable[..., None]) -> None:
    """Runs a script's command; a mistake ends it with one sentence and exit status 2.

    A request to terminate ends it in order too, so that files half written go with it.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)  # brackets are text
    app.command()(_within_64_bits(main))
    ends = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {end: signal.signal(end, lambda number, _: sys.exit(128 + number)) for end in ends}
    try:
        app()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if "allocate memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        print(f"error: there is not enough memory: {first_line(error)}", file=sys.stderr)
        sys.exit(2)
    finally:
        for end, handler in before.items():
            signal.signal(end, handler)


def _within_64_bits(main: Callable[..., None]) -> Callable[..., None]:
    """The same command, but whole numbers that no tensor can hold are refused."""

    @functools.wraps(main)
    def checked(*args: Any, **options: Any) -> None:
        for name, value in options.items():
            if isinstance(value, int) and abs(value) >= 2**63:
                raise ValueError(f"--{name.replace('_', '-')} must be below 2^63 in size, found {value}")
        main(*args, **options)

    return checked


def first_line(error: BaseException) -> str:
    """The first line of what PyTorch says."""
    return str(error).splitlines()[0].rpartition("] ")[2]


def sentence(error: BaseException) -> str:
    """An error on one line, as a person would say it."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
