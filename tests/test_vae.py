"""VAEs: how they are put together, saved and opened."""

import json
import math

import pytest
import torch
from pyro import poutine
from torch.nn import functional as F

from pyro_vae import VAE, conv_vae, load, make_vae, mlp_vae
from pyro_vae._support.ranges import constraints
from pyro_vae.likelihoods import Bernoulli, Likelihood, Normal
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import StandardNormal
from pyro_vae.programs import Decoder, Encoder
from pyro_vae.transforms import Binarize, Identity, Scale, Standardize

VAES = {
    "mlp": lambda: mlp_vae((3, 4), 2, hidden_dims=(7, 5), likelihood=Bernoulli(), transform=Binarize(0, 16)),
    "conv": lambda: conv_vae(
        (3, 5, 6), 2, channels=(4, 3), upsample="nearest", likelihood=Normal("element", "tanh"),
        transform=Scale(0, 255, onto=(-1, 1)), activation="SiLU", kernel_size=5,
    ),
    "standardised": lambda: mlp_vae(
        (4,), 3, likelihood=Normal("network"), transform=Standardize((4,)).fit(torch.randn(9, 4) * 7)
    ),
    "fixed scale": lambda: mlp_vae((4,), 3, likelihood=Normal(0.3)),
}  # fmt: skip


@pytest.mark.parametrize("name", VAES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_saved_opens_as_the_same_distributions(tmp_path, name, dtype):
    torch.manual_seed(1)
    vae = VAES[name]().to(dtype)
    vae.save(tmp_path / "run", run={"note": "kept"})
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]
    opened = load(tmp_path / "run")
    assert not opened.training
    x = torch.randint(0, 2, (5, *vae.event_shape)).to(dtype)
    z = torch.randn(5, vae.latent_dim, dtype=dtype)
    torch.manual_seed(2)
    q_z, p_x = vae.encode(x), vae.decode(z)
    torch.manual_seed(2)
    q_opened, p_opened = opened.encode(x), opened.decode(z)
    assert torch.equal(q_opened.log_prob(z), q_z.log_prob(z))
    assert torch.equal(p_opened.log_prob(x), p_x.log_prob(x))
    assert q_opened.log_prob(z).dtype is dtype
    torch.testing.assert_close(opened.transform.inverse(x), vae.transform.inverse(x), rtol=0, atol=0)


def test_the_parts_are_what_the_arguments_say():
    vae = conv_vae((1, 28, 28), 6, likelihood=Normal(link="sigmoid"), channels=(4,), transform=Scale(0, 255))
    assert vae.prior().event_shape == (6,)
    assert vae.decoder(torch.zeros(2, 3, 6)).batch_shape == (2, 3)
    assert vae.encoder(torch.zeros(2, 3, 1, 28, 28)).batch_shape == (2, 3)
    assert vae.decoder.likelihood.link == "sigmoid"
    assert vae.latent_dim == 6


def test_one_likelihood_in_two_models_is_two_likelihoods():
    likelihood = Normal(scale="element")
    a, b = (mlp_vae((3,), 2, likelihood=likelihood) for _ in range(2))
    shared = {id(p) for p in a.parameters()} & {id(p) for p in b.parameters()}
    assert not shared


@pytest.mark.parametrize(
    ("likelihood", "transform", "mend"),
    [
        (
            Bernoulli(),
            Scale(0, 255),
            r"describes 0 or 1, but Scale yields the interval \[0, 1\]: use transform=Binarize",
        ),
        (Bernoulli(), Standardize((4,)), "Standardize yields the real numbers: use transform=Binarize"),
        (Normal(link="tanh"), Scale(0, 255), r"interval \[-1, 1\], but Scale .* onto=\(-1, 1\)"),
        (Normal(link="sigmoid"), Scale(0, 255, onto=(-1, 1)), r"use transform=Scale\(low, high\)"),
        (Normal(link="sigmoid"), Standardize((4,)), "a likelihood for real numbers with Standardize"),
    ],
)
def test_a_likelihood_and_a_transform_that_do_not_fit_are_refused(likelihood, transform, mend):
    with pytest.raises(ValueError, match=mend):
        mlp_vae((4,), 2, likelihood=likelihood, transform=transform)


