r"""A vector-quantised VAE: a row is described by a few codes, each of which stands for a vector in a codebook.

.. math:: k_1, \ldots, k_M \sim p(k), \qquad z = (e_{k_1}, \ldots, e_{k_M}), \qquad x \mid z \sim p(x \mid z)

with a codebook :math:`e_1, \ldots, e_K` of vectors. The encoder maps a row to M vectors, and the guide takes the code
nearest to each. This is deterministic: :math:`q(k \mid x)` is 1 at one choice of codes. So the rate of a row is
:math:`-\log p(k)`, the nats that its codes cost, and the ELBO :math:`\log p(x \mid z) + \log p(k)` is a bound like any
other, without an entropy. More draws do not tighten it, as they are all equal; tools that weight draws say so.

- Gradients of the decoder skip the choice and go straight to the encoder's vectors.
- Vectors of the codebook are running means of the encoder's vectors nearest to them. A code that is rarely the nearest
  is moved to one of the encoder's vectors.
- A loss in the guide, :math:`\beta \sum_m |v_m - e_{k_m}|^2`, keeps the encoder's vectors near their codes. It is not
  part of the ELBO.
- The prior p(k) learns from the codes through the ELBO; it has no effect on the encoder.

Source: van den Oord et al., *Neural Discrete Representation Learning*, 2017; for moving unused codes, Dhariwal et al.,
*Jukebox*, 2020.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.data.rows import Inputs
from pyro_vae.distributions import Quantized, nearest_codes
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import AutoregressiveCodes, Prior
from pyro_vae.programs.latent import InferenceProgram, Model
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.programs.running import evaluating
from pyro_vae.vae.builders import Network, encoding_of, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["NearestCodes", "VectorQuantizedGuide", "VectorQuantizedVAE", "vector_quantized_vae"]


class NearestCodes(Posterior):
    r"""The codebook vectors nearest to the encoder's vectors: a point distribution.

    Args:
        num_values: Number of vectors K in the codebook.
        code_dim: Number of entries D of a vector; the number of latents is a multiple of it.
        decay: Decay of the running means, from one batch to the next.
        restart: A vector is moved if the fraction of vectors nearest to it is less than ``restart`` times 1 / K.

    Shape:
        raw: ``(*B, M D)``. Returns a distribution with batch ``(*B,)`` and event ``(M D,)``, whose ``distance`` is
        :math:`\sum_m |v_m - e_{k_m}|^2`, ``(*B,)``.

    Raises:
        ValueError: if a number is out of its range, or the number of latents is not a multiple of ``code_dim``.
    """

    codebook: Tensor
    usage: Tensor

    def __init__(self, num_values: int, code_dim: int, decay: float = 0.99, restart: float = 0.03) -> None:
        super().__init__()
        if num_values < 1 or code_dim < 1:
            raise ValueError(f"num_values and code_dim must be at least 1, found {num_values} and {code_dim}")
        if not (0 <= decay < 1 and 0 <= restart < 1):
            raise ValueError(f"decay and restart must lie from 0 to 1, found {decay} and {restart}")
        self.num_values, self.code_dim, self.decay, self.restart = num_values, code_dim, decay, restart
        self.register_buffer("codebook", torch.randn(num_values, code_dim))
        self.register_buffer("usage", torch.zeros(num_values))  # times 1 / K; 0 before the first batch

    def raw_shape(self, event_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: D102
        if event_shape[0] % self.code_dim:
            raise ValueError(
                f"the number of latents must be a multiple of code_dim={self.code_dim}, found {event_shape[0]}"
            )
        return tuple(event_shape)

    def read(self, raw: Tensor) -> tuple[Sequence[Tensor], int]:  # noqa: D102
        return [raw], 1

    def distribution(self, *params: Tensor) -> dist.TorchDistribution:  # noqa: D102
        vectors = params[0].unflatten(-1, (-1, self.code_dim))
        index = nearest_codes(vectors, self.codebook)
        if self.training:
            self._learn(vectors.detach().reshape(-1, self.code_dim), index.reshape(-1))
        codes = self.codebook[index]
        return _Nearest(
            (vectors + (codes - vectors).detach()).flatten(-2), (vectors - codes.detach()).square().sum((-2, -1))
        )

    @torch.no_grad()
    def _learn(self, vectors: Tensor, index: Tensor) -> None:
        near = (index[:, None] == torch.arange(self.num_values, device=index.device)).to(vectors)
        due = len(vectors) / self.num_values
        share = near.sum(0) / due
        usage = self.decay * self.usage + (1 - self.decay) * share
        means = self.decay * self.usage[:, None] * self.codebook + (1 - self.decay) / due * near.T @ vectors
        unused = (usage < self.restart) | (self.usage == 0)
        elsewhere = vectors[torch.randint(len(vectors), (self.num_values,), device=vectors.device)]
        self.codebook.copy_(torch.where(unused[:, None], elsewhere, means / usage.clamp(min=1e-9)[:, None]))
        self.usage.copy_(torch.where(unused, 1.0, usage))


class _Nearest(dist.Delta):
    """A point, with its distance from the encoder's output."""

    def __init__(self, value: Tensor, distance: Tensor) -> None:
        super().__init__(value, event_dim=1)
        self.distance = distance

    def expand(self, batch_shape: Any, _instance: Any = None) -> dist.Delta:
        return dist.Delta(self.v, event_dim=1).expand(batch_shape)


