"""Linear-Gaussian programs in several styles: everything about them is known in closed form."""
# Programs as users write them, and Pyro's types are narrower than what it takes:
# ruff: noqa: ANN001, ANN201, ANN202, ANN205, D101, D102, D103
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import functools
import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import nn

from zoo.exact import Gaussian, Grid
from zoo.program import Data, Program, Programs, draws, stored

_WEIGHT = torch.tensor([[1.0, 0.0], [0.8, -0.5], [0.0, 1.0], [-0.6, 0.6]])
_LOC = torch.tensor([1.0, 0.0, -1.0, 0.5])


def rows(num: int = 300) -> Data:
    return {"x": draws(num, 2) @ _WEIGHT.T + _LOC + 0.5 * draws(num, 4)}


class LinearModel(nn.Module):
    """The model x = W z + m + s e, a module."""

    def __init__(self, plate=None) -> None:
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.plate = plate or self.whole_plate

    @staticmethod
    def whole_plate(x, batch_size):
        return pyro.plate("data", batch_size if x is None else len(x), dim=-1)

    def forward(self, x=None, *, batch_size=None):
        pyro.module("linear_model", self)
        with self.plate(x, batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z), self.log_scale.exp()).to_event(1), obs=x)

    def exact(self) -> Gaussian:
        return Gaussian(self.decoder.weight, self.decoder.bias, self.log_scale.exp())

    def programs(self, guide, model=None) -> Programs:
        return Programs(
            self if model is None else model,
            guide,
            log_evidence=lambda data: self.exact().log_evidence(data["x"]),
            posterior=lambda data: {"z": self.exact().posterior(data["x"])},
            moments=lambda data: self.exact().moments(),
        )


class LinearGuide(nn.Module):
    def __init__(self, plate=None) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 4)
        self.plate = plate or LinearModel.whole_plate

    def forward(self, x):
        pyro.module("linear_guide", self)
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with self.plate(x, None):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def linear_gaussian() -> Programs:
    return LinearModel().programs(LinearGuide())


def exact_posterior() -> Programs:
    """The guide is the posterior itself, worked out from the model's own weights: two functions over one module."""
    parts = LinearModel()

    def model(x=None, *, batch_size=None):
        return parts(x, batch_size=batch_size)

    def guide(x):
        weight, noise = parts.decoder.weight, parts.log_scale.mul(2).exp()
        precision = torch.eye(2) + weight.T @ weight / noise
        loc = torch.linalg.solve(precision, ((x - parts.decoder.bias) @ weight / noise).T).T
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, precision_matrix=precision))

    return parts.programs(guide, model)


class Scaled:
    """Model and guide as methods of a plain class, all scaled as scANVI scales them."""

    def __init__(self, scale: float) -> None:
        self.parts, self.inference, self.scale = LinearModel(), LinearGuide(), scale

    def model(self, x=None, *, batch_size=None):
        with poutine.scale(scale=self.scale):
            return self.parts(x, batch_size=batch_size)

    def guide(self, x):
        with poutine.scale(scale=self.scale):
            self.inference(x)


def scaled() -> Programs:
    both = Scaled(1 / 4)
    return both.parts.programs(both.guide, both.model)


def subsampled() -> Programs:
    def plate(x, batch_size):
        if x is None:
            return pyro.plate("data", batch_size, dim=-1)
        return pyro.plate("data", 10_000, subsample=torch.arange(len(x)), dim=-1)

    return LinearModel(plate).programs(LinearGuide(plate))


class FactorModel(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](2, 4)
        self.scale = PyroParam(torch.ones(4), constraint=dist.constraints.positive)

    def forward(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            factors = pyro.sample("factors", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.linear(factors), self.scale).to_event(1), obs=x)


class FactorGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](4, 2)
        self.scale_tril = PyroParam(torch.eye(2), constraint=dist.constraints.lower_cholesky)

    def forward(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("factors", dist.MultivariateNormal(self.linear(x), scale_tril=self.scale_tril))


def factor_analysis() -> Programs:
    model = FactorModel()

    def exact() -> Gaussian:
        return Gaussian(model.linear.weight, model.linear.bias, model.scale)

    return Programs(
        model,
        FactorGuide(),
        log_evidence=lambda data: exact().log_evidence(data["x"]),
        posterior=lambda data: {"factors": exact().posterior(data["x"])},
        moments=lambda data: exact().moments(),
    )


def _anchored(network, scale, x=None, *, batch_size=None):
    """A program whose network and scale were bound by functools.partial."""
    with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(network(z), scale).to_event(1), obs=x)


def _inferred(network, x):
    loc, log_scale = network(x).chunk(2, -1)
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def partials() -> Programs:
    decoder, encoder = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))

    def exact() -> Gaussian:
        return Gaussian(decoder.weight, decoder.bias, 0.5)

    return Programs(
        functools.partial(_anchored, decoder, 0.5),
        functools.partial(_inferred, encoder),
        log_evidence=lambda data: exact().log_evidence(data["x"]),
        posterior=lambda data: {"z": exact().posterior(data["x"])},
        moments=lambda data: exact().moments(),
    )


def mixture_prior() -> Programs:
    """A prior of three components by MixtureSameFamily, in the way of a VampPrior."""
    decoder, encoder = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    locs = nn.Parameter(torch.tensor([[-1.5, 0.0], [1.5, 0.0], [0.0, 1.5]]))
    logits = nn.Parameter(torch.zeros(3))

    def model(x=None, *, batch_size=None):
        prior = dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(locs, 0.5).to_event(1))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def log_evidence(data):
        weights = logits.detach().double().log_softmax(-1)
        parts = [Gaussian(0.5 * decoder.weight, decoder(loc), 0.5).log_evidence(data["x"]) for loc in locs.detach()]
        return (torch.stack(parts, -1) + weights).logsumexp(-1)

    return Programs(model, guide, log_evidence=log_evidence)


