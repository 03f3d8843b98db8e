"""ArviZ, before its version 1 and from it: the few calls that changed, in one place."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["arviz_groups", "import_arviz"]

Groups = Mapping[str, Mapping[str, np.ndarray]]


def import_arviz() -> Any:
    """ArviZ, imported when it is needed.

    Raises:
        ImportError: if it is not installed, with the command that does so.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it announces its next version
            import arviz
    except ImportError as error:
        raise ImportError("this needs ArviZ: pip install 'pyro-vae[evaluation]'") from error
    return arviz


def arviz_groups(
    groups: Groups, *, dims: Mapping[str, Any], coords: Mapping[str, Any], attrs: Mapping[str, Any]
) -> Any:
    """Groups of arrays as ArviZ has them: ``InferenceData``, from version 1 on a ``DataTree`` of xarray.

    Args:
        groups: Arrays by group and name; draws begin with dimensions of a chain and a draw. Empty ones are left out.
        dims: Names of further dimensions, by array.
        coords: Their values.
        attrs: What is said of all.
    """
    arviz = import_arviz()
    kept = {group: dict(arrays) for group, arrays in groups.items() if arrays}
    names = {"dims": dict(dims), "coords": dict(coords)}
    if _before_version_1(arviz):
        return arviz.from_dict(**kept, **names, attrs=dict(attrs))
    return arviz.from_dict(kept, **names, attrs={group: dict(attrs) for group in ("/", *kept)})


def _before_version_1(arviz: Any) -> bool:
    return arviz.__version__.startswith("0.")  # to ask for a name that is gone is an error of its own
