r"""Sequences with a latent state at each step: a deep Markov model.

.. math::
    z_1 &\sim p(z), \qquad z_t \sim \mathcal{N}(\mu(z_{t-1}), \operatorname{diag}(\sigma^2(z_{t-1})))
        && t = 2, \dots, T \\
    x_t &\sim p(x_t \mid z_t) && t = 1, \dots, T

with a gated network :math:`\mu, \sigma` and any likelihood for a step. Given the state before, the posterior of a state
depends on the data from that step on, so the guide reads the row backwards:

.. math:: q(z \mid x) = \prod_t q(z_t \mid z_{t-1}, h_t), \qquad h_t = \mathrm{GRU}(x_t, h_{t+1})

After the end of a row there are no data, and the guide follows the model's transition. So steps after the end
contribute nothing, and draws of them are forecasts.

Source: Krishnan, Shalit & Sontag, *Structured Inference Networks for Nonlinear State Space Models*, 2017.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.encodings import WithMask
from pyro_vae.likelihoods import Likelihood
from pyro_vae.networks import GatedTransition
from pyro_vae.posteriors import DiagonalNormal
from pyro_vae.priors import Prior, StandardNormal
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Decoder, raw_output
from pyro_vae.programs.recurrent import BackwardEncoder, by_step
from pyro_vae.vae.builders import Network, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["DeepMarkovModel", "deep_markov_model"]


class Transition(nn.Module):
    """The distribution of the next state given a state: a network and a normal."""

    def __init__(self, network: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.network, self.shape = network, (2, latent_dim)
        self.normal = DiagonalNormal()

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """The next state's distribution, for states ``(*B, L)``."""
        return self.normal(raw_output(self.network, z, 1, self.shape, "the transition network"))


class SequenceModel(GenerativeProgram):
    """The generative program: T states, each from the one before, and a decoder of one step."""

    def __init__(self, prior: Prior, transition: Transition, decoder: Decoder, num_steps: int) -> None:
        super().__init__(decoder)
        self.prior, self.transition, self.num_steps = prior, transition, num_steps
        self.register_buffer("times", torch.arange(num_steps), persistent=False)

    times: Tensor

    @property
    def event_shape(self) -> tuple[int, ...]:
        """Shape of one row, ``(T, *C)``."""
        return (self.num_steps, *self.decoder.event_shape)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments: ``mask``, ``lengths``, and those of the likelihood."""
        return (*super().arguments, "lengths")

    def check_arguments(self, *, mask: Any = None, lengths: Any = None, **arguments: Any) -> None:
        """Checks the lengths as well as what every model checks."""
        super().check_arguments(mask=mask, **arguments)
        if lengths is not None:
            found = torch.as_tensor(lengths)
            wrong = found[(found < 1) | (found > self.num_steps) | (found != found.round())].reshape(-1)
            if found.dim() > 1 or len(wrong):
                what = f"shape {tuple(found.shape)}" if found.dim() > 1 else f"{wrong[0].item():g}"
                raise ValueError(
                    f"lengths must be a whole number of steps for each row, from 1 to {self.num_steps}; found {what}"
                )

    def observed_entries(self, x: Tensor, *, lengths: Any = None, **arguments: Any) -> Tensor | None:
        """True for the steps of rows ``x`` up to their end, in the shape of x; None if no lengths are given."""
        if lengths is None:
            return None
        there = self.times < torch.as_tensor(lengths, device=self.times.device).reshape(-1, 1)
        return there.reshape(*there.shape, *[1] * len(self.decoder.event_shape)).expand(x.shape)

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``(N, T, *C)``, or forward for ``batch_size`` new ones of T steps."""
        with self.plate(x, batch_size, arguments) as rows:
            own = {name: value for name, value in arguments.items() if name != "lengths"}
            seen = mask if x is None else _both(mask, self.observed_entries(x, **arguments))
            states = [pyro.sample("z_1", self.prior())]
            for t in range(2, self.num_steps + 1):
                states.append(pyro.sample(f"z_{t}", self.transition(states[-1])))
            z = torch.stack(states, -2)
            steps = self.decoder(z, x, seen, **by_step(own, len(rows), self.num_steps))
            return pyro.sample("x", steps.to_event(1), obs=x)


