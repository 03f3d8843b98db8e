"""What says where a run came from, and does it again."""

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
    """The day, the commit of the folder that the command was run in, if it has one, and the fingerprint of the rows."""
    return {"date": today(), "commit": commit(), "rows": fingerprint}


def today() -> str:
    """The day, as 2026-11-27."""
    return datetime.date.today().isoformat()


def commit() -> str | None:
    """The commit that the working folder is at, with ``-dirty`` where something was changed since; None without one."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def write_settings(folder: Path, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> None:
    """Writes the options of a run that are not as usual, as a file for ``pyro-vae train --config`` that repeats it."""
    options = {name: settings[name] for name in usual if settings.get(name) not in (None, [], (), usual[name])}
    if options.get("data_root") == str(default_root().absolute()):
        del options["data_root"]
    with files.replacing(folder / SETTINGS) as temporary:
        temporary.write_text(f"# pyro-vae train --config {SETTINGS}\n{tomli_w.dumps(options)}", encoding="utf-8")
