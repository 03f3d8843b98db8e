"""The look at a pair: a clause of the contract that is broken is told in one sentence; what a pair is made of."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from generated import data_of, draw_spec, pair_of
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from torch import nn

from pyro_vae import Pair, fit
from pyro_vae.inference.structure import ContractError

PARALLEL = {"enumerate": "parallel"}


def rows_of(x, batch_size):
    return batch_size if x is None else len(x)


def model(x=None, *, batch_size=None):
    """The contract kept; every case below changes one thing."""
    with pyro.plate("data", rows_of(x, batch_size), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal(x, pyro.param("scale", torch.tensor(0.5))))


def structure_of(model, guide, x=None, **arguments):
    pair = Pair(model, guide)
    batch = pair.batch({"x": torch.randn(5) if x is None else x, **arguments})
    return pair.structure(batch)


CASES = {}


def case(sentence, x=None, **arguments):
    """A pair of programs, by a function that returns them, and the sentence that it is refused with."""

    def add(build):
        CASES[build.__name__] = (build, sentence, x, arguments)
        return build

    return add


@case("the model's plate 'data' is at dim -2, around 'z'; it must be at dim -1", torch.randn(5, 3))
def plate_at_another_dim_in_the_model():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-2), pyro.plate("columns", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-2), pyro.plate("columns", 3, dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    return model, guide


@case("the guide's plate 'data' is at dim -2, around 'z'; it must be at dim -1")
def plate_at_another_dim_in_the_guide():
    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x[:, None], 1.0))

    return model, guide


@case("the model's plate 'data' is a loop, around 'z0'; it must be at dim -1")
def plate_that_is_a_loop():
    def model(x=None, *, batch_size=None):
        for i in pyro.plate("data", rows_of(x, batch_size)):
            z = pyro.sample(f"z{i}", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=None if x is None else x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z{i}", dist.Normal(x[i], 1.0))

    return model, guide


@case("the model's plate 'data' has 50 elements where there are 5 rows: size it by len\\(x\\)")
def plate_of_the_wrong_size():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", 50, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x if x is None else x.mean())

    def guide(x):
        with pyro.plate("data", 50, dim=-1):
            pyro.sample("z", dist.Normal(x.mean(), 1.0))

    return model, guide


@case("the guide's plate 'data' has 3 elements where there are 2 rows", torch.randn(3))
def plate_whose_size_fits_these_rows_by_chance():
    def guide(x):
        with pyro.plate("data", 3, dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))

    def model(x=None, *, batch_size=None):
        with pyro.plate("data", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mean = torch.zeros(3) if x is None else x.mean()
            return pyro.sample("x", dist.Normal(z, 1.0), obs=None if x is None else mean.expand(3))

    return model, guide


@case("the model observes x outside of a plate named 'data': put every site of a row into pyro.plate")
def no_plate():
    def model(x=None, *, batch_size=None):
        z = pyro.sample("z", dist.Normal(torch.zeros(rows_of(x, batch_size)), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    return model, lambda x: pyro.sample("z", dist.Normal(x, 1.0).to_event(1))


@case("the model observes x outside of a plate named 'data'")
def plate_of_another_name():
    def model(x=None, *, batch_size=None):
        with pyro.plate("rows", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    return model, guide


@case(
    "the guide does not sample the model's latent 'z': it must sample every one except those that the model enumerates"
)
def guide_that_leaves_out_a_latent():
    return model, lambda x: None


@case("'y': it must sample every one except .*; or pass y, which the model takes, with the rows")
def argument_that_is_not_given():
    def model(x=None, *, y=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model, guide


@case("the guide samples 'w', which is not a latent of the model: its latents are z")
def guide_that_samples_an_unknown_site():
    def with_another(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("w", dist.Normal(x, 1.0))

    return model, with_another


@case("the guide samples 'x', which the model observes: let the guide observe it too")
def guide_that_samples_what_is_observed():
    def with_x(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("x", dist.Normal(x, 1.0))

    return model, with_x


@case("the enumerated latent 'k' lies outside the plate 'data' and belongs to all rows, which ties them together")
def enumerated_global_latent():
    def model(x=None, *, batch_size=None):
        k = pyro.sample("k", dist.Bernoulli(0.3), infer=PARALLEL)
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return model, lambda x: None


@case("the guide enumerates 'k', which is not in the plate 'data' alone: enumerate it in the model", torch.randn(5, 2))
def guide_that_enumerates_in_a_plate_within_the_row():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1), pyro.plate("words", 2, dim=-2):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            return pyro.sample("x", dist.Normal(k, 1.0), obs=None if x is None else x.mT)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("words", 2, dim=-2):
            pyro.sample("k", dist.Bernoulli(logits=x.mT), infer=PARALLEL)

    return model, guide


@case("the guide enumerates 'k', which is not in the plate 'data' alone")
def guide_that_enumerates_a_global_latent():
    def model(x=None, *, batch_size=None):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return model, lambda x: pyro.sample("k", dist.Bernoulli(0.5), infer=PARALLEL)


@case("the guide enumerates k and draws latents that depend on it, while in the model it depends on them: let both")
def guide_that_enumerates_out_of_order():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            k = pyro.sample("k", dist.Bernoulli(logits=z))
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            k = pyro.sample("k", dist.Bernoulli(logits=x), infer=PARALLEL)
            pyro.sample("z", dist.Normal(k, 1.0))

    return model, guide


@case("the latent 'k' is enumerated by samples \\(num_samples\\), which only TraceTMC_ELBO supports")
def enumeration_by_samples():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            k = pyro.sample("k", dist.Normal(torch.zeros(()), 1.0), infer={**PARALLEL, "num_samples": 4})
            return pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    return model, lambda x: None


@case("the guide is an AutoNormal, which has separate parameters for each row of 'z', and so fits the rows of one")
def autoguide_over_local_latents():
    return model, AutoNormal(model)


@case("the guide is an AutoLowRankMultivariateNormal, which has separate parameters for each row of 'z'")
def autoguide_of_another_kind():
    return model, AutoLowRankMultivariateNormal(model)


@case("the model observes nothing when run on rows: pass obs=x at the site 'x'")
def model_that_observes_nothing():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))

    return model, guide


@case("the model observes nothing when run on rows: pass obs=x at the site 'x'")
def model_that_forgets_to_observe():
    def model(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0))

    return model, guide


@case("the latent 'z' is in the plate 'data' in one program and outside of it in the other")
def latent_that_is_local_in_one_program_and_global_in_the_other():
    def guide(x):
        pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    return model, guide


@case("the latent 'mean' is in the plate 'data' in one program and outside of it in the other")
def latent_that_is_global_in_the_model_alone():
    def model(x=None, *, batch_size=None):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("mean", dist.Normal(x, 1.0))

    return model, guide


@case("the guide does not take the contract's arguments, rows and no keyword arguments: .*missing 1 required")
def guide_that_wants_what_it_is_not_given():
    def with_labels(x, labels):
        guide(x)

    return model, with_labels


@case("the guide fails on 5 rows of torch.float32, and must run on any number of them: RuntimeError: mat1 and mat2")
def guide_that_fails():
    linear = nn.Linear(4, 1)

    def wrong(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(linear(x[:, None].expand(-1, 3))[:, 0], 1.0))

    return model, wrong


@case("the guide fails on 5 rows .* 5 vs 3; dimensions that belong to one row are declared by .to_event\\(\\)$")
def guide_without_to_event():
    def of_three(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x[:, None].expand(-1, 3), 1.0))

    return model, of_three


@case("the parameter 'loc' has an entry for each row, shape \\(3,\\) for 3 of them, and so fits the rows of one batch")
def parameter_with_an_entry_for_each_row():
    def guide(x):
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return model, guide


@pytest.mark.parametrize("name", CASES)
def test_a_broken_clause_is_told_in_one_sentence(name):
    build, sentence, x, arguments = CASES[name]
    with pytest.raises(ContractError, match=sentence) as refused:
        structure_of(*build(), x, **arguments)
    assert isinstance(refused.value, ValueError)
    assert "\n" not in str(refused.value)
    assert not len(pyro.get_param_store())


def test_the_pair_without_those_changes_is_taken():
    structure = structure_of(model, guide)
    assert (structure.vectorised, structure.reason, structure.nesting) == (True, "", 1)
    assert structure.observed == {"x": "x"}
    assert structure_of(model, lambda x: guide(x)).latents == structure.latents


@pytest.mark.parametrize(
    "tool", [lambda p, x: fit(p, x, progress=False), Pair.encode, Pair.reconstruct, Pair.posterior_predictive]
)
def test_tools_refuse_with_that_sentence(tool):
    with pytest.raises(ContractError, match="the guide does not sample the model's latent 'z'"):
        tool(Pair(model, lambda x: None), torch.randn(200))


# Autoguides for global latents, and more that is allowed


def test_an_autoguide_for_global_latents_is_taken():
    def regression(x=None, *, features, batch_size=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            return pyro.sample("x", dist.Normal(features @ weight, 1.0), obs=x)

    for autoguide in (AutoNormal, AutoDelta, AutoLowRankMultivariateNormal):
        structure = structure_of(regression, autoguide(regression), features=torch.randn(5, 2))
        assert structure.global_latents == ["weight"]
        with pytest.raises(ContractError, match="'weight' lies outside the plate 'data' and belongs to all rows, so "):
            structure.require_local()


def test_what_a_guide_has_of_its_own_is_told_apart():
    def busy(x, y):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
            pyro.sample("y", dist.Normal(u, 1.0), obs=y)
            pyro.sample("z", dist.Normal(x, 1.0))
            pyro.factor("penalty", u, has_rsample=True)

    structure = structure_of(model, busy, y=torch.randn(5))
    assert (structure.extra, structure.auxiliary) == (("u",), ("y", "penalty"))
    assert list(structure.latents) == ["z"]


# Which argument holds what is observed


def test_each_observed_site_is_traced_to_the_argument_that_holds_it():
    def model(x=None, *, y=None, words=None, counts=None, labels=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            pyro.sample("renamed", dist.Normal(z, 1.0), obs=y)
            pyro.sample("counts", dist.Poisson(z.exp()), obs=None if counts is None else counts.float())
            pyro.sample("copied", dist.Normal(z, 1.0), obs=None if labels is None else labels * 1.0)
            pyro.sample("made", dist.Normal(z, 1.0), obs=None if y is None else y * 2)
            with pyro.plate("of words", 3, dim=-2):
                pyro.sample("words", dist.Normal(z, 1.0), obs=None if words is None else words.mT)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    arguments = {"y": torch.randn(5), "words": torch.randn(5, 3), "labels": torch.arange(5)}
    found = structure_of(model, guide, **arguments, counts=torch.arange(1, 6))
    expected = {"x": "x", "renamed": "y", "counts": "counts", "copied": "labels", "made": None, "words": "words"}
    assert found.observed == expected
    assert found.nesting == 2


def test_a_site_with_gaps_is_traced_to_its_argument():
    def model(x=None, *, seen=None, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=None if x is None else seen)

    structure = structure_of(model, guide, seen=torch.arange(5) > 2)
    assert structure.observed["x_observed"] == "x"
    assert list(structure.latents) == ["z"]


# Several draws at once


def test_programs_that_take_one_batch_dimension_are_run_in_turn_and_the_reason_is_told():
    linear = nn.Linear(1, 1)

    def flat(x=None, *, batch_size=None):
        num = rows_of(x, batch_size)
        with pyro.plate("data", num, dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(linear(z.reshape(num, 1))[:, 0], 1.0), obs=x)

    structure = structure_of(flat, guide)
    assert not structure.vectorised
    assert "shape '[3, 1]' is invalid for input of size 6" in structure.reason


def test_programs_that_mix_up_draws_and_rows_are_found_by_their_numbers():
    def centred(x=None, *, batch_size=None):
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z - z.mean(), 1.0), obs=x)

    def in_place(x=None, *, batch_size=None):
        """Takes the first dimension for that of rows, and the numbers of draws and rows happen to fit."""
        with pyro.plate("data", rows_of(x, batch_size), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            return pyro.sample("x", dist.Normal(z + z.flatten()[0], 1.0), obs=x)

    for program in (centred, in_place):
        structure = structure_of(program, guide)
        assert (structure.vectorised, structure.reason) == (
            False,
            "log-probabilities at 'x' differ from those at one draw at a time",
        )


@pytest.mark.parametrize("seed", range(0, 70, 5))
def test_what_is_said_of_generated_programs(seed, float64):
    spec = draw_spec(seed)
    pair, _ = pair_of(spec, seed)
    batch = pair.batch(data_of(spec, seed))
    structure = pair.structure(batch, count_bytes=True)
    assert structure.nesting == spec.nesting
    assert structure.global_latents == [s.name for s in spec.latents if s.frame in ("global", "shared")]
    assert structure.enumerated("guide") == [s.name for s in spec.latent("guide")]
    assert structure.enumerated("model") == [s.name for s in spec.latent("model")]
    gaps = ["x_unobserved"] * (spec.mask == "guided obs_mask")
    assert structure.guided == [s.name for s in spec.latents if s.how != "model"] + gaps
    assert structure.extra == (("u",) if spec.auxiliary else ())
    assert structure.subsampled == (("words",) if spec.nesting == 2 and spec.all_words else ())
    inner = {"word": ("words",), "shared": ("components",)}
    for site in spec.latents:
        found = structure.latents[site.name]
        assert (found.name, found.plates) == (site.name, inner.get(site.frame, ()))
        assert found.event_dim == (1 if site.family in ("vector", "onehot") else 0)
        assert found.has_rsample == (site.family in ("normal", "vector", "gamma") and site.how != "score")
    observed = {"x_observed" if "obs_mask" in spec.mask and s.name == "x" else s.name: s.name for s in spec.observed}
    factors = {"penalty"} & structure.observed.keys()
    assert {name: held for name, held in structure.observed.items() if name not in factors} == observed


def test_memory_grows_with_what_the_programs_make():
    def pair_of_width(width):
        linear = nn.Linear(1, width)

        def model(x=None, *, batch_size=None):
            with pyro.plate("data", rows_of(x, batch_size), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                return pyro.sample("x", dist.Normal(linear(z[..., None]).sum(-1), 1.0), obs=x)

        return Pair(model, guide)

    sizes = []
    for width in (1000, 2000):
        pair = pair_of_width(width)
        sizes.append(pair.structure(pair.batch(torch.randn(5)), count_bytes=True).bytes_per_draw)
    assert 4 * 1000 < sizes[0] < 3 * 4 * 1000
    assert sizes[1] - sizes[0] == pytest.approx(4 * 1000, rel=0.05)


# Which latent is meant


def test_the_latent_that_is_meant_is_the_one_named_the_only_one_or_z():
    def several(*names, enclosing=()):
        def model(x=None, *, batch_size=None):
            total = sum(pyro.sample(name, dist.Normal(torch.zeros(()), 1.0)) for name in enclosing)
            with pyro.plate("data", rows_of(x, batch_size), dim=-1):
                total = total + sum(pyro.sample(name, dist.Normal(torch.zeros(()), 1.0)) for name in names)
                return pyro.sample("x", dist.Normal(total, 1.0), obs=x)

        def guide(x):
            for name in enclosing:
                pyro.sample(name, dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x), dim=-1):
                for name in names:
                    pyro.sample(name, dist.Normal(x, 1.0))

        return structure_of(model, guide)

    assert several("topic").site() == "topic"
    assert several("a", "z").site() == "z"
    assert several("a", "b").site("b") == "b"
    assert several("a", enclosing=("z", "w")).site() == "a"
    assert several(enclosing=("weight",)).site() == "weight"
    with pytest.raises(ValueError, match="the model has several latents, a, b: name one of them with site="):
        several("a", "b").site()
    with pytest.raises(ValueError, match="the model has no latent 'zz': its latents are a, b"):
        several("a", "b").site("zz")


# It leaves everything as it was


def test_nothing_is_changed_by_a_look():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(1), nn.Dropout(0.5)

        def forward(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(self.dropout(self.norm(x[:, None]))[:, 0], 1.0))

    normed = Normed()
    normed.dropout.eval()
    pair = Pair(model, normed)
    batch, state = pair.batch(torch.randn(5)), torch.get_rng_state()
    pair.structure(batch, count_bytes=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert (normed.training, normed.norm.training, normed.dropout.training) == (True, True, False)
    assert float(normed.norm.num_batches_tracked) == 0
    assert torch.is_grad_enabled()
    assert not len(pyro.get_param_store())