class SequenceGuide(InferenceProgram):
    """The inference program: reads rows backwards, then draws states forwards."""

    encoder: BackwardEncoder

    def __init__(self, encoder: BackwardEncoder, model: SequenceModel) -> None:
        super().__init__(encoder)
        self._model = [model]  # in a list, as its parameters are the model's

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments: ``mask``, ``lengths``, and those of the encoding."""
        return (*super().arguments, "lengths")

    def forward(self, x: Tensor, *, mask: Tensor | None = None, lengths: Any = None, **arguments: Any) -> None:
        """Runs the program on rows ``(N, T, *C)``."""
        (model,) = self._model
        with self.plate(x, arguments):
            seen = _both(mask, model.observed_entries(x, lengths=lengths))
            states, known = self.encoder.read(
                x, torch.ones_like(x, dtype=torch.bool) if seen is None else seen, **arguments
            )
            before, ahead = self.encoder.start, model.prior()
            for t, (h, is_known) in enumerate(zip(states, known, strict=True), 1):
                loc, scale = self.encoder(before, h)
                # With no data to come, the state follows the model.
                free = ahead.base_dist
                loc, scale = torch.where(is_known, loc, free.loc), torch.where(is_known, scale, free.scale)
                before = pyro.sample(f"z_{t}", dist.Normal(loc, scale).to_event(1))
                ahead = model.transition(before)


def _both(mask: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if mask is None else mask if other is None else mask & other


class DeepMarkovModel(Premade):
    r"""A deep Markov model for rows ``(T, C)`` of any length up to T.

    Its latents are ``z_1`` to ``z_T``, one state for each step. Rows of several lengths are padded with any values and
    come with their ``lengths``: ``fit(model, {"x": x, "lengths": lengths})``. Or, with ``missing="nan"``, they have NaN
    after their end. In ``posterior_predictive`` the steps after the end are draws from the model: forecasts. ``impute``
    draws them, and gaps within a row, given the observed entries; its draws converge to the model's own conditional as
    ``num_particles`` grows.

    Args:
        prior: :math:`p(z_1)`, a normal with independent latents.
        transition_network: Maps states ``(N, L)`` to ``(N, 2, L)``: location and raw scale of the next state.
        decoder: :math:`z_t \mapsto p(x_t \mid z_t)`, for one step.
        encoder: Reads rows backwards.
        num_steps: The maximum number of steps T.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the parts do not match, or the transform does not yield what the likelihood describes.
    """

    model: SequenceModel
    guide: SequenceGuide

    def __init__(
        self,
        prior: Prior,
        transition_network: nn.Module,
        decoder: Decoder,
        encoder: BackwardEncoder,
        num_steps: int,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        if prior.latent_dim != encoder.latent_dim:
            raise ValueError(f"the prior has {prior.latent_dim} latents and the encoder {encoder.latent_dim}")
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, found {num_steps}")
        if not isinstance(prior, StandardNormal):
            raise ValueError(
                f"the prior is that of the first state only and must be a StandardNormal: found {type(prior).__name__}"
            )
        model = SequenceModel(prior, Transition(transition_network, prior.latent_dim), decoder, num_steps)
        super().__init__(
            model,
            SequenceGuide(encoder, model),
            transform,
            missing,
        )
        self.num_steps = num_steps

    @property
    def prior(self) -> Prior:
        """The prior of the first state."""
        return self.model.prior

    @property
    def transition_network(self) -> nn.Module:
        """The network from one state to the next."""
        return self.model.transition.network

    @property
    def decoder(self) -> Decoder:
        """The decoder of one step: ``decoder(z)`` is p(x_t | z_t)."""
        return self.model.decoder

    @property
    def encoder(self) -> BackwardEncoder:
        """The encoder, which reads rows backwards."""
        return self.guide.encoder

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks that the user can choose, each with the shape of one row of its input."""
        state = (self.prior.latent_dim,)
        return {"transition": (self.transition_network, state), "decoder": (self.decoder.network, state)}


def deep_markov_model(
    event_shape: Sequence[int],
    latent_dim: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (64,),
    activation: str = "ReLU",
    recurrent_dim: int = 64,
    transition_network: Network | None = None,
    decoder_network: Network | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> DeepMarkovModel:
    """A :class:`DeepMarkovModel` with a gated transition and a fully connected decoder, unless others are given.

    Args:
        event_shape: ``(T, *C)``: the maximum number of steps, and the shape of one step, such as ``(50, 2)``.
        latent_dim: Number of latents in a state.
        likelihood: Distribution of a step given its state.
        hidden_dims: Widths of the decoder's hidden layers.
        activation: Name of a ``torch.nn`` activation.
        recurrent_dim: Width of the network that reads rows backwards, and of the transition network.
        transition_network: Replaces the gated one, see :func:`~pyro_vae.make_vae`. Maps states ``(N, L)`` to ``(N, 2,
            L)``.
        decoder_network: Likewise. Maps states ``(N, L)`` to one step's raw outputs.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Raises:
        ValueError: if rows have no steps, or the parts do not match.

    Example:
        >>> from pyro_vae.likelihoods import Normal
        >>> model = deep_markov_model((6, 2), latent_dim=3, likelihood=Normal())
        >>> model.sample(4).shape
        torch.Size([4, 6, 2])
        >>> model.posterior_predictive({"x": torch.zeros(4, 6, 2), "lengths": torch.tensor([6, 3, 1, 2])}).shape
        torch.Size([1, 4, 6, 2])
    """
    if not event_shape:
        raise ValueError("rows of a sequence have shape (T, ...), with T the number of steps: found ()")
    num_steps, *rest = event_shape
    step_shape, z_shape = tuple(rest), (latent_dim,)
    encoding = WithMask(likelihood.encoding(step_shape), step_shape)
    transition = make_network(
        transition_network or (lambda i, o: GatedTransition(i, o, recurrent_dim)),
        z_shape,
        (2, latent_dim),
        "transition_network",
    )
    decoder = make_network(
        decoder_network or fully_connected(hidden_dims, activation),
        z_shape,
        likelihood.raw_shape(step_shape),
        "decoder_network",
    )
    return DeepMarkovModel(
        StandardNormal(latent_dim),
        transition,
        Decoder(decoder, likelihood, step_shape),
        BackwardEncoder(encoding, step_shape, latent_dim, recurrent_dim),
        num_steps,
        transform,
        missing,
    )
