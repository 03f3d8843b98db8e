"""Numbers that a report gives, computed again in NumPy and SciPy by another way: none of them through pyro_vae."""

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from exact_guides import words
from known_pairs import Mixture
from linear_gaussian import LinearGaussian

from pyro_vae import Pair, evaluate
from pyro_vae.evaluation import log_evidence, nuts_posterior, predictive_coverage
from pyro_vae.transforms import Compose, Dequantize, Log1p, Logit, Scale, Standardize

pytestmark = pytest.mark.usefixtures("float64")

# Each transform of one number, written again; what it takes; and how far it may be from the ends.
PARTS = {
    "scale": (lambda: Scale(-1.0, 2.0), lambda x: (x + 1) / 3, (-1, 2)),
    "stretch": (lambda: Scale(0.0, 1.0, onto=(-0.5, 4.0)), lambda x: 4.5 * x - 0.5, (0, 1)),
    "standardize": (lambda: _standardize(), lambda x: (x - 0.3) / 1.7, (-math.inf, math.inf)),
    "logit": (lambda: Logit(1e-9), lambda x: np.log(x / (1 - x)), (0, 1)),
    "log1p": (lambda: Log1p(), np.log1p, (0, math.inf)),
}
X = np.linspace(0.15, 0.85, 13)


def _standardize():
    """To a mean of 0.3 and a standard deviation of 1.7."""
    return Standardize((1,)).fit(torch.tensor([[0.3 - 1.7], [0.3 + 1.7]]))


def possible():
    """Every composition of up to three whose parts take what they are given."""
    for size in (1, 2, 3):
        for names in itertools.product(PARTS, repeat=size):
            y = X
            for name in names:
                _, function, (low, high) = PARTS[name]
                if not (y.min() > low and y.max() < high):
                    break
                y = function(y)
            else:
                yield names


def composed(names):
    parts = [PARTS[name][0]() for name in names]
    return parts[0] if len(parts) == 1 else Compose(parts)


def in_numpy(names, x):
    for name in names:
        x = PARTS[name][1](x)
    return x


def test_jacobians_of_every_composition_are_those_of_differences():
    tried = list(possible())
    assert len(tried) > 60
    step, done = 1e-6, 0
    for names in tried:
        try:
            transform = composed(names)
        except ValueError:  # ranges that do not fit for all values, though they do for these
            continue
        y, log_jacobian = transform.with_log_jacobian(torch.tensor(X)[:, None])
        slope = (in_numpy(names, X + step) - in_numpy(names, X - step)) / (2 * step)
        assert y[:, 0].numpy() == pytest.approx(in_numpy(names, X), abs=1e-7), names
        assert log_jacobian[:, 0].numpy() == pytest.approx(np.log(slope), abs=2e-6), names
        assert transform.inverse(y)[:, 0].numpy() == pytest.approx(X, abs=1e-7), names
        done += 1
    assert done > 30


