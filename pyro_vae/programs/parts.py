"""The two parts of a VAE that are networks: the decoder, x given z, and the encoder, z given x."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae._support.names import check_taken
from pyro_vae.encodings import Encoding, Plain
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Posterior

__all__ = [
    "Classifier",
    "Decoder",
    "Encoder",
    "batch_of",
    "check_mask_shape",
    "must_map",
    "raw_output",
    "read_raw",
]


class Decoder(nn.Module):
    r"""A network and a likelihood: :math:`z \mapsto p(x \mid z)`.

    Args:
        network: Maps ``(N, L)`` to ``(N, *likelihood.raw_shape(event_shape))``, or to the same numbers in fewer
            dimensions, such as ``(N, R)``. It sees one batch dimension, however many z has.
        likelihood: Turns that into a distribution. The decoder makes its own copy.
        event_shape: Shape of one row of data.

    Shape:
        z: ``(*B, L)``. Returns a distribution with batch ``(*B,)`` and event ``event_shape``, in the model's units.
        x and mask: ``(*B, *event_shape)``. The distribution does not depend on x, except through a likelihood that
        observes training data; entries where ``mask`` is false are ignored in its log-probability.
        offset: ``(*B, *likelihood.raw_shape(event_shape))``, added to the network's output, if passed.
        Other keyword arguments are the likelihood's: ``arguments`` names them.

    Raises:
        ValueError: if the network's output can't be read, or the mask has another shape than x.
        TypeError: if the likelihood does not take one of the arguments.
    """

    def __init__(self, network: nn.Module, likelihood: Likelihood, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        self.network = network
        self.likelihood = likelihood.for_event(self.event_shape)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the likelihood takes."""
        return self.likelihood.arguments

    def forward(  # noqa: D102
        self,
        z: Tensor,
        x: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        offset: Tensor | None = None,
        **arguments: Any,
    ) -> TorchDistribution:
        check_taken(arguments, self.arguments, "the decoder")
        if mask is not None:
            shape = mask.shape[: mask.dim() - len(self.event_shape)] + self.event_shape if x is None else x.shape
            check_mask_shape(mask, shape)
        raw = raw_output(self.network, z, 1, self.likelihood.raw_shape(self.event_shape), "the decoder's network")
        raw = raw if offset is None else raw + offset
        if x is not None and self.training:
            self.likelihood.observe(raw, x, mask, **arguments)
        return self.likelihood(raw, mask=mask, **arguments)


