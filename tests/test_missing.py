"""Missing entries against the conditional distributions of a multivariate normal."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from known_pairs import TwoViews
from linear_gaussian import LinearGaussian, resident
from pairs import function_pair

from pyro_vae import Pair, evaluate, fit, mlp_vae
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.imputation import resampled
from pyro_vae.likelihoods import Bernoulli, Gamma, Mixed, Normal, Poisson
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.transforms import Binarize, Scale, Standardize

pytestmark = pytest.mark.usefixtures("float64")


def with_gaps(x, share=0.3, seed=0):
    """NaN in a share of the entries; the first of each row stays."""
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)) < share
    gaps[:, 0] = False
    return torch.where(gaps, torch.nan, x)


def conditional(lg, row):
    """Mean and covariance of a row's missing entries given its observed ones."""
    missing = row.isnan()
    seen = ~missing
    gain = lg.covariance[missing][:, seen] @ torch.linalg.inv(lg.covariance[seen][:, seen])
    mean = lg.loc[missing] + gain @ (row[seen] - lg.loc[seen])
    return missing, mean, lg.covariance[missing][:, missing] - gain @ lg.covariance[seen][:, missing]


def pair_with_guide(lg, *, widen=1.0, shift=0.0):
    """The model with the exact posterior given the observed entries, or one that is off."""

    def guide(x, mask):
        weight = lg.weight * mask[..., None]
        precision = torch.eye(2) + weight.mT @ weight / lg.scale**2
        loc = torch.linalg.solve(precision, weight.mT @ ((x - lg.loc) * mask)[..., None])[..., 0] / lg.scale**2
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.MultivariateNormal(loc + shift, precision_matrix=precision / widen**2))

    return Pair(lg.vae.model, guide, missing="nan")


def test_the_evidence_is_that_of_the_observed_part():
    lg = LinearGaussian()
    x = with_gaps(lg.draw(40))
    reconstruction, kl = elbo_per_row(pair_with_guide(lg), resident(x))
    for row, found in zip(x, reconstruction - kl, strict=True):
        seen = ~row.isnan()
        truth = dist.MultivariateNormal(lg.loc[seen], lg.covariance[seen][:, seen]).log_prob(row[seen])
        assert float(found) == pytest.approx(float(truth), abs=1e-9)
    metrics = evaluate(pair_with_guide(lg), x)
    observed = float((~x.isnan()).sum()) / len(x)
    assert metrics["bits_per_dim"] == pytest.approx(-metrics["elbo"] / (observed * math.log(2)))


@pytest.mark.parametrize("off", [{}, {"widen": 1.5, "shift": 0.5}], ids=["exact guide", "rough guide"])
def test_imputations_have_the_conditional_mean_and_covariance(off):
    lg = LinearGaussian()
    x = with_gaps(lg.draw(6), share=0.5, seed=1)
    draws = pair_with_guide(lg, **off).impute(x, 4000, num_particles=1500)
    for row, drawn in zip(x, draws.unbind(1), strict=True):
        missing, mean, covariance = conditional(lg, row)
        if not missing.any():
            continue
        assert torch.equal(drawn[:, ~missing], row[~missing].expand(4000, -1))
        # Draws share particles: as many as these are worth about a quarter of independent ones.
        worth = 4000 / 4
        z_mean = (drawn[:, missing].mean(0) - mean) / (covariance.diagonal() / worth).sqrt()
        assert z_mean.abs().max() < 5
        error = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) / worth).sqrt()
        found = torch.atleast_2d(torch.cov(drawn[:, missing].T))
        assert ((found - covariance) / error).abs().max() < 5


def test_without_the_weights_a_rough_guide_would_be_believed():
    """One particle leaves nothing to choose: the draws are the guide's."""
    lg = LinearGaussian()
    x = with_gaps(lg.draw(6), share=0.5, seed=1)
    off = pair_with_guide(lg, shift=1.0)
    errors = []
    for num_particles in (1, 2000):
        draws = off.impute(x, 300, num_particles=num_particles)
        means = torch.cat([d[:, r.isnan()].mean(0) - conditional(lg, r)[1] for r, d in zip(x, draws.unbind(1))])  # noqa: B905
        errors.append(float(means.abs().mean()))
    assert errors[1] < 0.2 * errors[0]


def test_ninety_percent_intervals_cover_ninety_percent():
    lg = LinearGaussian()
    whole = lg.draw(300)
    x = with_gaps(whole, share=0.4, seed=2)
    draws = pair_with_guide(lg).impute(x, 400, num_particles=200)
    low, high = torch.quantile(draws, torch.tensor([0.05, 0.95]), dim=0)
    inside = ((whole > low) & (whole < high))[x.isnan()]
    standard_error = math.sqrt(0.9 * 0.1 / len(inside))
    assert abs(float(inside.double().mean()) - 0.9) < 4 * standard_error


