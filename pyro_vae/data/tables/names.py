"""Names and kinds of columns as users write them: ``name=kind``, in messages and on the command line."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pyro_vae._support.names import lookup

__all__ = ["GIVEN", "KINDS", "advice", "check_unique", "gathered", "listing", "parse_kinds", "quoted", "shortened"]

KINDS: tuple[str, ...] = ("binary", "category", "count", "positive", "real", "date")
# What a user can give for a column: a kind, the order of day and month in its dates, or that it is not modelled.
GIVEN: tuple[str, ...] = (*KINDS, "date-dmy", "date-mdy", "index", "drop")

_PLAIN = re.compile(r"[^\s,=\"'\\]+")
_MAX_LISTED = 20
_MAX_NOTES = 5  # on one topic


def quoted(name: str) -> str:
    """A name as :func:`parse_kinds` takes it, quoted if necessary.

    Example:
        >>> quoted("age"), quoted("patient id")
        ('age', '"patient id"')
    """
    return name if _PLAIN.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def advice(name: str, *kinds: str) -> str:
    """Advice on which kinds to give for a column.

    Example:
        >>> advice("patient id", "index", "drop")
        'give "patient id"=index or "patient id"=drop'
    """
    *most, last = [f"{quoted(name)}={kind}" for kind in kinds]
    return f"give {', '.join(most)} or {last}" if most else f"give {last}"


def shortened(entry: object) -> str:
    """An entry to show in a sentence, shortened if it is long."""
    text = repr(entry)
    return text if len(text) <= 60 else f"{text[:40]}…{text[-1]} ({len(str(entry))} characters)"


def listing(entries: Sequence[object], noun: str) -> str:
    """Entries to show in a sentence: if there are many, the first few and their number.

    Example:
        >>> listing(["a", "b"], "levels")
        "'a', 'b'"
    """
    shown = ", ".join(map(shortened, entries[:_MAX_LISTED]))
    return shown if len(entries) <= _MAX_LISTED else f"{shown}, … ({len(entries)} {noun})"


def check_unique(names: Iterable[Any]) -> None:
    """Refuses columns that share a name, naming all of them."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"the table has two columns named {listing(twice, 'names')}: rename or drop one")


def gathered(notes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The sentences, grouped by topic; of many on one topic, the first few and the number of the others."""
    topics: dict[str, list[str]] = {}
    for topic, sentence in notes:
        topics.setdefault(topic, []).append(sentence)
    shown = []
    for sentences in topics.values():
        shown += sentences[:_MAX_NOTES]
        if len(sentences) > _MAX_NOTES:
            shown[-1] += f" (and {len(sentences) - _MAX_NOTES} more columns likewise)"
    return tuple(shown)


def parse_kinds(texts: Sequence[str]) -> dict[str, str]:
    """Reads kinds by column from the command line.

    Args:
        texts: Items ``name=kind``, or several separated by commas. A name with a comma, an equals sign or a quote in it
            goes in double quotes, as a JSON string.

    Raises:
        ValueError: if items have another form, kinds are unknown, or a column has two kinds.

    Example:
        >>> parse_kinds(["stage=category", "age=count,weight=positive"])
        {'stage': 'category', 'age': 'count', 'weight': 'positive'}
        >>> parse_kinds(['patient id=index,"dose, mg"=positive'])
        {'patient id': 'index', 'dose, mg': 'positive'}
    """
    kinds: dict[str, str] = {}
    for name, kind in (pair for text in texts for pair in _pairs(text)):
        lookup(kind, GIVEN, "kind")
        if kinds.setdefault(name, kind) != kind:
            raise ValueError(f"column {name!r} has two kinds, {kinds[name]} and {kind}: give one")
    return kinds


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs, rest = [], text.strip()
    while rest:
        name, end = _quoted_name(rest) if rest.startswith('"') else (None, 0)
        item, _, following = rest[end:].partition(",")
        before, _, kind = (part.strip() for part in item.rpartition("="))
        name = before if name is None else name if not before else None
        if name is None or not kind or (not name and not end):
            if rest[:end] + item.strip():
                raise ValueError(
                    f"kinds have the form name=kind, such as age=count,stage=category, with names that contain commas "
                    f"or equals signs in double quotes; found {(rest[:end] + item).strip()!r}"
                )
        else:
            pairs.append((name, kind))
        rest = following.strip()
    return pairs


def _quoted_name(text: str) -> tuple[str, int]:
    try:
        return json.JSONDecoder(strict=False).raw_decode(text)
    except ValueError as error:
        raise ValueError(f"the quotes in {text!r} are not closed, or contain an invalid backslash") from error
