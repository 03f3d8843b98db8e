"""A CUDA device that is none: tensors live on the CPU and say that they are on ``cuda:0``.

Inside ``with PretendedCuda() as device`` the device ``"cuda"`` can be used. Operations that mix its tensors with the
CPU's fail as they do on a GPU, where only numbers, 0-dimensional tensors of the CPU, may join in. What makes the host
wait for the device, or copies between the two, is noted in ``device.events`` with the line that did it. While a graph
is captured (``device.capturing()``, ``torch.cuda.graph``) it is refused.

A graph that is captured is the list of operations, none of which has an effect before the graph is replayed: then they
are run again on the same memory, with random numbers that are new.

Nothing is known here of streams, memory, kernels and speed; random numbers are those of the CPU's generator.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Number
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from pyro_vae._support import libraries

CUDA = torch.device("cuda", 0)

_ROOT = f"{Path(__file__).parents[1]}/"
aten = torch.ops.aten


class CaptureRefusedError(RuntimeError):
    """What CUDA refuses while a graph is captured."""


class DeviceLostError(Exception):
    """An index outside of what it indexes, after which a GPU does nothing any more: nobody can go on from there."""


@dataclass(frozen=True)
class Event:
    """Something that the host had to do with the device.

    Args:
        kind: ``"wait"``, ``"to device"`` or ``"to host"``.
        operation: Its name.
        where: The line of the project, and the one that it called.
    """

    kind: str
    operation: str
    where: str


class There(torch.Tensor):
    """A tensor that says it is on the device. For C++ it is on ``meta``, which has no memory either."""

    elem: torch.Tensor

    @staticmethod
    def __new__(cls, elem):
        made = torch.Tensor._make_wrapper_subclass(
            cls, elem.size(), strides=elem.stride(), storage_offset=elem.storage_offset(), dtype=elem.dtype,
            layout=elem.layout, device="meta",
        )  # fmt: skip
        made.elem = elem
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def get_device(self):
        return 0

    def untyped_storage(self):
        return self.elem.untyped_storage()

    def data_ptr(self):
        return self.elem.data_ptr()

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self):
        _current().note("wait", "tolist")
        return self.elem.detach().tolist()

    def pin_memory(self):
        raise RuntimeError("only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo):
        made = There(self.elem.clone()).requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True
        memo[id(self)] = made
        return made

    def __format__(self, spec):
        return format(self.detach().item(), spec) if self.dim() == 0 else repr(self)

    def __repr__(self, **_):
        return f"There({self.elem!r})"

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _current().run(func, args, kwargs or {})


def _is_here(value):
    return isinstance(value, torch.Tensor) and not isinstance(value, There)


@dataclass
class _Graph:
    """A captured graph: operations, with what they were given and where their results stay."""

    operations: list[tuple[Any, Any, Any, list[torch.Tensor]]] = field(default_factory=list)

    def record(self, func, args, kwargs):
        """Notes an operation, which is run on copies, so that it has no effect yet."""
        if func.is_view:
            return func(*_plain(args), **_plain(kwargs))
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            if not isinstance(tensor, There):
                return tensor
            copy = tensor.elem.clone()
            copies[id(copy)] = copy, tensor.elem
            return copy

        out = func(*_mapped(copied, args), **_mapped(copied, kwargs))
        made = [tensor for tensor in _tensors(out) if id(tensor) not in copies]
        self.operations.append((func, _plain(args), _plain(kwargs), made))
        return _mapped(lambda tensor: copies.get(id(tensor), (tensor, tensor))[1], out)

    def replay(self):
        with _disable_current_modes(), torch.no_grad():
            for func, args, kwargs, places in self.operations:
                given = set(map(id, _tensors(args, kwargs)))
                made = [tensor for tensor in _tensors(func(*args, **kwargs)) if id(tensor) not in given]
                for place, value in zip(places, made, strict=True):
                    place.copy_(value)


def _mapped(function, tree):
    """The arguments or results of an operation with a function of each tensor in its place; faster than pytree's."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, (tuple, list)):
        return type(tree)([_mapped(function, part) for part in tree])
    return {name: _mapped(function, part) for name, part in tree.items()} if isinstance(tree, dict) else tree


def _tensors(*trees):
    found = []
    _mapped(found.append, trees)
    return found


def _plain(tree):
    return _mapped(lambda tensor: tensor.elem if isinstance(tensor, There) else tensor, tree)


_READ_MORE = {  # that make the host wait, beside those that torch marks
    aten.multinomial.default, aten._linalg_check_errors.default, aten.linalg_svd.default, aten._linalg_svd.default,
    aten._linalg_eigh.default, aten.histc.default,
}  # fmt: skip
_COPIES = {aten.copy_.default, aten._copy_from.default}
_INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
            aten._unsafe_index.Tensor, aten._unsafe_index_put.default}  # fmt: skip
_TAKE_NO_NUMBERS = {
    aten.cat.default, aten.stack.default, aten.mm.default, aten.addmm.default, aten.bmm.default, aten.gather.default,
    aten.index_select.default, aten.scatter.src, aten.convolution.default, aten.embedding.default,
    aten.native_batch_norm.default,
}  # fmt: skip


