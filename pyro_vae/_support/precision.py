"""Types that preserve the digits of data until they are in the model's units."""

import torch
from torch import Tensor

from pyro_vae._support.moments import Moments

__all__ = ["Rounding", "arithmetic", "floating"]

_COARSE = 1e-2  # largest tolerated rounding error, relative to the standard deviation


def arithmetic(x: Tensor) -> Tensor:
    """Rows in a type for which torch has arithmetic."""
    return x.to(torch.int64) if x.dtype in (torch.uint16, torch.uint32, torch.uint64) else x


def floating(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows in a floating-point type that holds their digits: ``dtype``, or float64 if they have more.

    Example:
        >>> floating(torch.zeros(1, dtype=torch.uint8), torch.float32).dtype
        torch.float32
        >>> floating(torch.tensor([1_700_000_001]), torch.float32)
        tensor([1.7000e+09], dtype=torch.float64)
    """
    x = arithmetic(x)
    return x.to(torch.float64 if x.dtype in (torch.float64, torch.int64, torch.int32) else dtype)


class Rounding:
    """Whether a type can tell the values of each element apart, over rows that come in parts.

    Args:
        dtype: The type to round to.

    Example:
        >>> x = 1e6 + torch.arange(3, dtype=torch.float64)[:, None] * torch.tensor([1e-3, 1.0])
        >>> Rounding(torch.float32).add(x).too_coarse
        tensor([ True, False])
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.moments, self.error = dtype, Moments(), torch.zeros(())

    def add(self, rows: Tensor) -> "Rounding":
        """Adds rows ``(N, *E)``, N at least 1; NaN is ignored; returns itself."""
        rows = rows.double()
        self.moments.add(rows)
        error = (rows.to(self.dtype).double() - rows).abs().nan_to_num(0.0).amax(0)
        self.error = error.maximum(self.error.to(error.device))
        return self

    @property
    def too_coarse(self) -> Tensor:
        """Elements that vary by little more than their rounding error, ``E``."""
        return self.moments.varies & (self.error > _COARSE * self.moments.variance.sqrt())
