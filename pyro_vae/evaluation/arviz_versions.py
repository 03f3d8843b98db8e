"""ArviZ before version 1 and since: the few calls that changed, in one place."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["arviz_groups", "import_arviz"]

Groups = Mapping[str, Mapping[str, np.ndarray]]


def import_arviz() -> Any:
    """ArviZ, imported when it is needed.

    Raises:
        ImportError: if it is not installed, with the command to install it.
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
    """Groups of arrays in ArviZ's form: ``InferenceData``, or from version 1 on xarray's ``DataTree``.

    Args:
        groups: Arrays by group and name; draws start with the dimensions chain and draw. Empty groups are omitted.
        dims: Names of further dimensions, by array.
        coords: Values of the dimensions.
        attrs: Attributes of every group.
    """
    arviz = import_arviz()
    kept = {group: dict(arrays) for group, arrays in groups.items() if arrays}
    names = {"dims": dict(dims), "coords": dict(coords)}
    if _before_version_1(arviz):
        return arviz.from_dict(**kept, **names, attrs=dict(attrs))
    return arviz.from_dict(kept, **names, attrs={group: dict(attrs) for group in ("/", *kept)})


def _before_version_1(arviz: Any) -> bool:
    return arviz.__version__.startswith("0.")  # looking up a removed name raises an error
