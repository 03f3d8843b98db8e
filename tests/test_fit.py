"""What fit is given: objectives of Pyro's, optimisers of torch's, programs of all kinds; against loops by hand."""

import functools
import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from coverings import covering
from linear_gaussian import LinearGaussian
from pairs import discrete_pair, function_pair, mixture_pair, pyro_module_pair
from pyro.infer import (
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae import Elbo, Pair, epochs, fit
from pyro_vae.inference.structure import ContractError


class Methods(nn.Module):
    """Programs as methods that say nothing to Pyro of their modules, and take one batch dimension."""

    def __init__(self, norm=None):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(3, 4), norm or nn.Identity(), nn.Tanh(), nn.Linear(4, 2))
        self.decode = nn.Linear(1, 3)

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            assert z.dim() == 2, "one batch dimension"
            return pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encode(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def pair(self):
        return Pair(self.model, self.guide)


SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 0.01, "schedule": "constant", "progress": False}


def by_hand(pair, x, objective, optimizer, **settings):
    """The same training in Pyro's words: the mean loss of the rows of each step, in the order that fit documents."""
    settings = SETTINGS | settings
    order = torch.Generator().manual_seed(0)
    pyro.set_rng_seed(0)
    parameters = list(pair.parameters())
    stepper = optimizer(parameters, lr=settings["learning_rate"])
    for _ in range(settings["epochs"]):
        for index in torch.randperm(len(x), generator=order).split(settings["batch_size"]):
            stepper.zero_grad()
            objective.loss_and_grads(lambda rows: [pyro.module("pair", pair), pair.model(rows)], pair.guide, x[index])
            for parameter in parameters:
                parameter.grad /= len(index)
            stepper.step()
    return [parameter.detach().clone() for parameter in parameters]


def two(make):
    """Two pairs with the same weights."""
    pair, other = make(), make()
    other.load_state_dict(pair.state_dict())
    return pair, other


def assert_equal_weights(pair, expected, **tolerance):
    for (name, found), value in zip(pair.named_parameters(), expected, strict=True):
        torch.testing.assert_close(found.detach(), value, msg=name, **tolerance)


# Objectives


