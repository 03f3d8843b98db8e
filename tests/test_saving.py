"""Any pair on disk: what is saved opens as the same pair, or is refused before anything is written."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from pairs import function_pair, labelled_pair, mixture_pair, pyro_module_pair
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints, transform_to

from pyro_vae import VAE, Pair, load, make_vae, mlp_vae
from pyro_vae._support.ranges import Columns, interval
from pyro_vae.likelihoods import Normal, Poisson
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import Decoder
from pyro_vae.programs.saving import FORMAT_VERSION, argument_shapes, describe_constraint, load_config, save_pair
from pyro_vae.programs.saving import _build_constraint as build_constraint
from pyro_vae.transforms import Scale, Standardize, Transform

# Programs of every kind


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 4)
        self.encoder = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))

    def model(self, x=None, *, batch_size=None):
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        loc, raw = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def methods_pair():
    vae = Methods()
    return Pair(vae.model, vae.guide)


def closures_pair():
    decoder, encoder, spread = nn.Linear(2, 4), nn.Linear(4, 4), nn.Parameter(torch.tensor(0.3))

    def model(x=None, *, batch_size=None):
        scale = pyro.param("noise", torch.tensor(0.5), constraint=constraints.interval(0.1, 2.0))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(decoder(z), scale * spread.exp()).to_event(1), obs=x)

    def guide(x):
        loc, raw = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    return Pair(model, poutine.scale(guide, 1.0))


def last_layer_pair():
    """Global weights under an autoguide, which makes its parameters when it first runs."""

    def model(x=None, *, batch_size=None):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(4), 3.0).to_event(1))
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    return Pair(model, AutoNormal(model))


PAIRS = {
    "methods": methods_pair,
    "closures": closures_pair,
    "modules of one name": mixture_pair,
    "pyro modules": pyro_module_pair,
    "functions": function_pair,
    "an autoguide": last_layer_pair,
}


def rows_of(name):
    shape = {"functions": (), "pyro modules": (3,)}.get(name, (4,))
    return torch.randn(6, *shape)


def run(pair, x):
    """Every site's log-probability in one run of both programs with fixed noise."""
    pair.eval()
    torch.manual_seed(5)
    with torch.no_grad():
        guide = poutine.trace(pair.guide).get_trace(x)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(x)
    for trace in (guide, model):
        trace.compute_log_prob()
    return {n: s["log_prob"] for t in (guide, model) for n, s in t.nodes.items() if s["type"] == "sample"}


