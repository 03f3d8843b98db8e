r"""Rows with several modalities, such as a picture and its label, any of which may be missing.

.. math::
    z_n &\sim p(z) \\
    x_n &\sim p(x \mid z_n), \quad y_n \sim p(y \mid z_n), \quad \dots && \text{one likelihood for each modality}

Each modality m has an encoder, its expert :math:`q_m(z \mid x_m)`. The guide joins the experts of the modalities that
are observed, the set O:

.. math::
    q(z \mid x_O) \propto \mathcal{N}(z \mid 0, I) \prod_{m \in O} q_m(z \mid x_m) \quad\text{(a product)}, \qquad
    q(z \mid x_O) = \frac{1}{|O|} \sum_{m \in O} q_m(z \mid x_m) \quad\text{(a mixture)}

Source: Wu & Goodman, *Multimodal Generative Models for Scalable Weakly-Supervised Learning*, 2018 (the product); Shi et
al., *Variational Mixture-of-Experts Autoencoders for Multi-Modal Deep Generative Models*, 2019 (the mixture).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae._support.arrays import as_tensor
from pyro_vae._support.names import check_taken, lookup
from pyro_vae._support.ranges import elementwise, inner_value
from pyro_vae.data.checks import check_rows
from pyro_vae.distributions import MixtureOfNormals, product_of_normals
from pyro_vae.encodings import WithMask
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.transforms import Identity
from pyro_vae.vae.builders import Network, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["MultimodalVAE", "multimodal_vae"]

Joint = Literal["product", "mixture"]


class Gaps(nn.Module):
    """Converts a modality's values to the programs' type and fills gaps with a value in the likelihood's range."""

    filling: Tensor

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        inside = torch.tensor(inner_value(elementwise(decoder.likelihood.data_range)))
        self.register_buffer("filling", inside, persistent=False)

    def forward(self, value: Tensor, seen: Tensor | None) -> Tensor:
        """Values ``(N, *E)``, filled where they are not ``seen``."""
        value = value.to(self.filling.dtype)
        return value if seen is None else torch.where(seen, value, self.filling)