def test_training_on_observed_entries_recovers_the_model():
    lg = LinearGaussian(data_dim=5, latent_dim=1, scale=0.5)
    x = lg.draw(3000)
    vae = mlp_vae((5,), 1, hidden_dims=(32,), likelihood=Normal(), missing="nan").double()
    history = fit(vae, with_gaps(x, 0.4), epochs=20, batch_size=100, learning_rate=1e-2, progress=False)
    assert np.isfinite(history["elbo"]).all()
    assert all(torch.isfinite(p).all() for p in vae.parameters())
    p_x = vae.sample(50_000)
    torch.testing.assert_close(torch.cov(p_x.T), lg.covariance, atol=0.2, rtol=0.1)
    held_out = lg.draw(1000)
    imputed = vae.impute(with_gaps(held_out, 0.4, seed=5), 100, num_particles=100).mean(0)
    gaps = with_gaps(held_out, 0.4, seed=5).isnan()
    best = torch.zeros_like(held_out)
    for i, row in enumerate(with_gaps(held_out, 0.4, seed=5)):
        if gaps[i].any():
            best[i, gaps[i]] = conditional(lg, row)[1]
    error, least = ((imputed - held_out)[gaps].square().mean(), (best - held_out)[gaps].square().mean())
    assert error < 1.05 * least


def test_missing_entries_give_no_gradient_and_observed_ones_the_same_as_ever():
    vae = mlp_vae((4,), 2, likelihood=Normal(), missing="nan").double()
    x = torch.randn(6, 4)
    gappy = x.clone()
    gappy[2, 1] = torch.nan
    batch = vae.prepare(gappy)
    rows, mask = batch.x, batch.mask
    assert not rows.isnan().any()
    assert mask.tolist() == (~gappy.isnan()).tolist()
    z = torch.randn(6, 2)
    p_x = vae.decoder(z, mask=mask)
    whole = torch.distributions.Normal(*(getattr(vae.decoder(z).base_dist, name) for name in ("loc", "scale")))
    expected = (whole.log_prob(torch.nan_to_num(gappy)) * mask).sum(-1)
    torch.testing.assert_close(p_x.log_prob(rows), expected)
    other = gappy.clone()
    other[2, 1] = torch.nan
    rows[2, 1] = 77.0  # what stands in a gap does not matter
    torch.testing.assert_close(p_x.log_prob(rows), expected)
    p_x.log_prob(rows).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in vae.decoder.parameters() if p.grad is not None)


def test_the_encoder_sees_which_entries_are_there():
    vae = mlp_vae((3,), 2, likelihood=Normal(), missing="nan").double()
    filled = torch.tensor([[1.0, 0.0, 2.0]])
    gappy = torch.tensor([[1.0, torch.nan, 2.0]])
    assert not torch.allclose(vae.encode(filled).mean, vae.encode(gappy).mean)


def test_a_mask_says_the_same_as_nan():
    vae = mlp_vae((3,), 2, likelihood=Normal(), missing="nan").double()
    x, mask = torch.randn(20, 3), torch.rand(20, 3) < 0.6
    mask[:, 0] = True
    gappy = torch.where(mask, x, torch.nan)
    masked = {"x": x, "mask": mask}
    torch.testing.assert_close(vae.encode(masked).mean, vae.encode(gappy).mean)
    assert evaluate(vae, masked)["elbo"] == pytest.approx(evaluate(vae, gappy)["elbo"])
    fit(vae, masked, epochs=1, batch_size=10, progress=False)
    draws = vae.impute(masked, 2)
    assert torch.equal(draws[:, mask], x[mask].expand(2, -1))


@pytest.mark.parametrize(
    ("likelihood", "transform", "x"),
    [
        (Bernoulli(), Binarize(0, 16), torch.randint(0, 17, (40, 4)).double()),
        (Normal(link="sigmoid"), Scale(0, 16), torch.randint(0, 17, (40, 4)).double()),
        (Gamma(), None, torch.rand(40, 4) + 0.5),
        (Poisson(), None, torch.randint(0, 9, (40, 4)).double()),
        (Mixed((Bernoulli(), Gamma(), Poisson(), Normal())), Standardize((4,), columns=(3,)), torch.ones(40, 4)),
    ],
    ids=["bits", "grey levels", "positive", "counts", "mixed"],
)
def test_gaps_are_filled_with_values_of_the_right_kind(likelihood, transform, x):
    vae = mlp_vae((4,), 2, likelihood=likelihood, transform=transform, missing="nan").double()
    gappy = with_gaps(x)
    fit(vae, gappy, epochs=1, batch_size=10, progress=False)
    draws = vae.impute(gappy, 5, num_particles=10)
    assert not draws.isnan().any()
    assert torch.equal(draws[0][~gappy.isnan()], gappy[~gappy.isnan()])
    if vae.data_range is not None and vae.data_range.is_discrete:
        vae.check(draws[0])
    assert math.isfinite(evaluate(vae, gappy)["elbo"])


