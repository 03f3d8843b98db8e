"""Sound models: families of pairs whose guide is the posterior, with rows drawn from the model.

Each function draws the sizes and parameters of one model from torch's random state.
"""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from judged.system import Case, System, by_sum, linear_gaussian, mixture_prior, on_grid
from pyro_vae import Pair, fit, mlp_vae
from pyro_vae.distributions import Columns
from pyro_vae.likelihoods import Bernoulli
from pyro_vae.transforms import Binarize, Standardize

__all__ = ["SOUND", "with_gaps"]


def some(low: int, high: int) -> int:
    """A whole number from low to high."""
    return int(torch.randint(low, high + 1, ()))


def real(low: float, high: float) -> float:
    """A number from low to high, uniform on the log scale."""
    return math.exp(math.log(low) + (math.log(high) - math.log(low)) * float(torch.rand(())))


def gaussian(dims: int, latents: int, **options: Any) -> System:
    """A linear-Gaussian system with random weights."""
    weight = torch.randn(dims, latents) * real(0.5, 1.5) / latents**0.5
    return linear_gaussian(weight, real(0.3, 1.0) * (0.5 + torch.rand(dims)), torch.randn(dims), **options)


def with_gaps(x: Tensor, share: float) -> Tensor:
    """Rows with this share of missing entries, but never a whole row."""
    missing = torch.rand_like(x) < share
    missing[:, 0] &= ~missing.all(1)
    return torch.where(missing, torch.nan, x)


def narrow() -> Case:
    """Linear-Gaussian, few columns and latents."""
    return gaussian(some(1, 8), some(1, 3)).case(some(300, 800))


def wide() -> Case:
    """Linear-Gaussian, hundreds of columns."""
    return gaussian(some(150, 400), some(1, 4)).case(some(300, 500))


def many_latents() -> Case:
    """Linear-Gaussian, tens of latents."""
    return gaussian(some(40, 100), some(15, 30)).case(some(300, 500))


def few_rows() -> Case:
    """Linear-Gaussian, tens of rows."""
    return gaussian(some(2, 10), some(1, 3)).case(some(30, 80))


def small_prior() -> Case:
    """A prior with a small scale, away from 0."""
    scale = real(1e-3, 0.05)
    dims, latents = some(2, 8), some(1, 3)
    weight = torch.randn(dims, latents) / scale
    prior_loc = torch.randn(latents) * scale
    return linear_gaussian(weight, torch.full((dims,), 0.5), None, prior_loc, scale).case(400)


def large_prior() -> Case:
    """A prior with a large scale."""
    scale = real(20.0, 1000.0)
    dims, latents = some(2, 6), some(1, 2)
    return linear_gaussian(torch.randn(dims, latents), torch.full((dims,), scale), None, 0.0, scale).case(400)


def weak() -> Case:
    """Noise that almost hides the latent."""
    return linear_gaussian(torch.randn(4, 1) * 0.25, torch.ones(4)).case(600)


def few_in_use() -> Case:
    """Latents that are mostly unused, as after training."""
    latents = some(10, 20)
    weight = torch.randn(12, latents) * (torch.arange(latents) < 2)
    return linear_gaussian(weight, torch.full((12,), 0.5)).case(400)


def clusters() -> Case:
    """A categorical latent, normal rows."""
    num = some(3, 8)
    centres = torch.randn(num, some(2, 6)) * real(1.0, 4.0)
    return by_sum(torch.randn(num), lambda z: dist.Normal(centres[z], 1.0).to_event(1)).case(500)


def count_clusters() -> Case:
    """A categorical latent, counts."""
    num = some(2, 6)
    rates = 8 * torch.rand(num, some(1, 10)) + 0.2
    return by_sum(torch.zeros(num), lambda z: dist.Poisson(rates[z]).to_event(1)).case(500)


def overdispersed_counts() -> Case:
    """A categorical latent, negative binomial counts."""
    num = some(2, 5)
    logits = torch.randn(num, some(2, 8))
    return by_sum(torch.zeros(num), lambda z: dist.NegativeBinomial(3.0, logits=logits[z]).to_event(1)).case(500)


