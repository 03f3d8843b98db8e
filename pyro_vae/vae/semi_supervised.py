r"""A semi-supervised VAE: each row has a class y, which is known for few rows.

.. math::
    y &\sim \mathrm{Categorical}(\pi) && \text{observed where a row has a label} \\
    z &\sim p(z) \\
    x &\sim p(x \mid z, y)

The guide is :math:`q(y \mid x)\,q(z \mid x, y)`. For a row without a label, the bound is an exact mean over y,

.. math:: \sum_y q(y \mid x)\, \mathbb{E}_{q(z \mid x, y)} \left[\log \frac{\pi_y\, p(z)\, p(x \mid z, y)}
    {q(y \mid x)\, q(z \mid x, y)}\right]

For a row with a label, it is the term of that y, without :math:`q(y \mid x)`. There :math:`\alpha \log q(y \mid x)` is
added to the objective, and so the classifier learns from labels too.

Source: Kingma, Rezende, Mohamed & Welling, *Semi-supervised Learning with Deep Generative Models*, 2014 (model M2).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vae.covariates import check_labels
from pyro_vae.data.rows import Inputs
from pyro_vae.encodings import Beside, beside
from pyro_vae.likelihoods import Likelihood
from pyro_vae.posteriors import DiagonalNormal, Posterior
from pyro_vae.priors import ClassPrior, Prior, StandardNormal
from pyro_vae.programs.arguments import arguments_for
from pyro_vae.programs.latent import GenerativeProgram, InferenceProgram
from pyro_vae.programs.parts import Classifier, Decoder, Encoder
from pyro_vae.programs.running import evaluating
from pyro_vae.vae.builders import Network, encoding_of, fully_connected, make_network
from pyro_vae.vae.premade import GivenTransform, Premade, check_parts

__all__ = ["SemiSupervisedVAE", "semi_supervised_vae"]

_OUT_OF_THE_QUESTION = -1e4  # a logit of probability 0, also in float64, whose product with 0 is 0


class SemiSupervisedModel(GenerativeProgram):
    """The generative program; the decoder takes latents and the class, one-hot, as one vector."""

    def __init__(self, prior: Prior, class_prior: ClassPrior, decoder: Decoder) -> None:
        super().__init__(decoder)
        self.prior, self.class_prior = prior, class_prior

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, ``labels``, and those of the likelihood."""
        return (*super().arguments, "labels")

    def check_arguments(self, *, labels: Any = None, **arguments: Any) -> None:
        """Checks the labels as well as what every model checks."""
        super().check_arguments(**arguments)
        if labels is not None:
            values = torch.as_tensor(labels)
            if values.dim() > 1:
                raise ValueError(f"labels has shape {tuple(values.shape)}, expected (N,)")
            check_labels(values, self.class_prior.num_classes, "labels", unknown=True)

    def forward(
        self,
        x: Tensor | None = None,
        *,
        batch_size: int | None = None,
        mask: Tensor | None = None,
        labels: Tensor | int | None = None,
        **arguments: Any,
    ) -> Tensor:
        """Runs the program on rows ``x``, or forward for ``batch_size`` new rows; a label of -1 is unknown."""
        p_y = self.class_prior()
        with self.plate(x, batch_size, arguments) as rows:
            if labels is not None:
                labels = _by_row(labels, rows)
                _observe(p_y, labels)
                p_y = _told(p_y, labels)
            y = pyro.sample("y", p_y)
            if x is None and labels is None:  # a drawn row has its class as its label
                pyro.sample("labels", _told(p_y, y))
            z = pyro.sample("z", self.prior())
            code = beside(z, _one_hot(y, self.class_prior.num_classes))
            return pyro.sample("x", self.decoder(code, x, mask, **arguments), obs=x)


class SemiSupervisedGuide(InferenceProgram):
    """The inference program; the encoder takes the class, one-hot, along with the row."""

    def __init__(self, encoder: Encoder, classifier: Classifier, label_weight: float) -> None:
        super().__init__(encoder)
        self.classifier, self.label_weight = classifier, label_weight

    @property
    def arguments(self) -> tuple[str, ...]:
        """The keyword arguments that the program takes: ``mask``, ``labels``, and those of the encodings."""
        shown = (name for name in super().arguments if name != "y")
        return tuple(dict.fromkeys((*shown, *self.classifier.arguments, "labels")))

    def forward(
        self, x: Tensor, *, mask: Tensor | None = None, labels: Tensor | int | None = None, **arguments: Any
    ) -> Tensor:
        """Runs the program on rows ``x``; a label of -1 is unknown."""
        with self.plate(x, arguments) as rows:
            q_y = self.classifier(x, mask, **arguments_for(self.classifier, arguments))
            if labels is not None:
                labels = _by_row(labels, rows)
                if self.label_weight:
                    with poutine.scale(scale=self.label_weight):
                        _observe(q_y, labels, infer={"is_auxiliary": True})
                q_y = _told(q_y, labels)
            y = pyro.sample("y", q_y, infer={"enumerate": "parallel"})
            shown = {**arguments_for(self.encoder, arguments), "y": _one_hot(y, self.classifier.num_classes).to(x)}
            return pyro.sample("z", self.encoder(x, mask, **shown), infer=self.encoder.posterior.infer)


