"""The reader of traces against sums over sites by hand and Pyro's own estimators, on programs drawn at random."""

import itertools
import math
import warnings
from collections import Counter

import pyro
import pyro.distributions as dist
import pytest
import torch
from by_hand import ByHand, objective_of, reader, values_of
from generated import FINITE, data_of, draw_spec, pair_of
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from pyro_vae import Elbo, Pair
from pyro_vae.evaluation import log_evidence
from pyro_vae.inference.sites import run_pair
from pyro_vae.inference.structure import ContractError, Fixed

pytestmark = pytest.mark.usefixtures("float64")

SEEDS = range(77)
DRAWS = 2


def prepared(seed):
    spec = draw_spec(seed)
    pair, programs = pair_of(spec, seed)
    data = data_of(spec, seed)
    batch = pair.batch(data)
    return spec, pair, programs, data, batch, pair.structure(batch)


def drawn(pair, batch, structure, seed, **options):
    pyro.set_rng_seed(seed)
    return run_pair(*pair.programs, batch, structure, **options)


def expected_terms(spec, programs, data, draws, structure, num_particles, *, num_rows=None, enumerate_guide=True):
    """Terms by kind and name, unscaled and scaled, ``(2, K, N)`` each; means over what the guide enumerates."""
    of_guide = [s for s in spec.guided if s.how == "guide"] if enumerate_guide else []
    first = structure.particle_dim - (num_particles is not None)
    found = {}
    for k in range(num_particles or 1):
        in_turn = num_particles is not None and not structure.vectorised
        latents = {n: v[k] for n, v in draws.latents.items()} if in_turn else draws.latents
        for index in itertools.product(*(range(len(values_of(s.family))) for s in of_guide)):
            at = {structure.particle_dim: k} | {first - i: value for i, value in enumerate(index)}
            hand = ByHand(programs, data, reader(latents, draws.event_dims, at), num_rows=num_rows)
            for row in range(spec.num_rows):
                weight = math.prod(hand.probability(site, row) for site in of_guide)
                for key, (value, scale) in hand.terms(row).items():
                    total = found.setdefault(key, torch.zeros(2, num_particles or 1, spec.num_rows))
                    total[:, k, row] += weight * value * torch.tensor([1.0, scale])
    return found


def assert_terms(draws, expected):
    names = {"likelihood": "log_likelihood", "prior": "log_prior", "guide": "log_guide", "auxiliary": "auxiliary"}
    for number, of in enumerate((draws, draws.scaled)):
        for kind, attribute in names.items():
            ours = getattr(of, attribute)
            theirs = {name: values[number] for (which, name), values in expected.items() if which == kind}
            assert ours.keys() == theirs.keys()
            for name, values in theirs.items():
                torch.testing.assert_close(ours[name], values, rtol=1e-9, atol=1e-9, msg=f"{kind} {name}")
        total = {kind: sum(v[number] for (which, _), v in expected.items() if which == kind) for kind in names}
        torch.testing.assert_close(of.reconstruction, total["likelihood"] + torch.zeros(of.shape))
        torch.testing.assert_close(of.rate, total["guide"] - total["prior"] + torch.zeros(of.shape))
        torch.testing.assert_close(of.elbo, of.reconstruction - of.rate)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_term_is_what_it_is_by_hand(seed):
    spec, pair, programs, data, batch, structure = prepared(seed)
    names = [s.name for s in spec.latents] + ["x_unobserved"] * (spec.mask == "guided obs_mask")
    assert list(structure.latents) == names
    for site in spec.latents:
        latent = structure.latents[site.name]
        assert latent.is_local == (site.frame in ("row", "word"))
        assert latent.enumerated == (site.how if site.how in ("model", "guide") else None)
        assert latent.is_discrete == (site.family in FINITE)
    assert structure.vectorised != (spec.stubborn and any(s.frame == "row" for s in spec.latents))
    with torch.no_grad(), pyro.validation_enabled(False):  # they have been checked by the look at the pair
        for num_particles, num_rows in ((None, spec.all_rows), (DRAWS, 50)):
            draws = drawn(pair, batch, structure, 3, num_particles=num_particles, num_rows=num_rows)
            expected = expected_terms(spec, programs, data, draws, structure, num_particles, num_rows=num_rows)
            assert_terms(draws, expected)
        if spec.latent("guide"):
            draws = drawn(pair, batch, structure, 3, num_particles=DRAWS, enumerate_guide=False)
            expected = expected_terms(spec, programs, data, draws, structure, DRAWS, enumerate_guide=False)
            assert_terms(draws, expected)
            torch.testing.assert_close(draws.log_weights, draws.elbo)