class Doubled(Trace_ELBO):
    """Somebody's own objective, made from Pyro's."""

    def differentiable_loss(self, model, guide, *args, **kwargs):
        return 2 * super().differentiable_loss(model, guide, *args, **kwargs)

    def loss_and_grads(self, model, guide, *args, **kwargs):
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return float(loss.detach())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "objective", [RenyiELBO(alpha=0.5, num_particles=3), TraceGraph_ELBO(), Doubled()], ids=lambda o: type(o).__name__
)
@pytest.mark.parametrize("make", [pyro_module_pair, lambda: Methods().pair()], ids=["modules", "methods"])
def test_an_objective_of_pyros_that_has_no_equal_here_runs_as_it_is(objective, make):
    pair, other = two(make)
    x = torch.randn(40, 3)
    history = fit(pair, x, objective=objective, **SETTINGS)
    assert_equal_weights(pair, by_hand(other, x, objective, torch.optim.Adam), rtol=1e-9, atol=1e-11)
    assert history.attrs["execution"].startswith("eager")
    assert type(objective).__name__ in history.attrs["execution"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("pyros", "ours"),
    [
        (Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1), Elbo(4)),
        (TraceMeanField_ELBO(), Elbo(kl="auto")),
        (TraceEnum_ELBO(max_plate_nesting=1), Elbo()),
    ],
    ids=["Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO"],
)
@pytest.mark.filterwarnings("ignore:TraceEnum_ELBO found no sample sites")
def test_an_objective_of_pyros_that_has_an_equal_here_trains_as_that(pyros, ours):
    pair, other = two(lambda: LinearGaussian().vae)
    x = LinearGaussian().draw(40)
    history = fit(pair, x, objective=pyros, **SETTINGS)
    equal = fit(other, x, objective=ours, **SETTINGS)
    assert history["elbo"].equals(equal["elbo"])
    assert history.attrs == equal.attrs
    third, fourth = two(lambda: LinearGaussian().vae)
    fit(third, x, objective=pyros, **SETTINGS)
    assert_equal_weights(third, by_hand(fourth, x, pyros, torch.optim.Adam), rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_an_objective_of_pyros_that_has_an_equal_here_is_compiled():
    pyros = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    pair, other = two(lambda: LinearGaussian().vae)
    x = LinearGaussian().draw(48)
    history = fit(pair, x, objective=pyros, compile=True, **SETTINGS)
    assert history.attrs["execution"].startswith("compiled")
    assert_equal_weights(pair, by_hand(other, x, pyros, torch.optim.Adam), rtol=1e-6, atol=1e-8)


@pytest.mark.usefixtures("float64")
def test_wake_sleep_takes_the_gradients_of_both_of_its_losses():
    objective = ReweightedWakeSleep(num_particles=4, vectorize_particles=False)
    pair, other = two(lambda: Methods().pair())
    x = torch.randn(32, 3)
    fit(pair, x, objective=objective, **SETTINGS)
    assert_equal_weights(pair, by_hand(other, x, objective, torch.optim.Adam), rtol=1e-9, atol=1e-11)


def test_an_objective_of_pyros_that_fails_says_so_in_one_sentence():
    class Broken(Trace_ELBO):
        def differentiable_loss(self, *args, **kwargs):
            raise KeyError("assignment")

    with pytest.raises(ContractError, match="Broken fails on these programs: KeyError: 'assignment'"):
        fit(Methods().pair(), torch.randn(32, 3), objective=Broken(), **SETTINGS)


# Optimisers


def adam_with_a_tensor(parameters, lr):
    return torch.optim.Adam(parameters, lr=torch.tensor(lr))


OPTIMIZERS = {
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr / 10, momentum=0.9, nesterov=True),
    "RMSprop": torch.optim.RMSprop,
    "AdamW": functools.partial(torch.optim.AdamW, weight_decay=0.1),
    "Adam with weight decay": functools.partial(torch.optim.Adam, weight_decay=0.1, amsgrad=True),
    "Rprop": torch.optim.Rprop,
    "a tensor as the rate": adam_with_a_tensor,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("compile", [False, True])
def test_an_optimiser_takes_the_steps_that_it_takes_by_hand(name, compile):
    pair, other = two(lambda: LinearGaussian().vae)
    x = LinearGaussian().draw(48)
    fit(pair, x, optimizer=OPTIMIZERS[name], compile=compile, **SETTINGS)
    expected = by_hand(other, x, Trace_ELBO(), OPTIMIZERS[name])
    assert_equal_weights(pair, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "plateau"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_goes_on_with_its_optimiser_where_it_was_stopped(name, schedule, tmp_path):
    settings = SETTINGS | {"schedule": schedule, "epochs": 5, "optimizer": OPTIMIZERS[name], "compile": False}
    whole, parts = two(lambda: LinearGaussian().vae)
    x = LinearGaussian().draw(40)
    expected = fit(whole, x, **settings)
    checkpoint = tmp_path / "checkpoint.safetensors"
    for epoch in epochs(parts, x, checkpoint=checkpoint, **settings):
        if epoch["epoch"] == 2:
            break
    again = LinearGaussian().vae
    history = fit(again, x, checkpoint=checkpoint, resume=True, **settings)
    assert_equal_weights(again, [p.detach() for p in whole.parameters()], rtol=0, atol=0)
    for column in ("elbo", "learning_rate"):
        assert history[column].equals(expected[column])


@pytest.mark.parametrize(
    ("optimizer", "sentence"),
    [
        (torch.optim.LBFGS, "LBFGS evaluates the objective several times per step"),
        (pyro.optim.Adam({"lr": 0.01}), "expected a class of torch.optim"),
        (torch.optim.Adam([torch.zeros(1, requires_grad=True)]), "expected a class of torch.optim"),
        ("adam", "expected a class of torch.optim"),
        (lambda parameters, lr: "no optimiser", "expected a class of torch.optim"),
    ],
    ids=["LBFGS", "Pyro's", "an instance", "a name", "a function of something else"],
)
def test_what_is_no_optimiser_is_refused_before_anything_changes(optimizer, sentence):
    pair, other = two(lambda: LinearGaussian().vae)
    with pytest.raises((TypeError, ValueError), match=sentence):
        fit(pair, torch.randn(40, 5), optimizer=optimizer, **SETTINGS)
    assert_equal_weights(pair, [p.detach() for p in other.parameters()], rtol=0, atol=0)


# The loop


def test_the_loop_yields_what_fit_tabulates_and_can_be_left():
    x = LinearGaussian().draw(60)
    settings = SETTINGS | {"epochs": 4, "validation_data": x[40:]}
    pair, other = two(lambda: LinearGaussian().vae)
    history = fit(pair, x[:40], **settings)
    before, rows = torch.get_rng_state(), []
    for epoch in epochs(other, x[:40], **settings):
        assert not other.training
        torch.rand(3)  # the caller's draws are no part of the run
        rows.append(epoch)
    assert not torch.equal(torch.get_rng_state(), before)
    assert [{k: v for k, v in row.items() if "second" not in k} for row in rows] == history.drop(
        columns=["seconds", "rows_per_second"]
    ).to_dict("records")
    assert_equal_weights(other, [p.detach() for p in pair.parameters()], rtol=0, atol=0)

    third = LinearGaussian().vae
    loop = epochs(third, x[:40], **settings)
    first = next(loop)
    loop.close()
    assert first["epoch"] == 1
    assert not third.training
    with pytest.raises(TypeError, match="learning_rat"):
        next(epochs(third, x, learning_rat=0.1))


@pytest.mark.parametrize(
    ("make", "compile"),
    [
        *((make, False) for make in (discrete_pair, function_pair, mixture_pair)),
        (function_pair, True),  # parameters of Pyro's store; of modules below, and of both in an exhaustive run
        *(pytest.param(make, True, marks=pytest.mark.exhaustive) for make in (discrete_pair, mixture_pair)),
    ],
)
@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_nothing_is_left_in_the_gradients(make, compile):
    pair = make()
    x = torch.randn(48, 4) if make is mixture_pair else torch.randn(48)
    for parameter in pair.parameters():
        parameter.grad = torch.ones_like(parameter)
    fit(pair, x, compile=compile, **SETTINGS)
    store = pyro.get_param_store()
    assert all(parameter.grad is None for parameter in pair.parameters())
    assert all(store.get_param(name).unconstrained().grad is None for name in store)


# Programs


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_a_last_row_alone_joins_the_batch_before_it(compile):
    programs = Methods(nn.BatchNorm1d(4))
    first, norm = programs.encode[:2]
    weight, bias = first.weight.detach().clone(), first.bias.detach().clone()
    x = torch.randn(17, 3)
    fit(programs.pair(), x, compile=compile, **SETTINGS | {"epochs": 1, "learning_rate": 1e-12})
    assert int(norm.num_batches_tracked) == 1  # of 17 rows, which are all
    hidden = x @ weight.T + bias
    torch.testing.assert_close(norm.running_mean, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * hidden.var(0), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_programs_for_one_batch_dimension_are_run_for_one_particle_after_another(compile):
    pair, other = two(lambda: Methods().pair())
    x = torch.randn(32, 3)
    fit(pair, x, objective=Elbo(3), compile=compile, **SETTINGS)
    expected = by_hand(other, x, Trace_ELBO(num_particles=3), torch.optim.Adam)
    assert_equal_weights(pair, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("autoguide", "compile"),
    covering(itertools.product([AutoNormal, AutoLowRankMultivariateNormal, AutoDelta], [False, True])),
)
@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_an_autoguide_comes_to_the_posterior_of_a_global_latent(autoguide, compile):
    torch.manual_seed(1)
    x = 1.5 + torch.randn(200)

    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    pair = Pair(model, autoguide(model))
    settings = SETTINGS | {"epochs": 150, "batch_size": 100, "learning_rate": 0.05, "schedule": "cosine"}
    fit(pair, x, compile=compile, **settings)
    precision = 200 + 1 / 4
    q = pair.encode(x)
    assert abs(float(q.mean.detach()) - float(x.sum() / precision)) < 0.02
    if autoguide is not AutoDelta:
        assert 0.8 < float(q.variance * precision) < 1.25


def test_a_second_guide_of_one_name_is_its_own_in_pyros_hands_too():
    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    for loc in (1.0, -1.0):
        guide = AutoDelta(model)
        fit(Pair(model, guide), loc + torch.zeros(20), epochs=100, batch_size=20, learning_rate=0.1, progress=False)
        assert float(guide.median()["mean"]) == pytest.approx(loc * 20 / 20.25, abs=0.01)


def test_progress_is_quiet_in_a_log(capfd):
    torch.manual_seed(0)
    fit(function_pair(), torch.randn(64), epochs=60, batch_size=8, compile=False)
    said = capfd.readouterr().err
    assert "480/480" in said
    assert said.count("%|") <= 2


@pytest.mark.usefixtures("as_traced")
def test_progress_says_that_programs_are_compiled_and_then_what_was_reached(capfd):
    torch.manual_seed(0)
    fit(function_pair(), torch.randn(64), epochs=3, batch_size=8, compile=True)
    first, *_, last = [
        line for line in capfd.readouterr().err.replace("\r", "\n").splitlines() if "compil" in line or "ELBO" in line
    ]
    assert "0/24" in first
    assert "compiling the programs" in first
    assert "24/24" in last
    assert "ELBO" in last
    assert "compiling" not in last
