"""The networks of two papers whose results are common baselines."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.base import Network
from pyro_vae.networks.convolutional import as_grid
from pyro_vae.networks.fully_connected import MLP, GatedMLP

__all__ = ["VampPriorConvDecoder", "VampPriorConvEncoder", "iwae_network", "vamp_prior_network"]


def iwae_network(
    in_shape: Sequence[int], out_shape: Sequence[int], hidden_dim: int = 200, mean: Tensor | None = None
) -> MLP:
    r"""Two tanh layers of equal width, with the initialisation of Burda et al., for binary data.

    The model with one stochastic layer has 784–200–200–50 in the encoder and 50–200–200–784 in the decoder. The one
    with two has 784–200–200–100 and 100–100–100–50 (``hidden_dim=100``), and the reverse in the decoder.

    Weights are uniform on :math:`\pm\sqrt{6 / (n_\text{in} + n_\text{out})}` (Glorot & Bengio, *Understanding the
    Difficulty of Training Deep Feedforward Neural Networks*, 2010), where each of the ``out_shape[0]`` outputs, such as
    means and scales, counts as a separate layer. Biases are zero; those of the last layer are logit(``mean``) if that
    is given, with means clamped to [0.001, 0.999].

    Source: Burda et al., *Importance Weighted Autoencoders*, 2016, and the authors' code.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: ``(K, *E)``: K numbers for each element.
        hidden_dim: Width of both layers.
        mean: Mean of the training rows, ``E``, in the model's units (bits): for the decoder of a Bernoulli likelihood.

    Raises:
        ValueError: if ``mean`` does not have one element for each output.

    Example:
        >>> encoder = iwae_network((28, 28), (2, 50))
        >>> decoder = iwae_network((50,), (1, 28, 28), mean=torch.full((28, 28), 0.13))
        >>> decoder(torch.zeros(3, 50)).shape
        torch.Size([3, 1, 28, 28])
    """
    network = MLP(in_shape, out_shape, (hidden_dim, hidden_dim), "Tanh")
    linear = [layer for layer in network.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in linear:
            num_outputs = layer.out_features // (network.out_shape[0] if layer is linear[-1] else 1)
            bound = math.sqrt(6 / (layer.in_features + num_outputs))
            layer.weight.uniform_(-bound, bound)
            layer.bias.zero_()
        if mean is not None:
            if mean.numel() != linear[-1].out_features:
                raise ValueError(
                    f"mean has shape {tuple(mean.shape)}, expected one number for each output of shape "
                    f"{network.out_shape}"
                )
            linear[-1].bias.copy_(mean.reshape(-1).clamp(0.001, 0.999).logit())
    return network


def vamp_prior_network(in_shape: Sequence[int], out_shape: Sequence[int]) -> GatedMLP:
    r"""Two gated layers of 300, initialised as by Tomczak & Welling: weights :math:`\mathcal{N}(0, 2/n_\text{in})`.

    The model with one stochastic layer has 784–300–300–40 in the encoder and 40–300–300–784 in the decoder.

    Source: Tomczak & Welling, *VAE with a VampPrior*, 2018, and the authors' code; the initialisation is that of He et
    al., *Delving Deep into Rectifiers*, 2015.

    Args:
        in_shape: Shape of one input, of any rank.
        out_shape: Shape of one output, of any rank.

    Example:
        >>> vamp_prior_network((28, 28), (2, 40))(torch.zeros(3, 28, 28)).shape
        torch.Size([3, 2, 40])
    """
    network = GatedMLP(in_shape, out_shape, (300, 300))
    _start_affine_maps(network)
    return network


class VampPriorConvEncoder(Network):
    r"""Five gated convolutions, then an affine map: q(z₂ | x) of the convolutional model of Tomczak & Welling.

    ==============  ========  ======  ======
    gated layer     channels  kernel  stride
    ==============  ========  ======  ======
    1               32        7       1
    2               32        3       2
    3               64        5       1
    4               64        3       2
    5               6         3       1
    ==============  ========  ======  ======

    Affine maps start with weights :math:`\mathcal{N}(0, 2/n_\text{in})`, convolutions with PyTorch's defaults.

    Source: Tomczak & Welling, *VAE with a VampPrior*, 2018; the table follows the authors' code.

    Args:
        in_shape: ``(H, W)`` or ``(C, H, W)``.
        out_shape: Shape of one output, of any rank.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> VampPriorConvEncoder((28, 28), (2, 40))(torch.zeros(3, 28, 28)).shape
        torch.Size([3, 2, 40])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(in_shape, out_shape)
        channels, size = as_grid(self.in_shape, 2, "inputs")
        self.image_shape = (channels, *size)
        quarter = math.prod((side + 3) // 4 for side in size)
        self.layers = nn.Sequential(
            *_gated(channels, 32, 7),
            *_gated(32, 32, 3, stride=2),
            *_gated(32, 64, 5),
            *_gated(64, 64, 3, stride=2),
            *_gated(64, 6, 3),
            nn.Flatten(),
            nn.Linear(6 * quarter, math.prod(self.out_shape)),
        )
        _start_affine_maps(self)

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.layers(x.reshape(x.shape[0], *self.image_shape))


class VampPriorConvDecoder(Network):
    r"""Gated affine maps to an image, then gated convolutions: p(x | z₁, z₂) of the same model.

    Each of the latents has its own gated layer of 300; one more maps them jointly to the size of the image. Four gated
    convolutions with 64 channels and kernels of 3 follow, at full size; the last has a kernel of 1.

    Source: Tomczak & Welling, *VAE with a VampPrior*, 2018; the layers follow the authors' code.

    Args:
        in_shape: ``(L,)`` for one latent, ``(2, L)`` for the two of the paper.
        out_shape: ``(K, H, W)`` or ``(K, C, H, W)``: K numbers for each element.

    Shape:
        ``(*B, *in_shape)`` to ``(*B, *out_shape)``.

    Example:
        >>> VampPriorConvDecoder((2, 40), (1, 28, 28))(torch.zeros(3, 2, 40)).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(self, in_shape: Sequence[int], out_shape: Sequence[int]) -> None:
        super().__init__(in_shape, out_shape)
        if len(self.in_shape) not in (1, 2):
            raise ValueError(f"VampPriorConvDecoder takes latents of shape (L,) or (2, L), found {self.in_shape}")
        out_channels, size = as_grid(self.out_shape, 2, "outputs")
        self.image_shape = (math.prod(self.out_shape[1:-2]), *size)
        num_latents = math.prod(self.in_shape[:-1])
        self.latents = nn.ModuleList(
            nn.Sequential(nn.Linear(self.in_shape[-1], 2 * 300), nn.GLU()) for _ in range(num_latents)
        )
        self.joined = nn.Sequential(nn.Linear(300 * num_latents, 2 * math.prod(self.image_shape)), nn.GLU())
        self.layers = nn.Sequential(
            *_gated(self.image_shape[0], 64, 3),
            *_gated(64, 64, 3),
            *_gated(64, 64, 3),
            *_gated(64, 64, 3),
            nn.Conv2d(64, out_channels, 1),
        )
        _start_affine_maps(self)

    def of_rows(self, x: Tensor) -> Tensor:  # noqa: D102
        latents = x.reshape(x.shape[0], len(self.latents), self.in_shape[-1]).unbind(1)
        features = torch.cat([layer(z) for layer, z in zip(self.latents, latents, strict=True)], -1)
        return self.layers(self.joined(features).reshape(x.shape[0], *self.image_shape))


def _gated(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, 2 * out_channels, kernel_size, stride, kernel_size // 2), nn.GLU(dim=1)]


@torch.no_grad()
def _start_affine_maps(network: nn.Module) -> None:
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.normal_(0.0, math.sqrt(2 / layer.in_features))
