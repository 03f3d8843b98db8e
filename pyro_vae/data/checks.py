"""Checks data before a model sees them, with one clear sentence for each mistake."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_vae._support.arrays import rows_at_once
from pyro_vae._support.precision import Rounding, floating
from pyro_vae._support.ranges import (
    Columns,
    Constraint,
    bounds,
    constraints,
    elementwise,
    inner_value,
    is_boolean,
    is_bounded,
    phrase,
    within,
)
from pyro_vae.programs.running import evaluating, forked_random_state
from pyro_vae.transforms import Transform

__all__ = ["check_columns", "check_digits", "check_finite", "check_fit", "check_rows", "observed"]

_ALLOW = "build the model with missing='nan'"


def check_fit(transform: Transform, data_range: Constraint, likelihood: str) -> None:
    """Compares the range of a transform with that of a likelihood.

    Bounded ranges must agree exactly: a mean that reaches [-1, 1] wastes half its range on data in [0, 1]. Bits are a
    special case of [0, 1]. If a transform's range depends on the data, the data are checked instead.

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
            f"{_remedy(data_range)}"
        )


def _remedy(data_range: Constraint, low: float | None = None, high: float | None = None) -> str:
    """What to do about data that do not fit a likelihood's range; ``low`` and ``high`` are the bounds found."""
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
    missing: bool = False,
    may_be_empty: bool = False,
    name: str = "x",
    rounding: Rounding | None = None,
) -> None:
    """Checks every row, a few at a time: shape, NaN and infinity, and the ranges of transform and likelihood.

    Args:
        x: Rows ``(N, *E)`` in the user's units.
        event_shape: The model's shape of one row; None if not known beforehand.
        data_range: The values of one element that the likelihood describes, in the model's units, likewise.
        transform: The user's units to the model's.
        dtype: The model's floating-point type.
        device: The model's device.
        mask: True where an entry is observed; the others are not checked. None if all are observed.
        missing: Whether NaN also counts as a missing entry.
        may_be_empty: Whether a row may have no observed entry, because other parts of it are observed.
        name: The data's name in the message.
        rounding: Records the rows' rounding to ``dtype``, if they have more digits.

    Raises:
        ValueError: for the first problem: what was found, what was expected and what to do.
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
    if mask is not None and mask.shape != x.shape:
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, expected one for each entry of {tuple(x.shape)}")
    domain = elementwise(transform.domain)
    expected = None if data_range is None else elementwise(data_range)
    size = rows_at_once(x.shape)
    for start in range(0, len(x), size):
        rows = x[start : start + size]
        seen = observed(rows, None if mask is None else mask[start : start + size], missing=missing)
        if seen is not None and not may_be_empty:
            _check_mask(seen, start, name)
        if rows.is_floating_point() and not bool((rows.isfinite() if seen is None else rows.isfinite() | ~seen).all()):
            raise ValueError(_not_finite(x, mask, name, missing=missing))
    with forked_random_state(device), evaluating(transform):
        for start in range(0, len(x), size):
            rows = x[start : start + size]
            seen = observed(rows, None if mask is None else mask[start : start + size], missing=missing)
            rows = floating(rows.to(device), dtype)
            if seen is not None:
                seen = seen.to(device)
                rows = torch.where(seen, rows, torch.as_tensor(inner_value(domain), dtype=rows.dtype, device=device))
            if not bool(_fits(rows, domain, seen).all()):
                low, high = _extremes(x, mask, missing=missing)
                raise ValueError(
                    f"{name} has values from {low:g} to {high:g}, but {type(transform).__name__} takes "
                    f"{phrase(domain)}: give the transform the bounds that the data have"
                )
            exact = transform(rows)
            described = exact.to(dtype)
            if rounding is not None and exact.dtype != dtype:
                rounding.add(exact if seen is None else exact.where(seen, math.nan))
            if not bool(torch.isfinite(described).all()):
                low, high = _extremes(x, mask, missing=missing)
                raise ValueError(
                    f"{name} has values as large as {max(-low, high):g}, more than the model's {dtype} can hold: "
                    f"rescale them"
                )
            if expected is not None and not bool((fits := _fits(described, expected, seen)).all()):
                raise ValueError(_outside(x, mask, rows, fits, expected, name, missing=missing))


def observed(x: Tensor, mask: Tensor | None, *, missing: bool) -> Tensor | None:
    """True where an entry is observed by the mask and, if NaN is ``missing``, by the rows; None if all are observed."""
    if not missing or not x.is_floating_point():
        return mask
    return ~x.isnan() if mask is None else mask & ~x.isnan()


def _check_mask(seen: Tensor, start: int, name: str) -> None:
    empty = ~seen.reshape(len(seen), -1).any(1)
    if bool(empty.any()):
        raise ValueError(
            f"{name} has rows without any observed entry, the first at index {start + int(empty.nonzero()[0])}: leave "
            f"such rows out"
        )


def check_columns(seen: Tensor | None, data_range: Constraint | None, name: str) -> None:
    """Refuses elements without an observation in any row: nothing can be learned about them.

    Args:
        seen: True where some row has an observation, ``E``; None if all entries are observed.
        data_range: The likelihood's, which may know columns by name.
        name: What the data are called in the message.

    Raises:
        ValueError: with the index of the first.
    """
    if seen is None or bool(seen.all()):
        return
    raise ValueError(
        f"{name} has {int((~seen).sum())} elements that are not observed in any row, the first at "
        f"{_first(~seen, data_range)}: leave them out"
    )


def check_digits(rounding: Rounding, data_range: Constraint | None, name: str) -> None:
    """Refuses elements whose values the model's type cannot tell apart, in the model's units.

    Args:
        rounding: The rows' rounding.
        data_range: The likelihood's, which may know columns by name.
        name: What the data are called in the message.

    Raises:
        ValueError: with the first of them.
    """
    if not rounding.moments.empty and bool((coarse := rounding.too_coarse).any()):
        first = coarse.nonzero()[0].tolist()
        mean, scale = (float(m[tuple(first)]) for m in (rounding.moments.mean, rounding.moments.variance.sqrt()))
        raise ValueError(
            f"{name} has values that {rounding.dtype} cannot tell apart, at {_first(coarse, data_range)}: they are "
            f"{mean:.9g} ± {scale:.2g} in the model's units; use Standardize and a likelihood for real numbers, "
            f"subtract a constant, or make the model float64 with .double()"
        )


def _first(marked: Tensor, data_range: Constraint | None) -> str:
    """The first marked element, by its column's name if it has one."""
    first = tuple(int(i) for i in marked.nonzero()[0])
    expected = None if data_range is None else elementwise(data_range)
    return expected.called(first[0]) if isinstance(expected, Columns) else f"index {first}"


