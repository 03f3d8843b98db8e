"""Labels, groups and lengths of rows. Users see names; programs take codes."""

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
    """A label as text, the same for every file format; None if it is missing."""
    if value is None or value != value or str(value) in ("", "<NA>"):  # NaN is not itself
        return None
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (int, float, np.number)) and float(value).is_integer():
        return str(int(value))
    return str(value)


def from_column(data: DataSet, column: str | None, option: str) -> DataSet:
    """The data with labels from a column of their table, if one is named and exists."""
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
            f"repeat"
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
    """The names of the labels, by their codes."""
    if data.labels is not None:
        return [level_name(label) for label in data.labels]
    found = [y for y in (data.y_train, data.y_test) if y is not None and len(y)]
    return [str(number) for number in range(max((int(y.max()) for y in found), default=-1) + 1)]


def levels_of(data: DataSet, word: str, kind: Any) -> list[str]:
    """The levels that a model is built for.

    Raises:
        ValueError: if the data have none, or only one, with what to do.
    """
    if data.y_train is None:
        way = (
            f"name a column with --{kind.told}"
            if data.schema is not None
            else "save them in the .npz as an array labels, or put the images of each label in a subfolder"
        )
        raise ValueError(f"--model {word} needs {kind.told}, which {data.name} does not have: {way}")
    levels = [name for name in names_of(data) if name is not None]
    if len(levels) < (1 if kind.told == "groups" else 2):
        raise ValueError(
            f"--model {word} needs {kind.told} with two levels or more; {data.name} has {listing(levels, '')}"
        )
    return levels


def coded(data: DataSet, part: str, levels: Sequence[str], *, new: bool = False) -> Tensor | None:
    """The labels of a part of the data as codes of these levels, -1 if a row has none; None if no row has one.

    Args:
        data: The data.
        part: ``train`` or ``test``.
        levels: The levels that the model knows.
        new: Treat rows with an unknown label as rows without one.

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
    """Rows as a kind of model takes them: alone, or by name with labels, groups or lengths.

    Raises:
        ValueError: if something that the model needs is missing.
    """
    x = getattr(data, f"x_{part}")
    if kind.told is None:
        return x
    if kind.told == "lengths":
        lengths = getattr(data, f"lengths_{part}")
        return x if lengths is None else {"x": x, "lengths": lengths}
    return kind.tell(x, coded(data, part, levels, new=kind.told == "groups"), training)


def of_each(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels, which every row must have."""
    lacking = len(x) if y is None else int((y < 0).sum())
    if y is None or lacking:
        raise ValueError(
            f"{lacking:,} of {len(x):,} rows have no label, but this model needs one for each: leave them out, or "
            f"train --model semi-supervised"
        )
    return {"x": x, "labels": y}


def in_training(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels in training; later the model predicts them from rows alone."""
    return {"x": x, "labels": y} if training and y is not None else x


def as_modality(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their labels as a second modality, NaN where a label is missing."""
    return x if y is None else {"x": x, "labels": torch.where(y < 0, torch.nan, y.float())}


def of_groups(x: Any, y: Tensor | None, training: bool) -> Any:
    """Rows with their groups, -1 for a new one."""
    return {"x": x, "groups": torch.full((len(x),), -1) if y is None else y}


def known(y: Tensor, num: int | None, num_levels: int, seed: int) -> Tensor:
    """Labels of which only ``num`` are known, balanced over levels as far as possible, and -1 for the others.

    Raises:
        ValueError: if there are fewer labels, or more levels, than ``num``.
    """
    if num is None:
        return y
    there = int((y >= 0).sum())
    if not num_levels <= num <= there:
        raise ValueError(f"--known must be from {num_levels}, one of each label, to {there:,}, all labels; found {num}")
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    order = order[y[order] >= 0]
    turns = torch.zeros(num_levels, dtype=torch.long)
    turn = torch.empty(len(order), dtype=torch.long)  # number of earlier rows with the same label
    for place, label in enumerate(y[order].tolist()):
        turn[place] = turns[label]
        turns[label] += 1
    chosen = order[turn.argsort(stable=True)[:num]]
    return torch.full_like(y, -1).index_copy(0, chosen, y[chosen])


def rows_alone(rows: Any) -> Any:
    """Rows without their labels, groups or lengths."""
    return rows["x"] if isinstance(rows, Mapping) else rows


def first(rows: Any, num: int) -> Any:
    """The first rows, with their labels, groups or lengths."""
    return next(in_parts(rows, num, num))


def in_parts(rows: Any, count: int, size: int) -> Iterator[Any]:
    """The first ``count`` rows in parts of ``size``, with their labels, groups or lengths."""
    for start in range(0, count, size):
        part = slice(start, start + size)
        yield {name: value[part] for name, value in rows.items()} if isinstance(rows, Mapping) else rows[part]


def given(texts: Sequence[str], kind: Any, word: str, levels: Sequence[str], num: int) -> dict[str, Tensor]:
    """The values to condition new rows on, from ``labels=3`` or ``labels=cat,owl``, whose levels take turns.

    Raises:
        ValueError: if the model cannot be conditioned on it, does not know the level, or lacks a required value.
    """
    found: dict[str, Tensor] = {}
    if kind.always_given and not texts:
        name = kind.drawn_given[0]
        raise ValueError(f"--model {word} draws rows given {name}: add{example(kind, levels)}")
    for text in texts if num > 0 else ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if name not in kind.drawn_given:
            can = f"it takes {', '.join(kind.drawn_given)}" if kind.drawn_given else "it takes no --given"
            raise ValueError(f"--model {word} cannot draw rows given {name!r}: {can}")
        if not equals or name in found:
            raise ValueError(
                f"--given takes {name}=VALUE once, with several values separated by commas; found {text!r}"
            )
        if name == "total_count":
            numbers = [_count(part) for part in value.split(",")]
        else:
            numbers = [_place(part.strip(), levels, name) for part in _parts(value, levels)]
        found[name] = torch.tensor(numbers)[torch.arange(num) % len(numbers)]
    return found


def example(kind: Any, levels: Sequence[str]) -> str:
    """Example options to condition a model's draws, ready to type; empty if it takes none."""
    if not kind.drawn_given:
        return ""
    name = kind.drawn_given[0]
    value = "100" if name == "total_count" else ",".join(levels[:3])
    return f" --given {shlex.quote(f'{name}={value}')}"


def _parts(value: str, levels: Sequence[str]) -> list[str]:
    """The names separated by commas; a level may itself contain a comma."""
    found, rest = [], value.split(",")
    while rest:
        ends = range(len(rest), 0, -1)
        end = next((end for end in ends if ",".join(rest[:end]).strip() in levels), 1)
        found.append(",".join(rest[:end]))
        rest = rest[end:]
    return found


def _place(name: str, levels: Sequence[str], of: str) -> int:
    if name not in levels:
        raise ValueError(f"the model does not know {name!r} among its {of}: it knows {listing(list(levels), 'levels')}")
    return list(levels).index(name)


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number < 2**53 or math.isnan(number):
        raise ValueError(f"total_count must be a whole number of words, at least 1; found {text!r}")
    return number


def summary(kind: Any, rows: Any, levels: Sequence[str]) -> str:
    """Describes the labels, groups or lengths of training rows in words."""
    if not isinstance(rows, Mapping) or kind.told not in rows:
        return "all rows have all steps"
    values = rows[kind.told]
    if kind.told == "lengths":
        return f"{int(values.min())} to {int(values.max())} steps"
    there = int((values >= 0).sum())
    return f"{listing(list(levels), 'levels')}; known for {there:,} of {len(values):,} rows"
