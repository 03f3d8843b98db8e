r"""A VAE that finds clusters: each row belongs to one of K clusters, and no row has a label.

.. math::
    y &\sim \mathrm{Categorical}(\pi) \\
    z &\sim \mathcal{N}(\mu_y, \operatorname{diag}(\sigma_y^2)) \\
    x &\sim p(x \mid z)

The weights, means and standard deviations are learned. The guide is :math:`q(z \mid x)`; given z, the cluster is summed
out. This equals the ELBO with the best possible :math:`q(y \mid x, z)`, which is :math:`p(y \mid z)`.

Source: Jiang, Zheng, Tan, Tang & Zhou, *Variational Deep Embedding*, 2017 (VaDE), whose guide has :math:`q(y \mid x)`
instead of :math:`p(y \mid z)`, and so a lower bound.
"""

from collections.abc import Sequence
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.nn import functional as F

from pyro_vae.data.rows import Inputs
from pyro_vae.inference.predictive import centre
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import Posterior
from pyro_vae.priors import NormalMixture
from pyro_vae.programs.latent import GenerativeProgram, Guide
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.vae.builders import Network, fully_connected, make_vae
from pyro_vae.vae.premade import GivenTransform, Premade, check_parts

__all__ = ["ClusterVAE", "cluster_vae"]


class ClusterModel(GenerativeProgram):
    """The generative program, in which the cluster is enumerated."""

    def __init__(self, prior: NormalMixture, decoder: Decoder) -> None:
        super().__init__(decoder)
        self.prior = prior

    def forward(
        self, x: Tensor | None = None, *, batch_size: int | None = None, mask: Tensor | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x``, or forward for ``batch_size`` new rows."""
        with self.plate(x, batch_size, arguments):
            y = pyro.sample("y", self.prior.weights(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior.components(y))
            return pyro.sample("x", self.decoder(z, x, mask, **arguments), obs=x)


class ClusterVAE(Premade):
    r"""VAE with clusters: :math:`p(y)\,p(z \mid y)\,p(x \mid z)` with the guide :math:`q(z \mid x)`, y summed out.

    The order of the clusters has no meaning and may differ from seed to seed. Clusters are found best if training
    starts from codes that already form groups, as in VaDE: train the same parts with a standard normal prior, place the
    clusters with :meth:`start_at`, and train again:

    .. code-block:: python

        fit(VAE(StandardNormal(vae.prior.latent_dim), vae.decoder, vae.encoder, vae.transform), x)
        vae.start_at(x)
        fit(vae, x)

    Args:
        prior: :math:`p(y)` and :math:`p(z \mid y)`: the mixture's weights and components.
        decoder: :math:`z \mapsto p(x \mid z)`.
        encoder: :math:`x \mapsto q(z \mid x)`.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, or the parts do not match.
    """

    model: ClusterModel
    guide: Guide

    def __init__(
        self,
        prior: NormalMixture,
        decoder: Decoder,
        encoder: Encoder,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        check_parts(prior.latent_dim, decoder, encoder)
        encoder.posterior.join(prior, decoder)
        super().__init__(
            ClusterModel(prior, decoder),
            Guide(encoder),
            transform,
            missing,
        )

    @property
    def prior(self) -> NormalMixture:
        """The mixture: ``prior.weights()`` is p(y), ``prior.components(y)`` is p(z | y), ``prior()`` is p(z)."""
        return self.model.prior

    def predict_cluster(self, x: Inputs) -> Tensor:
        r"""The probability of each cluster, :math:`\mathbb{E}_{q(z \mid x)}[p(y \mid z)]`: ``(N, K)``.

        The mean is over the same draws of z in each call.

        Args:
            x: Rows.
        """
        return torch.cat([self.encode(chunk, site="y").probs for chunk in self._chunks(x)])  # pyright: ignore

    def start_at(self, x: Inputs, *, seed: int = 0) -> None:
        r"""Starts the clusters where k-means finds them among the codes of these rows.

        Codes are the means of :math:`q(z \mid x)`. A cluster starts with the variance of its codes plus the mean
        variance of the posterior, and with its share of the rows as its weight.

        Args:
            x: Rows, at least as many as there are clusters.
            seed: Seeds the draws and the starts of k-means.

        Raises:
            ValueError: if there are fewer rows than clusters.
        """
        from sklearn.cluster import KMeans

        codes, draws = [], []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for chunk in self._chunks(x):
                q_z = self.encode(chunk, site="z")
                codes.append(centre(q_z))
                draws.append(q_z(torch.Size()))
        means, num = torch.cat(codes).double().cpu(), self.prior.num_components
        if len(means) < num:
            raise ValueError(f"{num} clusters need at least as many rows, found {len(means)}: give more rows")
        starts: Any = {"n_init": 10, "random_state": seed}
        index = torch.as_tensor(KMeans(num, **starts).fit_predict(means.numpy())).long()
        members = F.one_hot(index, num).double()  # (N, K)
        counts = members.sum(0).clamp(min=1)  # with few, equal rows a cluster may be empty
        locs = members.T @ means / counts[:, None]
        within = members.T @ (means - locs[index]).square() / counts[:, None]
        left_open = (torch.cat(draws).double().cpu() - means).square().mean(0)
        self.encoder.posterior.join(self.prior, self.decoder)  # a plain VAE has joined it to its own prior
        self.prior.start_at(locs, (within + left_open).sqrt(), counts / counts.sum())

    def _chunks(self, x: Inputs) -> Any:
        return self.check(x).chunks(1024)


def cluster_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    num_clusters: int,
    *,
    likelihood: Likelihood,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> ClusterVAE:
    """A :class:`ClusterVAE` for rows of any shape, with fully connected networks unless others are given.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        num_clusters: Number of clusters.
        likelihood: Distribution of a row given the latents.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`.
        decoder_network: Likewise.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Raises:
        ValueError: if there are fewer than two clusters.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = cluster_vae((8, 8), latent_dim=5, num_clusters=10, likelihood=Bernoulli())
        >>> vae.predict_cluster(torch.zeros(3, 8, 8)).shape, vae.sample(4).shape
        (torch.Size([3, 10]), torch.Size([4, 8, 8]))
    """
    if num_clusters < 2:
        raise ValueError(f"num_clusters must be at least 2, found {num_clusters}")
    plain = make_vae(
        event_shape,
        latent_dim,
        likelihood=likelihood,
        encoder_network=encoder_network or fully_connected(hidden_dims, activation),
        decoder_network=decoder_network or fully_connected(hidden_dims[::-1], activation),
        posterior=posterior,
        transform=transform,
        missing=missing,
    )
    prior = NormalMixture(latent_dim, num_clusters)
    return ClusterVAE(prior, plain.decoder, plain.encoder, plain.transform, missing)