class _QuantizedPrior(Prior):
    """A prior over codes as one over their vectors, with the guide's codebook."""

    def __init__(self, codes: Prior, nearest: NearestCodes) -> None:
        super().__init__(codes.latent_dim // nearest.num_values * nearest.code_dim)
        self.codes = codes
        self._nearest = [nearest]  # in a list, as it is a part of the guide

    def forward(self) -> dist.TorchDistribution:
        return Quantized(self.codes(), self._nearest[0].codebook)


class VectorQuantizedGuide(InferenceProgram):
    r"""The inference program: the codes nearest to the encoder's output, and the loss that keeps it near them.

    Args:
        encoder: Called with ``x``, returns a point from :class:`NearestCodes`.
        commitment: The weight :math:`\beta`.
    """

    encoder: Encoder

    def __init__(self, encoder: Encoder, commitment: float) -> None:
        super().__init__(encoder)
        self.commitment = commitment

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """Runs the program on rows ``x`` in the model's units; ``mask`` is true where an entry is observed."""
        with self.plate(x, arguments):
            nearest: Any = self.encoder(x, mask, **arguments)
            pyro.factor("commitment", self.commitment * nearest.distance, has_rsample=True)
            return pyro.sample("z", nearest)


class VectorQuantizedVAE(Premade):
    r"""A vector-quantised VAE, described in :mod:`pyro_vae.vae.vector_quantized`.

    The latent ``z`` is the vectors, ``(M D,)``. :meth:`codes` maps rows to codes, and :meth:`vectors` codes to vectors.

    Args:
        prior: :math:`p(k)`, over codes as one-hot blocks.
        decoder: :math:`z \mapsto p(x \mid z)`.
        encoder: :math:`x \mapsto z`, with the posterior :class:`NearestCodes`.
        commitment: The weight :math:`\beta`, in nats.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the parts do not match each other or the transform, or ``commitment`` is negative.
    """

    model: Model
    guide: VectorQuantizedGuide
    parts: ClassVar = (NearestCodes,)

    def __init__(
        self,
        prior: Prior,
        decoder: Decoder,
        encoder: Encoder,
        commitment: float = 0.25,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        nearest = encoder.posterior
        if not isinstance(nearest, NearestCodes):
            raise ValueError(f"the encoder's posterior must be NearestCodes, found {type(nearest).__name__}")
        if not 0 <= commitment < math.inf:
            raise ValueError(f"commitment must be a finite number from 0, found {commitment}")
        expected = encoder.latent_dim // nearest.code_dim * nearest.num_values
        if prior.latent_dim != expected:
            raise ValueError(
                f"the prior has {prior.latent_dim} latents; {encoder.latent_dim // nearest.code_dim} codes of "
                f"{nearest.num_values} values are {expected}, in one-hot blocks"
            )
        super().__init__(
            Model(_QuantizedPrior(prior, nearest), decoder),
            VectorQuantizedGuide(encoder, commitment),
            transform,
            missing,
        )

    @property
    def prior(self) -> Prior:
        """The prior over codes, as one-hot blocks."""
        return self.model.prior.codes  # pyright: ignore[reportReturnType]

    @property
    def encoder(self) -> Encoder:
        """The encoder, with the codebook: ``encoder.posterior.codebook``."""
        return self.guide.encoder

    @property
    def commitment(self) -> float:
        """The weight of the loss that keeps the encoder near its codes."""
        return self.guide.commitment

    def codes(self, x: Inputs) -> Tensor:
        """The codes of rows, whole numbers ``(N, M)``."""
        nearest: Any = self.encoder.posterior
        parts = []
        for batch in self.batches(x):
            with evaluating(self.guide):
                point = self.encoder(
                    batch.x,
                    batch.mask,
                    **{n: batch.arguments[n] for n in self.encoder.arguments if n in batch.arguments},
                )
                parts.append(nearest_codes(point.mean.unflatten(-1, (-1, nearest.code_dim)), nearest.codebook))
        return torch.cat(parts)

    def vectors(self, codes: Tensor) -> Tensor:
        """The latents of codes ``(N, M)``, as ``decode`` and ``mean_at`` take them: ``(N, M D)``."""
        nearest: Any = self.encoder.posterior
        return nearest.codebook[codes.to(self.device)].flatten(-2)


def vector_quantized_vae(
    event_shape: Sequence[int],
    num_codes: int = 16,
    num_values: int = 64,
    code_dim: int = 8,
    *,
    likelihood: Likelihood,
    commitment: float = 0.25,
    decay: float = 0.99,
    restart: float = 0.03,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    prior: Prior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VectorQuantizedVAE:
    """A VAE whose latents are codes, each of which stands for a vector.

    Args:
        event_shape: Shape of one row of data.
        num_codes: Number of codes M for each row.
        num_values: Number of vectors K in the codebook.
        code_dim: Number of entries D of each vector.
        likelihood: Distribution of a row given the latents.
        commitment: Weight of the loss that keeps the encoder near its codes, in nats.
        decay: Of the codebook's running means, see :class:`NearestCodes`.
        restart: Likewise.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`. Maps a row to ``(M D,)``
            numbers.
        decoder_network: Likewise.
        prior: Over codes as one-hot blocks; by default :class:`~pyro_vae.priors.AutoregressiveCodes`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = vector_quantized_vae((28, 28), num_codes=10, num_values=32, likelihood=Bernoulli())
        >>> vae.sample(3).shape, vae.codes(torch.zeros(2, 28, 28)).shape
        (torch.Size([3, 28, 28]), torch.Size([2, 10]))
    """
    event_shape, hidden_dims = tuple(event_shape), tuple(hidden_dims)
    latent_dim = num_codes * code_dim
    nearest = NearestCodes(num_values, code_dim, decay, restart)
    encoding = encoding_of(likelihood, event_shape, missing)
    encoder = make_network(
        encoder_network or fully_connected(hidden_dims, activation),
        encoding.shape(event_shape),
        nearest.raw_shape((latent_dim,)),
        "encoder_network",
    )
    decoder = make_network(
        decoder_network or fully_connected(hidden_dims[::-1], activation),
        (latent_dim,),
        likelihood.raw_shape(event_shape),
        "decoder_network",
    )
    return VectorQuantizedVAE(
        AutoregressiveCodes(num_codes, num_values) if prior is None else prior,
        Decoder(decoder, likelihood, event_shape),
        Encoder(encoder, nearest, latent_dim, encoding, event_shape),
        commitment,
        transform,
        missing,
    )
