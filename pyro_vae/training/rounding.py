r"""Whether two ways to compute the same numbers agree up to rounding.

Another order of additions, or a fused product and sum, changes the last digits. The effect on the result depends on the
computation: if large terms cancel, a relative error of 10⁻⁷ at each operation can become 10⁻³. So a difference above a
first tolerance is compared with the computation's sensitivity: it is repeated with a random relative error of up to ε,
the spacing of the type's numbers, in the result of each operation (Monte Carlo arithmetic: Parker, *Monte Carlo
Arithmetic*, 1997).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["RoundingErrors", "agree"]

_EPSILONS = 64  # first tolerance on norms: about 8·10⁻⁶ in float32
_TIMES_SENSITIVITY = 16
_RUNS = 2


class RoundingErrors(TorchDispatchMode):
    """Gives the result of each operation a relative error of up to its type's ε, from a separate generator.

    Whole numbers are exact and unchanged: zeros, masks, counts, one-hot vectors.

    Args:
        seed: Seeds the errors.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, self._shaken, out) if _computes(func) else out

    def _shaken(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            return tensor
        if tensor.device not in self._generators:
            self._generators[tensor.device] = torch.Generator(tensor.device).manual_seed(self._seed)
        error = torch.rand(tensor.shape, generator=self._generators[tensor.device], device=tensor.device)
        size = 2 * torch.finfo(tensor.dtype).eps
        shaken = tensor + (tensor * ((error - 0.5) * size)).to(tensor.dtype)
        return torch.where(tensor == tensor.round(), tensor, shaken)


@functools.cache
def _computes(func: Any) -> bool:
    """Whether an operation computes new numbers from others, not views, changes in place or noise."""
    schema = func._schema
    aliases = any(result.alias_info is not None for result in schema.returns)
    return not aliases and not schema.is_mutable and torch.Tag.nondeterministic_seeded not in func.tags


def agree(
    found: Sequence[Tensor],
    expected: Sequence[Tensor],
    again: Callable[[RoundingErrors], Sequence[Tensor]],
    *,
    tolerance: float | None = None,
) -> bool:
    r"""Whether tensors are equal up to rounding, each by the norm of the difference.

    Args:
        found: Tensors.
        expected: Their expected values.
        again: Computes ``expected`` again in a mode that adds rounding errors. Called only if needed.
        tolerance: First relative tolerance on norms; by default 64 ε.

    Example:
        >>> x = torch.tensor([1.0, 2.0, -3.0])
        >>> agree([x + 1e-7], [x], lambda errors: [x]), agree([x + 1e-4], [x], lambda errors: [x])
        (True, False)
    """
    apart = [_distance(a, b) for a, b in zip(found, expected, strict=True)]
    allowed = [(tolerance or _EPSILONS * _epsilon(tensor)) * _norm(tensor) for tensor in expected]
    if all(d <= a for d, a in zip(apart, allowed, strict=True)):
        return True
    if not all(math.isfinite(d) for d in apart):
        return False
    worst = [0.0] * len(expected)
    for seed in range(_RUNS):
        shaken = again(RoundingErrors(seed))
        worst = [max(w, _distance(a, b)) for w, a, b in zip(worst, shaken, expected, strict=True)]
    return all(d <= a + _TIMES_SENSITIVITY * w for d, a, w in zip(apart, allowed, worst, strict=True))


def _epsilon(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps if tensor.is_floating_point() or tensor.is_complex() else 0.0


def _norm(tensor: Tensor) -> float:
    values = tensor.detach()
    if not (values.is_floating_point() or values.is_complex()):
        return 0.0
    return float(torch.where(values.isfinite(), values, 0).double().norm())


def _distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference; infinite if infinities or NaN differ."""
    a, b = a.detach(), b.detach()
    if a.shape != b.shape or a.dtype != b.dtype:
        return math.inf
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else math.inf
    difference = (a - b).double()
    distance = float(difference.norm())
    if math.isfinite(distance):
        return distance
    finite = a.isfinite() & b.isfinite()
    same = finite | (a == b) | (a.isnan() & b.isnan())
    return float(difference[finite].norm()) if bool(same.all()) else math.inf
