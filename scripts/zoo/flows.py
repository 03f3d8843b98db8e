"""Normalising flows by zuko on either side, as in Pyro's tutorials."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from torch import nn

from zoo.autoencoders import Decoder, Encoder, by_grid, normal_log_prob
from zoo.exact import Grid, uniform_grid
from zoo.program import Data, Program, Programs, draws


class FlowPrior(nn.Module):
    """Pyro's tutorial: the prior is a flow, whose draws come with their density."""

    def __init__(self):
        super().__init__()
        self.prior = zuko.flows.MAF(features=2, transforms=2, hidden_features=(16,))
        self.decoder, self.encoder = Decoder(2, 16, 4), Encoder(2, 16, 4)

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", ZukoToPyro(self.prior()))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(*self.encoder(x)).to_event(1))


def flow_prior() -> Programs:
    both = FlowPrior()
    points = uniform_grid(2, 160, -7.0, 7.0)

    def grid():
        with torch.no_grad():
            log_prob = both.prior().log_prob(points.float()).double()
        return Grid(points, log_prob + 2 * torch.tensor(14 / 160).double().log())

    def log_likelihood(data):
        with torch.no_grad():
            return normal_log_prob(data["x"], both.decoder(points.float()), 0.5)

    return Programs(
        both.model,
        both.guide,
        log_evidence=lambda data: grid().log_evidence(log_likelihood(data)),
        posterior=lambda data: {"z": grid().posterior(log_likelihood(data))},
    )


def flow_guide() -> Programs:
    """The posterior is a flow that is given the row: functions over modules."""
    decoder, flow = Decoder(2, 16, 4), zuko.flows.MAF(features=2, context=4, transforms=2, hidden_features=(16,))

    def model(x=None, *, batch_size=None):
        pyro.module("decoder", decoder)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        pyro.module("flow", flow)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", ZukoToPyro(flow(x)))

    return by_grid((model, guide), lambda data, z: normal_log_prob(data["x"], decoder(z), 0.5))


def rings() -> Data:
    z = draws(300, 2)
    return {"x": torch.cat([z, z.prod(-1, keepdim=True), z.norm(dim=-1, keepdim=True)], -1) + 0.5 * draws(300, 4)}


PROGRAMS = [
    Program("flow prior", "a masked autoregressive flow by zuko as the prior", flow_prior, rings),
    Program("flow guide", "a conditional flow by zuko as the guide", flow_guide, rings),
]
