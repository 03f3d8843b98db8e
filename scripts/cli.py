"""What the scripts share: reading what a person typed, finding data, writing files, errors as one sentence."""

import contextlib
import itertools
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from pyro_vae import VAE, load, plotting
from pyro_vae._support import files
from pyro_vae._support.arrays import FileRows
from pyro_vae.data.sources import DataSet, load_data
from pyro_vae.data.tables import Schema
from pyro_vae.training import resolve_device
from pyro_vae.vae import CONFIG, WEIGHTS, load_config


def integers(text: str, option: str) -> tuple[int, ...]:
    """Reads ``"400,200"``."""
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
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


def unused_folder(name: str) -> Path:
    """``runs/name``, or ``runs/name-2`` and so on where that is taken."""
    candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for candidate in candidates if not (folder := Path("runs") / candidate).exists())


@contextlib.contextmanager
def new_run(folder: Path) -> Iterator[None]:
    """Makes a run folder, and takes it back if it turns out that the run cannot start."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    files.check_writable(folder)
    try:
        yield
    except ValueError:
        (folder / CONFIG).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
        raise


def open_run(run: Path, device: str) -> VAE:
    """The model that a run folder holds, on a device."""
    if (run / CONFIG).exists() and not (run / WEIGHTS).exists():
        raise ValueError(f"{run} holds a run whose training has not ended: python scripts/train.py --resume {run}")
    return load(run).to(resolve_device(device))


def schema_of(run: Path) -> Schema | None:
    """The columns of the table that a run was trained on, if it was one."""
    schema = load_config(run)["run"].get("schema")
    return None if schema is None else Schema.from_json(schema)


def data_for(run: Path, name: str | None, root: Path | None, *, whole: bool = False) -> DataSet:
    """Data to use a model on: those it was trained on, or others, of which all rows are held out.

    Where the data that it was trained on are named, the same rows are held out, unless ``whole`` asks for all.
    """
    settings = load_config(run)["run"]
    trained_on = settings.get("data")
    if name is None and trained_on is None:
        raise ValueError(f"{run} does not say what it was trained on: name the rows with --data")
    root = root or Path(settings.get("data_root", "data"))
    named = None if name is None else absolute(name)
    hold_out = named is None or (named == trained_on and not whole)
    return load_data(name or trained_on, root, hold_out=hold_out, schema=schema_of(run))


def rows_for(run: Path, name: str | None, root: Path | None, *, whole: bool = False) -> torch.Tensor | FileRows:
    """The rows held out of :func:`data_for`, in their order. Many rows stay in their file."""
    return data_for(run, name, root, whole=whole).x_test


def writer(out: Path, by_suffix: Mapping[str, Callable[[Any, Path], None]]) -> Callable[[Any, Path], None]:
    """What writes a file of this name, once it is known that one can be written there."""
    if out.suffix not in by_suffix:
        raise ValueError(f"--out must end in {' or '.join(by_suffix)}, found {out}")
    files.check_writable(out.parent)
    return by_suffix[out.suffix]


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


def table_writers(run: Path) -> dict[str, Callable[[torch.Tensor, Path], None]]:
    """What writes rows as the table that a run was trained on, by the end of the file's name."""

    def write(x: torch.Tensor, out: Path) -> None:
        write_table(run, x, out)

    return {".csv": write, ".parquet": write}


def write_table(run: Path, x: torch.Tensor, out: Path) -> None:
    """Writes rows ``(N, D)`` as the table that the run was trained on; of ``(S, N, D)`` each table with its number."""
    schema = schema_of(run)
    if schema is None:
        raise ValueError(f"a {out.suffix} holds a table, and {run} was not trained on one: use another kind of file")
    table = schema.decode(x.reshape(-1, x.shape[-1]))
    if x.dim() == 3:
        table.insert(0, "draw", np.repeat(np.arange(1, len(x) + 1), x.shape[1]))
    with files.replacing(out) as temporary:
        if out.suffix == ".csv":
            table.to_csv(temporary, index=False, float_format="%.7g")  # what float32 can tell apart
            return
        try:
            table.to_parquet(temporary, index=False, engine="pyarrow")
        except ImportError as error:
            raise ValueError(f"writing {out} needs pyarrow: pip install 'pyro-vae[tables]'") from error


def write_arrays(arrays: Mapping[str, torch.Tensor], out: Path) -> None:
    """Writes named arrays."""
    with files.replacing(out) as temporary:
        np.savez(temporary, allow_pickle=False, **{name: x.numpy() for name, x in arrays.items()})


def run_command(main: Callable[..., None]) -> None:
    """Runs a script's command; a mistake ends it with one sentence and exit status 2.

    A request to terminate ends it in order too, so that files half written go with it.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)  # brackets are text
    app.command()(main)
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)
