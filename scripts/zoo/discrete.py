"""Programs with discrete latents: summed out, drawn, relaxed, or quantised; and likelihoods of counts and angles."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import itertools
import math

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from pyro.infer import config_enumerate
from torch import nn

from zoo.autoencoders import bernoulli_log_prob, normal_log_prob
from zoo.exact import Gaussian, Grid, normal_grid
from zoo.program import Data, Program, Programs, draws, stored


def gaussian_mixture() -> Programs:
    """The components are summed out in the model, and the guide has nothing to say: pyro.param and closures."""
    start = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])

    @config_enumerate
    def model(x=None, *, mask=None, batch_size=None):
        weights = pyro.param("weights", torch.ones(3) / 3, constraint=dist.constraints.simplex)
        locs = pyro.param("locs", start)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            component = pyro.sample("component", dist.Categorical(weights))
            p_x = dist.Normal(locs[component], scale)
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    def guide(x):
        pass

    def joint(data):
        weights, locs = stored("weights", torch.ones(3) / 3), stored("locs", start)
        scale = stored("scale", torch.tensor(1.0)).double()
        p_x = torch.distributions.Normal(locs.double(), scale)
        log_prob = p_x.log_prob(data["x"].double()[:, None])
        log_prob = log_prob * data["mask"][:, None] if "mask" in data else log_prob
        return weights.double().log() + log_prob.sum(-1)

    def posterior(data):
        weights = joint(data).softmax(-1)
        mean = weights @ torch.arange(3.0).double()
        return {"component": (mean, (weights @ torch.arange(3.0).double().square() - mean**2).sqrt())}

    def imputed(data):
        return {"x": joint(data).softmax(-1) @ stored("locs", start).double()}

    return Programs(
        model, guide, log_evidence=lambda data: joint(data).logsumexp(-1), posterior=posterior, imputed=imputed
    )


def clusters() -> Data:
    centres = torch.tensor([[-2.5, 0.0], [2.5, 0.0], [0.0, 3.0]])
    return {"x": centres[torch.randint(3, (300,))] + 0.7 * draws(300, 2)}


class SemiSupervised(nn.Module):
    """Kingma's M2 with a third of the labels given; where there is none, the class is summed out in the guide."""

    def __init__(self):
        super().__init__()
        self.shift, self.decoder = nn.Linear(3, 6, bias=False), nn.Linear(2, 6)
        self.classify = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
        self.from_x, self.from_y = nn.Linear(6, 4), nn.Linear(3, 4, bias=False)

    def model(self, x=None, *, labels=None, labelled=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(logits=torch.zeros(3)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            if labels is not None:
                with poutine.mask(mask=labelled):
                    noisy = 0.98 * F.one_hot(y, 3).to(z.dtype) + 0.02 / 3
                    pyro.sample("label", dist.Categorical(noisy), obs=labels)
            loc = self.decoder(z) + self.shift(F.one_hot(y, 3).to(z.dtype))
            return pyro.sample("x", dist.Normal(loc, 0.5).to_event(1), obs=x)

    def guide(self, x, *, labels, labelled):
        logits = self.classify(x)
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=labelled), poutine.scale(scale=2.0):  # the classifier learns from labels too
                pyro.sample("label_loss", dist.Categorical(logits=logits), obs=labels, infer={"is_auxiliary": True})
            known = logits + 6 * F.one_hot(labels, 3) * labelled[:, None]
            y = pyro.sample("y", dist.Categorical(logits=known), infer={"enumerate": "parallel"})
            loc, log_scale = (self.from_x(x) + self.from_y(F.one_hot(y, 3).to(x.dtype))).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def semi_supervised() -> Programs:
    both = SemiSupervised()

    def log_evidence(data):
        parts = []
        for k in range(3):
            exact = Gaussian(both.decoder.weight, both.decoder.bias + both.shift.weight[:, k], 0.5)
            right = torch.where(data["labels"] == k, 0.98 + 0.02 / 3, 0.02 / 3).double().log()
            parts.append(exact.log_evidence(data["x"]) + torch.where(data["labelled"], right, 0.0) - math.log(3))
        return torch.stack(parts).logsumexp(0)

    return Programs(both.model, both.guide, log_evidence=log_evidence)


def partly_labelled() -> Data:
    labels, labelled = torch.randint(3, (300,)), torch.arange(300) % 3 == 0
    x = 1.5 * torch.randn(3, 6)[labels] + draws(300, 2) @ (0.7 * torch.randn(2, 6)) + 0.5 * draws(300, 6)
    return {"x": x, "labels": torch.where(labelled, labels, 0), "labelled": labelled}


def hidden_markov() -> Programs:
    """Five steps of a hidden chain, summed out in the model; parameters in Pyro's store."""
    start = {"stay": torch.tensor(0.7), "locs": torch.tensor([-0.5, 0.5]), "scale": torch.tensor(1.0)}

    def model(x=None, *, batch_size=None):
        stay = pyro.param("stay", start["stay"], constraint=dist.constraints.unit_interval)
        locs = pyro.param("locs", start["locs"])
        scale = pyro.param("scale", start["scale"], constraint=dist.constraints.positive)
        matrix = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            states = [pyro.sample("s0", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})]
            for t in range(1, 5):
                p_state = dist.Categorical(matrix[states[-1]])
                states.append(pyro.sample(f"s{t}", p_state, infer={"enumerate": "parallel"}))
            loc = torch.stack(torch.broadcast_tensors(*[locs[state] for state in states]), -1)
            return pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)

    def guide(x):
        pass

    def log_evidence(data):
        stay, locs, scale = (stored(name, value).double() for name, value in start.items())
        matrix = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])]).log()
        emitted = torch.distributions.Normal(locs, scale).log_prob(data["x"].double()[..., None])
        forward = emitted[:, 0] - math.log(2)
        for t in range(1, 5):
            forward = (forward[:, :, None] + matrix).logsumexp(1) + emitted[:, t]
        return forward.logsumexp(-1)

    return Programs(model, guide, log_evidence=log_evidence)