def _waits(func):
    return func in _READ_MORE or {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)


class _Operations(TorchDispatchMode):
    """In the place of the mode of fake tensors, which operations come to after what traces them has noted them."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE
    shape_env = None

    def __init__(self, device: "PretendedCuda") -> None:
        super().__init__()
        self.pretended = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.pretended.run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What goes to the device below the operations: ``torch.tensor`` and its like. ``cuda`` is ``cuda:0``."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if torch._C._get_dispatch_mode(_Operations._mode_key) is None:  # somebody has disabled all modes
            with _Operations(_current()):
                return self.called(func, args, kwargs)
        return self.called(func, args, kwargs)

    def called(self, func, args, kwargs):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        args = tuple(map(_with_index, args))
        if func is torch.Tensor.__setitem__ and _is_mask(args[1]) and isinstance(args[2], Number):
            shape = (*args[1].shape, *[1] * (args[0].dim() - args[1].dim()))
            args[0].masked_fill_(args[1].reshape(shape), args[2])  # as CUDA does, without a look at the mask
            return None
        kwargs = {name: _with_index(value) for name, value in (kwargs or {}).items()}
        if func is torch.Tensor.to and isinstance(args[0], There):
            device, dtype, *_ = torch._C._nn._parse_to(*args[1:], **{n: v for n, v in kwargs.items() if n != "copy"})
            if device == CUDA and dtype in (None, args[0].dtype) and not kwargs.get("copy"):
                return args[0]
        if func in (torch.gru, torch.lstm) and args[-1] is True:  # whose result is turned round in place
            out, *last = func(args[0].transpose(0, 1), *args[1:-1], False)
            return out.transpose(0, 1), *last
        if func not in (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor):
            return func(*args, **kwargs)
        data = kwargs.pop("data") if "data" in kwargs else args[-1]
        device = kwargs.pop("device", None)
        if func is torch.Tensor.new_tensor:
            kwargs.setdefault("dtype", args[0].dtype)
            device = args[0].device if device is None else device
        if isinstance(data, torch.Tensor):
            if func in (torch.tensor, torch.Tensor.new_tensor):
                data = data.detach().clone()
            device = data.device if device is None else torch.device(device)
            return data.to(device=device, dtype=kwargs.get("dtype") or data.dtype)
        grad = kwargs.pop("requires_grad", False)
        if device is None or torch.device(device) != CUDA:
            return torch.tensor(data, requires_grad=grad, **kwargs)
        with _disable_current_modes():
            made = torch.tensor(data, **kwargs)
        return _current().run(aten._to_copy.default, (made,), {"device": CUDA}).requires_grad_(grad)


def _is_mask(value):
    return isinstance(value, There) and value.dtype == torch.bool


def _with_index(value):
    return CUDA if isinstance(value, torch.device | str) and str(value) == "cuda" else value


def _swapping(apply: Any) -> Any:
    """Moves modules so that their parameters stay the objects that they are, as on a GPU."""

    def swapped(module, fn, recurse=True):
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, fn, recurse)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return swapped


class _Stream:
    def wait_stream(self, other: Any) -> None: ...
    def synchronize(self) -> None: ...


_devices: list["PretendedCuda"] = []


def _current() -> "PretendedCuda":
    return _devices[-1]


class PretendedCuda(contextlib.ExitStack):
    """Makes the device there is."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.graph: _Graph | None = None
        self.is_capturing = False
        self.sync_debug_mode: int | str = 0

    def __enter__(self):
        super().__enter__()
        _devices.append(self)
        self.callback(_devices.pop)
        handled = torch.fx.experimental.proxy_tensor.HANDLED_TYPES
        folders = (*libraries._known_folders(), __file__)
        for target, value in {
            "torch.fx.experimental.proxy_tensor.HANDLED_TYPES": (*handled, There),
            "pyro_vae._support.libraries._known_folders": lambda: folders,  # no state of the programs is kept here
            "pyro_vae.transforms._is_hashed": lambda device: True,  # by which the CPU's numbers are compared
            "torch._subclasses.fake_tensor.init_gpu_context": lambda *_: None,
            "torch._inductor.compile": lambda graph, *_, **__: graph,  # which runs as it is
            "torch.optim.Optimizer._accelerator_graph_capture_health_check": lambda *_: None,
            "torch.nn.Module._apply": _swapping(torch.nn.Module._apply),
            "torch.backends.cudnn.is_acceptable": lambda *_: False,
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.current_device": lambda: 0,
            "torch.cuda.synchronize": lambda *_: None,
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.get_device_properties": lambda *_: SimpleNamespace(total_memory=2**32),  # draws as on the CPU
            "torch.cuda.mem_get_info": lambda *_: (2**33, 2**34),
            "torch.cuda.get_rng_state": lambda *_: torch.get_rng_state(),
            "torch.cuda.set_rng_state": lambda *_: None,  # the CPU's generator, whose state is set beside it
            "torch.cuda.manual_seed": lambda *_: None,
            "torch.cuda.manual_seed_all": lambda *_: None,
            "torch.cuda.Stream": lambda *_, **__: _Stream(),
            "torch.cuda.current_stream": lambda *_: _Stream(),
            "torch.cuda.stream": lambda *_: contextlib.nullcontext(),
            "torch.cuda.CUDAGraph": lambda *_, **__: _Graph(),
            "torch.cuda.graph": self._captured,
            "torch.cuda.is_current_stream_capturing": lambda: self.is_capturing,
            "torch.cuda.get_sync_debug_mode": lambda: self.sync_debug_mode,
            "torch.cuda.set_sync_debug_mode": self._set_sync_debug_mode,
        }.items():
            self.enter_context(mock.patch(target, value))
        self.enter_context(_Operations(self))
        self.enter_context(_Functions())
        return self

    def _set_sync_debug_mode(self, mode: int | str) -> None:
        self.sync_debug_mode = mode

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Refuses what the capture of a graph would."""
        self.is_capturing = True
        try:
            yield
        finally:
            self.is_capturing = False

    @contextlib.contextmanager
    def _captured(self, graph: _Graph, *_: Any, **__: Any) -> Iterator[None]:
        random, self.graph = torch.get_rng_state(), graph
        try:
            with self.capturing():
                yield
        finally:
            self.graph = None
            torch.set_rng_state(random)

    def note(self, kind: str, operation: str) -> None:
        """Notes an event, or refuses it."""
        event = Event(kind, operation, _line())
        self.events.append(event)
        if self.is_capturing:
            raise CaptureRefusedError(f"operation not permitted when stream is capturing: {event}")
        if kind == "wait" and self.sync_debug_mode in (2, "error"):
            raise RuntimeError(f"called a synchronizing CUDA operation: {event}")

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An operation, where its tensors are."""
        tensors = _tensors(args, kwargs)
        there = [tensor for tensor in tensors if isinstance(tensor, There)]
        is_there = self._place(func, args, kwargs, there, [tensor for tensor in tensors if _is_here(tensor)])
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        try:
            if is_there and self.graph is not None:
                out = self.graph.record(func, args, kwargs)
            else:
                out = func(*_plain(args), **_plain(kwargs))
        except (IndexError, RuntimeError) as error:
            if is_there and ("out of bounds" in str(error) or "out of range" in str(error)):
                raise DeviceLostError(f"device-side assert triggered: {error}") from None
            raise
        if not is_there:
            return out
        given = {id(tensor.elem): tensor for tensor in there}
        return _mapped(lambda tensor: given[id(tensor)] if id(tensor) in given else There(tensor), out)

    def _place(
        self, func: Any, args: Any, kwargs: dict[str, Any], there: list[There], here: list[torch.Tensor]
    ) -> bool:
        """Whether the results are on the device; notes and refuses what has to be."""
        name = str(func).removeprefix("aten.")
        device = kwargs.get("device")
        asks_there = device is not None and torch.device(device).type in ("cuda", "meta")
        if func in _COPIES:
            self._note_copy(name, args[1], to_there=isinstance(args[0], There))
            return isinstance(args[0], There)
        if func in (aten._to_copy.default, aten.lift_fresh_copy.default):
            to_there = bool(there) if device is None else asks_there
            self._note_copy(name, args[0], to_there=to_there)
            return to_there
        if not there:
            return asks_there
        if func not in _INDEXED:
            if _waits(func):
                self.note("wait", name)
        else:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                self.note("wait", f"{name} by a mask")
            if _is_here(args[0]):
                raise RuntimeError(
                    f"indices should be either on cpu or on the same device as the indexed tensor (cpu) (at {_line()})"
                )
            if any(_is_here(index) for index in indices):
                self.note("to device", f"{name} by indices on the CPU")
            here = [tensor for tensor in here if not any(tensor is index for index in indices)]
        wrong = [tuple(tensor.shape) for tensor in here if tensor.dim() > 0 or func in _TAKE_NO_NUMBERS]
        if wrong:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"({name}, shapes {wrong}, at {_line()})"
            )
        return True if device is None else asks_there

    def _note_copy(self, name: str, source: torch.Tensor, *, to_there: bool) -> None:
        if isinstance(source, There) and not to_there:
            self.note("to host", name)
        elif to_there and not isinstance(source, There):
            self.note("to device", name)


def _line() -> str:
    """The innermost line outside of torch and this file, and of those of the project, if that is another."""
    frame, inner = sys._getframe(1), None
    while frame is not None:
        file = frame.f_code.co_filename
        if not any(
            part in file for part in ("/torch/", __file__, "_support/constructors.py", "contextlib.py", "unittest")
        ):
            place = f"{file.rpartition('site-packages/')[2].removeprefix(_ROOT)}:{frame.f_lineno}"
            inner = inner or place
            if file.startswith(_ROOT):
                return place if place == inner else f"{inner} < {place}"
        frame = frame.f_back
    return inner or "nowhere"
