"""Programs of the kinds that Pyro's examples show, which once were trained or judged as something else."""

import functools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex
from torch import nn

from pyro_vae import Elbo, Pair, check_pair, evaluate, fit
from pyro_vae.evaluation import simulation_based_calibration
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import ContractError


def rows_of(x: Any, batch_size: Any) -> Any:
    return batch_size if x is None else len(x)


def at_bats_model(x=None, *, at_bats, batch_size=None):
    with pyro.plate("data", len(at_bats)):
        phi = pyro.sample("phi", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))
        pyro.sample("x", dist.Binomial(at_bats, phi), obs=x)


def at_bats_guide(x, *, at_bats):
    one = pyro.param("one", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("phi", dist.Beta(one + x, one + at_bats - x))


def test_a_range_that_is_each_row_s_own_is_not_taken_for_that_of_all():
    pair = Pair(at_bats_model, at_bats_guide)
    data = {"x": torch.tensor([3.0, 30.0, 12.0]), "at_bats": torch.tensor([10.0, 40.0, 15.0])}
    draws = pair.draws(pair.batch(data))  # the guide is exact, so each draw's weight is the evidence
    assert torch.allclose(draws.log_weights[0], -(data["at_bats"] + 1).log(), atol=1e-4)
    with pytest.raises(ValueError, match=r"0\.5.*whole numbers from"):
        pair.check({"x": torch.tensor([0.5]), "at_bats": torch.tensor([10.0])})


STEPS, STATES = 4, 3


def hidden_markov(x=None, *, lengths=None, batch_size=None):
    """As many steps as the longest sequence of the batch has, as in Pyro's hmm.py."""
    n = rows_of(x, batch_size)
    lengths = torch.full((n,), STEPS) if lengths is None else lengths
    logits = torch.arange(9.0).reshape(3, 3).sin()
    locs = torch.tensor([-1.0, 0.0, 2.0])
    with pyro.plate("data", n):
        state = 0
        for t in pyro.markov(range(int(lengths.max()))):
            with poutine.mask(mask=t < lengths):
                state = pyro.sample(
                    f"state_{t}", dist.Categorical(logits=logits[state]), infer={"enumerate": "parallel"}
                )
                pyro.sample(f"x_{t}", dist.Normal(locs[state], 1.0), obs=None if x is None else x[:, t])


def forward_algorithm(x, lengths):
    transition = torch.arange(9.0).reshape(3, 3).sin().log_softmax(-1)
    emission = dist.Normal(torch.tensor([-1.0, 0.0, 2.0]), 1.0).log_prob(x[..., None])
    found = []
    for row, length in zip(emission, lengths.tolist(), strict=True):
        alpha = transition[0] + row[0]
        for t in range(1, length):
            alpha = (alpha[:, None] + transition).logsumexp(0) + row[t]
        found.append(alpha.logsumexp(0))
    return torch.stack(found)


def test_the_number_of_steps_may_depend_on_the_rows():
    pair = Pair(hidden_markov, lambda x: None)
    x, lengths = torch.randn(8, STEPS), torch.tensor([1, 2, 1, 3, 4, 4, 2, 1])
    batch = pair.batch({"x": x, "lengths": lengths})
    few = pair.structure(batch[:3])  # of sequences that end earlier
    whole = pair.structure(batch)
    assert f"state_{STEPS - 1}" in whole.latents
    assert f"state_{STEPS - 1}" not in few.latents
    for structure in (few, whole):
        assert torch.allclose(pair.draws(batch, structure).elbo[0], forward_algorithm(x, lengths), atol=1e-4)


def normal_model(x=None, *, batch_size=None):
    with pyro.plate("data", rows_of(x, batch_size)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_parameters_of_each_row_are_refused_and_leave_nothing_behind():
    def guide(x):
        loc = pyro.param("loc", lambda: torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pyro.clear_param_store()
    with pytest.raises(ContractError, match=r"the parameter 'loc' has an entry for each row, shape \(3,\)"):
        fit(Pair(normal_model, guide), torch.randn(20), batch_size=20, epochs=1, progress=False)
    assert not list(pyro.get_param_store())


def test_a_plate_that_fits_one_number_of_rows_alone_is_refused():
    def guide(x):
        with pyro.plate("data", 8):
            pyro.sample("z", dist.Normal(torch.zeros(8), 1.0))

    pair = Pair(normal_model, guide)
    with pytest.raises(ContractError, match="the guide's plate 'data' has 8 elements where there are 3 rows"):
        pair.structure(pair.batch(torch.randn(8)))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("guide", "the guide fails on 20 rows of .*, and must run on any number of them: RuntimeError: The size of"),
        ("density", "the pair fails on 3 rows of .* ValueError: Error while computing log_prob at site 'z': Expected"),
    ],
)
def test_programs_that_fail_are_refused_by_one_sentence(where, expected):
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size)):
            z = pyro.sample("z", dist.HalfNormal(1.0) if where == "density" else dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = torch.zeros(8) + x if where == "guide" else -10 - x.abs()
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pair = Pair(model, guide)
    with pytest.raises(ContractError, match=expected) as caught:
        pair.structure(pair.batch(torch.randn(20)))
    assert "\n" not in str(caught.value)


def test_a_loop_over_rows_is_refused_without_the_names_of_all():
    def model(x=None, *, batch_size=None):
        f = pyro.sample("f", dist.Beta(10.0, 10.0))
        for i in range(rows_of(x, batch_size)):
            pyro.sample(f"obs_{i}", dist.Bernoulli(f), obs=None if x is None else x[i])

    def guide(x):
        pyro.sample("f", dist.Beta(torch.tensor(10.0), 10.0))

    pair = Pair(model, guide)
    with pytest.raises(ContractError, match="observes obs_0, obs_1, obs_2 and 97 more outside of a plate"):
        pair.structure(pair.batch(torch.ones(100)))


def test_an_autoguide_of_local_latents_is_refused_where_the_model_takes_arguments():
    guide = AutoNormal(at_bats_model)
    data = {"x": torch.tensor([3.0, 30.0, 12.0]), "at_bats": torch.tensor([10.0, 40.0, 15.0])}
    pair = Pair(at_bats_model, guide)
    with pytest.raises(ContractError, match="the guide is an AutoNormal"):
        pair.structure(pair.batch(data))


@pytest.mark.parametrize("has_rsample", [True, False])
def test_a_factor_in_a_guide_is_a_loss_whatever_it_says_of_draws(has_rsample):
    """As in scanvi.py, where a loss of the guide is said not to come of draws that can be differentiated through."""
    net = nn.Linear(1, 2)

    def guide(x, has_rsample=has_rsample):
        loc, other = net(x[:, None]).unbind(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.factor("loss", 0.1 * (other + z).square(), has_rsample=has_rsample)

    pair, x = Pair(normal_model, guide), torch.randn(20)
    batch = pair.batch(x)
    structure, parameters = pair.structure(batch), list(net.parameters())
    pyro.set_rng_seed(0)
    ours = Elbo()(run_pair(*pair.programs, batch, structure), torch.tensor(0.0)).mean()
    pyro.set_rng_seed(0)
    plain = functools.partial(guide, has_rsample=True)
    loss = Trace_ELBO(max_plate_nesting=1).differentiable_loss(normal_model, plain, x) / len(x)
    found = torch.autograd.grad(ours, parameters)
    for a, b in zip(found, torch.autograd.grad(-loss, parameters), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_partial_guide_trains():
    def guide(x, index):
        loc = pyro.param(f"loc_{index}", torch.tensor(0.5))
        pyro.sample("z", dist.Normal(loc, 1.0))

    def model(x=None, *, batch_size=None):
        z = pyro.sample("z", dist.Normal(0.0, 5.0))
        with pyro.plate("data", rows_of(x, batch_size)):
            pyro.sample("x", dist.Normal(z * z, 1.0), obs=x)

    pyro.clear_param_store()
    history = fit(
        Pair(model, functools.partial(guide, index=0)), torch.randn(40) + 4, batch_size=20, epochs=2, progress=False
    )
    assert len(history) == 2
    assert "loc_0" in list(pyro.get_param_store())


@config_enumerate
def mixture(x=None, *, batch_size=None):
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", rows_of(x, batch_size)):
        which = pyro.sample("which", dist.Categorical(torch.ones(2)))
        pyro.sample("x", dist.Normal(locs[which], 1.0), obs=x)


def test_an_autoguide_of_globals_goes_with_local_latents_that_are_summed_over():
    guide = AutoNormal(poutine.block(mixture, hide=["which"]))
    pair = Pair(mixture, guide)
    structure = pair.structure(pair.batch(torch.randn(5)))
    assert structure.enumerated("model") == ["which"]
    assert pair.sample(7).shape == (7,)


def test_a_model_that_needs_its_data_is_refused_by_one_sentence():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(x.mean(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x, 1.0))

    pair, x = Pair(model, guide), torch.randn(5)
    for tool in (lambda: pair.sample(3), lambda: pair.reconstruct(x), lambda: pair.posterior_predictive(x)):
        with pytest.raises(ContractError, match="the model does not run without data, as model") as caught:
            tool()
        assert "\n" not in str(caught.value)


def test_global_latents_of_a_model_without_the_site_x_are_refused_by_one_sentence():
    def model(x=None, *, batch_size=None):
        rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
        with pyro.plate("data", rows_of(x, batch_size)):
            pyro.sample("x_0", dist.Poisson(rate), obs=x)

    def guide(x):
        pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))

    with pytest.raises(ValueError, match="the model has no site 'x': its sites are rate, x_0"):
        Pair(model, guide).sample(3)


def test_a_guide_that_takes_what_the_model_observes_gives_global_latents():
    def model(x=None, *, y=None, batch_size=None):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("data", rows_of(x, batch_size)):
            pyro.sample("x", dist.Normal(level, 1.0), obs=x)
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    def guide(x, *, y):
        pyro.sample("level", dist.Normal(torch.tensor(50.0), 0.1) if len(y) == len(x) else None)

    assert float(Pair(model, guide).sample(30).mean()) == pytest.approx(50.0, abs=2.0)


def features(x=None, *, batch_size=None):
    """Pyro's enumeration tutorial: a class of each row, and a table of words for each feature."""
    table = torch.arange(2.0 * 4 * 3).reshape(2, 4, 3).cos().softmax(-1)
    feature_plate = pyro.plate("feature_plate", 2, dim=-2)
    with pyro.plate("data", rows_of(x, batch_size), dim=-1):
        c = pyro.sample("c", dist.Categorical(torch.ones(4)), infer={"enumerate": "parallel"})
        with feature_plate as index:
            probs = Vindex(table)[index[..., None], c, :]
            pyro.sample("x", dist.Categorical(probs), obs=None if x is None else x.transpose(0, 1))


def test_the_posterior_of_a_class_whose_words_are_in_a_plate():
    pair, x = Pair(features, lambda x: None), torch.randint(0, 3, (6, 2))
    table = torch.arange(2.0 * 4 * 3).reshape(2, 4, 3).cos().softmax(-1)
    likelihood = table[0].T[x[:, 0]] * table[1].T[x[:, 1]]
    assert torch.allclose(pair.encode(x).probs, likelihood / likelihood.sum(-1, keepdim=True), atol=1e-5)


def test_names_have_no_mean():
    pair, x = Pair(features, lambda x: None), torch.randint(0, 3, (6, 2))
    with pytest.raises(ContractError, match="the Categorical at 'x' has no mean: draw instead, with "):
        pair.reconstruct(x)


def test_observed_arguments_that_are_equal_are_told_apart():
    """Their values in the first rows said nothing, and calibration took both for the same site's."""

    def model(x=None, *, y_1=None, y_2=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y_1", dist.Normal(z, 1.0), obs=y_1)
            pyro.sample("y_2", dist.Normal(z, 1.0), obs=y_2)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, *, y_1, y_2):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x + y_1 + y_2) / 4, 0.5))

    equal = torch.zeros(400)
    found = simulation_based_calibration(Pair(model, guide), 400, 19, given={"y_1": equal, "y_2": equal})
    assert found.p_value > 0.001


