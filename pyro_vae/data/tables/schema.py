"""The schema of a table: all its columns, and the conversion to numbers and back."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyro_vae._support.names import hinted, lookup
from pyro_vae.data.tables import entries, filling
from pyro_vae.data.tables.columns import Column
from pyro_vae.data.tables.guessing import guess, is_row_number
from pyro_vae.data.tables.names import GIVEN, check_unique, gathered, listing, quoted
from pyro_vae.data.tables.reading import Table
from pyro_vae.likelihoods import Bernoulli, Categorical, Likelihood, LogNormal, Mixed, NegativeBinomial, Normal

__all__ = ["Schema"]

_MAX_CLAUSES = 20


@dataclass(frozen=True)
class Schema:
    """Describes the columns of a table, and converts the table to numbers and back.

    Args:
        columns: The modelled columns, in their order.
        index: Names of columns that are not modelled but written back, such as identifiers.
        dropped: Names of columns that are left out.
        order: All names in the table's order; by default the index, then the columns.
        notes: Sentences on what was guessed and how to change it. Schemas that differ only in notes are equal.

    Raises:
        ValueError: if no column is modelled, or two columns share a name.

    Example:
        >>> frame = pd.DataFrame({"dose": [0.5, 2.0, 1.5], "visits": [0, 3, 1], "cured": [True, None, False]})
        >>> schema = Schema.infer(frame)
        >>> print(schema.describe().to_string(index=False))
          name     kind      values  missing
          dose positive    0.5 to 2        0
        visits    count      0 to 3        0
         cured   binary False, True        1
        >>> x = schema.encode(frame)
        >>> x
        tensor([[0.5000, 0.0000, 1.0000],
                [2.0000, 3.0000,    nan],
                [1.5000, 1.0000, 0.0000]], dtype=torch.float64)
        >>> schema.decode(x).equals(frame)
        True
    """

    columns: tuple[Column, ...]
    index: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for name in ("columns", "index", "dropped", "order", "notes"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.columns:
            aside = len(self.index) + len(self.dropped)
            raise ValueError("the table has no columns" + (" except those that are set aside" if aside else ""))
        known = [*self.index, *self.names, *self.dropped]
        check_unique(known)
        if not self.order:
            object.__setattr__(self, "order", tuple(known))
        if sorted(self.order) != sorted(known):
            raise ValueError("the order of the table's columns does not name each of them once")

    @property
    def names(self) -> tuple[str, ...]:
        """The modelled columns' names, in their order."""
        return tuple(column.name for column in self.columns)

    @property
    def aside(self) -> tuple[str, ...]:
        """The names of the columns that are not modelled: the index, and those that are left out."""
        return (*self.index, *self.dropped)

    @classmethod
    def infer(cls, frame: pd.DataFrame, kinds: Mapping[str, str] | None = None) -> Self:
        """Infers the kind of each column from its entries.

        True and false, and any two distinct values, are ``binary``. Text and pandas categoricals are ``category``.
        Whole numbers from 0 are ``count``: integers, or floats if missing entries turned integers into floats. Other
        floats are ``positive`` if they are all above 0 and vary by more than a hundredth of their mean. Everything
        else, including a constant number, is ``real``. Row numbers that pandas wrote with a table are set aside. Dates,
        identifiers and free text are refused until their kind is given. Guesses are in ``notes``.

        Args:
            frame: The table to train on. Its index is ignored.
            kinds: Kinds by column, to override the rules above, such as for a number that stands for a level. Besides
                the kinds of :class:`Column` there are ``index`` for a column that is not modelled but written back,
                ``drop`` for one that is left out, and ``date-dmy`` and ``date-mdy`` for dates with an ambiguous order
                of day and month.

        Raises:
            ValueError: naming all columns that are unknown, empty or of an unsupported type, do not fit the given kind,
                or look like dates, identifiers or free text.

        Example:
            >>> frame = pd.DataFrame({"stage": [1, 2, 4, 2], "weight": [61.5, 80.0, 72.25, 90.0]})
            >>> [column.kind for column in Schema.infer(frame).columns]
            ['count', 'positive']
            >>> Schema.infer(frame, {"stage": "category"}).columns[0].categories
            (1, 2, 4)
            >>> Schema.infer(frame).notes[0]
            "column 'stage' has whole numbers from 1 to 4: treated as a count; for levels, stage=category"
        """
        kinds = dict(kinds or {})
        names = list(frame.columns)
        _check_names(names)
        if len(frame) == 0:
            raise ValueError("the table has no rows")
        for name, kind in kinds.items():
            lookup(name, names, "column")
            lookup(kind, GIVEN, "kind")
        aside = {name: kind for name, kind in kinds.items() if kind in ("index", "drop")}
        columns, notes, problems = [], [], []
        for name, series in frame.items():
            kind = kinds.get(str(name))
            if kind is None and is_row_number(series):
                aside[str(name)] = "index"
                said = f"column {name!r} counts the rows: treated as an index; {quoted(str(name))}=count models it"
                notes.append(("row numbers", said))
            elif kind not in ("index", "drop"):
                try:
                    guessed = guess(series, kind)
                except ValueError as error:
                    problems.append(str(error))
                else:
                    columns.append(guessed.column)
                    notes.extend(guessed.notes)
        _check_all(problems, columns)
        index = [name for name in names if aside.get(name) == "index"]
        dropped = [name for name in names if aside.get(name) == "drop"]
        return cls(tuple(columns), tuple(index), tuple(dropped), tuple(names), gathered(notes))

    def describe(self) -> pd.DataFrame:
        """The columns as a table to print: name, kind, levels or range, and number of missing entries.

        Ranges and missing entries are those of the table that the schema was inferred from.
        """
        return pd.DataFrame(
            {
                "name": list(self.names),
                "kind": [column.kind for column in self.columns],
                "values": [column.extent for column in self.columns],
                "missing": [column.num_missing for column in self.columns],
            }
        )

    def encode(self, frame: pd.DataFrame, dtype: torch.dtype = torch.float64) -> Tensor:
        """Converts a table to numbers: levels become their indices, missing entries NaN, numbers stay as they are.

        Dates are days since the first date in the table that the schema was inferred from.

        Args:
            frame: A table with these columns, in any order. Columns that are not modelled are optional.
            dtype: Floating-point type. ``torch.float32`` tells whole numbers apart up to 16,777,216, ``torch.float64``
                up to 2⁵³; with ``torch.float64``, :meth:`decode` restores the table to the last bit.

        Shape:
            Returns ``(N, D)``, the modelled columns in the schema's order.

        Raises:
            ValueError: naming all columns that are missing or unexpected, or have entries of another kind or unknown
                levels; or the rows without entries.

        Example:
            >>> schema = Schema((Column("smoker", "binary", ("no", "yes"), "object"), Column("age", "count")))
            >>> schema.encode(pd.DataFrame({"age": [42, None], "smoker": ["yes", "no"]}))
            tensor([[ 1., 42.],
                    [ 0., nan]], dtype=torch.float64)
        """
        self._check_columns(frame)
        values = np.empty((len(frame), len(self.columns)), order="F")
        by_name, problems = dict(frame.items()), []
        for place, column in enumerate(self.columns):
            try:
                values[:, place] = entries.encode(column, by_name[column.name])
            except ValueError as error:
                problems.append(str(error))
        _check_all(problems)
        empty = np.flatnonzero(np.isnan(values).all(axis=1))
        if len(empty):
            have = (
                "row {} of the table, counted from 0, has"
                if len(empty) == 1
                else "rows {} of the table, counted from 0, have"
            )
            raise ValueError(f"{have.format(listing(empty.tolist(), 'rows'))} no entries: drop such rows")
        x = torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
        if dtype != torch.float64:
            cannot = f"which {x.dtype} cannot hold: rescale the column"
            for place, column in enumerate(self.columns):
                if column.is_number:
                    entries.check_numbers(column, x[:, place], values[:, place], cannot)
        return x

    def _check_columns(self, frame: pd.DataFrame) -> None:
        check_unique(list(frame.columns))
        known_names, there = {*self.names, *self.aside}, set(frame.columns)
        unknown = [name for name in frame.columns if name not in known_names]
        if len(unknown) == 1:
            known = f"known: {', '.join(self.names)}"
            raise ValueError(f"unknown column {unknown[0]!r}{hinted(unknown[0], self.names, known)}")
        if unknown:
            raise ValueError(f"unknown columns {listing(unknown, 'columns')}; known: {', '.join(self.names)}")
        lacking = [name for name in self.names if name not in there]
        if lacking:
            raise ValueError(
                f"the table lacks the column{'s' * (len(lacking) > 1)} {listing(lacking, 'columns')}; it has "
                f"{', '.join(map(str, frame.columns))}"
            )
        if len(frame) == 0:
            raise ValueError("the table has no rows")

    def decode(self, x: Tensor, *, rounding: bool = True) -> pd.DataFrame:
        """Converts numbers to a table: the columns in their order, with their levels and types; NaN is missing.

        If a column's type cannot hold missing entries, the column gets pandas' nullable type. If it cannot hold a
        drawn number, the column gets 64 bits. Columns that are not modelled are left out.

        Args:
            x: Rows ``(N, D)``: data, draws or means. A mean of levels becomes the level with the nearest index.
            rounding: Round the numbers of columns of whole numbers. False leaves means as floats.

        Raises:
            ValueError: if ``x`` has another shape, numbers beyond 64 bits in columns of whole numbers, or numbers
                outside of the calendar in columns of dates.

        Example:
            >>> smoker = Column("smoker", "binary", ("no", "yes"), "object")
            >>> schema = Schema((smoker, Column("age", "count", dtype="int64")))
            >>> schema.decode(torch.tensor([[0.9, 42.3], [0.2, 17.0]]))
              smoker  age
            0    yes   42
            1     no   17
            >>> schema.decode(torch.tensor([[0.9, 42.25]]), rounding=False)["age"].tolist()
            [42.25]
        """
        if x.dim() != 2 or x.shape[1] != len(self.columns):
            raise ValueError(f"expected rows of shape (N, {len(self.columns)}), found shape {tuple(x.shape)}")
        values = np.asfortranarray(x.detach().cpu().double().numpy())
        decoded, problems = {}, []
        for place, column in enumerate(self.columns):
            try:
                decoded[column.name] = entries.decode(column, values[:, place], rounding=rounding)
            except ValueError as error:
                problems.append(str(error))
        _check_all(problems)
        return pd.DataFrame(decoded, index=pd.RangeIndex(len(values)))

    def fill(self, table: Table | pd.DataFrame, x: Tensor) -> pd.DataFrame:
        """Fills the missing entries of a table from draws, and leaves everything else unchanged.

        Args:
            table: The rows that were encoded. If the table has text, every entry stays as in the file, and the filled
                entries are written in the column's style.
            x: A row ``(N, D)`` for each of them, such as from ``vae.impute``.

        Returns:
            The columns in the table's order, without the dropped ones.

        Raises:
            ValueError: if the table has other columns, or another number of rows than ``x``.

        Example:
            >>> frame = pd.DataFrame({"id": ["p7", "p9", "p3", "p5"], "age": [61, None, 48, 50]})
            >>> schema = Schema.infer(frame, {"id": "index"})
            >>> schema.fill(frame, torch.tensor([[61.0], [53.2], [48.0], [50.0]]))["age"].tolist()
            [61.0, 53.0, 48.0, 50.0]
        """
        frame = table.frame if isinstance(table, Table) else table
        self._check_columns(frame)
        if x.dim() != 2 or len(x) != len(frame):
            raise ValueError(f"expected a row of draws for each of the table's {len(frame)}, found {tuple(x.shape)}")
        decoded = self.decode(x)
        text = table.text if isinstance(table, Table) else None
        decimal = table.decimal if isinstance(table, Table) else "."
        by_name = {column.name: column for column in self.columns}
        filled = {}
        for name in frame.columns:
            came: Any = (frame if text is None else text)[name]
            series: Any = frame[name]
            if name in by_name:
                drawn: Any = decoded[name]
                filled[name] = (
                    filling.entries_filled(series, drawn)
                    if text is None
                    else filling.text_filled(by_name[name], series, came, drawn, decimal)
                )
            elif name not in self.dropped:
                filled[name] = came
        return pd.DataFrame(filled)

    def differs(self, other: "Schema") -> list[str]:
        """The differences from another schema, as sentences; empty if rows of one are rows of the other.

        Ranges and numbers of missing entries are not compared.

        Example:
            >>> ours, theirs = Schema((Column("age", "count"),)), Schema((Column("age", "real"),))
            >>> ours.differs(theirs)
            ["column 'age' is of kind count here and real there"]
        """
        found = []
        mine, others = ({column.name: column for column in schema.columns} for schema in (self, other))
        found += [f"column {name!r} is modelled here and not there" for name in mine if name not in others]
        found += [f"column {name!r} is modelled there and not here" for name in others if name not in mine]
        for name in [name for name in mine if name in others]:
            for what, each in _COMPARED.items():
                here, there = each(mine[name]), each(others[name])
                if here != there:
                    found.append(f"column {name!r} {what} {here} here and {there} there")
        if not found and self.names != other.names:
            found.append(
                f"the columns are in another order: {', '.join(self.names)} here, {', '.join(other.names)} there"
            )
        return found

    def likelihood(self) -> Mixed:
        """A likelihood of the whole table, with the usual one for each kind of column.

        It is Bernoulli for ``binary``, categorical for ``category``, negative binomial for ``count``, log-normal for
        ``positive`` and normal for ``real`` and ``date``. The last two kinds should be standardised, which
        ``transform="auto"`` does.

        Example:
            >>> from pyro_vae import fit, mlp_vae
            >>> frame = pd.DataFrame({"age": [31, 58, 44, 70] * 32, "smoker": ["no", "yes", "yes", None] * 32})
            >>> schema = Schema.infer(frame)
            >>> likelihood = schema.likelihood()
            >>> vae = mlp_vae((2,), latent_dim=1, likelihood=likelihood, transform="auto", missing="nan")
            >>> history = fit(vae, schema.encode(frame), epochs=1, progress=False)
            transform: Identity(), because no column is a real number
            >>> schema.decode(vae.sample(100)).dtypes.to_dict() == frame.dtypes.to_dict()
            True
        """
        return Mixed([_likelihood(column) for column in self.columns], self.names)

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON data."""
        columns = [{**asdict(column), "categories": list(column.categories)} for column in self.columns]
        aside = {"index": list(self.index), "dropped": list(self.dropped), "order": list(self.order)}
        return {"columns": columns, **aside}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """The schema that :meth:`to_json` described.

        Raises:
            ValueError: if ``data`` is not such a description.

        Example:
            >>> schema = Schema((Column("smoker", "binary", ("no", "yes"), "object"),))
            >>> Schema.from_json(schema.to_json()) == schema
            True
        """
        try:
            columns = (Column(**{**entry, "categories": tuple(entry["categories"])}) for entry in data["columns"])
            return cls(tuple(columns), *(tuple(data.get(name, ())) for name in ("index", "dropped", "order")))
        except (AttributeError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the description of the table's columns is damaged ({error})") from error


_COMPARED = {
    "is of kind": lambda column: column.kind,
    "has the levels": lambda column: listing(column.categories, "levels"),
    "has the type": lambda column: column.dtype,
    "is counted from": lambda column: column.origin,
    "is written as": lambda column: column.format,
}


def _likelihood(column: Column) -> Likelihood:
    match column.kind:
        case "binary":
            return Bernoulli()
        case "category":
            return Categorical(max(2, len(column.categories)), ordered=False)
        case "count":
            return NegativeBinomial()
        case "positive":
            return LogNormal()
        case _:
            return Normal()


def _check_names(names: Sequence[Any]) -> None:
    others = [name for name in names if not isinstance(name, str)]
    if others:
        raise ValueError(
            f"column names must be text, found {listing(others, 'names')}: rename the column{'s' * (len(others) > 1)}, "
            f"such as with frame.columns = [str(name) for name in frame.columns]"
        )
    check_unique(names)


def _check_all(problems: Sequence[str], columns: Sequence[Column] = ()) -> None:
    """Raises all problems as one, with what will be refused next unless it is asked for."""
    if not problems:
        return
    count = f"{len(problems)} columns need attention: " if len(problems) > 1 else ""
    more = f"; and {len(problems) - _MAX_CLAUSES} more columns" if len(problems) > _MAX_CLAUSES else ""
    gaps = [f"{column.name} ({column.num_missing})" for column in columns if column.num_missing]
    missing = f". Entries are missing too, in {', '.join(gaps)}: missing=nan allows them" if gaps else ""
    raise ValueError(f"{count}{'; '.join(problems[:_MAX_CLAUSES])}{more}{missing}")
