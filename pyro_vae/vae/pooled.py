r"""Rows that come in groups, each with its own effect: partial pooling.

.. math::
    u_g &\sim \mathcal{N}(0, s^2 I) && \text{once for each group } g = 1, \dots, G \\
    z_n &\sim p(z) && \text{for each row } n, \text{ of group } g_n \\
    x_n &\sim p(x \mid f(z_n) + u_{g_n})

The effect is added to the raw output of the decoder's network :math:`f`: to a mean, to logits, to the logarithm of a
rate. The effects of groups with many rows come from their own data, those of groups with few rows shrink towards zero,
and that of a new group is drawn from :math:`\mathcal{N}(0, s^2 I)`. The guide has a normal for each group's effect, and
an encoder that takes the row and the effect: :math:`q(u)\, \prod_n q(z_n \mid x_n, u_{g_n})`.

Source: Gelman & Hill, *Data Analysis Using Regression and Multilevel/Hierarchical Models*, 2007; Lopez et al., *Deep
Generative Modeling for Single-cell Transcriptomics*, 2018, have a batch's effect in a VAE's decoder, without pooling.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_vae._support.names import lookup
from pyro_vae.encodings import Beside
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.vae.builders import Network, encoding_of, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["PooledVAE", "pooled_vae"]

EffectScale = float | Literal["learned", "latent"]

_START = math.log(math.expm1(0.1))  # standard deviations of 0.1
_MIN_SCALE = 1e-4


class PooledModel(GenerativeProgram):
    """The generative program; group -1 is a new one."""

    def __init__(self, prior: Prior, decoder: Decoder, num_groups: int, effect_scale: EffectScale) -> None:
        super().__init__(decoder)
        self.prior, self.num_groups, self.effect_scale = prior, num_groups, effect_scale
        self.raw_shape = decoder.likelihood.raw_shape(decoder.event_shape)
        if effect_scale == "learned":
            self.raw_scale = nn.Parameter(torch.tensor(math.log(math.expm1(1.0))))
        self.register_buffer("nowhere", torch.zeros(math.prod(self.raw_shape)), persistent=False)
        self.register_buffer("one", torch.ones(()), persistent=False)

    nowhere: Tensor
    one: Tensor

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, ``groups``, and those of the likelihood."""
        return (*super().arguments, "groups")

    def check_arguments(self, *, groups: Any = None, **arguments: Any) -> None:
        """Checks that groups are known ones or -1, as well as what every model checks."""
        super().check_arguments(**arguments)
        if groups is None:
            return
        numbers = torch.as_tensor(groups)
        if numbers.is_floating_point() or numbers.dim() > 1:
            raise ValueError(
                f"groups must have one whole number for each row, found {numbers.dtype} of shape {tuple(numbers.shape)}"
            )
        wrong = numbers[(numbers < -1) | (numbers >= self.num_groups)]
        if len(wrong.reshape(-1)):
            raise ValueError(
                f"groups must be from 0 to {self.num_groups - 1}, or -1 for a new one; "
                f"found {int(wrong.reshape(-1)[0])}"
            )

    def scale(self) -> Tensor:
        """The effects' standard deviation s, if it is not a latent."""
        if self.effect_scale == "learned":
            return F.softplus(self.raw_scale) + _MIN_SCALE
        return self.one * float(self.effect_scale)

    def forward(
        self,
        x: Tensor | None = None,
        *,
        batch_size: int | None = None,
        mask: Tensor | None = None,
        groups: Tensor | int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Runs the program on rows ``x`` of these ``groups``, or forward for ``batch_size`` new rows.

        ``groups`` are whole numbers, ``(N,)``, from 0; -1 is a new group, the default for new rows.
        """
        if groups is None and x is not None:
            raise ValueError("the model has groups: give groups, one whole number for each row, -1 for a new group")
        if self.effect_scale == "latent":
            scale = pyro.sample("effect_scale", dist.HalfNormal(self.one))
        else:
            scale = self.scale()
        with pyro.plate("groups", self.num_groups + 1, dim=-1):
            effects = pyro.sample("effects", dist.Normal(self.nowhere, scale[..., None]).to_event(1))
        with self.plate(x, batch_size, arguments) as rows:
            z = pyro.sample("z", self.prior())
            effect = _of_rows(effects, groups, len(rows)).unflatten(-1, self.raw_shape)
            return pyro.sample("x", self.decoder(z, x, mask, offset=effect, **arguments), obs=x)


class PooledGuide(InferenceProgram):
    """The inference program; a new group's effect is drawn from the prior."""

    def __init__(self, encoder: Encoder, model: PooledModel) -> None:
        super().__init__(encoder)
        self._model = [model]  # in a list, as its parameters are the model's
        shape = (model.num_groups, len(model.nowhere))
        self.loc, self.raw_scale = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.full(shape, _START))
        is_new = torch.arange(model.num_groups + 1) == model.num_groups
        self.register_buffer("is_new", is_new[:, None], persistent=False)
        if model.effect_scale == "latent":
            self.log_scale_loc = nn.Parameter(torch.zeros(()))
            self.log_scale_raw = nn.Parameter(torch.tensor(_START))

    is_new: Tensor

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, ``groups``, and those of the encoding."""
        return (*(name for name in super().arguments if name != "effect"), "groups")

    def effects(self) -> dist.TorchDistribution:
        """The posterior of the known groups' effects: batch ``(G,)``, event ``(R,)``."""
        return dist.Normal(self.loc, F.softplus(self.raw_scale) + _MIN_SCALE).to_event(1)

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, groups: Tensor | int | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` of these ``groups``."""
        (model,) = self._model
        if model.effect_scale == "latent":
            width = F.softplus(self.log_scale_raw) + _MIN_SCALE
            scale = pyro.sample("effect_scale", dist.LogNormal(self.log_scale_loc, width))
        else:
            scale = model.scale()
        loc, spread = (F.pad(value, (0, 0, 0, 1), value=1.0) for value in (self.loc, F.softplus(self.raw_scale)))
        loc = torch.where(self.is_new, 0.0, loc)
        spread = torch.where(self.is_new, scale[..., None], spread + _MIN_SCALE)
        with pyro.plate("groups", model.num_groups + 1, dim=-1):
            effects = pyro.sample("effects", dist.Normal(loc, spread).to_event(1))
        with self.plate(x, arguments):
            effect = _of_rows(effects, groups, len(x))
            q_z = self.encoder(x, mask, effect=effect, **arguments)
            return pyro.sample("z", q_z, infer=self.encoder.posterior.infer)


def _of_rows(effects: Tensor, groups: Tensor | int | None, rows: int) -> Tensor:
    """Each row's effect, ``(*K, N, R)``, from those of the groups, ``(*K, G + 1, R)``, of which the last is new."""
    index = torch.as_tensor(-1 if groups is None else groups, device=effects.device)
    return effects[..., index.expand(rows), :]


class PooledVAE(Premade):
    r"""A VAE whose rows come in groups: :math:`p(u)\, \prod_n p(z_n)\, p(x_n \mid z_n, u_{g_n})`, with partial pooling.

    Each row comes with its group: ``fit(vae, {"x": x, "groups": groups})``. ``sample(n, given={"groups": ...})`` draws
    rows of known groups with the learned posterior of their effects. Group -1, the default there, is a new group, whose
    effect is drawn from :math:`\mathcal{N}(0, s^2 I)`: one effect for all new rows of a call (in chunks of some
    thousand).

    Effects are shared by all rows. So each row bears ``1 / num_rows`` of their KL, and rows have no evidence of their
    own: for ``log_evidence`` and similar functions, condition the programs with ``pyro.condition(program, {"effects":
    value})``.

    Args:
        prior: :math:`p(z)`.
        decoder: :math:`z, u \mapsto p(x \mid z, u)`.
        encoder: :math:`x, u \mapsto q(z \mid x, u)`, whose encoding takes ``effect``.
        num_groups: Number of known groups G.
        effect_scale: The effects' standard deviation s: a number, ``"learned"``, or ``"latent"``, with
            :math:`s \sim \mathrm{HalfNormal}(1)` and a log-normal in the guide.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, or an argument is out of its range.
    """

    model: PooledModel
    guide: PooledGuide

    def __init__(
        self,
        prior: Prior,
        decoder: Decoder,
        encoder: Encoder,
        num_groups: int,
        effect_scale: EffectScale = "learned",
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        if num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, found {num_groups}")
        if isinstance(effect_scale, str):
            lookup(effect_scale, ("learned", "latent"), "effect_scale")
        elif not 0 < effect_scale < math.inf:
            raise ValueError(f"effect_scale must be a positive number, 'learned' or 'latent'; found {effect_scale}")
        if prior.latent_dim != encoder.latent_dim:
            raise ValueError(f"the prior has {prior.latent_dim} latents and the encoder {encoder.latent_dim}")
        model = PooledModel(prior, decoder, num_groups, effect_scale)
        super().__init__(
            model,
            PooledGuide(encoder, model),
            transform,
            missing,
        )
        prior.join(encoder, decoder)
        self.num_groups, self.effect_scale = num_groups, effect_scale

    @property
    def decoder(self) -> Decoder:
        """The decoder: ``decoder(z, offset=u)`` is p(x | z, u)."""
        return self.model.decoder

    @property
    def encoder(self) -> Encoder:
        """The encoder: ``encoder(x, effect=u)`` is q(z | x, u), for ``x`` in the model's units."""
        return self.guide.encoder

    def effects(self) -> dist.TorchDistribution:
        r"""The posterior of the groups' effects: normals with batch ``(G,)`` and event ``(R,)``.

        R is the number of raw outputs of the decoder's network: one for each element, if the likelihood has one
        parameter.
        """
        return self.guide.effects()


def pooled_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    num_groups: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    effect_scale: EffectScale = "learned",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> PooledVAE:
    """A :class:`PooledVAE` for rows of any shape, with fully connected networks unless others are given.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        num_groups: Number of known groups.
        likelihood: Distribution of a row given latents and effect.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        effect_scale: The effects' standard deviation: a number, ``"learned"`` or ``"latent"``.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`. It takes the row and its
            group's effect as one vector.
        decoder_network: Likewise; it maps latents to raw outputs.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Example:
        >>> from pyro_vae.likelihoods import Poisson
        >>> vae = pooled_vae((5,), latent_dim=2, num_groups=3, likelihood=Poisson())
        >>> vae.sample(4, given={"groups": torch.tensor([0, 2, 2, -1])}).shape, vae.effects().batch_shape
        (torch.Size([4, 5]), torch.Size([3]))
    """
    event_shape, hidden_dims, z_shape = tuple(event_shape), tuple(hidden_dims), (latent_dim,)
    posterior = DiagonalNormal() if posterior is None else posterior
    raw_shape = likelihood.raw_shape(event_shape)
    encoding = Beside(encoding_of(likelihood, event_shape, missing), event_shape, "effect", math.prod(raw_shape))
    encoder = make_network(
        encoder_network or fully_connected(hidden_dims, activation),
        encoding.shape(event_shape),
        posterior.raw_shape(z_shape),
        "encoder_network",
    )
    decoder = make_network(
        decoder_network or fully_connected(hidden_dims[::-1], activation),
        z_shape,
        raw_shape,
        "decoder_network",
    )
    return PooledVAE(
        StandardNormal(latent_dim) if prior is None else prior,
        Decoder(decoder, likelihood, event_shape),
        Encoder(encoder, posterior, latent_dim, encoding, event_shape),
        num_groups,
        effect_scale,
        transform,
        missing,
    )
