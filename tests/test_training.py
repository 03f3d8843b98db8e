"""fit against Pyro's SVI, against itself interrupted, and on programs that are not ours."""

import json
import math
from typing import ClassVar

import numpy as np
import pyro
import pytest
import torch
from linear_gaussian import LinearGaussian, resident
from pairs import discrete_pair, function_pair, labelled_pair, mixture_pair, pyro_module_pair
from pyro.infer import SVI, Trace_ELBO

from pyro_vae import Elbo, evaluate, fit, mlp_vae
from pyro_vae._support.files import read_tensors
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.training.elbo import elbo_per_row
from pyro_vae.transforms import Binarize, Identity

TIMES = ["seconds", "rows_per_second"]


def small_vae(seed=0, **kwargs):
    torch.manual_seed(seed)
    kwargs = {"likelihood": Bernoulli(), "transform": Binarize(0, 16), **kwargs}
    return mlp_vae((4, 4), 2, hidden_dims=(8,), **kwargs)


def grey_levels(num_rows=64):
    return torch.randint(0, 17, (num_rows, 4, 4), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def epochs_of(num_rows, batch_size, epochs, seed):
    """The batches that fit takes, by its documented order."""
    order = torch.Generator().manual_seed(seed)
    return [b for _ in range(epochs) for b in torch.randperm(num_rows, generator=order).split(batch_size)]


# Against Pyro


@pytest.mark.usefixtures("float64")
def test_fit_takes_the_same_steps_as_svi_with_trace_elbo():
    x = LinearGaussian().draw(50)
    ours, theirs = (LinearGaussian().vae for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fit(ours, x, epochs=3, batch_size=16, learning_rate=0.01, schedule="constant", seed=7, progress=False)

    pyro.set_rng_seed(7)
    svi = SVI(
        theirs.model,
        theirs.guide,
        pyro.optim.Adam({"lr": 0.01}),
        loss=lambda model, guide, rows: Trace_ELBO().differentiable_loss(model, guide, rows) / len(rows),
    )
    for index in epochs_of(50, 16, 3, seed=7):
        svi.step(x[index])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.usefixtures("float64")
def test_clipping_bounds_the_norm_of_the_whole_gradient():
    x = LinearGaussian().draw(48)
    ours, theirs = (LinearGaussian().vae for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    fit(ours, x, epochs=2, batch_size=16, learning_rate=0.01, schedule="constant", max_grad_norm=0.7, progress=False)

    pyro.set_rng_seed(0)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=0.01)
    for index in epochs_of(48, 16, 2, seed=0):
        optimizer.zero_grad()
        (Trace_ELBO().differentiable_loss(theirs.model, theirs.guide, x[index]) / 16).backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs.parameters() if p.grad is not None))
        assert norm > 0.7
        for p in theirs.parameters():
            p.grad *= 0.7 / (norm + 1e-6)
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


# Repeatable, and resumable


def test_the_same_seed_gives_the_same_history_and_another_seed_another():
    histories = [
        fit(small_vae(), grey_levels(), validation_data=grey_levels(9), epochs=3, batch_size=16, seed=s, progress=False)
        for s in (4, 4, 5)
    ]
    a, b, c = (h.drop(columns=TIMES) for h in histories)
    assert a.equals(b)
    assert not a["elbo"].equals(c["elbo"])


class _InterruptedBinarize(Binarize):
    """Ctrl-C at the n-th batch."""

    calls = 0
    stop_at = -1

    def forward(self, x):
        type(self).calls += 1
        if type(self).calls == type(self).stop_at:
            raise KeyboardInterrupt
        return super().forward(x)


