"""Imports torchvision, which some data sets need but the library does not."""

from typing import Any

import torch

__all__ = ["import_torchvision"]


def import_torchvision() -> Any:
    """Imports torchvision, or explains why it cannot be imported.

    Raises:
        ValueError: naming both versions, as torchvision may have been built for another torch.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        import torchvision
        import torchvision.datasets
    except Exception as error:
        try:
            found = f"torchvision {version('torchvision')}"
        except PackageNotFoundError:
            found = "no torchvision"
        raise ValueError(
            f"this data set needs torchvision, which cannot be imported: found torch {torch.__version__} and {found}, "
            f"which do not match; install a matching pair with `pip install torch torchvision`, or use the data set "
            f"digits, a .npy file or a folder of images, which do not need it ({type(error).__name__})"
        ) from error
    return torchvision
