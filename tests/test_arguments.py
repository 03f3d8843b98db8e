"""Keyword arguments: which a program takes, and a sentence for those that none takes."""

import functools

import pyro
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from pyro_vae import mlp_vae
from pyro_vae.likelihoods import Mixed, NegativeBinomial, Normal, Poisson, ZeroInflatedNegativeBinomial
from pyro_vae.likelihoods import ZeroInflatedPoisson as ZIP
from pyro_vae.programs.arguments import accepted, arguments_for, check_arguments, check_values


def model(x=None, *, labels, batch_size=None, temperature=1.0):
    pass


def renamed_rows(data, labels=None):
    pass


def anything(x, **kwargs):
    pass


def nothing(x):
    pass


def declared(x, **kwargs):
    pass


declared.arguments = ("labels",)


class Module(nn.Module):
    def forward(self, x=None, *, labels, batch_size=None):
        pass

    def guide(self, x, labels):
        pass

    @poutine.scale(scale=2.0)
    def scaled(self, x, labels):
        pass


class Callable:
    def __call__(self, x, labels):
        pass


def wrapped(fn):
    @functools.wraps(fn)
    def wrapper(*args, **kwargs):
        return fn(*args, **kwargs)

    return wrapper


@easy_guide(model)
def easy(self, x, labels):
    pass


def two_guides():
    guide = AutoGuideList(model)
    guide.append(nothing)
    return guide


KINDS = {
    "a function": (model, {"labels", "temperature"}),
    "rows under another name": (renamed_rows, {"labels"}),
    "any": (anything, None),
    "none": (nothing, set()),
    "said by an attribute": (declared, {"labels"}),
    "a module": (Module(), {"labels"}),
    "a method": (Module().guide, {"labels"}),
    "a handled method": (Module().scaled, {"labels"}),
    "an object": (Callable(), {"labels"}),
    "a lambda": (lambda x, labels: x, {"labels"}),
    "partial": (functools.partial(model, temperature=3.0), {"labels", "temperature"}),
    "partial of a handled one": (functools.partial(poutine.scale(model, 2.0), labels=3), {"labels", "temperature"}),
    "wraps": (wrapped(model), {"labels", "temperature"}),
    "poutine.block of poutine.scale": (poutine.block(poutine.scale(renamed_rows, 2.0)), {"labels"}),
    "condition": (pyro.condition(Module(), {"z": torch.zeros(1)}), {"labels"}),
    "config_enumerate": (config_enumerate(renamed_rows), {"labels"}),
    "poutine.trace": (poutine.trace(renamed_rows), {"labels"}),
    "an autoguide": (AutoNormal(model), {"labels", "temperature"}),
    "an autoguide of any": (AutoNormal(anything), None),
    "a list of autoguides": (two_guides(), {"labels", "temperature"}),
    "an easy guide": (easy, {"labels"}),
    "a class of C": (max, None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_arguments_that_programs_take(kind):
    program, expected = KINDS[kind]
    assert accepted(program) == expected
    given = {"labels": 1, "mask": 2}
    assert arguments_for(program, given) == {k: v for k, v in given.items() if expected is None or k in expected}


def test_an_argument_that_neither_takes_is_named_with_what_they_take():
    check_arguments(model, nothing, ["labels", "temperature"])
    check_arguments(nothing, anything, ["whatever"])
    sentence = (
        r"^neither program takes 'label': did you mean 'labels'\? "
        r"The model takes labels and temperature; the guide takes no arguments$"
    )
    with pytest.raises(TypeError, match=sentence):
        check_arguments(model, nothing, ["labels", "label"])
    with pytest.raises(TypeError, match=r"^neither program takes 'q'; both take labels$"):
        check_arguments(renamed_rows, Callable(), ["q"])


# Our own programs

COUNTS = (Poisson, ZIP, NegativeBinomial, ZeroInflatedNegativeBinomial)


def test_a_vae_takes_a_mask_and_what_its_likelihood_takes():
    normal, poisson = mlp_vae((3,), 2, likelihood=Normal()), mlp_vae((3,), 2, likelihood=Poisson(), missing="nan")
    table = mlp_vae((2,), 2, likelihood=Mixed((Normal(), Poisson())))
    assert [accepted(normal.model), accepted(normal.guide)] == [{"mask"}] * 2
    for vae in (poisson, table):
        assert [accepted(vae.model), accepted(vae.guide)] == [{"mask", "size_factor"}] * 2


@pytest.mark.parametrize("run", ["model", "guide", "decoder", "encoder", "likelihood"])
def test_run_by_hand_too_an_unknown_argument_is_one_sentence(run):
    vae, x, z = mlp_vae((3,), 2, likelihood=Poisson()), torch.ones(4, 3), torch.zeros(4, 2)
    programs = {
        "model": lambda **a: vae.model(x, **a),
        "guide": lambda **a: vae.guide(x, **a),
        "decoder": lambda **a: vae.decoder(z, **a),
        "encoder": lambda **a: vae.encoder(x, **a),
        "likelihood": lambda **a: vae.decoder.likelihood(torch.zeros(4, 1, 3), **a),
    }
    programs[run](size_factor=torch.ones(4))
    with pytest.raises(TypeError, match=r"^the \w+ takes no 'size_factors': did you mean 'size_factor'\? It takes"):
        programs[run](size_factors=torch.ones(4))


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (4, 4), (3, 4), (1, 4, 3)])
def test_a_mask_of_another_shape_than_the_rows_is_one_sentence(shape):
    vae, x = mlp_vae((3,), 2, likelihood=Normal(), missing="nan"), torch.ones(4, 3)
    mask = torch.ones(shape, dtype=torch.bool)
    for run in (lambda: vae.model(x, mask=mask), lambda: vae.guide(x, mask=mask)):
        with pytest.raises(ValueError, match=r"^the mask has shape \(.*\), expected .* \(4, 3\)"):
            run()
    with pytest.raises(ValueError, match=r"^the mask has shape \(.*\), expected .* \(N, 3\)"):
        check_values([vae.model, vae.guide], {"mask": mask})


