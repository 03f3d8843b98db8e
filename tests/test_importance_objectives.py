"""Bounds that weigh draws, against closed forms and Pyro's own."""

import itertools
import math

import pyro
import pytest
import torch
from coverings import covering
from linear_gaussian import LinearGaussian
from pyro.infer import RenyiELBO
from test_execution import CASES
from zoo import ZOO

from pyro_vae import Elbo, ImportanceWeighted, Pair, Renyi, fit
from pyro_vae.inference.sites import run_pair
from pyro_vae.programs import local_parameters


def estimate(pair, x, objective, repeats=200):
    """The mean bound of the rows, and its standard error."""
    batch = pair.prepare({"x": x})
    structure = pair.structure(batch)
    values = []
    for _ in range(repeats):
        particles = objective.num_particles if objective.num_particles > 1 else None
        with torch.no_grad():
            draws = run_pair(*pair.programs, batch, structure, num_particles=particles)
            values.append(objective(draws, torch.ones(())).mean())
    values = torch.stack(values).double()
    return float(values.mean()), float(values.std() / math.sqrt(repeats))


def test_the_bound_rises_with_the_draws_to_the_evidence():
    torch.manual_seed(0)
    lg = LinearGaussian()
    x = lg.draw(20)
    pair = lg.partial_pair(shrink=1.5, shift=0.3)
    exact = float(lg.log_evidence(x).mean())
    bounds = [estimate(pair, x, ImportanceWeighted(k)) for k in (1, 5, 50, 500)]
    for (low, error), (high, other) in itertools.pairwise(bounds):
        assert low + 3 * error < high + 3 * other
    elbo, error = estimate(pair, x, Elbo(1))
    assert bounds[0][0] == pytest.approx(elbo, abs=5 * (error + bounds[0][1]))
    assert bounds[-1][0] == pytest.approx(exact, abs=5 * bounds[-1][1] + 0.02)


def test_orders_lie_in_order_and_an_exact_guide_has_the_evidence_at_each():
    torch.manual_seed(0)
    lg = LinearGaussian()
    x = lg.draw(10)
    values = [estimate(lg.partial_pair(shrink=1.5), x, Renyi(20, alpha))[0] for alpha in (1.0, 0.5, 0.0, -1.0)]
    assert values == sorted(values)
    exact = float(lg.log_evidence(x).mean())
    for alpha in (1.0, 0.5, -1.0):
        found, error = estimate(lg.exact_pair(), x, Renyi(3, alpha), repeats=2)
        assert found == pytest.approx(exact, abs=1e-4)
        assert error < 1e-4