_InterruptedBinarize.__name__ = "Binarize"  # a run goes on with the transform that it began with


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
@pytest.mark.parametrize("validated", [False, True])
def test_a_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path, schedule, validated):
    arguments = {
        "epochs": 6,
        "batch_size": 24,
        "learning_rate": 0.02,
        "schedule": schedule,
        "objective": Elbo(kl_warmup=4 / 6),
        "progress": False,
        "validation_data": grey_levels(10) if validated else None,
    }
    whole = small_vae()
    expected = fit(whole, grey_levels(), **arguments)

    path = tmp_path / "checkpoint.safetensors"
    stopped = small_vae(transform=_InterruptedBinarize(0, 16))
    per_epoch = 3 + int(validated)
    _InterruptedBinarize.calls = 0
    # check() and the search for parameters call it too; the stop falls in the middle of the fourth epoch.
    _InterruptedBinarize.stop_at = 1 + int(validated) + 1 + 3 * per_epoch + 2
    partial = fit(stopped, grey_levels(), checkpoint=path, **arguments)
    assert partial.attrs["stopped"] == "interrupted"
    assert len(partial) == 3

    torch.rand(5)  # time passes
    resumed = small_vae(seed=99)
    history = fit(resumed, grey_levels(), checkpoint=path, resume=True, **arguments)
    assert history.attrs == expected.attrs
    assert history.drop(columns=TIMES).equals(expected.drop(columns=TIMES))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_resuming_functions_restores_the_parameters_in_pyros_store(tmp_path):
    path, x = tmp_path / "checkpoint.safetensors", torch.randn(40)
    arguments = {"epochs": 4, "batch_size": 10, "learning_rate": 0.05, "progress": False}
    expected = fit(function_pair(), x, **arguments)
    truth = {name: value.clone() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()

    fit(function_pair(), x, checkpoint=path, **arguments)
    pyro.clear_param_store()
    history = fit(function_pair(), x, checkpoint=path, resume=True, **arguments)
    assert history["elbo"].equals(expected["elbo"])
    assert {name: value.tolist() for name, value in pyro.get_param_store().items()} == {
        name: value.tolist() for name, value in truth.items()
    }


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    fit(small_vae(), grey_levels(), epochs=1, batch_size=16, checkpoint=path, progress=False)
    assert json.loads(read_tensors(path)[1]["numbers"])["identity"]["batch_size"] == 16
    with pytest.raises(ValueError, match="batch_size=16, found batch_size=32"):
        fit(small_vae(), grey_levels(), epochs=1, batch_size=32, checkpoint=path, resume=True, progress=False)
    other = mlp_vae((4, 4), 3, likelihood=Bernoulli(), transform=Binarize(0, 16))
    with pytest.raises(ValueError, match="from another model"):
        fit(other, grey_levels(), epochs=1, batch_size=16, checkpoint=path, resume=True, progress=False)
    with pytest.raises(ValueError, match="needs checkpoint"):
        fit(small_vae(), grey_levels(), resume=True)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="damaged or half-written"):
        fit(small_vae(), grey_levels(), epochs=1, batch_size=16, checkpoint=path, resume=True, progress=False)


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    vae = mlp_vae((4, 4), 2, likelihood=Normal())
    torch.manual_seed(3)
    fit(vae, torch.zeros(8, 4, 4), epochs=1, batch_size=4, validation_data=torch.zeros(2, 4, 4), progress=False)
    assert torch.equal(torch.rand(2), expected[0])
    assert np.array_equal(np.random.rand(2), expected[1])


# What it does with the data


