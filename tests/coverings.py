"""Which cases of a grid the default run takes; ``--exhaustive`` runs all."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence

import pytest


def levels(*factors: int) -> Callable[[Sequence[Hashable]], set[Hashable]]:
    """The levels of each factor, or of these, by their places in a case."""
    return lambda case: {(i, case[i]) for i in factors or range(len(case))}


def pairs(*factors: int) -> Callable[[Sequence[Hashable]], set[Hashable]]:
    """The levels of every two factors together, or of every two of these, by their places in a case."""
    return lambda case: (
        {(i, j, case[i], case[j]) for i, j in itertools.combinations(factors or range(len(case)), 2)} | levels()(case)
    )


def covering(
    cases: Iterable[Sequence[Hashable]], features: Callable[[Sequence[Hashable]], set[Hashable]] | None = None
) -> list:
    """Cases for ``parametrize``; those that the default run needs not are marked ``exhaustive``.

    What the default run takes has every feature of every case: with :func:`levels`, the default, each level of each
    factor appears; with :func:`pairs`, each two levels of factors that interact. The next case taken is the first of
    those that have most of what is still to come, so that the choice is the same in every process.
    """
    cases, features = [tuple(case) for case in cases], features or levels()
    of = [features(case) for case in cases]
    left, taken = set().union(*of), set()
    while left:
        best = max(range(len(cases)), key=lambda number: len(of[number] & left))  # the first of the largest
        left -= of[best]
        taken.add(best)
    return [pytest.param(*case, marks=() if i in taken else pytest.mark.exhaustive) for i, case in enumerate(cases)]


def some(names: Iterable[Hashable], *taken: Hashable) -> list:
    """Names for ``parametrize``, of which the default run takes these."""
    names = list(names)
    assert set(taken) <= set(names), set(taken) - set(names)
    return [pytest.param(name, marks=() if name in taken else pytest.mark.exhaustive) for name in names]