def disturb(pair):
    """Other weights, buffers and entries in Pyro's store than those it began with."""
    with torch.no_grad():
        for value in pair.state_dict().values():
            if value.is_floating_point():
                value.add_(0.1 + torch.rand_like(value))
        for value in pyro.get_param_store().get_state()["params"].values():
            value.add_(torch.rand_like(value))


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_saved_opens_as_the_same_programs(tmp_path, name):
    x, pair = rows_of(name), PAIRS[name]()
    run(pair, x)
    disturb(pair)
    expected = run(pair, x)
    save_pair(pair, tmp_path, run={"note": "kept"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    pyro.clear_param_store()
    fresh = PAIRS[name]()
    opened = load(tmp_path, into=fresh)
    assert opened is fresh
    assert not any(module.training for module in opened.modules())
    assert load_config(tmp_path)["run"] == {"note": "kept"}
    for site, value in run(opened, x).items():
        torch.testing.assert_close(value, expected[site], rtol=0, atol=0)


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_with_programs_is_not_opened_without_them(tmp_path, name):
    pair = PAIRS[name]()
    save_pair(pair, tmp_path)
    sentence = r"a pair whose programs are code \(.* and .*\): build the pair .* load\(folder, into=pair\)$"
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


def test_a_program_that_ran_already_takes_on_the_saved_values(tmp_path):
    x, pair = rows_of("functions"), function_pair()
    run(pair, x)
    disturb(pair)
    save_pair(pair, tmp_path)
    expected = run(pair, x)
    disturb(pair)
    assert not torch.equal(run(pair, x)["mean"], expected["mean"])
    load(tmp_path, into=function_pair())
    assert torch.equal(run(pair, x)["mean"], expected["mean"])
    assert all(value.requires_grad for value in pyro.get_param_store().get_state()["params"].values())


def test_parameters_of_other_programs_stay_out(tmp_path):
    pyro.param("foreign", torch.ones(3))
    save_pair(closures_pair(), tmp_path)
    assert load_config(tmp_path)["params"] == {"noise": {"class": "interval", "bounds": [0.1, 2.0]}}
    pyro.clear_param_store()
    load(tmp_path, into=closures_pair())
    assert list(pyro.get_param_store().keys()) == ["noise"]


def test_programs_that_need_arguments_are_told_from_others_by_name(tmp_path):
    pair = labelled_pair()
    save_pair(pair, tmp_path)  # nothing is in Pyro's store, so nothing has to be told apart
    pyro.param("a", torch.ones(3))
    sentence = r"store holds a, and which .* missing 1 .*'labels'\): name them, as in pair.store_names"
    with pytest.raises(ValueError, match=sentence):
        save_pair(pair, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    pair.store_names = {"a"}
    save_pair(pair, tmp_path / "other")
    assert load_config(tmp_path / "other")["params"] == {"a": "real"}


class Regression(nn.Module):
    """Global weights, and inputs without which neither program runs."""

    def forward(self, x=None, *, inputs, batch_size=None):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        noise = pyro.param("noise", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
            return pyro.sample("x", dist.Normal(inputs @ weight, noise), obs=x)


def test_programs_that_need_arguments_run_on_some_of_their_shape(tmp_path):
    model, inputs, x = Regression(), torch.randn(6, 3), torch.randn(6)
    pair = Pair(model, AutoNormal(model))
    pair.guide(x, inputs=inputs)
    model(x, inputs=inputs)
    disturb(pair)
    pair.argument_shapes = argument_shapes({"inputs": inputs, "unused": 0.5, "length": torch.tensor(3)})
    save_pair(pair, tmp_path)
    assert load_config(tmp_path)["params"] == {"noise": "positive"}
    expected = pair.guide.locs.weight, pyro.param("noise")
    pyro.clear_param_store()
    model = Regression()
    opened = load(tmp_path, into=Pair(model, AutoNormal(model)))
    assert torch.equal(opened.guide.locs.weight, expected[0])
    assert torch.equal(pyro.param("noise"), expected[1])


class Steps(constraints.Constraint):
    """A constraint that only the user's code knows."""

    def check(self, value):
        return value > 0


transform_to.register(Steps, lambda constraint: dist.transforms.ExpTransform())
STEPS = Steps()


def test_a_constraint_that_cannot_be_said_comes_from_the_code(tmp_path):
    def pair():
        def model(x=None, *, batch_size=None):
            scale = pyro.param("own", torch.tensor(2.0), constraint=STEPS)
            with pyro.plate("data", batch_size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                return pyro.sample("x", dist.Normal(z, scale), obs=x)

        def guide(x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(x, 1.0))

        return Pair(model, guide)

    first = pair()
    run(first, torch.randn(3))
    disturb(first)
    saved = pyro.param("own").item()
    save_pair(first, tmp_path)
    assert load_config(tmp_path)["params"] == {"own": None}
    pyro.clear_param_store()
    load(tmp_path, into=pair())
    assert pyro.param("own").item() == saved
    assert pyro.get_param_store()._constraints["own"] is STEPS


CONSTRAINTS = [
    *(constraints.real, constraints.positive, constraints.unit_interval, constraints.boolean, constraints.simplex),
    *(constraints.nonnegative_integer, constraints.lower_cholesky, dist.constraints.ordered_vector),
    *(constraints.interval(-1.0, 3.0), constraints.greater_than(2.0), constraints.integer_interval(0, 255)),
    *(constraints.independent(constraints.positive, 2), interval(0, 1)),
    Columns([constraints.real, constraints.boolean], ["a", "b"]),
]


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=str)
def test_constraints_come_back_from_json(constraint):
    described = json.loads(json.dumps(describe_constraint(constraint)))
    again = build_constraint(described)
    assert describe_constraint(again) == describe_constraint(constraint)
    assert type(again) is type(constraint)


def test_bounds_that_are_tensors_come_back_from_json():
    again = build_constraint(describe_constraint(constraints.interval(torch.tensor([0.0, 1.0]), torch.ones(2) * 3)))
    assert again.check(torch.tensor([0.5, 0.5])).tolist() == [True, False]


# What a pair knows of its data


class Shift(Transform):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x):
        return x + self.by

    def inverse(self, y):
        return y - self.by


class Forgetful(Shift):
    """Keeps its argument under another name."""

    def __init__(self, amount: float) -> None:
        super().__init__(amount)
        self.register_buffer("kept", torch.tensor(amount))


def pair_with(transform=None, **options):
    vae = Methods()
    return Pair(vae.model, vae.guide, transform=transform, **options)


def test_transform_shape_range_and_rows_come_back(tmp_path):
    transform = Standardize((4,)).fit(torch.randn(9, 4) * 7 + 3)
    pair = pair_with(transform, event_shape=(4,), data_range=constraints.real, missing="nan")
    pair.num_rows = 77
    save_pair(pair, tmp_path)
    opened = load(tmp_path, into=pair_with())
    x = torch.randn(5, 4)
    assert torch.equal(opened.transform(x), transform(x))
    assert (opened.event_shape, opened.data_range) == ((4,), constraints.real)
    assert (opened.missing, opened.num_rows) == ("nan", 77)
    config = load_config(tmp_path)
    assert config["format_version"] == FORMAT_VERSION
    assert config["torch_version"] == torch.__version__
    assert {"pyro_vae_version", "pyro_version"} <= config.keys()


def test_a_transform_of_the_users_own_comes_by_its_class_or_from_the_code(tmp_path):
    save_pair(pair_with(Shift(2.5)), tmp_path)
    for options in ({"parts": [Shift], "into": pair_with()}, {"into": pair_with(Shift(0.0))}):
        assert load(tmp_path, **options).transform.by == 2.5
    with pytest.raises(ValueError, match="a part 'Shift' that this version"):
        load(tmp_path, into=pair_with())
    save_pair(pair_with(Forgetful(2.5)), tmp_path)
    assert load(tmp_path, into=pair_with(Forgetful(0.0))).transform.kept == 2.5
    with pytest.raises(ValueError, match=r"with a transform Forgetful that can't be built .* found Identity"):
        load(tmp_path, into=pair_with())


def test_weights_keep_their_type(tmp_path):
    pair = methods_pair().double()
    save_pair(pair, tmp_path)
    opened = load(tmp_path, into=methods_pair())
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), pair.state_dict().values(), strict=True))
    assert opened.dtype is torch.float64


