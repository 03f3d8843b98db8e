r"""Several layers of latents, each drawn given the one above: a hierarchical VAE with ladder inference.

The generative story, from the top level L down to the row:

.. math:: z_L \sim p(z_L), \qquad z_i \mid z_{i+1} \sim \mathcal{N}\big(\mu_i(z_{i+1}),
    \operatorname{diag}\sigma_i^2(z_{i+1})\big) \ (i = L-1, \ldots, 1), \qquad x \mid z_1 \sim p(x \mid z_1)

Inference goes up and comes down again. On the way up, a deterministic pass computes from the row alone a normal for
each level, :math:`\mathcal{N}(\hat\mu_i(x), \hat\sigma_i^2(x))`. At the top this is :math:`q(z_L \mid x)`. On the way
down, each is combined with the model's normal given the level above, weighted by precision, as a normal likelihood is
with a normal prior:

.. math:: q(z_i \mid z_{i+1}, x) = \mathcal{N}\left(\frac{\hat\mu_i \hat\sigma_i^{-2} + \mu_i \sigma_i^{-2}}
    {\hat\sigma_i^{-2} + \sigma_i^{-2}},\ \frac{1}{\hat\sigma_i^{-2} + \sigma_i^{-2}}\right)

The guide learns corrections to the model, not the whole posterior, and so upper levels stay in use.

Source: Sønderby et al., *Ladder Variational Autoencoders*, 2016.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae._support.names import check_taken
from pyro_vae.distributions import product_of_normals
from pyro_vae.encodings import Encoding
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import MLP
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, Encoder, check_mask_shape, raw_output
from pyro_vae.vae.builders import Network, encoding_of, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["LadderEncoder", "LadderGuide", "LadderModel", "LadderVAE", "ladder_vae"]


class LadderModel(GenerativeProgram):
    r"""The generative program :math:`p(z_L) \prod_i p(z_i \mid z_{i+1})\, p(x \mid z_1)`, at sites ``z_1``, ….

    Args:
        prior: Called without arguments, returns :math:`p(z_L)`.
        conditionals: Called with :math:`z_{i+1}`, each returns :math:`p(z_i \mid z_{i+1})`: for i = 1, 2, …, L − 1.
        decoder: Called with :math:`z_1`, returns :math:`p(x \mid z_1)`.
    """

    def __init__(self, prior: Prior, conditionals: Sequence[Encoder], decoder: Decoder) -> None:
        super().__init__(decoder)
        self.prior, self.conditionals = prior, nn.ModuleList(conditionals)

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` in the model's units, or forward for ``batch_size`` new rows."""
        with self.plate(x, batch_size, arguments):
            z = pyro.sample(f"z_{len(self.conditionals) + 1}", self.prior())
            for level in range(len(self.conditionals), 0, -1):
                z = pyro.sample(f"z_{level}", self.conditionals[level - 1](z))
            return pyro.sample("x", self.decoder(z, x, mask, **arguments), obs=x)


class LadderGuide(InferenceProgram):
    r"""The inference program :math:`q(z_L \mid x) \prod_i q(z_i \mid z_{i+1}, x)`.

    Args:
        encoder: Gives each level's normal from the row alone.
        conditionals: Those of the model, which the guide uses but does not own.
    """

    encoder: "LadderEncoder"

    def __init__(self, encoder: "LadderEncoder", conditionals: Sequence[nn.Module]) -> None:
        super().__init__(encoder)
        self._conditionals = list(conditionals)  # in a list, as they are parts of the model

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """Runs the program on rows ``x`` in the model's units; ``mask`` is true where an entry is observed."""
        alone = self.encoder.levels(x, mask, **arguments)
        with self.plate(x, arguments):
            z = pyro.sample(f"z_{len(alone)}", alone[-1])
            for level in range(len(alone) - 1, 0, -1):
                said = [part.base_dist for part in (alone[level - 1], self._conditionals[level - 1](z))]
                locs = torch.stack(torch.broadcast_tensors(*(part.loc for part in said)), -2)
                scales = torch.stack(torch.broadcast_tensors(*(part.scale for part in said)), -2)
                z = pyro.sample(f"z_{level}", product_of_normals(locs, scales.square().reciprocal()))
            return z


