"""Programs with networks on both sides, as in Pyro's VAE examples; with two latents the evidence is a sum on a grid."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN204, D101, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor, nn

from zoo.exact import normal_grid
from zoo.program import Data, Program, Programs, draws


def bits(num: int = 300, size: int = 16) -> Data:
    z = draws(num, 2)
    return {"x": torch.bernoulli((2.0 * z @ torch.randn(2, size) - 0.5).sigmoid())}


def by_grid(programs, log_prob, site="z") -> Programs:
    """Adds the answers for two standard normal latents, from ``log_prob(data, z)``: ``(N, G)`` for z ``(G, 2)``."""
    model, guide = programs
    grid = normal_grid(2)

    def log_likelihood(data):
        with torch.no_grad():
            return log_prob(data, grid.points)

    return Programs(
        model,
        guide,
        log_evidence=lambda data: grid.log_evidence(log_likelihood(data)),
        posterior=lambda data: {site: grid.posterior(log_likelihood(data))},
    )


def bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Log-probability log p(x | z) of bits ``(N, D)`` at logits ``(G, D)``: ``(N, G)``."""
    return x.double() @ logits.double().T - F.softplus(logits.double()).sum(-1)


def normal_log_prob(x: Tensor, loc: Tensor, scale: float) -> Tensor:
    """Log-density log p(x | z) of rows ``(N, D)`` at means ``(G, D)``: ``(N, G)``."""
    x, loc = x.double(), loc.double()
    square = x.square().sum(-1)[:, None] + loc.square().sum(-1) - 2 * x @ loc.T
    return -0.5 * square / scale**2 - x.shape[1] * (torch.tensor(scale).log() + 0.9189385332046727)


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, size=16):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(z_dim, hidden_dim), nn.Linear(hidden_dim, size)

    def forward(self, z):
        return self.fc2(F.softplus(self.fc1(z)))


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, size=16):
        super().__init__()
        self.fc1 = nn.Linear(size, hidden_dim)
        self.fc21, self.fc22 = nn.Linear(hidden_dim, z_dim), nn.Linear(hidden_dim, z_dim)

    def forward(self, x):
        hidden = F.softplus(self.fc1(x))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class VAE(nn.Module):
    """Pyro's example: one module with both networks, whose methods are the programs."""

    def __init__(self, z_dim=2, hidden_dim=24):
        super().__init__()
        self.encoder, self.decoder = Encoder(z_dim, hidden_dim), Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x=None, *, batch_size=None):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", batch_size if x is None else x.shape[0], dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(self.z_dim), torch.ones(self.z_dim)).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder.forward(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0], dim=-1):
            z_loc, z_scale = self.encoder.forward(x)
            pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))


def methods() -> Programs:
    vae = VAE()
    return by_grid((vae.model, vae.guide), lambda data, z: bernoulli_log_prob(data["x"], vae.decoder(z)))


class CountedVAE(VAE):
    """The weight of the KL rises with a count kept in Python."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def model(self, x=None, *, batch_size=None):
        if self.training and x is not None:
            self.steps += 1
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            with poutine.scale(scale=self.annealing()):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        z_loc, z_scale = self.encoder(x)
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.annealing()):
            pyro.sample("z", dist.Normal(z_loc, z_scale).to_event(1))

    def annealing(self):
        return min(1.0, 0.1 + self.steps / 20)


def annealing_in_python() -> Programs:
    vae = CountedVAE()
    return by_grid((vae.model, vae.guide), lambda data, z: bernoulli_log_prob(data["x"], vae.decoder(z)))


class BufferedVAE(CountedVAE):
    """The same with the count in a buffer, which a graph can follow."""

    def __init__(self):
        super().__init__()
        del self.steps
        self.register_buffer("steps", torch.zeros(()))

    def annealing(self):
        return (0.1 + self.steps / 20).clamp(max=1.0)


def annealing_in_a_buffer() -> Programs:
    vae = BufferedVAE()
    return by_grid((vae.model, vae.guide), lambda data, z: bernoulli_log_prob(data["x"], vae.decoder(z)))


class Conditional(nn.Module):
    """p(x | z, y) and q(z | x, y) by networks that take a one-hot label along with their input."""

    def __init__(self):
        super().__init__()
        self.decoder, self.encoder = Decoder(2 + 3, 24), Encoder(2, 24, 16 + 3)

    def logits(self, z, labels):
        y = F.one_hot(labels, 3).to(z.dtype)
        return self.decoder(torch.cat([z, y.expand(*z.shape[:-1], 3)], -1))

    def model(self, x=None, *, labels, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.logits(z, labels)).to_event(1), obs=x)

    def guide(self, x, *, labels):
        y = F.one_hot(labels, 3).to(x.dtype)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(*self.encoder(torch.cat([x, y], -1))).to_event(1))


def conditional() -> Programs:
    both = Conditional()

    def log_prob(data, z):
        classes = [bernoulli_log_prob(data["x"], both.logits(z, torch.full((len(z),), k))) for k in range(3)]
        return torch.stack(classes)[data["labels"], torch.arange(len(data["x"]))]

    return by_grid((both.model, both.guide), log_prob)


def labelled_bits() -> Data:
    labels = torch.randint(3, (300,))
    logits = 1.5 * draws(300, 2) @ torch.randn(2, 16) + 1.5 * torch.randn(3, 16)[labels]
    return {"x": torch.bernoulli(logits.sigmoid()), "labels": labels}


def ladder() -> Programs:
    """Two levels of one latent each, neither called z, the lower inferred first."""
    to_bottom, to_x, up, bridge = Decoder(1, 8, 1), Decoder(1, 16, 6), Encoder(1, 16, 6), Encoder(1, 8, 1)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            bottom = pyro.sample("bottom", dist.Normal(top + to_bottom(top), 0.6).to_event(1))
            return pyro.sample("x", dist.Normal(to_x(bottom), 0.5).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            bottom = pyro.sample("bottom", dist.Normal(*up(x)).to_event(1))
            pyro.sample("top", dist.Normal(*bridge(bottom)).to_event(1))

    grid = normal_grid(2, 220)  # (top, bottom), with the bottom's prior given the top put in below

    def log_likelihood(data):
        with torch.no_grad():
            top, bottom = grid.points[:, :1], grid.points[:, 1:]
            standard = normal_log_prob(torch.zeros(1, 1), bottom, 1.0)[0]
            given_top = torch.distributions.Normal(top + to_bottom(top), 0.6).log_prob(bottom)[:, 0]
            return normal_log_prob(data["x"], to_x(bottom), 0.5) + given_top - standard

    def posterior(data):
        mean, sd = grid.posterior(log_likelihood(data))
        return {"top": (mean[:, :1], sd[:, :1]), "bottom": (mean[:, 1:], sd[:, 1:])}

    return Programs(
        model, guide, log_evidence=lambda data: grid.log_evidence(log_likelihood(data)), posterior=posterior
    )


def curves() -> Data:
    z = draws(300, 1)
    return {"x": torch.cat([z, z.sin(), z.cos(), 0.5 * z**2, -z, z.tanh()], -1) + 0.5 * draws(300, 6)}


class Images(nn.Module):
    """Small images, convolutions on either side."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
        self.decoder = nn.Sequential(
            nn.Linear(2, 64), nn.ReLU(), nn.Unflatten(1, (4, 4, 4)), nn.ConvTranspose2d(4, 1, 4, stride=2, padding=1)
        )

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def images() -> Programs:
    both = Images()
    return by_grid(
        (both.model, both.guide),
        lambda data, z: bernoulli_log_prob(data["x"].flatten(1), both.decoder(z).flatten(1)),
    )


