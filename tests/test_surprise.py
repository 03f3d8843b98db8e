"""What is unexpected in a row: the linear-Gaussian model's closed form, and what each kind of data makes of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae import Pair, mlp_vae
from pyro_vae.evaluation import unexpectedness
from pyro_vae.evaluation.surprise import _distinct
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Bernoulli, Normal, Poisson


def closed_form(lg, x):
    """Of x_d given the others, which is normal with mean m and variance v: ((x_d - m)^2 / v - 1) / 2."""
    precision = torch.linalg.inv(lg.covariance.double())
    variance = 1 / precision.diagonal()
    return (((x - lg.loc).double() @ precision * variance) ** 2 / variance - 1) / 2


def test_the_closed_form_of_a_linear_gaussian_model():
    torch.manual_seed(0)
    lg = LinearGaussian(scale=1.5)
    x = lg.draw(40)
    error = unexpectedness(lg.exact_pair(), x, num_particles=5000) - closed_form(lg, x)
    # What is expected is the mean of 32 draws of half a chi-square, whose standard deviation is 0.71.
    assert float(error.square().mean().sqrt()) < 1.3 * 0.71 / 32**0.5
    assert float(error.mean().abs()) < 3 * 0.71 / (32 * error.numel()) ** 0.5 + 0.01


def test_an_entry_out_of_place_is_found():
    torch.manual_seed(0)
    lg = LinearGaussian(scale=1.5)
    x = lg.draw(30)
    place = torch.arange(30) % 5
    x[torch.arange(30), place] += 15
    found, expected = unexpectedness(lg.exact_pair(), x, num_particles=5000), closed_form(lg, x)
    assert found.argmax(1).tolist() == expected.argmax(1).tolist() == place.tolist()
    ratio = (found / expected)[torch.arange(30), place]
    assert 0.7 < float(ratio.min()) < float(ratio.max()) < 1.3


def test_rows_that_the_model_draws_are_as_expected_on_average():
    torch.manual_seed(0)
    lg = LinearGaussian(scale=1.5)
    nats = unexpectedness(lg.exact_pair(), lg.draw(2000), num_particles=300)
    error = nats.std(0) / 2000**0.5
    assert bool((nats.mean(0).abs() < 4 * error + 0.01).all())


def test_units_do_not_matter():
    torch.manual_seed(0)
    x = torch.randn(20, 3)

    def nats(units):
        def model(x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                return pyro.sample("x", dist.Normal(units * z.expand(*z.shape[:-1], 3), units).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x.mean(-1, keepdim=True) * 0.75 / units, 0.5).to_event(1))

        return unexpectedness(Pair(model, guide), units * x)

    torch.testing.assert_close(nats(1000.0), nats(1.0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("likelihood", [Normal, Poisson, Bernoulli], ids=lambda kind: kind.__name__)
def test_missing_entries_have_none_and_shapes_are_those_of_the_rows(likelihood):
    torch.manual_seed(0)
    vae = mlp_vae((2, 3), 2, likelihood=likelihood(), missing="nan")
    x = torch.randint(0, 2, (7, 2, 3)).float()
    x[0, 1, 2] = torch.nan
    nats = unexpectedness(vae, x, num_particles=50)
    assert nats.shape == (7, 2, 3)
    assert torch.equal(nats.isnan(), x.isnan())


def test_draws_of_one_value_are_looked_at_once():
    draws = torch.cat([torch.randint(0, 2, (32, 5, 2)), torch.randint(0, 9, (32, 5, 1))], -1).double()
    values, place = _distinct(draws)
    assert torch.equal(values.gather(0, place), draws)
    for entry in ((row, column) for row in range(5) for column in range(3)):
        distinct = draws[:, *entry].unique()
        assert torch.equal(values[:, *entry].unique(), distinct)
        assert int(place[:, *entry].max()) + 1 == len(distinct)
    assert len(values) == max(len(draws[:, row, 2].unique()) for row in range(5))
    assert len(_distinct(draws[..., :2])[0]) == 2
    assert len(_distinct(torch.rand(32, 5, 2))[0]) == 32


def test_programs_that_run_in_turn_say_the_same():
    torch.manual_seed(0)
    lg = LinearGaussian(scale=1.5)
    x = lg.draw(5)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            assert z.dim() == 2  # no draws beside one another
            return pyro.sample("x", dist.Normal(z @ lg.weight.T + lg.loc, lg.scale).to_event(1), obs=x)

    with pytest.warns(UserWarning, match="one after another"):
        nats = unexpectedness(Pair(model, lg.exact_pair().guide), x, num_particles=200)
    torch.testing.assert_close(nats, closed_form(lg, x), rtol=0.2, atol=0.6)


def test_what_does_not_factorise_is_refused():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.MultivariateNormal(z, torch.eye(2)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2, 1.0).to_event(1))

    with pytest.raises(ContractError, match=r"the MultivariateNormal at 'x' describes \(2,\) entries jointly"):
        unexpectedness(Pair(model, guide), torch.randn(4, 2), num_particles=5)
