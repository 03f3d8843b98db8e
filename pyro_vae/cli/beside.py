"""What rows come with: labels, groups, lengths. Outside they are words; programs are told numbers."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.sources import DataSet
from pyro_vae.data.tables.names import listing, quoted


def level_name(value: Any) -> str | None:
    """A label as text, the same from every kind of file; None where there is none."""
    if value is None or value != value or str(value) in ("", "<NA>"):  # NaN is not itself
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def from_column(data: DataSet, column: str | None, option: str) -> DataSet:
    """The data with a column of their table for labels, if one is named and there."""
    if column is None:
        return data
    frame = data.about if data.table is None else data.table.frame
    if frame is None:
        raise ValueError(f"{option} names a column of a table, which {data.name} is not: leave it out")
    if column not in frame:
        return data
    names = np.array([level_name(value) for value in frame[column].tolist()], dtype=object)
    levels = _in_order({name for name in names if name is not None})
    if not 2 <= len(levels) <= max(2, len(names) // 2):
        raise ValueError(
            f"{option} {quoted(column)} has {len(levels)} levels in {len(names)} rows: name a column whose levels "
            f"come again"
        )
    places = {name: place for place, name in enumerate(levels)} | {None: -1}
    codes = torch.tensor([places[name] for name in names])
    parts = {f"y_{part}": codes[getattr(data, f"rows_{part}")] for part in ("train", "test")}
    return replace(data, **parts, labels=tuple(levels))


def _in_order(names: set[str]) -> list[str]:
    try:
        return sorted(names, key=float)
    except ValueError:
        return sorted(names)


def names_of(data: DataSet) -> list[str | None]:
    """The name of each label by its number."""
    if data.labels is not None:
        return [level_name(label) for label in data.labels]
    found = [y for y in (data.y_train, data.y_test) if y is not None and len(y)]
    return [str(number) for number in range(max((int(y.max()) for y in found), default=-1) + 1)]


def levels_of(data: DataSet, word: str, kind: Any) -> list[str]:
    """The levels that a model is to know.

    Raises:
        ValueError: if the data have none, or one alone, with what to do.
    """
    if data.y_train is None:
        way = (
            f"name a column by --{kind.told}"
            if data.schema is not None
            else "save them in the .npz as an array labels, or put images in a subfolder for each"
        )
        raise ValueError(f"--model {word} needs {kind.told}, which {data.name} does not have: {way}")
    levels = [name for name in names_of(data) if name is not None]
    if len(levels) < (1 if kind.told == "groups" else 2):
        raise ValueError(
            f"--model {word} needs {kind.told} of two levels or more; {data.name} has {listing(levels, '')}"
        )
    return levels


def coded(data: DataSet, part: str, levels: Sequence[str], *, new: bool = False) -> Tensor | None:
    """The labels of a part of the data as places in these levels, -1 where a row has none; None where no row has.

    Args:
        data: The data.
        part: ``train`` or ``test``.
        levels: Those that the model knows.
        new: Take others for rows without one.

    Raises:
        ValueError: naming a label that is not among the levels.
    """
    y = getattr(data, f"y_{part}")
    if y is None:
        return None
    places = {name: place for place, name in enumerate(levels)} | {None: -1}
    names = names_of(data)
    others = [name for name in names if name not in places]
    there = {names[code] for code in y.unique().tolist() if code >= 0}
    if not new and (unknown := [name for name in others if name in there]):
        raise ValueError(
            f"{data.name} has the label {unknown[0]!r}, which the model does not know: it knows "
            f"{listing(list(levels), 'levels')}"
        )
    table = torch.tensor([*(places.get(name, -1) for name in names), -1])
    return table[y]


def told(kind: Any, data: DataSet, part: str, levels: Sequence[str], *, training: bool = False) -> Any:
    """Rows as a kind of model takes them: alone, or by name with what they come with.

    Raises:
        ValueError: if something that the model needs is not there.
    """
    x = getattr(data, f"x_{part}")
    if kind.told is None:
        return x
    if kind.told == "lengths":
        lengths = getattr(data, f"lengths_{part}")
        return x if lengths is None else {"x": x, "lengths": lengths}
    return kind.tell(x, coded(data, part, levels, new=kind.told == "groups"), training)


def of_each(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels, of which each needs one."""
    lacking = len(x) if y is None else int((y < 0).sum())
    if y is None or lacking:
        raise ValueError(
            f"{lacking:,} of {len(x):,} rows have no label, which this model is told of each: leave them out, or train "
            f"--model semi-supervised"
        )
    return {"x": x, "labels": y}


