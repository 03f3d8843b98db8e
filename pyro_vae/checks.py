"""Checks on data before a model sees them: one clear sentence for each mistake."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae.programs import forked_random_state
from pyro_vae.ranges import Constraint, bounds, constraints, elementwise, is_boolean, is_bounded, phrase, within
from pyro_vae.transforms import Transform

__all__ = ["check_columns", "check_finite", "check_fit", "check_rows"]

_CHUNK = 2**20  # elements looked at together, so that memory stays flat


def check_fit(transform: Transform, data_range: Constraint, likelihood: str) -> None:
    """Holds what a transform yields against what a likelihood describes.

    A bounded range must be met exactly, for a mean that reaches [-1, 1] wastes half its range on data in [0, 1].
    Bits are a special case of [0, 1]. A transform that yields what it is given is checked on the data instead.

    Raises:
        ValueError: with the transform that would fit.
    """
    found = transform.codomain
    if found is None:
        return
    fits = within(found, data_range)
    if is_bounded(data_range):
        fits = fits and bounds(found) == bounds(data_range)
    if not fits:
        raise ValueError(
            f"{likelihood} describes {phrase(data_range)}, but {type(transform).__name__} yields {phrase(found)}: "
            f"{_mend(data_range)}"
        )


def _mend(data_range: Constraint, low: float | None = None, high: float | None = None) -> str:
    """What to do about data that do not fit a likelihood's range; ``low`` and ``high`` are what was found."""
    between = "low, high" if low is None or high is None else f"{low:g}, {high:g}"
    if is_boolean(data_range):
        return f"use transform=Binarize({between}), or likelihood=Normal(link='sigmoid') with Scale({between})"
    if not is_bounded(data_range) or data_range.is_discrete:
        return "choose a likelihood for such values"
    onto = bounds(data_range)
    where = "" if onto == (0, 1) else f", onto=({onto[0]:g}, {onto[1]:g})"
    return f"use transform=Scale({between}{where}), or a likelihood for real numbers with Standardize"


def check_rows(
    x: Tensor,
    *,
    event_shape: Sequence[int] | None,
    data_range: Constraint | None,
    transform: Transform,
    dtype: torch.dtype,
    device: torch.device,
    mask: Tensor | None = None,
    name: str = "x",
) -> None:
    """Looks at every row once: shape, NaN and infinity, and the values that transform and likelihood take.

    Args:
        x: Rows ``(N, *E)`` in the user's units.
        event_shape: The model's shape of one row; None where it is not known beforehand.
        data_range: The values of one element that the likelihood describes, in the model's units, likewise.
        transform: The user's units to the model's.
        dtype: The model's floating-point type.
        device: The model's device.
        mask: True where an entry is observed; the others are not looked at. None where all are.
        name: What the data are called in the message.

    Raises:
        ValueError: for the first thing that is wrong, with what was found, what was expected and what to do.
    """
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"{name} has no rows; expected at least one")
    if x.is_complex():
        raise ValueError(f"{name} has complex values; expected real numbers")
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        raise ValueError(
            f"{name} has rows of shape {tuple(x.shape[1:])}, but the model describes rows of shape "
            f"{tuple(event_shape)}{_reshape_hint(x, event_shape)}"
        )
    if mask is not None:
        _check_mask(mask, x, name)
        x = torch.where(mask, x, _stand_in(x, mask))
    check_finite(x, name)
    domain = elementwise(transform.domain)
    expected = None if data_range is None else elementwise(data_range)
    with forked_random_state(device):
        at_once = max(1, _CHUNK // max(1, math.prod(x.shape[1:])))
        for start in range(0, len(x), at_once):
            rows = x[start : start + at_once].to(device=device, dtype=dtype)
            if not bool(torch.isfinite(rows).all()):
                largest = float(x.abs().max())
                raise ValueError(
                    f"{name} has values as large as {largest:g}, more than the model's {dtype} can hold: rescale them"
                )
            if not _all_in(rows, domain):
                low, high = _extremes(x)
                raise ValueError(
                    f"{name} has values from {low:g} to {high:g}, but {type(transform).__name__} takes "
                    f"{phrase(domain)}: give the transform the bounds that the data have"
                )
            if expected is not None and not _all_in(transform(rows), expected):
                raise ValueError(_outside(x, rows, expected, name))


def _check_mask(mask: Tensor, x: Tensor, name: str) -> None:
    empty = ~mask.reshape(len(x), -1).any(1)
    if bool(empty.any()):
        raise ValueError(
            f"{name} has {int(empty.sum())} row{'s' if int(empty.sum()) > 1 else ''} without any observed entry, the "
            f"first at index {int(empty.nonzero()[0])}: leave such rows out"
        )


def _stand_in(x: Tensor, mask: Tensor) -> Tensor:
    """For each element the first observed value there; any observed one where there is none."""
    first = mask.byte().argmax(0, keepdim=True)
    return torch.where(mask.any(0, keepdim=True), x.gather(0, first), x[mask][0])


def check_columns(x: Tensor, mask: Tensor | None, name: str) -> None:
    """Refuses elements of which no row has an observation: there is nothing to learn about them.

    Raises:
        ValueError: with the index of the first.
    """
    if mask is None:
        return
    never = ~mask.any(0)
    if bool(never.any()):
        first = tuple(int(i) for i in never.nonzero()[0])
        raise ValueError(
            f"{name} has {int(never.sum())} elements that no row has an observation of, the first at index {first}: "
            f"leave them out"
        )


def _reshape_hint(x: Tensor, event_shape: Sequence[int]) -> str:
    same_size = math.prod(x.shape[1:]) == math.prod(event_shape)
    return f"; reshape it to (N, {', '.join(map(str, event_shape))})" if same_size else ""


def check_finite(x: Tensor, name: str) -> None:
    """Refuses NaN and infinity.

    Raises:
        ValueError: with their number and the index of the first.
    """
    if not x.is_floating_point():
        return
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in bad.nonzero()[0])
        raise ValueError(
            f"{name} has {count} NaN or infinite value{'s' if count > 1 else ''}, the first at index {first}: "
            f"remove or fill those entries"
        )


def _all_in(rows: Tensor, constraint: Constraint) -> bool:
    return constraint is constraints.real or bool(constraint.check(rows).all())


def _extremes(x: Tensor) -> tuple[float, float]:
    return float(x.min()) + 0.0, float(x.max()) + 0.0  # and never minus zero


def _outside(x: Tensor, rows: Tensor, expected: Constraint, name: str) -> str:
    low, high = _extremes(x)
    bad = ~expected.check(rows)
    example = f", such as {rows[bad][0].item():g}" if bad.shape == rows.shape and bool(bad.any()) else ""
    # Grey levels reach 1 or 255 in some row even where these rows do not.
    top = 1.0 if low >= 0 and high <= 1 else 255.0 if low >= 0 and high <= 255 else high
    found = f"{name} has values from {low:g} to {high:g}{example}"
    return f"{found}, but the likelihood describes {phrase(expected)}: {_mend(expected, min(low, 0.0) + 0.0, top)}"