class Encoder(nn.Module):
    r"""A network and a posterior family: :math:`x \mapsto q(z \mid x)`.

    Args:
        network: Maps ``(N, *encoding.shape(event_shape))`` to ``(N, *posterior.raw_shape((latent_dim,)))``, or, if
            ``event_shape`` is known, to the same numbers in fewer dimensions, such as ``(N, R)``.
        posterior: Turns that into a distribution. The encoder makes its own copy.
        latent_dim: Number of latents :math:`L`.
        encoding: How a row is presented to the network; by default unchanged.
        event_shape: Shape of one row of data. If it is known, the network sees one batch dimension, however many x has;
            a :class:`~pyro_vae.VAE` sets it.

    Shape:
        x: ``(*B, *event_shape)`` in the model's units; mask: the same, true where an entry is observed. Returns a
        distribution with batch ``(*B,)`` and event ``(L,)``. Other keyword arguments are the encoding's and the
        posterior's: ``arguments`` names them.

    Raises:
        ValueError: if the network's output can't be read, or the mask has another shape than x.
        TypeError: if the encoding does not take one of the arguments.
    """

    def __init__(
        self,
        network: nn.Module,
        posterior: Posterior,
        latent_dim: int,
        encoding: Encoding | None = None,
        event_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoding = Plain() if encoding is None else encoding
        self.event_shape = None if event_shape is None else tuple(event_shape)
        self.network = network
        self.posterior = posterior.for_event((latent_dim,))

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments of the encoding and the posterior."""
        return tuple(dict.fromkeys((*self.encoding.arguments, *self.posterior.arguments)))

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> TorchDistribution:  # noqa: D102
        check_taken(arguments, self.arguments, "the encoder")
        if mask is not None:
            check_mask_shape(mask, x.shape)
        shown = self.encoding(x, mask, **{n: value for n, value in arguments.items() if n in self.encoding.arguments})
        if self.event_shape is None:
            return self._posterior(self.network(shown), x, mask, arguments)
        row_dim, shape = len(self.encoding.shape(self.event_shape)), self.posterior.raw_shape((self.latent_dim,))
        return self._posterior(
            raw_output(self.network, shown, row_dim, shape, "the encoder's network"), x, mask, arguments
        )

    def _posterior(
        self, raw: Tensor, x: Tensor, mask: Tensor | None, arguments: Mapping[str, Any]
    ) -> TorchDistribution:
        taken = {name: value for name, value in arguments.items() if name in self.posterior.arguments}
        return self.posterior.of_rows(raw, x, mask, **taken)


class Classifier(nn.Module):
    r"""A network that predicts classes: :math:`x \mapsto q(y \mid x)`.

    Args:
        network: Maps ``(N, *encoding.shape(event_shape))`` to logits, ``(N, num_classes)``.
        num_classes: Number of classes.
        event_shape: Shape of one row of data.
        encoding: How a row is presented to the network; by default unchanged.

    Shape:
        x and mask: as for :class:`Encoder`. Returns a categorical distribution with batch ``(*B,)``. Other keyword
        arguments are the encoding's: ``arguments`` names them.

    Raises:
        ValueError: if the network's output can't be read, or the mask has another shape than x.
        TypeError: if the encoding does not take one of the arguments.
    """

    def __init__(
        self, network: nn.Module, num_classes: int, event_shape: Sequence[int], encoding: Encoding | None = None
    ) -> None:
        super().__init__()
        self.num_classes, self.event_shape = num_classes, tuple(event_shape)
        self.encoding = Plain() if encoding is None else encoding
        self.network = network

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the encoding takes."""
        return self.encoding.arguments

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> dist.Categorical:  # noqa: D102
        check_taken(arguments, self.arguments, "the classifier")
        if mask is not None:
            check_mask_shape(mask, x.shape)
        shown, row_dim = self.encoding(x, mask, **arguments), len(self.encoding.shape(self.event_shape))
        logits = raw_output(self.network, shown, row_dim, (self.num_classes,), "the classifier's network")
        return dist.Categorical(logits=logits)


def raw_output(network: nn.Module, rows: Tensor, row_dim: int, shape: Sequence[int], who: str) -> Tensor:
    """A network's raw output, ``(*B, *shape)``, for rows ``(*B, ...)`` whose last ``row_dim`` dimensions are a row's.

    The network sees one batch dimension. Its output may have neighbouring dimensions of ``shape`` merged into one, or
    lack those of size 1.

    Raises:
        ValueError: if the output does not fit, with the shapes found and expected.
    """
    batch_shape = rows.shape[: rows.dim() - row_dim]
    if len(batch_shape) == 1:
        return read_raw(network(rows), rows, row_dim, shape, who)
    rows = rows.reshape(math.prod(batch_shape), *rows.shape[rows.dim() - row_dim :])
    return read_raw(network(rows), rows, row_dim, shape, who).reshape(*batch_shape, *shape)


def read_raw(raw: Any, rows: Tensor, row_dim: int, shape: Sequence[int], who: str) -> Tensor:
    """A network's output for rows ``(N, ...)``, reshaped to ``(N, *shape)``."""
    shape = tuple(shape)
    if isinstance(raw, Tensor) and raw.shape == (rows.shape[0], *shape):
        return raw
    if isinstance(raw, Tensor) and raw.shape[:1] == rows.shape[:1] and _merges(shape, raw.shape[1:]):
        return raw.reshape(rows.shape[0], *shape)
    found = tuple(raw.shape) if isinstance(raw, Tensor) else f"a {type(raw).__name__}"
    raise ValueError(
        f"{must_map(who, rows.shape[rows.dim() - row_dim :], shape)}; it maps {tuple(rows.shape)} to {found}"
    )


def must_map(who: str, in_shape: Sequence[int], out_shape: Sequence[int]) -> str:
    """The shapes that a network must map between, in words."""
    flat = "" if len(out_shape) < 2 else f", or to {batch_of([math.prod(out_shape)])}"
    return f"{who} must map {batch_of(in_shape)} to {batch_of(out_shape)}{flat}"


def _merges(shape: Sequence[int], found: Sequence[int]) -> bool:
    """Whether ``found`` is ``shape`` with neighbouring dimensions multiplied, and without those of size 1."""
    rest, sizes = [size for size in shape if size != 1], [size for size in found if size != 1]
    for size in sizes:
        product = 1
        while rest and product < size:
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def batch_of(shape: Sequence[int]) -> str:
    """The shape of N such rows, in words."""
    return f"({', '.join(['N', *map(str, shape)])})"


def check_mask_shape(mask: Tensor, shape: Sequence[int]) -> None:
    """Raises an error if a mask does not have the shape of the rows."""
    if tuple(mask.shape) != tuple(shape):
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, expected that of the rows, {tuple(shape)}")
