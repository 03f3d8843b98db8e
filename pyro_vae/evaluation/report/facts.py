"""What a report is about, enough to tell two reports apart and to make one again."""

import platform
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import torch

import pyro_vae
from pyro_vae.data.rows import Rows
from pyro_vae.pair import Pair

__all__ = ["facts"]


def facts(pair: Pair, rows: Rows, seed: int, settings: Mapping[str, Any]) -> dict[str, str]:
    """Versions, the model and its settings, the rows and their fingerprint, in words."""
    numbers = sum(p.numel() for p in pair.parameters())
    shape = " × ".join(map(str, pair.event_shape or ())) or "one number"
    kind = str(pair.dtype).removeprefix("torch.")
    versions = (
        f"pyro_vae {pyro_vae.__version__}",
        f"PyTorch {torch.__version__}",
        f"Pyro {pyro.__version__}",
        f"NumPy {np.__version__}",
        f"Python {platform.python_version()}",
    )
    trained = {"trained with": ", ".join(f"{name} {value}" for name, value in settings.items())} if settings else {}
    return {
        "versions": ", ".join(versions),
        "model": f"{type(pair).__name__}, {numbers:,} parameters, {kind}, on {pair.device}",
        **trained,
        "rows": f"{rows.num_rows:,} of {shape}, fingerprint {rows.fingerprint()}",
        "seed": str(seed),
    }
