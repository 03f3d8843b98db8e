"""Lowers a function of tensors to a graph, by running it once: compiled for the CPU, captured on a GPU.

A Pyro program runs Python at every statement, with the same effects at every step. So the function that runs the
programs and computes the ELBO and its gradient is traced once, as the operations that it did on tensors. Inductor
compiles these together, with the noise that the function itself would draw, so both give the same numbers.

A value that the function reads from a tensor, to use in Python, would be a constant of the graph. If it may differ the
next time, the function is not traced, and the reason says which operation read it, and where.
"""

import contextlib
import logging
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.distributions import Distribution
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import get_proxy_mode, get_proxy_slot, make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

from pyro_vae._support.cuda_graphs import CannotStageError, reason_of
from pyro_vae.programs.code import is_library

__all__ = [
    "Trace",
    "compile_trace",
    "compiled",
    "compiler_missing",
    "prepare_compiler",
    "trace",
    "without_dead_code",
]

Function = Callable[..., tuple[Tensor, ...]]


def compiler_missing() -> str | None:
    """Why nothing can be compiled for the CPU here; None if it can."""
    from torch._inductor import config  # here, as it takes seconds to import

    candidates = [name for name in (config.cpp.cxx[1], "g++", "clang++") if isinstance(name, str)]
    return None if any(shutil.which(name) for name in candidates) else "there is no C++ compiler (g++ or clang++)"


@dataclass
class Trace:
    """The operations of a function, as a graph.

    Args:
        graph: Takes the function's inputs, then the tensors of ``held``.
        held: Tensors from outside the function, such as parameters and buffers.
        read: Those of them whose values it read, with copies: the graph is valid while these do not change.
    """

    graph: GraphModule
    held: list[Tensor] = field(default_factory=list)
    read: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def outdated(self) -> tuple[int, ...] | None:
        """The shape of a tensor whose value was read and has changed since; None if there is none."""
        return next((tuple(now.shape) for now, then in self.read if not _same_values(now, then)), None)

    def difference(self, other: "Trace") -> str | None:
        """How another trace of the same function differs, in a few words; None if it does not."""
        ours, theirs = list(self.graph.graph.nodes), list(other.graph.graph.nodes)
        places = {id(node): number for number, node in enumerate(theirs)}
        for number, (a, b) in enumerate(zip(ours, theirs, strict=False)):
            if (a.op, a.target) != (b.op, b.target) and a.op != "placeholder":
                return f"{_name(b)} instead of {_name(a)}"
            places[id(a)] = number
            if (values := _difference((a.args, a.kwargs), (b.args, b.kwargs), places)) is not None:
                return f"{_name(a)} of {values}"
        if len(ours) != len(theirs):
            return f"{len(theirs)} operations instead of {len(ours)}"
        for a, b in zip(self.held, other.held, strict=True):
            if not _same_place(a, b) and not _same_values(a, b):
                return f"a tensor of shape {tuple(b.shape)} has other values"
        return None


def trace(function: Function, inputs: Sequence[Tensor], *, changing: Sequence[Tensor] = ()) -> Trace:
    """Runs a function once and records its operations.

    Args:
        function: Takes tensors, returns a tuple of tensors. It may draw random numbers and update buffers as usual; the
            caller must restore them.
        inputs: Example inputs. The graph takes tensors of these shapes and types.
        changing: Outside tensors whose values may not be read either, because they change.

    Raises:
        CannotStageError: if it reads values of its inputs or of ``changing``, or has operations that a graph cannot
        have.
    """
    read: list[tuple[Tensor, Tensor]] = []

    def watched(*inputs: Tensor) -> tuple[Tensor, ...]:
        values = _Values(get_proxy_mode(), changing, read)
        with _Operations(values), _Functions(values):
            return function(*inputs)

    # Every result is described by a fake tensor; without a mode for all of them, each would make its own, slowly.
    with _quiet(), tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        try:
            graph = make_fx(watched, decomposition_table=_DECOMPOSED)(*inputs)
        except CannotStageError:
            raise
        except Exception as error:
            raise CannotStageError(reason_of(error)) from error
    for tensor, before in read:
        if not _same_values(tensor, before):
            raise CannotStageError("the program reads the value of a tensor that it changes")
    return Trace(graph, _tensors_as_inputs(graph), read)


def without_dead_code(graph: GraphModule) -> GraphModule:
    """A copy without dead code, but with all draws of random numbers, so later draws stay the same.

    Example:
        >>> def function(x):
        ...     (x + 1), torch.rand(1)
        ...     return (2 * x,)
        >>> graph = trace(function, [torch.zeros(3)]).graph
        >>> [node.name for node in without_dead_code(graph).graph.nodes if node.op == "call_function"]
        ['rand', 'mul']
    """
    copy = GraphModule(graph, Graph())
    copy.graph.output(copy.graph.graph_copy(graph.graph, {}))
    copy.graph.eliminate_dead_code(_has_effects)
    copy.recompile()
    return copy


def _has_effects(node: Node) -> bool:
    return node.is_impure() or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def prepare_compiler() -> None:
    """Starts the work that any compilation needs, in the background."""
    from pyro_vae.training import inductor  # here, as it takes more than a second to import

    inductor.prepare()


