"""Networks of every kind: gated, residual, normalised, of signals and sequences, those of two papers; in a VAE, too."""

import math
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from pyro_vae import conv_vae, evaluate, fit, load, make_vae, mlp_vae, networks, recurrent_vae
from pyro_vae.cli import choices
from pyro_vae.likelihoods import Bernoulli, Normal
from pyro_vae.networks import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    GatedConvDecoder,
    GatedConvEncoder,
    GatedMLP,
    GatedTransition,
    RecurrentDecoder,
    RecurrentEncoder,
    ResidualConvDecoder,
    ResidualConvEncoder,
    ResidualMLP,
    TopicDecoder,
    VampPriorConvDecoder,
    VampPriorConvEncoder,
    iwae_network,
    vamp_prior_network,
)

IMAGE, SIGNAL, SEQUENCE, OUT = (2, 7, 6), (2, 9), (2, 5, 3), (2, 3)
KINDS = {
    "MLP, layer": lambda: MLP(IMAGE, OUT, (8, 6), "Tanh", "layer"),
    "MLP, group": lambda: MLP(IMAGE, OUT, (16, 6), "Tanh", "group"),
    "GatedMLP, group": lambda: GatedMLP(IMAGE, OUT, (16, 6), "group"),
    "ResidualMLP, none": lambda: ResidualMLP(IMAGE, OUT, 8, 2, "SiLU", "none"),
    "ResidualMLP, group": lambda: ResidualMLP(IMAGE, OUT, 16, 2, "SiLU", "group"),
    "ConvEncoder, group": lambda: ConvEncoder(IMAGE, OUT, (16, 4), 3, "Tanh", "group"),
    "ConvDecoder, layer": lambda: ConvDecoder(OUT, IMAGE, (16, 4), "nearest", 3, "Tanh", "layer"),
    "GatedConvEncoder": lambda: GatedConvEncoder(IMAGE, OUT, (4, 3)),
    "GatedConvDecoder": lambda: GatedConvDecoder(OUT, IMAGE, (4, 3)),
    "GatedConvDecoder, group": lambda: GatedConvDecoder(OUT, IMAGE, (16, 3), "nearest", 5, "group"),
    "ResidualConvEncoder": lambda: ResidualConvEncoder(IMAGE, OUT, (4, 16), 2, 3, "SiLU"),
    "ResidualConvDecoder": lambda: ResidualConvDecoder(OUT, IMAGE, (4, 16), 2, "transposed", 3, "SiLU"),
    "ConvEncoder, signal": lambda: ConvEncoder(SIGNAL, OUT, (4, 3), 5, "Tanh", num_dims=1),
    "ConvDecoder, signal, transposed": lambda: ConvDecoder(OUT, SIGNAL, (4, 3), "transposed", 5, "Tanh", num_dims=1),
    "ConvDecoder, signal, nearest": lambda: ConvDecoder(OUT, SIGNAL, (4, 3), "nearest", 5, "Tanh", num_dims=1),
    "ResidualConvEncoder, signal": lambda: ResidualConvEncoder((9,), OUT, (4, 3), activation="SiLU", num_dims=1),
    "GatedConvDecoder, signal": lambda: GatedConvDecoder(OUT, (2, 1, 9), (4, 3), num_dims=1),
    "RecurrentEncoder": lambda: RecurrentEncoder(SEQUENCE, OUT, (6, 4)),
    "RecurrentDecoder": lambda: RecurrentDecoder(OUT, SEQUENCE, (6, 4)),
    "GatedTransition": lambda: GatedTransition((5,), (2, 5), 6),
    "TopicDecoder": lambda: TopicDecoder((5,), OUT),
    "iwae_network": lambda: iwae_network((7, 6), OUT, 5),
    "vamp_prior_network": lambda: vamp_prior_network((7, 6), OUT),
    "VampPriorConvEncoder": lambda: VampPriorConvEncoder((7, 6), OUT),
    "VampPriorConvDecoder, one latent": lambda: VampPriorConvDecoder((3,), (2, 1, 7, 6)),
    "VampPriorConvDecoder, two": lambda: VampPriorConvDecoder((2, 3), (1, 7, 6)),
}

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.usefixtures("float64")
def test_a_batch_of_any_shape_gives_what_its_rows_give_one_by_one(kind):
    network = KINDS[kind]()
    for batch_shape in [(), (3,), (2, 3), (0,), (2, 0)]:
        x = torch.randn(*batch_shape, *network.in_shape)
        y = network(x)
        assert y.shape == (*batch_shape, *network.out_shape)
        flat = y.reshape(-1, *network.out_shape) if y.numel() else y.flatten(0, len(batch_shape) - 1)
        for row, expected in zip(x.reshape(len(flat), *network.in_shape), flat, strict=True):
            torch.testing.assert_close(network(row), expected, rtol=1e-10, atol=1e-12)