@pytest.mark.parametrize("alpha", [0.0, 0.5])
@pytest.mark.usefixtures("float64")
def test_value_and_gradient_are_those_of_pyros_object(alpha):
    torch.manual_seed(0)
    lg = LinearGaussian()
    pair, x = lg.vae, lg.draw(1)  # of one row, for Pyro's weighs whole batches
    batch = pair.prepare({"x": x})
    structure, parameters = pair.structure(batch), list(pair.parameters())
    theirs, ours = [], []
    loss = RenyiELBO(alpha, num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    for seed in range(250):
        torch.manual_seed(seed)
        with local_parameters():
            pyro.clear_param_store()
            for parameter in parameters:
                parameter.grad = None
            value = -loss.loss_and_grads(pair.model, pair.guide, x)
            theirs.append(torch.cat([torch.tensor([value]), *(-p.grad.flatten() for p in parameters)]))
            draws = run_pair(*pair.programs, batch, structure, num_particles=4)
            bound = Renyi(4, alpha)(draws, torch.ones(())).sum()
            gradients = torch.autograd.grad(bound, parameters)
            ours.append(torch.cat([bound.detach()[None], *(g.flatten() for g in gradients)]))
    theirs, ours = torch.stack(theirs), torch.stack(ours)
    error = (theirs.var(0) / len(theirs) + ours.var(0) / len(ours)).sqrt()
    assert bool(((theirs.mean(0) - ours.mean(0)).abs() < 5 * error + 1e-9).all())


@pytest.mark.parametrize(
    ("case", "objective"),
    covering(itertools.product(["bits", "counts", "mixture prior", "labels"], [ImportanceWeighted(3), Renyi(3, 0.5)])),
    ids=str,
)
@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_training_goes_up_compiled_and_as_programs_alike(case, objective):
    build, rows, _ = CASES[case]
    data, histories = rows(), []
    for compile in (False, True):
        pyro.clear_param_store()
        torch.manual_seed(0)
        options = {"epochs": 5, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
        histories.append(fit(build(), data, objective=objective, compile=compile, **options))
    eager, compiled = histories
    assert compiled.attrs["execution"] == "compiled"
    assert compiled["objective"].tolist() == pytest.approx(eager["objective"].tolist(), rel=1e-4)
    assert eager["objective"].iloc[-1] > eager["objective"].iloc[0]


@pytest.mark.parametrize("num_particles", [1, 8])
@pytest.mark.usefixtures("float64")
def test_the_doubly_reparameterised_gradient_has_the_same_mean_and_less_noise(num_particles):
    torch.manual_seed(0)
    lg = LinearGaussian()
    vae, x = lg.vae, lg.draw(6)
    fit(vae, lg.draw(500), epochs=20, batch_size=50, learning_rate=0.02, progress=False)
    batch = vae.prepare({"x": x})
    structure = vae.structure(batch)
    parts = {"guide": list(vae.guide.parameters()), "model": list(vae.model.parameters())}
    means, errors, values = {}, {}, {}
    for doubly in (False, True):
        objective = ImportanceWeighted(num_particles, doubly_reparameterized=doubly)
        kept = {part: [] for part in parts}
        for seed in range(300):
            torch.manual_seed(seed)
            particles = num_particles if num_particles > 1 else None
            draws = run_pair(*vae.programs, batch, structure, num_particles=particles)
            bound = objective(draws, torch.ones(()))
            values[doubly] = bound.detach()
            everything = [p for group in parts.values() for p in group]
            gradients = dict(zip(map(id, everything), torch.autograd.grad(bound.mean(), everything), strict=True))
            for part, group in parts.items():
                kept[part].append(torch.cat([gradients[id(p)].flatten() for p in group]))
        for part, rows in kept.items():
            rows = torch.stack(rows)
            means[part, doubly], errors[part, doubly] = rows.mean(0), rows.var(0) / len(rows)
    torch.testing.assert_close(values[True], values[False])  # of the last seed
    for part in parts:
        error = (errors[part, True] + errors[part, False]).sqrt()
        assert bool(((means[part, True] - means[part, False]).abs() < 5 * error + 1e-9).all()), part
    if num_particles > 1:  # less where most is lost, and in all; single weights may have more
        ratios = errors["guide", True] / errors["guide", False]
        assert float(ratios.median()) < 0.5
        assert float(errors["guide", True].sum()) < 0.9 * float(errors["guide", False].sum())


@pytest.mark.usefixtures("compiled_if_exhaustive")
def test_the_doubly_reparameterised_gradient_trains_and_refuses_flows():
    build, rows, _ = CASES["bits"]
    data, histories = rows(), []
    objective = ImportanceWeighted(4, doubly_reparameterized=True)
    for compile in (False, True):
        torch.manual_seed(0)
        options = {"epochs": 4, "batch_size": 32, "learning_rate": 0.02, "progress": False, "seed": 0}
        histories.append(fit(build(), data, objective=objective, compile=compile, **options))
    assert histories[1].attrs["execution"] == "compiled"
    assert histories[1]["objective"].tolist() == pytest.approx(histories[0]["objective"].tolist(), rel=1e-4)
    programs = ZOO["flow guide"].build()
    with pytest.raises(ValueError, match="made of tensors, and a NormalizingFlow is not"):
        fit(Pair(programs.model, programs.guide), ZOO["flow guide"].rows(), objective=objective, progress=False)


def test_latents_of_all_rows_and_draws_without_derivatives_are_refused():
    programs = ZOO["common scale"].build()
    with pytest.raises(ValueError, match="'scale' lies outside the plate 'data'"):
        fit(Pair(programs.model, programs.guide), ZOO["common scale"].rows(), objective=Renyi(), progress=False)
    programs = ZOO["score function"].build()
    with pytest.raises(ValueError, match="cannot be differentiated through"):
        fit(Pair(programs.model, programs.guide), ZOO["score function"].rows(), objective=Renyi(), progress=False)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Renyi(0), "num_particles must be at least 1, found 0"),
        (lambda: Renyi(2, math.nan), "alpha must be finite, found nan"),
        (lambda: ImportanceWeighted(0), "num_particles must be at least 1, found 0"),
    ],
)
def test_mistakes_are_sentences(make, words):
    with pytest.raises(ValueError, match=words):
        make()