def compile_trace(trace: Trace, inputs: Sequence[Tensor]) -> Function:
    """The traced function, compiled by Inductor.

    Raises:
        CannotStageError: if it does not compile.
    """
    from pyro_vae.training.inductor import compile_quickly

    held = trace.held
    with _quiet():
        try:
            run = compile_quickly(trace.graph, [*inputs, *held])
        except Exception as error:
            raise CannotStageError(f"it does not compile: {reason_of(error)}") from error

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(run(*tensors, *held))

    return call


def compiled(function: Function, inputs: Sequence[Tensor]) -> Function:
    """The function as one compiled graph.

    Args:
        function: As in :func:`trace`. The graph also uses the function's other tensors, such as parameters and buffers,
            with their values at the time of the call.
        inputs: An example.

    Raises:
        CannotStageError: if the function's operations depend on values of tensors, or it does not compile.

    Example:
        >>> double = compiled(lambda x: (2 * x,), [torch.zeros(3)])
        >>> double(torch.ones(3))
        (tensor([2., 2., 2.]),)
    """
    return compile_trace(trace(function, inputs), inputs)


class _Values:
    """Decides which tensors of a function under tracing may have their values read.

    These are tensors computed only from constants: from numbers in the program, or from outside tensors that do not
    change, which are then recorded as read.
    """

    def __init__(self, mode: Any, changing: Sequence[Tensor], read: list[tuple[Tensor, Tensor]]) -> None:
        self._tracer, self._read = mode.tracer, read
        self._changing = {_storage(tensor) for tensor in changing}
        self._constant: set[int] = set()  # storages computed from constants
        self._used: dict[int, Tensor] = {}  # outside tensors that they were computed from

    def is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor's values are the same in every run."""
        if self._is_outside(tensor):
            return not tensor.requires_grad and _storage(tensor) not in self._changing
        return _storage(tensor) in self._constant

    def _is_outside(self, tensor: Tensor) -> bool:
        return get_proxy_slot(tensor, self._tracer, None) is None

    def known(self, tensor: Tensor, what: str) -> Tensor:
        """Returns a tensor whose values are about to be read.

        Raises:
            CannotStageError: if they must not be read.
        """
        if not self.is_constant(tensor):
            if self._is_outside(tensor):
                raise _refusal("reads the value of a parameter or a buffer, which changes", what)
            raise _refusal("reads the value of a tensor that depends on inputs, parameters or noise", what)
        with _disable_current_modes():
            for other in [tensor] if self._is_outside(tensor) else self._used.values():
                self._read.append((other, other.detach().clone()))
        return tensor.detach() if tensor.requires_grad else tensor

    def note(self, func: Any, tensors: Sequence[Tensor], out: Any) -> None:
        """Propagates constancy through an operation, to the tensors that it returns or changes."""
        constant = torch.Tag.nondeterministic_seeded not in func.tags and all(map(self.is_constant, tensors))
        if constant:
            self._used |= {id(tensor): tensor for tensor in tensors if self._is_outside(tensor)}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if func._schema.is_mutable:
            made += tensors
        for tensor in made:
            (self._constant.add if constant else self._constant.discard)(_storage(tensor))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)


_SHAPES = {  # the source of their results' shapes, in addition to operations that torch marks
    torch.ops.aten._pack_padded_sequence.default: "the lengths of packed sequences",
}


class _Operations(TorchDispatchMode):
    """Checks each operation before it is traced."""

    def __init__(self, values: _Values) -> None:
        super().__init__()
        self._values = values

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = _name_of(func.overloadpacket)
        if isinstance(kwargs.get("generator"), torch.Generator):
            raise _refusal("draws from its own torch.Generator", name)
        if torch.Tag.data_dependent_output in func.tags:
            what = str({"_local_scalar_dense": "item", "is_nonzero": "bool"}.get(name, name))
            args, kwargs = tree_map_only(Tensor, lambda tensor: self._values.known(tensor, what), (args, kwargs))
            with _disable_current_modes():
                return func(*args, **kwargs)
        if name in ("index", "index_put", "index_put_", "_unsafe_index", "_index_put_impl_"):
            args = (args[0], [part for index in args[1] for part in self._without_mask(index, name)], *args[2:])
        elif torch.Tag.dynamic_output_shape in func.tags or func in _SHAPES:
            self._refuse_shapes(func, args, kwargs)
        out = func(*args, **kwargs)
        self._values.note(func, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)], out)
        return out

    def _without_mask(self, index: Any, name: str) -> Sequence[Any]:
        """Replaces a constant mask by its true positions; a mask that varies would give shapes that vary."""
        if not isinstance(index, Tensor) or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        if self._values.is_constant(index):
            index = self._values.known(index, "a mask")
            with _disable_current_modes():
                return index.nonzero(as_tuple=True)
        if name.endswith("index"):
            raise _refusal("has shapes that depend on the values of a tensor", "a mask; torch.where keeps shapes")
        return [index]  # a write does not change shapes

    def _refuse_shapes(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func.overloadpacket.__name__
        if name == "repeat_interleave" and kwargs.get("output_size") is not None:
            return
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and not self._values.is_constant(leaf):
                raise _refusal("has shapes that depend on the values of a tensor", _SHAPES.get(func, name.strip("_")))


_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}
_READERS |= {Tensor.__deepcopy__, Tensor.__reduce_ex__}