def _reshape_hint(x: Tensor, event_shape: Sequence[int]) -> str:
    same_size = math.prod(x.shape[1:]) == math.prod(event_shape)
    return f"; reshape it to (N, {', '.join(map(str, event_shape))})" if same_size else ""


def check_finite(x: Tensor, name: str, *, allow: str = _ALLOW) -> None:
    """Refuses NaN and infinity.

    Args:
        x: The rows.
        name: Their name.
        allow: How NaN can be allowed.

    Raises:
        ValueError: with their number and the index of the first.
    """
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise ValueError(_not_finite(x, None, name, missing=False, allow=allow))


def _not_finite(x: Tensor, mask: Tensor | None, name: str, *, missing: bool, allow: str = _ALLOW) -> str:
    seen = observed(x, mask, missing=missing)
    bad = ~torch.isfinite(x) if seen is None else ~torch.isfinite(x) & seen
    count, first = int(bad.sum()), tuple(int(i) for i in bad.nonzero()[0])
    gaps = not missing and bool(x.isnan().any())
    hint = f", or {allow} if NaN is a missing entry" if gaps else ""
    return (
        f"{name} has {count} NaN or infinite value{'s' if count > 1 else ''}, the first at index {first}: "
        f"remove or fill those entries{hint}"
    )


def _fits(rows: Tensor, constraint: Constraint, seen: Tensor | None) -> Tensor:
    """For each entry, or for all at once, whether it is in the set or missing."""
    if constraint is constraints.real:
        return torch.ones((), dtype=torch.bool)
    fits = constraint.check(rows)
    return fits if seen is None or fits.shape != seen.shape else fits | ~seen


def _extremes(x: Tensor, mask: Tensor | None, *, missing: bool) -> tuple[float, float]:
    seen = observed(x, mask, missing=missing)
    x = x if seen is None else x[seen]
    return float(x.min()) + 0.0, float(x.max()) + 0.0  # no minus zero


def _outside(
    x: Tensor, mask: Tensor | None, rows: Tensor, fits: Tensor, expected: Constraint, name: str, *, missing: bool
) -> str:
    """The message about ``rows``, a part of x, with entries that do not fit."""
    if isinstance(expected, constraints.stack):
        index = int((~fits).reshape(-1, fits.shape[-1]).any(0).nonzero()[0])
        column = expected.called(index) if isinstance(expected, Columns) else f"column {index}"
        low, high = _extremes(x[..., index], None if mask is None else mask[..., index], missing=missing)
        example = rows[..., index][~fits[..., index]][0].item()
        return (
            f"{column} of {name} has values from {low:g} to {high:g}, such as {example:g}, but its likelihood "
            f"describes {phrase(elementwise(expected.cseq[index]))}: fix such entries, or choose a likelihood for them"
        )
    low, high = _extremes(x, mask, missing=missing)
    example = f", such as {rows[~fits][0].item():g}" if fits.shape == rows.shape else ""
    # Grey levels reach 1 or 255 in some row even where these rows do not.
    top = 1.0 if low >= 0 and high <= 1 else 255.0 if low >= 0 and high <= 255 else high
    found = f"{name} has values from {low:g} to {high:g}{example}"
    return f"{found}, but the likelihood describes {phrase(expected)}: {_remedy(expected, min(low, 0.0) + 0.0, top)}"