# Against Pyro


def pyros_estimators(spec):
    """The ELBOs of Pyro's that estimate a pair's objective in the same way, from the same draws."""
    enumerates = spec.latent("model") or spec.latent("guide")
    if not spec.extras.isdisjoint(("observes", "observes y")):
        return []  # Pyro counts what a guide observes with a minus
    if spec.mask == "obs_mask":
        return []  # and what the model draws in a gap as if the guide had drawn it with certainty
    if enumerates:
        # Other weights on the score function; no scale by row
        return [] if spec.scored or spec.scale == "rows" else [(TraceEnum_ELBO, "sampled")]
    if spec.scored:  # a cost that is not the model's is left out of its score function
        return [] if spec.auxiliary or "factor" in spec.extras else [(Trace_ELBO, "sampled")]
    found = [(Trace_ELBO, "sampled")]
    in_order = [s.name for s in spec.latents] == list(spec.guide_order)
    # It wants the KL in the shape of the guide's site, which one that depends on the sum of its words does not have.
    of_words = any(spec.site(p).frame == "word" for s in spec.latents if s.frame == "row" for p in s.parents)
    if in_order and not of_words and "factor" not in spec.extras:
        found.append((TraceMeanField_ELBO, "auto"))
    return found


def value_and_gradient(value, programs):
    parameters = list(programs.parameters())
    gradient = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    return value.detach(), dict(zip([n for n, _ in programs.named_parameters()], gradient, strict=True))


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-9, atol=1e-9)
    for name, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-9, atol=1e-9, msg=name)


def objective(pair, batch, structure, objective, seed, **options):
    draws = drawn(pair, batch, structure, seed, **options)
    return objective(draws, torch.tensor(1.0)).mean()


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if pyros_estimators(draw_spec(seed))])
def test_the_elbo_and_its_gradient_are_those_of_pyros_estimators(seed):
    spec, pair, programs, _, batch, structure = prepared(seed)
    num_rows = spec.all_rows or spec.num_rows
    for (estimator, kl), num_particles in itertools.product(pyros_estimators(spec), (None, DRAWS)):
        ours = objective(
            pair, batch, structure, Elbo(num_particles or 1, kl), 5, num_particles=num_particles, num_rows=num_rows
        )
        pyros = estimator(
            num_particles=num_particles or 1,
            vectorize_particles=num_particles is not None and structure.vectorised,
            max_plate_nesting=structure.nesting,
        )
        pyro.set_rng_seed(5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sites that one program has alone
            theirs = -pyros.differentiable_loss(*pair.programs, batch.x, **batch.arguments) / num_rows
        assert_same(value_and_gradient(ours, programs), value_and_gradient(theirs, programs))


# Against the sum over all values


def combinations(spec, latents):
    """All values of the latents that no draw can be differentiated through, in the shapes that they have."""
    sites = [("u", spec.auxiliary) if name == "u" else (name, spec.site(name).family) for name in spec.scored]
    choices = []
    for name, family in sites:
        values = torch.stack(values_of(family))
        shape = latents[name].shape[:-1] if family == "onehot" else latents[name].shape
        places = itertools.product(range(len(values)), repeat=shape.numel())
        choices.append([values[list(index)].reshape(latents[name].shape) for index in places])
    return [dict(zip(spec.scored, chosen, strict=True)) for chosen in itertools.product(*choices)]


def by_hand(spec, programs, data, draws, structure, num_rows):
    """Log-probability of the values that no draw can be differentiated through, and the objective given them."""
    of_guide = [s for s in spec.guided if s.how == "guide"]
    log_prob, total, counted = torch.zeros(()), torch.zeros(()), set()
    for index in itertools.product(*(range(len(values_of(s.family))) for s in of_guide)):
        at = {structure.particle_dim - i: value for i, value in enumerate(index)}
        hand = ByHand(programs, data, reader(draws.latents, draws.event_dims, at), num_rows=num_rows, retrace=True)
        for row in range(spec.num_rows):
            weight = math.prod((hand.probability(site, row) for site in of_guide), start=torch.ones(()))
            scaled = {key: value * scale for key, (value, scale) in hand.terms(row).items()}
            total = total + weight * objective_of(scaled) / spec.num_rows
            for name in spec.scored:
                frame = "row" if name == "u" else spec.site(name).frame
                value = draws.latents[name]
                batch = value.shape[: value.dim() - draws.event_dims[name]]
                own = tuple(i for dim, i in at.items() if len(batch) >= -dim and batch[dim] > 1)
                for place in hand.places(frame, row):
                    if (name, place, own) not in counted:
                        counted.add((name, place, own))
                        fn = hand.auxiliary_fn(row) if name == "u" else hand.guide_fn(spec.site(name), *place)
                        here = hand.auxiliary_value(row) if name == "u" else hand.value(name, *place)
                        log_prob = log_prob + fn.log_prob(here)
    return log_prob, total


def has_exact_gradient(spec):
    return all(s.family != "gamma" and s.how != "score" for s in spec.guided)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if has_exact_gradient(draw_spec(seed))])