@kinds
def test_a_gradient_reaches_every_parameter(kind):
    network = KINDS[kind]()
    network(torch.randn(4, *network.in_shape)).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


def test_every_network_of_the_library_is_tested():
    of_the_library = {
        name
        for name in networks.__all__
        if callable(getattr(networks, name)) and name not in ("Normalization", "Upsample")
    }
    assert {kind.partition(",")[0] for kind in KINDS} == of_the_library


# Values, against a second implementation


def normalised(h, groups, scale, shift):
    """Mean zero and variance one over each group's channels and positions, by NumPy."""
    grouped = h.detach().numpy().reshape(len(h), groups, -1)
    grouped = (grouped - grouped.mean(-1, keepdims=True)) / (grouped.var(-1, keepdims=True) + 1e-5) ** 0.5
    view = (1, -1, *[1] * (h.dim() - 2))
    return torch.as_tensor(grouped.reshape(h.shape)) * scale.reshape(view) + shift.reshape(view)


def start_at_random(network):
    """Norms start as the identity, which would hide a scale that is used wrongly."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("normalization", "channels", "groups"),
    [("layer", 16, 1), ("group", 16, 2), ("group", 24, 3), ("group", 20, 2), ("group", 7, 1), ("group", 26, 2)],
)
def test_layers_and_groups_of_at_least_eight_channels_are_normalised_within_a_row(normalization, channels, groups):
    x = torch.randn(3, 1, 4, 4)
    network = start_at_random(ConvEncoder((1, 4, 4), (2,), (channels,), 3, "Tanh", normalization))
    w, b, scale, shift, last, bias = network.parameters()
    h = normalised(F.conv2d(x, w, b, stride=2, padding=1), groups, scale, shift).tanh()
    torch.testing.assert_close(network(x), h.flatten(1) @ last.T + bias, rtol=1e-9, atol=1e-9)
    network = start_at_random(MLP((5,), (2,), (channels,), "Tanh", normalization))
    w, b, scale, shift, last, bias = network.parameters()
    x = torch.randn(3, 5)
    h = normalised(x @ w.T + b, groups, scale, shift).tanh()
    torch.testing.assert_close(network(x), h @ last.T + bias, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_gated_convolutions_are_their_formula():
    x = torch.randn(3, 1, 5, 6)
    encoder = GatedConvEncoder((1, 5, 6), (2,), (4,))
    w, b, last, bias = encoder.parameters()
    h = F.conv2d(x, w[:4], b[:4], 2, 1) * F.conv2d(x, w[4:], b[4:], 2, 1).sigmoid()
    torch.testing.assert_close(encoder(x), h.flatten(1) @ last.T + bias)
    decoder, z = GatedConvDecoder((2,), (1, 5, 6), (4,)), torch.randn(3, 2)
    stem, stem_bias, w, b = decoder.parameters()
    h = (z @ stem.T + stem_bias).reshape(3, 8, 3, 3)
    h = F.conv_transpose2d(h[:, :4] * h[:, 4:].sigmoid(), w, b, 2, 1, output_padding=(0, 1))
    torch.testing.assert_close(decoder(z), h)


@pytest.mark.usefixtures("float64")
def test_residual_convolutions_are_their_formula():
    x = torch.randn(3, 1, 5, 6)
    encoder = start_at_random(ResidualConvEncoder((1, 5, 6), (2,), (16,), 2, activation="Tanh"))
    w, b, *blocks, scale, shift, last, bias = encoder.parameters()
    h = F.conv2d(x, w, b, 2, 1)

    def block(h, scale, shift, w, b, scale_2, shift_2, w_2, b_2):
        inner = F.conv2d(normalised(h, 2, scale, shift).tanh(), w, b, padding=1)
        return h + F.conv2d(normalised(inner, 2, scale_2, shift_2).tanh(), w_2, b_2, padding=1)

    h = block(block(h, *blocks[:8]), *blocks[8:])
    h = normalised(h, 2, scale, shift).tanh().flatten(1)
    torch.testing.assert_close(encoder(x), h @ last.T + bias, rtol=1e-8, atol=1e-8)
    decoder, z = start_at_random(ResidualConvDecoder((2,), (5, 6), (16,), activation="Tanh")), torch.randn(3, 2)
    stem, stem_bias, *inner, scale, shift, w, b = decoder.parameters()
    h = block((z @ stem.T + stem_bias).reshape(3, 16, 3, 3), *inner)
    h = F.conv_transpose2d(normalised(h, 2, scale, shift).tanh(), w, b, 2, 1, output_padding=(0, 1))
    torch.testing.assert_close(decoder(z), h[:, 0], rtol=1e-8, atol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("upsample", ["transposed", "nearest"])
@pytest.mark.parametrize("length", [1, 9, 16])
def test_convolutions_of_signals_are_those_of_images_of_one_row(upsample, length):
    """The kernels of images in the place of those of signals, in their middle row: the others meet padding alone."""
    for of_signals, of_images in (
        (ConvEncoder((2, length), OUT, (4, 3), 5, num_dims=1), ConvEncoder((2, 1, length), OUT, (4, 3), 5)),
        (
            ConvDecoder(OUT, (2, length), (4, 3), upsample, 5, num_dims=1),
            ConvDecoder(OUT, (2, 1, length), (4, 3), upsample, 5),
        ),
    ):
        with torch.no_grad():
            for signal, image in zip(of_signals.parameters(), of_images.parameters(), strict=True):
                if image.dim() == 4:
                    image.zero_()[:, :, 2] = signal
                else:
                    image.copy_(signal)
        x = torch.randn(3, *of_signals.in_shape)
        found, expected = of_signals(x), of_images(x.reshape(3, *of_images.in_shape))
        torch.testing.assert_close(found, expected.reshape(found.shape))


def gru(inputs, parameters):
    """The states of gated recurrent units, step by step (Cho et al., 2014, with PyTorch's order of gates)."""
    w_in, w, b_in, b = (p.detach() for p in parameters)
    h, states = torch.zeros(len(inputs), w.shape[1]), []
    for x in inputs.unbind(1):
        (r, u, n), (hr, hu, hn) = (x @ w_in.T + b_in).chunk(3, -1), (h @ w.T + b).chunk(3, -1)
        update = (u + hu).sigmoid()
        h = (1 - update) * (n + (r + hr).sigmoid() * hn).tanh() + update * h
        states.append(h)
    return torch.stack(states, 1)


@pytest.mark.usefixtures("float64")
def test_recurrent_networks_are_their_formulas_step_by_step():
    x = torch.randn(4, 2, 5, 3)  # two numbers for each of 5 steps and 3 features
    encoder = RecurrentEncoder((2, 5, 3), OUT, (6, 4))
    *layers, last, bias = encoder.parameters()
    steps = torch.cat([x[:, 0], x[:, 1]], -1)
    state = gru(gru(steps, layers[:4]), layers[4:])[:, -1]
    torch.testing.assert_close(encoder(x), (state @ last.T + bias).reshape(4, 2, 3))
    decoder, z = RecurrentDecoder((3,), (2, 5, 3), (6, 4)), torch.randn(4, 3)
    *layers, last, bias = decoder.parameters()
    assert [len(p) // 3 for p in layers[::4]] == [4, 6]  # the encoder's, in reverse
    states = gru(gru(z[:, None].repeat(1, 5, 1), layers[:4]), layers[4:])
    raw = states @ last.T + bias
    torch.testing.assert_close(decoder(z), torch.stack([raw[..., :3], raw[..., 3:]], 1))


# Those of papers. Numbers of weights are those of the layers in the papers and their authors' code, added up by hand.


def num_weights(network):
    return sum(parameter.numel() for parameter in network.parameters())


PAPERS = {
    # 784·200 + 200, 200·200 + 200, and two heads of 200·50 + 50
    "IWAE encoder": (lambda: iwae_network((28, 28), (2, 50)), 157_000 + 40_200 + 2 * 10_050),
    # 50·200 + 200, 200·200 + 200, 200·784 + 784
    "IWAE decoder": (lambda: iwae_network((50,), (1, 28, 28)), 10_200 + 40_200 + 157_584),
    # Two stochastic layers: 784–200–200–100, 100–100–100–50, 50–100–100–100, 100–200–200–784
    "IWAE q(z1|x)": (lambda: iwae_network((784,), (2, 100)), 157_000 + 40_200 + 2 * 20_100),
    "IWAE q(z2|z1)": (lambda: iwae_network((100,), (2, 50), 100), 2 * 10_100 + 2 * 5_050),
    "IWAE p(z1|z2)": (lambda: iwae_network((50,), (2, 100), 100), 5_100 + 10_100 + 2 * 10_100),
    "IWAE p(x|z1)": (lambda: iwae_network((100,), (1, 784)), 20_200 + 40_200 + 157_584),
    # Values and gates, 784·300 + 300 each, 300·300 + 300 each; two heads of 300·40 + 40
    "VampPrior encoder": (lambda: vamp_prior_network((28, 28), (2, 40)), 2 * 235_500 + 2 * 90_300 + 2 * 12_040),
    # 40·300 + 300 and 300·300 + 300, twice each; 300·784 + 784
    "VampPrior decoder": (lambda: vamp_prior_network((40,), (1, 28, 28)), 2 * 12_300 + 2 * 90_300 + 235_984),
    # Twice 7²·32 + 32, 3²·32² + 32, 5²·32·64 + 64, 3²·64² + 64, 3²·64·6 + 6; two heads of 6·7·7·40 + 40
    "VampPrior conv encoder": (
        lambda: VampPriorConvEncoder((28, 28), (2, 40)),
        2 * (1_600 + 9_248 + 51_264 + 36_928 + 3_462) + 2 * 11_800,
    ),
    # Twice 40·300 + 300 for each latent, twice 600·784 + 784; twice 3²·64 + 64 and 3 (3²·64² + 64); 64 + 1
    "VampPrior conv decoder": (
        lambda: VampPriorConvDecoder((2, 40), (1, 28, 28)),
        2 * 2 * 12_300 + 2 * 471_184 + 2 * (640 + 3 * 36_928) + 65,
    ),
}


@pytest.mark.parametrize("paper", PAPERS)
def test_networks_of_papers_have_their_numbers_of_weights(paper):
    build, expected = PAPERS[paper]
    assert num_weights(build()) == expected


@pytest.mark.parametrize(("size", "features"), [((28, 28), 294), ((28, 20), 210), ((3, 32, 32), 384)])
def test_the_convolutional_encoder_ends_in_the_features_of_the_authors_code(size, features):
    assert VampPriorConvEncoder(size, (2, 40)).layers[-1].in_features == features


def test_iwae_networks_start_as_in_the_paper():
    mean = torch.rand(28, 28)
    mean[0, 0], mean[0, 1] = 0.0, 1.0
    for network, outputs in (
        (iwae_network((28, 28), (2, 50)), (200, 200, 50)),
        (iwae_network((50,), (1, 28, 28), mean=mean), (200, 200, 784)),
    ):
        linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
        for layer, num_outputs in zip(linear, outputs, strict=True):
            bound = math.sqrt(6 / (layer.in_features + num_outputs))
            assert bound * 0.999 < float(layer.weight.detach().abs().max()) <= bound
            variance = float(layer.weight.detach().square().mean())
            assert variance == pytest.approx(bound**2 / 3, rel=0.05)  # uniform: 9,000 weights or more
        assert all(not layer.bias.any() for layer in linear[:-1])
    kept = mean.double().clamp(0.001, 0.999).flatten()
    torch.testing.assert_close(linear[-1].bias.double(), (kept / (1 - kept)).log(), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"mean has shape \(783,\), expected one number for each output"):
        iwae_network((50,), (1, 28, 28), mean=torch.zeros(783))


def test_vamp_prior_networks_start_as_in_the_authors_code():
    for network in (vamp_prior_network((28, 28), (2, 40)), VampPriorConvDecoder((2, 40), (1, 28, 28))):
        for layer in network.modules():
            if isinstance(layer, nn.Linear):
                assert float(layer.weight.detach().mean()) == pytest.approx(0.0, abs=1e-2)
                assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 / layer.in_features), rel=0.03)


