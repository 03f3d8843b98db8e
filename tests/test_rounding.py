"""Differences of rounding are told from others, also where many terms are added and cancel."""

import math

import numpy as np
import pytest
import torch

from pyro_vae._support.rounding import agree

N = 128 * 28 * 28
EPSILON = torch.finfo(torch.float32).eps


def of_bias(terms):
    """The gradient of a convolution's bias, one term for each pixel of each image."""
    gradient = terms.reshape(128, 1, 28, 28)
    weight, x = torch.full((1, 2, 3, 3), 0.1), torch.full((128, 2, 28, 28), 0.1)
    sizes = [1], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [False, False, True]
    return torch.ops.aten.convolution_backward(gradient, x, weight, *sizes)[2]


SUMS = {
    "sum": lambda terms: terms.sum(),
    "mean": lambda terms: terms.mean(),
    "product of matrices": lambda terms: terms.reshape(1, -1) @ torch.full((N, 1), 0.7),
    "bias of a convolution": of_bias,
    "sum of sums": lambda terms: terms.reshape(128, -1).sum(1).sum(),
    "gradient of an embedding": lambda terms: torch.ops.aten.embedding_dense_backward(
        terms.reshape(-1, 1), torch.zeros(N, dtype=torch.long), 1, -1, False
    ),
}


def residuals(seed):
    """Residuals of pixels, which nearly cancel: dark images first, then bright ones."""
    rng = np.random.default_rng(seed)
    terms = rng.gamma(0.5, 0.1, N).astype(np.float32)
    terms[N // 2 :] *= -1
    return torch.as_tensor(terms - terms.mean() + 1e-4 * rng.random())


def one_by_one(sum_of, terms):
    """The sum with the same weights, in float32, in the order of the terms."""
    weight = sum_of(torch.full((N,), 0.3)).flatten() / (N * 0.3)
    return torch.as_tensor(np.cumsum((terms * weight).numpy(), dtype=np.float32)[-1]).reshape(sum_of(terms).shape)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", SUMS)
def test_another_order_of_additions_is_rounding_and_lacking_terms_are_not(name, seed):
    sum_of, terms = SUMS[name], residuals(seed)

    def again(errors):
        with errors:
            return [sum_of(terms)]

    expected = sum_of(terms)
    assert agree([one_by_one(sum_of, terms)], [expected], again)
    fewer = terms.clone()
    fewer[:: N // 400] = 0  # one in 250 of the terms
    fewer[N // 2 :] = terms[N // 2 :]
    assert not agree([sum_of(fewer)], [expected], again)


def test_the_order_matters_here():
    terms = residuals(0)
    off = float((one_by_one(torch.sum, terms) - terms.sum()).abs())
    assert off > 64 * EPSILON * float(terms.sum().abs())  # or the first tolerance would do


def test_infinities_are_left_alone():
    scores = torch.randn(50, 8)
    scores[:20] = -math.inf

    def again(errors):
        with errors:
            return [scores.logsumexp(1)]

    expected = scores.logsumexp(1)
    close, far = expected * (1 + 75 * EPSILON), expected * (1 + 1e-2)
    assert agree([close], [expected], again)
    assert not agree([far], [expected], again)


def test_whole_numbers_have_no_errors():
    masks = torch.ones(N)

    def again(errors):
        with errors:
            return [masks.sum()]

    assert not agree([masks.sum() + 1], [masks.sum()], again)
