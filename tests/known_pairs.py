"""Pairs of several latents, several observed sites and more, whose posteriors and predictions have closed forms."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_vae import Pair

PARALLEL = {"enumerate": "parallel"}


def rows_of(x, batch_size):
    return batch_size if x is None else len(x)


class Ladder:
    """Two levels, neither called z: top ~ N(0, 1), low ~ N(0.8 top, 0.6), x ~ N(W (top, low) + m, 0.5) in 3 dimensions.

    The guide is exact: q(top | x), then q(low | top, x).
    """

    weight = torch.tensor([[1.0, 0.3], [-0.5, 1.0], [0.2, 0.7]])
    loc = torch.tensor([1.0, -2.0, 0.5])
    prior = torch.tensor([[1.0, 0.8], [0.8, 0.64 + 0.36]])

    def __init__(self):
        self.weight, self.loc, self.prior = (
            t.to(torch.get_default_dtype()) for t in (self.weight, self.loc, self.prior)
        )
        self.pair = Pair(self.model, self.guide)

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(()), 1.0))
            low = pyro.sample("low", dist.Normal(0.8 * top, 0.6))
            loc = torch.stack([top, low], -1) @ self.weight.T + self.loc
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def posterior(self, x):
        precision = self.prior.inverse() + self.weight.T @ self.weight / 0.25
        mean = torch.linalg.solve(precision, self.weight.T @ (x - self.loc).T / 0.25).T
        return mean, precision.inverse()

    def guide(self, x):
        mean, covariance = self.posterior(x)
        gain = covariance[0, 1] / covariance[0, 0]
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(mean[:, 0], covariance[0, 0].sqrt()))
            rest = covariance[1, 1] - gain * covariance[0, 1]
            pyro.sample("low", dist.Normal(mean[:, 1] + gain * (top - mean[:, 0]), rest.sqrt()))

    def predictive(self, x):
        """Mean and covariance of a new row like each."""
        mean, covariance = self.posterior(x)
        return mean @ self.weight.T + self.loc, self.weight @ covariance @ self.weight.T + 0.25 * torch.eye(3)


class Mixture:
    """Four clusters of two columns, which the model or the guide enumerates, or which the guide draws.

    With ``with_obs_mask`` Pyro draws what is missing, else it is masked.
    """

    logits = torch.tensor([0.5, 0.0, -1.0, 0.3])
    loc = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.5, -2.0], [0.0, 0.0]])

    def __init__(self, by="model", family=dist.Categorical, with_obs_mask=False):
        self.by, self.family = by, family
        self.logits, self.loc = (t.to(torch.get_default_dtype()) for t in (self.logits, self.loc))
        model = self.model_with_obs_mask if with_obs_mask else self.model
        self.pair = Pair(model, self.guide, missing="nan")

    def model(self, x=None, *, mask=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            k = pyro.sample("k", self.family(logits=self.logits), infer=PARALLEL if self.by == "model" else {})
            loc = self.loc[k] if self.family is dist.Categorical else k @ self.loc
            fn = dist.Normal(loc, 0.8)
            return pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)

    def model_with_obs_mask(self, x=None, *, mask=None, batch_size=None):
        data, columns = pyro.plate("data", rows_of(x, batch_size), dim=-1), pyro.plate("columns", 2, dim=-2)
        with data:
            k = pyro.sample("k", self.family(logits=self.logits), infer=PARALLEL if self.by == "model" else {})
            number = k if self.family is dist.Categorical else k.argmax(-1)
            with columns:
                fn = dist.Normal(self.loc[number, torch.arange(2)[:, None]], 0.8)
                seen = None if mask is None or x is None else mask.mT
                return pyro.sample("x", fn, obs=None if x is None else x.mT, obs_mask=seen)

    def guide(self, x, *, mask=None):
        if self.by != "model":
            with pyro.plate("data", len(x), dim=-1):
                fn = self.family(logits=self.log_joint(x if mask is None else torch.where(mask, x, torch.nan)))
                pyro.sample("k", fn, infer=PARALLEL if self.by == "guide" else {})

    def log_joint(self, x):
        """Log p(k) p(x observed | k), up to a constant, by Bayes' rule."""
        log_prob = dist.Normal(self.loc, 0.8).log_prob(x.nan_to_num()[:, None])
        return self.logits + torch.where(x.isnan()[:, None], 0.0, log_prob).sum(-1)

    def posterior(self, x):
        return self.log_joint(x).softmax(-1)