def test_the_decoder_of_two_latents_shows_each_its_own_layer():
    decoder, z = VampPriorConvDecoder((2, 3), (1, 4, 4)), torch.randn(5, 2, 3)
    first = [decoder.latents[0](z[:, 0]), decoder.latents[1](z[:, 1])]
    image = decoder.joined(torch.cat(first, -1)).reshape(5, 1, 4, 4)
    torch.testing.assert_close(decoder(z), decoder.layers(image))


# In a VAE


def digits():
    found: Any = load_digits()
    x = torch.tensor(found.images, dtype=torch.float32)
    return (x > 8).float()


WORDS = {
    "mlp": {"hidden_dims": (32,), "normalization": "layer"},
    "gated": {"hidden_dims": (32,)},
    "residual": {"hidden_dims": (32, 32)},
    "conv": {"channels": (8,), "normalization": "group"},
    "gated-conv": {"channels": (8, 8)},
    "residual-conv": {"channels": (8, 16)},
    "conv1d": {"channels": (16,)},
    "recurrent": {"hidden_dims": (32,)},
}


@pytest.mark.parametrize("word", choices.NETWORKS)
def test_each_word_of_the_command_line_trains_is_saved_and_opened(word, tmp_path):
    x = digits()
    networks, options = choices.NETWORKS[word]
    assert set(WORDS[word]) <= set(options)
    encoder, decoder = networks(**WORDS[word])
    vae = make_vae((8, 8), 4, likelihood=Bernoulli(), encoder_network=encoder, decoder_network=decoder)
    before = evaluate(vae, x[:300])["elbo"]
    fit(vae, x[:1000], epochs=1, batch_size=100, learning_rate=1e-2, progress=False, compile=False)  # ten steps
    assert evaluate(vae, x[:300])["elbo"] > before + 1.0
    vae.save(tmp_path / "saved")
    torch.testing.assert_close(load(tmp_path / "saved").encode(x[:9]).mean, vae.encode(x[:9]).mean)
    assert type(load(tmp_path / "saved").decoder.network) is type(vae.decoder.network)


