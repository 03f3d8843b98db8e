"""Programs with latents shared by all rows: Bayesian weights, group effects, a clustering of unknown size."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal, init_to_mean
from pyro.nn import PyroModule, PyroSample
from torch import nn

from zoo.gaussian import LinearModel, rows
from zoo.program import Data, Program, Programs, draws


def _regressed(design, y, scale, prior_scale=1.0):
    """Mean and standard deviation of each weight of a Bayesian linear regression."""
    design, y = design.double(), y.double()
    precision = torch.eye(design.shape[1]) / prior_scale**2 + design.T @ design / scale**2
    covariance = torch.linalg.inv(precision)
    return covariance @ design.T @ y / scale**2, covariance.diagonal().sqrt()


class LastLayer(nn.Module):
    """A network whose last layer is a latent; x is the response, and its predictors are a keyword argument."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 3), nn.Tanh())
        self.loc, self.log_scale = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.full((3,), -2.0))

    def model(self, x=None, *, inputs, batch_size=None):
        weights = pyro.sample("weights", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(self.features(inputs) @ weights, 0.3), obs=x)

    def guide(self, x, *, inputs):
        pyro.sample("weights", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))


def last_layer() -> Programs:
    both = LastLayer()

    def posterior(data):
        with torch.no_grad():
            return {"weights": _regressed(both.features(data["inputs"]), data["x"], 0.3)}

    return Programs(both.model, both.guide, posterior=posterior)


def responses() -> Data:
    inputs = draws(300, 2)
    return {"x": inputs[:, 0].sin() + 0.5 * inputs[:, 1] + 0.3 * draws(300), "inputs": inputs}


class Regression(PyroModule):
    """Pyro's tutorial: a PyroModule with priors on the weights of its layer; the guide is made by Pyro."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x=None, *, inputs, batch_size=None):
        sigma = pyro.sample("sigma", dist.LogNormal(torch.tensor(-1.0), 0.5))
        mean = self.linear(inputs).squeeze(-1)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(mean, sigma), obs=x)


def regression() -> Programs:
    model = Regression()
    return Programs(model, AutoDiagonalNormal(model, init_loc_fn=init_to_mean))


def partial_pooling() -> Programs:
    """Effects of six groups around a common mean; a group for each row comes as a keyword argument. pyro.param."""

    def model(x=None, *, group, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("groups", 6, dim=-1):
            effect = pyro.sample("effect", dist.Normal(mean, 1.0))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(effect[group], 0.8), obs=x)

    def guide(x, *, group):
        positive = dist.constraints.positive
        loc, spread = pyro.param("loc", torch.zeros(())), pyro.param("spread", torch.tensor(0.5), constraint=positive)
        locs, spreads = pyro.param("locs", torch.zeros(6)), pyro.param("spreads", torch.ones(6), constraint=positive)
        pyro.sample("mean", dist.Normal(loc, spread))
        with pyro.plate("groups", 6, dim=-1):
            pyro.sample("effect", dist.Normal(locs, spreads))

    def posterior(data):
        design = torch.nn.functional.one_hot(data["group"], 6).double()
        prior = 4.0 * torch.ones(7, 7).double()  # of the six effects and the mean, which they all share
        prior[:6, :6] += torch.eye(6)
        noise = 0.64 * torch.eye(len(design))
        gain = prior[:, :6] @ design.T @ torch.linalg.inv(design @ prior[:6, :6] @ design.T + noise)
        mean = gain @ data["x"].double()
        sd = (prior - gain @ design @ prior[:6]).diagonal().sqrt()
        return {"mean": (mean[6], sd[6]), "effect": (mean[:6], sd[:6])}

    return Programs(model, guide, posterior=posterior)


def groups() -> Data:
    group = torch.randint(6, (300,))
    return {"x": 1.0 + draws(6)[group] + 0.8 * draws(300), "group": group}


def common_scale() -> Programs:
    """A scale shared by all rows, and a level for each row."""
    encoder = nn.Linear(3, 1)
    positive = dist.constraints.positive

    def model(x=None, *, batch_size=None):
        scale = pyro.sample("scale", dist.LogNormal(torch.zeros(()), 0.5))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            level = pyro.sample("level", dist.Normal(torch.zeros(()), scale))
            return pyro.sample("x", dist.Normal(level[..., None], 0.7).expand([*level.shape, 3]).to_event(1), obs=x)

    def guide(x):
        loc, spread = pyro.param("loc", torch.zeros(())), pyro.param("spread", torch.tensor(0.3), constraint=positive)
        width = pyro.param("width", torch.tensor(0.5), constraint=positive)
        pyro.sample("scale", dist.LogNormal(loc, spread))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("level", dist.Normal(encoder(x).squeeze(-1), width))

    return Programs(model, guide)


def levels() -> Data:
    return {"x": 1.5 * draws(300, 1) + 0.7 * draws(300, 3)}


def dirichlet_process() -> Programs:
    """Pyro's Dirichlet-process mixture: sticks and means belong to all rows, the component of a row is summed out."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("sticks_plate", 3, dim=-1):
            sticks = pyro.sample("sticks", dist.Beta(torch.tensor(1.0), 1.0))
        with pyro.plate("components", 4, dim=-1):
            centre = pyro.sample("centre", dist.Normal(torch.tensor(0.0), 3.0))
        left = torch.cat([torch.ones(1), (1 - sticks).cumprod(-1)])
        weights = left * torch.cat([sticks, torch.ones(1)])
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            component = pyro.sample("component", dist.Categorical(weights), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(centre[component], 0.6), obs=x)

    def guide(x):
        positive = dist.constraints.positive
        kappa = pyro.param("kappa", torch.ones(2, 3), constraint=positive)
        loc = pyro.param("loc", torch.tensor([-2.0, -0.5, 0.5, 2.0]))
        spread = pyro.param("spread", 0.3 * torch.ones(4), constraint=positive)
        with pyro.plate("sticks_plate", 3, dim=-1):
            pyro.sample("sticks", dist.Beta(kappa[0], kappa[1]))
        with pyro.plate("components", 4, dim=-1):
            pyro.sample("centre", dist.Normal(loc, spread))

    return Programs(model, guide)


def groups_of_points() -> Data:
    return {"x": torch.tensor([-3.0, 0.0, 3.0])[torch.randint(3, (300,))] + 0.6 * draws(300)}


def autoguide() -> Programs:
    """An AutoNormal over latents of the rows: it has parameters for the rows that it first sees only."""
    model = LinearModel()
    return model.programs(AutoNormal(model))


PROGRAMS = [
    Program("Bayesian last layer", "weights that belong to all rows; inputs beside x", last_layer, responses),
    Program("regression", "PyroSample weights and an autoguide", regression, responses),
    Program("partial pooling", "effects of groups, pyro.param", partial_pooling, groups),
    Program("common scale", "one latent of all rows, one of each", common_scale, levels),
    Program("Dirichlet process", "latents of all rows, and components summed out", dirichlet_process, groups_of_points),
    Program("local autoguide", "AutoNormal over latents of rows: not amortised", autoguide, rows),
]