class _Spy(Identity):
    """Keeps the rows that a model is shown."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.flatten(1)[:, 0].clone())
        return x


def test_validation_rows_are_never_trained_on():
    vae = mlp_vae((1,), 1, hidden_dims=(2,), likelihood=Normal(), transform=_Spy())
    valid = torch.full((4, 1), 100.0)

    trained_on = []
    step = torch.optim.Adam.step

    def record(self, *args, **kwargs):
        trained_on.append(vae.transform.seen[-1])
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", record)
        fit(vae, torch.arange(10.0)[:, None], validation_data=valid, epochs=2, batch_size=4, progress=False)
    rows = torch.cat(trained_on)
    assert sorted(rows.tolist()) == sorted(2 * list(range(10)))
    assert any((seen == 100).all() for seen in vae.transform.seen)


def test_grey_levels_are_binarised_anew_in_every_epoch():
    class Record(Binarize):
        rows: ClassVar[list] = []

        def forward(self, x):
            y = super().forward(x)
            if self.training:
                self.rows.append(y)
            return y

    Record.rows.clear()
    vae = small_vae(transform=Record(0, 16))
    x = torch.full((32, 4, 4), 4, dtype=torch.uint8)
    fit(vae, x, epochs=20, batch_size=32, progress=False)
    drawn = torch.stack(Record.rows[-20:])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(drawn[0], drawn[1])
    standard_error = (0.25 * 0.75 / drawn.numel()) ** 0.5
    assert abs(float(drawn.mean()) - 0.25) < 5 * standard_error


def test_history_reports_warmup_schedule_and_terms():
    history = fit(
        small_vae(),
        grey_levels(),
        objective=Elbo(kl_warmup=0.5),
        epochs=4,
        batch_size=16,
        learning_rate=0.1,
        progress=False,
    )
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    assert history["kl_weight"].tolist() == [3 / 8, 7 / 8, 1, 1]  # at each epoch's last step
    assert history["learning_rate"].tolist() == pytest.approx([0.1, 0.1, 0.1, 0.05])
    assert history["elbo"].tolist() == pytest.approx((history["reconstruction"] - history["kl"]).tolist())
    assert (history["objective"][:2] > history["elbo"][:2]).all()  # of which the KL is a part only
    assert history["objective"][2:].tolist() == pytest.approx(history["elbo"][2:].tolist())


def test_early_stopping_keeps_the_best_weights():
    """Sixteen rows are soon known by heart; what held-out rows gain from that is less than nothing."""
    vae = mlp_vae((4, 4), 2, hidden_dims=(64,), likelihood=Bernoulli())
    x, x_valid = torch.rand(16, 4, 4).round(), torch.rand(200, 4, 4).round()
    history = fit(
        vae, x, validation_data=x_valid, epochs=400, batch_size=8, learning_rate=0.02, patience=5, progress=False
    )
    best = history.attrs["best_epoch"]
    assert history.attrs["stopped"] == "early"
    assert len(history) == best + 5
    assert best == history["validation_elbo"].idxmax() + 1
    reconstruction, kl = elbo_per_row(vae, resident(x_valid))
    assert float((reconstruction - kl).double().mean()) == pytest.approx(history["validation_elbo"].max(), rel=1e-6)
    assert evaluate(vae, x_valid)["elbo"] > history["validation_elbo"].iloc[-1]


def test_an_elbo_that_is_no_number_stops_the_run_with_the_last_whole_epochs_weights():
    class Breaks(Identity):
        calls = 0

        def forward(self, x):
            type(self).calls += 1
            return x * (float("nan") if type(self).calls > 5 else 1.0)

    vae = mlp_vae((2,), 1, hidden_dims=(), likelihood=Normal(), transform=Breaks())
    with pytest.raises(FloatingPointError, match=r"became nan in epoch 2 .* the weights of epoch 1"):
        fit(vae, torch.randn(24, 2), epochs=5, batch_size=8, progress=False)
    assert all(torch.isfinite(p).all() for p in vae.parameters())


# Any pair


def test_two_vaes_train_in_one_process_without_touching_each_other():
    x = torch.rand(16, 4, 4).round()
    first, second = (mlp_vae((4, 4), 2, hidden_dims=(8,), likelihood=Bernoulli()) for _ in range(2))
    states = [{k: v.clone() for k, v in vae.state_dict().items()} for vae in (first, second)]

    def moved(vae, state):
        return [not torch.equal(vae.state_dict()[name], tensor) for name, tensor in state.items()]

    for train in (
        lambda vae: fit(vae, x, epochs=1, batch_size=8, progress=False),
        lambda vae: SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x),
    ):
        train(first)
        assert all(moved(first, states[0]))
        assert not any(moved(second, states[1]))
        states[0] = {k: v.clone() for k, v in first.state_dict().items()}
        train(second)
        assert all(moved(second, states[1]))
        assert not any(moved(first, states[0]))
        states[1] = {k: v.clone() for k, v in second.state_dict().items()}


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (mixture_pair, torch.randn(200, 4) + 3),
        (function_pair, torch.randn(200) + 3),
        (discrete_pair, torch.randn(200) + 3),
        (pyro_module_pair, torch.randn(200, 3) + 3),
    ],
    ids=["mixture prior", "functions", "discrete", "PyroModules"],
)
def test_programs_of_the_users_own_train(make, x):
    history = fit(make(), x, epochs=15, batch_size=50, learning_rate=0.05, progress=False)
    assert history["elbo"].iloc[-3:].mean() > history["elbo"].iloc[:3].mean() + 0.5


def test_modules_of_one_name_do_not_share_parameters():
    """In Pyro's store the second pair would find the first one's parameters."""
    first, second = pyro_module_pair(), pyro_module_pair()
    fit(first, torch.randn(32, 3) + 5, epochs=3, batch_size=8, learning_rate=0.1, progress=False)
    assert all(torch.equal(p, torch.zeros(3)) or "guide" in n for n, p in second.named_parameters())
    fit(second, torch.randn(32, 3) - 5, epochs=3, batch_size=8, learning_rate=0.1, progress=False)
    assert (first.model.loc > 0).all()
    assert (second.model.loc < 0).all()
    assert not len(pyro.get_param_store())


def test_functions_leave_their_parameters_in_pyros_store_where_pyro_finds_them():
    x = torch.randn(500) * 1.1 + 3
    fit(function_pair(), x, epochs=200, batch_size=100, learning_rate=0.2, progress=False)
    store = pyro.get_param_store()
    # One row is Normal(mean, sqrt(1 + 0.25)): the posterior of the mean is known.
    assert float(store["loc"].detach()) == pytest.approx(float(x.mean()), abs=0.1)
    assert float(store["slope"].detach()) == pytest.approx(1 / 1.25, abs=0.1)
    assert float(store["spread"].detach()) == pytest.approx((0.25 / 1.25) ** 0.5, abs=0.1)
    assert float(store["scale"].detach()) == pytest.approx((1.25 / 500) ** 0.5, abs=0.03)


def test_keyword_arguments_are_gathered_with_their_rows():
    labels = torch.arange(400) % 2
    x = torch.randn(400) * 0.1 + torch.tensor([-4.0, 4.0])[labels]
    pair = labelled_pair()
    fit(pair, {"x": x, "labels": labels}, epochs=60, batch_size=50, learning_rate=0.1, progress=False)
    assert pair.model.shift.tolist() == pytest.approx([-4, 4], abs=0.2)
    with pytest.raises(ValueError, match="400 rows in 'x' and 3 in 'labels'"):
        fit(pair, {"x": x, "labels": labels[:3]})
    with pytest.raises(ValueError, match="no entry 'x'"):
        fit(pair, {"labels": labels})


def test_arrays_of_numpy_train_too():
    history = fit(
        mlp_vae((3,), 1, hidden_dims=(), likelihood=Normal()),
        np.random.default_rng(0).normal(size=(32, 3)),
        epochs=2,
        batch_size=8,
        progress=False,
    )
    assert np.isfinite(history["elbo"]).all()


# Bad arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"batch_size": 65}, "64 rows, fewer than batch_size=65"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be positive"),
        ({"patience": 3}, "patience needs validation_data"),
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"device": "cuba"}, "cannot use device 'cuba'"),
        ({"validation_data": torch.zeros(3, 5, 5)}, r"validation_data has rows of shape \(5, 5\)"),
    ],
)
def test_arguments_that_do_not_suit_are_refused_before_anything_changes(arguments, sentence):
    vae = small_vae()
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    with pytest.raises(ValueError, match=sentence):
        fit(vae, grey_levels(), **{"batch_size": 16, "progress": False, **arguments})
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number, found 1.5"),
        ({"batch_size": "16"}, "batch_size must be a whole number, found '16'"),
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, found '1e-3'"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments, sentence):
    with pytest.raises(TypeError, match=f"^{sentence}$"):
        fit(small_vae(), grey_levels(), **{"batch_size": 16, "progress": False, **arguments})


def test_numbers_of_numpy_are_numbers():
    sizes = {"epochs": np.int64(1), "batch_size": np.int32(16), "learning_rate": np.float64(1e-3)}
    assert len(fit(small_vae(), grey_levels(), progress=False, **sizes)) == 1


def test_programs_with_nothing_to_train_are_refused():
    lg = LinearGaussian()
    for p in lg.vae.parameters():
        p.requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        fit(lg.vae, lg.draw(200), progress=False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_training_on_a_gpu_keeps_uint8_there_and_learns_as_on_the_cpu():
    elbos = []
    for device in ("cpu", "cuda"):
        vae = small_vae()
        fit(vae, grey_levels(2000), epochs=10, learning_rate=0.01, device=device, progress=False)
        assert vae.device.type == device
        elbos.append(evaluate(vae, grey_levels(2000))["elbo"])
    assert elbos[0] == pytest.approx(elbos[1], abs=0.2)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("watched", [False, True])
def test_a_last_step_that_diverges_is_an_error_and_leaves_the_weights_before(watched):
    pyro.enable_validation(False)  # which would find NaN before we do
    vae, x = small_vae(), grey_levels()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    options = {"epochs": 1, "batch_size": 64, "progress": False, "compile": False}
    with pytest.raises(FloatingPointError, match="in epoch 1; the weights of epoch 0 are restored"):
        fit(vae, x, validation_data=x if watched else None, learning_rate=1e39 if not watched else 1e30, **options)
    assert all(torch.equal(vae.state_dict()[name], before[name]) for name in before)