@pytest.mark.parametrize(
    "names", [("logit",), ("log1p", "standardize"), ("scale", "logit", "standardize")], ids="-".join
)
def test_densities_in_the_users_units_integrate_to_one(names):
    """Of the evidence, over all that x may be: the Jacobian is in it once, with its sign."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z, 0.7).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 1.49, math.sqrt(0.49 / 1.49)).to_event(1))

    low, high = PARTS[names[0]][2]
    x = np.linspace(low + 1e-7, min(high, 400.0) - 1e-7, 40_001)
    evidence = log_evidence(Pair(model, guide, transform=composed(names)), torch.tensor(x)[:, None], num_particles=1)
    expected = scipy.stats.norm.logpdf(in_numpy(names, x), scale=math.sqrt(1.49))
    slope = np.gradient(in_numpy(names, x), x)
    some = slice(200, -200, 37)
    assert evidence.log_evidence.numpy()[some] == pytest.approx((expected + np.log(slope))[some], abs=2e-3)
    below = scipy.stats.norm.cdf(in_numpy(names, x[[0, -1]]), scale=math.sqrt(1.49))
    assert np.trapezoid(np.exp(evidence.log_evidence.numpy()), x) == pytest.approx(below[1] - below[0], abs=2e-3)


def test_evidence_of_dequantised_levels_bounds_their_probability():
    """Of all pairs of 16 levels: the density at a point of each cell, beside the cell's own probability by SciPy."""
    levels = np.stack(np.meshgrid(np.arange(16.0), np.arange(16.0)), -1).reshape(-1, 2)
    loc, scale = 8.0, 3.0

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 0.6 * scale).to_event(1))
            return pyro.sample("x", dist.Normal(loc + z, 0.8 * scale).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.36 * (x - loc), 0.48 * scale).to_event(1))

    pair = Pair(model, guide, transform=Dequantize(16))
    found = log_evidence(pair, torch.tensor(levels), num_particles=1).log_evidence.numpy()
    y = pair.batch(torch.tensor(levels)).x.numpy()
    assert np.all((y >= levels) & (y < levels + 1))
    density = scipy.stats.norm.logpdf(y, loc, scale).sum(1)
    assert found == pytest.approx(density, abs=1e-6)
    cell = np.diff(scipy.stats.norm.cdf(np.arange(17), loc, scale))
    mass = np.log(cell[levels.astype(int)]).sum(1)
    share = np.exp(mass)  # of rows, if they come from the model
    gap = (share * (mass - found)).sum() / share.sum()
    spread = math.sqrt((share**2 * (mass - found - gap) ** 2).sum()) / share.sum()
    assert gap > -3 * spread  # Jensen's inequality, on average
    assert gap < 0.05  # cells are narrow beside the model's widths


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 4)])
def test_a_row_of_zeros_has_noise_like_any_other(shape):
    """Noise that belongs to a row is hashed from it; zero is what a hash without a start makes of zeros."""
    noise = Dequantize(16).eval()(torch.zeros(1, *shape))
    assert noise.min() > 1e-4
    assert noise.max() < 1
    assert len(noise.unique()) == noise.numel()


def test_coverage_from_the_prior_is_the_closed_form_of_a_model_too_narrow_and_moved():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 0.6))
            return pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    pair = Pair(model, lambda x: _of_rows(x))
    num, shift, scale = 2000, 0.4, 1.5
    x = shift + scale * np.random.default_rng(0).standard_normal(num)
    found = predictive_coverage(pair, torch.tensor(x), kind="prior", num_samples=99)
    for level in (0.5, 0.8, 0.9, 0.95):
        half = scipy.stats.norm.ppf(0.5 + level / 2)
        inside = np.diff(scipy.stats.norm.cdf([-half, half], shift, scale))[0]
        assert found.table.loc[level, "coverage"] == pytest.approx(inside, abs=4 * math.sqrt(0.25 / num) + 0.01)


def _of_rows(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(0.36 * x, 0.48))


def test_ninety_percent_intervals_of_imputed_entries_are_those_of_the_mixture():
    pair = Mixture().pair
    loc, weight = Mixture.loc.double().numpy(), np.exp(Mixture.logits.double().numpy())
    x = torch.tensor([[1.4, math.nan], [-0.8, math.nan], [math.nan, -1.1]])
    drawn = pair.impute(x, 800, num_particles=4).numpy()
    for row, (seen, gap) in enumerate([(0, 1), (0, 1), (1, 0)]):
        of_clusters = weight * scipy.stats.norm.pdf(float(x[row, seen]), loc[:, seen], 0.8)
        of_clusters /= of_clusters.sum()
        values = drawn[:, row, gap]
        mean = of_clusters @ loc[:, gap]
        sd = math.sqrt(of_clusters @ (loc[:, gap] ** 2 + 0.64) - mean**2)
        assert values.mean() == pytest.approx(mean, abs=4.5 * sd / math.sqrt(800))
        assert values.std() == pytest.approx(sd, rel=0.12)
        for level in (0.05, 0.95):
            below = of_clusters @ scipy.stats.norm.cdf(np.quantile(values, level), loc[:, gap], 0.8)
            assert below == pytest.approx(level, abs=4.5 * math.sqrt(0.05 * 0.95 / 800))