@pytest.mark.parametrize(
    ("likelihood", "transform"),
    [
        (Bernoulli(), Binarize(0, 255)),
        (Bernoulli(), Identity()),
        (Normal(link="sigmoid"), Scale(0, 255)),
        (Normal(link="sigmoid"), Binarize(0, 255)),
        (Normal(link="tanh"), Scale(0, 1, onto=(-1, 1))),
        (Normal(), Scale(0, 255)),
        (Normal(), Standardize((4,))),
    ],
)
def test_those_that_fit_are_taken(likelihood, transform):
    assert mlp_vae((4,), 2, likelihood=likelihood, transform=transform).sample(3).shape == (3, 4)


def test_parts_that_disagree_are_refused():
    vae = VAES["mlp"]()
    with pytest.raises(ValueError, match="the prior has 5 latents and the encoder 2"):
        VAE(StandardNormal(5), vae.decoder, vae.encoder)
    wrong = Decoder(torch.nn.Linear(2, 5), Normal(), (4,))
    sentence = r"the decoder's network must map \(N, 2\) to \(N, 1, 4\), or to \(N, 4\); it maps \(3, 2\) to \(3, 5\)"
    with pytest.raises(ValueError, match=sentence):
        wrong(torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"the decoder's rows have shape \(3, 4\) and the encoder's \(4,\)"):
        VAE(StandardNormal(3), vae.decoder, VAES["fixed scale"]().encoder)


# A part of the user's own


class SoftplusNormal(Likelihood):
    """Positive means."""

    def __init__(self, floor: float = 0.1) -> None:
        super().__init__()
        self.floor = floor

    @property
    def data_range(self):
        return constraints.real

    def distribution(self, *params):
        return torch.distributions.Normal(F.softplus(params[0]), self.floor)


def test_a_part_of_the_users_own_is_saved_and_opened_by_its_class(tmp_path):
    import pyro.distributions as dist

    class Own(SoftplusNormal):
        def distribution(self, *params):
            return dist.Normal(F.softplus(params[0]), self.floor)

    vae = mlp_vae((3,), 2, likelihood=Own(floor=0.25))
    vae.save(tmp_path)
    opened = load(tmp_path, parts=[Own])
    assert opened.decoder.likelihood.floor == 0.25
    assert torch.equal(opened.decode(torch.ones(1, 2)).mean, vae.decode(torch.ones(1, 2)).mean)
    with pytest.raises(ValueError, match="a part 'Own' that this version"):
        load(tmp_path)


def test_every_part_that_can_be_saved_has_a_name_of_its_own():
    from pyro_vae import covariates, encodings, likelihoods, networks, posteriors, priors, programs, transforms

    rooms = (covariates, encodings, likelihoods, networks, posteriors, priors, programs, transforms)
    names = [n for room in rooms for n in room.__all__ if isinstance(getattr(room, n), type)]
    assert len(names) == len(set(names))


# Damage


@pytest.fixture
def saved(tmp_path):
    VAES["mlp"]().save(tmp_path)
    return tmp_path


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_without_a_model_is_told_so(tmp_path):
    with pytest.raises(ValueError, match=r"holds no saved model: there is no config\.json"):
        load(tmp_path / "nowhere")


def test_a_newer_format_is_refused_by_its_version(saved):
    edit(saved, lambda c: c.update(format_version=99, pyro_vae_version="9.9"))
    with pytest.raises(ValueError, match=r"format 99, written by pyro_vae 9\.9; this is pyro_vae .* newer version"):
        load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.pop("model"),
        lambda c: c.update(format_version="one"),
        lambda c: c["model"].pop("prior"),
        lambda c: c["model"].update(prior=None),
        lambda c: c["model"].update({"class": "Linear"}),
        lambda c: c["model"].update({"class": "StandardNormal"}),
        lambda c: c["model"]["decoder"]["network"].update(in_shape="x"),
        lambda c: c["model"]["decoder"].update(likelihood=3),
        lambda c: c.update(model=[1]),
    ],
)
def test_a_damaged_description_is_one_sentence(saved, change):
    edit(saved, change)
    with pytest.raises(ValueError, match=r"config\.json"):
        load(saved)


def test_a_config_that_is_not_json_is_one_sentence(saved):
    (saved / "config.json").write_text('{"format_version": 1, "mod')
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not JSON"):
        load(saved)


