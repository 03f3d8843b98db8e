"""torchvision, which a data set may need and the library does not."""

from typing import Any

import torch

__all__ = ["import_torchvision"]


def import_torchvision() -> Any:
    """Imports torchvision, or says why that fails.

    Raises:
        ValueError: naming the two versions that disagree, where torchvision was built for another torch.
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
            f"this data set needs torchvision, which does not import: found torch {torch.__version__} and {found}, "
            f"which do not belong together; install a matching pair with `pip install torch torchvision`, or use "
            f"the data set digits, a .npy file or a folder of images, which do without ({type(error).__name__})"
        ) from error
    return torchvision
