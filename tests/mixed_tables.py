"""Tables of columns of every kind, for the tests of tables."""

import numpy as np
import pandas as pd

from pyro_vae.data.tables import Schema

NAN = float("nan")


def table(seed=0, num_rows=40, *, missing=0.0):
    """Random columns of every kind, in many types; where entries go missing, in types that have room for that."""
    rng = np.random.default_rng(seed)
    colours = ["green", "red", "blue"]
    frame = pd.DataFrame(
        {
            "cured": rng.integers(0, 2, num_rows).astype(bool),
            "smoker": rng.choice(["no", "yes"], num_rows),
            "side": rng.choice([-1, 1], num_rows),
            "threshold": rng.choice([0.25, 1e-3], num_rows),
            "visits": rng.poisson(3, num_rows),
            "beds": rng.integers(0, 200, num_rows).astype(np.uint8),
            "dose": rng.gamma(2.0, 1e-3, num_rows),
            "weight": rng.lognormal(4, 1, num_rows).astype(np.float32),
            "change": rng.normal(size=num_rows) * 1e6,
            "balance": rng.integers(-100, 100, num_rows).astype(np.int16),
            "colour": rng.choice(colours, num_rows),
            "grade": pd.Categorical(rng.choice(["low", "mid", "high"], num_rows), ["low", "mid", "high"], ordered=True),
            "ward": pd.Categorical(rng.choice([10, 20, 30], num_rows), [30, 10, 20, 40]),
        }
    )
    with_room = {"cured": "boolean", "side": "Int64", "visits": "float64", "beds": "UInt8", "balance": "Int16"}
    if missing:
        frame = frame.astype(with_room)
        gone = rng.random(frame.shape) < missing
        gone[:, 0] &= ~gone.all(axis=1)  # no row is empty
        frame = frame.mask(gone)
    return frame


KIND_OF = {
    "cured": "binary",
    "smoker": "binary",
    "side": "binary",
    "threshold": "binary",
    "visits": "count",
    "beds": "count",
    "dose": "positive",
    "weight": "positive",
    "change": "real",
    "balance": "real",
    "colour": "category",
    "grade": "category",
    "ward": "category",
}


def kinds(frame):
    return {column.name: column.kind for column in Schema.infer(frame).columns}


def only(values, kind=None, **settings):
    """The schema of one column."""
    frame = pd.DataFrame({"a": pd.Series(values, **settings)})
    return Schema.infer(frame, {"a": kind} if kind else None)