def _by_row(labels: Tensor | int, rows: Tensor) -> Tensor:
    """A label for each row, -1 if it is unknown."""
    if not isinstance(labels, Tensor):
        return torch.full_like(rows, labels)
    return labels.long().expand(rows.shape)


def _observe(fn: dist.Categorical, labels: Any, infer: Any = None) -> None:
    """Observes the labels that are known."""
    with poutine.mask(mask=labels >= 0):
        pyro.sample("labels", fn, obs=labels.clamp(min=0), infer=infer)


def _told(fn: dist.Categorical, labels: Tensor) -> dist.Categorical:
    """The distribution of the class given the labels: certain for known labels, unchanged for others."""
    certain = torch.where(_one_hot(labels, fn.logits.shape[-1]), 0.0, _OUT_OF_THE_QUESTION)
    return dist.Categorical(logits=torch.where((labels >= 0)[..., None], certain.to(fn.logits), fn.logits))


def _one_hot(y: Tensor, num_classes: int) -> Tensor:
    return y[..., None] == torch.arange(num_classes, device=y.device)


class SemiSupervisedVAE(Premade):
    r"""Semi-supervised VAE: :math:`p(y)\,p(z)\,p(x \mid z, y)` with the guide :math:`q(y \mid x)\,q(z \mid x, y)`.

    Rows come with ``labels``, whole numbers ``(N,)``, -1 for a row without one: ``fit(vae, {"x": x, "labels":
    labels})``. Without the argument, no row has a label. ``vae.sample(16, given={"labels": 7})`` draws rows of a class.

    The ELBO and the evidence of a row include its label, if it has one. So the softmax of ``log_evidence(vae, {"x": x,
    "labels": k})`` over the classes k is the model's own :math:`p(y \mid x)`. :meth:`predict_label` returns the
    classifier's approximation to it.

    Args:
        prior: :math:`p(z)`.
        class_prior: :math:`p(y)`.
        decoder: :math:`(z, y) \mapsto p(x \mid z, y)`, which takes both as one vector, y one-hot.
        encoder: :math:`x, y \mapsto q(z \mid x, y)`, whose encoding takes ``y``, one-hot.
        classifier: :math:`x \mapsto q(y \mid x)`.
        label_weight: The weight α of :math:`\log q(y \mid x)` for a row with a label; Kingma et al. use a tenth of the
            number of rows per label. It is a separate loss: the guide observes the labels. Pyro's own objectives, where
            they run unchanged, take it with the wrong sign: hide the guide's site ``"labels"`` from them.
        transform: Maps the user's units to the model's; by default the data are in the model's units.
        missing: ``"nan"`` if NaN in the data is a missing entry; by default it is an error.

    Raises:
        ValueError: if the transform does not yield what the likelihood describes, the parts do not match, or a number
            is out of its range.
    """

    model: SemiSupervisedModel
    guide: SemiSupervisedGuide

    def __init__(
        self,
        prior: Prior,
        class_prior: ClassPrior,
        decoder: Decoder,
        encoder: Encoder,
        classifier: Classifier,
        label_weight: float = 1.0,
        transform: GivenTransform = None,
        missing: Literal["nan"] | None = None,
    ) -> None:
        check_parts(prior.latent_dim, decoder, encoder)
        if not 0 <= label_weight < math.inf:
            raise ValueError(f"label_weight must be a finite number from 0, found {label_weight}")
        if class_prior.num_classes != classifier.num_classes:
            raise ValueError(
                f"p(y) has {class_prior.num_classes} classes and the classifier has {classifier.num_classes}"
            )
        if any(getattr(part, "scale", None) == "optimal" for part in decoder.likelihood.modules()):
            raise ValueError(
                "scale='optimal' is computed from residuals, which here depend on the class tried for a row: use "
                "scale='shared'"
            )
        super().__init__(
            SemiSupervisedModel(prior, class_prior, decoder),
            SemiSupervisedGuide(encoder, classifier, label_weight),
            transform,
            missing,
        )
        prior.join(encoder, decoder)

    @property
    def class_prior(self) -> ClassPrior:
        """The classes' probabilities: ``class_prior()`` is p(y)."""
        return self.model.class_prior

    @property
    def decoder(self) -> Decoder:
        """The decoder: ``decoder(beside(z, y))`` is p(x | z, y), for y one-hot."""
        return self.model.decoder

    @property
    def encoder(self) -> Encoder:
        """The encoder: ``encoder(x, y=y)`` is q(z | x, y), for y one-hot and ``x`` in the model's units."""
        return self.guide.encoder

    @property
    def classifier(self) -> Classifier:
        """The classifier: ``classifier(x)`` is q(y | x), for ``x`` in the model's units."""
        return self.guide.classifier

    @property
    def label_weight(self) -> float:
        """The weight of log q(y | x) for a row with a label."""
        return self.guide.label_weight

    def predict_label(self, x: Inputs) -> Tensor:
        r"""The probability of each class, :math:`q(y \mid x)`: ``(N, num_classes)``. Labels given are ignored.

        Args:
            x: Rows.
        """
        found = []
        with evaluating(self.guide):
            for batch in self.batches(x):
                arguments = arguments_for(self.classifier, batch.arguments)
                found.append(self.classifier(batch.x, batch.mask, **arguments).probs)
        return torch.cat(found)

    def networks(self) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
        """The networks, each with the shape of one row of its input."""
        shown, size = self.classifier.encoding.shape(self.decoder.event_shape), self.class_prior.num_classes
        return super().networks() | {
            "decoder": (self.decoder.network, (self.encoder.latent_dim + size,)),
            "classifier": (self.classifier.network, shown),
        }