class Regression(nn.Module):
    """Global weights with a normal guide, and rows' features as an argument; the guide's means are its parameters."""

    def __init__(self, looks_at_rows=False):
        super().__init__()
        self.mean, self.looks = nn.Parameter(torch.tensor([2.0, -1.0])), looks_at_rows
        self.pair = Pair(self.model, self.guide)

    def model(self, x=None, *, features, batch_size=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal((features * weight).sum(-1), 0.1), obs=x)

    def guide(self, x, *, features):
        shift = x.mean() if self.looks else 0.0
        pyro.sample("weight", dist.Normal(self.mean + shift, 0.05).to_event(1))


class TwoViews:
    """z ~ N(0, 1) is seen in two columns of x and in y, any of which may be missing; the guide is exact."""

    slopes = torch.tensor([1.0, 0.5, 1.5])
    noise = torch.tensor([0.6, 0.4, 0.5])

    def __init__(self, by="mask"):
        self.slopes, self.noise = (t.to(torch.get_default_dtype()) for t in (self.slopes, self.noise))
        model = {"mask": self.model, "obs_mask": self.model_with_obs_mask}[by]
        self.pair = Pair(model, self.guide, missing="nan")

    def model(self, x=None, *, mask=None, y=None, y_mask=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            fn = dist.Normal(z[..., None] * self.slopes[:2], self.noise[:2])
            drawn = pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)
            with poutine.mask(mask=True if y_mask is None else y_mask):
                pyro.sample("y", dist.Normal(z * self.slopes[2], self.noise[2]), obs=y)
            return drawn

    def model_with_obs_mask(self, x=None, *, mask=None, y=None, y_mask=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z * self.slopes[2], self.noise[2]), obs=y, obs_mask=y_mask)
            with pyro.plate("columns", 2, dim=-2):
                fn = dist.Normal(self.slopes[:2, None] * z, self.noise[:2, None])
                seen = None if mask is None or x is None else mask.mT
                return pyro.sample("x", fn, obs=None if x is None else x.mT, obs_mask=seen)

    def guide(self, x, *, mask=None, y=None, y_mask=None):
        parts = [torch.where(mask, x, torch.nan) if mask is not None else x]
        if y is not None:
            parts.append((torch.where(y_mask, y, torch.nan) if y_mask is not None else y)[:, None])
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(*self.posterior(torch.cat(parts, -1))))

    def posterior(self, values):
        """Mean and standard deviation of z given x and, in the third column, y, with NaN where one is missing."""
        slopes, noise = self.slopes[: values.shape[1]], self.noise[: values.shape[1]]
        precision = 1 + torch.where(values.isnan(), 0.0, (slopes / noise) ** 2).sum(-1)
        mean = (values.nan_to_num() * slopes / noise**2).sum(-1) / precision
        return mean, precision.rsqrt()


class Words:
    """A latent of the row, and of each of its three words; x is a count for each word, y a number of the row."""

    def __init__(self):
        self.pair = Pair(self.model, self.guide)

    def model(self, x=None, *, y=None, batch_size=None):
        num = rows_of(x, batch_size)
        data, words = pyro.plate("data", num, dim=-1), pyro.plate("words", 3, dim=-2)
        with data:
            theme = pyro.sample("theme", dist.Normal(torch.zeros(()), 0.1))
            pyro.sample("y", dist.Normal(theme, 0.1), obs=y)
            with words:
                word = pyro.sample("word", dist.Normal(theme, 0.1))
                loc = word + 10.0 * torch.arange(3)[:, None]
                return pyro.sample("x", dist.Normal(loc, 0.1), obs=None if x is None else x.mT)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("theme", dist.Normal(torch.zeros(len(x)), 0.1))
            with pyro.plate("words", 3, dim=-2):
                pyro.sample("word", dist.Normal(x.mT - 10.0 * torch.arange(3)[:, None], 0.1))
