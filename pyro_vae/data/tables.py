"""Tables: columns of several kinds as rows of numbers, with NaN where an entry is missing, and back.

A :class:`Schema` says what each column holds. It is inferred from the table that a model is trained on and saved with
the model, so that draws come out as the same table: its columns, in their order, with their levels and types.
"""

import functools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import pandas as pd
import torch
from pandas.api.types import infer_dtype, pandas_dtype
from torch import Tensor

from pyro_vae._support.names import lookup
from pyro_vae._support.ranges import Constraint, constraints, phrase
from pyro_vae.likelihoods import Bernoulli, Categorical, Likelihood, LogNormal, Mixed, NegativeBinomial, Normal

__all__ = ["KINDS", "Column", "Schema", "parse_kinds", "read_table"]

# The kinds whose entries are numbers, with the numbers that they may be; entries of the others are levels.
_NUMBERS: Mapping[str, Constraint] = {
    "count": constraints.nonnegative_integer,
    "positive": constraints.positive,
    "real": constraints.real,
}
KINDS: tuple[str, ...] = ("binary", "category", *_NUMBERS)

_LIKELIHOODS: Mapping[str, Callable[["Column"], Likelihood]] = {
    "binary": lambda column: Bernoulli(),
    "category": lambda column: Categorical(max(2, len(column.categories)), ordered=False),
    "count": lambda column: NegativeBinomial(),
    "positive": lambda column: LogNormal(),
    "real": lambda column: Normal(),
}

# What pandas.api.types.infer_dtype says of entries that a column may hold. Everything else is refused.
_HOLDINGS = {
    "boolean": "truth",
    "integer": "integer",
    "floating": "float",
    "mixed-integer-float": "float",
    "string": "text",
    "categorical": "categorical",
    "empty": "empty",
}
_TIMES = ("date", "datetime", "datetime64", "period", "time", "timedelta", "timedelta64")

_MAX_LEVELS = 50  # of text, before it looks like something else
_MAX_LISTED = 20  # levels in a sentence


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        name: Its name.
        kind: One of :data:`KINDS`. ``binary`` and ``category`` entries are levels, ``count`` entries whole numbers from
            0, ``positive`` entries numbers above 0, ``real`` entries any numbers.
        categories: The levels of a binary or category column, in their order: numbers, text or true and false.
        dtype: Name of the pandas type of its entries.
        ordered: Whether the levels have an order, where the column is categorical to pandas; None where it is not.
        low: Lowest number in the table it was inferred from; None where that is not known, and for levels.
        high: Highest number, likewise.
        num_missing: Missing entries in that table.

    Raises:
        ValueError: if these do not describe a column.

    Example:
        >>> Column("smoker", "binary", ("no", "yes"), "object").levels.tolist()
        ['no', 'yes']
    """

    name: str
    kind: str
    categories: tuple[Any, ...] = ()
    dtype: str = "float64"
    ordered: bool | None = None
    low: float | None = None
    high: float | None = None
    num_missing: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"column names are text, found {self.name!r}: rename the column")
        lookup(self.kind, KINDS, "kind")
        _check_categories(self)
        for value in (self.low or 0, self.high or 0, self.num_missing):
            if not isinstance(value, (int, float)):
                raise ValueError(f"column {self.name!r} has {value!r} where a number belongs")
        if self.ordered not in (None, True, False):
            raise ValueError(f"column {self.name!r} has {self.ordered!r} for ordered; expected true, false or nothing")
        try:
            fits = pandas_dtype(self.dtype).kind in ("iuf" if self.is_number else "biufOU")
            fits = fits and self.levels.tolist() == list(self.categories)
        except (TypeError, ValueError, OverflowError):
            fits = False
        if not fits:
            raise ValueError(f"column {self.name!r} of kind {self.kind} cannot have the type {self.dtype!r}")

    @property
    def is_number(self) -> bool:
        """Whether the entries are numbers, and not levels."""
        return self.kind in _NUMBERS

    @property
    def levels(self) -> pd.Series:
        """The categories in the column's own type."""
        return pd.Series(list(self.categories), dtype=self.dtype)


