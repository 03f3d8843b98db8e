"""Looks up names that a user typed."""

import difflib
from collections.abc import Collection, Iterable

__all__ = ["check_taken", "hinted", "listed", "lookup", "nearest"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to a mistyped one.

    Example:
        >>> nearest("msk", ["labels", "mask"])
        'mask'
    """
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    return by_lower[near[0]] if near else None


def hinted(name: str, known: Iterable[str], sentence: str) -> str:
    """``sentence``, which lists the known names, after a hint at the nearest one."""
    near = nearest(name, known)
    return f"; {sentence}" if near is None else f": did you mean {near!r}? {sentence[0].upper()}{sentence[1:]}"


def listed(names: Iterable[str]) -> str:
    """Names as a list in a sentence.

    Example:
        >>> listed(["x", "mask", "labels"]), listed([])
        ('labels, mask and x', 'no arguments')
    """
    *most, last = sorted(names) or ["no arguments"]
    return f"{', '.join(most)} and {last}" if most else last


def lookup(name: str, known: Iterable[str], kind: str) -> str:
    """Returns ``name`` if it is one of ``known``.

    Raises:
        ValueError: naming the nearest known name, and the list.

    Example:
        >>> lookup("berouli", ["bernoulli", "normal"], "likelihood")
        Traceback (most recent call last):
        ...
        ValueError: unknown likelihood 'berouli': did you mean 'bernoulli'? Known: bernoulli, normal
    """
    known = list(known)
    if name in known:
        return name
    sentence = f"known: {', '.join(known)}"
    raise ValueError(f"unknown {kind} {name!r}{hinted(name, known, sentence)}")


def check_taken(names: Iterable[str], taken: Collection[str], who: str) -> None:
    """Checks that a part takes each of the given keyword arguments.

    Raises:
        TypeError: naming one that it does not take, and what it takes.
    """
    for name in names:
        if name not in taken:
            raise TypeError(f"{who} takes no {name!r}{hinted(name, taken, f'it takes {listed(taken)}')}")
