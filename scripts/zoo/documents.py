"""Topics, counts and shares: latents on the simplex, on the interval and on the positive half line."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from torch import lgamma, nn

from zoo.autoencoders import by_grid, normal_log_prob
from zoo.exact import Grid, uniform_grid
from zoo.program import Data, Program, Programs, draws, stored

_TOPICS = torch.tensor([[0.4, 0.4, 0.1, 0.05, 0.05], [0.05, 0.05, 0.1, 0.4, 0.4], [0.1, 0.1, 0.6, 0.1, 0.1]])


def topic_model() -> Programs:
    """Latent Dirichlet allocation: a plate of six words around each document's x, their topics summed out."""
    start = 0.5 * _TOPICS + 0.1
    network = nn.Sequential(nn.Linear(5, 12), nn.Softplus(), nn.Linear(12, 3), nn.Softplus())

    def model(x=None, *, batch_size=None):
        topics = pyro.param("topics", start, constraint=dist.constraints.simplex)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("words", 6, dim=-2):
                topic = pyro.sample("topic", dist.Categorical(shares), infer={"enumerate": "parallel"})
                return pyro.sample("x", dist.Categorical(topics[topic]), obs=None if x is None else x.T)

    def guide(x):
        pyro.module("network", network)
        counts = F.one_hot(x.long(), 5).sum(-2).to(torch.get_default_dtype())
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("shares", dist.Dirichlet(network(counts) + 0.3))

    assignments = torch.tensor(list(itertools.product(range(3), repeat=6)))
    numbers = F.one_hot(assignments, 3).sum(1).double()  # words of each topic
    log_prior = lgamma(torch.tensor(3.0)) - lgamma(torch.tensor(9.0)) + lgamma(1 + numbers).sum(-1)

    def log_joint(data):
        topics = stored("topics", start).double().log()
        words = topics[assignments[None], data["x"].long()[:, None]]  # (N, 729, 6)
        return words.sum(-1) + log_prior

    def posterior(data):
        weights = log_joint(data).softmax(-1)
        mean, square = weights @ ((1 + numbers) / 9), weights @ ((1 + numbers) * (2 + numbers) / 90)
        return {"shares": (mean, (square - mean**2).sqrt())}

    return Programs(model, guide, log_evidence=lambda data: log_joint(data).logsumexp(-1), posterior=posterior)


def words() -> Data:
    shares = torch.distributions.Dirichlet(torch.ones(3)).sample((300,))
    return {"x": torch.multinomial(shares @ _TOPICS, 6, replacement=True)}