@dataclass(frozen=True)
class Schema:
    """What the columns of a table hold, and the way from the table to numbers and back.

    Args:
        columns: One for each column, in their order.

    Raises:
        ValueError: if there is none, or two have one name.

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
                [1.5000, 1.0000, 0.0000]])
        >>> schema.decode(x).equals(frame)
        True
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "columns", tuple(self.columns))
        if not self.columns:
            raise ValueError("the table has no columns")
        _check_unique(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns' names, in their order."""
        return tuple(column.name for column in self.columns)

    @classmethod
    def infer(cls, frame: pd.DataFrame, kinds: Mapping[str, str] | None = None) -> Self:
        """Tells what each column holds from its entries.

        True and false, and any two distinct values, are ``binary``. Text and pandas categoricals are ``category``.
        Whole numbers from 0 are ``count``, integers or floats that missing entries made of them; other floats
        are ``positive`` if they are all above 0; everything else, and a number that never changes, is ``real``.

        Args:
            frame: The table that a model is to be trained on. Its index is ignored.
            kinds: Kinds by column, where the above is not what is meant: a number that stands for a level, say.

        Raises:
            ValueError: if a column or a kind is unknown, a column holds something else or nothing at all, or does not
                fit the kind asked for, or holds text that looks like prose or an identifier.

        Example:
            >>> frame = pd.DataFrame({"stage": [1, 2, 4, 2], "weight": [61.5, 80.0, 72.25, 90.0]})
            >>> [column.kind for column in Schema.infer(frame).columns]
            ['count', 'positive']
            >>> Schema.infer(frame, {"stage": "category"}).columns[0].categories
            (1, 2, 4)
        """
        kinds = dict(kinds or {})
        _check_unique(list(frame.columns))
        if len(frame) == 0:
            raise ValueError("the table has no rows")
        for name, kind in kinds.items():
            lookup(name, map(str, frame.columns), "column")
            lookup(kind, KINDS, "kind")
        return cls(tuple(_infer_column(pd.Series(frame[name]), kinds.get(name)) for name in frame.columns))

    def describe(self) -> pd.DataFrame:
        """The columns as a table to print: name, kind, levels or extent, and how many entries were missing.

        Extents and missing entries are those of the table that the schema was inferred from.
        """
        return pd.DataFrame(
            {
                "name": list(self.names),
                "kind": [column.kind for column in self.columns],
                "values": [_extent(column) for column in self.columns],
                "missing": [column.num_missing for column in self.columns],
            }
        )

    def encode(self, frame: pd.DataFrame, dtype: torch.dtype | None = None) -> Tensor:
        """A table as numbers: the indices of levels, numbers as they are, NaN where an entry is missing.

        Args:
            frame: A table with these columns, in any order.
            dtype: Floating-point type; PyTorch's default if None. ``torch.float32`` tells whole numbers apart up to
                16,777,216.

        Shape:
            Returns ``(N, D)``, the columns in the schema's order.

        Raises:
            ValueError: if a column is missing or unexpected, an entry is not of its column's kind or is a level that
                the schema does not have, or a row has no entries.

        Example:
            >>> schema = Schema((Column("smoker", "binary", ("no", "yes"), "object"), Column("age", "count")))
            >>> schema.encode(pd.DataFrame({"age": [42, None], "smoker": ["yes", "no"]}))
            tensor([[ 1., 42.],
                    [ 0., nan]])
        """
        _check_unique(list(frame.columns))
        for name in frame.columns:
            lookup(name, self.names, "column")
        for name in self.names:
            if name not in frame.columns:
                raise ValueError(f"the table lacks the column {name!r}; it has {', '.join(frame.columns)}")
        if len(frame) == 0:
            raise ValueError("the table has no rows")
        values = np.stack([_encode_column(column, pd.Series(frame[column.name])) for column in self.columns], axis=1)
        empty = np.isnan(values).all(axis=1)
        if empty.any():
            raise ValueError(
                f"row {empty.argmax()} of the table, counted from 0, has no entries at all: drop such rows"
            )
        x = torch.as_tensor(values).to(dtype or torch.get_default_dtype())
        for index, column in enumerate(self.columns):
            if column.is_number:
                _check_numbers(
                    column, x[:, index], values[:, index], f"which {x.dtype} cannot hold: rescale the column"
                )
        return x

    def decode(self, x: Tensor, *, rounding: bool = True) -> pd.DataFrame:
        """Numbers as a table: its columns in their order, with their levels and types, missing where there is NaN.

        Where a type has no room for missing entries, the column comes in pandas' own type that has; where it has no
        room for a number that a model has drawn, in 64 bits.

        Args:
            x: Rows ``(N, D)``: data or draws; or means, which give the level with the nearest index.
            rounding: Round counts, and the numbers of integer columns, to whole numbers. False leaves means as floats.

        Raises:
            ValueError: if ``x`` has another shape, or a number beyond 64 bits in a column of whole numbers.

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
        values = x.detach().cpu().double().numpy()
        decoded = {
            column.name: _decode_column(column, values[:, i], rounding=rounding)
            for i, column in enumerate(self.columns)
        }
        return pd.DataFrame(decoded)

    def likelihood(self) -> Mixed:
        """A likelihood of the whole table, with the customary one for each kind of column.

        It is Bernoulli for ``binary``, categorical for ``category``, negative binomial for ``count``, log-normal for
        ``positive`` and normal for ``real``. Real columns want to be standardised, which ``transform="auto"`` does.

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
        return Mixed([_LIKELIHOODS[column.kind](column) for column in self.columns], self.names)

    def to_json(self) -> dict[str, Any]:
        """The schema as JSON data."""
        return {"columns": [{**asdict(column), "categories": list(column.categories)} for column in self.columns]}

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
            return cls(
                tuple(Column(**{**entry, "categories": tuple(entry["categories"])}) for entry in data["columns"])
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"the description of the table's columns is damaged ({error})") from error


