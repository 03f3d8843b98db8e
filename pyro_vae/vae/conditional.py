r"""A conditional VAE: rows come with known labels or covariates y.

.. math::
    z &\sim p(z) \quad \text{or} \quad p(z \mid y) \\
    x &\sim p(x \mid z, y)

and the guide is :math:`q(z \mid x, y)`. The model does not describe y itself: the evidence is :math:`p(x \mid y)`.

Source: Sohn, Lee & Yan, *Learning Structured Output Representation using Deep Conditional Generative Models*, 2015.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
from torch import Tensor, nn

from pyro_vae.covariates import Covariates, as_covariates
from pyro_vae.encodings import Beside, beside
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.arguments import arguments_for
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.vae.builders import Network, encoding_of, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade, check_parts

__all__ = ["ConditionalVAE", "conditional_vae"]


class ConditionalModel(GenerativeProgram):
    """The generative program; the decoder takes latents and covariates as one vector."""

    def __init__(self, prior: Prior | Encoder, decoder: Decoder, covariates: Covariates) -> None:
        super().__init__(decoder)
        self.prior, self.covariates = prior, covariates

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, the covariates, and those of the likelihood."""
        return tuple(dict.fromkeys((*self.covariates.arguments, *super().arguments)))

    def check_arguments(self, *, mask: Any = None, **arguments: Any) -> None:
        """Checks the covariates as well as what every model checks."""
        self.covariates.check_arguments(**arguments)
        super().check_arguments(mask=mask, **arguments_for(self.decoder, arguments))

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` with their covariates, or forward for ``batch_size`` new rows."""
        with self.plate(x, batch_size, arguments):
            given = self.covariates(**arguments)
            z = pyro.sample("z", self.prior() if isinstance(self.prior, Prior) else self.prior(given))
            p_x = self.decoder(beside(z, given), x, mask, **arguments_for(self.decoder, arguments))
            return pyro.sample("x", p_x, obs=x)


class ConditionalGuide(InferenceProgram):
    """The inference program; the encoder takes the covariates along with the row."""

    def __init__(self, encoder: Encoder, covariates: Covariates) -> None:
        super().__init__(encoder)
        self.covariates = covariates

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, the covariates, and those of the encoding."""
        shown = (name for name in super().arguments if name != "covariates")
        return tuple(dict.fromkeys((*self.covariates.arguments, *shown)))

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """Runs the program on rows ``x`` with their covariates."""
        with self.plate(x, arguments):
            given = self.covariates(**arguments)
            taken = arguments_for(self.encoder, arguments)
            q_z = self.encoder(x, mask, **{**taken, "covariates": given})
            return pyro.sample("z", q_z, infer=self.encoder.posterior.infer)


class ConditionalVAE(Premade):
    r"""Conditional VAE: :math:`p(z \mid y)\,p(x \mid z, y)` with the guide :math:`q(z \mid x, y)`.

    The covariates are keyword arguments, with one entry for each row or one for all rows: ``fit(vae, {"x": x, "labels":
    labels})``, ``vae.sample(16, given={"labels": 7})``.

    Args:
        prior: :math:`p(z)`, or for :math:`p(z \mid y)` an :class:`~pyro_vae.programs.Encoder` of the covariates'
            vector.
        decoder: :math:`(z, y) \mapsto p(x \mid z, y)`, which takes both as one vector.
        encoder: :math:`x, y \mapsto q(z \mid x, y)`, whose encoding takes ``covariates``.
        covariates: The covariates of the rows.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error. Covariates must be
            complete.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, or the parts do not match.
    """

    model: ConditionalModel
    guide: ConditionalGuide

    def __init__(
        self,
        prior: Prior | Encoder,
        decoder: Decoder,
        encoder: Encoder,
        covariates: Covariates,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        check_parts(prior.latent_dim, decoder, encoder)
        super().__init__(
            ConditionalModel(prior, decoder, covariates),
            ConditionalGuide(encoder, copy.deepcopy(covariates)),
            transform,
            missing,
        )
        if isinstance(prior, Prior):
            prior.join(encoder, decoder)

    @property
    def prior(self) -> Prior | Encoder:
        """The prior: ``prior()`` is p(z), or ``prior(given)`` is p(z | y) for the covariates' vector."""
        return self.model.prior

    @property
    def decoder(self) -> Decoder:
        """The decoder: ``decoder(beside(z, given))`` is p(x | z, y)."""
        return self.model.decoder

    @property
    def encoder(self) -> Encoder:
        """The encoder: ``encoder(x, covariates=given)`` is q(z | x, y), for ``x`` in the model's units."""
        return self.guide.encoder

    @property
    def covariates(self) -> Covariates:
        """The covariates: ``covariates(labels=labels)`` is the vector that the decoder takes along with z."""
        return self.model.covariates

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, each with the shape of one row of its input."""
        size = self.covariates.size
        found = super().networks() | {"decoder": (self.decoder.network, (self.encoder.latent_dim + size,))}
        return found if isinstance(self.prior, Prior) else found | {"prior": (self.prior.network, (size,))}


def conditional_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    given: Mapping[str, int | Sequence[int] | None],
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    prior: Prior | Literal["conditional"] | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> ConditionalVAE:
    r"""A :class:`ConditionalVAE` for rows of any shape, with fully connected networks unless others are given.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        given: The covariates by name: a number of classes for labels, encoded one-hot; None for a number in any unit,
            standardised with the first training batch; or the shape of several such numbers.
        likelihood: Distribution of a row given latents and covariates.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`. It takes the row and the
            covariates as one vector; with images, each number of the covariates is a plane.
        decoder_network: Likewise; it maps latents and covariates, as one vector, to raw outputs.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`. ``"conditional"`` is a normal :math:`p(z \mid y)`,
            whose means and scales a network computes from the covariates.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry; covariates must be complete.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = conditional_vae((8, 8), latent_dim=5, given={"labels": 10, "age": None}, likelihood=Bernoulli())
        >>> vae.sample(16, given={"labels": 7, "age": 40.0}).shape
        torch.Size([16, 8, 8])
    """
    event_shape, hidden_dims, z_shape = tuple(event_shape), tuple(hidden_dims), (latent_dim,)
    posterior = DiagonalNormal() if posterior is None else posterior
    covariates = as_covariates(given)

    mlp, mirrored = (fully_connected(dims, activation) for dims in (hidden_dims, hidden_dims[::-1]))
    encoding = encoding_of(likelihood, event_shape, missing)
    planes = encoder_network is not None and len(event_shape) > 1
    encoding = Beside(encoding, event_shape, "covariates", covariates.size, planes=planes)
    encoder = make_network(
        encoder_network or mlp, encoding.shape(event_shape), posterior.raw_shape(z_shape), "encoder_network"
    )
    decoder = make_network(
        decoder_network or mirrored,
        (latent_dim + covariates.size,),
        likelihood.raw_shape(event_shape),
        "decoder_network",
    )
    p_z: Prior | Encoder = StandardNormal(latent_dim) if prior is None or prior == "conditional" else prior
    if prior == "conditional":
        family, shape = DiagonalNormal(), (covariates.size,)
        p_z = Encoder(mlp(shape, family.raw_shape(z_shape)), family, latent_dim, event_shape=shape)
    return ConditionalVAE(
        p_z,
        Decoder(decoder, likelihood, event_shape),
        Encoder(encoder, posterior, latent_dim, encoding, event_shape),
        covariates,
        transform,
        missing,
    )
