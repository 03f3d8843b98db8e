"""Checks that two computations of a number agree. Each check returns a short description."""

import math

import torch
from torch import Tensor

__all__ = ["Disagreement", "agree", "below", "equal", "error_of", "same_draws"]


class Disagreement(AssertionError):
    """A tool's number differs from the second computation."""


def error_of(values: Tensor) -> float:
    """Standard error of a mean."""
    return float(values.double().std() / math.sqrt(len(values)))


def agree(what: str, found: Tensor | float, expected: Tensor | float, error: Tensor | float, limit: float = 5.0) -> str:
    """Checks that two estimates differ by at most a few standard errors, in the worst place."""
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    error = torch.as_tensor(error).double().expand_as(found)
    floor = 1e-4 * (1 + expected.abs())
    scores = (found - expected).abs() / (error.square() + floor.square()).sqrt()
    worst = float(scores.max()) if bool(scores.isfinite().all()) else math.inf
    if not worst < limit:
        place = int(scores.flatten().argmax())
        raise Disagreement(
            f"{what}: {float(found.flatten()[place]):.5g}, but a second computation gives "
            f"{float(expected.flatten()[place]):.5g} ± {float(error.flatten()[place]):.2g} ({worst:.1f} errors)"
        )
    return f"{what} within {worst:.1f} errors"


def equal(what: str, found: Tensor | float, expected: Tensor | float, tolerance: float = 1e-4) -> str:
    """Checks that two numbers are equal up to rounding."""
    found, expected = (torch.as_tensor(value).detach().double() for value in (found, expected))
    if found.shape != expected.shape:
        raise Disagreement(f"{what}: shape {tuple(found.shape)} where {tuple(expected.shape)} is right")
    off = (found - expected).abs() / (1 + expected.abs())
    worst = float(off.max()) if off.numel() else 0.0
    if not worst < tolerance:
        place = int(off.flatten().argmax())
        raise Disagreement(
            f"{what}: {float(found.flatten()[place]):.6g}, but a second computation gives "
            f"{float(expected.flatten()[place]):.6g}"
        )
    return f"{what} equal"


def below(what: str, lower: float, upper: float, error: float, limit: float = 5.0) -> str:
    """Checks that one estimate is not above another by more than a few standard errors."""
    if not lower < upper + limit * error + 1e-4 * (1 + abs(upper)):
        raise Disagreement(f"{what}: {lower:.4f} is above {upper:.4f} ± {error:.2g}")
    return f"{what}: {lower:.2f} ≤ {upper:.2f}"


def same_draws(what: str, found: Tensor, expected: Tensor, between: Tensor | float = 0.0) -> str:
    """Checks that two sets of draws ``(S, ...)`` have the same mean and spread.

    Args:
        what: Their name.
        found: The tool's.
        expected: Those of the second computation.
        between: Variance of the difference of their means due to what each set shares.
    """
    found, expected = found.detach().double(), expected.detach().double()
    if found.shape[1:] != expected.shape[1:]:
        raise Disagreement(f"{what}: shape {tuple(found.shape[1:])} where {tuple(expected.shape[1:])} is right")
    if not bool(found.isfinite().all()):
        raise Disagreement(f"{what}: {int((~found.isfinite()).sum())} draws are not finite")
    variance = found.var(0) / len(found) + expected.var(0) / len(expected) + between
    text = agree(f"mean of {what}", found.mean(0), expected.mean(0), variance.sqrt(), limit=6.0)
    if torch.as_tensor(between).any():
        return text
    spread, errors = [], []
    for draws in (found, expected):
        sd = draws.std(0)
        kurtosis = ((draws - draws.mean(0)) / sd.clamp_min(1e-12)).pow(4).mean(0)
        spread.append(sd)
        errors.append(sd.square() * (kurtosis - 1).clamp_min(0.1) / (4 * len(draws)))
    enough = min(len(found), len(expected)) >= 200
    if enough:
        agree(f"spread of {what}", spread[0], spread[1], (errors[0] + errors[1]).sqrt() + 2e-3 * spread[1], limit=7.0)
    return text
