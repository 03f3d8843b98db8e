"""The Fréchet distance against closed forms and SciPy's root of a matrix; the classifier that gives features."""

import numpy as np
import pytest
import scipy.linalg
import torch

from pyro_vae.data.sources import load_data
from pyro_vae.evaluation import frechet_distance, train_classifier_features


def with_moments(num_rows, mean, covariance, seed=0):
    """Rows whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(num_rows, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1))).T
    return x @ np.linalg.cholesky(covariance).T + mean


def random_covariance(dim, seed):
    a = np.random.default_rng(seed).normal(size=(dim, dim))
    return a @ a.T + 0.1 * np.eye(dim)


def by_scipy(a, b):
    (m, c), (n, d) = ((x.mean(0), np.cov(x.T)) for x in (a, b))
    return np.sum((m - n) ** 2) + np.trace(c + d - 2 * np.real(scipy.linalg.sqrtm(c @ d)))


def test_one_dimension_is_the_closed_form():
    a, b = with_moments(50, [1.0], [[4.0]]), with_moments(80, [-2.0], [[0.25]], seed=1)
    assert frechet_distance(a, b) == pytest.approx(3.0**2 + (2.0 - 0.5) ** 2, rel=1e-12)


def test_normals_with_commuting_covariances_are_the_closed_form():
    q = scipy.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    s, t = np.array([3.0, 1.0, 0.5, 2.0, 1e-4]), np.array([1.0, 1.0, 4.0, 0.1, 1e-3])
    a = with_moments(100, np.zeros(5), q @ np.diag(s**2) @ q.T)
    b = with_moments(60, np.arange(5.0), q @ np.diag(t**2) @ q.T, seed=1)
    assert frechet_distance(a, b) == pytest.approx(30 + ((s - t) ** 2).sum(), rel=1e-10)


@pytest.mark.parametrize("dim", [2, 7, 20])
def test_agrees_with_the_root_of_the_product(dim):
    a = with_moments(200, np.ones(dim), random_covariance(dim, 0))
    b = with_moments(90, np.zeros(dim), random_covariance(dim, 1), seed=1)
    assert frechet_distance(a, b) == pytest.approx(by_scipy(a, b), rel=1e-8)


def test_fewer_rows_than_features_and_equal_sets_are_safe():
    x = np.random.default_rng(0).normal(size=(10, 200)).astype(np.float32)
    assert 0 <= frechet_distance(x, x) < 1e-9
    # Rows of one set lie across those of the other, so nothing overlaps and the traces add up.
    a, b = np.zeros((2, 30, 40))
    a[:, :20], b[:, 20:] = np.random.default_rng(1).normal(size=(2, 30, 20))
    expected = np.trace(np.cov(a.T)) + np.trace(np.cov(b.T)) + ((a.mean(0) - b.mean(0)) ** 2).sum()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-10)


def test_features_are_the_space_it_is_taken_in():
    x = torch.randn(500, 3, 2)
    assert frechet_distance(x, x + 1, features=lambda rows: 2 * rows.flatten(1)) == pytest.approx(6 * 4, rel=1e-5)
    with pytest.raises(ValueError, match=r"features must map 500 rows to shape \(500, F\), found \(500,\) for real"):
        frechet_distance(x, x, features=lambda rows: rows.flatten(1).sum(1))


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "needs two rows"),
        (torch.zeros(5, 3), torch.zeros(5, 4), "3 features for a row and samples has 4"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "NaN"),
    ],
)
def test_what_does_not_suit_is_one_sentence(a, b, words):
    with pytest.raises(ValueError, match=words):
        frechet_distance(a, b)


def test_a_classifier_tells_digits_apart_and_its_distance_tells_digits_from_noise():
    data = load_data("digits")
    state = torch.get_rng_state()
    features = train_classifier_features(data.x_train, data.y_train, num_features=32)
    assert torch.equal(torch.get_rng_state(), state)
    again = train_classifier_features(data.x_train, data.y_train, num_features=32)
    assert torch.equal(features(data.x_test), again(data.x_test))
    assert features.accuracy > 0.9 > 0.2 > features.most_frequent
    found = features.logits(data.x_test).argmax(1)
    assert float((found == data.y_test).double().mean()) == pytest.approx(features.accuracy, abs=0.07)

    half = frechet_distance(data.x_test[::2], data.x_test[1::2], features=features)
    shuffled = data.x_test.flatten()[torch.randperm(data.x_test.numel())].reshape(data.x_test.shape)
    assert frechet_distance(data.x_test, shuffled, features=features) > 20 * half


def test_images_are_seen_by_convolutions():
    left = torch.zeros(200, 16, 16)
    left[:100, :, :8] = 1.0
    left[100:, :, 8:] = 1.0
    features = train_classifier_features(left + 0.1 * torch.randn_like(left), torch.arange(200) // 100, epochs=4)
    assert any(isinstance(layer, torch.nn.Conv2d) for layer in features.modules())
    assert features.accuracy == 1.0


def test_labels_must_match():
    with pytest.raises(ValueError, match="expected one for each of 30 rows"):
        train_classifier_features(torch.zeros(30, 2), torch.zeros(29))
    with pytest.raises(ValueError, match="at least two labels and 20 rows, found 1 and 30"):
        train_classifier_features(torch.zeros(30, 2), torch.zeros(30))
