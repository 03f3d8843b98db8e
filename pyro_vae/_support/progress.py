"""Progress bars that are quiet in a log."""

import sys
from typing import Any

from tqdm.auto import tqdm

__all__ = ["bar"]

_TERMINAL, _LOG = 0.1, 60.0  # seconds between updates


def bar(**options: Any) -> Any:
    """A tqdm bar, updated only once a minute unless it is on a terminal or in a notebook."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    seconds = _TERMINAL if watched else _LOG
    return tqdm(mininterval=seconds, maxinterval=max(10.0, seconds), dynamic_ncols=True, **options)