class ProdLDA(nn.Module):
    """Pyro's autoencoding topic model, with batch norm and dropout; the number of words is the same for all rows."""

    def __init__(self):
        super().__init__()
        self.beta, self.normal = nn.Linear(2, 5, bias=False), nn.BatchNorm1d(5, affine=False)
        self.fc, self.drop = nn.Linear(5, 16), nn.Dropout(0.1)
        self.loc, self.log_scale = nn.Linear(16, 2), nn.Linear(16, 2)
        self.norm_loc = nn.BatchNorm1d(2, affine=False)

    def shares(self, logtheta):
        return F.softmax(self.normal(self.beta(F.softmax(logtheta, -1))), -1)

    def model(self, x=None, *, num_words, batch_size=None):
        pyro.module("prodlda", self)
        with pyro.plate("data", batch_size if x is None else x.shape[0], dim=-1):
            logtheta = pyro.sample("logtheta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Multinomial(num_words, self.shares(logtheta)), obs=x)

    def guide(self, x):
        hidden = self.drop(F.softplus(self.fc(x)))
        with pyro.plate("data", x.shape[0], dim=-1):
            loc, scale = self.norm_loc(self.loc(hidden)), (0.5 * self.log_scale(hidden)).exp()
            pyro.sample("logtheta", dist.Normal(loc, scale).to_event(1))


def prod_lda() -> Programs:
    both = ProdLDA()

    def log_prob(data, z):
        was = both.training
        shares = both.eval().shares(z).double()
        both.train(was)
        x = data["x"].double()
        return x @ shares.log().T + (lgamma(x.sum(-1) + 1) - lgamma(x + 1).sum(-1))[:, None]

    return by_grid((both.model, both.guide), log_prob, "logtheta")


def counts_of_words() -> Data:
    shares = torch.distributions.Dirichlet(0.5 * torch.ones(3)).sample((300,))
    return {"x": torch.distributions.Multinomial(20, shares @ _TOPICS).sample(), "num_words": 20}


def sparse_gamma() -> Programs:
    """Pyro's deep exponential family, small: gamma latents on two levels, and weights that belong to all rows."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("weights", 4, dim=-1):
            upper = pyro.sample("upper", dist.Gamma(torch.tensor(1.0), 1.0))
        with pyro.plate("more_weights", 10, dim=-1):
            lower = pyro.sample("lower", dist.Gamma(torch.tensor(1.0), 0.5))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            top = pyro.sample("top", dist.Gamma(torch.ones(2), 1.0).to_event(1))
            bottom = pyro.sample("bottom", dist.Gamma(1.0, 1.0 / (0.1 + top @ upper.reshape(2, 2))).to_event(1))
            return pyro.sample("x", dist.Poisson(0.1 + bottom @ lower.reshape(2, 5)).to_event(1), obs=x)

    network = nn.Sequential(nn.Linear(5, 16), nn.Softplus(), nn.Linear(16, 8), nn.Softplus())

    def guide(x):
        pyro.module("network", network)
        for name, number in (("upper", 4), ("lower", 10)):
            shape = pyro.param(f"{name}_shape", 3 * torch.ones(number), constraint=dist.constraints.positive)
            mean = pyro.param(f"{name}_mean", torch.linspace(0.5, 1.5, number), constraint=dist.constraints.positive)
            with pyro.plate("weights" if name == "upper" else "more_weights", number, dim=-1):
                pyro.sample(name, dist.Gamma(shape, shape / mean))
        with pyro.plate("data", len(x), dim=-1):
            top, top_mean, bottom, bottom_mean = (network(x.log1p()) + 0.1).chunk(4, -1)
            pyro.sample("top", dist.Gamma(1 + top, (1 + top) / top_mean).to_event(1))
            pyro.sample("bottom", dist.Gamma(1 + bottom, (1 + bottom) / bottom_mean).to_event(1))

    return Programs(model, guide)


def events() -> Data:
    return {"x": torch.poisson(0.1 + torch.distributions.Gamma(1.0, 1.0).sample((300, 2)) @ (3 * torch.rand(2, 5)))}


def gamma_poisson() -> Programs:
    """A rate shared by four counts, conjugate; functions with pyro.param."""
    start = {"shape": torch.tensor(2.0), "rate": torch.tensor(1.0), "size": torch.tensor([1.0, 0.5, 2.0, 1.0])}

    def parameter(name):
        return pyro.param(name, start[name], constraint=dist.constraints.positive)

    def model(x=None, *, batch_size=None):
        shape, rate, size = (parameter(name) for name in start)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            intensity = pyro.sample("intensity", dist.Gamma(shape, rate))
            return pyro.sample("x", dist.Poisson(intensity[..., None] * size).to_event(1), obs=x)

    def guide(x):
        prior = pyro.param("prior", torch.tensor([1.0, 1.0]), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("intensity", dist.Gamma(prior[0] + x.sum(-1), prior[1] + 3.0))

    def numbers(data):
        shape, rate, size = (stored(name, value).double() for name, value in start.items())
        x = data["x"].double()
        return shape, rate, size, x, shape + x.sum(-1), rate + size.sum()

    def log_evidence(data):
        shape, rate, size, x, after, rate_after = numbers(data)
        constant = shape * rate.log() - lgamma(shape) + (x * size.log() - lgamma(x + 1)).sum(-1)
        return constant + lgamma(after) - after * rate_after.log()

    def posterior(data):
        _, _, _, _, after, rate_after = numbers(data)
        return {"intensity": (after / rate_after, after.sqrt() / rate_after)}

    def moments(data):
        shape, rate, size, *_ = numbers(data)
        mean = shape / rate * size
        return mean, (mean + shape / rate**2 * size**2).sqrt()

    return Programs(model, guide, log_evidence=log_evidence, posterior=posterior, moments=moments)


def accidents() -> Data:
    rate = torch.distributions.Gamma(3.0, 1.0).sample((300, 1))
    return {"x": torch.poisson(rate * torch.tensor([1.0, 0.5, 2.0, 1.5]))}


def beta_binomial() -> Programs:
    """A share seen through three binomial counts: a guide with a network for a Beta."""
    trials = torch.tensor([4.0, 6.0, 10.0])
    network = nn.Sequential(nn.Linear(3, 12), nn.Softplus(), nn.Linear(12, 2), nn.Softplus())
    prior = nn.Parameter(torch.tensor([0.5, 0.5]))

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            share = pyro.sample("share", dist.Beta(*prior.exp()))
            return pyro.sample("x", dist.Binomial(trials, share[..., None]).to_event(1), obs=x)

    def guide(x):
        a, b = (network(x) + 0.2).unbind(-1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("share", dist.Beta(a, b))

    def log_beta(a, b):
        return lgamma(a) + lgamma(b) - lgamma(a + b)

    def after(data):
        a, b = prior.detach().double().exp()
        total = data["x"].double().sum(-1)
        return a, b, a + total, b + trials.sum() - total

    def log_evidence(data):
        a, b, c, d = after(data)
        x = data["x"].double()
        ways = (lgamma(trials + 1) - lgamma(x + 1) - lgamma(trials - x + 1)).sum(-1)
        return ways + log_beta(c, d) - log_beta(a, b)

    def posterior(data):
        _, _, c, d = after(data)
        return {"share": (c / (c + d), (c * d / (c + d + 1)).sqrt() / (c + d))}

    def moments(data):
        a, b, *_ = after(data)
        variance = trials * a * b * (a + b + trials) / ((a + b).square() * (a + b + 1))
        return trials * a / (a + b), variance.sqrt()

    return Programs(model, guide, log_evidence=log_evidence, posterior=posterior, moments=moments)


def shares_of_trials() -> Data:
    share = torch.distributions.Beta(2.0, 3.0).sample((300, 1))
    return {"x": torch.distributions.Binomial(torch.tensor([4.0, 6.0, 10.0]), share).sample()}


def dirichlet_multinomial() -> Programs:
    """A composition, seen through a count of each part."""
    network = nn.Sequential(nn.Linear(4, 12), nn.Softplus(), nn.Linear(12, 4), nn.Softplus())
    prior = nn.Parameter(torch.zeros(4))

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            shares = pyro.sample("shares", dist.Dirichlet(prior.exp()))
            return pyro.sample("x", dist.Multinomial(12, shares), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("shares", dist.Dirichlet(network(x) + 0.2))

    def log_evidence(data):
        alpha, x = prior.detach().double().exp(), data["x"].double()
        ways = lgamma(torch.tensor(13.0)).double() - lgamma(x + 1).sum(-1)
        normaliser = lgamma(alpha.sum()) - lgamma(alpha.sum() + 12)
        return ways + normaliser + (lgamma(alpha + x) - lgamma(alpha)).sum(-1)

    def posterior(data):
        after = prior.detach().double().exp() + data["x"].double()
        total = after.sum(-1, keepdim=True)
        mean = after / total
        return {"shares": (mean, (mean * (1 - mean) / (total + 1)).sqrt())}

    return Programs(model, guide, log_evidence=log_evidence, posterior=posterior)


def compositions() -> Data:
    shares = torch.distributions.Dirichlet(torch.tensor([2.0, 1.0, 1.0, 0.5])).sample((300,))
    return {"x": torch.distributions.Multinomial(12, shares).sample()}


def stick_breaking() -> Programs:
    """Three shares by breaking a stick twice, with Kumaraswamy posteriors (Nalisnick & Smyth, 2017)."""
    decoder = nn.Linear(3, 6)
    encoder = nn.Sequential(nn.Linear(6, 16), nn.Softplus(), nn.Linear(16, 4))

    def broken(sticks):
        left = torch.cat([torch.ones_like(sticks[..., :1]), (1 - sticks).cumprod(-1)], -1)
        return left * torch.cat([sticks, torch.ones_like(sticks[..., :1])], -1)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            sticks = pyro.sample("sticks", dist.Beta(torch.ones(2), 2.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(broken(sticks)), 0.5).to_event(1), obs=x)

    def guide(x):
        a, b = (1 + 4 * encoder(x).sigmoid()).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("sticks", dist.Kumaraswamy(a, b).to_event(1))

    points = uniform_grid(2, 180, 0.0, 1.0)
    grid = Grid(points, (2 * (1 - points)).log().sum(-1) - 2 * math.log(180))

    def log_likelihood(data):
        with torch.no_grad():
            return normal_log_prob(data["x"], decoder(broken(points.float())), 0.5)

    return Programs(
        model,
        guide,
        log_evidence=lambda data: grid.log_evidence(log_likelihood(data)),
        posterior=lambda data: {"sticks": grid.posterior(log_likelihood(data))},
    )


def mixed_parts() -> Data:
    shares = torch.distributions.Dirichlet(torch.ones(3)).sample((300,))
    return {"x": shares @ (2 * torch.randn(3, 6)) + 0.5 * draws(300, 6)}


PROGRAMS = [
    Program("topic model", "a plate of words at dim -2, topics summed out", topic_model, words),
    Program("ProdLDA", "Pyro's autoencoding topic model; a number of words for all rows", prod_lda, counts_of_words),
    Program("sparse gamma", "deep exponential family, weights that belong to all rows", sparse_gamma, events),
    Program("gamma-Poisson", "a positive latent; pyro.param", gamma_poisson, accidents),
    Program("beta-binomial", "a latent on the interval", beta_binomial, shares_of_trials),
    Program("Dirichlet", "a latent on the simplex", dirichlet_multinomial, compositions),
    Program("stick-breaking", "Kumaraswamy posteriors of sticks", stick_breaking, mixed_parts),
]