class MultimodalModel(GenerativeProgram):
    """The generative program: one latent vector, and a decoder for each modality."""

    def __init__(self, prior: Prior, names: Sequence[str], decoders: Sequence[Decoder]) -> None:
        super().__init__(decoders[0])
        self.prior, self.others = prior, nn.ModuleDict(dict(zip(names[1:], decoders[1:], strict=True)))
        self.gaps = nn.ModuleDict({name: Gaps(decoder) for name, decoder in self.decoders.items()})

    @property
    def decoders(self) -> dict[str, Decoder]:
        """The decoders of the modalities other than ``x``."""
        return dict(self.others.items())  # pyright: ignore[reportReturnType]

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments: ``mask``, the other modalities and their masks, and those of the likelihoods."""
        of_others = [(name, f"{name}_mask", *decoder.arguments) for name, decoder in self.decoders.items()]
        return tuple(dict.fromkeys([*super().arguments, *(name for names in of_others for name in names)]))

    def check_arguments(self, *, mask: Any = None, **arguments: Any) -> None:
        """Checks that each likelihood describes its modality's values, as well as what every model checks."""
        super().check_arguments(mask=mask, **_taken(self.decoder, arguments))
        for name, decoder in self.decoders.items():
            decoder.likelihood.check_arguments(**_taken(decoder, arguments))
            if arguments.get(name) is not None:
                value, seen = as_tensor(arguments[name]), arguments.get(f"{name}_mask")
                check_rows(
                    value,
                    event_shape=decoder.event_shape,
                    data_range=decoder.likelihood.data_range,
                    transform=Identity(),
                    dtype=torch.get_default_dtype(),
                    device=value.device,
                    mask=None if seen is None else as_tensor(seen).to(value.device).bool(),
                    missing=True,
                    may_be_empty=True,
                    name=name,
                )

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x`` and other modalities by name, or forward for ``batch_size`` new rows."""
        with self.plate(x, batch_size, arguments):
            z = pyro.sample("z", self.prior())
            drawn = pyro.sample("x", self.decoder(z, x, mask, **_taken(self.decoder, arguments)), obs=x)
            for name, decoder in self.decoders.items():
                value, seen = arguments.get(name), arguments.get(f"{name}_mask")
                if x is not None and value is None:
                    continue  # missing in all rows
                value = None if value is None else self.gaps[name](value, seen)
                pyro.sample(name, decoder(z, value, seen, **_taken(decoder, arguments)), obs=value)
            return drawn


class JointEncoder(nn.Module):
    """The experts of the observed modalities, joined into one distribution of z."""

    def __init__(self, names: Sequence[str], encoders: Sequence[Encoder], gaps: nn.ModuleDict, joint: Joint) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(dict(zip(names, encoders, strict=True)))
        self._gaps = [gaps]  # in a list, as they are the model's and have no parameters
        self.joint = joint

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments: the modalities other than ``x``, their masks, and those of the encodings."""
        others = [argument for name in self.experts if name != "x" for argument in (name, f"{name}_mask")]
        experts: list[Any] = list(self.experts.values())
        return tuple(dict.fromkeys([*others, *(argument for expert in experts for argument in expert.arguments)]))

    def forward(self, x: Tensor, mask: Tensor | None = None, **arguments: Any) -> dist.TorchDistribution:
        """The posterior of rows ``x`` and other modalities by name: batch ``(N,)``, event ``(L,)``."""
        check_taken(arguments, self.arguments, "the encoder")
        there, locs, scales = [], [], []
        for name, expert in self.experts.items():
            value, seen = (x, mask) if name == "x" else (arguments.get(name), arguments.get(f"{name}_mask"))
            if value is None:
                continue
            value = value if name == "x" else self._gaps[0][name](value, seen)
            q_z = expert(value, seen, **_taken(expert, arguments)).base_dist
            locs.append(q_z.loc)
            scales.append(q_z.scale)
            there.append(
                torch.ones_like(q_z.loc[:, 0], dtype=torch.bool) if seen is None else seen.reshape(len(seen), -1).any(1)
            )
        joined = _product if self.joint == "product" else _mixture
        return joined(torch.stack(locs, -2), torch.stack(scales, -2), torch.stack(there, -1))


def _product(locs: Tensor, scales: Tensor, there: Tensor) -> dist.TorchDistribution:
    """The standard normal times the experts ``(N, M, L)`` of the observed modalities ``(N, M)``."""
    precisions = there[..., None] / scales.square()
    prior = torch.zeros_like(locs[:, :1])
    return product_of_normals(torch.cat([locs, prior], -2), torch.cat([precisions, prior + 1], -2))


def _mixture(locs: Tensor, scales: Tensor, there: Tensor) -> dist.TorchDistribution:
    """The experts of the observed modalities, with equal weights; the standard normal if there are none."""
    there, prior = torch.cat([there, ~there.any(-1, keepdim=True)], -1), torch.zeros_like(locs[:, :1])
    logits = torch.where(there, 0.0, -torch.inf).to(locs.dtype)
    return MixtureOfNormals(torch.cat([locs, prior], -2), torch.cat([scales, prior + 1], -2), logits)


def _taken(part: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name in part.arguments}


class MultimodalGuide(InferenceProgram):
    """The inference program: z given the observed modalities."""

    encoder: JointEncoder

    def forward(self, x: Tensor, *, mask: Tensor | None = None, **arguments: Any) -> Tensor:
        """Runs the program on rows ``x`` and other modalities by name."""
        with self.plate(x, arguments):
            return pyro.sample("z", self.encoder(x, mask, **arguments))


