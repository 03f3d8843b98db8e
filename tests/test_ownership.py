"""Programs are found to use their modules, wherever they keep them."""

import functools
import sys
import types
import weakref
from collections import deque, namedtuple

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyro_vae.programs.ownership import Owned, loose_parameters, modules_of
from pyro_vae.programs.running import evaluating

GLOBAL_NET = nn.Linear(2, 2)
GLOBAL_NETS = {"first": nn.Linear(2, 2), "second": [nn.Linear(2, 2)]}
GLOBAL_LOC = nn.Parameter(torch.zeros(2))
UNUSED = nn.Linear(5, 5)


def run(z, net):
    """What every program here does: whatever the way, the network is called."""
    return net(z)


def helper(z):
    return GLOBAL_NET(z)


def names_a_global(z):
    return GLOBAL_NET(z)


def names_a_helper(z):
    return [helper(row) for row in z]  # also within a comprehension, which is a code object of its own


def an_attribute_of_that_name(z):
    return types.SimpleNamespace(UNUSED=z).UNUSED


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 2)

    def model(self, z):
        return self.decoder(z)

    @poutine.scale(scale=2.0)
    def scaled(self, z):
        return self.decoder(z)


class Plain:
    """Not a module; holds one and never names the other."""

    unit = nn.Linear(2, 2)

    def __init__(self):
        self.encoder = nn.Linear(2, 2)
        self.other = nn.Linear(3, 3)
        self.config = types.SimpleNamespace(net=nn.Linear(2, 2))

    def model(self, z):
        return self.encoder(z)

    def by_property(self, z):
        return self.hidden(z)

    @property
    def hidden(self):
        return self.config.net

    def by_name(self, z, name="encoder"):
        return getattr(self, name)(z)

    def by_class(self, z):
        return self.unit(z)


class Called(Plain):
    def __call__(self, z):
        return self.model(z)


class Slots:
    __slots__ = ("empty", "encoder")

    def __init__(self):
        self.encoder = nn.Linear(2, 2)

    def model(self, z):
        return self.encoder(z)


class Hidden(nn.Module):
    """Keeps its networks in a list and behind a tuple, where PyTorch does not see them."""

    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
        self.cell = (nn.Linear(2, 2),)
        self.inner = nn.Sequential(nn.Linear(2, 2))

    def forward(self, z):
        for layer in self.layers:
            z = layer(z)
        return self.inner(self.cell[0](GLOBAL_NET(z)))


class UsesItself(PyroModule):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(2, 2)]
        self.me = [self]

    def forward(self, z):
        return self.me[0].layers[0](z)


def closure(net):
    return lambda z: net(z)


def given_default(z, net=GLOBAL_NET, *, other=GLOBAL_NETS["first"]):
    return other(net(z))


def decorated(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


def by_weak(net):
    ref = weakref.ref(net)

    def program(z):
        return ref()(z)

    program.keep = None
    return program


def by_proxy(net):
    proxy = weakref.proxy(net)
    return lambda z: proxy(z)


def nested(net):
    def outer(z):
        def inner(w):
            return net(w)

        return inner(z)

    return outer


def imports_inside(z):
    import module_of_nets

    return module_of_nets.decoder(z) + module_of_nets.deeper(z)


NET, SECOND = nn.Linear(2, 2), nn.Linear(2, 2)
METHODS, PLAIN, CALLED, HIDDEN, SLOTS, CYCLE = Methods(), Plain(), Called(), Hidden(), Slots(), UsesItself()
Nets = namedtuple("Nets", ["enc", "dec"])
FLOW = dist.transforms.spline_coupling(2)
BASE = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 1.0), [FLOW])