class LadderEncoder(nn.Module):
    r"""The pass upwards: a normal for each level, :math:`x \mapsto \mathcal{N}(\hat\mu_i(x), \hat\sigma_i^2(x))`.

    A call returns that of the top level, :math:`q(z_L \mid x)`.

    Args:
        networks: One for each level, from below. The first maps ``(N, *encoding.shape(event_shape))``, and each other
            ``(N, context_dim)``, to ``(N, context_dim + 2 L_i)``: the input of the next network, and raw mean and
            scale. The last returns raw mean and scale only.
        latent_dims: Number of latents :math:`L_i` of each level, from below.
        context_dim: As above.
        encoding: How a row is encoded for the first network.
        event_shape: Shape of one row of data.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        latent_dims: Sequence[int],
        context_dim: int,
        encoding: Encoding,
        event_shape: Sequence[int],
    ) -> None:
        super().__init__()
        self.latent_dims, self.context_dim = tuple(latent_dims), context_dim
        self.encoding, self.event_shape = encoding, tuple(event_shape)
        self._networks = nn.ModuleList(networks)
        self._posteriors = nn.ModuleList(DiagonalNormal().for_event((size,)) for size in self.latent_dims)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """The network of each level."""
        return tuple(self._networks)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the encoding takes."""
        return self.encoding.arguments

    def in_shape(self, level: int) -> tuple[int, ...]:
        """Shape of the input of a level's network; levels count from 0 here."""
        return (self.context_dim,) if level else self.encoding.shape(self.event_shape)

    def levels(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> list[dist.TorchDistribution]:
        """Each level's normal for rows ``(*B, *event_shape)``, from below: batch ``(*B,)``, event ``(L_i,)``."""
        check_taken(arguments, self.arguments, "the encoder")
        if mask is not None:
            check_mask_shape(mask, x.shape)
        context, found = self.encoding(x, mask, **arguments), []
        for level, (network, size) in enumerate(zip(self._networks, self.latent_dims, strict=True)):
            passed = self.context_dim if level + 1 < len(self.latent_dims) else 0
            row_dim = len(self.in_shape(level))
            both = raw_output(network, context, row_dim, (passed + 2 * size,), f"the network of level {level + 1}")
            context, raw = both.split([passed, 2 * size], -1)
            found.append(self._posteriors[level](raw.unflatten(-1, (2, size))))
        return found

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> dist.TorchDistribution:  # noqa: D102
        return self.levels(x, mask, **arguments)[-1]


class LadderVAE(Premade):
    r"""A hierarchical VAE with ladder inference, described in :mod:`pyro_vae.vae.ladder`.

    The latent sites are ``z_1`` (next to the data) to ``z_L``: ``encode(x, site="z_2")``, ``decode({"z_1": …, "z_2":
    …})``. :func:`~pyro_vae.evaluate` gives the rate and the active units of each.

    Args:
        prior: :math:`p(z_L)`.
        conditionals: :math:`z_{i+1} \mapsto p(z_i \mid z_{i+1})` for i = 1, …, L − 1, normals with independent entries.
        decoder: :math:`z_1 \mapsto p(x \mid z_1)`.
        encoder: The pass upwards.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the parts do not match each other or the transform.
    """

    model: LadderModel
    guide: LadderGuide
    parts: ClassVar = (LadderEncoder,)

    def __init__(
        self,
        prior: Prior,
        conditionals: Sequence[Encoder],
        decoder: Decoder,
        encoder: LadderEncoder,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        sizes = (*(part.latent_dim for part in conditionals), prior.latent_dim)
        if sizes != encoder.latent_dims:
            raise ValueError(
                f"from below, the model's levels have {sizes} latents and the encoder's {encoder.latent_dims}"
            )
        model = LadderModel(prior, conditionals, decoder)
        super().__init__(
            model,
            LadderGuide(encoder, model.conditionals),  # pyright: ignore[reportArgumentType]
            transform,
            missing,
        )
        prior.join(encoder, decoder)

    @property
    def prior(self) -> Prior:
        """The prior of the top level."""
        return self.model.prior

    @property
    def conditionals(self) -> tuple[nn.Module, ...]:
        """Each level's distribution given the level above, from below."""
        return tuple(self.model.conditionals)

    @property
    def decoder(self) -> Decoder:
        """The decoder of the lowest level."""
        return self.model.decoder

    @property
    def encoder(self) -> LadderEncoder:
        """The pass upwards."""
        return self.guide.encoder

    @property
    def latent_dims(self) -> tuple[int, ...]:
        """Number of latents of each level, from below."""
        return self.encoder.latent_dims

    def networks(self) -> Mapping[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, each with the shape of one row of its input."""
        up = {f"encoder {i + 1}": (n, self.encoder.in_shape(i)) for i, n in enumerate(self.encoder.networks)}
        down = {
            f"conditional {i + 1}": (part.network, (above,))
            for i, (part, above) in enumerate(zip(self.conditionals, self.latent_dims[1:], strict=True))
        }
        return {**up, **down, "decoder": (self.decoder.network, self.latent_dims[:1])}  # pyright: ignore[reportReturnType]


def ladder_vae(
    event_shape: Sequence[int],
    latent_dims: Sequence[int] = (32, 8),
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    prior: Prior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> LadderVAE:
    """A VAE with several layers of latents and ladder inference.

    Upper levels come into use more easily if the KL is warmed up, as in the paper: ``Elbo(kl_warmup=0.5)``.

    Args:
        event_shape: Shape of one row of data.
        latent_dims: Number of latents of each level, from the one next to the data up; at least two.
        likelihood: Distribution of a row given the latents.
        hidden_dims: Widths of the hidden layers of every network; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: The network next to the data, as in :func:`~pyro_vae.make_vae`, or a function of the two shapes
            that builds it, such as a :class:`~pyro_vae.networks.ConvEncoder` for images. See :class:`LadderEncoder`.
        decoder_network: The network from the lowest level to the data, likewise.
        prior: Prior of the top level; by default :class:`~pyro_vae.priors.StandardNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry: the encoder is then shown which entries are there.

    Raises:
        ValueError: if there are fewer than two levels, or the parts do not match.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = ladder_vae((28, 28), latent_dims=(32, 8), likelihood=Bernoulli())
        >>> vae.sample(3).shape, vae.encode(torch.zeros(2, 28, 28), site="z_2").event_shape
        (torch.Size([3, 28, 28]), torch.Size([8]))
    """
    event_shape, hidden_dims, sizes = tuple(event_shape), tuple(hidden_dims), tuple(latent_dims)
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"latent_dims must be positive, for at least two levels; found {sizes}: for one level use mlp_vae"
        )
    context_dim = hidden_dims[-1] if hidden_dims else sizes[0]
    encoding = encoding_of(likelihood, event_shape, missing)

    def mlp(in_shape: tuple[int, ...], out_shape: tuple[int, ...], widths: tuple[int, ...] = hidden_dims) -> MLP:
        return MLP(in_shape, out_shape, widths, activation)

    raw = [context_dim + 2 * size for size in sizes[:-1]] + [2 * sizes[-1]]
    first = make_network(encoder_network or mlp, encoding.shape(event_shape), (raw[0],), "encoder_network")
    last = make_network(
        decoder_network or (lambda i, o: mlp(i, o, hidden_dims[::-1])),
        sizes[:1],
        likelihood.raw_shape(event_shape),
        "decoder_network",
    )
    conditionals = [
        Encoder(mlp((above,), (2, size)), DiagonalNormal(), size, event_shape=(above,))
        for size, above in itertools.pairwise(sizes)
    ]
    return LadderVAE(
        StandardNormal(sizes[-1]) if prior is None else prior,
        conditionals,
        Decoder(last, likelihood, event_shape),
        LadderEncoder(
            [first, *(mlp((context_dim,), (size,)) for size in raw[1:])], sizes, context_dim, encoding, event_shape
        ),
        transform,
        missing,
    )