def in_training(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels in training; later the model is to find them, and is not told."""
    return {"x": x, "labels": y} if training and y is not None else x


def as_modality(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels as numbers of their own, NaN where there is none."""
    return x if y is None else {"x": x, "labels": torch.where(y < 0, torch.nan, y.float())}


def of_groups(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their groups, -1 for a new one."""
    return {"x": x, "groups": torch.full((len(x),), -1) if y is None else y}


def known(y: Tensor, num: int | None, num_levels: int, seed: int) -> Tensor:
    """Labels of which so many are known, of each level as many as can be, and -1 for the others.

    Raises:
        ValueError: if there are fewer labels, or more levels, than are to be known.
    """
    if num is None:
        return y
    there = int((y >= 0).sum())
    if not num_levels <= num <= there:
        raise ValueError(
            f"--known must be from {num_levels}, one of each label, to {there:,}, all there are; found {num}"
        )
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order] >= 0]
    turns = torch.zeros(num_levels, dtype=torch.long)
    turn = torch.empty(len(order), dtype=torch.long)  # how many of a row's label come before it
    for place, label in enumerate(y[order].tolist()):
        turn[place] = turns[label]
        turns[label] += 1
    chosen = order[turn.argsort(stable=True)[:num]]
    return torch.full_like(y, -1).index_copy(0, chosen, y[chosen])


def rows_alone(rows: Any) -> Any:
    """Rows without what they come with."""
    return rows["x"] if isinstance(rows, Mapping) else rows


def first(rows: Any, num: int) -> Any:
    """The first of rows, and of what they come with."""
    return next(in_parts(rows, num, num))


def in_parts(rows: Any, count: int, size: int) -> Iterator[Any]:
    """So many rows in their order, and what they come with, a few at a time."""
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield {name: value[part] for name, value in rows.items()} if isinstance(rows, Mapping) else rows[part]


def given(texts: Sequence[str], kind: Any, word: str, levels: Sequence[str], num: int) -> dict[str, Tensor]:
    """What new rows are to be drawn given, from ``labels=3`` or ``labels=cat,owl``, whose levels come in turn.

    Raises:
        ValueError: if the model is given no such thing, knows no such level, or must be given something.
    """
    found: dict[str, Tensor] = {}
    if kind.always_given and not texts:
        name = kind.drawn_given[0]
        raise ValueError(f"--model {word} draws rows given {name}: give{example(kind, levels)}")
    for text in texts if num > 0 else ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if name not in kind.drawn_given:
            can = f"it can be given {', '.join(kind.drawn_given)}" if kind.drawn_given else "it is given nothing"
            raise ValueError(f"rows of --model {word} are not drawn given {name!r}: {can}")
        if not equals or name in found:
            raise ValueError(f"--given takes {name}=VALUE, once, with commas between several; found {text!r}")
        if name == "total_count":
            numbers = [_count(part) for part in value.split(",")]
        else:
            numbers = [_place(part.strip(), levels, name) for part in _parts(value, levels)]
        found[name] = torch.tensor(numbers)[torch.arange(num) % len(numbers)]
    return found


def example(kind: Any, levels: Sequence[str]) -> str:
    """What rows of a kind of model may be drawn given, as options that can be typed; nothing if it is nothing."""
    if not kind.drawn_given:
        return ""
    name = kind.drawn_given[0]
    value = "100" if name == "total_count" else ",".join(levels[:3])
    return f" --given {shlex.quote(f'{name}={value}')}"


def _parts(value: str, levels: Sequence[str]) -> list[str]:
    """The names that stand between commas; a level may have one in it."""
    found, rest = [], value.split(",")
    while rest:
        ends = range(len(rest), 0, -1)
        end = next((end for end in ends if ",".join(rest[:end]).strip() in levels), 1)
        found.append(",".join(rest[:end]))
        rest = rest[end:]
    return found


def _place(name: str, levels: Sequence[str], of: str) -> int:
    if name not in levels:
        raise ValueError(f"the model knows no {of} {name!r}: it knows {listing(list(levels), 'levels')}")
    return list(levels).index(name)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < 2**53 or math.isnan(number):
        raise ValueError(f"total_count must be a whole number of words from 1; found {text!r}")
    return number


def summary(kind: Any, rows: Any, levels: Sequence[str]) -> str:
    """What a model is told of the rows that it trains on, in words."""
    if not isinstance(rows, Mapping) or kind.told not in rows:
        return "none: all rows have all steps"
    values = rows[kind.told]
    if kind.told == "lengths":
        return f"{int(values.min())} to {int(values.max())} steps"
    there = int((values >= 0).sum())
    return f"{listing(list(levels), 'levels')}; known of {there:,} of {len(values):,} rows"
