"""Networks: exact sizes, values against a second implementation, batches of any rank."""

import math

import pytest
import torch
from torch.nn import functional as F

from pyro_vae import load, make_vae, networks
from pyro_vae.likelihoods import Normal
from pyro_vae.networks import MLP, ConvDecoder, ConvEncoder, GatedMLP, ResidualMLP

IMAGES = [(28, 28), (8, 8), (28, 20), (3, 32, 32), (1, 28, 28), (5, 7), (1, 1), (3, 17, 9)]
WIDTHS = [(2, 3), (2, 3, 4)]
KERNELS = [3, 5]

# Each takes the shape of an image, the layers' widths, the kernel's side and the activation.
NETWORKS = {
    "mlp": lambda image, widths, _, act="Tanh": MLP(image, (2, 3), widths, act),
    "encoder": lambda image, widths, kernel, act="Tanh": ConvEncoder(image, (2, 3), widths, kernel, act),
    "transposed": lambda image, widths, kernel, act="Tanh": ConvDecoder(
        (2, 2), image, widths, "transposed", kernel, act
    ),
    "nearest": lambda image, widths, kernel, act="Tanh": ConvDecoder((2, 2), image, widths, "nearest", kernel, act),
}
ACTIVATIONS = {
    "ReLU": F.relu,
    "LeakyReLU": F.leaky_relu,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "SiLU": F.silu,
    "GELU": F.gelu,
}

images = pytest.mark.parametrize("image", IMAGES, ids=str)
widths = pytest.mark.parametrize("widths", WIDTHS, ids=["two layers", "three layers"])
kernels = pytest.mark.parametrize("kernel", KERNELS)
kinds = pytest.mark.parametrize("kind", NETWORKS)


def in_out_shapes(kind, image):
    return {"mlp": (image, (2, 3)), "encoder": (image, (2, 3))}.get(kind, ((2, 2), image))


def halved(size, times):
    """The size of one side after so many halvings, rounded up."""
    return math.ceil(size / 2**times)


def repeat_nearest(x, size):
    """Each output pixel copies the input pixel that it lies in."""
    rows = torch.arange(size[0]) * x.shape[-2] // size[0]
    columns = torch.arange(size[1]) * x.shape[-1] // size[1]
    return x[..., rows, :][..., columns]


def expected_output(kind, network, x, image, widths, kernel, act):
    """The same map written out layer by layer, from the network's own parameters in their order."""
    parameters = list(network.parameters())
    layers = list(zip(parameters[::2], parameters[1::2], strict=True))
    height, width, padding = image[-2], image[-1], kernel // 2
    if kind in ("mlp", "encoder"):
        h = x.flatten(1) if kind == "mlp" else x.reshape(len(x), -1, height, width)
        for w, b in layers[:-1]:
            h = act(h @ w.T + b) if kind == "mlp" else act(F.conv2d(h, w, b, stride=2, padding=padding))
        return (h.flatten(1) @ layers[-1][0].T + layers[-1][1]).reshape(len(x), 2, 3)
    depth = len(widths)
    h = x.flatten(1) @ layers[0][0].T + layers[0][1]
    h = h.reshape(len(x), widths[-1], halved(height, depth), halved(width, depth))
    for times, (w, b) in zip(range(depth - 1, -1, -1), layers[1:], strict=True):
        size = (halved(height, times), halved(width, times))
        if kind == "nearest":
            h = F.conv2d(repeat_nearest(act(h), size), w, b, padding=padding)
        else:
            missing = (size[0] - (2 * h.shape[-2] - 1), size[1] - (2 * h.shape[-1] - 1))
            h = F.conv_transpose2d(act(h), w, b, 2, padding, output_padding=missing)
    return h.reshape(len(x), *image)


