"""What a GPU would stop for is an IndexError before, and what it would do is done."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from pyro_vae._support.indices import CheckedIndices, checked_indices

x = torch.arange(12.0).reshape(3, 4)
BY_INDEX = {
    "brackets": lambda i: x[i],
    "brackets, of a column": lambda i: x.T[:3, i],
    "brackets after a mask": lambda i: x[torch.tensor([True, False, True]), i],
    "assignment": lambda i: x.clone().index_put((i,), torch.tensor(0.0)),
    "index_select": lambda i: x.index_select(0, i),
    "gather": lambda i: x.gather(0, i[:, None]),
    "scatter": lambda i: x.scatter(0, i[:, None], 1.0),
    "scatter_add": lambda i: x.scatter_add(0, i[:, None], torch.ones(len(i), 1)),
    "take": lambda i: x[:, 0].take(i),
    "embedding": lambda i: F.embedding(i, x),
}


@pytest.mark.parametrize("name", BY_INDEX)
def test_is_as_strict_as_the_cpu(name):
    for values in itertools.product([-4, -3, -1, 0, 2, 3], repeat=2):
        index = torch.tensor(values)
        try:
            expected = BY_INDEX[name](index)
        except (IndexError, RuntimeError):
            with CheckedIndices(), pytest.raises(IndexError, match="out of bounds"):
                BY_INDEX[name](index)
        else:
            with CheckedIndices():
                assert torch.equal(BY_INDEX[name](index), expected)


def test_no_index_is_inside():
    with CheckedIndices():
        assert x[torch.zeros(0, dtype=torch.long)].shape == (0, 4)


def test_nothing_is_done_on_the_cpu():
    with checked_indices(torch.device("cpu")) as mode:
        assert mode is None