def zero_inflated_counts() -> Case:
    """A categorical latent, zero-inflated counts."""
    num = some(2, 4)
    rates = 2 + 5 * torch.rand(num, some(2, 6))
    gate = torch.tensor(0.3)
    return by_sum(
        torch.zeros(num), lambda z: dist.ZeroInflatedPoisson(rates[z], gate=gate.expand(rates[z].shape)).to_event(1)
    ).case(500)


def bits() -> Case:
    """A categorical latent, bits in hundreds of columns, like small images."""
    num = some(4, 12)
    logits = 2 * torch.randn(num, some(20, 250))
    return by_sum(torch.randn(num) / 2, lambda z: dist.Bernoulli(logits=logits[z]).to_event(1)).case(400)


def levels() -> Case:
    """A categorical latent, levels."""
    num, classes = some(3, 6), some(3, 10)
    logits = torch.randn(num, some(2, 10), classes)
    return by_sum(torch.zeros(num), lambda z: dist.Categorical(logits=logits[z]).to_event(1)).case(400)


def durations() -> Case:
    """A categorical latent, positive numbers."""
    rates = torch.rand(some(2, 5), some(2, 5)) * 4 + 0.3
    return by_sum(torch.zeros(len(rates)), lambda z: dist.Gamma(2.0, rates[z]).to_event(1)).case(500)


def mixed_columns() -> Case:
    """A categorical latent, columns of three kinds."""
    num = some(3, 5)
    loc, rate, logits = torch.randn(num) * 2, 5 * torch.rand(num) + 0.5, 2 * torch.randn(num)
    return by_sum(
        torch.zeros(num),
        lambda z: Columns([dist.Normal(loc[z], 1.0), dist.Poisson(rate[z]), dist.Bernoulli(logits=logits[z])]).to_event(
            1
        ),
    ).case(500)


def heavy_tails() -> Case:
    """A latent of a Student t, rows too."""
    slopes = torch.randn(some(2, 5))
    return on_grid(
        dist.StudentT(4.0), lambda z: dist.StudentT(5.0, z[..., None] * slopes, 0.7).to_event(1), -30, 30
    ).case(400)


def two_modes() -> Case:
    """A number observed only through its square: two equal modes, and posterior means of 0."""
    noise = real(0.2, 0.6)
    slopes = 0.5 + torch.rand(some(1, 4))
    return on_grid(
        dist.Normal(0.0, 1.0), lambda z: dist.Normal(z.square()[..., None] * slopes, noise).to_event(1), -6, 6
    ).case(400)


def bounded() -> Case:
    """A curved decoder of counts."""
    slopes = 0.6 * torch.randn(some(2, 8))
    return on_grid(
        dist.Normal(0.0, 1.0), lambda z: dist.Poisson((1 + z[..., None] * slopes).exp()).to_event(1), -6, 6
    ).case(400)


def curved_bits() -> Case:
    """A curved decoder of bits."""
    slopes, offsets = 2 * torch.randn(2, some(10, 30))
    return on_grid(
        dist.Normal(0.0, 1.0), lambda z: dist.Bernoulli(logits=z[..., None] * slopes + offsets).to_event(1), -6, 6
    ).case(400)


def rates() -> Case:
    """Gamma and Poisson, which are conjugate."""
    shape, rate, num = real(1.0, 5.0), real(0.3, 2.0), some(1, 6)
    return System(
        lambda: dist.Gamma(shape, rate),
        lambda z: dist.Poisson(z[..., None].expand(*z.shape, num)).to_event(1),
        lambda x: dist.Gamma(shape + x.sum(-1), rate + num),
    ).case(400)


def shares() -> Case:
    """Beta and Bernoulli, which are conjugate."""
    a, b, num = real(0.7, 3.0), real(0.7, 3.0), some(3, 20)
    return System(
        lambda: dist.Beta(a, b),
        lambda z: dist.Bernoulli(z[..., None].expand(*z.shape, num)).to_event(1),
        lambda x: dist.Beta(a + x.sum(-1), b + num - x.sum(-1)),
    ).case(400)


