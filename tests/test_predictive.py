"""Draws against the closed forms of the linear-Gaussian model, and against Pyro's own Predictive."""

import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from linear_gaussian import LinearGaussian
from pairs import function_pair, labelled_pair, mixture_pair
from pyro.infer import MCMC, NUTS, Predictive
from torch import nn

from pyro_vae import Pair, mlp_vae
from pyro_vae.inference.predictive import (
    chunk_shape,
    draw_posterior_predictive,
    draw_prior_predictive,
    interpolate_latents,
    latent_grid,
    predict_from_latents,
)
from pyro_vae.inference.structure import ContractError
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.transforms import Binarize, Scale


def assert_moments(draws, mean, covariance):
    """Mean and covariance of ``(S, D)`` draws within five standard errors of a normal's."""
    num_draws = len(draws)
    z_mean = (draws.mean(0) - mean) / (covariance.diagonal() / num_draws).sqrt()
    variance = covariance.diagonal()
    error = ((covariance**2 + variance[:, None] * variance) / num_draws).sqrt()
    z_covariance = (torch.cov(draws.T) - covariance) / error
    assert z_mean.abs().max() < 5
    assert z_covariance.abs().max() < 5


# Against closed forms


def test_prior_draws_have_the_moments_of_the_evidence():
    lg = LinearGaussian()
    assert_moments(lg.vae.sample(20_000), lg.loc, lg.covariance)


def test_means_of_prior_draws_lack_the_noise():
    lg = LinearGaussian()
    assert_moments(lg.vae.sample(20_000, mean=True)[:, :2], lg.loc[:2], (lg.weight @ lg.weight.T)[:2, :2])


def test_posterior_predictive_draws_have_the_moments_of_guide_and_model():
    lg = LinearGaussian()
    x = lg.draw(2)
    draws = lg.exact_pair().posterior_predictive(x, 5000)
    assert draws.shape == (5000, 2, 5)
    posterior = lg.posterior(x)
    for row in range(2):
        mean = posterior.mean[row] @ lg.weight.T + lg.loc
        covariance = lg.weight @ posterior.covariance_matrix[row] @ lg.weight.T
        assert_moments(draws[:, row], mean, covariance + lg.scale**2 * torch.eye(5))


def test_reconstructions_are_the_mean_at_the_posterior_mean():
    lg = LinearGaussian()
    x = lg.draw(4)
    torch.testing.assert_close(lg.exact_pair().reconstruct(x), lg.posterior(x).mean @ lg.weight.T + lg.loc)


def test_the_data_never_come_back_as_predictions():
    """A decoder that ignores z cannot know which row it was asked about."""
    vae = mlp_vae((3,), 2, hidden_dims=(), likelihood=Normal(scale=0.1))
    nn.init.zeros_(vae.decoder.network.layers[0].weight)
    nn.init.zeros_(vae.decoder.network.layers[0].bias)
    x = torch.full((4, 3), 50.0)
    assert vae.posterior_predictive(x, 5).abs().max() < 1
    assert vae.reconstruct(x).abs().max() == 0


# Against Pyro


def test_one_chunk_is_what_pyros_predictive_draws():
    vae = mlp_vae((4,), 2, likelihood=Bernoulli())
    pyro.set_rng_seed(1)
    for _ in range(2):  # as Predictive does, to learn about its sites
        vae.model(batch_size=6)
    ours = draw_prior_predictive(vae.model, 6)["x"]
    pyro.set_rng_seed(1)
    assert torch.equal(ours, Predictive(vae.model, num_samples=1, return_sites=("x",))(batch_size=6)["x"][0])


@pytest.mark.parametrize("parallel", [False, True])
def test_pyros_predictive_takes_our_programs_as_they_are(parallel):
    vae = mlp_vae((2, 3), 2, likelihood=Normal(scale=0.1))
    draws = Predictive(vae.model, num_samples=4000, parallel=parallel)(batch_size=2)
    assert draws["z"].shape == (4000, 2, 2)
    assert draws["x"].shape == (4000, 2, 2, 3)
    assert_moments(draws["z"][:, 0], torch.zeros(2), torch.eye(2))


def test_nuts_takes_our_model_as_it_is():
    torch.manual_seed(1)
    lg = LinearGaussian(scale=1.5)
    x = lg.draw(1)
    mcmc = MCMC(NUTS(lg.vae.model), num_samples=300, warmup_steps=100, disable_progbar=True)
    mcmc.run(x)
    z = mcmc.get_samples()["z"][:, 0]
    posterior = lg.posterior(x)
    # 300 draws of NUTS are worth about as many independent ones here; five standard errors.
    error = 5 * (posterior.variance[0] / 300).sqrt()
    assert ((z.mean(0) - posterior.mean[0]).abs() < error).all()
    assert z.var(0).tolist() == pytest.approx(posterior.variance[0].tolist(), rel=0.4)