@kinds
@images
@widths
@kernels
@pytest.mark.usefixtures("float64")
def test_output_equals_the_layers_written_out(kind, image, widths, kernel):
    network = NETWORKS[kind](image, widths, kernel)
    in_shape, out_shape = in_out_shapes(kind, image)
    x = torch.randn(2, *in_shape)
    expected = expected_output(kind, network, x, image, widths, kernel, torch.tanh)
    assert expected.shape == (2, *out_shape)
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@images
@widths
@kernels
def test_each_convolution_halves_height_and_width_rounding_up(image, widths, kernel):
    features = widths[-1] * halved(image[-2], len(widths)) * halved(image[-1], len(widths))
    encoder, decoder = NETWORKS["encoder"](image, widths, kernel), NETWORKS["nearest"](image, widths, kernel)
    assert list(encoder.parameters())[-2].shape == (6, features)
    assert next(decoder.parameters()).shape == (features, 4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("mlp", [(2, 64), (3, 2), (4, 3), (6, 4)]),
        ("encoder", [(2, 1, 5, 5), (3, 2, 5, 5), (4, 3, 5, 5), (6, 4)]),
        ("transposed", [(4, 4), (4, 3, 5, 5), (3, 2, 5, 5), (2, 1, 5, 5)]),
        ("nearest", [(4, 4), (3, 4, 5, 5), (2, 3, 5, 5), (1, 2, 5, 5)]),
    ],
)
def test_layers_have_the_widths_asked_for_and_decoders_in_reverse(kind, expected):
    network = NETWORKS[kind]((8, 8), (2, 3, 4), 5)
    assert [tuple(weight.shape) for weight in list(network.parameters())[::2]] == expected