def test_the_gradient_is_on_average_that_of_the_sum_over_all_values(seed):
    """Given the noise of what can be differentiated through, the mean over all else is a sum."""
    spec, pair, programs, data, batch, structure = prepared(seed)
    options = {"num_rows": spec.all_rows}
    example = drawn(pair, batch, structure, 7, **options)
    found, truth = [], torch.zeros(())
    chosen = combinations(spec, example.latents)
    if len(chosen) > 20:
        pytest.skip("too many values")
    for values in chosen:
        with Fixed(values):
            draws = drawn(pair, batch, structure, 7, **options)
        log_prob, total = by_hand(spec, programs, data, draws, structure, spec.all_rows)
        truth = truth + log_prob.exp() * total
        ours = value_and_gradient(Elbo()(draws, torch.tensor(1.0)).mean(), programs)
        found.append((float(log_prob.detach().exp()), *ours))
    assert sum(weight for weight, *_ in found) == pytest.approx(1)
    value = sum(weight * value for weight, value, _ in found)
    names = found[0][2].keys()
    gradient = {name: sum(weight * each[name] for weight, _, each in found) for name in names}
    assert_same((value, gradient), value_and_gradient(truth, programs))


# What programs drawn at random seldom have


def test_every_feature_is_among_the_programs():
    specs = [draw_spec(seed) for seed in SEEDS]
    sites = [site for spec in specs for site in spec.latents]
    counts = Counter()
    for spec in specs:
        counts.update([f"scale {spec.scale}", f"mask {spec.mask}", f"plates {spec.nesting}"])
        counts.update([*spec.extras, *(f"argument {name}" for name in spec.arguments), f"{len(spec.latents)} latents"])
        counts["all rows"] += spec.all_rows is not None
        counts["all words"] += spec.nesting == 2 and spec.all_words is not None
        counts["in turn"] += spec.stubborn
        counts["auxiliary"] += spec.auxiliary is not None
        counts["y"] += len(spec.observed) == 2
        counts["dependent"] += any(site.parents for site in spec.latents)
    counts.update(feature for site in sites for feature in (site.family, site.frame, site.how))
    assert len(counts) == 44
    assert min(counts.values()) >= 3, counts


def hidden_markov_pair():
    """Three states in a chain of four steps, which the model enumerates, and a latent of the row."""
    init = torch.tensor([0.2, 0.5, 0.3])
    step = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])
    loc = torch.nn.Parameter(torch.tensor([-1.0, 0.5, 2.0]))
    slope = torch.nn.Parameter(torch.tensor(0.4))

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = loc

        def forward(self, x=None, *, batch_size=None):
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                probs, drawn = init, []
                for t in pyro.markov(range(4)):
                    k = pyro.sample(f"k{t}", dist.Categorical(probs), infer={"enumerate": "parallel"})
                    probs = step[k]
                    value = None if x is None else x[:, t]
                    drawn.append(pyro.sample(f"x{t}", dist.Normal(self.loc[k] + z, 0.8), obs=value))

    class Guide(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = slope

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.slope * x.mean(1), 0.5))

    return Pair(Model(), Guide()), init, step