def _check_unique(names: Iterable[Any]) -> None:
    index = pd.Index(names)
    if index.has_duplicates:
        raise ValueError(f"the table has two columns named {index[index.duplicated()][0]!r}: rename or drop one")


def _check_categories(column: Column) -> None:
    name, levels = column.name, column.categories
    for level in levels:
        if not isinstance(level, (bool, int, float, str)) or (isinstance(level, float) and not math.isfinite(level)):
            raise ValueError(f"column {name!r} has the level {level!r}; levels are numbers, text, or true and false")
    if len(set(levels)) < len(levels):
        raise ValueError(f"column {name!r} has one of its levels twice: {_listing(levels)}")
    rules = {"binary": ("two", len(levels) == 2), "category": ("one or more", len(levels) > 0)}
    takes, fits = rules.get(column.kind, ("no", not levels))
    if not fits:
        raise ValueError(f"kind {column.kind} takes {takes} distinct levels, but column {name!r} has {len(levels)}")


def _listing(levels: Sequence[Any]) -> str:
    shown = ", ".join(map(repr, levels[:_MAX_LISTED]))
    return shown if len(levels) <= _MAX_LISTED else f"{shown}, … ({len(levels)} levels)"


def _extent(column: Column) -> str:
    if not column.is_number:
        return _listing(column.categories)
    return "" if column.low is None or column.high is None else f"{column.low:g} to {column.high:g}"


# --- from entries to columns


def _holding(series: pd.Series) -> str:
    """What the entries are, in the words of ``_HOLDINGS``."""
    found = infer_dtype(series, skipna=True)
    if found in _TIMES:
        raise ValueError(
            f"column {series.name!r} holds dates or times: turn them into numbers, such as days since the first, "
            f"or drop it"
        )
    if found not in _HOLDINGS:
        raise ValueError(
            f"column {series.name!r} holds {found} values; expected numbers, text, or true and false: convert it "
            f"or drop it"
        )
    if found == "categorical":
        _holding(pd.Series(series.cat.categories, name=series.name))
    return _HOLDINGS[found]


def _infer_column(series: pd.Series, kind: str | None) -> Column:
    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    holding, num_missing = _holding(series), int(series.isna().sum())
    if num_missing == len(series):
        raise ValueError(f"column {series.name!r} has no entries at all: drop it")
    kind = kind or _infer_kind(series, holding)
    if kind in _NUMBERS and holding == "categorical":
        return _infer_column(series.astype(object), kind)
    name: Any = series.name
    if kind not in _NUMBERS:
        categories, dtype, ordered = _infer_levels(series, holding)
        return Column(name, kind, categories, dtype, ordered, num_missing=num_missing)
    column = Column(name, kind, num_missing=num_missing)
    values = _encode_numbers(column, series)
    dtype = str(series.dtype) if series.dtype != object else "int64" if holding == "integer" else "float64"
    return replace(column, dtype=dtype, low=float(np.nanmin(values)), high=float(np.nanmax(values)))


def _infer_kind(series: pd.Series, holding: str) -> str:
    num_levels = len(series.cat.categories) if holding == "categorical" else series.nunique()
    if holding == "truth" or num_levels == 2:
        return "binary"
    if holding == "text":
        _check_not_prose(series)
    if holding in ("text", "categorical"):
        return "category"
    values = series.dropna().to_numpy(dtype=np.float64)
    could_be_integers = holding == "integer" or len(values) < len(series)  # missing entries turn integers into floats
    if num_levels == 1:
        return "real"
    if could_be_integers and bool(((values >= 0) & (values % 1 == 0)).all()):
        return "count"
    return "positive" if holding == "float" and bool((values > 0).all()) else "real"


