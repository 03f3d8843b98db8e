"""Some entries given others, with pairs that were not made for it, against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from scipy import stats

from pyro_vae import Pair
from pyro_vae.generation import conditional
from pyro_vae.inference.batch import rows_of, with_rows
from pyro_vae.inference.gaps import leaving_out_gaps
from pyro_vae.inference.structure import ContractError
from pyro_vae.transforms import Standardize

pytestmark = pytest.mark.usefixtures("float64")


def with_gaps(x, share=0.5):
    gaps = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < share
    gaps[:, 0], gaps[:, -1] = False, True
    return torch.where(gaps, torch.nan, x)


def plain_model(lg):
    """The model as a user writes it, without a mask."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(lg.weight.shape[1]), 1).to_event(1))
            return pyro.sample("x", dist.Normal(z @ lg.weight.T + lg.loc, lg.scale).to_event(1), obs=x)

    return model


def model_of_entries(lg):
    """Each entry is a site's element, in a plate of its own."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(lg.weight.shape[1]), 1).to_event(1))
            loc = z[..., 0] * lg.weight[:, :1] + z[..., 1] * lg.weight[:, 1:] + lg.loc[:, None]
            with pyro.plate("entries", len(lg.loc), dim=-2):
                return pyro.sample("x", dist.Normal(loc, lg.scale), obs=None if x is None else x.T)

    return model


def model_in_turn(lg):
    """It takes one draw of the latents at a time."""

    def model(x=None, *, batch_size=None):
        n = batch_size if x is None else len(x)
        with pyro.plate("data", n, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(lg.weight.shape[1]), 1).to_event(1))
            loc = z.reshape(n, -1) @ lg.weight.T + lg.loc
            return pyro.sample("x", dist.Normal(loc, lg.scale).to_event(1), obs=x)

    return model


PAIRS = {
    "an untrained VAE": lambda lg: lg.vae,
    "a guide of whole rows": lambda lg: lg.exact_pair(),
    "no mask": lambda lg: Pair(plain_model(lg), lg.exact_pair().guide),
    "entries in a plate": lambda lg: Pair(model_of_entries(lg), lg.exact_pair().guide),
}


def check_against_closed_form(lg, x, found, num_particles):
    num_draws = len(found.draws)
    for i, row in enumerate(x):
        missing = row.isnan()
        seen = ~missing
        gain = lg.covariance[missing][:, seen] @ torch.linalg.inv(lg.covariance[seen][:, seen])
        mean = lg.loc[missing] + gain @ (row[seen] - lg.loc[seen])
        covariance = lg.covariance[missing][:, missing] - gain @ lg.covariance[seen][:, missing]
        drawn, ess = found.draws[:, i], float(found.ess[i])
        assert torch.equal(drawn[:, seen], row[seen].expand(num_draws, -1))
        share = 1 / ess + 1 / num_draws
        assert ((drawn[:, missing].mean(0) - mean) / (covariance.diagonal() * share).sqrt()).abs().max() < 5
        error = ((covariance**2 + covariance.diagonal()[:, None] * covariance.diagonal()) * share).sqrt()
        assert ((torch.atleast_2d(torch.cov(drawn[:, missing].T)) - covariance) / error).abs().max() < 5
        truth = dist.MultivariateNormal(lg.loc[seen], lg.covariance[seen][:, seen]).log_prob(row[seen])
        assert abs(float(found.log_evidence[i] - truth)) < 5 * math.sqrt(1 / ess - 1 / (2 * num_particles)) + 1e-9


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_draws_have_the_conditional_mean_and_covariance(make):
    lg = LinearGaussian()
    x = with_gaps(lg.draw(3))
    found = conditional(make(lg), x, 800, num_particles=3000)
    assert not found.annealed.any()
    check_against_closed_form(lg, x, found, 3000)


def test_programs_that_take_one_draw_at_a_time():
    lg = LinearGaussian()
    x = with_gaps(lg.draw(3))
    found = conditional(Pair(model_in_turn(lg), lg.exact_pair().guide), x, 500, num_particles=90, min_ess=5)
    check_against_closed_form(lg, x, found, 90)


def test_rows_whose_weights_collapse_are_annealed():
    lg = LinearGaussian(data_dim=8, latent_dim=2, scale=0.02)
    x = with_gaps(lg.draw(3), 0.3)
    found = conditional(Pair(plain_model(lg), lg.vae.guide), x, 800, num_particles=200, num_steps=15)
    assert found.annealed.all()
    assert found.ess.min() > 20
    check_against_closed_form(lg, x, found, 80)


def test_rows_that_cannot_be_drawn_are_refused_by_name():
    lg = LinearGaussian(data_dim=8, latent_dim=2, scale=1e-4)
    x = with_gaps(lg.draw(3), 0.3)
    pair = Pair(plain_model(lg), lg.vae.guide)
    with pytest.raises(
        ContractError, match=r"draws of 3 rows have an effective sample size below min_ess=20, rows 0 \("
    ):
        conditional(pair, x, num_particles=100, num_steps=1)
    assert conditional(pair, x, num_particles=100, min_ess=1).ess.min() >= 1  # and are given to who asks for them


def test_nan_and_a_mask_and_units_say_the_same():
    lg = LinearGaussian()
    x = with_gaps(lg.draw(3))
    tenfold = Standardize((5,))
    tenfold.loc.fill_(0.0)
    tenfold.scale.fill_(10.0)
    pair = Pair(plain_model(lg), lg.exact_pair().guide, transform=tenfold)
    torch.manual_seed(0)
    plain = conditional(Pair(plain_model(lg), lg.exact_pair().guide), x, 5)
    for rows in (10 * x, {"x": (10 * x).nan_to_num(0), "mask": ~x.isnan()}):
        torch.manual_seed(0)
        found = conditional(pair, rows, 5)
        torch.testing.assert_close(found.draws, 10 * plain.draws)
        seen = (~x.isnan()).sum(1)
        torch.testing.assert_close(found.log_evidence, plain.log_evidence - seen * math.log(10))


def bits_pair(*, enumerated):
    """A bit that is drawn or summed over, and three normal entries around one of two places."""
    places = torch.tensor([[0.0, 0.0, 0.0], [1.0, 2.0, -1.0]])
    infer = {"enumerate": "parallel"} if enumerated else {}

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.7, 0.3])), infer=infer)
            return pyro.sample("x", dist.Normal(places[z], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            if not enumerated:
                pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5]).expand(len(x), 2)))

    return Pair(model, guide), places


@pytest.mark.parametrize("enumerated", [False, True], ids=["drawn", "enumerated"])
def test_discrete_latents_against_the_sum_over_their_values(enumerated):
    pair, places = bits_pair(enumerated=enumerated)
    x = torch.tensor([[0.5, 1.0, torch.nan], [-0.5, torch.nan, torch.nan]])
    found = conditional(pair, x, 400)
    for i, row in enumerate(x):
        seen = ~row.isnan()
        log_p = torch.tensor([0.7, 0.3]).log() + dist.Normal(places[:, seen], 1.0).log_prob(row[seen]).sum(-1)
        assert float(found.log_evidence[i]) == pytest.approx(float(log_p.logsumexp(0)), abs=0.1)
        weights = log_p.softmax(0)
        mean = weights @ places[:, ~seen]
        variance = 1 + weights @ (places[:, ~seen] - mean).square()
        error = (variance * (1 / found.ess[i] + 1 / 400)).sqrt()
        assert ((found.draws[:, i, ~seen].mean(0) - mean) / error).abs().max() < 5


@pytest.mark.parametrize("min_ess", [5, 60], ids=["weighted", "annealed"])
def test_counts_of_one_rate_are_negative_binomial(min_ess):
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            return pyro.sample("x", dist.Poisson(rate[..., None].expand(*rate.shape, 3)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("rate", dist.LogNormal(x.mean(-1).add(0.5).log(), 0.5))

    x = torch.tensor([[4.0, 7.0, torch.nan]])
    found = conditional(Pair(model, guide), x, 1000, num_particles=60, min_ess=min_ess, num_steps=10)
    assert bool(found.annealed) == (min_ess == 60)
    counts = found.draws[:, 0, 2]
    truth = stats.nbinom(2 + 11, (1 + 2) / (1 + 2 + 1))  # the rate is Gamma(13, 3) given two counts
    share = 1 / float(found.ess) + 1 / 1000
    assert abs(float(counts.mean()) - truth.mean()) < 5 * truth.std() * math.sqrt(share)
    assert abs(float((counts == 3).double().mean()) - truth.pmf(3)) < 5 * math.sqrt(truth.pmf(3) * share)


# The density of observed entries


def traced(model, x, mask, **arguments):
    return pyro.poutine.trace(leaving_out_gaps(model)).get_trace(x, mask=mask, **arguments).log_prob_sum()


def test_a_mask_of_the_programs_own_stays():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            own = torch.tensor([[True, True, False], [True, True, True]])
            return pyro.sample("x", dist.Normal(torch.zeros(2, 3), 1).mask(own).to_event(1), obs=x)

    x, mask = torch.randn(2, 3), torch.tensor([[True, False, True], [False, True, True]])
    kept = torch.tensor([[True, False, False], [False, True, True]])
    torch.testing.assert_close(traced(model, x, mask), dist.Normal(0, 1).log_prob(x)[kept].sum())


def test_entries_of_one_event_are_left_out_together():
    probs = torch.tensor([0.2, 0.3, 0.5])

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.OneHotCategorical(probs.expand(2, 3)).to_event(1), obs=x)

    x = torch.eye(3)[torch.tensor([[0, 1], [2, 2]])]
    mask = torch.tensor([[True, False], [False, True]])[..., None].expand(2, 2, 3).clone()
    torch.testing.assert_close(traced(model, x, mask), (probs[0] * probs[2]).log())
    mask[0, 1, 0] = True
    with pytest.raises(ContractError, match="the OneHotCategorical at 'x' describes"):
        traced(model, x, mask)


def test_what_does_not_factorise_is_refused():
    lg = LinearGaussian()
    x = with_gaps(lg.draw(3))

    def correlated(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            return pyro.sample("x", dist.MultivariateNormal(z @ lg.weight.T, torch.eye(5)), obs=x)

    def autoregressive(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            before = 0 if x is None else torch.nn.functional.pad(x[..., :-1], (1, 0))
            return pyro.sample("x", dist.Normal(z @ lg.weight.T + before, 1).to_event(1), obs=x)

    def doubled(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            loc = z @ lg.weight.T
            both = torch.cat([loc, loc], -1)
            return pyro.sample("x", dist.Normal(both, 1).to_event(1), obs=None if x is None else torch.cat([x, x], -1))

    def deaf(x=None, *, batch_size=None, mask=None):
        return plain_model(lg)(x, batch_size=batch_size)

    guide = lg.exact_pair().guide
    for model, words in (
        (correlated, "the MultivariateNormal at 'x' describes .* entries jointly"),
        (autoregressive, "changes with the values in place of missing ones"),
        (doubled, "no entry can be ignored"),
        (deaf, "changes with the values in place of missing ones"),
    ):
        pair = Pair(model, guide, event_shape=(5,), data_range=dist.constraints.real)
        with pytest.raises(ContractError, match=words):
            conditional(pair, x)


def test_numbers_without_sense_are_refused():
    lg = LinearGaussian()
    x = lg.draw(3)
    with pytest.raises(ValueError, match="num_samples must be at least 1"):
        conditional(lg.vae, x, 0)
    with pytest.raises(ValueError, match="min_ess must be from 1 to num_particles, 10; found 20"):
        conditional(lg.vae, x, num_particles=10)
    whole = conditional(lg.vae, x, 2, num_particles=100, min_ess=1)
    assert torch.equal(whole.draws, x.expand(2, -1, -1))


def test_latents_as_vectors_and_back():
    latent = torch.randn(4, 1, 3, 2, 5)  # two plates, three rows, an event of two dimensions
    vectors = rows_of(latent, 2)
    assert vectors.shape == (3, 40)
    assert torch.equal(with_rows(vectors, latent.shape, 2), latent)
    assert torch.equal(vectors[1], latent[:, :, 1].flatten())
