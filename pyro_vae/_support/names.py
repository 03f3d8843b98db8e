"""Looking up a name that a person typed."""

import difflib
from collections.abc import Iterable

__all__ = ["lookup"]


def lookup(name: str, known: Iterable[str], kind: str) -> str:
    """Returns ``name`` when it is one of ``known``.

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
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(str(name).lower(), list(by_lower), n=1, cutoff=0.5)
    hint = f": did you mean {by_lower[near[0]]!r}? Known: " if near else "; known: "
    raise ValueError(f"unknown {kind} {name!r}{hint}{', '.join(known)}")