def semi_supervised_vae(
    event_shape: Sequence[int],
    latent_dim: int,
    num_classes: int,
    *,
    likelihood: Likelihood,
    label_weight: float = 1.0,
    hidden_dims: Sequence[int] = (400,),
    activation: str = "ReLU",
    encoder_network: Network | None = None,
    decoder_network: Network | None = None,
    classifier_network: Network | None = None,
    prior: Prior | None = None,
    posterior: Posterior | None = None,
    transform: GivenTransform = None,
    missing: Literal["nan"] | None = None,
) -> SemiSupervisedVAE:
    r"""A :class:`SemiSupervisedVAE` for rows of any shape, with fully connected networks unless others are given.

    Args:
        event_shape: Shape of one row of data.
        latent_dim: Number of latents.
        num_classes: Number of classes.
        likelihood: Distribution of a row given latents and class.
        label_weight: The weight α of :math:`\log q(y \mid x)` for a row with a label.
        hidden_dims: Widths of the encoder's and the classifier's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        encoder_network: Replaces the fully connected one, see :func:`~pyro_vae.make_vae`. It takes the row and the
            class, one-hot, as one vector; with images, each entry of the one-hot class is a plane.
        decoder_network: Likewise; it maps latents and the class, as one vector, to raw outputs.
        classifier_network: Likewise; it maps rows to ``num_classes`` logits.
        prior: By default :class:`~pyro_vae.priors.StandardNormal`.
        posterior: By default :class:`~pyro_vae.posteriors.DiagonalNormal`.
        transform: Maps the user's units to the model's. With ``"auto"``, :func:`~pyro_vae.fit` chooses one.
        missing: ``"nan"`` if NaN in the data is a missing entry.

    Example:
        >>> from pyro_vae.likelihoods import Bernoulli
        >>> vae = semi_supervised_vae((8, 8), latent_dim=5, num_classes=10, likelihood=Bernoulli())
        >>> vae.sample(16, given={"labels": 7}).shape, vae.predict_label(torch.zeros(3, 8, 8)).shape
        (torch.Size([16, 8, 8]), torch.Size([3, 10]))
    """
    event_shape, hidden_dims, z_shape = tuple(event_shape), tuple(hidden_dims), (latent_dim,)
    posterior = DiagonalNormal() if posterior is None else posterior
    class_prior = ClassPrior(num_classes)

    mlp, mirrored = (fully_connected(dims, activation) for dims in (hidden_dims, hidden_dims[::-1]))
    shown, beside_class = (encoding_of(likelihood, event_shape, missing) for _ in range(2))
    planes = encoder_network is not None and len(event_shape) > 1
    with_class = Beside(beside_class, event_shape, "y", num_classes, planes=planes)
    encoder = make_network(
        encoder_network or mlp, with_class.shape(event_shape), posterior.raw_shape(z_shape), "encoder_network"
    )
    decoder = make_network(
        decoder_network or mirrored, (latent_dim + num_classes,), likelihood.raw_shape(event_shape), "decoder_network"
    )
    classifier = make_network(classifier_network or mlp, shown.shape(event_shape), (num_classes,), "classifier_network")
    return SemiSupervisedVAE(
        StandardNormal(latent_dim) if prior is None else prior,
        class_prior,
        Decoder(decoder, likelihood, event_shape),
        Encoder(encoder, posterior, latent_dim, with_class, event_shape),
        Classifier(classifier, num_classes, event_shape, shown),
        label_weight,
        transform,
        missing,
    )