def small_images() -> Data:
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    place = 3.5 + 1.5 * draws(300, 2)
    square = (rows - place[:, :1, None]) ** 2 + (columns - place[:, 1:, None]) ** 2
    return {"x": torch.bernoulli((3 - 0.6 * square).sigmoid())[:, None]}


class Normalised(nn.Module):
    """Batch norm in encoder and decoder; the last batch of an epoch has one row."""

    def __init__(self, extra):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 24), extra(24), nn.ReLU(), nn.Linear(24, 4))
        self.decoder = nn.Sequential(nn.Linear(2, 24), extra(24), nn.ReLU(), nn.Linear(24, 16))

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def answers(self) -> Programs:
        def log_prob(data, z):
            was = self.decoder.training
            logits = self.decoder.eval()(z)
            self.decoder.train(was)
            return bernoulli_log_prob(data["x"], logits)

        return by_grid((self.model, self.guide), log_prob)


def batch_norm() -> Programs:
    return Normalised(nn.BatchNorm1d).answers()


def dropout() -> Programs:
    return Normalised(lambda _: nn.Dropout(0.2)).answers()


class Attention(nn.Module):
    """Rows are five points in the plane in any order; an attention layer looks at them together."""

    def __init__(self):
        super().__init__()
        self.lift, self.out = nn.Linear(2, 8), nn.Linear(8, 4)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.decoder = Decoder(2, 16, 2)

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = self.decoder(z).unsqueeze(-2).expand(*z.shape[:-1], 5, 2)
            return pyro.sample("x", dist.Normal(loc, 0.7).to_event(2), obs=x)

    def guide(self, x):
        hidden = self.lift(x)
        hidden = hidden + self.attention(hidden, hidden, hidden, need_weights=False)[0]
        loc, log_scale = self.out(hidden.mean(-2)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def attention() -> Programs:
    both = Attention()

    def log_prob(data, z):
        loc = both.decoder(z)
        return sum(normal_log_prob(data["x"][:, point], loc, 0.7) for point in range(5))

    return by_grid((both.model, both.guide), log_prob)


def point_sets() -> Data:
    return {"x": draws(300, 1, 2) + 0.7 * draws(300, 5, 2)}


PROGRAMS = [
    Program("vae", "Pyro's example: methods of one module with two networks", methods, bits),
    Program("conditional", "labels, one-hot, for both networks", conditional, labelled_bits),
    Program("ladder", "two levels, inferred from below; no site z", ladder, curves),
    Program("images", "convolutions, event (1, 8, 8)", images, small_images),
    Program("batch norm", "in both networks, a last batch of one row", batch_norm, lambda: bits(321)),
    Program("dropout", "in both networks", dropout, bits),
    Program("attention", "sets of points, event (5, 2)", attention, point_sets),
    Program("annealing in Python", "weight of the KL from an attribute that is counted up", annealing_in_python, bits),
    Program("annealing in a buffer", "the same from a buffer", annealing_in_a_buffer, bits),
]
