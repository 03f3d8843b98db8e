r"""A topic model: what documents are about, from counts of their words.

.. math::
    z_n &\sim \mathcal{N}(0, \sigma^2 I), \quad \theta_n = \mathrm{softmax}(z_n) && \text{shares of K topics,
        approximately Dirichlet} \\
    x_n &\sim \mathrm{Multinomial}\left(\textstyle\sum_v x_{nv},\ \mathrm{softmax}(B^\top \theta_n + b)\right)
        && \text{words, given their number}

This is ProdLDA: a product of the topics' distributions over words, where latent Dirichlet allocation has a mixture.
Another likelihood for counts may replace the multinomial, with the document's length as its ``size_factor``.

Source: Srivastava & Sutton, *Autoencoding Variational Inference for Topic Models*, 2017; Blei, Ng & Jordan, *Latent
Dirichlet Allocation*, 2003.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pyro_vae._support.ranges import constraints
from pyro_vae.data.rows import Inputs
from pyro_vae.likelihoods import Likelihood, Multinomial
from pyro_vae.networks import TopicDecoder
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import Prior, SoftmaxDirichlet
from pyro_vae.programs.latent import Guide, Model
from pyro_vae.programs.parts import Decoder, Encoder
from pyro_vae.programs.running import evaluating
from pyro_vae.vae.builders import Network, encoding_of, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade

__all__ = ["TopicModel", "topic_model"]


class TopicModel(Premade):
    r"""A topic model, for counts of words: :math:`p(z)\,p(x \mid \mathrm{softmax}(z))` and :math:`q(z \mid x)`.

    Args:
        prior: :math:`p(z)`, with a latent for each topic.
        decoder: Its network is a :class:`~pyro_vae.networks.TopicDecoder`.
        encoder: :math:`x \mapsto q(z \mid x)`.
        vocabulary: The words, in the order of the columns; by default the numbers of the columns.
        transform: Maps the rows to counts; by default they are counts.
        missing: ``"nan"`` if NaN is a missing count; needs a likelihood that treats counts one by one.

    Raises:
        ValueError: if the likelihood is not one for counts, or there is not one word for each column.
    """

    model: Model
    guide: Guide

    def __init__(
        self,
        prior: Prior,
        decoder: Decoder,
        encoder: Encoder,
        vocabulary: Sequence[str] | None = None,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        likelihood = type(decoder.likelihood).__name__
        if decoder.likelihood.data_range is not constraints.nonnegative_integer:
            raise ValueError(f"a topic model needs a likelihood for counts, such as Multinomial, found {likelihood}")
        network = decoder.network
        if not isinstance(network, TopicDecoder):
            raise ValueError(f"the decoder's network must be a TopicDecoder, found {type(network).__name__}")
        if vocabulary is not None and (len(vocabulary),) != decoder.event_shape:
            raise ValueError(f"the vocabulary has {len(vocabulary)} words and the rows {decoder.event_shape[0]} counts")
        super().__init__(
            Model(prior, decoder),
            Guide(encoder),
            transform,
            missing,
        )
        prior.join(encoder, decoder)
        self.vocabulary = None if vocabulary is None else tuple(map(str, vocabulary))

    def word_probabilities(self) -> Tensor:
        """The probability of each word in a document with a single topic: ``(K, V)``, each row with the sum 1."""
        network: TopicDecoder = self.decoder.network  # pyright: ignore[reportAssignmentType]
        alone = torch.eye(self.prior.latent_dim, dtype=self.dtype, device=self.device)
        with evaluating(self.model):
            mean = self.decoder.likelihood(network.of_shares(alone)).mean
        return mean / mean.sum(-1, keepdim=True)

    def topics(self, num_words: int = 10) -> list[list[str]]:
        """The most probable words of each topic, in descending order.

        Raises:
            ValueError: if there are not that many words.
        """
        probabilities = self.word_probabilities()
        if not 1 <= num_words <= probabilities.shape[1]:
            raise ValueError(f"num_words must be from 1 to {probabilities.shape[1]}, found {num_words}")
        words = self.vocabulary or tuple(map(str, range(probabilities.shape[1])))
        return [[words[i] for i in best] for best in probabilities.topk(num_words).indices.tolist()]

    def shares(self, x: Inputs) -> Tensor:
        """The shares of the topics in each document, at the mean of its posterior: ``(N, K)``."""
        return self.encode(x).mean.softmax(-1)


def topic_model(
    vocabulary: int | Sequence[str],
    num_topics: int,
    *,
    likelihood: Likelihood | None = None,
    concentration: float = 1.0,
    hidden_dims: Sequence[int] = (100, 100),
    activation: str = "Softplus",
    encoder_network: Network | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    missing: Literal["nan"] | None = None,
) -> TopicModel:
    """A :class:`TopicModel` with a fully connected encoder, unless another is given.

    Rows are counts of words, ``(N, V)``; the likelihood takes their sum as given. New documents are drawn with
    ``sample(n, given={"total_count": length})``.

    Args:
        vocabulary: The words, or their number.
        num_topics: Number of topics K.
        likelihood: By default :class:`~pyro_vae.likelihoods.Multinomial`; another one for counts takes the documents'
            lengths as ``size_factor``.
        concentration: Of the Dirichlet that the prior approximates. The smaller it is, the fewer topics a document has.
        hidden_dims: Widths of the encoder's hidden layers.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`.
        prior: By default :class:`~pyro_vae.priors.SoftmaxDirichlet`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        missing: ``"nan"`` if NaN is a missing count.

    Raises:
        ValueError: if the parts do not match; the message gives the reason.

    Example:
        >>> model = topic_model(["ball", "goal", "vote", "law"], num_topics=2)
        >>> model.sample(3, given={"total_count": 50}).sum(-1)
        tensor([50., 50., 50.])
        >>> [len(words) for words in model.topics(3)]
        [3, 3]
    """
    words = None if isinstance(vocabulary, int) else tuple(vocabulary)
    event_shape, z_shape = (vocabulary if isinstance(vocabulary, int) else len(vocabulary),), (num_topics,)
    likelihood = Multinomial() if likelihood is None else likelihood
    posterior = DiagonalNormal() if posterior is None else posterior
    encoding = encoding_of(likelihood, event_shape, missing)
    encoder = make_network(
        encoder_network or fully_connected(hidden_dims, activation),
        encoding.shape(event_shape),
        posterior.raw_shape(z_shape),
        "encoder_network",
    )
    return TopicModel(
        SoftmaxDirichlet(num_topics, concentration) if prior is None else prior,
        Decoder(TopicDecoder(z_shape, likelihood.raw_shape(event_shape)), likelihood, event_shape),
        Encoder(encoder, posterior, num_topics, encoding, event_shape),
        words,
        missing=missing,
    )