def test_steps_that_only_long_sequences_have_are_looked_at_though_the_first_are_short():
    def step(t, z, lengths):
        with poutine.mask(mask=t < lengths):
            return pyro.sample(f"z_{t}", dist.Normal(z, 1.0))

    def model(x=None, *, lengths, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z, steps = torch.zeros(len(lengths)), []
            for t in range(int(lengths.max())):
                steps.append(z := step(t, z, lengths))
            steps += [torch.zeros_like(z)] * (4 - len(steps))
            seen = torch.arange(4) < lengths[:, None]
            return pyro.sample("x", dist.Normal(torch.stack(steps, -1), 0.5).mask(seen).to_event(1), obs=x)

    def guide(x, *, lengths):
        with pyro.plate("data", len(x), dim=-1):
            for t in range(int(lengths.max())):
                step(t, x[:, t], lengths)

    lengths = torch.cat([torch.full((12,), 2), torch.full((48,), 4)])
    pair, data = Pair(model, guide), {"x": torch.randn(60, 4), "lengths": lengths}
    ranks = simulation_based_calibration(pair, 60, 9, given={"lengths": lengths}).ranks
    assert {f"z_{t}" for t in range(4)} <= set(ranks)
    assert "z_3 (of each row)" in str(check_pair(pair, data))
    assert evaluate(pair, data)["num_rows"] == 60


def test_a_plate_of_a_fixed_size_draws_more_rows_than_that():
    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 240, rows_of(x, batch_size)):
            return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    pair = Pair(model, lambda x: pyro.sample("mean", dist.Normal(torch.tensor(3.0), 0.01)))
    draws = pair.sample(2000)
    assert draws.shape == (2000,)
    assert abs(float(draws.mean()) - 3) < 5 * (1 / 2000 + 0.01**2) ** 0.5


