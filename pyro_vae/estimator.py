"""A VAE as a scikit-learn estimator, for pipelines and hyperparameter searches."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from pyro_vae.inference.batch import rows_that_fit
from pyro_vae.likelihoods import Likelihood, Normal
from pyro_vae.programs.running import forked_random_state
from pyro_vae.training import fit
from pyro_vae.transforms import choose_transform
from pyro_vae.vae import VAE, mlp_vae

__all__ = ["VAETransformer"]

_STEPS = 3000  # of training by default
_LARGEST_SEED = np.iinfo(np.int32).max


class VAETransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    r"""A variational autoencoder for rows of numbers, with scikit-learn's interface.

    ``transform`` gives the mean of :math:`q(z \mid x)`, ``inverse_transform`` :math:`E[x \mid z]`, ``score_samples``
    the log evidence of each row, and ``score`` its mean, which ``GridSearchCV`` maximises. The networks are fully
    connected. Arithmetic is in float64. The fitted ``vae_`` works with everything else in this library.

    Args:
        n_components: Number of latents.
        likelihood: By default :class:`~pyro_vae.likelihoods.Normal`. Each column is brought into its range as
            :func:`~pyro_vae.fit` does with ``transform="auto"``.
        hidden_dims: Widths of the encoder's hidden layers; the decoder has them in reverse.
        activation: Name of a ``torch.nn`` activation.
        epochs: Passes over the data; by default as many as make 3,000 steps, at most 1,000.
        batch_size: Rows per step, or all if there are fewer.
        learning_rate: Adam's initial learning rate; it decays along a cosine.
        missing: ``"nan"`` if NaN is a missing entry; by default it is an error.
        n_particles: Draws for the evidence of a row. All rows share the same noise, so a row's score does not depend on
            the others.
        random_state: Seeds weights, the order of rows and noise; None takes a different seed each time.

    Attributes:
        vae_: The trained :class:`~pyro_vae.VAE`.
        history_: The history that :func:`~pyro_vae.fit` returned.
        n_features_in_: Number of columns.
        feature_names_in_: Names of the columns, if the input had them.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> x = load_iris().data
        >>> pipeline = make_pipeline(StandardScaler(), VAETransformer(2, epochs=3, random_state=0))
        >>> pipeline.fit_transform(x).shape, pipeline.score_samples(x).shape
        ((150, 2), (150,))

    Source: Pedregosa et al., *Scikit-learn: Machine Learning in Python*, 2011, whose ``check_estimator`` it passes.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        likelihood: Likelihood | None = None,
        hidden_dims: Sequence[int] = (128,),
        activation: str = "ReLU",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float = 1e-3,
        missing: Any = None,
        n_particles: int = 500,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.likelihood = likelihood
        self.hidden_dims = hidden_dims
        self.activation = activation
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.missing = missing
        self.n_particles = n_particles
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> "VAETransformer":
        """Trains on rows ``(N, D)``; ``y`` is ignored."""
        x = self._rows(X, reset=True)
        seed = check_random_state(self.random_state).randint(_LARGEST_SEED)
        batch_size = min(self.batch_size, len(x))
        epochs = min(1000, math.ceil(_STEPS / math.ceil(len(x) / batch_size))) if self.epochs is None else self.epochs
        likelihood = Normal() if self.likelihood is None else copy.deepcopy(self.likelihood)
        with forked_random_state(torch.device("cpu")):
            torch.manual_seed(seed)
            vae = mlp_vae(
                (x.shape[1],),
                self.n_components,
                likelihood=likelihood,
                hidden_dims=tuple(self.hidden_dims),
                activation=self.activation,
                transform=choose_transform(x, likelihood.data_range)[0],
                missing=self.missing,
            ).double()  # as scikit-learn computes, so that a row's numbers do not depend on its neighbours
            self.history_ = fit(
                vae,
                x,
                epochs=epochs,
                batch_size=batch_size,
                learning_rate=self.learning_rate,
                seed=seed,
                progress=False,
            )
        self.vae_: VAE = vae
        self._n_features_out = self.n_components
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The posterior mean of each row's latents, ``(N, n_components)``."""
        return self._fitted().encode(self._rows(X)).mean.numpy()

    def inverse_transform(self, X: Any) -> np.ndarray:
        """The mean of a row at latents ``(N, n_components)``: ``(N, D)``."""
        vae = self._fitted()
        z = np.asarray(X, dtype=np.float64)
        if z.ndim != 2 or z.shape[1] != vae.latent_dim:
            raise ValueError(f"latents must have shape (N, {vae.latent_dim}), found {z.shape}")
        return vae.mean_at(torch.as_tensor(z)).numpy()

    @torch.no_grad()
    def score_samples(self, X: Any) -> np.ndarray:
        r"""The log evidence of each row, ``(N,)``, in nats, for data in the user's units, by importance weighting.

        .. math:: \log p(x) \approx \log \frac{1}{K} \sum_k \frac{p(x, z_k)}{q(z_k \mid x)}, \quad
            z_k = \mu(x) + \sigma(x) \odot \epsilon_k
        """
        vae, found = self._fitted(), []
        with forked_random_state(torch.device("cpu")):
            torch.manual_seed(0)
            noise = torch.randn(self.n_particles, 1, vae.latent_dim, dtype=vae.dtype)
        rows = self._rows(X)
        for batch in vae.batches(rows, rows_that_fit(self.n_particles * rows.shape[1])):
            q = vae.encoder(batch.x, batch.mask)
            z = q.mean + q.stddev * noise
            log_joint = vae.prior().log_prob(z) + vae.decoder(z, batch.x, batch.mask).log_prob(batch.x)
            log_weights = log_joint - q.log_prob(z)
            found.append(log_weights.logsumexp(0) - math.log(self.n_particles) + batch.log_jacobian)
        return torch.cat(found).numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean log evidence of the rows, in nats; ``y`` is ignored."""
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """New rows, ``(n_samples, D)``."""
        vae = self._fitted()
        with forked_random_state(torch.device("cpu")):
            torch.manual_seed(check_random_state(random_state).randint(_LARGEST_SEED))
            return vae.sample(n_samples).numpy()

    def _fitted(self) -> VAE:
        check_is_fitted(self)
        return self.vae_

    def _rows(self, X: Any, *, reset: bool = False) -> Tensor:
        if not reset:
            check_is_fitted(self)
        gaps: Any = "allow-nan" if self.missing == "nan" else True
        checked: Any = validate_data(
            self, X, reset=reset, dtype=[np.float64, np.float32], ensure_all_finite=gaps, ensure_min_samples=1 + reset
        )
        return torch.as_tensor(np.array(checked))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = self.missing == "nan"
        tags.non_deterministic = self.random_state is None
        return tags