KINDS = {
    "a module": (NET, {"self": NET}),
    "a bound method": (METHODS.model, {"self": METHODS}),
    "a method of a plain object": (PLAIN.model, {"self.encoder": PLAIN.encoder}),
    "a callable object": (CALLED, {"self.encoder": CALLED.encoder}),
    "a property": (PLAIN.by_property, {"self.config.net": PLAIN.config.net}),
    "getattr": (
        PLAIN.by_name,
        {"self.encoder": PLAIN.encoder, "self.other": PLAIN.other, "self.config.net": PLAIN.config.net},
    ),
    "an attribute of the class": (PLAIN.by_class, {"self.unit": Plain.unit}),
    "slots": (SLOTS.model, {"self.encoder": SLOTS.encoder}),
    "a closure": (closure(NET), {"net": NET}),
    "a nested function": (nested(NET), {"net": NET}),
    "a lambda that names a global": (lambda z: GLOBAL_NET(z), {"GLOBAL_NET": GLOBAL_NET}),
    "a global": (names_a_global, {"GLOBAL_NET": GLOBAL_NET}),
    "a global of a helper": (names_a_helper, {"GLOBAL_NET": GLOBAL_NET}),
    "containers": (
        lambda z: GLOBAL_NETS,
        {"GLOBAL_NETS.first": GLOBAL_NETS["first"], "GLOBAL_NETS.second.0": GLOBAL_NETS["second"][0]},
    ),
    "a named tuple": (closure(Nets(NET, SECOND)), {"net.enc": NET, "net.dec": SECOND}),
    "a deque and a set": (closure(deque([{NET}])), {"net.0.0": NET}),
    "partial, by keyword": (functools.partial(run, net=NET), {"net": NET}),
    "partial, by position": (functools.partial(run, torch.zeros(2), NET), {"net": NET}),
    "partial of a module": (functools.partial(NET), {"self": NET}),
    "defaults": (given_default, {"net": GLOBAL_NET, "other": GLOBAL_NETS["first"]}),
    "a decorator": (decorated(names_a_global), {"GLOBAL_NET": GLOBAL_NET}),
    "lru_cache": (functools.lru_cache(closure(NET)), {"net": NET}),
    "a weak reference": (by_weak(NET), {"ref": NET}),
    "a weak proxy": (by_proxy(NET), {"proxy": NET}),
    "a weak method": (closure(weakref.WeakMethod(METHODS.model)), {"self": METHODS}),
    "poutine.scale": (poutine.scale(closure(NET), 2.0), {"net": NET}),
    "a scaled method": (METHODS.scaled, {"self": METHODS}),
    "config_enumerate": (config_enumerate(closure(NET)), {"net": NET}),
    "condition of a block": (pyro.condition(poutine.block(METHODS.model), {"z": torch.ones(2)}), {"self": METHODS}),
    "a trace handler": (poutine.trace(closure(NET)), {"net": NET}),
    "not registered": (
        HIDDEN,
        {
            "self": HIDDEN,
            "GLOBAL_NET": GLOBAL_NET,
            "self.layers.0": HIDDEN.layers[0],
            "self.layers.1": HIDDEN.layers[1],
            "self.cell.0": HIDDEN.cell[0],
        },
    ),
    "a cycle": (CYCLE, {"self": CYCLE, "self.layers.0": CYCLE.layers[0]}),
    "a distribution's transform": (lambda: BASE, {"BASE.transforms.0": FLOW}),
    "two programs": ({"model": METHODS.model, "guide": NET}, {"self": METHODS, "guide": NET}),
    "a child beside its parent": (lambda: (METHODS.decoder, METHODS), {"METHODS": METHODS}),
    "nothing": (an_attribute_of_that_name, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_modules_are_found_under_readable_names(kind):
    program, expected = KINDS[kind]
    found = modules_of(program)
    assert {name: id(module) for name, module in found.items()} == {n: id(m) for n, m in expected.items()}


def test_modules_of_ones_own_python_files_are_followed_by_the_names_that_code_uses(monkeypatch):
    nets = types.ModuleType("module_of_nets")
    source = "def deeper(z):\n    return second(z)\n"
    nets.decoder, nets.second, nets.unused = NET, SECOND, UNUSED
    exec(source, vars(nets))
    monkeypatch.setitem(sys.modules, "module_of_nets", nets)
    assert modules_of(imports_inside) == {"module_of_nets.decoder": NET, "second": SECOND}


def test_an_autoguide_holds_what_it_made_and_not_the_model():
    net = nn.Linear(2, 2)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(net(z), 1.0).to_event(1), obs=x)

    guide = AutoNormal(model)
    guide(torch.zeros(3, 2))
    assert modules_of(guide) == {"self": guide}
    assert modules_of({"model": model, "guide": guide}) == {"guide": guide, "net": net}


def test_the_functions_that_an_autoguide_was_made_of_are_its_own():
    net = nn.Linear(2, 2)
    guide = AutoGuideList(names_a_global)
    guide.append(lambda x: net(x))
    assert modules_of(guide) == {"self": guide, "net": net}


def test_parameters_outside_of_modules_are_found():
    inside = GLOBAL_NET.weight
    loc = nn.Parameter(torch.zeros(1))
    plain = torch.zeros(1, requires_grad=True)

    def program(z):
        return GLOBAL_NET(z) + GLOBAL_LOC + loc + inside + plain

    assert {n: id(p) for n, p in loose_parameters(program).items()} == {"loc": id(loc), "GLOBAL_LOC": id(GLOBAL_LOC)}


def test_one_roof_holds_each_once_and_leaves_out_what_programs_register():
    hidden = Hidden()
    owned = Owned(model=hidden, guide=functools.partial(run, net=METHODS.decoder), more=METHODS.model)
    assert [name for name, _ in owned.named_children()] == ["self", "GLOBAL_NET", *(f"model_{n}" for n in NAMES)]
    assert owned.self is METHODS
    assert not {id(p) for p in owned.parameters()} & {id(p) for p in hidden.parameters()}


NAMES = ("layers_0", "layers_1", "cell_0")


def test_names_that_clash_are_told_apart():
    assert list(modules_of((closure(NET), closure(SECOND)))) == ["net", "net_2"]


def test_a_program_that_changes_is_looked_at_again():
    nets = [NET]
    program = closure(nets)
    assert modules_of(program) == {"net.0": NET}
    nets[0] = SECOND
    assert modules_of(program) == {"net.0": SECOND}


def test_large_things_in_a_closure_cost_little():
    numbers, rows = list(range(10**6)), torch.zeros(10, 10)
    deep = []
    for _ in range(10_000):
        deep = [deep]
    assert modules_of(lambda: (numbers, rows, deep, NET)) == {"NET": NET}


def test_dead_references_are_nothing():
    net = nn.Linear(2, 2)
    ref, proxy = weakref.ref(net), weakref.proxy(net)
    del net
    assert modules_of(lambda: (ref, proxy)) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_is_evaluated_and_its_mode_put_back(kind):
    program, expected = KINDS[kind]
    parts = [part for module in expected.values() for part in module.modules()]
    modes = [index % 2 == 0 for index in range(len(parts))]
    for part, mode in zip(parts, modes, strict=True):
        part.training = mode
    before = [part.training for part in parts]
    with evaluating(program):
        assert not any(part.training for part in parts)
        assert not torch.is_grad_enabled()
    assert [part.training for part in parts] == before
    for part in parts:
        part.training = True