def of_five_rows(x=None, *, batch_size=None):
    rows = rows_of(x, batch_size)
    with pyro.plate("data", rows, subsample_size=min(rows, 5)) as index:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=None if x is None else x[index])


def knowing_its_rows(x=None, *, batch_size=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", rows_of(x, batch_size)):
        z = pyro.sample("z", dist.Normal(mean, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide_of_forty_rows(x):
    pyro.sample("mean", dist.Normal(torch.tensor(0.0), 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(40), 1.0))


@pytest.mark.parametrize(
    ("model", "guide", "tool", "sentence"),
    [
        (of_five_rows, lambda x: None, Pair.sample, "the model draws 5 rows at 'x' where batch_size=40"),
        (of_five_rows, lambda x: None, evaluate, "the model's plate 'data' has 5 elements where there are 40 rows"),
        (knowing_its_rows, guide_of_forty_rows, Pair.sample, "the guide, which draws the global latent 'mean', fails"),
    ],
)
def test_programs_that_take_rows_of_their_own_are_refused_by_one_sentence(model, guide, tool, sentence):
    pair, x = Pair(model, guide), torch.randn(40)
    with pytest.raises(ContractError, match=sentence) as caught:
        tool(pair, 40 if tool is Pair.sample else x)
    assert "\n" not in str(caught.value)
    assert "refused" in check_pair(pair, x).tools["sample"]


def test_the_guide_is_named_where_the_model_only_follows_it():
    def model(x=None, *, at_bats, batch_size=None):
        with pyro.plate("data", len(at_bats), dim=-1):
            phi = pyro.sample("phi", dist.Uniform(torch.tensor(0.0), torch.tensor(1.0)))
            return pyro.sample("x", dist.Binomial(at_bats, phi), obs=x)

    data = {"x": torch.full((30,), 4.0), "at_bats": torch.full((30,), 9.0)}
    guide = AutoNormal(model)
    guide(data["x"], at_bats=data["at_bats"])
    with pytest.raises(ContractError, match="the guide is an AutoNormal, which has separate parameters for each row"):
        evaluate(Pair(model, guide), {name: value[:20] for name, value in data.items()})


def test_words_of_pyros_handlers_are_no_arguments():
    def model(x=None, *, context, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(context, 1.0), obs=x)

    with pytest.raises(TypeError, match="no keyword argument of a program can be called 'context'"):
        evaluate(Pair(model, lambda x: None), {"x": torch.zeros(3), "context": torch.zeros(3)})
