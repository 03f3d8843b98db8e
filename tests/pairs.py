"""Pairs of programs as users write them, none of them a VAE of ours."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vae import Pair


class MixturePrior(nn.Module):
    """p(z) is a mixture of three normals, written with pyro.sample; registered under a name that others may use."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        self.encoder = nn.Linear(4, 4)
        self.locs = nn.Parameter(torch.tensor([[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]))

    def forward(self, x=None, *, batch_size=None):
        pyro.module("decoder", self.decoder)
        weights = dist.Categorical(logits=torch.zeros(3))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            components = dist.Normal(self.locs, 0.5).to_event(1)
            z = pyro.sample("z", dist.MixtureSameFamily(weights, components))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)


def mixture_pair() -> Pair:
    model = MixturePrior()

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = model.encoder

        def forward(self, x):
            pyro.module("encoder", self.encoder)
            loc, raw = self.encoder(x).chunk(2, -1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Pair(model, Guide())


def function_pair() -> Pair:
    """Two functions whose parameters live in Pyro's store; a global mean with partial pooling around it."""

    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        slope = pyro.param("slope", torch.zeros(()))
        spread = pyro.param("spread", torch.ones(()), constraint=dist.constraints.positive)
        mean = pyro.sample("mean", dist.Normal(loc, scale))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(mean + slope * (x - mean), spread))

    return Pair(model, guide)


def discrete_pair() -> Pair:
    """A binary latent, which no draw can be differentiated through."""

    def model(x=None, *, batch_size=None):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            return pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor(0.3))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=slope * x))

    return Pair(model, guide)


class _ModuleModel(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.scale = PyroParam(torch.ones(3), constraint=dist.constraints.positive)

    def forward(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.loc + z, self.scale).to_event(1), obs=x)


class _ModuleGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 3)
        self.spread = PyroParam(torch.ones(3), constraint=dist.constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.linear(x), self.spread).to_event(1))


def pyro_module_pair() -> Pair:
    return Pair(_ModuleModel(), _ModuleGuide())


def labelled_pair() -> Pair:
    """A conditional model: the labels shift the mean of x and are given to both programs."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2))

        def forward(self, x=None, *, labels, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                return pyro.sample("x", dist.Normal(z + self.shift[labels], 0.5), obs=x)

    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))
            self.offset = nn.Parameter(torch.zeros(2))

        def forward(self, x, *, labels):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.weight[labels] * x + self.offset[labels], 0.5))

    return Pair(Model(), Guide())
