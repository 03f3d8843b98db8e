"""Progress bars that are quiet in a log."""

import sys
from typing import Any

from tqdm.auto import tqdm

__all__ = ["bar"]

_TERMINAL, _LOG = 0.1, 60.0  # seconds between two drawings


def bar(**options: Any) -> Any:
    """A bar of tqdm's, drawn again once a minute where it is neither on a terminal nor in a notebook."""
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    seconds = _TERMINAL if watched else _LOG
    return tqdm(mininterval=seconds, maxinterval=max(10.0, seconds), dynamic_ncols=True, **options)