def _infer_levels(series: pd.Series, holding: str) -> tuple[tuple[Any, ...], str, bool | None]:
    """Levels in their order, their type, and whether pandas holds them to be ordered."""
    if holding == "categorical":
        levels = series.cat.categories
        return tuple(map(_plain, levels)), str(levels.dtype), bool(series.cat.ordered)
    levels = (False, True) if holding == "truth" else sorted(map(_plain, series.dropna().unique()))
    return tuple(levels), str(series.dtype), None


def _check_not_prose(series: pd.Series) -> None:
    present = series.dropna()
    num_levels = present.nunique()
    if num_levels <= min(_MAX_LEVELS, len(present) / 2):
        return
    not_numbers = pd.Series(present[pd.Series(pd.to_numeric(present, errors="coerce")).isna()])
    if 0 < len(not_numbers) < len(present) / 2:
        raise ValueError(
            f"column {series.name!r} is text because of entries such as {not_numbers.iloc[0]!r}, but most of its "
            f"entries are numbers: leave the others empty"
        )
    raise ValueError(
        f"column {series.name!r} has {num_levels} distinct texts in {len(present)} rows, such as {present.iloc[0]!r}: "
        f"it looks like free text or an identifier; drop it, or give --columns {series.name}=category"
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# --- from entries to numbers


def _encode_column(column: Column, series: pd.Series) -> np.ndarray:
    return _encode_numbers(column, series) if column.is_number else _encode_levels(column, series)


def _encode_levels(column: Column, series: pd.Series) -> np.ndarray:
    _holding(series)
    indices = {level: float(index) for index, level in enumerate(column.categories)}
    codes, found = pd.factorize(series)
    for level in map(_plain, found):
        if level not in indices:
            raise ValueError(
                f"column {column.name!r} has {level!r}, which is not among the levels that it had in training: "
                f"{_listing(column.categories)}"
            )
    return np.array([*(indices[_plain(level)] for level in found), np.nan])[codes]  # a missing entry has code -1


def _encode_numbers(column: Column, series: pd.Series) -> np.ndarray:
    if isinstance(series.dtype, pd.CategoricalDtype):
        series = series.astype(object)
    takes = f"but kind {column.kind} takes {phrase(_NUMBERS[column.kind])}: fix such entries or leave them empty"
    if _HOLDINGS.get(infer_dtype(series, skipna=True)) not in ("integer", "float", "empty"):
        row = _first_not_a_number(series)
        raise ValueError(f"column {column.name!r} has {_plain(series.iloc[row])!r} in row {row}, {takes}")
    values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    _check_numbers(column, torch.tensor(values), values, takes)
    return values


def _first_not_a_number(series: pd.Series) -> int:
    """The row of the first entry that cannot be read as a number, or else of one that is not a number."""
    entries, present = series.astype(object), series.notna()
    unreadable = present & pd.Series(pd.to_numeric(entries, errors="coerce")).isna()
    are_numbers = entries.map(lambda entry: isinstance(entry, (int, float, np.number)) and not isinstance(entry, bool))
    return next(int(rows.argmax()) for rows in (unreadable, present & ~are_numbers, present) if rows.any())


def _check_numbers(column: Column, x: Tensor, values: np.ndarray, complaint: str) -> None:
    """Refuses ``x`` if it has numbers that the column cannot have; the message speaks of ``values``."""
    fits = torch.isnan(x) | (torch.isfinite(x) & _NUMBERS[column.kind].check(x))
    if not bool(fits.all()):
        row = int(fits.int().argmin())
        raise ValueError(f"column {column.name!r} has {values[row]:.12g} in row {row}, {complaint}")


# --- from numbers to entries


def _decode_column(column: Column, values: np.ndarray, *, rounding: bool) -> pd.Series:
    return _decode_numbers(column, values, rounding=rounding) if column.is_number else _decode_levels(column, values)


def _decode_levels(column: Column, values: np.ndarray) -> pd.Series:
    levels, missing = column.levels, np.isnan(values)
    codes = np.where(missing, -1, np.clip(np.rint(values), 0, len(levels) - 1)).astype(np.int64)
    if column.ordered is not None:
        categories = pd.Index(levels, dtype=levels.dtype)
        return pd.Series(pd.Categorical.from_codes(codes, categories, ordered=column.ordered))
    if missing.any():
        levels = levels.astype(_with_room(levels.dtype))
    return levels.reindex(codes).reset_index(drop=True)


def _decode_numbers(column: Column, values: np.ndarray, *, rounding: bool) -> pd.Series:
    dtype = pandas_dtype(column.dtype)
    whole = dtype.kind in "iu"
    if whole and not rounding:
        return pd.Series(values)
    if rounding and (whole or column.kind == "count"):
        values = np.rint(values) + 0.0  # and never minus zero
    return pd.Series(values).astype(_integer_type(column, values) if whole else dtype)


def _integer_type(column: Column, values: np.ndarray) -> Any:
    """The column's type, or a wider one, that has room for these whole numbers."""
    present = values[~np.isnan(values)]
    low, high = present.min(initial=0), present.max(initial=0)
    for dtype in (pandas_dtype(column.dtype), np.dtype(np.int64)):
        numpy_dtype: Any = getattr(dtype, "numpy_dtype", dtype)
        limits = np.iinfo(numpy_dtype)
        if low >= limits.min and high < limits.max + 1:
            return dtype if len(present) == len(values) else _with_room(dtype)
    raise ValueError(f"column {column.name!r} cannot have whole numbers from {low:g} to {high:g}: they exceed 64 bits")


def _with_room(dtype: Any) -> str:
    """The type of the same values that has room for missing entries."""
    if not isinstance(dtype, np.dtype) or dtype.kind not in "biu":
        return str(dtype)
    return "boolean" if dtype.kind == "b" else dtype.name.replace("int", "Int").replace("u", "U")


# --- files and the command line


def read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    r"""Reads a ``.csv``, ``.tsv`` or ``.parquet`` file; empty fields, ``NA`` and the like are missing entries.

    An index that was stored with the table is left out.

    Raises:
        ValueError: if the file cannot be read as what its name says, has no rows or has two columns of one name, or if
            Parquet is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "patients.csv"
        ...     _ = path.write_text("smoker,age\nyes,42\nno,\n")
        ...     read_table(path)
          smoker   age
        0    yes  42.0
        1     no   NaN
    """
    path = Path(path)
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"cannot read {path} as a table: expected a {', '.join(_READERS)} file")
    try:
        with open(path, "rb") as file:
            frame = _READERS[path.suffix.lower()](file)
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except ImportError as error:
        raise ValueError(f"reading {path} needs pyarrow: pip install 'pyro-vae[tables]'") from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty; expected a row of column names, and rows below it") from error
    except Exception as error:  # pandas and pyarrow raise many kinds for a file that is not theirs
        raise ValueError(f"cannot read {path} as a table ({' '.join(str(error).split())})") from error
    if len(frame) == 0:
        raise ValueError(f"{path} has no rows")
    return frame.reset_index(drop=True)


