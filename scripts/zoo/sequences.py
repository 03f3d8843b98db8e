"""Sequences of several lengths, and a cause with its effects."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import nn

from zoo.autoencoders import Decoder, normal_log_prob
from zoo.exact import normal_grid
from zoo.program import Data, Program, Programs, draws

_STEPS = 4


class DMM(nn.Module):
    """Pyro's deep Markov model, small: steps after a row's end are masked, and a GRU reads backwards."""

    def __init__(self):
        super().__init__()
        self.transition, self.emission = Decoder(1, 12, 1), Decoder(1, 12, 2)
        self.rnn = nn.GRU(2, 8, batch_first=True)
        self.combine, self.out = nn.Linear(1, 8), nn.Linear(8, 2)

    def step(self, before):
        return 0.8 * before + self.transition(before)

    def model(self, x=None, *, lengths=None, batch_size=None):
        pyro.module("dmm", self)
        num = batch_size if x is None else len(x)
        time = torch.arange(_STEPS)
        there = torch.ones(num, _STEPS, dtype=torch.bool) if lengths is None else time < lengths[:, None]
        with pyro.plate("data", num, dim=-1):
            states, before = [], torch.zeros(num, 1)
            for t in range(_STEPS):
                with poutine.mask(mask=there[:, t]):
                    before = pyro.sample(f"z_{t}", dist.Normal(self.step(before), 0.8).to_event(1))
                states.append(before)
            loc = self.emission(torch.stack(states, -2))
            p_x = dist.Normal(loc, 0.5).mask(there[..., None])
            return pyro.sample("x", p_x.to_event(2), obs=x)

    def guide(self, x, *, lengths):
        there = torch.arange(_STEPS) < lengths[:, None]
        summaries = self.rnn((x * there[..., None]).flip(1))[0].flip(1)
        with pyro.plate("data", len(x), dim=-1):
            before = x.new_zeros(len(x), 1)
            for t in range(_STEPS):
                loc, log_scale = self.out((self.combine(before) + summaries[:, t]).tanh()).chunk(2, -1)
                with poutine.mask(mask=there[:, t]):
                    before = pyro.sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def deep_markov() -> Programs:
    dmm = DMM()
    points = torch.linspace(-7, 7, 701, dtype=torch.float64)

    def log_evidence(data):
        """The forward filter on a grid."""
        z = points.float()[:, None]
        with torch.no_grad():
            p_first = torch.distributions.Normal(dmm.step(torch.zeros(1, 1)).double()[0, 0], 0.8)
            moved = torch.distributions.Normal(dmm.step(z).double(), 0.8).log_prob(points) + math.log(14 / 700)
            seen = [normal_log_prob(data["x"][:, t], dmm.emission(z), 0.5) for t in range(_STEPS)]
        forward = p_first.log_prob(points) + math.log(14 / 700) + seen[0]
        for t in range(1, _STEPS):
            top = forward.amax(-1, keepdim=True)
            new = ((forward - top).exp() @ moved.exp()).log() + top + seen[t]
            forward = torch.where((t < data["lengths"])[:, None], new, forward)
        return forward.logsumexp(-1)

    return Programs(dmm.model, dmm.guide, log_evidence=log_evidence)


def walks() -> Data:
    z = draws(300, _STEPS).cumsum(1) * 0.7
    x = torch.stack([z, z.tanh()], -1) + 0.5 * draws(300, _STEPS, 2)
    lengths = torch.randint(1, _STEPS + 1, (300,))
    return {"x": x * (torch.arange(_STEPS) < lengths[:, None])[..., None], "lengths": lengths}


class CEVAE(nn.Module):
    """Louizos et al. (2017): a confounder z of proxies x, a treatment t and an outcome y.

    The guide predicts t and y from x as well, at auxiliary sites, for people whose treatment is not known yet.
    """

    def __init__(self):
        super().__init__()
        self.to_x, self.to_t = Decoder(1, 12, 3), nn.Linear(1, 1)
        self.to_y0, self.to_y1 = nn.Linear(1, 1), nn.Linear(1, 1)
        self.q_t, self.q_y = nn.Linear(3, 1), nn.Linear(4, 1)
        self.q_z = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 2))

    def model(self, x=None, *, t=None, y=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            x = pyro.sample("x", dist.Normal(self.to_x(z), 0.5).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.to_t(z).squeeze(-1)), obs=t)
            loc = torch.where(t.bool(), self.to_y1(z).squeeze(-1), self.to_y0(z).squeeze(-1))
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)
            return x

    def guide(self, x, *, t=None, y=None):
        auxiliary = {"is_auxiliary": True}
        with pyro.plate("data", len(x), dim=-1):
            t = pyro.sample("t", dist.Bernoulli(logits=self.q_t(x).squeeze(-1)), obs=t, infer=auxiliary)
            loc = self.q_y(torch.cat([x, t[..., None]], -1)).squeeze(-1)
            y = pyro.sample("y", dist.Normal(loc, 0.7), obs=y, infer=auxiliary)
            loc, log_scale = self.q_z(torch.cat([x, t[..., None], y[..., None]], -1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def causal() -> Programs:
    both = CEVAE()
    grid = normal_grid(1, width=8.0)

    def log_likelihood(data):
        with torch.no_grad():
            z, t, y = grid.points, data["t"].double()[:, None], data["y"].double()[:, None]
            treated = both.to_t(z).double().T
            loc = torch.where(t.bool(), both.to_y1(z).double().T, both.to_y0(z).double().T)
            given_t = F.logsigmoid(torch.where(t.bool(), treated, -treated))
            given_y = torch.distributions.Normal(loc, 0.5).log_prob(y)
            return normal_log_prob(data["x"], both.to_x(z), 0.5) + given_t + given_y

    return Programs(
        both.model,
        both.guide,
        log_evidence=lambda data: grid.log_evidence(log_likelihood(data)),
        posterior=lambda data: {"z": grid.posterior(log_likelihood(data))},
    )


def treatments() -> Data:
    z = draws(300, 1)
    t = torch.bernoulli((1.5 * z[:, 0]).sigmoid())
    y = z[:, 0] + t * (1 - 0.5 * z[:, 0]) + 0.5 * draws(300)
    return {"x": torch.cat([z, -z, z.sin()], -1) + 0.5 * draws(300, 3), "t": t, "y": y}


PROGRAMS = [
    Program("deep Markov", "sequences of several lengths, masked; a GRU", deep_markov, walks),
    Program("causal", "CEVAE: the guide observes t and y at auxiliary sites", causal, treatments, observed=("t", "y")),
]