@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [
        (iwae_network, lambda i, o: iwae_network(i, o, mean=digits().mean(0))),
        (vamp_prior_network, vamp_prior_network),
        (VampPriorConvEncoder, VampPriorConvDecoder),
    ],
    ids=["IWAE", "VampPrior", "VampPrior, convolutional"],
)
def test_networks_of_papers_are_saved_and_opened(encoder, decoder, tmp_path):
    vae = make_vae((8, 8), 3, likelihood=Bernoulli(), encoder_network=encoder, decoder_network=decoder)
    vae.save(tmp_path / "saved")
    x = digits()[:5]
    torch.testing.assert_close(load(tmp_path / "saved").encode(x).mean, vae.encode(x).mean)
    torch.testing.assert_close(load(tmp_path / "saved").mean_at(torch.ones(2, 3)), vae.mean_at(torch.ones(2, 3)))


def test_missing_entries_of_sequences_and_signals_are_shown_to_the_encoder():
    x = torch.randn(20, 6, 2)
    x[0, 1, 1] = x[3, 5, 0] = float("nan")
    for vae in (
        recurrent_vae((6, 2), 2, likelihood=Normal(), hidden_dims=(4,), missing="nan"),
        conv_vae((6, 2), 2, likelihood=Normal(), channels=(4,), num_dims=1, missing="nan"),
    ):
        assert vae.encoder.network.in_shape == (2, 6, 2)
        fit(vae, x, epochs=1, progress=False, compile=False)
        assert vae.encode(x).mean.shape == (20, 2)


