r"""Categories as latents: a row is described by a few codes.

.. math:: z_1, \ldots, z_M \sim p(z), \qquad x \mid z \sim p(x \mid z), \qquad z_m \in \{1, \ldots, K\}

with the guide :math:`q(z \mid x) = \prod_m q(z_m \mid x)`. The prior is learned: by default each code depends on those
before it. It is a VAE like any other, with the posterior :class:`~pyro_vae.posteriors.Codes` and a prior over codes.

Source: Jang et al., *Categorical Reparameterization with Gumbel-Softmax*, 2017; Maddison et al., *The Concrete
Distribution*, 2017.
"""

from collections.abc import Sequence
from typing import Literal

from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Codes
from pyro_vae.priors import AutoregressiveCodes, Prior
from pyro_vae.vae.builders import Network, fully_connected, make_vae
from pyro_vae.vae.model import VAE
from pyro_vae.vae.premade import GivenTransform

__all__ = ["categorical_vae"]


def categorical_vae(
    event_shape: Sequence[int],
    num_codes: int = 20,
    num_values: int = 10,
    *,
    likelihood: Likelihood,
    estimator: Literal["relaxed", "straight-through", "enumerated", "score-function"] = "relaxed",
    temperature: float = 2 / 3,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    prior: Prior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> VAE:
    """A VAE whose latents are categories: M codes of K values, each a one-hot block of the latent vector.

    Args:
        event_shape: Shape of one row of data.
        num_codes: Number of codes M for each row.
        num_values: Number of values K of each code.
        likelihood: Distribution of a row given the latents.
        estimator: How the encoder learns, see :class:`~pyro_vae.posteriors.Codes`.
        temperature: Likewise.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`.
        decoder_network: Likewise.
        prior: By default :class:`~pyro_vae.priors.AutoregressiveCodes`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = categorical_vae((28, 28), num_codes=10, num_values=8, likelihood=Bernoulli())
        >>> vae.sample(3).shape, vae.latent_dim
        (torch.Size([3, 28, 28]), 80)
    """
    hidden_dims = tuple(hidden_dims)
    return make_vae(
        event_shape,
        num_codes * num_values,
        likelihood=likelihood,
        encoder_network=encoder_network or fully_connected(hidden_dims, activation),
        decoder_network=decoder_network or fully_connected(hidden_dims[::-1], activation),
        prior=AutoregressiveCodes(num_codes, num_values) if prior is None else prior,
        posterior=Codes(num_values, estimator, temperature),
        transform=transform,
        missing=missing,
    )
