"""Densities of codes, traversals, directions and temperatures, against linear decoders and closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import labelled_pair, mixture_pair
from scipy import optimize, stats

from pyro_vae import Pair
from pyro_vae.generation import aggregate_posterior, attribute_direction, moved_along, traverse
from pyro_vae.generation.codes import draw_codes
from pyro_vae.inference.structure import ContractError

pytestmark = pytest.mark.usefixtures("float64")


def nested_pair():
    """Two latents of a row, one of them in a plate of two steps; the rows are their sums."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(3), 1).to_event(1))
            with pyro.plate("steps", 2, dim=-2):
                step = pyro.sample("step", dist.Normal(top.sum(-1), 0.5))
            return pyro.sample("x", dist.Normal(step.movedim(-2, -1).cumsum(-1), 0.1).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("top", dist.Normal(x[:, :1] / 3 + torch.zeros(3), 0.2).to_event(1))
            with pyro.plate("steps", 2, dim=-2):
                pyro.sample("step", dist.Normal(torch.stack([x[:, 0], x[:, 1] - x[:, 0]]), 0.1))

    return Pair(model, guide)


def latent_pair(prior, guide_draws):
    """One latent z of each row, which x is about."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", prior)
            return pyro.sample("x", dist.Normal(z, 0.1).expand_by([]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", guide_draws(x))

    return Pair(model, guide)


# The aggregate posterior


@pytest.mark.parametrize("kind", ["mixture", "flow"])
def test_what_is_fitted_to_the_codes_of_a_models_own_rows_is_its_prior(kind):
    """With the exact posterior the aggregate of rows that the model drew is the prior."""
    lg = LinearGaussian()
    options = {"num_components": 2} if kind == "mixture" else {"num_transforms": 1, "max_epochs": 12}
    aggregate = aggregate_posterior(lg.exact_pair(), lg.draw(3000), kind, **options)
    z = torch.randn(4000, 2)
    prior = dist.Normal(torch.zeros(2), 1).to_event(1).log_prob(z)
    assert float((prior - aggregate.log_prob(z)).mean()) < 0.03  # KL from the prior
    rows = aggregate.sample(4000)
    torch.testing.assert_close(torch.cov(rows.T), lg.covariance, atol=0.25, rtol=0.1)
    means = aggregate.sample(4000, mean=True)
    torch.testing.assert_close(torch.cov(means.T), lg.weight @ lg.weight.T, atol=0.25, rtol=0.1)
    assert torch.linalg.matrix_rank(torch.cov(means.T), atol=1e-6) == 2  # they lie where the decoder puts them


def test_a_mixture_is_that_of_scikit_learn():
    from sklearn.mixture import GaussianMixture

    lg = LinearGaussian()
    pair, x = lg.exact_pair(), lg.draw(300)
    aggregate = aggregate_posterior(pair, x, num_components=3, draws_per_row=2, seed=4)
    codes, _ = draw_codes(pair, x, 2, 4)
    assert codes.shape == (600, 2)
    expected = GaussianMixture(3, max_iter=500, random_state=4).fit(codes.numpy()).score_samples(codes.numpy())
    torch.testing.assert_close(aggregate.log_prob(codes), torch.as_tensor(expected))


def test_several_latents_are_fitted_together():
    pair = nested_pair()
    x = pair.sample(500)
    aggregate = aggregate_posterior(pair, x, num_components=2)
    assert aggregate.density.event_shape == (5,)
    means = aggregate.sample(2000, mean=True)
    assert means.shape == (2000, 2)
    torch.testing.assert_close(torch.cov(means.T), torch.cov(x.T), rtol=0.2, atol=0.2)
    latents = {"top": torch.randn(7, 3), "step": torch.randn(2, 7)}
    joined = torch.cat([latents["top"], latents["step"].T], -1)
    torch.testing.assert_close(aggregate.log_prob(latents), aggregate.density.log_prob(joined))


def test_rows_are_made_under_what_is_given():
    pair = labelled_pair()
    pair.model.shift.data = torch.tensor([0.0, 50.0])
    labels = torch.tensor([0, 1]).repeat(100)
    aggregate = aggregate_posterior(pair, {"x": torch.randn(200), "labels": labels}, num_components=1)
    assert (aggregate.sample(200, given={"labels": labels}) > 25).long().equal(labels)
    with pytest.raises(ValueError, match="has 3 rows: give one for each of the 200"):
        aggregate.sample(200, given={"labels": labels[:3]})


def test_what_has_no_such_density_is_refused():
    x = torch.rand(20)
    with pytest.raises(ContractError, match="'z' is discrete"):
        aggregate_posterior(latent_pair(dist.Poisson(1.0), lambda x: dist.Poisson(x.exp())), x)
    with pytest.raises(ContractError, match="'z' has the support"):
        aggregate_posterior(latent_pair(dist.Gamma(1.0, 1.0), lambda x: dist.Gamma(x + 1, 1.0)), x)
    with pytest.raises(ValueError, match="unknown kind of density 'mixtur': did you mean 'mixture'"):
        aggregate_posterior(mixture_pair(), torch.randn(20, 4), "mixtur")  # pyright: ignore
    with pytest.raises(ValueError, match="30 components need as many codes, found 20"):
        aggregate_posterior(mixture_pair().double(), torch.randn(20, 4), num_components=30)


# Traversals


def test_a_latent_goes_through_the_quantiles_of_its_prior():
    lg = LinearGaussian()
    x = lg.draw(3)
    z = torch.as_tensor(stats.norm.ppf([0.1, 0.5, 0.9]))
    for row, code in ((None, torch.zeros(2)), (x[:1], lg.vae.encode(x[:1]).mean[0])):
        found = traverse(lg.vae, row, steps=3, quantiles=(0.1, 0.9))
        assert found.shape == (2, 3, 5)
        for latent in range(2):
            for step in range(3):
                here = code.clone()
                here[latent] = z[step]
                torch.testing.assert_close(found[latent, step], lg.loc + lg.weight @ here)
    chosen = traverse(lg.vae, x[:1], latents=[-1], values=[-1.0, 4.0])
    assert chosen.shape == (1, 2, 5)
    torch.testing.assert_close(chosen[0, 1] - chosen[0, 0], 5 * lg.weight[:, 1])


def test_quantiles_without_a_formula_are_those_of_draws():
    pair = mixture_pair().double()
    locs = pair.model.locs.detach()
    found = traverse(pair, steps=3, quantiles=(0.1, 0.9))
    for latent in range(2):
        where = [
            optimize.brentq(lambda v, q=q, at=locs[:, latent]: stats.norm.cdf(v, at, 0.5).mean() - q, -9, 9)
            for q in (0.1, 0.5, 0.9)
        ]
        here = locs.mean(0).repeat(3, 1)
        here[:, latent] = torch.as_tensor(where)
        torch.testing.assert_close(found[latent], pair.model.decoder(here).detach(), atol=0.08, rtol=0)


def test_other_latents_and_arguments_stay():
    pair = nested_pair()
    x = pair.sample(1)
    found = traverse(pair, x, site="step", values=[0.0, 1.0])
    torch.testing.assert_close(found[0, 1] - found[0, 0], torch.tensor([1.0, 1.0]))
    torch.testing.assert_close(found[1, 1] - found[1, 0], torch.tensor([0.0, 1.0]))
    labelled = labelled_pair()
    labelled.model.shift.data = torch.tensor([0.0, 50.0])
    for label, expected in ((0, 0.0), (1, 50.0)):
        labels = torch.tensor([label])
        assert float(traverse(labelled, given={"labels": labels}, values=[0.0])) == pytest.approx(expected)
        assert traverse(labelled, {"x": torch.ones(1), "labels": labels}).mean() == pytest.approx(expected)


def test_traversals_without_sense_are_refused():
    lg = LinearGaussian()
    with pytest.raises(ValueError, match=r"must be one row, x\[:1\], found 2"):
        traverse(lg.vae, lg.draw(2))
    with pytest.raises(ValueError, match="steps must be at least 2"):
        traverse(lg.vae, steps=1)
    with pytest.raises(ContractError, match="'z' is discrete, and has no range"):
        traverse(latent_pair(dist.Poisson(1.0), lambda x: dist.Poisson(x.exp())))
    with pytest.raises(ValueError, match="put keyword arguments with a row"):
        traverse(lg.vae, lg.draw(1), given={})


# Attributes


def test_rows_move_along_the_direction_of_an_attribute():
    lg = LinearGaussian()
    x = lg.draw(60)
    has = x[:, 0] > lg.loc[0]
    codes = lg.vae.encode(x).mean
    direction = attribute_direction(lg.vae, x, has)
    torch.testing.assert_close(direction, codes[has].mean(0) - codes[~has].mean(0))
    found = moved_along(lg.vae, x[:4], direction, [-1.0, 0.0, 2.0])
    torch.testing.assert_close(found[1], lg.vae.reconstruct(x[:4]))
    torch.testing.assert_close(found[2] - found[1], (2 * lg.weight @ direction).expand(4, -1))
    with pytest.raises(ValueError, match="with both among them; found 60 true"):
        attribute_direction(lg.vae, x, torch.ones(60))
    with pytest.raises(ValueError, match="direction has shape"):
        moved_along(lg.vae, x[:4], direction[:1])


def test_a_direction_of_one_latent_leaves_the_others():
    pair = nested_pair()
    x = pair.sample(40)
    direction = attribute_direction(pair, x, x[:, 0] > x[:, 0].median(), site="step")
    moved = moved_along(pair, x[:2], direction, site="step")[0]
    torch.testing.assert_close(moved - pair.reconstruct(x[:2]), direction.cumsum(0).expand(2, -1))


# Temperature


def test_a_temperature_multiplies_the_scale_of_every_normal_latent():
    pair = nested_pair()
    drawn = pair.sample(4000, temperature=0.4, sites=("top", "step", "x"))
    assert stats.kstest(drawn["top"].flatten().numpy(), stats.norm(0, 0.4).cdf).pvalue > 1e-3
    left = drawn["step"] - drawn["top"].sum(-1, keepdim=True)
    assert stats.kstest(left.flatten().numpy(), stats.norm(0, 0.4 * 0.5).cdf).pvalue > 1e-3
    noise = drawn["x"] - drawn["step"].cumsum(-1)
    assert stats.kstest(noise.flatten().numpy(), stats.norm(0, 0.1).cdf).pvalue > 1e-3  # the likelihood has its own
    full = LinearGaussian()
    covariance = torch.cov(full.vae.sample(20_000, temperature=2.0, mean=True).T)
    torch.testing.assert_close(covariance, 4 * full.weight @ full.weight.T, rtol=0.1, atol=0.3)


def test_a_temperature_of_one_changes_nothing_and_others_need_normal_latents():
    lg = LinearGaussian()
    draws = []
    for options in ({}, {"temperature": 1.0}):
        torch.manual_seed(3)
        draws.append(lg.vae.sample(5, **options))
    assert torch.equal(*draws)
    with pytest.raises(ContractError, match="the model draws 'z' from a MixtureSameFamily"):
        mixture_pair().sample(3, temperature=0.5)
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="temperature must be positive"):
            lg.vae.sample(3, temperature=wrong)


def test_draws_at_latents_have_the_likelihoods_noise():
    lg = LinearGaussian()
    z = torch.tensor([[1.0, -2.0]]).expand(5000, 2)
    noise = (lg.vae.sample_at(z) - lg.vae.mean_at(z)).flatten()
    assert stats.kstest(noise.numpy(), stats.norm(0, lg.scale).cdf).pvalue > 1e-3
