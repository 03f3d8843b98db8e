"""Run folders: made by one process alone, taken back where nothing came of them, opened, asked what they hold."""

import contextlib
import itertools
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_vae import load
from pyro_vae._support import files
from pyro_vae._support.names import lookup
from pyro_vae.cli import beside
from pyro_vae.cli.models import MODELS, Kind
from pyro_vae.cli.provenance import SETTINGS
from pyro_vae.data.tables import Schema
from pyro_vae.training import resolve_device
from pyro_vae.vae import CONFIG, WEIGHTS, load_config

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.csv"
START = "start.safetensors"  # of what clusters start from


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
            for name in (CONFIG, SETTINGS):
                (folder / name).unlink(missing_ok=True)


def _remove_empty(folders: list[Path]) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def open_run(run: Path, device: str) -> Any:
    """The model that a run folder holds, on a device."""
    if (run / CONFIG).exists() and not (run / WEIGHTS).exists():
        raise ValueError(f"{run} holds a run whose training has not ended: pyro-vae train --resume {run}")
    return load(run).to(resolve_device(device))


def schema_of(run: Path) -> Schema | None:
    """The columns of the table that a run was trained on, if it was one."""
    schema = load_config(run)["run"].get("schema")
    return None if schema is None else Schema.from_json(schema)


def absolute(data: str) -> str:
    """A path that still leads there from another folder; a name stays a name."""
    return str(Path(data).absolute()) if Path(data).suffix or "/" in data else data


def is_own(run: Path, name: str | None) -> bool:
    """Whether these are the data that a run was trained on, which are meant where none are named."""
    return name is None or absolute(name) == load_config(run)["run"].get("data")


def kind_of(run: Path) -> Kind:
    """The kind of model that a run folder holds."""
    return MODELS[lookup(load_config(run)["run"].get("model", "vae"), MODELS, "model")]


def history_of(run: Path) -> "pd.DataFrame | None":
    """What a run's epochs came to, if it has been trained to its end."""
    import pandas as pd

    return pd.read_csv(run / HISTORY) if (run / HISTORY).exists() else None


def settings_of(run: Path) -> dict[str, Any]:
    """What a run was trained with where it is not as usual, and when."""
    found = tomllib.loads((run / SETTINGS).read_text(encoding="utf-8")) if (run / SETTINGS).exists() else {}
    made = load_config(run)["run"].get("made", {})
    return found | {name: made[name] for name in ("date", "commit") if made.get(name)}


def levels_of(run: Path) -> list[str]:
    """The levels of labels or groups that a run's model knows."""
    return load_config(run)["run"].get("levels", [])


def given_of(run: Path, texts: Sequence[str], num: int) -> dict[str, torch.Tensor] | None:
    """What so many new rows of a run's model are to be drawn given, by what was typed; None if it is nothing."""
    word = load_config(run)["run"].get("model", "vae")
    return beside.given(texts, kind_of(run), word, levels_of(run), num) or None