def test_missing_half_written_and_foreign_weights_are_told_apart(saved, tmp_path):
    weights = saved / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is damaged or half-written"):
        load(saved)
    VAES["fixed scale"]().save(tmp_path / "other")
    weights.write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"not hold the state of the model that config\.json describes \(it lacks"):
        load(saved)
    weights.unlink()
    with pytest.raises(ValueError, match="its training has not finished, and can be resumed"):
        load(saved)


def test_saving_over_a_model_that_fails_leaves_the_old_one(saved, monkeypatch):
    before = (saved / "model.safetensors").read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        VAES["mlp"]().save(saved)
    assert (saved / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in saved.iterdir()) == ["config.json", "model.safetensors"]


# Networks of any kind


class OneBatchDimension(torch.nn.Module):
    """As many networks are written: the batch is the first dimension, and there is no other."""

    def __init__(self, num_in, out_shape):
        super().__init__()
        self.out_shape = out_shape
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(num_in, math.prod(out_shape)))

    def forward(self, rows):
        return self.layers(rows).reshape(-1, *self.out_shape)


class Counts(torch.nn.Module):
    """Has state that a run changes, also in evaluation mode."""

    def __init__(self, num_in, num_out):
        super().__init__()
        self.linear = torch.nn.Linear(num_in, num_out)
        self.norm = torch.nn.BatchNorm1d(num_out)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, rows):
        self.runs = self.runs + 1
        return self.norm(self.linear(rows))


def convolutional():
    return torch.nn.Sequential(
        *(torch.nn.Unflatten(1, (1, 4)), torch.nn.Conv2d(1, 3, 3, stride=2), torch.nn.ReLU(), torch.nn.Flatten()),
        torch.nn.LazyLinear(4),
    )


