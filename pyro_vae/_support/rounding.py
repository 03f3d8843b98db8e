r"""Whether two ways to compute the same numbers agree up to rounding.

Another order of additions, or a fused product and sum, changes the last digits. The effect on the result depends on the
computation: if large terms cancel, a relative error of 10⁻⁷ at each operation can become 10⁻³. So a difference above a
first tolerance is compared with the computation's sensitivity: it is repeated with a random relative error of up to ε,
the spacing of the type's numbers, in the result of each operation (Monte Carlo arithmetic: Parker, *Monte Carlo
Arithmetic*, 1997).

An operation that adds n terms is one for this purpose, but makes an error at each addition, which depends on the order.
Together they are of the size of √n ε times the sum of the terms' magnitudes (Higham & Mary, *A New Approach to
Probabilistic Rounding Error Analysis*, 2019), far above ε times the result where terms cancel, as in the gradient of a
convolution's bias. So the operation also runs with operands that are raised by a small multiple of their magnitudes,
and its result moves as far as √n ε times the magnitudes would move it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

__all__ = ["RoundingErrors", "agree"]

_EPSILONS = 64  # first tolerance on norms: about 8·10⁻⁶ in float32
_TIMES_SENSITIVITY = 16
_RAISED = 1024  # times ε, well above the errors that are to be estimated
_RUNS = 2
_SUMS = {  # of many terms
    f"aten::{name}"
    for name in (
        *("sum", "mean", "var", "var_mean", "std", "cumsum", "logsumexp", "linalg_vector_norm"),
        *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear"),
        *("convolution", "convolution_backward", "_convolution", "mkldnn_convolution"),
        *("native_batch_norm", "native_layer_norm", "native_group_norm"),
        *("native_batch_norm_backward", "native_layer_norm_backward", "native_group_norm_backward"),
        *("embedding_dense_backward", "index_put", "index_add", "scatter_add", "scatter_reduce"),
    )
}


class RoundingErrors(TorchDispatchMode):
    """Gives the result of each operation a relative error of up to its type's ε, from a separate generator.

    Sums get errors of the size of √n ε times the magnitudes of their n terms. Whole numbers are exact and unchanged:
    zeros, masks, counts, one-hot vectors.

    Args:
        seed: Seeds the errors.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _computes(func):
            return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func._schema.name in _SUMS:
            out = _moved(out, func(*tree_map_only(Tensor, _raised, args), **(kwargs or {})), args)
        return tree_map_only(Tensor, self._shaken, out)

    def _shaken(self, tensor: Tensor) -> Tensor:
        if not _is_inexact(tensor):
            return tensor
        if tensor.device not in self._generators:
            self._generators[tensor.device] = torch.Generator(tensor.device).manual_seed(self._seed)
        error = torch.rand(tensor.shape, generator=self._generators[tensor.device], device=tensor.device)
        return _off(tensor, tensor * (2 * error - 1))


def _is_inexact(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided


def _off(tensor: Tensor, by: Tensor) -> Tensor:
    """A tensor plus ε times another, where its numbers are not whole."""
    inexact = tensor + (by * torch.finfo(tensor.dtype).eps).to(tensor.dtype)
    return torch.where(tensor == tensor.round(), tensor, inexact)


def _raised(tensor: Tensor) -> Tensor:
    """A tensor whose numbers all move up by a multiple of their magnitudes, so that these movements do not cancel."""
    return _off(tensor, tensor.abs() * _RAISED) if _is_inexact(tensor) else tensor


def _moved(out: Any, raised: Any, operands: Any) -> Any:
    """The results of a sum, each moved towards that of raised operands by the root of its number of terms."""
    most = max((leaf.numel() for leaf in tree_leaves(operands) if isinstance(leaf, Tensor)), default=1)

    def moved(result: Any, other: Any) -> Any:
        if not isinstance(result, Tensor) or not _is_inexact(result) or not result.numel():
            return result
        further = result + (other - result) * (math.sqrt(max(1.0, most / result.numel())) / _RAISED)
        return torch.where(result == other, result, further)  # infinities stay

    leaves, structure = tree_flatten(out)
    return tree_unflatten([moved(*both) for both in zip(leaves, tree_leaves(raised), strict=True)], structure)


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