def _read_delimited(file: BinaryIO, separator: str) -> pd.DataFrame:
    # pandas renames repeated columns and takes the first for an index where rows are longer than the header. This shows
    # the names as they are, and refuses a first row that is longer.
    top = pd.read_csv(file, sep=separator, header=None, nrows=2, dtype=str, keep_default_na=False)
    _check_unique(top.iloc[0])
    file.seek(0)
    return pd.read_csv(file, sep=separator, low_memory=False)


def _read_parquet(file: BinaryIO) -> pd.DataFrame:
    import pyarrow.parquet

    _check_unique(pyarrow.parquet.read_schema(file).names)
    file.seek(0)
    return pd.read_parquet(file, engine="pyarrow")


_READERS: Mapping[str, Callable[[BinaryIO], pd.DataFrame]] = {
    ".csv": functools.partial(_read_delimited, separator=","),
    ".tsv": functools.partial(_read_delimited, separator="\t"),
    ".parquet": _read_parquet,
}


def parse_kinds(texts: Sequence[str]) -> dict[str, str]:
    """Reads kinds by column from the command line.

    Args:
        texts: Items ``name=kind``, or several with commas between them.

    Raises:
        ValueError: if an item has another form, a kind is unknown, or a column is given two kinds.

    Example:
        >>> parse_kinds(["stage=category", "age=count,weight=positive"])
        {'stage': 'category', 'age': 'count', 'weight': 'positive'}
    """
    kinds: dict[str, str] = {}
    for item in (item.strip() for text in texts for item in text.split(",") if item.strip()):
        name, _, kind = (part.strip() for part in item.rpartition("="))
        if not name or not kind:
            raise ValueError(f"--columns takes name=kind, such as age=count,stage=category; found {item!r}")
        lookup(kind, KINDS, "kind")
        if kinds.setdefault(name, kind) != kind:
            raise ValueError(f"--columns gives column {name!r} two kinds, {kinds[name]} and {kind}: give one")
    return kinds