def proportions() -> Case:
    """Dirichlet and categories: tokens of one topic mixture."""
    concentration, num = torch.rand(some(3, 5)) * 2 + 0.5, some(5, 15)
    classes = len(concentration)
    return System(
        lambda: dist.Dirichlet(concentration),
        lambda z: dist.Categorical(z[..., None, :].expand(*z.shape[:-1], num, classes)).to_event(1),
        lambda x: dist.Dirichlet(concentration + torch.nn.functional.one_hot(x.long(), classes).sum(-2)),
    ).case(400)


def mixture_of_normals() -> Case:
    """A prior of clusters."""
    num, latents = some(2, 5), some(1, 3)
    centres = 2.5 * torch.randn(num, latents)
    slopes = torch.randn(some(2, 6), latents)
    return mixture_prior(torch.full((num,), 1 / num), centres, 0.6, slopes, real(0.3, 1.0)).case(400)


def in_units() -> Case:
    """Rows in units far from the model's."""
    system = gaussian(some(2, 6), some(1, 2))
    like = system.draw(500)
    transform = Standardize(tuple(like.shape[1:])).fit(1e4 + 250 * torch.randn_like(like))
    return Case(system.but(options={"transform": transform}).pair(), transform.inverse(like))


def two_sites() -> Case:
    """A latent above a latent."""
    dims = some(2, 5)
    slopes, a_scale, b_scale, noise = torch.randn(dims), real(0.5, 2.0), real(0.3, 1.0), real(0.3, 1.0)
    inner = 1 / (1 / (a_scale**2 + b_scale**2) + (slopes / noise).square().sum())
    given_b = 1 / (1 / a_scale**2 + 1 / b_scale**2)

    def model(x: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(()), a_scale))
            b = pyro.sample("b", dist.Normal(a, b_scale))
            return pyro.sample("x", dist.Normal(b[..., None] * slopes, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(inner * (x @ slopes) / noise**2, inner**0.5))
            pyro.sample("a", dist.Normal(given_b * b / b_scale**2, given_b**0.5))

    return _of_its_own(model, guide, 400)


def discrete_and_continuous() -> Case:
    """A cluster, and a number within it."""
    num = some(2, 4)
    centres, scale, noise = 4 * torch.randn(num), 0.7, real(0.3, 1.0)
    variance = scale**2 + noise**2
    gain = scale**2 / variance

    def model(x: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(num)))
            z = pyro.sample("z", dist.Normal(centres[k], scale))
            return pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(logits=-((x[:, None] - centres) ** 2) / (2 * variance)))
            loc = centres[k] + gain * (x - centres[k])
            pyro.sample("z", dist.Normal(loc, noise * gain**0.5))

    return _of_its_own(model, guide, 400)


def summed_by_the_model() -> Case:
    """A cluster that the model sums out, and a number."""
    num, dims = some(2, 4), some(2, 4)
    offsets = 3 * torch.randn(num, dims)
    slopes, noise = torch.randn(dims), 0.7
    variance = 1 / (1 + (slopes / noise).square().sum())
    marginal = dist.MultivariateNormal(offsets, torch.outer(slopes, slopes) + noise**2 * torch.eye(dims))

    def model(x: Tensor | None = None, *, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            k = pyro.sample("k", dist.Categorical(logits=torch.zeros(num)), infer={"enumerate": "parallel"})
            return pyro.sample("x", dist.Normal(z[..., None] * slopes + offsets[k], noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        logits = marginal.log_prob(x[:, None])
        loc = variance * ((x[:, None] - offsets) @ slopes) / noise**2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(logits=logits), dist.Normal(loc, variance.sqrt())))

    return _of_its_own(model, guide, 400)


def conditional() -> Case:
    """Rows of labelled groups that shift them."""
    dims = some(2, 5)
    shifts, slopes, noise = 3 * torch.randn(3, dims), torch.randn(dims), 0.6
    variance = 1 / (1 + (slopes / noise).square().sum())

    def model(x: Tensor | None = None, *, group: Tensor, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z[..., None] * slopes + shifts[group], noise).to_event(1), obs=x)

    def guide(x: Tensor, *, group: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(variance * ((x - shifts[group]) @ slopes) / noise**2, variance.sqrt()))

    group = torch.arange(600) % 3
    pair = Pair(model, guide)
    return Case(pair, {"x": pair.sample(600, given={"group": group}), "group": group})


