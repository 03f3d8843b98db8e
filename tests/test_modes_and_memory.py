"""What the guide misses, what latents say of a row, and copies of training rows, each beside a closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae import Pair
from pyro_vae.evaluation import find_modes, latent_information, memory_of


def gaussian(slope, noise=1.0):
    """x = slope · z + noise, with its exact posterior."""
    variance = 1 / (1 + slope**2 / noise**2)

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(slope * z, noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(variance * slope * x / noise**2, variance**0.5))

    return Pair(model, guide)


@pytest.mark.parametrize("slope", [0.3, 1.0, 2.0])
def test_information_is_that_of_a_noisy_channel(slope):
    pair = gaussian(slope)
    found = latent_information(pair, pair.sample(4000), num_others=127, seed=7)["z"]
    capacity = 0.5 * math.log(1 + slope**2)
    assert found.mean() == pytest.approx(capacity, abs=0.04)
    assert found.max() <= math.log(128) + 1e-9


def test_information_of_several_latents_adds_up():
    """a over b over x, and c, which is drawn after both whatever they are."""

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(torch.zeros(()), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("c", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            b = pyro.sample("b", dist.Normal(2 / 3 * x, (2 / 3) ** 0.5))
            pyro.sample("a", dist.Normal(b / 2, 0.5**0.5))
            pyro.sample("c", dist.Normal(b, 1.0))

    pair = Pair(model, guide)
    found = latent_information(pair, pair.sample(3000), num_others=63, seed=5)
    assert list(found) == ["b", "a", "c"]
    assert found["b"].mean() == pytest.approx(0.5 * math.log(3), abs=0.05)
    assert found["a"].abs().max() < 1e-4  # given b, neither says more of the row
    assert found["c"].abs().max() < 1e-4


def test_one_row_has_none_to_be_told_from():
    with pytest.raises(ValueError, match="compares rows with others, and found a single one"):
        latent_information(gaussian(1.0), torch.zeros(1))


def test_chains_find_nothing_beyond_an_exact_guide():
    lg = LinearGaussian()
    x = lg.draw(10)
    found = find_modes(lg.exact_pair(), x)
    torch.testing.assert_close(found.by_guide, lg.log_evidence(x).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.by_all, lg.log_evidence(x).double(), atol=0.06, rtol=0)
    assert float(found.missed.mean()) < 0.02


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_chains_find_the_mode_that_the_guide_misses(share):
    """Two modes of the prior, of which the rows say nothing: the evidence that is missed has a closed form."""
    shares = torch.tensor([share, 1 - share])

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            modes = dist.Normal(torch.tensor([3.0, -3.0]), 0.5)
            pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(shares), modes))
            return pyro.sample("x", dist.Normal(torch.zeros(()), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(torch.full((len(x),), 3.0), 0.5))

    found = find_modes(Pair(model, guide), torch.randn(12))
    assert float(found.gain.mean()) == pytest.approx(-math.log(share), abs=0.08)
    assert float(found.missed.mean()) == pytest.approx(1 - share, abs=0.06)


def test_there_must_be_something_to_move():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Bernoulli(x.sigmoid()))

    with pytest.raises(ValueError, match="the latent 'z' is discrete"):
        find_modes(Pair(model, guide), torch.randn(3))


def test_new_rows_are_as_near_to_either_set():
    x = torch.randn(1500, 4)
    found = memory_of(x[:300], x[300:1200], x[1200:])
    assert found.nearer == pytest.approx(0.5, abs=4 * found.standard_error)
    assert found.standard_error == pytest.approx((601 / (12 * 300 * 300)) ** 0.5)
    assert (found.leaked, found.twins) == (0.0, 0.0)


def test_samples_in_the_middle_are_no_copies():
    """They are nearer to training rows than new rows are, and to all others as well."""
    x = torch.randn(1500, 4)
    found = memory_of(0.3 * x[:300], x[300:1200], x[1200:])
    assert found.nearer == pytest.approx(0.5, abs=0.1)


def test_copies_and_leaks_are_counted():
    x = torch.randn(1000, 4)
    train, held = x[:600], x[600:]
    assert memory_of(train[:200] + 1e-3, train, held).nearer > 0.98
    assert memory_of(torch.randn(200, 4), train, torch.cat([train[:100], held[:300]])).leaked == 0.25
    bits = torch.randint(0, 2, (500, 3)).float()
    found = memory_of(bits[:100], bits[100:400], bits[400:])  # eight different rows: all occur in both
    assert (found.leaked, found.twins) == (1.0, 1.0)
    assert found.nearer == pytest.approx(0.5)
    with pytest.raises(ValueError, match="4, 4 and 2 elements"):
        memory_of(x, x, x[:, :2])