def two_headed() -> Programs:
    """Both x and y are observed, and y comes as a keyword argument."""
    to_x, to_y, encoder = nn.Linear(2, 4), nn.Linear(2, 1), nn.Linear(5, 4)

    def model(x=None, *, y=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(to_y(z).squeeze(-1), 0.5), obs=y)
            return pyro.sample("x", dist.Normal(to_x(z), 0.5).to_event(1), obs=x)

    def guide(x, *, y):
        loc, log_scale = encoder(torch.cat([x, y[:, None]], -1)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def exact() -> Gaussian:
        return Gaussian(torch.cat([to_x.weight, to_y.weight]), torch.cat([to_x.bias, to_y.bias]), 0.5)

    def joined(data):
        return torch.cat([data["x"], data["y"][:, None]], -1)

    return Programs(
        model,
        guide,
        log_evidence=lambda data: exact().log_evidence(joined(data)),
        posterior=lambda data: {"z": exact().posterior(joined(data))},
        moments=lambda data: tuple(value[:4] for value in exact().moments()),
    )


def two_headed_rows() -> Data:
    z = draws(300, 2)
    return {"x": z @ _WEIGHT.T + _LOC + 0.5 * draws(300, 4), "y": z.sum(-1) + 0.5 * draws(300)}


class Modalities(nn.Module):
    """An x that is always there and a y that is there for half of the rows; the class has both programs."""

    def __init__(self) -> None:
        super().__init__()
        self.to_x, self.to_y = nn.Linear(2, 4), nn.Linear(2, 2)
        self.from_x, self.from_both = nn.Linear(4, 4), nn.Linear(6, 4)

    def model(self, x=None, *, y=None, has_y=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            with poutine.mask(mask=True if has_y is None else has_y):
                pyro.sample("y", dist.Normal(self.to_y(z), 0.5).to_event(1), obs=y)
            return pyro.sample("x", dist.Normal(self.to_x(z), 0.5).to_event(1), obs=x)

    def guide(self, x, *, y, has_y):
        both = self.from_both(torch.cat([x, y], -1))
        loc, log_scale = torch.where(has_y[:, None], both, self.from_x(x)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def multimodal() -> Programs:
    both = Modalities()

    def exact() -> Gaussian:
        weight, loc = (torch.cat([getattr(m, n) for m in (both.to_x, both.to_y)]) for n in ("weight", "bias"))
        return Gaussian(weight, loc, 0.5)

    def joined(data):
        seen = torch.cat([torch.ones_like(data["x"], dtype=torch.bool), data["has_y"][:, None].expand(-1, 2)], -1)
        return torch.cat([data["x"], data["y"]], -1), seen

    return Programs(
        both.model,
        both.guide,
        log_evidence=lambda data: exact().log_evidence(*joined(data)),
        posterior=lambda data: {"z": exact().posterior(*joined(data))},
        moments=lambda data: tuple(value[:4] for value in exact().moments()),
    )


def multimodal_rows() -> Data:
    z = draws(300, 2)
    has_y = torch.arange(300) % 2 == 0
    y = torch.where(has_y[:, None], z.flip(-1) + 0.5 * draws(300, 2), 0.0)
    return {"x": z @ _WEIGHT.T + _LOC + 0.5 * draws(300, 4), "y": y, "has_y": has_y}


def missing_entries() -> Programs:
    """Entries are missing here and there; both programs are given a mask."""
    decoder, encoder = nn.Linear(2, 4), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    def model(x=None, *, mask=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            p_x = dist.Normal(decoder(z), 0.5)
            return pyro.sample("x", (p_x if mask is None else p_x.mask(mask)).to_event(1), obs=x)

    def guide(x, *, mask=None):
        mask = torch.ones_like(x) if mask is None else mask
        loc, log_scale = encoder(torch.cat([x * mask, mask.to(x.dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def exact() -> Gaussian:
        return Gaussian(decoder.weight, decoder.bias, 0.5)

    def seen(data):
        x = data["x"]
        return x.nan_to_num(), ~x.isnan() & data.get("mask", torch.ones_like(x, dtype=torch.bool))

    return Programs(
        model,
        guide,
        log_evidence=lambda data: exact().log_evidence(*seen(data)),
        posterior=lambda data: {"z": exact().posterior(*seen(data))},
        moments=lambda data: exact().moments(),
        imputed=lambda data: {"x": exact().imputed(*seen(data))},
    )


def missing_rows() -> Data:
    x = rows()["x"]
    missing = (torch.rand(x.shape) < 0.3) & (torch.arange(4) > 0)  # the first entry is always there
    return {"x": torch.where(missing, torch.nan, x)}


def gaps_beside() -> Programs:
    """The gaps are in y, a keyword argument, and the programs are given a mask of its entries."""
    to_x, to_y, encoder = nn.Linear(2, 4), nn.Linear(2, 2), nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

    def model(x=None, *, y=None, y_mask=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            p_y = dist.Normal(to_y(z), 0.5)
            pyro.sample("y", (p_y if y_mask is None else p_y.mask(y_mask)).to_event(1), obs=y)
            return pyro.sample("x", dist.Normal(to_x(z), 0.5).to_event(1), obs=x)

    def guide(x, *, y, y_mask):
        loc, log_scale = encoder(torch.cat([x, y * y_mask, y_mask.to(x.dtype)], -1)).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def exact() -> Gaussian:
        return Gaussian(torch.cat([to_x.weight, to_y.weight]), torch.cat([to_x.bias, to_y.bias]), 0.5)

    def joined(data):
        seen = ~data["y"].isnan() & data.get("y_mask", torch.ones_like(data["y"], dtype=torch.bool))
        both = torch.cat([torch.ones_like(data["x"], dtype=torch.bool), seen], -1)
        return torch.cat([data["x"], data["y"].nan_to_num()], -1), both

    return Programs(
        model,
        guide,
        log_evidence=lambda data: exact().log_evidence(*joined(data)),
        posterior=lambda data: {"z": exact().posterior(*joined(data))},
        moments=lambda data: tuple(value[:4] for value in exact().moments()),
        imputed=lambda data: {"y": exact().imputed(*joined(data))[:, 4:]},
    )


def gaps_beside_rows() -> Data:
    z = draws(300, 2)
    y = z.flip(-1) + 0.5 * draws(300, 2)
    gaps = torch.rand(y.shape) < 0.4
    return {"x": z @ _WEIGHT.T + _LOC + 0.5 * draws(300, 4), "y": torch.where(gaps, torch.nan, y)}


def gaps_by_obs_mask() -> Programs:
    """The gaps of y are separate latents, as pyro.sample(..., obs_mask=...) makes them."""
    to_x, encoder = nn.Linear(1, 3), nn.Linear(3, 2)
    slope = nn.Parameter(torch.tensor(0.5))

    def model(x=None, *, y=None, seen=None, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(slope * z.squeeze(-1), 0.5), obs=y, obs_mask=seen)
            return pyro.sample("x", dist.Normal(to_x(z), 0.5).to_event(1), obs=x)

    def guide(x, *, seen):
        loc, log_scale = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            with poutine.mask(mask=~seen):
                pyro.sample("y_unobserved", dist.Normal(slope * z.squeeze(-1), 0.5))

    def exact() -> Gaussian:
        weight, loc = torch.cat([to_x.weight, slope[None, None]]), torch.cat([to_x.bias, torch.zeros(1)])
        return Gaussian(weight, loc, 0.5)

    def joined(data):
        mask = torch.cat([torch.ones_like(data["x"], dtype=torch.bool), data["seen"][:, None]], -1)
        return torch.cat([data["x"], data["y"][:, None]], -1), mask

    return Programs(
        model,
        guide,
        log_evidence=lambda data: exact().log_evidence(*joined(data)),
        posterior=lambda data: {"z": exact().posterior(*joined(data))},
        moments=lambda data: tuple(value[:3] for value in exact().moments()),
        imputed=lambda data: {"y": exact().imputed(*joined(data))[:, 3]},
    )


def obs_mask_rows() -> Data:
    z, seen = draws(300, 1), torch.arange(300) % 3 > 0
    x = z * torch.tensor([1.0, -0.5, 0.8]) + 0.5 * draws(300, 3)
    return {"x": x, "y": torch.where(seen, z[:, 0] + 0.5 * draws(300), 0.0), "seen": seen}


def gaussian_process() -> Programs:
    """Short series, each with its own trend, and noise correlated in time: plain functions."""
    times = torch.linspace(0, 1, 6)

    def noise(length, scale):
        return scale**2 * (torch.exp(-0.5 * ((times[:, None] - times) / length) ** 2) + 0.2 * torch.eye(6))

    def model(x=None, *, batch_size=None):
        length = pyro.param("length", torch.tensor(0.3), constraint=dist.constraints.positive)
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
            slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 2.0))
            loc = level[..., None] + slope[..., None] * times
            return pyro.sample("x", dist.MultivariateNormal(loc, noise(length, scale)), obs=x)

    def guide(x):
        weight = pyro.param("weight", torch.full((6, 2), 0.1))
        scales = pyro.param("scales", torch.ones(2), constraint=dist.constraints.positive)
        loc = x @ weight
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("level", dist.Normal(loc[:, 0], scales[0]))
            pyro.sample("slope", dist.Normal(loc[:, 1], scales[1]))

    def exact():
        length, scale = stored("length", torch.tensor(0.3)), stored("scale", torch.tensor(0.7))
        design = torch.stack([torch.ones(6), 2 * times], -1).double()  # slope = 2 times a standard normal
        within = noise(length, scale).double()
        return design, within, design @ design.T + within

    def log_evidence(data):
        return torch.distributions.MultivariateNormal(torch.zeros(6).double(), exact()[2]).log_prob(data["x"].double())

    def posterior(data):
        design, within, _ = exact()
        information = torch.linalg.solve(within, design)
        covariance = torch.linalg.inv(torch.eye(2) + design.T @ information)
        loc, sd = data["x"].double() @ information @ covariance, covariance.diagonal().sqrt().expand(len(data["x"]), 2)
        return {"level": (loc[:, 0], sd[:, 0]), "slope": (2 * loc[:, 1], 2 * sd[:, 1])}

    return Programs(
        model,
        guide,
        log_evidence=log_evidence,
        posterior=posterior,
        moments=lambda data: (torch.zeros(6).double(), exact()[2].diagonal().sqrt()),
    )


def series() -> Data:
    times = torch.linspace(0, 1, 6)
    return {"x": draws(300, 1) + 2 * draws(300, 1) * times + 0.6 * draws(300, 6)}


def student_t() -> Programs:
    """A likelihood with heavy tails: functions whose parameters live in Pyro's store."""
    start = {"weight": torch.tensor([1.0, -1.0, 0.5]), "scale": torch.tensor(0.5)}

    def model(x=None, *, batch_size=None):
        weight = pyro.param("weight", start["weight"])
        scale = pyro.param("scale", start["scale"], constraint=dist.constraints.positive)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.StudentT(3.0, z[..., None] * weight, scale).to_event(1), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.tensor([0.4, -0.4, 0.2]))
        spread = pyro.param("spread", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x.clamp(-4, 4) * slope).sum(-1), spread))

    def grid():
        points = torch.linspace(-9, 9, 2001, dtype=torch.float64)
        return Grid(points[:, None], -0.5 * points**2 - 0.5 * math.log(2 * math.pi) + math.log(18 / 2000))

    def log_likelihood(data):
        weight, scale = (stored(name, value).double() for name, value in start.items())
        p_x = torch.distributions.StudentT(torch.tensor(3.0).double(), grid().points * weight, scale)
        return p_x.log_prob(data["x"].double()[:, None]).sum(-1)

    def posterior(data):
        mean, sd = grid().posterior(log_likelihood(data))
        return {"z": (mean[:, 0], sd[:, 0])}

    return Programs(
        model, guide, log_evidence=lambda data: grid().log_evidence(log_likelihood(data)), posterior=posterior
    )


def heavy_rows() -> Data:
    noise = torch.distributions.StudentT(3.0).sample((300, 3))
    return {"x": draws(300, 1) * torch.tensor([1.0, -1.0, 0.5]) + 0.5 * noise}


PROGRAMS = [
    Program("linear-gaussian", "probabilistic PCA, a pair of nn.Modules", linear_gaussian, rows),
    Program("exact posterior", "a guide that is the posterior; functions over one module", exact_posterior, rows),
    Program("factor analysis", "PyroModule, PyroParam with constraints, no site z", factor_analysis, rows),
    Program("partials", "programs made by functools.partial", partials, rows),
    Program("mixture prior", "MixtureSameFamily as the prior; closures", mixture_prior, rows),
    Program("scaled", "poutine.scale around both programs; methods of a plain class", scaled, rows),
    Program("subsampled", "plate of 10,000 with subsample=", subsampled, rows),
    Program("two-headed", "x, and y as a keyword argument, observed", two_headed, two_headed_rows, observed=("y",)),
    Program("multimodal", "half of y missing by poutine.mask; methods", multimodal, multimodal_rows, observed=("y",)),
    Program("missing entries", "NaN as missing, and a mask", missing_entries, missing_rows, pair={"missing": "nan"}),
    Program(
        "gaps beside x",
        "NaN in y, a keyword argument, and its mask",
        gaps_beside,
        gaps_beside_rows,
        pair={"missing": "nan"},
        observed=("y", "y_mask"),
        gaps=("y", "y_mask"),
    ),
    Program(
        "obs_mask",
        "gaps of y are latents, by obs_mask=",
        gaps_by_obs_mask,
        obs_mask_rows,
        observed=("y",),
        gaps=("y", "seen"),
    ),
    Program("gaussian process", "short series, MultivariateNormal; pyro.param", gaussian_process, series),
    Program("student-t", "heavy tails; pyro.param", student_t, heavy_rows),
]