@kinds
@images
@pytest.mark.parametrize("batch_shape", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.usefixtures("float64")
def test_a_batch_gives_what_its_rows_give_one_by_one(kind, image, batch_shape):
    network = NETWORKS[kind](image, (2, 3), 3)
    in_shape, out_shape = in_out_shapes(kind, image)
    x = torch.randn(*batch_shape, *in_shape)
    y = network(x)
    assert y.shape == (*batch_shape, *out_shape)
    for row, expected in zip(x.reshape(-1, *in_shape), y.reshape(-1, *out_shape), strict=True):
        torch.testing.assert_close(network(row[None])[0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("float64")
def test_mlp_without_hidden_layers_is_an_affine_map():
    network = MLP((2, 2), (3,), hidden_dims=())
    weight, bias = network.parameters()
    x = torch.randn(5, 2, 2)
    expected = torch.einsum("nij,kij->nk", x, weight.reshape(3, 2, 2)) + bias
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


def test_encoder_gives_the_numbers_worked_out_on_paper():
    network = ConvEncoder((3, 3), (1,), channels=(1,))
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, 1.0 if parameter.dim() > 1 else 0.0)
    # Each of the 2×2 windows covers four of the nine ones.
    assert network(torch.ones(3, 3)).tolist() == [16.0]


@pytest.mark.parametrize(
    ("upsample", "expected"),
    [("transposed", [[4.0, 5.0], [7.0, 8.0]]), ("nearest", [[24.0, 20.0], [12.0, 8.0]])],
)
def test_decoder_gives_the_numbers_worked_out_on_paper(upsample, expected):
    network = ConvDecoder((1,), (2, 2), channels=(1,), upsample=upsample)
    stem, stem_bias, kernel, kernel_bias = network.parameters()
    with torch.no_grad():
        for parameter, value in ((stem, 1.0), (stem_bias, 0.0), (kernel_bias, 0.0)):
            parameter.fill_(value)
        kernel.copy_(torch.arange(9.0).reshape(1, 1, 3, 3))
    assert network(torch.ones(1)).tolist() == expected


def test_every_activation_of_the_library_is_tested():
    assert set(ACTIVATIONS) == set(networks.ACTIVATIONS)


@kinds
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.usefixtures("float64")
def test_the_named_activation_is_the_one_used(kind, activation):
    network = NETWORKS[kind]((5, 7), (2, 3), 3, activation)
    x = torch.randn(4, *in_out_shapes(kind, (5, 7))[0])
    expected = expected_output(kind, network, x, (5, 7), (2, 3), 3, ACTIVATIONS[activation])
    torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@kinds
def test_an_unknown_activation_names_the_nearest(kind):
    with pytest.raises(ValueError, match="unknown activation 'Relu': did you mean 'ReLU'"):
        NETWORKS[kind]((8, 8), (2, 3), 3, "Relu")


@kinds
def test_an_unknown_activation_is_refused_even_where_no_layer_uses_it(kind):
    with pytest.raises(ValueError, match="unknown activation 'Relu': did you mean 'ReLU'"):
        NETWORKS[kind]((8, 8), (), 3, "Relu")


def test_an_unknown_upsampling_names_the_nearest():
    with pytest.raises(ValueError, match="unknown upsampling 'nearset': did you mean 'nearest'"):
        ConvDecoder((4,), (8, 8), upsample="nearset")  # pyright: ignore[reportArgumentType]


@kinds
@pytest.mark.parametrize("wrong", [(20, 28), (560,), (3, 28), ()], ids=str)
def test_a_wrong_input_shape_is_refused_and_both_shapes_named(kind, wrong):
    network = NETWORKS[kind]((28, 20), (2, 3), 3)
    expected = ", ".join(map(str, in_out_shapes(kind, (28, 20))[0]))
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        network(torch.zeros(wrong))
    assert f"(*batch, {expected})" in str(caught.value)
    assert f"found {wrong}" in str(caught.value)


@pytest.mark.parametrize("kind", ["encoder", "transposed", "nearest"])
@pytest.mark.parametrize("kernel", [0, 2, 4])
def test_an_even_kernel_is_refused(kind, kernel):
    with pytest.raises(ValueError, match=f"kernel_size must be odd.*found {kernel}"):
        NETWORKS[kind]((8, 8), (2, 3), kernel)


@pytest.mark.parametrize("kind", ["encoder", "transposed", "nearest"])
def test_a_shape_that_is_no_image_is_refused(kind):
    with pytest.raises(ValueError, match=r"\(H, W\) or \(C, H, W\), found \(64,\)"):
        NETWORKS[kind]((64,), (2, 3), 3)


@kinds
@images
def test_every_parameter_gets_a_gradient(kind, image):
    network = NETWORKS[kind](image, (2, 3), 3)
    network(torch.randn(4, *in_out_shapes(kind, image)[0])).square().sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("batch_shape", [(), (5,), (2, 3)], ids=str)
@pytest.mark.usefixtures("float64")
def test_gated_and_residual_layers_are_their_formulas(batch_shape):
    x = torch.randn(*batch_shape, 2, 3)
    flat = x.flatten(-2)
    gated = GatedMLP((2, 3), (4, 5), hidden_dims=(7,))
    (w, b), (last, bias) = [(layer.weight, layer.bias) for layer in gated.layers if isinstance(layer, torch.nn.Linear)]
    h = (flat @ w[:7].T + b[:7]) * (flat @ w[7:].T + b[7:]).sigmoid()
    torch.testing.assert_close(gated(x), (h @ last.T + bias).reshape(*batch_shape, 4, 5))
    residual = ResidualMLP((2, 3), (4, 5), hidden_dim=7, num_blocks=2, activation="Tanh")
    w = dict(residual.named_parameters())

    def norm(h, name):
        centred = h - h.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]
        )

    h = flat @ w["first.weight"].T + w["first.bias"]
    for block in ("blocks.0", "blocks.1"):
        inner = (norm(h, f"{block}.0") @ w[f"{block}.1.weight"].T + w[f"{block}.1.bias"]).tanh()
        h = h + inner @ w[f"{block}.3.weight"].T + w[f"{block}.3.bias"]
    expected = norm(h, "last.0") @ w["last.1.weight"].T + w["last.1.bias"]
    torch.testing.assert_close(residual(x), expected.reshape(*batch_shape, 4, 5))


@pytest.mark.parametrize("network", [GatedMLP, ResidualMLP])
def test_they_make_a_vae_that_is_saved_and_opened(network, tmp_path):
    vae = make_vae((3, 2), 2, likelihood=Normal(), encoder_network=network, decoder_network=network)
    x = torch.randn(9, 3, 2)
    vae.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    torch.testing.assert_close(again.reconstruct(x), vae.reconstruct(x))