# Any pair


def test_a_pair_with_a_mixture_prior_draws_from_all_its_components():
    pair = mixture_pair()
    with torch.no_grad():
        pair.model.decoder.weight.copy_(torch.eye(4, 2))
        pair.model.decoder.bias.zero_()
    x = pair.sample(9000)
    nearest = torch.cdist(x[:, :2], pair.model.locs).argmin(1)
    assert (torch.bincount(nearest, minlength=3) > 2500).all()


def test_global_latents_keep_their_shape():
    pair = function_pair()
    shapes = []

    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        shapes.append(mean.shape)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mean[1], 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        pyro.sample("mean", dist.Normal(torch.full((3,), 5.0), 0.01).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 0.01))

    draws = Pair(model, guide).posterior_predictive(torch.tensor([1.0, 2.0]), 400)
    # Before, a look at the programs asks whether they run for several draws at once, which ``mean[1]`` does not.
    assert shapes[-400:] == 400 * [torch.Size([3])]
    assert draws.mean(0).tolist() == pytest.approx([1, 2], abs=5 * 0.5 / 20)
    assert pair.posterior_predictive(torch.tensor([1.0, 2.0]), 3).shape == (3, 2)


def test_keyword_arguments_reach_the_programs_row_by_row():
    pair = labelled_pair()
    with torch.no_grad():
        pair.model.shift.copy_(torch.tensor([-100.0, 100.0]))
    labels = torch.arange(3000) % 2
    assert torch.equal((pair.sample(3000, given={"labels": labels}) > 0).long(), labels)
    rows = {"x": torch.zeros(3000), "labels": labels}
    draws = pair.posterior_predictive(rows, 2)
    assert torch.equal((draws > 0).long(), labels.expand(2, -1))
    assert torch.equal((pair.reconstruct(rows) > 0).long(), labels)


# Units, modes, memory


def test_results_are_in_the_users_units():
    bits = mlp_vae((4,), 2, likelihood=Bernoulli(), transform=Binarize(0, 16))
    assert set(bits.sample(50).unique().tolist()) == {0.0, 16.0}
    means = bits.sample(50, mean=True)
    assert ((means > 0) & (means < 16)).all()
    assert means.max() > 2
    grey = mlp_vae((4,), 2, likelihood=Normal(scale=0.01, link="sigmoid"), transform=Scale(0, 255))
    x = torch.full((3, 4), 100, dtype=torch.uint8)
    torch.testing.assert_close(grey.reconstruct(x), 255 * grey.decode(grey.encode(x).mean).mean)
    assert grey.posterior_predictive(x, 2).mean() > 50
    assert grey.interpolate(x, x, steps=3).mean() > 50


def test_evaluation_mode_is_set_and_each_modules_mode_put_back():
    lg = LinearGaussian()
    norm = nn.BatchNorm1d(2)
    lg.vae.decoder.network = nn.Sequential(norm, nn.Dropout(0.5), lg.affine, nn.Unflatten(1, (1, 5)))
    lg.vae.train()
    lg.vae.encoder.eval()
    before = [module.training for module in lg.vae.modules()]
    x = lg.draw(8)
    a, b = lg.vae.reconstruct(x), lg.vae.reconstruct(x)
    assert torch.equal(a, b)
    lg.vae.sample(10)
    lg.vae.posterior_predictive(x, 2)
    assert float(norm.num_batches_tracked) == 0
    assert [module.training for module in lg.vae.modules()] == before
    assert not a.requires_grad


def test_the_model_never_runs_on_more_rows_than_a_chunk():
    sizes = []

    class Count(nn.Module):
        def forward(self, z):
            sizes.append(z.shape[:-1].numel())
            return z[..., None, :]

    vae = mlp_vae((2,), 2, likelihood=Normal(scale=1.0))
    vae.decoder.network = Count()
    assert len(vae.sample(5000)) == 5000
    assert max(sizes) <= 1024
    del sizes[:]
    assert vae.posterior_predictive(torch.randn(3000, 2), 20).shape == (20, 3000, 2)
    assert max(sizes) <= 1024


