"""Eight frozen pairs of programs with their posteriors and evidence, to compare an estimator with.

    python scripts/references.py                  # lists them
    python scripts/references.py --make           # recomputes all and writes tests/references/
    >>> from references import load               # with scripts/ on the path
    >>> schools = load("schools")                 # schools.pair, schools.rows, schools.log_evidence, schools.posterior

The guides are close to the posteriors but not exact, so an estimator has something to correct. The numbers are computed
without pyro_vae: closed forms, sums, and otherwise quadrature, in NumPy and SciPy. Latents with quadrature have few
enough dimensions for exact results, unlike draws from another sampler. This is a script and not part of the library, as
only those who change an estimator need the pairs and their data.
"""

# ruff: noqa: ANN001, ANN202, D102  (programs as users write them; each class is the same three methods)

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import scipy
import torch
from scipy import special, stats

from pyro_vae import Pair

FOLDER = Path(__file__).parents[1] / "tests" / "references"
PARALLEL: Any = {"enumerate": "parallel"}
MULTIVARIATE: Any = stats.multivariate_normal
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Reference:
    """A pair, its rows, and what is known of them.

    Args:
        pair: The programs.
        rows: As the tools take them.
        log_evidence: Of each row, ``(N,)``.
        posterior: By latent: ``mean`` and ``sd`` given the row, ``(N, *E)``, and ``quantiles``, ``(5, N, *E)`` at
            :data:`QUANTILES`.
        record: All that is in the file: how the numbers were made, with what, and their hash.
    """

    pair: Pair
    rows: dict[str, torch.Tensor]
    log_evidence: np.ndarray
    posterior: dict[str, dict[str, np.ndarray]]
    record: dict[str, Any]


def load(name: str) -> Reference:
    """One of the eight.

    Raises:
        ValueError: if there is none of this name, or its numbers are not those that were written.
    """
    if name not in PAIRS:
        raise ValueError(f"there is no reference {name!r}; there are {', '.join(PAIRS)}")
    record = json.loads((FOLDER / f"{name}.json").read_text())
    if record["sha256"] != hashed(record):
        raise ValueError(f"{name}.json was changed by hand: its numbers are not those of its hash; make it again")
    posterior = {
        site: {what: _array(values) for what, values in found.items()} for site, found in record["posterior"].items()
    }
    rows = {n: torch.as_tensor(_array(values)) for n, values in record["rows"].items()}
    rows = {n: v.to(torch.get_default_dtype()) if v.is_floating_point() else v for n, v in rows.items()}
    return Reference(PAIRS[name].build(), rows, _array(record["log_evidence"]), posterior, record)