def test_the_jacobian_counts_observed_entries_alone():
    x = with_gaps(torch.rand(30, 5))
    elbos = []
    for high in (1.0, 100.0):
        torch.manual_seed(0)
        vae = mlp_vae((5,), 2, likelihood=Normal(link="sigmoid"), transform=Scale(0, high), missing="nan").double()
        elbos.append(evaluate(vae, x * high)["elbo"])
    observed = float((~x.isnan()).sum()) / 30
    assert elbos[1] == pytest.approx(elbos[0] - observed * math.log(100), rel=1e-9)


def test_without_the_word_nan_stays_an_error():
    vae = mlp_vae((3,), 2, likelihood=Normal()).double()
    with pytest.raises(ValueError, match=r"1 NaN or infinite value, the first at index \(2, 1\)"):
        fit(vae, torch.tensor([[1.0, 2, 3], [1, 2, 3], [1, torch.nan, 3]]), batch_size=2)
    with pytest.raises(ValueError, match="nothing says which entries are missing"):
        vae.impute(torch.ones(2, 3))


def test_what_cannot_be_learned_from_is_refused():
    vae = mlp_vae((3,), 2, likelihood=Normal(), missing="nan").double()
    nan = torch.nan
    with pytest.raises(ValueError, match="rows without any observed entry, the first at index 1"):
        fit(vae, torch.tensor([[1.0, 2, 3], [nan, nan, nan]]), batch_size=2)
    with pytest.raises(ValueError, match=r"1 elements that are not observed in any row, the first at index \(2,\)"):
        fit(vae, torch.tensor([[1.0, 2, nan], [nan, 2, nan]]), batch_size=2)
    with pytest.raises(ValueError, match="NaN or infinite"):
        fit(vae, torch.tensor([[1.0, 2, math.inf], [nan, 2, 1]]), batch_size=2)
    with pytest.raises(ValueError, match="mask has shape"):
        vae.encode({"x": torch.ones(2, 3), "mask": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ValueError, match="must be 'nan' or None"):
        mlp_vae((3,), 2, likelihood=Normal(), missing="zero")  # pyright: ignore
    with pytest.raises(ValueError, match="at least 1"):
        vae.impute(torch.tensor([[1.0, nan, 2]]), num_particles=0)


def test_a_model_that_does_not_leave_gaps_out_is_refused_them():
    lg = LinearGaussian()
    masked = pair_with_guide(lg)
    x = lg.draw(5)
    gaps = with_gaps(x)
    blind = Pair(lambda x=None, *, batch_size=None: lg.vae.model(x, batch_size=batch_size), masked.guide, missing="nan")
    assert evaluate(blind, x)["elbo"] == pytest.approx(evaluate(masked, x)["elbo"])
    for rows in (gaps, {"x": x, "mask": ~gaps.isnan()}):
        for tool in (evaluate, lambda pair, rows: fit(pair, rows, epochs=1), Pair.impute, Pair.encode):
            with pytest.raises(
                TypeError,
                match="the model takes no 'mask', needed to ignore missing entries: it takes no arguments",
            ):
                tool(blind, rows)


def test_latents_of_all_rows_cannot_be_chosen_row_by_row():
    pair = function_pair()
    masked = Pair(
        lambda x=None, *, batch_size=None, mask=None: pair.model(x, batch_size=batch_size),
        lambda x, *, mask: pair.guide(x),
        missing="nan",
    )
    with pytest.raises(ValueError, match="'mean' lies outside the plate 'data' and belongs to all rows"):
        masked.impute(torch.tensor([1.0, 2.0, 3.0]))


def test_a_row_may_miss_one_view_altogether_where_it_has_another():
    """Of x or of y nothing is seen: the exact guide has the evidence of the other, and of all rows nothing of y."""
    views = TwoViews()
    x, y = torch.randn(4, 2), torch.randn(4)
    x[:2], y[2:] = torch.nan, torch.nan
    covariance = views.slopes[:, None] * views.slopes + torch.diag(views.noise.square())
    of_y = dist.Normal(0.0, covariance[2, 2].sqrt()).log_prob(y[:2])
    of_x = dist.MultivariateNormal(torch.zeros(2), covariance[:2, :2]).log_prob(x[2:])
    found = log_evidence(views.pair, {"x": x, "y": y}, num_particles=3).log_evidence
    torch.testing.assert_close(found, torch.cat([of_y, of_x]), rtol=1e-9, atol=1e-9)
    alone = log_evidence(views.pair, {"x": x[2:], "y": y[2:]}, num_particles=3).log_evidence
    torch.testing.assert_close(alone, of_x, rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="rows without any observed entry, the first at index 0"):
        evaluate(mlp_vae((2,), 1, likelihood=Normal(), missing="nan"), x)


@pytest.mark.parametrize(("weight", "words"), [(-torch.inf, "1 of 3 rows have no draw"), (torch.nan, "1 of 3 rows")])
def test_rows_that_no_draw_explains_are_named_before_a_device_fails(weight, words):
    log_weights = torch.zeros(4, 3)
    log_weights[:, 1] = weight
    with pytest.raises(FloatingPointError, match=words):
        resampled({"z": torch.zeros(4, 3)}, {"z": 0}, log_weights, 2)
