"""Records where a run came from, and how to repeat it."""

import datetime
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from pyro_vae._support import files
from pyro_vae.data.sources import default_root

SETTINGS = "run.toml"


def made(fingerprint: str | None) -> dict[str, str | None]:
    """The date, the commit of the working folder, if it has one, and the fingerprint of the rows."""
    return {"date": today(), "commit": commit(), "rows": fingerprint}


def today() -> str:
    """The date, as 2026-11-27."""
    return datetime.date.today().isoformat()


def commit() -> str | None:
    """The commit of the working folder, with ``-dirty`` if it has changes; None if it is not a repository."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_settings(folder: Path, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Writes a run's non-default options to a file for ``pyro-vae train --config``, which repeats it."""
    options = {name: settings[name] for name in usual if settings.get(name) not in (None, [], (), usual[name])}
    if options.get("data_root") == str(default_root().absolute()):
        del options["data_root"]
    with files.replacing(folder / SETTINGS) as temporary:
        temporary.write_text(f"# pyro-vae train --config {SETTINGS}\n{tomli_w.dumps(options)}", encoding="utf-8")