def gaps() -> Case:
    """Rows with missing entries."""
    dims, latents = some(3, 8), some(1, 2)
    weight, noise = torch.randn(dims, latents), 0.5
    eye = torch.eye(latents)

    def model(x: Tensor | None = None, *, mask: Tensor | None = None, batch_size: int | None = None) -> Tensor:
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(latents), 1.0).to_event(1))
            fn = dist.Normal(z @ weight.T, noise)
            return pyro.sample("x", (fn if mask is None else fn.mask(mask)).to_event(1), obs=x)

    def guide(x: Tensor, *, mask: Tensor | None = None) -> None:
        seen = torch.ones_like(x) if mask is None else mask.to(x)
        covariance = torch.linalg.inv(eye + torch.einsum("dk,nd,dl->nkl", weight, seen, weight) / noise**2)
        loc = (covariance @ ((seen * x) @ weight)[..., None])[..., 0] / noise**2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    pair = Pair(model, guide, missing="nan")
    with poutine.block():
        x = pair.sample(400)
    return Case(pair, with_gaps(x, 0.25))


def grey_pixels() -> Case:
    """Grey pixels, modelled as bits drawn from them."""
    num, dims = some(3, 6), some(10, 40)
    grey = torch.rand(num, dims)
    system = by_sum(torch.zeros(num), lambda z: dist.Bernoulli(grey[z]).to_event(1)).but(
        options={"transform": Binarize()}
    )
    return Case(system.pair(), grey[torch.randint(num, (400,))])


def sorted_rows() -> Case:
    """A sound model whose rows come sorted by kind."""
    num = some(2, 5)
    centres = 6 * torch.randn(num, 3)
    x = torch.cat([dist.Normal(centres[k], 1.0).sample((500 // num,)) for k in range(num)])
    return Case(by_sum(torch.zeros(num), lambda z: dist.Normal(centres[z], 1.0).to_event(1)).pair(), x)


def doubled_rows() -> Case:
    """Rows with few distinct values, many of them equal."""
    num, dims = some(2, 4), some(2, 4)
    logits = torch.randn(num, dims)
    return by_sum(torch.zeros(num), lambda z: dist.Bernoulli(logits=logits[z]).to_event(1)).case(300)


def with_training_rows() -> Case:
    """A sound model, with its own training rows."""
    system = gaussian(some(2, 20), some(1, 3))
    return Case(system.pair(), system.draw(400), train=system.draw(some(300, 900)))


def copies_by_nature() -> Case:
    """Training rows with so few values that most occur in both sets."""
    logits = torch.randn(2, 4)
    system = by_sum(torch.zeros(2), lambda z: dist.Bernoulli(logits=logits[z]).to_event(1))
    return Case(system.pair(), system.draw(300), train=system.draw(600))


def trained() -> Case:
    """A decoder network, and an encoder well trained on its draws."""
    vae = mlp_vae((some(20, 40),), some(1, 3), hidden_dims=(32,), likelihood=Bernoulli())
    with torch.no_grad():
        for parameter in vae.decoder.parameters():
            parameter.mul_(2.0)
    vae.decoder.requires_grad_(False)
    fit(vae, vae.sample(8000), epochs=12, learning_rate=3e-3, progress=False, compile=False)
    return Case(vae, vae.sample(400))


def _of_its_own(model: Callable[..., Any], guide: Callable[..., Any], num_rows: int) -> Case:
    pair = Pair(model, guide)
    return Case(pair, pair.sample(num_rows))


SOUND: dict[str, Callable[[], Case]] = {
    make.__name__.replace("_", " "): make
    for make in (
        narrow, wide, many_latents, few_rows, small_prior, large_prior, weak, few_in_use, clusters, count_clusters,
        overdispersed_counts, zero_inflated_counts, bits, levels, durations, mixed_columns, heavy_tails, two_modes,
        bounded, curved_bits, rates, shares, proportions, mixture_of_normals, in_units, two_sites,
        discrete_and_continuous, summed_by_the_model, conditional, gaps, grey_pixels, sorted_rows, doubled_rows,
        with_training_rows, copies_by_nature, trained,
    )
}  # fmt: skip