class MultimodalVAE(Premade):
    r"""A VAE of several modalities, any of which may be missing: :math:`p(z) \prod_m p(x_m \mid z)`.

    The first modality is ``x``; the others are sites and keyword arguments of their own names:
    ``fit(vae, {"x": x, "label": labels})``. In any of them NaN marks missing entries, or a missing row if all entries
    are NaN. Whole numbers take a mask instead, as ``mask`` or ``label_mask``. The transform is that of ``x``; the
    others are in the model's units. A keyword argument of likelihoods, such as ``size_factor``, goes to every
    likelihood that takes it.

    :meth:`draw_given` draws some modalities given others. If all rows are complete, train on :meth:`each_alone` of
    them, to teach the guide to do with fewer modalities. A ``kl_warmup`` of the :class:`~pyro_vae.Elbo` keeps the prior
    from drowning out the experts. ``sample(n)`` draws all modalities from the prior; a value in its ``given`` does not
    affect the draws of the others.

    Args:
        prior: :math:`p(z)`.
        names: Names of the modalities; the first is ``"x"``.
        decoders: :math:`z \mapsto p(x_m \mid z)`, one for each.
        encoders: :math:`x_m \mapsto q_m(z \mid x_m)`, one for each, with independent normal latents.
        joint: How their experts are joined: ``"product"`` or ``"mixture"``.
        transform: Maps the user's units of ``x`` to the model's.

    Raises:
        ValueError: if names, decoders and encoders do not match, the transform does not yield what the
            likelihood of ``x`` describes, or an argument is out of its range.
    """

    model: MultimodalModel
    guide: MultimodalGuide

    def __init__(
        self,
        prior: Prior,
        names: Sequence[str],
        decoders: Sequence[Decoder],
        encoders: Sequence[Encoder],
        joint: Joint = "product",
        transform: GivenTransform = None,
    ) -> None:
        names = tuple(names)
        _check_names(names)
        if not len(names) == len(decoders) == len(encoders):
            raise ValueError(f"{len(names)} modalities have {len(decoders)} decoders and {len(encoders)} encoders")
        lookup(joint, ("product", "mixture"), "joint posterior")
        for name, encoder in zip(names, encoders, strict=True):
            if not isinstance(encoder.posterior, DiagonalNormal):
                found = type(encoder.posterior).__name__
                raise ValueError(f"experts must have a DiagonalNormal posterior, and {name} has a {found}")
            if prior.latent_dim != encoder.latent_dim:
                raise ValueError(
                    f"the prior has {prior.latent_dim} latents and the encoder of {name} {encoder.latent_dim}"
                )
        model = MultimodalModel(prior, names, decoders)
        encoder = JointEncoder(names, encoders, model.gaps, joint)
        super().__init__(
            model,
            MultimodalGuide(encoder),
            transform,
            missing="nan",
        )
        prior.join(encoders[0], decoders[0])
        self.names, self.joint = names, joint

    @property
    def decoders(self) -> tuple[Decoder, ...]:
        """The decoder of each modality."""
        return (self.model.decoder, *self.model.decoders.values())

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoder of each modality: its expert."""
        return tuple(self.guide.encoder.experts.values())  # pyright: ignore[reportReturnType]

    def each_alone(self, rows: Mapping[str, Any]) -> dict[str, Any]:
        """Training rows: those given, and once more for each modality, with the others missing.

        With these, each expert learns from its own modality even if all rows are complete. The objective is the ELBO of
        the modalities together plus that of each alone, as in Wu & Goodman (2018).

        Args:
            rows: Values of all modalities by name, and other arguments with one entry for each row.

        Returns:
            ``M + 1`` times as many rows for M modalities.
        """
        tensors = {name: as_tensor(value) for name, value in rows.items()}
        parts = [dict(tensors)]
        for alone in self.names:
            others = [name for name in self.names if name != alone and name in tensors]
            parts.append(
                tensors | {name: torch.full_like(tensors[name], torch.nan, dtype=self.dtype) for name in others}
            )
        for name in set(self.names) & set(tensors):  # they may be whole numbers, which can't be NaN
            parts[0][name] = tensors[name].to(self.dtype)
        return {name: torch.cat([part[name].to(parts[0][name].dtype) for part in parts]) for name in tensors}

    def draw_given(
        self, given: Mapping[str, Any], num_samples: int = 1, *, num_particles: int = 100
    ) -> dict[str, Tensor]:
        """Draws the modalities that are not given, given those that are: each ``(num_samples, N, *E)``.

        By importance resampling from the guide, see :meth:`~pyro_vae.Pair.impute`. As ``num_particles`` grows, the
        draws converge to the model's own conditional, whatever the guide.

        Args:
            given: Values of at least one modality by name, and other keyword arguments of the programs.
            num_samples: Draws for each row.
            num_particles: Draws from the guide to choose from.

        Raises:
            ValueError: if no modality is given, or all are.
        """
        known = [name for name in self.names if given.get(name) is not None]
        wanted = [name for name in self.names if name not in known]
        if not known or not wanted:
            raise ValueError(f"give some of {', '.join(self.names)}, but not all: found {', '.join(known) or 'none'}")
        rows = len(given[known[0]])
        shapes = {name: decoder.event_shape for name, decoder in zip(self.names, self.decoders, strict=True)}
        gaps = {name: torch.full((rows, *shapes[name]), torch.nan, dtype=self.dtype) for name in wanted}
        return self.impute({**given, **gaps}, num_samples, num_particles=num_particles, sites=wanted)

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, each with the shape of one row of its input."""
        found: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
        for name, decoder, encoder in zip(self.names, self.decoders, self.encoders, strict=True):
            found[f"encoder of {name}"] = (encoder.network, encoder.encoding.shape(decoder.event_shape))
            found[f"decoder of {name}"] = (decoder.network, (self.prior.latent_dim,))
        return found