@pytest.mark.parametrize("num_particles", [None, 3])
def test_a_chain_of_enumerated_states_is_summed_over_as_by_the_forward_algorithm(num_particles):
    pair, init, step = hidden_markov_pair()
    batch = pair.batch(torch.randn(5, 4))
    structure = pair.structure(batch)
    draws = drawn(pair, batch, structure, 1, num_particles=num_particles)
    z = draws.latents["z"].reshape(num_particles or 1, 5)
    forward = init
    for t in range(4):
        emission = dist.Normal(pair.model.loc + z[..., None], 0.8).log_prob(batch.x[:, t, None]).exp()
        forward = (forward if t == 0 else forward @ step) * emission
    torch.testing.assert_close(draws.reconstruction, forward.sum(-1).log())
    pyros = TraceEnum_ELBO(num_particles=num_particles or 1, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(1)
    theirs = -pyros.differentiable_loss(pair.model, pair.guide, batch.x) / 5
    assert_same(value_and_gradient(Elbo()(draws, torch.ones(())).mean(), pair), value_and_gradient(theirs, pair))


@pytest.mark.parametrize(
    ("scales", "sentence"),
    [
        ((0.5, 0.7), "sites that an enumerated latent joins have different scales"),
        ((torch.tensor(0.5), torch.tensor(0.7)), "sites that an enumerated latent joins have different scales"),
        ((0.5 + torch.arange(2)[:, None],) * 2, "must not vary within a row"),
    ],
)
def test_scales_that_a_sum_over_values_cannot_have_are_refused(scales, sentence):
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1), pyro.plate("words", 2, dim=-2):
            with poutine.scale(scale=scales[0]):
                k = pyro.sample("k", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            with poutine.scale(scale=scales[1]):
                return pyro.sample("x", dist.Normal(k, 1.0), obs=None if x is None else x.mT)

    pair = Pair(model, lambda x: None)
    with pytest.raises(ContractError, match=sentence):
        pair.structure(pair.batch(torch.randn(4, 2)))


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if draw_spec(seed).latent("guide")])
@torch.no_grad()
def test_a_weight_is_the_sum_over_what_the_guide_enumerates_by_hand(seed):
    spec, pair, programs, data, batch, structure = prepared(seed)
    with pyro.validation_enabled(False):
        draws = drawn(pair, batch, structure, 3, num_particles=DRAWS)
    of_guide = [s for s in spec.guided if s.how == "guide"]
    sign = {"likelihood": 1.0, "prior": 1.0, "guide": -1.0, "auxiliary": 0.0}
    expected = torch.zeros(2, DRAWS, spec.num_rows)
    for k in range(DRAWS):
        for index in itertools.product(*(range(len(values_of(s.family))) for s in of_guide)):
            at = {structure.particle_dim: k} | {structure.particle_dim - 1 - i: value for i, value in enumerate(index)}
            hand = ByHand(programs, data, reader(draws.latents, draws.event_dims, at))
            for row in range(spec.num_rows):
                probability = math.prod(hand.probability(site, row) for site in of_guide)
                terms = [(sign[kind] * value, scale) for (kind, _), (value, scale) in hand.terms(row).items()]
                for number, total in enumerate((sum(v for v, _ in terms), sum(v * s for v, s in terms))):
                    expected[number, k, row] += probability * math.exp(total)
    for of, weights in zip((draws, draws.scaled), expected, strict=True):
        torch.testing.assert_close(of.log_weights, weights.log())


def test_values_that_the_guide_gives_no_probability_count_in_a_weight_all_the_same():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            j = pyro.sample("j", dist.Categorical(torch.stack([0.7 - 0.2 * k, 0.3 + 0.2 * k], -1)))
            return pyro.sample("x", dist.Normal(k.to(x) - 2 * j, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            each = {"enumerate": "parallel"}
            pyro.sample("k", dist.Categorical(torch.tensor([1.0, 0.0, 0.0])), infer=each)
            pyro.sample("j", dist.Categorical(torch.tensor([0.0, 1.0])), infer=each)

    x = torch.tensor([-1.0, 2.5])
    expected = sum(
        p_k * p_j * dist.Normal(k - 2.0 * j, 1.0).log_prob(x).exp()
        for k, p_k in enumerate([0.2, 0.5, 0.3])
        for j, p_j in ((0, 0.7 - 0.2 * k), (1, 0.3 + 0.2 * k))
    )
    with pyro.validation_enabled(False):
        found = log_evidence(Pair(model, guide), x, num_particles=1).log_evidence
    torch.testing.assert_close(found, expected.log())