@pytest.mark.parametrize("other", [mixture_pair, lambda: pair_with(Standardize((3,))), pyro_module_pair])
def test_the_state_of_other_programs_is_refused_and_changes_nothing(tmp_path, other):
    save_pair(closures_pair(), tmp_path)
    pyro.clear_param_store()
    pair = other()
    before, transform = {n: v.clone() for n, v in pair.state_dict().items()}, pair.transform
    with pytest.raises(ValueError, match=r"does not hold the state of this pair|do not run without data"):
        load(tmp_path, into=pair)
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    assert pair.transform is transform
    assert not pyro.get_param_store().keys()


# Whole or not at all


class Odd(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def get_extra_state(self):
        return {"steps": 3}

    def set_extra_state(self, state):
        pass

    def forward(self, x=None, *, batch_size=None):
        return self.decoder(x)


@pytest.mark.parametrize(
    ("make", "options", "sentence"),
    [
        (methods_pair, {"run": {"a": object()}}, "^run must be JSON data"),
        (lambda: Pair(Odd(nn.Linear(2, 4)), nn.Linear(4, 2)), {}, "^model._extra_state is a dict, which can't be"),
        (lambda: methods_pair().to("meta"), {}, "is a tensor that is not dense"),
    ],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path, make, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        save_pair(make(), tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failing", [0, 1])
def test_a_disk_that_fills_up_leaves_both_files_as_they_were(tmp_path, monkeypatch, failing):
    save_pair(methods_pair(), tmp_path, run={"version": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def full_disk(*args, **kwargs):
        calls.append(args)
        if len(calls) > failing:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_pair(methods_pair(), tmp_path, run={"version": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# VAEs with networks of the user's own


class Keeps(nn.Module):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.num_in, self.num_out = num_in, num_out
        self.layers = nn.Sequential(nn.Linear(num_in, 5), nn.Tanh(), nn.Linear(5, num_out))

    def forward(self, x):
        return self.layers(x.flatten(1))


class Forgets(nn.Sequential):
    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(num_in, num_out))


class Lies(Keeps):
    """Is not what its arguments say."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__(num_in, num_out)
        self.power = 1.0

    def forward(self, x):
        return super().forward(x) * self.power


def changed():
    network = Lies(12, 6)
    network.power = 2.0
    return network


def tied():
    one = nn.Linear(3, 3)
    return nn.Sequential(nn.Linear(12, 3), one, nn.Tanh(), one, nn.Linear(3, 6))


def hooked():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 6))
    network[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    return network


def layers():
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 3, 3, padding=1, bias=False), nn.BatchNorm1d(3), nn.GELU("tanh")),
        *(nn.Dropout(0.1), nn.Flatten(), nn.LayerNorm(36), nn.Linear(36, 6), nn.LeakyReLU(0.3)),
    )


def vae_with(network):
    return make_vae(
        (12,), 3, likelihood=Normal(0.5), encoder_network=network,
        decoder_network=nn.Sequential(nn.Linear(3, 7), nn.Softplus(beta=2), nn.Linear(7, 12, bias=False)),
    )  # fmt: skip


def same(a, b):
    x, z = torch.rand(4, 12), torch.randn(4, 3)
    a, b = a.eval(), b.eval()
    assert torch.equal(a.encoder(x).log_prob(z), b.encoder(x).log_prob(z))
    assert torch.equal(a.decoder(z).log_prob(x), b.decoder(z).log_prob(x))
    return True


@pytest.mark.parametrize(
    ("network", "parts"),
    [(layers, ()), (lambda: Keeps(12, 6), (Keeps,)), (lambda: nn.Linear(12, 6), ()), (lambda: Lies(12, 6), (Lies,))],
)
def test_networks_that_say_what_they_are_are_built_again(tmp_path, network, parts):
    vae = vae_with(network())
    vae.guide(torch.randn(9, 12))  # running averages move
    state = torch.get_rng_state()
    vae.save(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(load(tmp_path, parts=parts), vae)
    assert same(load(tmp_path, into=vae_with(network())), vae)
    if parts:
        with pytest.raises(ValueError, match=r"a part '(Keeps|Lies)' that this version"):
            load(tmp_path)


@pytest.mark.parametrize("network", [lambda: Forgets(12, 6), changed, tied, hooked])
def test_networks_that_do_not_are_saved_as_state_and_opened_into_the_vae(tmp_path, network):
    vae = vae_with(network())
    vae.save(tmp_path)
    with pytest.raises(ValueError, match=r"programs are code .* load\(folder, into=pair\)"):
        load(tmp_path)
    assert same(load(tmp_path, into=vae_with(network())), vae)


def test_two_classes_of_one_name_are_not_taken_for_each_other(tmp_path):
    class MLP(nn.Linear):
        def __init__(self, in_features: int, out_features: int) -> None:
            super().__init__(in_features, out_features)

    decoder = Decoder(MLP(3, 12), Normal(0.5), (12,))
    vae = mlp_vae((12,), 3, likelihood=Normal(0.5))
    vae = VAE(StandardNormal(3), decoder, vae.encoder)
    vae.save(tmp_path)
    fresh = mlp_vae((12,), 3, likelihood=Normal(0.5))
    fresh = VAE(StandardNormal(3), Decoder(MLP(3, 12), Normal(0.5), (12,)), fresh.encoder)
    assert same(load(tmp_path, into=fresh), vae)


def test_a_vae_of_other_parts_is_refused(tmp_path):
    mlp_vae((12,), 3, likelihood=Normal(0.5)).save(tmp_path)
    other = mlp_vae((12,), 3, likelihood=Normal(0.7))
    with pytest.raises(ValueError, match=r"the VAE given as into= is not the one in .* its decoder is"):
        load(tmp_path, into=other)


def test_a_vae_takes_on_the_transform_that_was_saved(tmp_path):
    vae = mlp_vae((12,), 3, likelihood=Normal(link="sigmoid"), transform=Scale(0, 9))
    vae.save(tmp_path)
    opened = load(tmp_path, into=mlp_vae((12,), 3, likelihood=Normal(link="sigmoid"), transform="auto"))
    assert opened.transform.high == 9


def test_a_description_alone_can_be_written_before_training(tmp_path):
    vae_with(Forgets(12, 6)).save_config(tmp_path, run={"seed": 1})
    assert load_config(tmp_path)["run"] == {"seed": 1}
    with pytest.raises(
        ValueError, match=r"has no model\.safetensors: its training has not finished, and can be resumed"
    ):
        load(tmp_path, into=vae_with(Forgets(12, 6)))


# The format before this one

OLD = {
    "format_version": 1,
    "pyro_vae_version": "0.1.0",
    "model": {
        "class": "VAE",
        "prior": {"class": "StandardNormal", "latent_dim": 1},
        "decoder": {
            "class": "Decoder",
            "network": {"class": "MLP", "in_shape": [1], "out_shape": [1, 2], "hidden_dims": [], "activation": "ReLU"},
            "likelihood": {"class": "Poisson"},
            "event_shape": [2],
        },
        "encoder": {
            "class": "Encoder",
            "network": {
                **{"class": "MLP", "in_shape": [2, 2], "out_shape": [2, 1]},
                **{"hidden_dims": [], "activation": "ReLU"},
            },
            "posterior": {"class": "DiagonalNormal", "min_scale": 0.0001},
            "latent_dim": 1,
            "features": {
                "class": "WithMask",
                "features": {"class": "LogOnePlus", "event_shape": [2]},
                "event_shape": [2],
            },
        },
        "transform": {"class": "Identity"},
        "missing": "nan",
    },
    "run": {"note": "old"},
}
OLD_WEIGHTS = {
    "guide.encoder.features.features.loc": [0.6931471824645996, 1.9560115337371826],
    "guide.encoder.features.features.scale": [0.5659523010253906, 0.3465735912322998],
    "guide.encoder.features.features.has_scale": True,
    "guide.encoder.network.layers.0.bias": [-0.25, 0.0],
    "guide.encoder.network.layers.0.weight": [[0.0, -0.5, 0.25, 0.25], [0.0, 0.5, 0.0, 0.25]],
    "model.decoder.likelihood.anchor": [0.28768211603164673, 1.8718022108078003],
    "model.decoder.likelihood.has_anchor": True,
    "model.decoder.network.layers.0.bias": [-0.5, -1.0],
    "model.decoder.network.layers.0.weight": [[-1.0], [-0.75]],
}


@pytest.mark.parametrize("into", [False, True])
def test_the_format_before_opens_as_it_did(tmp_path, into):
    from safetensors.torch import save_file

    (tmp_path / "config.json").write_text(json.dumps(OLD))
    save_file({name: torch.tensor(value) for name, value in OLD_WEIGHTS.items()}, tmp_path / "model.safetensors")
    fresh = mlp_vae((2,), 1, likelihood=Poisson(), hidden_dims=(), missing="nan") if into else None
    vae = load(tmp_path, into=fresh)
    x = torch.tensor([[1.0, 4.0], [3.0, 2.0], [0.0, 9.0]])
    seen = torch.tensor([[True, True], [True, False], [True, True]])
    q_z = vae.encoder(x, seen)  # what version 0.1.0 gave for these rows
    torch.testing.assert_close(q_z.mean.ravel(), torch.tensor([0.75, 0.0, -0.25]))
    torch.testing.assert_close(q_z.stddev.ravel(), torch.tensor([0.5760394335, 0.6932471991, 1.1369711161]))
    mean = vae.decoder(torch.tensor([[0.5]])).mean.ravel()
    torch.testing.assert_close(mean, torch.tensor([0.4905059338, 1.6434574127]))
    vae.save(tmp_path)
    assert load_config(tmp_path)["format_version"] == FORMAT_VERSION
    assert torch.equal(load(tmp_path).encoder(x, seen).mean, q_z.mean)
