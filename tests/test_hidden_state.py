"""Whatever programs keep outside of tensors, compiled training is their training, or runs them and says why."""

import array
import collections
import contextvars
import dataclasses
import decimal
import enum
import functools
import itertools
import os
import queue
import random
import re
import sys
import threading
import time
import types
import warnings
import weakref

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

from pyro_vae import Pair, fit
from pyro_vae.training import epochs

KINDS = {}  # name: (class of model, what the reason names; None if the graph is trained)
BETWEEN = {}  # name: what the user's loop does after an epoch, given the pair and the epoch's number


def kind(named=None, *, between=None):
    """Adds a program whose mean is shifted by what its ``level`` returns at each run."""

    def add(cls):
        KINDS[cls.__name__] = (cls, named)
        if between is not None:
            BETWEEN[cls.__name__] = between
        return cls

    return add


class Program(nn.Module):
    """A model whose KL and mean depend on a level."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 3)

    def level(self, x):
        return 0.0

    def forward(self, x=None, *, batch_size=None):
        level = self.level(x) if x is not None else 0.0
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            with poutine.scale(scale=0.5):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z) + level, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 4)

    def forward(self, x):
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def ramp(step, over=10):
    """A schedule that moves at every step."""
    return min(1.0, step / over)


# Counts, in all places that Python has for them


@kind(r"the model changes self\.calls \(\d → \d\) when it runs")
class Attribute(Program):
    calls = 0

    def level(self, x):
        self.calls += 1
        return ramp(self.calls)


@kind(r"self\.calls")
class EveryTenSteps(Program):
    calls = 0

    def level(self, x):
        self.calls += 1
        return ramp(self.calls // 10, 2)


@kind(r"self\.calls")
class OnceAtStepThirty(Program):
    calls = 0

    def level(self, x):
        self.calls += 1
        return float(self.calls > 30)


@kind("closure variable calls")
class Closure(Program):
    def __init__(self):
        super().__init__()
        calls = 0

        def step():
            nonlocal calls
            calls += 1
            return ramp(calls)

        self.step = step

    def level(self, x):
        return self.step()


CALLS = 0


@kind("global CALLS")
class Global(Program):
    def __init__(self):
        super().__init__()
        global CALLS
        CALLS = 0

    def level(self, x):
        global CALLS
        CALLS += 1
        return ramp(CALLS)


@kind(r"self\.seen \(\d+ entries → \d+\)")
class ListThatGrows(Program):
    def __init__(self):
        super().__init__()
        self.seen = []

    def level(self, x):
        self.seen.append(len(x))
        return ramp(len(self.seen))


@kind(r"self\.state\[0\]")
class ListElement(Program):
    def __init__(self):
        super().__init__()
        self.state = [0, "a"]

    def level(self, x):
        self.state[0] += 1
        return ramp(self.state[0])


@kind("self.state at calls")
class DictionaryEntry(Program):
    def __init__(self):
        super().__init__()
        self.state = {"calls": 0}

    def level(self, x):
        self.state["calls"] += 1
        return ramp(self.state["calls"])


@kind(r"self\.state")
class NumpyArray(Program):
    def __init__(self):
        super().__init__()
        self.state = np.zeros(3)

    def level(self, x):
        self.state[1] += 1
        return ramp(float(self.state[1]))


@kind(r"self\.state")
class Deque(Program):
    def __init__(self):
        super().__init__()
        self.state = collections.deque([0.0, 0.3, 0.6])

    def level(self, x):
        self.state.rotate()
        return self.state[0]


@kind(r"self\.numbers \(count\(\d\) → count\(\d\)\)")
class Count(Program):
    def __init__(self):
        super().__init__()
        self.numbers = itertools.count()

    def level(self, x):
        return ramp(next(self.numbers))


@kind(r"self\.numbers")
class Cycle(Program):
    def __init__(self):
        super().__init__()
        self.numbers = itertools.cycle([0.0, 0.2, 0.4])

    def level(self, x):
        return next(self.numbers)


@kind(r"self\.numbers")
class ListIterator(Program):
    def __init__(self):
        super().__init__()
        self.numbers = iter([n / 200 for n in range(200)])

    def level(self, x):
        return next(self.numbers)


@kind(r"self\.numbers")
class GeneratorFunction(Program):
    def __init__(self):
        super().__init__()

        def schedule():
            level = 0.0
            while True:
                yield level
                level = min(1.0, level + 0.1)

        self.numbers = schedule()

    def level(self, x):
        return next(self.numbers)


@kind("class attribute ClassAttribute.calls")
class ClassAttribute(Program):
    calls = 0

    def __init__(self):
        super().__init__()
        ClassAttribute.calls = 0

    def level(self, x):
        type(self).calls += 1
        return ramp(self.calls)


@kind("default argument memo")
class DefaultArgument(Program):
    def __init__(self):
        super().__init__()

        def step(memo=[0]):  # noqa: B006
            memo[0] += 1
            return ramp(memo[0])

        self.step = step

    def level(self, x):
        return self.step()


@kind(r"self\.schedule\.inner\.calls")
class NestedObjects(Program):
    def __init__(self):
        super().__init__()
        self.schedule = types.SimpleNamespace(inner=types.SimpleNamespace(calls=0))

    def level(self, x):
        self.schedule.inner.calls += 1
        return ramp(self.schedule.inner.calls)


@dataclasses.dataclass
class Settings:
    calls: int = 0


@dataclasses.dataclass(frozen=True)
class FrozenSettings:
    calls: int = 0


@kind(r"self\.settings\.calls")
class DataClass(Program):
    def __init__(self):
        super().__init__()
        self.settings = Settings()

    def level(self, x):
        self.settings.calls += 1
        return ramp(self.settings.calls)


@kind(r"self\.settings\.calls")
class FrozenDataClassReplaced(Program):
    def __init__(self):
        super().__init__()
        self.settings = FrozenSettings()

    def level(self, x):
        self.settings = dataclasses.replace(self.settings, calls=self.settings.calls + 1)
        return ramp(self.settings.calls)


@kind(r"self\.state\[1\]")
class TupleReplaced(Program):
    def __init__(self):
        super().__init__()
        self.state = ("level", 0)

    def level(self, x):
        self.state = (self.state[0], self.state[1] + 1)
        return ramp(self.state[1])


@kind(r"self\.seen")
class SetThatGrows(Program):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def level(self, x):
        self.seen.add(len(self.seen))
        return ramp(len(self.seen))


@kind(r"self\.state")
class BytesOfAnArray(Program):
    def __init__(self):
        super().__init__()
        self.state = array.array("i", [0])

    def level(self, x):
        self.state[0] += 1
        return ramp(self.state[0])


def schedule():
    schedule.calls += 1
    return ramp(schedule.calls)


@kind("schedule.calls")
class FunctionAttribute(Program):
    def __init__(self):
        super().__init__()
        schedule.calls = 0

    def level(self, x):
        return schedule()


LEVEL = contextvars.ContextVar("level", default=0)


@kind("LEVEL")
class ContextVariable(Program):
    def __init__(self):
        super().__init__()
        LEVEL.set(0)

    def level(self, x):
        LEVEL.set(LEVEL.get() + 1)
        return ramp(LEVEL.get())


CONFIG = types.ModuleType("their_config")


@kind(r"CONFIG\.calls")
class AttributeOfAModule(Program):
    def __init__(self):
        super().__init__()
        CONFIG.calls = 0

    def level(self, x):
        CONFIG.calls += 1
        return ramp(CONFIG.calls)


class Slotted:
    __slots__ = ("calls",)

    def __init__(self):
        self.calls = 0


@kind(r"self\.state\.calls")
class Slots(Program):
    def __init__(self):
        super().__init__()
        self.state = Slotted()

    def level(self, x):
        self.state.calls += 1
        return ramp(self.state.calls)


@kind("calls")
class ForwardHook(Program):
    def __init__(self):
        super().__init__()
        self.shift, calls = 0.0, [0]

        def hook(module, args, out):
            calls[0] += 1
            return out + ramp(calls[0])

        self.decoder.register_forward_hook(hook)


class Shifted(dist.Normal):
    made = 0

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Shifted.made += 1

    def expand(self, shape, _instance=None):
        return dist.Normal(self.loc, self.scale).expand(shape)


@kind(r"Shifted\.made")
class CountOfDistributions(Program):
    def __init__(self):
        super().__init__()
        Shifted.made = 0

    def level(self, x):
        return Shifted(0.1, 1.0).loc * ramp(Shifted.made)


@kind("keys|state|values")
class WeakDictionary(Program):
    def __init__(self):
        super().__init__()
        self.state = weakref.WeakKeyDictionary({self.decoder: 0})

    def level(self, x):
        self.state[self.decoder] += 1
        return ramp(self.state[self.decoder])


@kind(r"self\.text")
class Text(Program):
    def __init__(self):
        super().__init__()
        self.text = ""

    def level(self, x):
        self.text += "."
        return ramp(len(self.text))


@kind(r"self\.even \((True → False|False → True)\)")
class Toggle(Program):
    even = False

    def level(self, x):
        self.even = not self.even
        return 0.5 * self.even


@kind(r"self\.level_now")
class Decimals(Program):
    def __init__(self):
        super().__init__()
        self.level_now = decimal.Decimal(0)

    def level(self, x):
        self.level_now += decimal.Decimal("0.1")
        return float(min(self.level_now, 1))


class Phase(enum.Enum):
    WARM = 0.2
    HOT = 0.7


@kind(r"self\.phase")
class StateMachine(Program):
    phase = Phase.WARM

    def level(self, x):
        self.phase = Phase.HOT if self.phase is Phase.WARM else Phase.WARM
        return self.phase.value


@kind(r"self\._calls")
class Property(Program):
    _calls = 0

    @property
    def now(self):
        self._calls += 1
        return ramp(self._calls)

    def level(self, x):
        return self.now


@kind("args|step")
class Partial(Program):
    def __init__(self):
        super().__init__()

        def step(state):
            state.append(1)
            return ramp(len(state))

        self.step = functools.partial(step, [])

    def level(self, x):
        return self.step()


@kind(r"self\.state")
class Queue(Program):
    def __init__(self):
        super().__init__()
        self.state = queue.Queue()

    def level(self, x):
        self.state.put(0.1)
        return ramp(self.state.qsize())


@kind(r"self\.state")
class OrderOfADictionary(Program):
    def __init__(self):
        super().__init__()
        self.state = collections.OrderedDict(a=0.1, b=0.4, c=0.9)

    def level(self, x):
        self.state.move_to_end(next(iter(self.state)))
        return next(iter(self.state.values()))


@kind(r"self\.state")
class Counter(Program):
    def __init__(self):
        super().__init__()
        self.state = collections.Counter()

    def level(self, x):
        self.state["run"] += 1
        return ramp(self.state["run"])


@kind(r"self\.state")
class ThreadLocal(Program):
    def __init__(self):
        super().__init__()
        self.state = threading.local()
        self.state.calls = 0

    def level(self, x):
        self.state.calls += 1
        return ramp(self.state.calls)


@kind("os.environ at LEVEL_NOW")
class Environment(Program):
    def __init__(self):
        super().__init__()
        os.environ["LEVEL_NOW"] = "0"

    def level(self, x):
        os.environ["LEVEL_NOW"] = str(int(os.environ["LEVEL_NOW"]) + 1)
        return ramp(int(os.environ["LEVEL_NOW"]))


# Noise that is not torch's


@kind("Python's random")
class PythonsRandom(Program):
    def level(self, x):
        return random.random()


@kind(r"self\.generator")
class RandomObject(Program):
    def __init__(self):
        super().__init__()
        self.generator = random.Random(0)

    def level(self, x):
        return self.generator.random()


@kind("NumPy's global generator")
class NumpysRandom(Program):
    def level(self, x):
        return np.random.rand()


@kind(r"self\.generator")
class NumpyGenerator(Program):
    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def level(self, x):
        return float(self.generator.normal())


@kind(r"self\.generator")
class NumpyRandomState(Program):
    def __init__(self):
        super().__init__()
        self.generator = np.random.RandomState(0)

    def level(self, x):
        return self.generator.rand()


@kind(r"self\.generator")
class TorchGenerator(Program):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def level(self, x):
        return 0.1 * torch.randn(3, generator=self.generator)


@kind("random generator")
class SeedsItself(Program):
    def level(self, x):
        with torch.random.fork_rng():
            torch.manual_seed(3)
            return torch.randn(3)


# The world outside


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@kind("now")
class PatchedClock(Program):
    def __init__(self):
        super().__init__()
        time.time = Clock()  # put back by the test

    def level(self, x):
        return ramp(time.time())


@kind(r"the clock \(time\.perf_counter\)")
class RealClock(Program):
    def level(self, x):
        return 0.0 * time.perf_counter()


@kind("a file")
class ReadsAFile(Program):
    def level(self, x):
        with open(__file__) as file:
            return float(file.read(1) == '"')


# Values read out of tensors


@kind("tolist")
class ToList(Program):
    def level(self, x):
        return x.sum(0).tolist()[0]


@kind("numpy")
class ToNumpy(Program):
    def level(self, x):
        return torch.from_numpy(x.numpy().mean(0))


@kind("__array__|numpy")
class AsArray(Program):
    def level(self, x):
        return float(np.asarray(x).mean())


@kind("item")
class Int(Program):
    def level(self, x):
        return int((x > 0).sum()) / 10


@kind("item")
class Item(Program):
    def level(self, x):
        return x.mean().item()


@kind("unique")
class LengthOfUnique(Program):
    def level(self, x):
        return len(torch.unique(x > 0)) / 10


@kind("item|bool")
class ControlFlow(Program):
    def level(self, x):
        return 1.0 if x.mean() > 0 else 0.0


@kind("item")
class SliceByValue(Program):
    def level(self, x):
        return x[: (x[:, 0] > 0).sum() + 1].mean()


@kind("mask")
class SelectsByMask(Program):
    def level(self, x):
        return x[x > 0].mean()


@kind("item")
class ValueOfABuffer(Program):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def level(self, x):
        level = ramp(self.calls.item())
        self.calls += 1
        return level


@kind("item")
class ValueOfAParameter(Program):
    def level(self, x):
        return 1.0 if self.decoder.bias[0] > 0 else 0.5


# Tensors that are replaced: a graph would go on with the first


@kind(r"self\.average \(replaced by another tensor")
class TensorReplaced(Program):
    def __init__(self):
        super().__init__()
        self.average = torch.zeros(3)

    def level(self, x):
        self.average = 0.9 * self.average + 0.1 * x.mean(0)
        return self.average


@kind(r"self\.calls \(replaced by another tensor")
class BufferReplaced(Program):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def level(self, x):
        self.calls = self.calls + 1
        return (self.calls / 10).clamp(max=1.0)


# What a graph may do: state in tensors that are updated in place, and Python that comes to the same every time


@kind()
class Buffer(Program):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def level(self, x):
        self.calls += 1
        return (self.calls / 10).clamp(max=1.0)


@kind()
class ScaleByABuffer(Program):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x=None, *, batch_size=None):
        self.calls += 1
        with poutine.scale(scale=(self.calls / 20).clamp(max=1.0)):
            return super().forward(x, batch_size=batch_size)


@kind()
class PlainTensor(Program):
    def __init__(self):
        super().__init__()
        self.average = torch.zeros(3)

    def level(self, x):
        self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.average.clone()


@kind()
class TensorInAClosure(Program):
    def __init__(self):
        super().__init__()
        calls = [torch.zeros(())]

        def step():
            calls[0].add_(1)
            return (calls[0] / 10).clamp(max=1.0)

        self.step = step

    def level(self, x):
        return self.step()


@kind()
class RunningAverages(Program):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def level(self, x):
        return self.norm(x).mean(0).tanh()


@kind()
class Cache(Program):
    def __init__(self):
        super().__init__()
        self.made = {}

    def level(self, x):
        if len(x) not in self.made:
            self.made[len(x)] = torch.full((3,), 0.1)
        return self.made[len(x)]


@kind()
class Constants(Program):
    def __init__(self):
        super().__init__()
        self.width, self.number = torch.tensor(2), torch.arange(4)

    def level(self, x):
        return int(self.width) * torch.tensor(2).item() * self.number.tolist()[1] / 10


@kind()
class DroppedOut(Program):
    def level(self, x):
        return nn.functional.dropout(x, 0.5).mean(0)


# What others change: the user's own loop, between epochs


def set_level(pair, number):
    pair.model.now = 0.1 * number


@kind(r"self\.now of the model", between=set_level)
class SetBetweenEpochs(Program):
    now = 0.0

    def __init__(self):
        super().__init__()
        self.now = 0.0

    def level(self, x):
        return self.now


@kind(None, between=set_level)
class SetWithoutEffect(Program):
    def __init__(self):
        super().__init__()
        self.now = 0.0

    def level(self, x):
        return 0.1 if self.now < 1e9 else 0.2


@kind(r"self\.now of the model", between=lambda pair, number: setattr(pair.model, "now", float(number >= 4)))
class SetOnceBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        self.now = 0.0

    def level(self, x):
        return self.now


@kind("_forward_hooks", between=lambda pair, number: number == 2 and pair.model.inner.register_forward_hook(doubled))
class HookBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def level(self, x):
        return self.inner(x)


def doubled(module, args, out):
    return 2 * out


def set_global(pair, number):
    global CALLS
    CALLS = number


@kind("CALLS", between=set_global)
class GlobalBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        set_global(None, 0)

    def level(self, x):
        return ramp(CALLS)


@kind("LEVEL_NOW", between=lambda pair, number: os.environ.update(LEVEL_NOW=str(number)))
class EnvironmentBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        os.environ["LEVEL_NOW"] = "0"

    def level(self, x):
        return ramp(int(os.environ["LEVEL_NOW"]))


@kind("depend on more than their tensors", between=lambda pair, number: sys.setrecursionlimit(1000 + 100 * number))
class OutOfSight(Program):
    """State that no look at objects finds, but that shows in the numbers."""

    def __init__(self):
        super().__init__()
        sys.setrecursionlimit(1000)

    def level(self, x):
        return sys.getrecursionlimit() / 2000


@kind("tensor of shape", between=lambda pair, number: pair.model.width.fill_(number))
class ConstantThatChanges(Program):
    def __init__(self):
        super().__init__()
        self.width = torch.tensor(0)

    def level(self, x):
        return int(self.width) / 10


@kind(None, between=lambda pair, number: pair.model.now.fill_(0.1 * number))
class TensorBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        self.now = torch.zeros(())

    def level(self, x):
        return self.now


@kind(r"self\.now of the model", between=lambda pair, number: setattr(pair.model, "now", torch.full((), 0.1 * number)))
class TensorReplacedBetweenEpochs(Program):
    def __init__(self):
        super().__init__()
        self.now = torch.zeros(())

    def level(self, x):
        return self.now


def train(cls, compile, between=None, num_epochs=6, rows=22, **options):
    pyro.clear_param_store()
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    pair = Pair(cls(), Guide())
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(1)) + 1.0
    options = {"batch_size": 4, "learning_rate": 0.03, "progress": False, "compile": compile} | options
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if between is None:
            history = fit(pair, x, epochs=num_epochs, **options)
            elbos, how = history.elbo.tolist(), history.attrs["execution"]
        else:
            run = epochs(pair, x, epochs=num_epochs, **options)
            elbos = []
            for number, record in enumerate(run, start=1):
                elbos.append(record["elbo"])
                between(pair, number)
            how = None
    weights = torch.cat([value.detach().double().reshape(-1) for value in pair.state_dict().values()])
    return elbos, weights, how, [str(warning.message) for warning in said]


@pytest.fixture
def watched(as_traced, monkeypatch):
    """Graphs run as they were traced; the clock and the environment are put back."""
    monkeypatch.setattr(time, "time", time.time)
    monkeypatch.setenv("LEVEL_NOW", "0")


@pytest.mark.parametrize("name", KINDS)
def test_compiled_training_is_the_programs_or_says_why_not(name, watched):
    cls, named = KINDS[name]
    elbos, weights, _, said = train(cls, False, BETWEEN.get(name))
    assert not said
    compiled_elbos, compiled_weights, how, said = train(cls, True, BETWEEN.get(name))
    assert compiled_elbos == pytest.approx(elbos, rel=1e-5)
    torch.testing.assert_close(compiled_weights, weights, rtol=1e-4, atol=1e-5)
    if named is None:
        assert not said
        assert how in (None, "compiled")
    else:
        assert len(said) == 1
        assert re.search(named, said[0]), said[0]