def regimes() -> Data:
    states = [torch.randint(2, (300,))]
    for _ in range(4):
        states.append(torch.where(torch.rand(300) < 0.8, states[-1], 1 - states[-1]))
    return {"x": 3.0 * torch.stack(states, -1) - 1.5 + 0.7 * draws(300, 5)}


class Belief(nn.Module):
    """Four binary latents, drawn and not summed out: a gradient by the score function."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(4))
        self.decoder, self.encoder = nn.Linear(4, 8), nn.Linear(8, 4)

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(logits=self.prior).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(logits=self.encoder(x)).to_event(1))


def score_function() -> Programs:
    both = Belief()
    states = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))

    def exact():
        prior = bernoulli_log_prob(states, both.prior.detach()[None])[:, 0]
        return Grid(states, prior)

    def log_likelihood(data):
        with torch.no_grad():
            return bernoulli_log_prob(data["x"], both.decoder(states))

    def moments(data):
        with torch.no_grad():
            probs = both.decoder(states).sigmoid()
        return exact().moments(probs, probs * (1 - probs))

    return Programs(
        both.model,
        both.guide,
        log_evidence=lambda data: exact().log_evidence(log_likelihood(data)),
        posterior=lambda data: {"z": exact().posterior(log_likelihood(data))},
        moments=moments,
    )


def patterns() -> Data:
    z = torch.bernoulli(torch.full((300, 4), 0.4))
    return {"x": torch.bernoulli((3 * z @ torch.randn(4, 8) - 1).sigmoid())}


def relaxed() -> Programs:
    """A Gumbel-softmax latent with two classes, so that the evidence is an integral over one number."""
    prior = nn.Parameter(torch.zeros(2))
    decoder, encoder = nn.Linear(2, 5), nn.Linear(5, 2)
    temperature = torch.tensor(0.8)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.RelaxedOneHotCategorical(temperature, logits=prior))
            return pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.RelaxedOneHotCategorical(temperature, logits=encoder(x)))

    def grid():
        noise = torch.linspace(-18, 18, 4001, dtype=torch.float64)  # the difference of two Gumbels is logistic
        first = ((prior[0] - prior[1]).detach().double() + noise).div(temperature).sigmoid()
        log_mass = -noise - 2 * F.softplus(-noise) + math.log(36 / 4000)
        return Grid(torch.stack([first, 1 - first], -1), log_mass)

    def log_likelihood(data):
        with torch.no_grad():
            return normal_log_prob(data["x"], decoder(grid().points.float()), 0.5)

    return Programs(
        model,
        guide,
        log_evidence=lambda data: grid().log_evidence(log_likelihood(data)),
        posterior=lambda data: {"z": grid().posterior(log_likelihood(data))},
    )


def two_kinds() -> Data:
    return {"x": torch.randn(2, 5)[torch.randint(2, (300,))] + 0.5 * draws(300, 5)}


class Quantised(nn.Module):
    """VQ-VAE: the nearest of eight codes, straight through, with the commitment as a factor of the guide."""

    def __init__(self):
        super().__init__()
        self.codes = nn.Parameter(torch.randn(8, 2))
        self.decoder, self.encoder = nn.Linear(2, 4), nn.Linear(4, 2)

    def model(self, x=None, *, batch_size=None):
        near_a_code = dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(8)), dist.Normal(self.codes.detach(), 0.1).to_event(1)
        )
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", near_a_code)
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        raw = self.encoder(x)
        code = self.codes[(raw[..., None, :] - self.codes).square().sum(-1).argmin(-1)]
        with pyro.plate("data", len(x), dim=-1):
            distance = (code - raw.detach()).square().sum(-1) + 0.25 * (raw - code.detach()).square().sum(-1)
            pyro.factor("commitment", distance, has_rsample=True)
            pyro.sample("z", dist.Delta(raw + (code - raw).detach()).to_event(1))


def quantised() -> Programs:
    both = Quantised()

    def log_evidence(data):
        with torch.no_grad():
            parts = [
                Gaussian(0.1 * both.decoder.weight, both.decoder(code), 0.5).log_evidence(data["x"])
                for code in both.codes
            ]
        return torch.stack(parts).logsumexp(0) - math.log(8)

    return Programs(both.model, both.guide, log_evidence=log_evidence)


def around_codes() -> Data:
    return {"x": 1.5 * torch.randn(8, 4)[torch.randint(8, (300,))] + 0.5 * draws(300, 4)}


def zero_inflated() -> Programs:
    """Counts with too many zeros, one latent: lambdas and closures."""
    decoder = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 4))
    encoder = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, 2))
    gate = nn.Parameter(torch.tensor(-1.0))

    def model(x=None, *, mask=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            counts = dist.ZeroInflatedPoisson(decoder(z).exp(), gate_logits=gate)
            return pyro.sample("x", (counts if mask is None else counts.mask(mask)).to_event(1), obs=x)

    def guide(x, *, mask=None):
        loc, log_scale = encoder(x.log1p() if mask is None else x.log1p() * mask).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    grid = normal_grid(1, width=8.0)

    def log_likelihood(data):
        with torch.no_grad():
            rate, zero = decoder(grid.points).double().exp(), gate.detach().double().sigmoid()
            x = data["x"].double()[:, None]
            poisson = x * rate.log() - rate - torch.lgamma(x + 1)
            at_zero = (zero + (1 - zero) * (-rate).exp()).log()
            log_prob = torch.where(x == 0, at_zero, (1 - zero).log() + poisson)
            return (log_prob * data["mask"][:, None] if "mask" in data else log_prob).sum(-1)

    def imputed(data):
        weights = (log_likelihood(data) + grid.log_mass).softmax(-1)
        with torch.no_grad():
            return {"x": weights @ ((1 - gate.sigmoid()) * decoder(grid.points).exp()).double()}

    def moments(data):
        with torch.no_grad():
            rate, zero = decoder(grid.points).double().exp(), gate.detach().double().sigmoid()
        mean = (1 - zero) * rate
        return grid.moments(mean, mean * (1 + zero * rate))

    return Programs(
        model,
        guide,
        log_evidence=lambda data: grid.log_evidence(log_likelihood(data)),
        posterior=lambda data: {"z": grid.posterior(log_likelihood(data))},
        moments=moments,
        imputed=imputed,
    )


def zeros_and_counts() -> Data:
    counts = torch.poisson((0.5 * draws(300, 1) + torch.tensor([0.5, 1.0, 0.0, 1.5])).exp())
    return {"x": counts * torch.bernoulli(torch.full((300, 4), 0.7))}


def von_mises() -> Programs:
    """A direction, seen several times: no reparametrised draws, and a support that closes on itself."""
    start = {"noise": torch.tensor(2.0), "spread": torch.tensor(1.0)}

    def model(x=None, *, batch_size=None):
        noise = pyro.param("noise", start["noise"], constraint=dist.constraints.positive)
        spread = pyro.param("spread", start["spread"], constraint=dist.constraints.positive)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            angle = pyro.sample("angle", dist.VonMises(torch.zeros(()), spread))
            return pyro.sample("x", dist.VonMises(angle[..., None], noise).expand([*angle.shape, 3]).to_event(1), obs=x)

    def guide(x):
        sharpness = pyro.param("sharpness", torch.tensor(3.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("angle", dist.VonMises(torch.atan2(x.sin().sum(-1), x.cos().sum(-1)), sharpness))

    def resultant(data):
        """The length and direction of the sum of all that points somewhere."""
        noise, spread = (stored(name, value).double() for name, value in start.items())
        x = data["x"].double()
        across, along = noise * x.sin().sum(-1), spread + noise * x.cos().sum(-1)
        return noise, spread, (across.square() + along.square()).sqrt(), torch.atan2(across, along)

    def log_bessel(concentration):
        return torch.special.i0e(concentration).log() + concentration

    def log_evidence(data):
        noise, spread, length, _ = resultant(data)
        return log_bessel(length) - log_bessel(spread) - 3 * (math.log(2 * math.pi) + log_bessel(noise))

    return Programs(model, guide, log_evidence=log_evidence)


def directions() -> Data:
    angle = torch.distributions.VonMises(0.0, 1.0).sample((300, 1))
    return {"x": torch.distributions.VonMises(angle.expand(300, 3), 3.0).sample()}


PROGRAMS = [
    Program("gaussian mixture", "components summed out in the model, an empty guide", gaussian_mixture, clusters),
    Program(
        "semi-supervised",
        "M2: q(y | x) summed out in the guide, a third of the labels given",
        semi_supervised,
        partly_labelled,
        observed=("labels",),
    ),
    Program("hidden Markov", "five steps summed out in the model", hidden_markov, regimes),
    Program("score function", "binary latents, drawn", score_function, patterns),
    Program("Gumbel", "a relaxed categorical latent", relaxed, two_kinds),
    Program("vector-quantised", "straight through, commitment as a factor of the guide", quantised, around_codes),
    Program("zero-inflated", "counts with too many zeros; closures", zero_inflated, zeros_and_counts),
    Program("von Mises", "directions; score function, no reparametrised draws", von_mises, directions),
]