def hashed(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record without its hash and the versions that made it."""
    kept = {name: value for name, value in record.items() if name not in ("sha256", "versions")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _array(values: Any) -> np.ndarray:
    """JSON knows no NaN, which None stands for."""
    found = np.array(values, dtype=object)
    whole = all(isinstance(value, int) for value in found.ravel())
    return found.astype(np.int64) if whole else np.where(found == None, np.nan, found).astype(float)  # noqa: E711


def _listed(values: Any) -> Any:
    found = np.asarray(values)
    if np.issubdtype(found.dtype, np.integer):
        return found.tolist()
    rounded = [None if math.isnan(v) else float(f"{v:.10g}") for v in found.ravel().tolist()]
    return np.array(rounded, dtype=object).reshape(found.shape).tolist()


def plate(x: Any, batch_size: int | None) -> Any:
    """The plate of rows."""
    return pyro.plate("data", batch_size if x is None else len(x), dim=-1)


# Each has the programs, the rows, and the truth: log-evidence, and what is known of each latent.

Truth = tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]


def log_sum_exp(values: np.ndarray, axis: int | None = None, *, keepdims: bool = False) -> np.ndarray:
    """As SciPy has it, always an array."""
    return np.asarray(special.logsumexp(values, axis, keepdims=keepdims))


def of_normals(mean: np.ndarray, sd: np.ndarray) -> dict[str, np.ndarray]:
    """Moments and quantiles of normal distributions."""
    sd = np.broadcast_to(sd, mean.shape)
    return {"mean": mean, "sd": sd, "quantiles": np.stack([mean + sd * stats.norm.ppf(q) for q in QUANTILES])}


def of_grid(grid: np.ndarray, probs: np.ndarray) -> dict[str, np.ndarray]:
    """Moments and quantiles of probabilities ``(N, G)`` at evenly spaced points, each for the interval around it."""
    mean, ends = probs @ grid, grid + 0.5 * (grid[1] - grid[0])
    quantiles = np.array([[np.interp(q, below, ends) for below in probs.cumsum(-1)] for q in QUANTILES])
    return {"mean": mean, "sd": np.sqrt(probs @ grid**2 - mean**2), "quantiles": quantiles}


def of_mixture(probs: np.ndarray, loc: np.ndarray, var: np.ndarray) -> dict[str, np.ndarray]:
    """Moments and quantiles of a mixture of normals with these means and variances, ``(G,)`` each."""
    mean = probs @ loc
    sd = math.sqrt(probs @ (loc**2 + var) - mean**2)
    grid = mean + sd * np.linspace(-6, 6, 2401)
    below = probs @ stats.norm.cdf(grid, loc[:, None], np.sqrt(var)[:, None])
    return {"mean": mean, "sd": np.array(sd), "quantiles": np.interp(QUANTILES, below, grid)}


class LinearGaussian:
    """Two latents behind four numbers, some of them missing; the guide takes the latents for independent."""

    source = "probabilistic PCA with known weights (Tipping & Bishop, 1999)"
    method = "closed form: multivariate normals of the observed entries"
    weight = np.array([[1.0, 0.4], [-0.6, 0.9], [0.3, -0.8], [0.7, 0.7]])
    loc, scale = np.array([0.5, -1.0, 0.0, 2.0]), 0.6

    def build(self) -> Pair:
        weight, loc = torch.tensor(self.weight, dtype=torch.float), torch.tensor(self.loc, dtype=torch.float)

        def model(x=None, *, mask=None, batch_size=None):
            with plate(x, batch_size):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                fn = dist.Normal(z @ weight.T + loc, self.scale)
                return pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)

        def guide(x, *, mask=None):
            seen = torch.ones_like(x) if mask is None else mask.to(x)
            precision = torch.eye(2) + (weight.T * seen[:, None]) @ weight / self.scale**2
            covariance = torch.linalg.inv(precision)
            mean = (covariance @ ((seen * (x - loc)) @ weight)[..., None])[..., 0] / self.scale**2
            with plate(x, None):
                sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
                pyro.sample("z", dist.Normal(mean + 0.1, 1.1 * sd).to_event(1))

        return Pair(model, guide, missing="nan")

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        x = self.loc + rng.standard_normal((4, 2)) @ self.weight.T + self.scale * rng.standard_normal((4, 4))
        x[1, 2] = x[2, 0] = x[2, 3] = np.nan
        return {"x": x.round(3)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        evidence, mean, sd = [], [], []
        for row in rows["x"]:
            seen = ~np.isnan(row)
            weight, off = self.weight[seen], (row - self.loc)[seen]
            noise = weight @ weight.T + self.scale**2 * np.eye(seen.sum())
            evidence.append(MULTIVARIATE.logpdf(off, cov=noise))
            gain = weight.T @ np.linalg.inv(noise)
            mean.append(gain @ off)
            sd.append(np.sqrt(np.diag(np.eye(2) - gain @ weight)))
        return np.array(evidence), {"z": of_normals(np.array(mean), np.array(sd))}


class Words:
    """A level of each document and a meaning of each of its three words, in a plate within the row."""

    source = "a normal model of two levels"
    method = "closed form: the joint normal of level, meanings and words, conditioned"

    def build(self) -> Pair:
        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.5))
                with pyro.plate("words", 3, dim=-2):
                    meaning = pyro.sample("meaning", dist.Normal(level, 0.7))
                    return pyro.sample("x", dist.Normal(meaning, 0.5), obs=None if x is None else x.T)

        def guide(x):
            with plate(x, None):
                level = pyro.sample("level", dist.Normal(0.9 * x.mean(-1), 0.55))
                with pyro.plate("words", 3, dim=-2):
                    pyro.sample("meaning", dist.Normal(0.6 * x.T + 0.4 * level, 0.45))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        level = 1.5 * rng.standard_normal((4, 1))
        return {"x": (level + math.sqrt(0.49 + 0.25) * rng.standard_normal((4, 3))).round(3)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        of_latents = np.full((4, 4), 2.25)
        of_latents[1:, 1:] += 0.49 * np.eye(3)
        of_words = of_latents[1:, 1:] + 0.25 * np.eye(3)
        gain = of_latents[:, 1:] @ np.linalg.inv(of_words)
        mean, sd = rows["x"] @ gain.T, np.sqrt(np.diag(of_latents - gain @ of_latents[1:]))
        evidence = MULTIVARIATE.logpdf(rows["x"], cov=of_words)
        return evidence, {"level": of_normals(mean[:, 0], sd[0]), "meaning": of_normals(mean[:, 1:], sd[1:])}


class Clusters:
    """A cluster that the model enumerates, and a number around its centre; posteriors have several modes."""

    source = "a mixture of three normals"
    method = "closed form: a sum over clusters of normals"
    locs, weights, width, scale = np.array([-2.0, 0.5, 2.5]), np.array([0.3, 0.2, 0.5]), 0.6, 1.2

    def build(self) -> Pair:
        locs, weights = (torch.tensor(v, dtype=torch.float) for v in (self.locs, self.weights))

        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                k = pyro.sample("k", dist.Categorical(weights), infer=PARALLEL)
                z = pyro.sample("z", dist.Normal(locs[k], self.width))
                return pyro.sample("x", dist.Normal(z, self.scale), obs=x)

        def guide(x):
            with plate(x, None):
                pyro.sample("z", dist.Normal(0.7 * x + 0.2, 1.4))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": np.array([-1.0, 0.9, 1.6, 3.8])}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        x, spread = rows["x"][:, None], self.width**2 + self.scale**2
        logits = np.log(self.weights) + stats.norm.logpdf(x, self.locs, math.sqrt(spread))
        evidence = log_sum_exp(logits, -1)
        probs = np.exp(logits - evidence[:, None])
        loc, var = (x * self.width**2 + self.locs * self.scale**2) / spread, (self.width * self.scale) ** 2 / spread
        mean = (probs * loc).sum(-1)
        sd = np.sqrt((probs * (loc**2 + var)).sum(-1) - mean**2)
        grid = np.linspace(-8, 8, 160_001)
        below = (probs[..., None] * stats.norm.cdf(grid, loc[..., None], math.sqrt(var))).sum(1)
        quantiles = np.array([[np.interp(q, row, grid) for row in below] for q in QUANTILES])
        return evidence, {"z": {"mean": mean, "sd": sd, "quantiles": quantiles}}


class Counts:
    """A positive rate behind four counts."""

    source = "the conjugate pair of Gamma and Poisson"
    method = "closed form: a Gamma posterior"
    shape, rate = 3.0, 0.5

    def build(self) -> Pair:
        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                z = pyro.sample("rate", dist.Gamma(torch.tensor(self.shape), self.rate))
                fn: Any = dist.Poisson(z[..., None]).expand([*z.shape, 4])
                return pyro.sample("x", fn.to_event(1), obs=x)

        def guide(x):
            with plate(x, None):
                pyro.sample("rate", dist.Gamma(0.7 * (self.shape + x.sum(-1)), 0.7 * (self.rate + 4)))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": rng.poisson(rng.gamma(self.shape, 1 / self.rate, (4, 1)), (4, 4)).astype(float)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        shape, rate = self.shape + rows["x"].sum(-1), self.rate + 4
        evidence = special.gammaln(shape) - shape * math.log(rate) - special.gammaln(rows["x"] + 1).sum(-1)
        evidence += self.shape * math.log(self.rate) - special.gammaln(self.shape)
        quantiles = np.array([stats.gamma.ppf(q, shape, scale=1 / rate) for q in QUANTILES])
        return evidence, {"rate": {"mean": shape / rate, "sd": np.sqrt(shape) / rate, "quantiles": quantiles}}


class Shares:
    """Shares of three kinds, on the simplex, behind nine categories."""

    source = "the conjugate pair of Dirichlet and Categorical"
    method = "closed form: a Dirichlet posterior"
    prior = np.array([2.0, 1.0, 1.5])

    def build(self) -> Pair:
        prior = torch.tensor(self.prior, dtype=torch.float)

        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                shares = pyro.sample("shares", dist.Dirichlet(prior))
                fn: Any = dist.Categorical(shares[..., None, :]).expand([*shares.shape[:-1], 9])
                return pyro.sample("x", fn.to_event(1), obs=x)

        def guide(x):
            counts = (x[..., None] == torch.arange(3)).sum(-2)
            with plate(x, None):
                pyro.sample("shares", dist.Dirichlet(0.75 * (prior + counts)))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"x": np.array([rng.choice(3, 9, p=rng.dirichlet(self.prior)) for _ in range(4)]).astype(float)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        after = self.prior + (rows["x"][..., None] == np.arange(3)).sum(1)
        total = after.sum(-1, keepdims=True)
        beta = lambda a: special.gammaln(a).sum(-1) - special.gammaln(a.sum(-1))  # noqa: E731
        mean = after / total
        quantiles = np.array([stats.beta.ppf(q, after, total - after) for q in QUANTILES])
        sd = np.sqrt(mean * (1 - mean) / (total + 1))
        return beta(after) - beta(self.prior), {"shares": {"mean": mean, "sd": sd, "quantiles": quantiles}}


class Schools:
    """Effects of coaching in eight schools around a mean, with a width that reaches to zero; a row is eight schools."""

    source = "Rubin, Estimation in Parallel Randomized Experiments, 1981 (first row); two rows drawn from the model"
    method = "quadrature over the width, where the rest is normal"
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def build(self) -> Pair:
        errors = torch.tensor(self.errors, dtype=torch.float)

        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 5.0))
                width = pyro.sample("width", dist.HalfCauchy(torch.tensor(5.0)))
                effect = pyro.sample("effect", dist.Normal(torch.zeros(8), 1.0).to_event(1))
                fn = dist.Normal(mean[..., None] + width[..., None] * effect, errors)
                return pyro.sample("x", fn.to_event(1), obs=x)

        def guide(x):
            weights = errors**-2 / (errors**-2).sum()
            with plate(x, None):
                mean = pyro.sample("mean", dist.Normal(0.6 * (x * weights).sum(-1), 3.6))
                width = pyro.sample("width", dist.LogNormal(torch.full((len(x),), 1.2), 1.0))
                gain = width[..., None] / (width[..., None] ** 2 + errors**2)
                loc, sd = gain * (x - mean[..., None]), (errors**2 / (errors**2 + width[..., None] ** 2)).sqrt()
                pyro.sample("effect", dist.Normal(loc, sd).to_event(1))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        drawn = [7.0, 12.0] * np.ones((2, 1))
        more = 4 + drawn.T[:, :1] * rng.standard_normal((2, 8)) + self.errors * rng.standard_normal((2, 8))
        return {"x": np.vstack([[28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], more.round(1)])}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        t, share = np.polynomial.legendre.leggauss(400)
        widths, share = 5 * np.tan(0.25 * np.pi * (t + 1)), 0.5 * share  # an angle that the width's prior makes uniform
        evidence, found = [], []
        for row in rows["x"]:
            spread = widths[:, None] ** 2 + self.errors**2
            precision = 1 / 25 + (1 / spread).sum(-1)
            mu = (row / spread).sum(-1) / precision
            log = -0.5 * (8 * math.log(2 * math.pi) + np.log(spread).sum(-1) + np.log(25 * precision))
            log += -0.5 * ((row**2 / spread).sum(-1) - mu**2 * precision) + np.log(share)
            evidence.append(log_sum_exp(log))
            probs = np.exp(log - evidence[-1])
            gain = widths[:, None] / spread
            loc, var = gain * (row - mu[:, None]), self.errors**2 / spread + gain**2 / precision[:, None]
            effects = [of_mixture(probs, loc[:, i], var[:, i]) for i in range(8)]
            below = probs.cumsum() - 0.5 * probs
            mean = probs @ widths
            of_width: dict[str, Any] = {"mean": mean, "sd": np.sqrt(probs @ widths**2 - mean**2)}
            of_width["quantiles"] = np.interp(QUANTILES, below, widths)
            effect = {what: np.stack([e[what] for e in effects], -1) for what in effects[0]}
            found.append({"mean": of_mixture(probs, mu, 1 / precision), "width": of_width, "effect": effect})
        stacked = {
            site: {
                what: np.stack([of_row[site][what] for of_row in found], 1 if what == "quantiles" else 0)
                for what in ("mean", "sd", "quantiles")
            }
            for site in found[0]
        }
        return np.array(evidence), stacked


class Items:
    """An ability behind twelve answers, right or wrong."""

    source = "the two-parameter logistic model of item response (Birnbaum, 1968) with known items"
    method = "quadrature over the ability"
    slopes = np.array([0.8, 1.2, 1.6, 0.6, 1.0, 1.4, 0.9, 1.1, 1.8, 0.7, 1.3, 1.5])
    places = np.array([-2.0, -1.5, -1.2, -0.8, -0.4, -0.1, 0.2, 0.5, 0.9, 1.2, 1.6, 2.0])

    def build(self) -> Pair:
        slopes, places = (torch.tensor(v, dtype=torch.float) for v in (self.slopes, self.places))

        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                z = pyro.sample("ability", dist.Normal(torch.zeros(()), 1.0))
                fn = dist.Bernoulli(logits=slopes * (z[..., None] - places))
                return pyro.sample("x", fn.to_event(1), obs=x)

        def guide(x):
            with plate(x, None):
                pyro.sample("ability", dist.Normal(0.25 * (x.sum(-1) - 6), 0.6))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        ability = np.array([[-1.5], [0.0], [0.7], [2.0]])
        return {"x": (rng.random((4, 12)) < special.expit(self.slopes * (ability - self.places))).astype(float)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        grid = np.linspace(-9, 9, 20_001)
        sign = 2 * rows["x"][:, None] - 1
        log = special.log_expit(sign * self.slopes * (grid[:, None] - self.places)).sum(-1) + stats.norm.logpdf(grid)
        evidence = log_sum_exp(log, -1) + math.log(grid[1] - grid[0])
        probs = np.exp(log - log_sum_exp(log, -1, keepdims=True))
        return evidence, {"ability": of_grid(grid, probs)}


class Decoder:
    """A small VAE: a frozen network with a hidden layer makes ten bits of two latents."""

    source = "weights drawn once, by a seed, from normal distributions"
    method = "quadrature on a grid of both latents"

    def __init__(self) -> None:
        rng = np.random.default_rng(8)
        self.into, self.out = (rng.standard_normal(s).round(2) * 1.5 for s in ((6, 2), (10, 6)))
        self.bias = rng.standard_normal(6).round(2)

    def build(self) -> Pair:
        into, out, bias = (torch.tensor(v, dtype=torch.float) for v in (self.into, self.out, self.bias))

        def model(x=None, *, batch_size=None):
            with plate(x, batch_size):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                fn = dist.Bernoulli(logits=(z @ into.T + bias).tanh() @ out.T)
                return pyro.sample("x", fn.to_event(1), obs=x)

        def guide(x):
            with plate(x, None):
                pyro.sample("z", dist.Normal((2 * x - 1) @ out @ into * 0.03, 0.8).to_event(1))

        return Pair(model, guide)

    def rows(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        logits = np.tanh(rng.standard_normal((4, 2)) @ self.into.T + self.bias) @ self.out.T
        return {"x": (rng.random((4, 10)) < special.expit(logits)).astype(float)}

    def truth(self, rows: Mapping[str, np.ndarray]) -> Truth:
        axis = np.linspace(-6.5, 6.5, 651)
        z = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        logits = np.tanh(z @ self.into.T + self.bias) @ self.out.T
        log = np.stack([special.log_expit((2 * row - 1) * logits).sum(-1) for row in rows["x"]])
        log += stats.norm.logpdf(z).sum(-1)
        evidence = log_sum_exp(log, -1) + 2 * math.log(axis[1] - axis[0])
        probs = np.exp(log - log_sum_exp(log, -1, keepdims=True))
        probs = probs.reshape(-1, len(axis), len(axis))
        each = [of_grid(axis, probs.sum(other)) for other in (2, 1)]
        return evidence, {"z": {what: np.stack([found[what] for found in each], -1) for what in each[0]}}


PAIRS: dict[str, Any] = {
    "linear_gaussian": LinearGaussian(),
    "words": Words(),
    "clusters": Clusters(),
    "counts": Counts(),
    "shares": Shares(),
    "schools": Schools(),
    "items": Items(),
    "decoder": Decoder(),
}


def make(name: str) -> dict[str, Any]:
    """The record of one pair, computed again."""
    problem = PAIRS[name]
    rows = problem.rows(np.random.default_rng(2718))
    log_evidence, posterior = problem.truth(rows)
    record: dict[str, Any] = {
        "name": name,
        "about": problem.__doc__,
        "source": problem.source,
        "method": problem.method,
        "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "pyro": pyro.__version__},
        "rows": {n: _listed(v) for n, v in rows.items()},
        "log_evidence": _listed(log_evidence),
    }
    record["posterior"] = {site: {w: _listed(v) for w, v in found.items()} for site, found in posterior.items()}
    record["sha256"] = hashed(record)
    return record


def main() -> None:
    """Lists the references, or with --make computes them again."""
    if "--make" in sys.argv:
        FOLDER.mkdir(exist_ok=True)
        for name in [n for n in sys.argv[1:] if n in PAIRS] or list(PAIRS):
            (FOLDER / f"{name}.json").write_text(json.dumps(make(name), indent=1, ensure_ascii=False) + "\n")
            print(f"{name}: written", flush=True)
        return
    for name in PAIRS:
        record = json.loads((FOLDER / f"{name}.json").read_text())
        print(f"{name:16} {record['about'].splitlines()[0]}\n{'':16} {record['method']}")


if __name__ == "__main__":
    main()