# Size factors


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_size_factors_that_are_not_positive_numbers_are_refused_by_row(bad):
    vae, factors = mlp_vae((3,), 2, likelihood=Poisson()), torch.ones(5)
    check_values([vae.model, vae.guide], {"size_factor": factors})
    factors[3] = bad
    with pytest.raises(ValueError, match=r"^size_factor has shape \(5, 1\), expected one number for each row: \(5,\)$"):
        check_values([vae.model], {"size_factor": factors[:, None]})
    with pytest.raises(ValueError, match=rf"^size_factor must be a positive number for each row.*{bad:g} in row 3"):
        check_values([vae.model, vae.guide, nothing], {"size_factor": factors})


@pytest.mark.parametrize("make", COUNTS)
@pytest.mark.parametrize("shape", [(4, 1), (3,), (4, 3)])
def test_size_factors_of_another_shape_are_one_sentence(make, shape):
    vae, x, factors = mlp_vae((3,), 2, likelihood=make()), torch.ones(4, 3), torch.ones(shape)
    for run in (vae.model, vae.guide):
        with pytest.raises(ValueError, match=r"^size_factor has shape \(.*\), expected one number for each of 4 rows"):
            run(x, size_factor=factors)


@pytest.mark.parametrize("make", COUNTS)
def test_a_size_factor_multiplies_means_and_divides_what_the_encoder_sees(make):
    vae = mlp_vae((3,), 2, likelihood=make(total_count=2.0) if "total" in str(make()) else make()).double().eval()
    z, x = torch.randn(4, 2).double(), torch.randint(0, 9, (4, 3)).double()
    factors = torch.tensor([1.0, 2.0, 5.0, 0.5])
    torch.testing.assert_close(
        vae.decoder(z, size_factor=factors).mean, vae.decoder(z).mean * factors[:, None].double()
    )
    torch.testing.assert_close(vae.encoder(x * factors[:, None], size_factor=factors).mean, vae.encoder(x).mean)
    for one in (2.0, 2, torch.tensor(2.0)):  # the same for all rows
        torch.testing.assert_close(vae.decoder(z, size_factor=one).mean, vae.decoder(z).mean * 2)
        torch.testing.assert_close(vae.encoder(2 * x, size_factor=one).mean, vae.encoder(x).mean)


def test_a_tables_columns_of_counts_take_size_factors_and_the_others_do_not():
    vae = mlp_vae((3,), 2, likelihood=Mixed((Normal(1.0), Poisson(), Poisson())), missing="nan").double().eval()
    z, x, factors = torch.randn(4, 2).double(), torch.ones(4, 3).double(), torch.tensor([1.0, 2.0, 5.0, 0.5])
    scaled, plain = vae.decoder(z, size_factor=factors).mean, vae.decoder(z).mean
    torch.testing.assert_close(scaled[:, 0], plain[:, 0])
    torch.testing.assert_close(scaled[:, 1:], plain[:, 1:] * factors[:, None].double())
    more = torch.stack([x[:, 0], x[:, 1] * factors, x[:, 2] * factors], -1)
    torch.testing.assert_close(vae.encoder(more, size_factor=factors).mean, vae.encoder(x).mean)
    with pytest.raises(ValueError, match="size_factor must be a positive number"):
        check_values([vae.model], {"size_factor": -factors})


def test_the_anchor_reckons_with_a_factor_for_all_rows():
    a, b = (mlp_vae((3,), 2, likelihood=Poisson()) for _ in range(2))
    x = torch.full((6, 3), 8.0)
    a.model(x, size_factor=4.0)
    b.model(x, size_factor=torch.full((6,), 4.0))
    torch.testing.assert_close(a.decoder.likelihood.anchor, torch.full((3,), 2.0).log())
    assert torch.equal(a.decoder.likelihood.anchor, b.decoder.likelihood.anchor)