def test_weights_within_nested_plates_are_sums_over_all_of_their_sites():
    exact = words(30)
    batch = exact.pair.batch(exact.data)
    torch.manual_seed(3)
    draws = exact.pair.draws(batch, num_particles=7)
    level = draws.latents["level"].double().numpy().reshape(7, 30)
    meaning = draws.latents["meaning"].double().numpy().reshape(7, 3, 30)
    x = exact.data["x"].double().numpy()
    log = scipy.stats.norm.logpdf
    joint = log(level) + (log(meaning, level[:, None], 0.6) + log(x.T, meaning, 0.5)).sum(1)
    spread, variance = 0.61, 1 / (1 + 3 / 0.61)
    around = (x.T * 0.36 + level[:, None] * 0.25) / spread
    guided = log(level, x.sum(-1) * variance / spread, math.sqrt(variance))
    guided += log(meaning, around, math.sqrt(0.36 * 0.25 / spread)).sum(1)
    assert draws.log_weights.double().numpy() == pytest.approx(joint - guided, abs=1e-5)
    everywhere = np.ones((3, 3)) + spread * np.eye(3)
    evidence = scipy.stats.multivariate_normal.logpdf(x, cov=everywhere)
    assert draws.log_weights.double().numpy() == pytest.approx(np.broadcast_to(evidence, (7, 30)), abs=1e-5)


def test_rate_and_distortion_of_a_linear_model_are_the_closed_forms():
    lg = LinearGaussian()
    x = lg.draw(3000)
    found = evaluate(lg.exact_pair(), x)
    weight, off = lg.weight.numpy(), (x - lg.loc).numpy()
    covariance = np.linalg.inv(np.eye(2) + weight.T @ weight / lg.scale**2)
    mean = off @ weight @ covariance / lg.scale**2
    rate = 0.5 * (np.trace(covariance) + (mean**2).sum(1) - 2 - np.linalg.slogdet(covariance)[1])
    rest = ((off - mean @ weight.T) ** 2).sum(1) + np.trace(weight @ covariance @ weight.T)
    distortion = 0.5 * (rest / lg.scale**2 + 5 * math.log(2 * math.pi * lg.scale**2))
    noise = 4.5 / math.sqrt(3000)  # of one draw for each row: a chi-square of two degrees, and a little more
    assert found["rate"] == pytest.approx(rate.mean(), abs=1.5 * noise)
    assert found["distortion"] == pytest.approx(distortion.mean(), abs=1.5 * noise)
    assert found["elbo"] == pytest.approx(-(rate + distortion).mean(), abs=1e-4)  # exact at every draw


def test_nuts_has_the_quantiles_of_quadrature_where_no_closed_form_is():
    """A positive latent behind two counts of other exposures, with a heavy prior."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.HalfCauchy(torch.tensor(2.0)))
            fn = dist.Poisson(z[..., None] * torch.tensor([1.0, 3.0]))
            return pyro.sample("x", fn.to_event(1), obs=x)

    found = nuts_posterior(Pair(model, lambda x: None), torch.tensor([[2.0, 3.0]]), 200, 100, 2)
    grid = np.linspace(1e-4, 20, 200_001)
    log = scipy.stats.halfcauchy.logpdf(grid, scale=2) + 5 * np.log(grid) - 4 * grid
    probs = np.exp(log - log.max())
    probs /= probs.sum()
    values = found.draws["z"].flatten().numpy()
    size = float(found.effective_sample_size["z"])
    mean = probs @ grid
    assert values.mean() == pytest.approx(mean, abs=4.5 * math.sqrt((probs @ grid**2 - mean**2) / size))
    for level in (0.1, 0.5, 0.9):
        below = np.interp(np.quantile(values, level), grid, probs.cumsum())
        assert below == pytest.approx(level, abs=4.5 * math.sqrt(0.25 / size))
