"""A CUDA graph's stand-in on a CPU: what a function does to tensors, recorded once and then repeated without Python.

As on a GPU, nothing is done while it is recorded; what it does repeats, with new random numbers, on the very tensors
that it found and made; numbers of Python stay as they were then; and reading a value off a tensor is refused.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vae._support import cuda_graphs, devices
from pyro_vae._support.cuda_graphs import CannotStageError

WAITS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default, torch.ops.aten.equal.default}


def tensors_in(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations, self.made, self.found = [], {}, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in WAITS:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in tensors_in((args, kwargs)):  # not all that change a tensor say so: batch norm does not
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made and storage.data_ptr() not in self.found:
                self.found[storage.data_ptr()] = storage, storage.clone()
        out = func(*args, **kwargs)
        aliases = [result.alias_info for result in func._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in aliases)
        if not is_view:
            self.operations.append((func, args, kwargs, None if any(aliases) else tensors_in(out)))
            self.made |= {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors_in(out)}
        return out

    def put_back(self):
        for storage, before in self.found.values():
            storage.copy_(before)


class HostGraphs:
    """Patches capturing, so that ``fit`` takes a CPU for a device that captures; counts recordings and launches."""

    def __init__(self, monkeypatch):
        self.num_recorded = self.num_launched = 0
        self.launching = False
        monkeypatch.setattr(devices, "captures", lambda device: True)
        monkeypatch.setattr(cuda_graphs, "new_pool", lambda: None)
        monkeypatch.setattr(cuda_graphs, "recorded", self.recorded)
        monkeypatch.setattr(cuda_graphs, "on_side_stream", contextlib.nullcontext)
        monkeypatch.setattr(cuda_graphs, "refusing_to_wait", contextlib.nullcontext)

    def recorded(self, function, pool=None):
        random, recorder = torch.get_rng_state(), Recorder()
        try:
            with recorder:
                out = function()
        except RuntimeError as error:
            raise CannotStageError(str(error)) from error
        finally:
            recorder.put_back()
            torch.set_rng_state(random)
        self.num_recorded += 1

        @torch.no_grad()
        def launch():
            self.num_launched, self.launching = self.num_launched + 1, True
            for func, args, kwargs, places in recorder.operations:
                again = func(*args, **kwargs)
                for place, tensor in zip(places or (), tensors_in(again), strict=False):
                    place.copy_(tensor)
            self.launching = False

        return out, launch