def test_chunks_of_posterior_draws_are_put_where_they_belong():
    """Rows differ by far more than the noise, and come in parts of several sizes."""
    vae, x, sizes = mlp_vae((2,), 2, likelihood=Normal(scale=1.0)), torch.randn(300, 2), []

    class Count(nn.Module):
        def forward(self, z):
            sizes.append(z.shape[:-1].numel())
            return z[..., None, :]

    vae.decoder.network = Count()
    pair = Pair(vae.model, _guide_at_ten_x)
    batch = pair.batch(x)
    structure = pair.structure(batch)
    for elements, most in ((2, 64), (2**19 // 10, 8)):
        del sizes[:]
        batches = batch.chunks(70)
        drawn = draw_posterior_predictive(*pair.programs, batches, 300, 40, structure, elements=elements)["x"]
        assert max(sizes) <= most
        assert (drawn.mean(0) - 10 * x).abs().max() < 5 / 40**0.5


def test_chunks_are_counted_by_their_elements():
    for elements in (1, 5, 127, 784, 3 * 64 * 64, 2**19 + 1, 2**22, 2**24):
        runs, rows = chunk_shape(elements)
        assert runs >= 1
        assert 1 <= rows <= 1024
        assert rows == 1 or rows * elements <= 2**19
        assert runs * rows == 1 or runs * rows * elements <= 2**22
    assert chunk_shape(2**18) == (8, 2)  # as many as may be


def test_a_program_runs_little_more_often_than_it_must():
    """Predictive's two runs for sites and shapes are shared by the runs of a chunk, and each row is drawn once."""
    sizes, labels = [], torch.arange(5000)

    def model(x=None, *, batch_size=None, labels=None):
        sizes.append(batch_size)
        with pyro.plate("data", batch_size, dim=-1):
            return pyro.sample("x", dist.Delta(labels.float()))

    drawn = draw_prior_predictive(model, 5000, arguments={"labels": labels}, shape=(8, 100))["x"]
    assert torch.equal(drawn, labels.float())  # every row has its own keyword arguments
    assert max(sizes) == 100
    assert len(sizes) <= 5000 / 100 * (8 + 2) / 8 + 2


def test_a_streamed_file_holds_the_numbers_that_come_back_in_memory(tmp_path):
    vae = mlp_vae((4, 3), 2, likelihood=Bernoulli(), transform=Binarize(0, 16))
    pair, x, labels = labelled_pair(), torch.randn(700), torch.arange(700) % 2
    for number, draw in enumerate(
        [
            lambda **to: vae.sample(9001, **to),
            lambda **to: vae.sample(50, mean=True, **to),
            lambda **to: pair.sample(700, given={"labels": labels}, **to),
            lambda **to: vae.posterior_predictive(torch.zeros(130, 4, 3), 37, **to),
            lambda **to: pair.posterior_predictive({"x": x, "labels": labels}, 20, **to),
        ]
    ):
        path = tmp_path / f"{number}.npy"
        torch.manual_seed(3)
        streamed = draw(out=path)
        torch.manual_seed(3)
        expected = draw().numpy()
        assert isinstance(streamed, np.memmap)
        assert not streamed.flags.writeable
        assert streamed.dtype == np.float32
        assert np.array_equal(streamed, expected)
        assert np.array_equal(np.load(path), expected)


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_a_run_that_ends_early_leaves_the_file_that_was_there(tmp_path, error):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(3))
    runs = []

    class Failing(nn.Module):
        def forward(self, z):
            runs.append(len(list(tmp_path.iterdir())))
            if len(runs) == 15:
                raise error
            return z[..., None, :]

    vae = mlp_vae((2,), 2, likelihood=Normal(scale=1.0))
    vae.decoder.network = Failing()
    vae.train()
    with pytest.raises(error):
        vae.sample(100_000, out=path)
    assert runs[-1] == 2  # it had begun to write
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert np.load(path).tolist() == [0, 1, 2]
    assert vae.decoder.network.training
    assert torch.is_grad_enabled()


def test_files_that_cannot_be_are_refused_before_the_draws(tmp_path, monkeypatch):
    vae = mlp_vae((1000, 1000), 1, hidden_dims=(), likelihood=Bernoulli())
    with pytest.raises(ValueError, match=r"must end in \.npy, found x\.pt"):
        vae.sample(10, out="x.pt")
    with pytest.raises(ValueError, match=r"takes 4,000,000\.0 GB, but .* GB free: make room"):
        vae.sample(1_000_000_000, out=tmp_path / "x.npy")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot write in"):
        vae.sample(10, out=tmp_path / "file" / "x.npy")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_draws(tmp_path):
    """157 megabytes of draws, by which the allocator settles, then 314: the highest memory is about the same."""
    script = """
import sys
from pyro_vae import mlp_vae
from pyro_vae.likelihoods import Bernoulli

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

vae = mlp_vae((28, 28), 2, hidden_dims=(8,), likelihood=Bernoulli())
vae.sample(50_000, out=sys.argv[1])
before = peak()
vae.sample(100_000, out=sys.argv[1])
print(peak() - before)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "x.npy")]
    growth = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert (tmp_path / "x.npy").stat().st_size > 313_000_000
    assert growth < 24 * 1024


def _guide_at_ten_x(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(10 * x, 1e-6).to_event(1))


@pytest.mark.parametrize("number", [0, -3])
def test_a_number_of_draws_below_one_is_refused(number):
    lg = LinearGaussian()
    with pytest.raises(ValueError, match=f"at least 1, found {number}"):
        lg.vae.sample(number)
    with pytest.raises(ValueError, match=f"at least 1, found {number}"):
        lg.vae.posterior_predictive(lg.draw(2), number)


# Latents


def test_encode_and_decode_are_the_programs_own_distributions():
    lg = LinearGaussian()
    x, z = lg.draw(3), torch.randn(3, 2)
    q_z, p_x = lg.vae.encode(x), lg.vae.decode(z)
    assert (q_z.batch_shape, q_z.event_shape) == ((3,), (2,))
    torch.testing.assert_close(q_z.log_prob(z), lg.vae.encoder(x).log_prob(z).detach())
    torch.testing.assert_close(p_x.log_prob(x), dist.Normal(z @ lg.weight.T + lg.loc, 0.7).to_event(1).log_prob(x))
    torch.testing.assert_close(lg.exact_pair().encode(x).mean, lg.posterior(x).mean)


def test_a_guide_without_a_latent_of_the_model_is_told_so():
    pair = function_pair()

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(ContractError, match="the guide does not sample the model's latent 'mean'"):
        Pair(pair.model, guide).encode(torch.randn(3))


def test_interpolation_starts_and_ends_at_the_reconstructions():
    lg = LinearGaussian()
    a, b = lg.draw(3), lg.draw(3)
    for path in ("linear", "spherical"):
        way = lg.vae.interpolate(a, b, steps=7, path=path)
        assert way.shape == (7, 3, 5)
        torch.testing.assert_close(way[0], lg.vae.reconstruct(a))
        torch.testing.assert_close(way[-1], lg.vae.reconstruct(b))
    middle = lg.vae.interpolate(a, b, steps=3)[1]
    torch.testing.assert_close(middle, (lg.vae.reconstruct(a) + lg.vae.reconstruct(b)) / 2)
    with pytest.raises(ValueError, match="3 rows and b has 2"):
        lg.vae.interpolate(a, b[:2])


def test_the_spherical_path_keeps_to_the_sphere_at_even_angles():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    way = interpolate_latents(a, b, 4, path="spherical")[:, 0]
    angles = torch.tensor([0, 30, 60, 90]).deg2rad()
    torch.testing.assert_close(way, torch.stack([angles.cos(), angles.sin()], -1), atol=1e-6, rtol=0)
    straight = interpolate_latents(a, 2 * a, 3, path="spherical")[:, 0, 0]
    assert straight.tolist() == pytest.approx([1, 1.5, 2])
    with pytest.raises(ValueError, match="steps >= 2"):
        interpolate_latents(a, b, 1)
    with pytest.raises(ValueError, match="unknown path"):
        interpolate_latents(a, b, 3, path="cubic")


def test_latents_left_out_are_drawn_by_the_model():
    pair = function_pair()
    x = predict_from_latents(pair.model, {"mean": torch.tensor([100.0, -100.0])}, 3)["x"]
    assert (x[0] > 50).all()
    assert (x[1] < -50).all()


def test_the_latent_grid_holds_quantiles_of_the_prior():
    grid = latent_grid(5)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.025, 0.975, 5))
    torch.testing.assert_close(grid[2, :, 0], quantiles)
    torch.testing.assert_close(grid[:, 3, 1], quantiles)


def test_a_model_without_latents_draws_each_time_again():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(torch.tensor(2.0), 1.0), obs=x)

    draws = Pair(model, lambda x: None).posterior_predictive(torch.randn(50), 40)
    assert draws.shape == (40, 50)
    assert len(draws.unique()) == 2000
    assert float(draws.mean()) == pytest.approx(2.0, abs=5 / 2000**0.5)