def _check_names(names: Sequence[str]) -> None:
    if len(names) < 2 or names[0] != "x" or len(set(names)) < len(names):
        raise ValueError(
            f"there must be at least two modalities, with different names, the first called x: found {', '.join(names)}"
        )
    for name in names[1:]:
        if not name.isidentifier() or name in ("z", "mask", "batch_size") or name.endswith("_mask"):
            raise ValueError(f"a modality cannot be called {name!r}: its name must be a new keyword argument")


def multimodal_vae(
    modalities: Mapping[str, tuple[Sequence[int], Likelihood]],
    latent_dim: int,
    *,
    joint: Joint = "product",
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_networks: Mapping[str, Network] | None = None,
    decoder_networks: Mapping[str, Network] | None = None,
    prior: Prior | None = None,
    transform: GivenTransform = None,
) -> MultimodalVAE:
    """A :class:`MultimodalVAE` with fully connected networks unless others are given.

    Args:
        modalities: For each name, the shape of one row and the likelihood; the first name is ``"x"``.
        latent_dim: Number of latents.
        joint: How the experts are joined: ``"product"`` or ``"mixture"``.
        hidden_dims: Widths of the encoders' hidden layers; the decoders have them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_networks: By modality; they replace the fully connected ones, see :func:`~pyro_vae.make_vae`.
        decoder_networks: Likewise.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        transform: Maps the user's units of ``x`` to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli, Categorical
        >>> kinds = Categorical(10, ordered=False)
        >>> vae = multimodal_vae({"x": ((8, 8), Bernoulli()), "label": ((), kinds)}, latent_dim=5)
        >>> vae.draw_given({"label": torch.tensor([3, 7])}, 4)["x"].shape
        torch.Size([4, 2, 8, 8])
        >>> vae.draw_given({"x": torch.ones(2, 8, 8)})["label"].shape
        torch.Size([1, 2])
    """
    names, hidden_dims, z_shape = tuple(modalities), tuple(hidden_dims), (latent_dim,)
    _check_names(names)
    decoders, encoders, posterior = [], [], DiagonalNormal()
    for name, (shape, likelihood) in modalities.items():
        event_shape = tuple(shape)
        encoding = WithMask(likelihood.encoding(event_shape), event_shape)
        encoder = make_network(
            (encoder_networks or {}).get(name, fully_connected(hidden_dims, activation)),
            encoding.shape(event_shape),
            posterior.raw_shape(z_shape),
            f"the encoder network of {name}",
        )
        decoder = make_network(
            (decoder_networks or {}).get(name, fully_connected(hidden_dims[::-1], activation)),
            z_shape,
            likelihood.raw_shape(event_shape),
            f"the decoder network of {name}",
        )
        encoders.append(Encoder(encoder, posterior, latent_dim, encoding, event_shape))
        decoders.append(Decoder(decoder, likelihood, event_shape))
    return MultimodalVAE(
        StandardNormal(latent_dim) if prior is None else prior,
        names,
        decoders,
        encoders,
        joint,
        transform,
    )