MISTAKES = {
    "an unknown norm": (
        lambda: MLP((4,), (2,), (8,), "Tanh", "batch"),  # pyright: ignore[reportArgumentType]
        "unknown normalization 'batch'",
    ),
    "a norm of one number": (lambda: MLP((4,), (2,), (1,), "Tanh", "layer"), "of a single number always gives zero"),
    "no grid": (lambda: ConvEncoder((), (2,), num_dims=1), r"\(T,\) or \(C, T\), found \(\)"),
    "three dimensions": (
        lambda: GatedConvDecoder((2,), (4, 4, 4), num_dims=3),
        "1 for signals or 2 for images, found 3",
    ),
    "an even kernel": (lambda: ResidualConvEncoder((8, 8), (2,), kernel_size=4), "kernel_size must be odd"),
    "no sequence": (lambda: RecurrentEncoder((4,), (2,)), r"inputs of shape \(T, C\).*found \(4,\)"),
    "no steps": (lambda: RecurrentDecoder((4,), (0, 2)), "at least one step"),
    "no recurrent layer": (lambda: RecurrentDecoder((4,), (3, 2), ()), "hidden_dims is empty"),
    "latents of three dimensions": (lambda: VampPriorConvDecoder((2, 2, 2), (1, 8, 8)), r"found \(2, 2, 2\)"),
    "an unknown block": (
        lambda: mlp_vae((4,), 2, likelihood=Normal(), block="gatde"),  # pyright: ignore[reportArgumentType]
        "did you mean 'gated'",
    ),
    "blocks of two widths": (
        lambda: mlp_vae((4,), 2, likelihood=Normal(), block="residual", hidden_dims=(4, 5)),
        r"have the same width, found hidden_dims=\(4, 5\)",
    ),
    "an activation of gates": (
        lambda: conv_vae((4, 4), 2, likelihood=Normal(), block="gated", activation="Tanh"),
        "take no activation, found activation='Tanh'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake):
    build, sentence = MISTAKES[mistake]
    with pytest.raises(ValueError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)