NETWORKS = {
    "one batch dimension": (lambda: OneBatchDimension(20, (2, 2)), lambda: OneBatchDimension(2, (1, 4, 5))),
    "sequential, flat": (
        lambda: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(20, 4)),
        lambda: torch.nn.Sequential(torch.nn.Linear(2, 20)),
    ),
    "takes flat rows": (lambda: torch.nn.Linear(20, 4), lambda: OneBatchDimension(2, (4, 5))),
    "convolutions and lazy layers": (convolutional, lambda: OneBatchDimension(2, (4, 5, 1))),
    "functions that make them": (
        lambda: lambda i, o: OneBatchDimension(math.prod(i), o),
        lambda: lambda i, o: OneBatchDimension(*i, o),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_any_kind_make_a_vae(name):
    encoder_network, decoder_network = NETWORKS[name]
    vae = make_vae(
        (4, 5), 2, likelihood=Normal(1.0), encoder_network=encoder_network(), decoder_network=decoder_network()
    ).eval()
    x, z = torch.randn(3, 4, 5), torch.randn(7, 3, 2)
    p_x, q_z = vae.decoder(z), vae.encoder(torch.stack([x, 2 * x]))
    assert (p_x.batch_shape, p_x.event_shape) == ((7, 3), (4, 5))
    assert (q_z.batch_shape, q_z.event_shape) == ((2, 3), (2,))
    # Rows of many batch dimensions are what they are one by one.
    torch.testing.assert_close(p_x.mean[4, 1], vae.decoder(z[4, 1]).mean)
    torch.testing.assert_close(q_z.mean[1], vae.encoder(2 * x).mean)
    for program, rows in ((vae.model, x), (vae.guide, x)):
        assert poutine.trace(program).get_trace(rows).nodes["z"]["value"].shape == (3, 2)


def test_blocks_of_a_flat_output_are_the_raw_parameters_in_order():
    network = torch.nn.Linear(2, 8)
    vae = make_vae(
        (4,), 2, likelihood=Normal("network"), encoder_network=torch.nn.Linear(4, 4), decoder_network=network
    )
    z = torch.randn(3, 2)
    torch.testing.assert_close(vae.decoder(z).mean, network(z)[:, :4])
    assert not torch.equal(vae.decoder(z).stddev[:, 0], vae.decoder(z).stddev[:, 1])


def test_trying_networks_out_leaves_them_as_they_are():
    encoder, decoder = Counts(4, 4), Counts(2, 4)
    encoder.norm.eval()
    before = {name: value.clone() for name, value in [*encoder.state_dict().items(), *decoder.state_dict().items()]}
    buffers, state = (encoder.runs, decoder.runs), torch.get_rng_state()
    make_vae((4,), 2, likelihood=Normal(), encoder_network=encoder, decoder_network=decoder)
    assert torch.equal(torch.get_rng_state(), state)
    assert (encoder.training, encoder.norm.training, decoder.training) == (True, False, True)
    assert (encoder.runs, decoder.runs) == (0, 0)
    assert (encoder.runs is buffers[0], decoder.runs is buffers[1]) == (True, True)
    for network in (encoder, decoder):
        for name in ("norm.running_mean", "norm.num_batches_tracked"):
            assert torch.equal(network.state_dict()[name], before[name])


@pytest.mark.parametrize(
    ("networks", "sentence"),
    [
        (
            {"decoder_network": torch.nn.Linear(2, 7)},
            r"^decoder_network must map \(N, 2\) to \(N, 1, 4, 5\), or to \(N, 20\); it maps \(2, 2\) to \(2, 7\)$",
        ),
        (
            {"encoder_network": torch.nn.Linear(9, 4)},
            r"^encoder_network must map \(N, 4, 5\) to \(N, 2, 2\), or to \(N, 4\); given \(2, 4, 5\) it fails "
            r"\(RuntimeError: .*\)$",
        ),
        # Levels last is not levels first, though they are as many numbers.
        (
            {"decoder_network": OneBatchDimension(2, (5, 4))},
            r"^decoder_network must map .* it maps \(2, 2\) to \(2, 5, 4\)$",
        ),
        (
            {"encoder_network": torch.nn.LSTM(5, 4, batch_first=True)},
            r"^encoder_network must map .* it maps \(2, 4, 5\) to a tuple$",
        ),
        (
            {"encoder_network": OneBatchDimension(20, (2, 2))(torch.zeros(1, 20))},
            "^encoder_network must be an nn.Module",
        ),
        (
            {"encoder_network": lambda i, o: (i, o)},
            "^encoder_network must be an nn.Module, or a function of two shapes",
        ),
    ],
)
def test_networks_that_do_not_map_the_shapes_are_told_which(networks, sentence):
    fitting = {"encoder_network": OneBatchDimension(20, (2, 2)), "decoder_network": torch.nn.Linear(2, 20)}
    with pytest.raises((ValueError, TypeError), match=sentence):
        make_vae((4, 5), 2, likelihood=Normal(), **{**fitting, **networks})


def test_a_vae_with_missing_entries_says_what_its_encoder_is_shown():
    with pytest.raises(ValueError, match=r"encoder_network must map \(N, 2, 4\) to"):
        make_vae(
            (4,), 2, likelihood=Normal(), missing="nan",
            encoder_network=torch.nn.Linear(4, 4), decoder_network=torch.nn.Linear(2, 4),
        )  # fmt: skip


def test_a_vae_put_together_by_hand_takes_such_networks_too():
    vae = VAE(
        StandardNormal(2),
        Decoder(OneBatchDimension(2, (1, 4, 5)), Bernoulli(), (4, 5)),
        Encoder(OneBatchDimension(20, (4,)), DiagonalNormal(), 2),
    )
    assert vae.decoder(torch.zeros(3, 6, 2)).batch_shape == (3, 6)
    assert vae.encoder(torch.zeros(3, 6, 4, 5)).batch_shape == (3, 6)
    assert vae.encoder(torch.zeros(4, 5)).batch_shape == ()


def test_encoder_and_decoder_give_gradients():
    vae = VAES["fixed scale"]()
    vae.decoder(vae.encoder(torch.randn(2, 4)).rsample()).log_prob(torch.randn(2, 4)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_posterior_and_prior_are_swapped_by_argument():
    class Wide(StandardNormal):
        def forward(self):
            return super().forward()

    vae = mlp_vae((4,), 2, likelihood=Normal(), posterior=DiagonalNormal(min_scale=0.5), prior=Wide(2))
    assert (vae.encode(torch.randn(3, 4)).stddev >= 0.5).all()
    assert isinstance(vae.encoder, Encoder)
    assert isinstance(vae.prior, Wide)
