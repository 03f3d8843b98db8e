"""Run folders: created by one process alone, removed if training did not start, opened and inspected."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae import load
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli import beside, options
from pyro_vae.cli.models import MODELS, Kind
from pyro_vae.cli.provenance import SETTINGS
from pyro_vae.data.tables import Schema, Table
from pyro_vae.training import resolve_device
from pyro_vae.vae import CONFIG, WEIGHTS, load_config

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.csv"
START = "start.safetensors"  # the checkpoint of pretraining without clusters
_TEXT = ("separator", "decimal", "encoding", "header", "newline")


@contextlib.contextmanager
def new_run(out: Path | None, name: str) -> Iterator[Path]:
    """A folder for a run, locked against other processes: ``out``, or ``runs/name``, ``runs/name-2`` and so on.

    It is removed if the run does not reach its first checkpoint.
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
                stack.callback(_take_back, folder)  # while it is still locked
                yield folder
                return
            if out is not None:
                raise ValueError(f"{folder} already holds a run: use --resume {folder}, or name another --out")
            stack.close()


def _holds_run(folder: Path) -> bool:
    """Whether there is a run to resume or to use. One without a checkpoint does not count."""
    return any((folder / name).exists() for name in (CHECKPOINT, START, WEIGHTS))


def _take_back(folder: Path) -> None:
    """Removes the files of a run that did not reach a checkpoint."""
    if not _holds_run(folder):
        with contextlib.suppress(OSError):
            for name in (CONFIG, SETTINGS):
                (folder / name).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def open_run(run: Path, device: str) -> Any:
    """The model in a run folder, on a device."""
    if (run / CONFIG).exists() and not (run / WEIGHTS).exists():
        raise ValueError(f"{run} holds a run whose training has not finished: pyro-vae train --resume {run}")
    return load(run).to(resolve_device(device))


def schema_of(run: Path) -> Schema | None:
    """The columns of the table that a run was trained on; None if it was not a table."""
    schema = load_config(run)["run"].get("schema")
    return None if schema is None else Schema.from_json(schema)


def text_settings(table: Table) -> dict[str, Any]:
    """How a table is written as text, as settings of a run."""
    return {name: getattr(table, name) for name in _TEXT}


def text_of(run: Path) -> Table | None:
    """An empty table, written like the one that a run was trained on; None if that is not known."""
    import pandas as pd

    settings = load_config(run)["run"].get("text")
    return None if settings is None else Table(pd.DataFrame(), **settings)


def absolute(data: str) -> str:
    """Makes a path absolute; a name stays a name."""
    return str(Path(data).absolute()) if Path(data).suffix or "/" in data else data


def is_own(run: Path, name: str | None) -> bool:
    """Whether these are the data that a run was trained on, which are also the default."""
    return name is None or absolute(name) == load_config(run)["run"].get("data")


def kind_of(run: Path) -> Kind:
    """The kind of model in a run folder."""
    return MODELS[lookup(load_config(run)["run"].get("model", "vae"), MODELS, "model")]


def history_of(run: Path) -> "pd.DataFrame | None":
    """The history of a run that has finished training.

    Raises:
        ValueError: if its file is damaged.
    """
    import pandas as pd

    if not (run / HISTORY).exists():
        return None
    try:
        return pd.read_csv(run / HISTORY)
    except ValueError as error:  # as pandas' errors are, and those of decoding
        raise ValueError(f"{run / HISTORY} is damaged ({error}): restore it, or delete it to do without") from error


def settings_of(run: Path) -> dict[str, Any]:
    """The options of a run that differ from the defaults, and when and at which commit it was trained."""
    found = options.read_toml(run / SETTINGS) if (run / SETTINGS).exists() else {}
    made = load_config(run)["run"].get("made", {})
    return found | {name: made[name] for name in ("date", "commit") if made.get(name)}


def bounds_of(run: Path) -> tuple[float, float] | None:
    """The values that are black and white in the data of a run, if there are such."""
    bounds = load_config(run)["run"].get("bounds")
    return None if bounds is None else (bounds[0], bounds[1])


def levels_of(run: Path) -> list[str]:
    """The levels of labels or groups that a run's model knows."""
    return load_config(run)["run"].get("levels", [])


def given_of(run: Path, texts: Sequence[str], num: int) -> dict[str, torch.Tensor] | None:
    """The values that ``num`` new rows are conditioned on, from what the user typed; None if there are none."""
    word = load_config(run)["run"].get("model", "vae")
    return beside.given(texts, kind_of(run), word, levels_of(run), num) or None
