"""A function of tensors, run once to lower it, and from then on a graph: compiled for the CPU, captured on a GPU.

A Pyro program costs Python at every statement, and its effects are the same at every step. So the function that runs
the programs and takes the ELBO and its gradient is traced once, as the operations that it did on tensors. Those are
compiled together by Inductor, with the noise that the function itself would draw: both come to the same numbers.
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

__all__ = ["CannotStageError", "captured", "compiled", "compiler_missing"]

Function = Callable[..., tuple[Tensor, ...]]


class CannotStageError(Exception):
    """A function that cannot be lowered, with the reason."""


def compiler_missing() -> str | None:
    """Why nothing can be compiled for the CPU here; None if it can."""
    from torch._inductor import config  # here, for it takes seconds to import

    candidates = [name for name in (config.cpp.cxx[1], "g++", "clang++") if isinstance(name, str)]
    return None if any(shutil.which(name) for name in candidates) else "there is no C++ compiler (g++ or clang++)"


def compiled(function: Function, inputs: Sequence[Tensor]) -> Function:
    """The function as one compiled graph.

    Args:
        function: Takes tensors, returns a tuple of tensors. Other tensors that it uses, such as parameters and
            buffers, are used by the graph too, with the values that they have when it runs. It is run once, and may
            draw random numbers and update buffers then as always: putting those back is the caller's part.
        inputs: An example. The graph takes tensors of these shapes and types.

    Raises:
        CannotStageError: if what the function does depends on the values of tensors, or it does not compile.

    Example:
        >>> double = compiled(lambda x: (2 * x,), [torch.zeros(3)])
        >>> double(torch.ones(3))
        (tensor([2., 2., 2.]),)
    """
    from torch._inductor import compile as compile_graph
    from torch._inductor import config

    with _quiet():
        try:
            graph = make_fx(function, decomposition_table=_CHEAP_LOGARITHMS)(*inputs)
        except Exception as error:
            raise CannotStageError(_reason(error)) from error
        held = _tensors_as_inputs(graph)
        try:
            with torch.no_grad(), config.patch(fallback_random=True):
                run: Any = compile_graph(graph, [*inputs, *held])
        except Exception as error:
            raise CannotStageError(f"it does not compile: {_reason(error)}") from error

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(run(*tensors, *held))

    return call


def captured(function: Function, inputs: Sequence[Tensor]) -> Function:
    """The function as one CUDA graph, which is launched in one piece.

    Args:
        function: As in :func:`compiled`, and already run a few times on a side stream. It is recorded, and not run.
        inputs: An example, on the device.

    Returns:
        A function whose results are overwritten by its next call. Its random numbers are new at every call.
    """
    static = [tensor.clone() for tensor in inputs]
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            outputs = function(*static)
    except RuntimeError as error:
        raise CannotStageError(_reason(error)) from error

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        for place, tensor in zip(static, tensors, strict=True):
            place.copy_(tensor, non_blocking=True)
        graph.replay()
        return outputs

    return call


def _tensors_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Makes inputs of the tensors that a traced function found outside, so that a graph sees them change."""
    held: list[Tensor] = []
    places: dict[str, Any] = {}
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in places:
            with graph.graph.inserting_after(last):
                last = places[node.target] = graph.graph.placeholder(f"held_{len(held)}")
            held.append(getattr(graph, node.target).detach())
        node.replace_all_uses_with(places[node.target])
        graph.graph.erase_node(node)
    graph.graph.lint()
    graph.recompile()
    return held


# On a CPU log(1 + y) is vectorised in a third of the time of log1p(y). Here y is in [0, 1] and the sum in [1, 2], where
# the rounding of 1 + y is one part in 2²⁴ of 1: what the terms it is added to lose as well.
def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Any:
    if x.device.type != "cpu":
        return NotImplemented
    x = x * beta
    return (x.clamp(min=0) + (1 + (-x.abs()).exp()).log()) / beta


def _binary_cross_entropy_with_logits(
    logits: Tensor, x: Tensor, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> Any:
    if weight is not None or pos_weight is not None or reduction != 0 or logits.device.type != "cpu":
        return NotImplemented
    return logits.clamp(min=0) - logits * x + (1 + (-logits.abs()).exp()).log()


_CHEAP_LOGARITHMS = {
    torch.ops.aten.softplus.default: _softplus,
    torch.ops.aten.binary_cross_entropy_with_logits.default: _binary_cross_entropy_with_logits,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the compiler's talk from the user, and Pyro's and torch's checks of distributions as they were."""
    checks = Distribution._validate_args
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        Distribution.set_default_validate_args(checks)


def _reason(error: BaseException) -> str:
    """The first sentence of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