class _Functions(TorchFunctionMode):
    """Checks functions that are not visible as operations: those that read a tensor's memory, or can avoid reading."""

    def __init__(self, values: _Values) -> None:
        super().__init__()
        self._values = values

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _READERS:
            known = self._values.known(args[0], _name_of(func))
            with torch._C.DisableTorchFunction(), _disable_current_modes():
                return func(known, *args[1:], **kwargs)
        if func is F.one_hot:
            return _one_hot(func, *args, **kwargs)
        if func is _IS_ALL_TRUE:  # from distributions that check their arguments, which a graph does not
            return True
        if func in _RECURRENT:  # oneDNN and cuDNN have one operation, whose gradient or weights a graph can't have
            with torch.backends.mkldnn.flags(enabled=False), _without_cudnn():
                return func(*args, **kwargs)
        if func in (F.ctc_loss, torch.ctc_loss, torch.tensor_split, Tensor.tensor_split):
            for leaf in tree_leaves((args[1:], kwargs)):
                if isinstance(leaf, Tensor) and leaf.dtype in (torch.int32, torch.int64):
                    self._values.known(leaf, _name_of(func))
        return func(*args, **kwargs)


_RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


@contextlib.contextmanager
def _without_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


_IS_ALL_TRUE: Any = torch._is_all_true  # pyright: ignore[reportPrivateImportUsage]


def _one_hot(func: Any, tensor: Tensor, num_classes: int = -1) -> Tensor:
    """One-hot vectors without reading the largest class, if the number of classes is given."""
    if num_classes <= 0:
        return func(tensor, num_classes)
    zeros = tensor.new_zeros((*tensor.shape, num_classes))
    return zeros.scatter(-1, tensor.unsqueeze(-1), 1)


def _name_of(func: Any) -> str:
    return str(func.__name__)


def _refusal(does: str, what: str) -> CannotStageError:
    """The error, with the user's function and line that caused it, or the library function that it called."""
    called = ""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not trace.__code__:
        file, name = frame.f_code.co_filename.replace("\\", "/"), frame.f_code.co_qualname
        if not is_library(file) and file != "<string>":  # code generated for a named tuple has no file
            what = f"{what}{called}, {file.rpartition('/')[2]}, line {frame.f_lineno}"
            return CannotStageError(f"{name} {does} ({what})")
        if not called and any(part in file for part in _PARTS_OF_PROGRAMS):
            called = f" in {name}"
        frame = frame.f_back
    return CannotStageError(f"the program {does} ({what}{called})")


_PARTS_OF_PROGRAMS = ("/pyro/distributions/", "/pyro/ops/", "/torch/distributions/", "/torch/nn/", "/zuko/")


def _name(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", None)
    return str(node.target) if packet is None else packet.__name__


def _difference(a: Any, b: Any, places: dict[int, int]) -> str | None:
    """The first pair of arguments that differ, as ``b instead of a``."""
    if isinstance(a, Node) and isinstance(b, Node):
        return None if places.get(id(a)) == places[id(b)] else "another result"
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return next((d for x, y in zip(a, b, strict=True) if (d := _difference(x, y, places)) is not None), None)
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next((d for key in a if (d := _difference(a[key], b[key], places)) is not None), None)
    same = type(a) is type(b) and (a == b or (a != a and b != b))
    return None if same else f"{b!r:.40} instead of {a!r:.40}"


def _same_place(a: Tensor, b: Tensor) -> bool:
    if a.layout is not torch.strided or b.layout is not torch.strided:
        return a is b
    places = ((t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride(), t.dtype) for t in (a, b))
    return bool(next(places) == next(places))


def _same_values(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout and a.device == b.device
    return same and a.layout is torch.strided and torch.equal(a, b)


def _tensors_as_inputs(graph: GraphModule) -> list[Tensor]:
    """Turns a traced function's outside tensors into inputs, so that the graph sees their changes."""
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


# On a CPU, vectorised log(1 + y) takes a third of the time of log1p(y). Here y is in [0, 1] and the sum in [1, 2],
# where the rounding of 1 + y is one part in 2²⁴, as in the terms that it is added to.
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


# By default Inductor draws a uniform number and compares, which on a GPU gives other bits.
def _bernoulli(probs: Tensor, *, generator: Any = None) -> Tensor:
    return torch.empty_like(probs, memory_format=torch.contiguous_format).bernoulli_(probs, generator=generator)


_DECOMPOSED = {
    torch.ops.aten.bernoulli.default: _bernoulli,
    torch.ops.aten.softplus.default: _softplus,
    torch.ops.aten.binary_cross_entropy_with_logits.default: _binary_cross_entropy_with_logits,
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the compiler's messages, and restores Pyro's and torch's checks of distributions."""
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
