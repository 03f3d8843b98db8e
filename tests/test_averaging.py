"""Averaged weights: the average that they should be, in every way of running, and kept when a run is resumed."""

import math
from typing import Any

import pytest
import torch
from linear_gaussian import LinearGaussian

from pyro_vae import epochs, evaluate, fit, mlp_vae
from pyro_vae.likelihoods import Normal
from pyro_vae.training.averaging import WeightAverage

SETTINGS: dict[str, Any] = {"epochs": 4, "batch_size": 16, "learning_rate": 0.01, "progress": False, "compile": False}
ONE_EPOCH: dict[str, Any] = SETTINGS | {"epochs": 1}


def rows(seed=0, num_rows=48):
    return torch.randn(num_rows, 3, generator=torch.Generator().manual_seed(seed))


def small_vae():
    torch.manual_seed(0)
    return mlp_vae((3,), 2, hidden_dims=(4,), likelihood=Normal())


def weights_of(pair):
    return [parameter.detach().clone() for parameter in pair.parameters()]


class Recording:
    """Adam, which notes the weights after each of its steps."""

    def __init__(self):
        self.steps = []

    def __call__(self, parameters, lr):
        optimizer = torch.optim.Adam(parameters, lr=lr)
        optimizer.register_step_post_hook(lambda *_: self.steps.append([p.detach().double() for p in parameters]))
        return optimizer


def averaged_by_hand(steps, decay):
    counts = [decay ** (len(steps) - 1 - number) for number in range(len(steps))]
    return [
        sum(count * weight for count, weight in zip(counts, of_one, strict=True)) / sum(counts)
        for of_one in zip(*steps, strict=True)
    ]


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.9999])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_weights_are_the_mean_of_those_after_each_step_that_was_worked_out_by_hand(decay, max_grad_norm):
    vae, recording = small_vae(), Recording()
    fit(vae, rows(), optimizer=recording, average_weights=decay, max_grad_norm=max_grad_norm, **SETTINGS)
    assert len(recording.steps) == 12
    for found, expected in zip(vae.parameters(), averaged_by_hand(recording.steps, decay), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=1e-8)
    assert any(not torch.equal(p.double(), last) for p, last in zip(vae.parameters(), recording.steps[-1], strict=True))


def test_the_first_step_is_all_of_the_average_and_no_start_is_in_it():
    weights = [torch.full((2,), 1e9), torch.tensor(-3.0)]
    average = WeightAverage(weights, 0.999)
    for weight in weights:
        weight.fill_(0.1)
    average.add_step()
    assert all(torch.equal(value, weight) for value, weight in zip(average.values, weights, strict=True))


def test_the_steps_are_the_same_with_an_average_and_without():
    with_average, without = Recording(), Recording()
    history = fit(small_vae(), rows(), optimizer=with_average, average_weights=0.9, **SETTINGS)
    expected = fit(small_vae(), rows(), optimizer=without, **SETTINGS)
    assert history["elbo"].tolist() == expected["elbo"].tolist()
    for found, other in zip(with_average.steps, without.steps, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, other, strict=True))


def test_averages_are_validated_shown_between_epochs_and_kept_as_the_best():
    vae, x_valid, shown = small_vae(), rows(1), []
    for epoch in epochs(vae, rows(), validation_data=x_valid, average_weights=0.8, **SETTINGS | {"learning_rate": 3.0}):
        shown.append((epoch["validation_elbo"], weights_of(vae)))
        again = fit(mlp_like(vae), x_valid, validation_data=x_valid, **SETTINGS | {"epochs": 1, "learning_rate": 1e-30})
        assert again["validation_elbo"].tolist() == pytest.approx([epoch["validation_elbo"]], rel=1e-5)
    best = max(shown, key=lambda pair: pair[0])[1]
    assert not all(torch.equal(a, b) for a, b in zip(best, shown[-1][1], strict=True))  # else it would show nothing
    assert all(torch.equal(a, b) for a, b in zip(best, weights_of(vae), strict=True))


def mlp_like(vae):
    other = small_vae()
    other.load_state_dict(vae.state_dict())
    return other


@pytest.mark.parametrize("validation_data", [None, rows(1)], ids=["alone", "with validation"])
def test_a_run_goes_on_to_the_same_numbers(tmp_path, validation_data):
    path = tmp_path / "checkpoint.safetensors"
    settings = SETTINGS | {"average_weights": 0.9, "validation_data": validation_data}
    whole, parts, again = small_vae(), small_vae(), small_vae()
    expected = fit(whole, rows(), **settings)
    for epoch in epochs(parts, rows(), checkpoint=path, **settings):
        if epoch["epoch"] == 2:
            break
    history = fit(again, rows(), checkpoint=path, resume=True, **settings)
    columns = [name for name in history if "elbo" in name]
    assert history[columns].equals(expected[columns])
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(("before", "after"), [(None, 0.9), (0.9, None), (0.9, 0.99)])
def test_a_run_with_another_average_is_refused_by_name(tmp_path, before, after):
    path = tmp_path / "checkpoint.safetensors"
    fit(small_vae(), rows(), checkpoint=path, average_weights=before, **ONE_EPOCH)
    with pytest.raises(ValueError, match=f"average_weights={before}, found average_weights={after}"):
        fit(small_vae(), rows(), checkpoint=path, resume=True, average_weights=after, **ONE_EPOCH)


def test_where_training_diverges_the_averages_of_the_last_whole_epoch_are_put_back():
    class Diverging:
        num_particles, calls = 1, 0

        def __call__(self, draws, progress):
            self.calls += 1
            return (draws.reconstruction - draws.rate).mean(0) * (math.nan if self.calls > 2 * 3 else 1.0)

    vae, shown = small_vae(), []
    with pytest.raises(FloatingPointError, match="weights of epoch 2 are restored"):
        shown.extend(
            weights_of(vae) for _ in epochs(vae, rows(), objective=Diverging(), average_weights=0.9, **SETTINGS)
        )
    for _ in epochs(other := small_vae(), rows(), average_weights=0.9, **SETTINGS):
        shown.append(weights_of(other))
    assert all(torch.equal(a, b) for a, b in zip(weights_of(vae), shown[1], strict=True))


@pytest.mark.usefixtures("float64")
def test_noise_of_the_steps_is_averaged_out():
    """At a constant rate the last weights of a linear model are off by the noise of a step, and their average less."""
    truth = LinearGaussian()
    x = truth.draw(400)
    elbos = {}
    for decay in (None, 0.98):
        torch.manual_seed(1)
        vae = mlp_vae((5,), 2, hidden_dims=(), likelihood=Normal(scale=0.7))
        settings = SETTINGS | {"epochs": 25, "batch_size": 20, "learning_rate": 0.05, "schedule": "constant"}
        fit(vae, x, average_weights=decay, **settings)
        elbos[decay] = evaluate(vae, x)["elbo"]
    assert elbos[None] + 0.1 < elbos[0.98]
    assert elbos[0.98] == pytest.approx(float(truth.log_evidence(x).mean()), abs=0.1)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, math.nan])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="average_weights must be between 0 and 1"):
        fit(small_vae(), rows(), average_weights=decay, **SETTINGS)
